"""Programs, files and snapshotters that the override names and the node does not have are refused first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from tests.support import fake_node
from tests.support.fake_node import Node
from tests.support.fake_runtime import runtime
from toolkit.deadline import Cancellation
from toolkit.errors import StepError
from toolkit.node import processes
from toolkit.reconcile import transaction
from toolkit.runtime import locate, override
from toolkit.runtime.client import cri
from toolkit.runtime.locate import Target

OPTION: Final = "--runtime-config-override: "


def found(node: Node, keys: dict[str, Any]) -> list[str]:
    target: Target = locate.target(node.settings(), containerd, Cancellation())
    target = replace(target, desired=replace(target.desired, override=keys))
    return list(override.problems(target, timeout=1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"runtime_path": "/opt/none/containerd-shim"},
            "runtime_path names /opt/none/containerd-shim, which is not an executable file on the node",
        ),
        ({"Runtime_Path": "shim"}, "runtime_path must be an absolute path, but is 'shim'"),
        (
            {"runtime_type": "kata"},
            "runtime_type 'kata' is not of the form NAME.VERSION, so it names no shim",
        ),
        (
            {"runtime_type": "/opt/none/shim"},
            "runtime_type names /opt/none/shim, which is not an executable file on the node",
        ),
        (
            {"base_runtime_spec": "/opt/none.json"},
            "base_runtime_spec names /opt/none.json, which is not a file on the node",
        ),
        (
            {"options": {"ConfigPath": "/opt/none.toml"}},
            "options.ConfigPath names /opt/none.toml, which is not a file on the node",
        ),
    ],
)
def test_what_is_not_there_is_named(node: Node, keys: dict[str, Any], message: str) -> None:
    assert found(node, keys) == [OPTION + message]


def test_a_shim_is_searched_in_the_path_of_the_daemon(node: Node) -> None:
    keys = {"runtime_type": "io.containerd.kata.v2"}
    with runtime(node) as daemon:
        process = processes.inspect(daemon.pid)
        assert process is not None
        searched = processes.search_path(process) or ""
        (problem,) = found(node, keys)
        assert problem.startswith(
            f"{OPTION}the shim containerd-shim-kata-v2 of runtime_type 'io.containerd.kata.v2' was not found"
            f" in the PATH of containerd ({searched}"
        )
        shim = Path(searched.partition(":")[0], "containerd-shim-kata-v2")
        fake_node.write_program(shim, "")
        assert found(node, keys) == []
        # The path of the shim is what counts where it is given.
        assert found(node, {"runtime_path": str(shim), "runtime_type": "a.b"}) == []


def test_the_running_containerd_names_its_snapshotters(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"overlayfs": "", "zfs": "path must be a zfs filesystem"}
    monkeypatch.setattr(cri, "snapshotters", lambda _, **__: known)
    with runtime(node):
        assert found(node, {"snapshotter": "overlayfs"}) == []
        assert found(node, {"snapshotter": "nydus"}) == [
            OPTION + "the running containerd has no snapshotter 'nydus', only overlayfs"
        ]
        assert found(node, {"snapshotter": "zfs"}) == [
            OPTION
            + "the running containerd did not load the snapshotter 'zfs': path must be a zfs filesystem"
        ]
        known.clear()
        assert found(node, {"snapshotter": "nydus"}) == [], "it does not say"


def test_nothing_is_changed(node: Node) -> None:
    text = json.dumps({"runtime_path": "/opt/none/shim"})
    with runtime(node) as daemon:
        before = fake_node.content(node.root)
        with pytest.raises(StepError) as caught:
            transaction.converge(node.settings(runtime_config_override=text), containerd)
        assert daemon.signals() == []
        assert fake_node.content(node.root) == before
    assert "runtime_path names /opt/none/shim" in caught.value.message
    assert caught.value.message.endswith(": nothing was changed")
    assert caught.value.hint == "correct --runtime-config-override (RUNTIME_CONFIG_OVERRIDE)"
