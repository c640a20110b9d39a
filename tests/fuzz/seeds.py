"""Real configurations and small ones of every kind: what the mutations start from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).resolve()
FOUND: Final = _HERE.parent / "found"
"""Inputs that once did harm, one a file; its suffix says which format it is in."""
_EXAMPLES: Final = _HERE.parents[2] / "examples"
# Real files; they lie beside the checkout where the project is worked on.
_CORPUS: Final = _HERE.parents[3] / "shared" / "corpus"
_LARGEST: Final = 16_000

V1: Final = b"""\
[plugins.cri.containerd]
  default_runtime_name = "runc"
  [plugins.cri.containerd.runtimes.runc]
    runtime_type = "io.containerd.runtime.v1.linux"
"""
V2: Final = b"""\
version = 2
imports = ["/etc/containerd/conf.d/*.toml"] # more
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes]
  runc = { runtime_type = "io.containerd.runc.v2", options = { SystemdCgroup = true } }
  nvidia = { runtime_type = "io.containerd.runc.v2", \
options = { binaryname = "/old", BinaryName = "/x" } }
"""
V3: Final = b"""\
version = 3
root = '/var/lib/containerd'

[plugins.'io.containerd.cri.v1.runtime']
  enable_cdi = false
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
      container_annotations = ["a/*"]
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = true
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia]
      runtime_type = 'io.containerd.runc.v2'
"""
DOTTED: Final = b"""\
version=2
plugins."io.containerd.grpc.v1.cri".containerd.default_runtime_name = "runc"
plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.runtime_type = "io.containerd.runc.v2"
plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options.BinaryName = "/old"
when = 1979-05-27T07:32:00Z
odd = [nan, -inf, 0x1F, 1e3, '''a
b''']
"""
CRIO: Final = b"""\
[crio.runtime]
default_runtime = "crun"
[crio.runtime.runtimes.crun]
runtime_path = "/usr/bin/crun"
[crio.runtime.runtimes.nvidia]
runtime_path = "/old"
allowed_annotations = ["a", "b"]
[crio.runtime.workloads.management]
resources = { "cpushares" = 0, "cpuset" = "0-1" }
"""
DOCKER: Final = b"""\
{
    "default-runtime": "runc",
    "runtimes": {
        "nvidia": {"path": "/old", "args": ["a"]},
        "kata": {"runtimeType": "io.containerd.kata.v2"}
    },
    "features": {"cdi": false},
    "log-opts": {"max-size": "100m", "n": [1, 2.50, -0, 1e3, null, "\\u00e9\\ud83d\\ude00"]}
}
"""
FLAT: Final = b'{"runtimes":{},"a":1,"default-runtime":"nvidia"}'
HOOK: Final = b"""\
{"version": "1.0.0", "hook": {"path": "/usr/local/nvidia/toolkit/nvidia-container-toolkit"}}
"""


def _files(*patterns: str) -> tuple[bytes, ...]:
    paths = [
        path for root in (_EXAMPLES, _CORPUS) for pattern in patterns for path in root.glob(pattern)
    ]
    found = {path.read_bytes() for path in sorted(paths)}
    return tuple(sorted(data for data in found if len(data) <= _LARGEST))


def _found(suffix: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(FOUND.glob(f"*.{suffix}")))


CONTAINERD_FILES: Final = (V1, V2, V3, DOTTED, b"", *_files("containerd/*.toml"))
CRIO_FILES: Final = (CRIO, b"", *_files("crio/*.conf", "crio/crio.conf.d/*.conf"))
DOCKER_FILES: Final = (DOCKER, FLAT, b"{}\n", b"", *_files("docker/*.json"))
TOML_FILES: Final = (*CONTAINERD_FILES, *CRIO_FILES, *_found("toml"))
JSON_FILES: Final = (*DOCKER_FILES, HOOK, *_found("json"))
