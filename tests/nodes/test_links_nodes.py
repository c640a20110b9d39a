"""Symbolic links on the way to the runtime's files, as a pod sees them, on a booted node.

The pod has the node's root read-only at /host. There an absolute link leads into the pod's root.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import boot, containers, nodes
from tests.support.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

PROGRAM = str(Path(sys.executable).parent / "nvidia-toolkit")
LINK = "/etc/containerd/conf.d"
ELSEWHERE = "/srv/containerd/conf.d"
INSIDE = "/etc/containerd/real.d"
AT_ANOTHER_PATH = {"/runtime/config-dir": "/etc/containerd", "/etc/containerd": ""}
"""Container paths with their node paths; an empty one is not mounted."""
NAMED = {
    "RUNTIME_CONFIG": "/runtime/config-dir/config.toml",
    "RUNTIME_DROP_IN_CONFIG": "/runtime/config-dir/conf.d/99-nvidia.toml",
    "RUNTIME_DROP_IN_CONFIG_HOST_PATH": f"{LINK}/99-nvidia.toml",
}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with boot.booted(nodes.SUITES[-1]) as booted:  # containerd 2.x merges drop-ins
        yield booted


def linked(node: Node, to: str, real_directory: str) -> None:
    """Make the drop-in directory a link, and make its target; forget earlier restarts."""
    nodes.run(node, ["systemctl", "reset-failed", "containerd"])
    nodes.path(node, "/run/nvidia/toolkit/restarts.json").unlink(missing_ok=True)
    nodes.run(node, ["rm", "-rf", LINK, ELSEWHERE, INSIDE])
    nodes.run(node, ["mkdir", "-p", real_directory])
    nodes.run(node, ["ln", "-s", to, LINK])


def picture(node: Node) -> dict[str, str]:
    found = {}
    for place in ("/etc/containerd", "/srv/containerd", "/usr/local/nvidia"):
        for path in sorted(nodes.path(node, place).rglob("*")):
            content = (
                path.read_text(encoding="utf-8") if path.is_file() and not path.is_symlink() else ""
            )
            found[str(path.relative_to(node.root))] = content
    return found


class Pod:
    def __init__(
        self, node: Node, source: Path, mounts: Mapping[str, str], env: Mapping[str, str]
    ) -> None:
        self.node, self.mounts, self.env = node, mounts, env
        self.options = ["--runtime=containerd", f"--toolkit-source-root={source}"]

    def __call__(self, *arguments: str, code: int = 0) -> str:
        argv = [PROGRAM, *arguments, *self.options]
        done = containers.daemonset(self.node, argv, env=self.env, mounts=self.mounts)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


def handlers(node: Node) -> set[str]:
    dump = nodes.run(node, ["containerd", "config", "dump"]).stdout
    return {
        name for name in ("nvidia", "nvidia-cdi", "nvidia-legacy") if f"runtimes.{name}]" in dump
    }


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_a_link_to_what_the_pod_cannot_write_is_refused_before_anything_is_changed(
    node: Node, source: Path, *, relative: bool
) -> None:
    linked(node, "../../srv/containerd/conf.d" if relative else ELSEWHERE, ELSEWHERE)
    before, pid = picture(node), nodes.main_pid(node, "containerd")
    pod = Pod(node, source, containers.DEFAULT_MOUNTS, {})
    said = pod("run", "--no-daemon", code=4)
    assert (
        f"/host{ELSEWHERE} is on a read-only file system ({LINK}/99-nvidia.toml leads there by a"
        " link: mount that directory writable)" in said
    )
    assert ": nothing was changed" in said
    assert (picture(node), nodes.main_pid(node, "containerd")) == (before, pid)


@pytest.mark.parametrize(
    ("to", "directory", "mounts", "env"),
    [
        (ELSEWHERE, ELSEWHERE, {ELSEWHERE: ELSEWHERE}, {}),
        ("../../srv/containerd/conf.d", ELSEWHERE, {ELSEWHERE: ELSEWHERE}, {}),
        (INSIDE, INSIDE, {}, {}),
        (INSIDE, INSIDE, AT_ANOTHER_PATH, NAMED),
        ("real.d", INSIDE, AT_ANOTHER_PATH, NAMED),
    ],
    ids=[
        "mounted, absolute",
        "mounted, relative",
        "inside",
        "inside, at another path",
        "beside it",
    ],
)
def test_a_link_is_followed_as_the_node_does(
    node: Node,
    source: Path,
    to: str,
    directory: str,
    mounts: Mapping[str, str],
    env: Mapping[str, str],
) -> None:
    linked(node, to, directory)
    before = picture(node)
    mounted = {
        path: place for path, place in {**containers.DEFAULT_MOUNTS, **mounts}.items() if place
    }
    pod = Pod(node, source, mounted, env)
    pod("run", "--no-daemon")
    assert nodes.path(node, f"{directory}/99-nvidia.toml").is_file()
    assert nodes.path(node, LINK).is_symlink()
    assert handlers(node) == {"nvidia", "nvidia-cdi", "nvidia-legacy"}
    pid = nodes.main_pid(node, "containerd")
    assert "nothing to do: the node is in sync" in pod("run", "--no-daemon")
    assert nodes.main_pid(node, "containerd") == pid
    state = json.loads(pod("status", "-o", "json"))
    assert state["ready"] is True, state
    pod("status", "--quiet")
    pod("revert")
    assert picture(node) == before
    assert handlers(node) == set()
