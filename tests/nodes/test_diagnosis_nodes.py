"""The diagnosis of a real node: booted Debian with systemd and containerd, as a pod sees it."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import boot, containers, nodes
from tests.support.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

PROGRAM: Final = str(Path(sys.executable).parent / "nvidia-toolkit")
CONFIG: Final = "/etc/containerd/config.toml"
HOOK: Final = "/usr/share/containers/oci/hooks.d/oci-nvidia-hook.json"
LOOK: Final = """
import json, sys
from runtimes import registry
from runtimes.model import RuntimeName
from toolkit.deadline import Cancellation
from toolkit.diagnose import collect, text
from toolkit.reconcile.context import Context
from toolkit.settings.resolve import resolve

settings = resolve({"runtime": sys.argv[1], "toolkit_source_root": sys.argv[2]}, {})
adapter = registry.ADAPTERS[RuntimeName(sys.argv[1])]
found = collect.collect(Context(settings=settings, adapter=adapter, stop=Cancellation()))
print(json.dumps([found, text.text(found)]))
"""


@pytest.fixture
def installed(node: Node, source: Path) -> Iterator[Node]:
    """Give a node on which everything is installed, and take it back."""
    options = ["--runtime=containerd", f"--toolkit-source-root={source}"]
    done = containers.daemonset(node, [PROGRAM, "run", "--no-daemon", *options])
    assert done.returncode == 0, done.stdout + done.stderr
    yield node
    done = containers.daemonset(node, [PROGRAM, "revert", *options])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with boot.booted("trixie") as booted:
        yield booted


def collected(node: Node, source: Path, *, host_pid: bool = True) -> dict[str, Any]:
    """Return the diagnosis as a pod makes it, and expect that it changed nothing."""
    before = picture(node)
    words = [sys.executable, "-c", LOOK, "containerd", str(source)]
    done = containers.daemonset(node, words, host_pid=host_pid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert picture(node) == before
    found, text = json.loads(done.stdout)
    assert text.startswith("findings\n")
    assert "this is a bug" not in done.stdout
    return dict(found)


def picture(node: Node) -> dict[str, tuple[int, int, int]]:
    """Return what a write would change of every file that we might touch."""
    places = [
        nodes.path(node, place)
        for place in ("/etc", "/usr/local", "/run/nvidia", "/usr/share/containers")
    ]
    found = {str(path): path.lstat() for place in places for path in place.rglob("*")}
    # A directory that a pod mounts is made for it.
    return {
        name: (status.st_mode, status.st_ino, status.st_mtime_ns)
        for name, status in found.items()
        if not stat.S_ISDIR(status.st_mode)
    }


def said(found: dict[str, Any]) -> str:
    return "\n".join(each["problem"] for each in found["findings"])


def test_before_an_install(node: Node, source: Path) -> None:
    found = collected(node, source)
    assert (found["node"]["root"], found["node"]["systemd"][:3]) == ("/host", "257")
    assert "Debian GNU/Linux 13 (trixie)" in found["node"]["os"]
    runtime = found["runtimes"][0]
    (socket,) = runtime["sockets"]
    assert socket["owner"]["pid"] == nodes.main_pid(node, "containerd")
    assert (socket["owner"]["unit"], socket["owner"]["executable"]) == (
        "containerd.service",
        "/usr/bin/containerd",
    )
    assert "1.7.24" in runtime["binary"]["version"]
    assert found["configuration"]["validator"] == "/usr/bin/containerd"
    assert found["configuration"]["running"]["healthy"] is True
    assert found["configuration"]["plan"]["in_sync"] is False
    assert found["dangling"]["handlers"] == []
    assert found["copies"]["files"] == []
    assert "the node is not in sync" in said(found)


def test_after_an_install(installed: Node, source: Path) -> None:
    found = collected(installed, source)
    assert found["configuration"]["plan"]["in_sync"] is True
    assert found["state"]["readiness"]["ready"] is True
    assert found["state"]["record"]["unit"] == "containerd.service"
    assert found["state"]["restarts"]["ago_s"]
    assert "nvidia" in found["configuration"]["effective"]["handlers"]
    assert "nvidia" in found["configuration"]["running"]["handlers"]
    assert all(each["as_written"] for each in found["configuration"]["files"] if each["owned"])
    assert found["dangling"] == {"handlers": [], "hooks": [], "link": "", "unseen": []}
    assert {each["owned"] for each in found["copies"]["files"]} == {True}
    assert [each for each in found["findings"] if "driver" not in each["problem"]] == []


def test_what_leads_nowhere(installed: Node, source: Path) -> None:
    """Somebody removes a program that a handler runs, and another installer left its hook."""
    config = nodes.path(installed, CONFIG)
    kept = config.read_bytes()
    config.write_bytes(kept.replace(b"/toolkit/nvidia-container-runtime.cdi", b"/gone/runtime.cdi"))
    hook = nodes.path(installed, HOOK)
    hook.parent.mkdir(parents=True)
    hook.write_text('{"version": "1.0.0", "hook": {"path": "/usr/bin/gone"}}', encoding="utf-8")
    found = collected(installed, source)
    assert [(each["handler"], each["program"]) for each in found["dangling"]["handlers"]] == [
        ("nvidia-cdi", "/usr/local/nvidia/gone/runtime.cdi")
    ]
    assert [(each["file"], each["program"]) for each in found["dangling"]["hooks"]] == [
        (HOOK, "/usr/bin/gone")
    ]
    assert said(found).startswith(
        "the handler nvidia-cdi of containerd runs /usr/local/nvidia/gone/runtime.cdi"
    )
    assert "was modified after it was written" in said(found)
    config.write_bytes(kept)
    hook.unlink()


def test_without_the_nodes_pids_the_way_out_is_named(node: Node, source: Path) -> None:
    found = collected(node, source, host_pid=False)
    (socket,) = found["runtimes"][0]["sockets"]
    assert socket["owner"] is None
    assert any("hostPID: true" in each["hint"] for each in found["findings"])
