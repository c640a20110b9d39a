"""How a distribution and an operating system are recognised."""

from __future__ import annotations

import pytest

from runtimes import distributions
from runtimes.model import RuntimeName


@pytest.mark.parametrize(
    ("executable", "config", "unit", "name"),
    [
        ("/var/lib/rancher/k3s/data/0123abcd/bin/k3s", "", "", "k3s"),
        (
            "/data/k3s/data/0123abcd/bin/k3s",
            "/data/k3s/agent/etc/containerd/config.toml",
            "k3s.service",
            "k3s",
        ),
        ("/var/lib/rancher/rke2/data/v1.34.1-rke2r1-ab/bin/containerd", "", "", "rke2"),
        (
            "/snap/microk8s/7394/bin/containerd",
            "/var/snap/microk8s/7394/args/containerd.toml",
            "",
            "microk8s",
        ),
        ("", "/var/snap/microk8s/7394/args/containerd.toml", "", "microk8s"),
        ("/var/lib/k0s/bin/containerd", "/etc/k0s/containerd.toml", "", "k0s"),
        ("/snap/k8s/3000/bin/containerd", "/etc/containerd/config.toml", "", "canonical-k8s"),
        (
            "/opt/bin/containerd",
            "/kubernetes/agent/etc/containerd/config.toml",
            "k3s-blue.service",
            "k3s",
        ),
        ("/opt/bin/containerd", "/kubernetes/config.toml", "rke2-server.service", "rke2"),
        ("/data/v1.2/bin/containerd", "/srv/containerd.toml", "", "containerd"),
        ("/usr/bin/containerd", "/etc/containerd/config.toml", "containerd.service", "containerd"),
        ("/opt/bin/containerd", "/srv/containerd.toml", "my.service", "containerd"),
    ],
)
def test_a_daemon_s_distribution_is_known(
    executable: str, config: str, unit: str, name: str
) -> None:
    found = distributions.of(
        RuntimeName.CONTAINERD, executable=executable, config=config, unit=unit
    )
    assert found.name == name


K3S_SOCKET = "/run/k3s/containerd/containerd.sock"


@pytest.mark.parametrize(
    ("executable", "config", "socket", "name"),
    [
        ("/ssd/rancher/k3s/data/0123abcd/bin/containerd", "", K3S_SOCKET, "k3s"),
        ("/data/data/0123abcd/bin/k3s", "", K3S_SOCKET, "k3s"),
        (
            "/data/app/bin/containerd",
            "/srv/c.toml",
            "/run/containerd/containerd.sock",
            "containerd",
        ),
        ("", "/ssd/rancher/k3s/agent/etc/containerd/config.toml", K3S_SOCKET, "k3s"),
        ("", "/ssd/rke2/agent/etc/containerd/config.toml", K3S_SOCKET, "rke2"),
        ("", "/kubernetes/agent/etc/containerd/config.toml", K3S_SOCKET, "k3s"),
        (
            "/k/data/v1.30.2-rke2r1-ab/bin/containerd",
            "/k/containerd/config.toml",
            K3S_SOCKET,
            "rke2",
        ),
        ("/usr/bin/containerd", "/srv/config.toml", K3S_SOCKET, "k3s"),
        ("/usr/bin/containerd", "/etc/containerd/config.toml", K3S_SOCKET, "containerd"),
        (
            "",
            "/srv/agent/etc/containerd/config.toml",
            "/run/containerd/containerd.sock",
            "containerd",
        ),
        ("/opt/bin/containerd", "/opt/k0s.toml", "/run/k0s/containerd.sock", "k0s"),
    ],
)
def test_a_daemon_with_other_directories_is_known_by_its_socket(
    executable: str, config: str, socket: str, name: str
) -> None:
    found = distributions.of(
        RuntimeName.CONTAINERD, executable=executable, config=config, socket=socket
    )
    assert found.name == name


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ('NAME="Flatcar Container Linux by Kinvolk"\nID=flatcar\nID_LIKE=coreos\n', "flatcar"),
        ('ID="rhcos"\n', "rhcos"),
        ('ID="rhel"\nID_LIKE="fedora"\nVARIANT="CoreOS"\nVARIANT_ID=coreos\n', "rhcos"),
        ('ID="rhel"\nVERSION_ID="9.6"\n', None),
        ("ID=fedora\nVARIANT_ID=coreos\n", None),
        ("NAME=Talos\nID=talos\n", "talos"),
        ("ID=debian\nVARIANT_ID=cos\n", None),
        ("", None),
    ],
)
def test_an_operating_system_is_known_by_its_id(text: str, id_: str | None) -> None:
    found = distributions.system(text)
    assert (found.id if found else None) == id_
