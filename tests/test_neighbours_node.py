"""containerd, Docker and CRI-O on one node: only the chosen one's files change, and only it is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import artifacts, containers, crio, nodes, real
from tests.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

PROGRAM = str(Path(sys.executable).parent / "nvidia-toolkit")
FILES = {"containerd": "/etc/containerd", "docker": "/etc/docker", "crio": "/etc/crio"}
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


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    if reason := crio.why_not():
        pytest.skip(reason)
    with nodes.boot("trixie", units=("containerd", "docker")) as booted:
        crio.install(booted)
        crio.prepare_images(booted)
        crio.start(booted)
        nodes.path(booted, "/etc/docker").mkdir(exist_ok=True)
        real.USED.add("containerd, dockerd and crio together on a booted trixie node")
        yield booted


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.make(tmp_path_factory.mktemp("artifacts"))


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


@pytest.mark.parametrize("chosen", FILES)
def test_only_the_chosen_one_changes(node: Node, source: Path, chosen: str) -> None:
    for unit in FILES:
        nodes.run(node, ["systemctl", "reset-failed", unit])
    options = [
        f"--runtime={chosen}",
        f"--toolkit-source-root={source}",
        f"--socket={SOCKETS[chosen]}",
        f"--hooks-dir={FILES['crio']}/hooks.d",
    ]
    others = [other for other in FILES if other != chosen]
    before = {runtime: picture(node, runtime) for runtime in FILES}
    running = pids(node)

    done = containers.daemonset(node, [PROGRAM, "run", "--no-daemon", *options], mounts=MOUNTS)
    assert done.returncode == 0, done.stderr
    assert picture(node, chosen) != before[chosen]
    assert {other: picture(node, other) for other in others} == {other: before[other] for other in others}
    assert {other: pids(node)[other] for other in others} == {other: running[other] for other in others}

    undone = containers.daemonset(node, [PROGRAM, "revert", *options], mounts=MOUNTS)
    assert undone.returncode == 0, undone.stderr
    assert {p: c[2] for p, c in picture(node, chosen).items()} == {p: c[2] for p, c in before[chosen].items()}
    assert {other: picture(node, other) for other in others} == {other: before[other] for other in others}
    assert {other: pids(node)[other] for other in others} == {other: running[other] for other in others}
