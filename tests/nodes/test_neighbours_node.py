"""containerd, Docker, CRI-O and a k3s on one node: all are known, only the chosen one changes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import containers, crio, nodes, real
from tests.support.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

PROGRAM = str(Path(sys.executable).parent / "nvidia-toolkit")
HOME = "/var/lib/rancher/k3s"
K3S = f"{HOME}/agent/etc/containerd"
K3S_SOCKET = "/run/k3s/containerd/containerd.sock"
K3S_PROGRAM = f"{HOME}/data/0b24fa2ffb10bc8e9a8bf5a3e4e1be9eb6a8c2f1/bin/containerd"
FILES = {"containerd": "/etc/containerd", "docker": "/etc/docker", "crio": "/etc/crio", "k3s": K3S}
SOCKETS = {
    "containerd": "/sock/containerd/containerd.sock",
    "docker": "/sock/docker.sock",
    "crio": "/sock/crio/crio.sock",
}
MOUNTS = {
    **{path: path for path in FILES.values()},
    "/sock": "/run",
    "/usr/local/nvidia": "/usr/local/nvidia",
    "/run/nvidia": "/run/nvidia",
}


_UNIT = f"""\
[Service]
ExecStart={K3S_PROGRAM} -c {K3S}/config.toml -a {K3S_SOCKET}\
 --state /run/k3s/containerd --root {HOME}/root
Delegate=yes
KillMode=process
Restart=always
RestartSec=1
"""
_CONFIG = f"""\
version = 2
imports = ["{K3S}/config.toml.d/*.toml"]

