"""A runtime that does not see what is installed: real units with mount namespaces of their own.

systemd.exec(5) has many settings that hide a directory from a unit or forbid it to execute files
there. What the runtime's own unit hides, no handler can start; and it is refused before anything is
changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.nodes.test_containerd_nodes import RESTARTS, Tool, picture
from tests.support import boot, containers, gpu_operator, nodes, real
from tests.support.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

INSTALL_DIR: Final = "/usr/local/nvidia"
SETTING: Final = "/etc/systemd/system/containerd.service.d/hide.conf"
UNSEEN: Final = (
    f"does not see --toolkit-install-dir={INSTALL_DIR}: in its mount namespace that path "
)
HIDDEN: Final = {
    f"TemporaryFileSystem={INSTALL_DIR}": f"{UNSEEN}is another directory",
    "TemporaryFileSystem=/usr/local": f"{UNSEEN}does not exist",
    f"InaccessiblePaths={INSTALL_DIR}": f"{UNSEEN}is another directory",
    f"NoExecPaths={INSTALL_DIR}": (
        f"can run no program in {INSTALL_DIR}: its file system is mounted noexec"
    ),
}


@pytest.fixture(scope="module", params=("bookworm", "forky"))
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with boot.booted(request.param) as booted:
        nodes.path(booted, INSTALL_DIR).mkdir(exist_ok=True)
        yield booted


def set_unit(node: Node, setting: str) -> None:
    """Give containerd's unit one more setting, none if it is empty, and start it again."""
    path = nodes.path(node, SETTING)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"[Service]\n{setting}\n", encoding="utf-8")
    nodes.run(node, ["systemctl", "daemon-reload"])
    nodes.run(node, ["systemctl", "reset-failed", "containerd"])
    nodes.run(node, ["systemctl", "restart", "containerd"])
    nodes.wait_for(node, lambda: nodes.answers(node))
    nodes.path(node, RESTARTS).unlink(missing_ok=True)  # the budget is the matter of other tests


@pytest.mark.parametrize("setting", HIDDEN)
def test_a_unit_that_hides_the_toolkit(node: Node, source: Path, setting: str) -> None:
    tool = Tool(node, source)
    set_unit(node, setting)
    real.USED.add(f"containerd of {node.suite} in a mount namespace of its own, on a booted node")
    before, pid = picture(node), nodes.main_pid(node, "containerd")
    said = tool("run", "--no-daemon", code=4)
    assert f" (PID {pid}) {HIDDEN[setting]}: nothing was changed" in said
    assert picture(node) == before
    assert nodes.main_pid(node, "containerd") == pid
    # Without the setting it is installed; with it again, nobody says ready.
    set_unit(node, "")
    tool("run", "--no-daemon")
    assert "ready" in tool("status")
    if not setting.startswith("NoExecPaths"):
        set_unit(node, setting)
        assert HIDDEN[setting] in tool("run", "--no-daemon", code=4)
        assert "not ready: containerd (PID " in (status := tool("status"))
        assert HIDDEN[setting] in status
        set_unit(node, "")
    tool("revert", "--force")
    assert picture(node) == before


def test_an_install_directory_that_the_operators_container_does_not_mount(
    node: Node, source: Path
) -> None:
    """Case 06: the files would lie in the container, and every new pod of the node would fail."""
    set_unit(node, "")
    rendered = gpu_operator.render(
        "containerd", cdi=False, env={"TOOLKIT_INSTALL_DIR": "/opt/nvidia", "ROOT": "/opt/nvidia"}
    )
    assert "/opt/nvidia" not in rendered.mounts
    # The container's mounts make the directories that they lack.
    before = nodes.path(node, "/etc/containerd/config.toml").read_bytes()
    pid = nodes.main_pid(node, "containerd")
    argv = ["nvidia-toolkit", "run", "--no-daemon", f"--toolkit-source-root={source}"]
    done = containers.daemonset(node, argv, env=rendered.env, mounts=rendered.mounts)
    assert done.returncode == 4, done.stderr
    assert (
        "--toolkit-install-dir=/opt/nvidia is not a directory of the node, but of this container"
        in done.stderr
    )
    assert "a hostPath volume" in done.stderr
    assert nodes.path(node, "/etc/containerd/config.toml").read_bytes() == before
    assert not list(nodes.path(node, "/etc/containerd/conf.d").iterdir())
    assert nodes.main_pid(node, "containerd") == pid
