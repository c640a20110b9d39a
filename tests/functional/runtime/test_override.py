"""Programs, files and snapshotters that the override names and the node lacks are refused first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from runtimes.model import Origin, RuntimeName
from tests.support import fake_node
from tests.support.fake_node import Node
from tests.support.fake_runtime import runtime
from toolkit.deadline import Cancellation
from toolkit.errors import StepError
from toolkit.node import processes
from toolkit.reconcile import transaction
from toolkit.runtime import handler_requirements, locate
from toolkit.runtime.client import cri
from toolkit.runtime.locate import Target

OPTION: Final = "--runtime-config-override: "


def found(node: Node, keys: dict[str, Any]) -> list[str]:
    target: Target = locate.target(node.settings(), containerd, Cancellation())
    target = replace(target, desired=replace(target.desired, override=keys))
    return list(handler_requirements.problems(target, timeout=1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"runtime_path": "/opt/none/containerd-shim"},
            (
                "runtime_path names /opt/none/containerd-shim, which is not an executable file on"
                " the node"
            ),
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
            f"{OPTION}the shim containerd-shim-kata-v2 of runtime_type 'io.containerd.kata.v2' was"
            f" not found in the PATH of containerd ({searched}"
        )
        shim = Path(searched.partition(":")[0], "containerd-shim-kata-v2")
        fake_node.write_program(shim, "")
        assert found(node, keys) == []
        # The path of the shim is what counts where it is given.
        assert found(node, {"runtime_path": str(shim), "runtime_type": "a.b"}) == []


def test_the_running_containerd_names_its_snapshotters(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"overlayfs": "", "zfs": "path must be a zfs filesystem"}
    monkeypatch.setattr(cri, "snapshotters", lambda _, **__: known)
    with runtime(node):
        assert found(node, {"snapshotter": "overlayfs"}) == []
        assert found(node, {"snapshotter": "nydus"}) == [
            OPTION + "the running containerd has no snapshotter 'nydus', only overlayfs"
        ]
        assert found(node, {"snapshotter": "zfs"}) == [
            OPTION + "the running containerd did not load the snapshotter 'zfs': path must be a zfs"
            " filesystem"
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


# --- what the handlers inherit --------------------------------------------------------------------

RUNC: Final = "the handler runc, from which the toolkit's handlers inherit: "
NO_FILE: Final = "base_runtime_spec names /opt/none.json, which is not a file on the node"


def inherited(node: Node, settings: dict[str, Any], **changed: Any) -> list[str]:
    target = locate.target(node.settings(), containerd, Cancellation())
    target = replace(target, desired=replace(target.desired, **changed))
    origin = Origin(source="runc", settings=settings, default="runc")
    return list(handler_requirements.inherited_problems(target, origin, timeout=1))


def test_inherited_keys_that_name_nothing_are_found(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cri, "snapshotters", lambda _, **__: {"overlayfs": ""})
    kind = {"runtime_type": "io.containerd.none.v2"}
    assert inherited(node, kind) == [], "the PATH of a containerd that does not run is not known"
    with runtime(node):
        assert (
            inherited(node, {"runtime_type": "io.containerd.runc.v2", "snapshotter": "overlayfs"})
            == []
        )
        (problem,) = inherited(node, kind)
        assert problem.startswith(f"{RUNC}the shim containerd-shim-none-v2 of runtime_type ")
        settings = {"base_runtime_spec": "/opt/none.json", "snapshotter": "nydus"}
        no_snapshotter = f"{RUNC}the running containerd has no snapshotter 'nydus', only overlayfs"
        assert inherited(node, settings) == [RUNC + NO_FILE, no_snapshotter]
        # What is overridden is not inherited.
        assert inherited(node, settings, override={"Snapshotter": "x"}) == [RUNC + NO_FILE]
        options = {"options": {"ConfigPath": "/opt/none.toml"}}
        assert inherited(node, options, override={"options": {"configpath": "/x"}}) == []
        assert inherited(node, options) == [
            f"{RUNC}options.ConfigPath names /opt/none.toml, which is not a file on the node"
        ]


def test_a_monitor_that_is_not_there_is_found(node: Node) -> None:
    settings = {"runtime_type": "pod", "monitor_path": "/opt/none", "monitor_env": ["A=b"]}
    assert inherited(node, settings, runtime=RuntimeName.CRIO) == [
        f"{RUNC}monitor_path names /opt/none, which is not an executable file on the node"
    ]


def with_broken_runc(node: Node, *, default: str = "runc") -> None:
    text = node.config.read_text(encoding="utf-8")
    kind = 'runtime_type = "io.containerd.runc.v2"\n'
    text = text.replace(kind, f'{kind}      base_runtime_spec = "/opt/none.json"\n')
    section = '[plugins."io.containerd.grpc.v1.cri".containerd'
    text += f'\n    {section}.runtimes.kata]\n      runtime_type = "io.containerd.kata.v2"\n'
    text = text.replace('snapshotter = "overlayfs"', f'default_runtime_name = "{default}"')
    node.config.write_text(text, encoding="utf-8")


def test_what_the_node_s_own_handler_lacks_is_named_and_no_reason_to_refuse(node: Node) -> None:
    with_broken_runc(node)
    with runtime(node):
        told = fake_node.done("run", "--no-daemon", *node.options()).stderr
        assert f"W preflight: {RUNC}{NO_FILE}: no pod starts through either\n" in told
        # It is named when something changes.
        assert (
            fake_node.done("run", "--no-daemon", *node.options()).stderr == fake_node.NOTHING_TO_DO
        )


def test_a_default_that_works_is_not_replaced_by_one_that_inherits_what_is_not_there(
    node: Node,
) -> None:
    with_broken_runc(node, default="kata")
    with runtime(node) as daemon:
        before = fake_node.content(node.root)
        result = fake_node.cli("run", "--no-daemon", *node.options())
        assert result.returncode == 4
        assert f"{RUNC}{NO_FILE}: nothing was changed" in result.stderr
        assert (
            "hint: correct the handler runc, or use --set-as-default=false, which keeps kata as the"
            " default" in result.stderr
        )
        assert daemon.signals() == []
        node.pid_file.unlink()
        assert fake_node.content(node.root) == before
        told = fake_node.done("run", "--no-daemon", *node.options(set_as_default="false")).stderr
        assert f"W preflight: {RUNC}{NO_FILE}: no pod starts through either\n" in told