[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""


def start_k3s(node: Node) -> None:
    """Start a containerd as k3s brings it along, beside the node's own."""
    nodes.run(node, ["mkdir", "-p", str(Path(K3S_PROGRAM).parent), K3S, "/run/k3s/containerd"])
    nodes.run(node, ["cp", "/usr/bin/containerd", K3S_PROGRAM])
    nodes.path(node, f"{K3S}/config.toml").write_text(_CONFIG)
    nodes.path(node, "/etc/systemd/system/k3s.service").write_text(_UNIT)
    nodes.run(node, ["systemctl", "daemon-reload"])
    nodes.run(node, ["systemctl", "start", "k3s"])
    nodes.wait_for(node, nodes.path(node, K3S_SOCKET).exists)


@contextmanager
def kubelet(node: Node, endpoint: str) -> Iterator[None]:
    """Run what has a kubelet's name and command line, and does nothing."""
    nodes.run(node, ["cp", "/bin/sh", "/usr/local/bin/kubelet"])
    flag = f"--container-runtime-endpoint=unix://{endpoint}"
    words = ["/usr/local/bin/kubelet", "-c", "sleep infinity; :", "kubelet", flag]
    unit = f"kubelet-{endpoint.strip('/').replace('/', '-')}"
    nodes.run(node, ["systemd-run", "--collect", f"--unit={unit}", *words])
    try:
        yield
    finally:
        nodes.run(node, ["systemctl", "stop", unit])


def detect(node: Node, *options: str) -> tuple[int, dict[str, Any]]:
    done = containers.daemonset(node, [PROGRAM, "detect", "-o", "json", *options], mounts=MOUNTS)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    if reason := crio.why_not():
        pytest.skip(reason)
    with nodes.boot("trixie", units=("containerd", "docker")) as booted:
        crio.install(booted)
        crio.prepare_images(booted)
        crio.start(booted)
        nodes.path(booted, "/etc/docker").mkdir(exist_ok=True)
        start_k3s(booted)
        real.USED.add(
            "containerd, dockerd, crio and a k3s' containerd together on a booted trixie node"
        )
        yield booted


def picture(node: Node, runtime: str) -> dict[str, tuple[int, int, bytes]]:
    """Return every file of a runtime with its inode, time of change and content."""
    found = {}
    for path in sorted(nodes.path(node, FILES[runtime]).rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_ino, status.st_mtime_ns, content)
    return found


def pids(node: Node) -> dict[str, int]:
    return {unit: nodes.main_pid(node, unit) for unit in FILES}


@pytest.mark.parametrize("chosen", ["containerd", "docker", "crio"])
def test_only_the_chosen_one_changes(node: Node, source: Path, chosen: str) -> None:
    for unit in FILES:
        nodes.run(node, ["systemctl", "reset-failed", unit])
    options = [
        f"--runtime={chosen}",
        f"--toolkit-source-root={source}",
        f"--socket={SOCKETS[chosen]}",
    ]
    if chosen == "crio":
        options.append(f"--hooks-dir={FILES['crio']}/hooks.d")
    others = [other for other in FILES if other != chosen]
    before = {runtime: picture(node, runtime) for runtime in FILES}
    running = pids(node)

    done = containers.daemonset(node, [PROGRAM, "run", "--no-daemon", *options], mounts=MOUNTS)
    assert done.returncode == 0, done.stderr
    assert picture(node, chosen) != before[chosen]
    assert {other: picture(node, other) for other in others} == {
        other: before[other] for other in others
    }
    assert {other: pids(node)[other] for other in others} == {
        other: running[other] for other in others
    }

    undone = containers.daemonset(node, [PROGRAM, "revert", *options], mounts=MOUNTS)
    assert undone.returncode == 0, undone.stderr
    assert {p: c[2] for p, c in picture(node, chosen).items()} == {
        p: c[2] for p, c in before[chosen].items()
    }
    assert {other: picture(node, other) for other in others} == {
        other: before[other] for other in others
    }
    assert {other: pids(node)[other] for other in others} == {
        other: running[other] for other in others
    }


def test_each_is_named_with_its_own_program_config_and_owner(node: Node) -> None:
    """P03: three containerds and two other runtimes' files; none is taken for another's."""
    code, found = detect(node)
    seen = {each["distribution"]: each for each in found["runtimes"]}
    assert {
        name: (each["executable"], each["config"]["path"], each["unit"])
        for name, each in seen.items()
    } == {
        "containerd": ("/usr/bin/containerd", "/etc/containerd/config.toml", "containerd.service"),
        "docker": ("/usr/sbin/dockerd", "/etc/docker/daemon.json", "docker.service"),
        "crio": (seen["crio"]["executable"], "/etc/crio/crio.conf", "crio.service"),
        "k3s": (K3S_PROGRAM, f"{K3S}/config.toml", "k3s.service"),
    }
    assert {name: each["pid"] for name, each in seen.items()} == pids(node)
    assert all(each["is_candidate"] and each["root"]["is_host"] for each in seen.values())
    assert code == 9
    assert found["choice"]["runtime"] is None
    (problem,) = found["choice"]["problems"]
    assert all(each["executable"] in problem for each in seen.values())


def run(node: Node, *options: str) -> tuple[int, str]:
    words = [PROGRAM, "run", "-n", "--restart-budget=0", *options]
    done = containers.daemonset(node, words, mounts=MOUNTS)
    return done.returncode, done.stderr


@pytest.mark.parametrize("used", ["containerd", "crio"])
def test_the_kubelet_s_is_set_up_without_a_word_from_us(
    node: Node, source: Path, used: str
) -> None:
    before = {runtime: picture(node, runtime) for runtime in FILES}
    running = pids(node)
    others = [other for other in FILES if other != used]
    with kubelet(node, f"/run/{SOCKETS[used].removeprefix('/sock/')}"):
        code, found = detect(node)
        assert (code, found["choice"]["runtime"]) == (0, used), found["choice"]
        assert [each["distribution"] for each in found["runtimes"] if each["used_by"]] == [used]
        code, said = run(node, f"--toolkit-source-root={source}", "--runtime=docker")
        assert code == 2
        assert said.startswith("error: --runtime=docker: the kubelet (PID ")
        assert {runtime: picture(node, runtime) for runtime in FILES} == before
        assert pids(node) == running
        code, said = run(node, f"--toolkit-source-root={source}")
        assert code == 0, said
        assert picture(node, used) != before[used]
        undone = containers.daemonset(
            node, [PROGRAM, "revert", "--restart-budget=0"], mounts=MOUNTS
        )
        assert undone.returncode == 0, undone.stderr
    assert contents(node, used) == {path: each[2] for path, each in before[used].items()}
    assert {other: picture(node, other) for other in others} == {
        other: before[other] for other in others
    }
    assert {other: pids(node)[other] for other in others} == {
        other: running[other] for other in others
    }


def test_a_kubelet_on_k3s_leads_to_k3s_files_and_to_no_others(node: Node, source: Path) -> None:
    """Its containerd 1.7 merges no drop-ins: the message names its own config, all stays as is."""
    before = {runtime: picture(node, runtime) for runtime in FILES}
    running = pids(node)
    with kubelet(node, K3S_SOCKET):
        code, found = detect(node)
        assert (code, found["choice"]["config"]) == (0, f"{K3S}/config.toml"), found["choice"]
        assert [each["distribution"] for each in found["runtimes"] if each["used_by"]] == ["k3s"]
        code, said = run(node, f"--toolkit-source-root={source}")
    assert code == 4
    assert f"{K3S}/config.toml is rewritten" in said
    assert {runtime: picture(node, runtime) for runtime in FILES} == before
    assert pids(node) == running


def contents(node: Node, runtime: str) -> Mapping[str, bytes]:
    return {path: each[2] for path, each in picture(node, runtime).items()}
