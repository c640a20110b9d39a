"""The versions of other people's programs that this project is built with, tested and measured.

Each is named here and nowhere else in code; tests/project/test_versions.py compares the Dockerfile
and the documents with it. Debian's own versions are those of the suites of nodes.SUITES.
"""

from __future__ import annotations

from typing import Final

TOOLKIT: Final = "v1.20.2"
"""NVIDIA Container Toolkit: its programs, and the installer that this one is compared with."""

CONTAINERD: Final = {"2.2": "v2.2.9", "2.3": "v2.3.7", "2.4": "v2.4.2"}
"""Release lines of containerd that no Debian suite has, built from the Go module."""

BOOTED_CONTAINERD: Final = "2.4"
"""The line of these that nodes are booted with."""

CRIO: Final = "1.36.3"
KUBERNETES: Final = "1.37.2"
HELM: Final = {"3": "v3.22.0", "4": "v4.3.2"}
CNI_PLUGINS: Final = "v1.9.1"
KUBERNETES_MINORS: Final = tuple(range(28, 38))
"""The minor versions of Kubernetes 1 whose API schemas the chart's objects are checked against."""

OPENSHIFT_CLIENT: Final = "v0.0.0-20251015124057-db0dee36e235"
"""The Go module with the schema of OpenShift's SecurityContextConstraints."""
PROMETHEUS: Final = "v0.316.0"
"""Of the Go module: Prometheus 3.16.0."""
NFPM: Final = "v2.45.2"
"""What makes the .deb and the .rpm."""
KWOK: Final = "v0.8.0"
"""Kubernetes' simulator of nodes."""
