"""A revert also removes our unrecorded keys, and leaves no handler without its program."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes import registry
from runtimes.adapter import Adapter
from runtimes.containerd import ADAPTER as containerd
from runtimes.formats import json_editor, toml_editor
from runtimes.model import RuntimeName, without_empty_tables
from tests.functional.reconcile.test_rollback import (
    OURS,
    Killed,
    converge,
    fails_after,
    killed_in,
    revert,
    tree,
)
from tests.support import fake_node
from tests.support.fake_node import Daemon, Node
from toolkit.deadline import Cancellation
from toolkit.errors import RolledBack, StepError, UsageProblem
from toolkit.node.host import Host
from toolkit.reconcile import adopt, apply, transaction, uninstall
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import make_plan
from toolkit.runtime import locate
from toolkit.runtime.client import cri
from toolkit.settings.layout import InstallDir
from toolkit.state import journal

pytestmark = pytest.mark.usefixtures("no_fsync")

PROGRAM: Final = "nvidia-container-runtime"


def lose(node: Node, what: str) -> None:
    shutil.rmtree(node.install_dir if what == "the install directory" else node.state.parent)


def handlers(node: Node) -> set[str]:
    return set(cri.status(node.socket, timeout=5).handlers or ())


def dangling(node: Node) -> list[str]:
    """Return the programs of a toolkit that the configuration names and that are not there."""
    named = re.findall(r'"(/[^"]*/toolkit/[^"]*)"', node.config.read_text(encoding="utf-8"))
    return [path for path in named if not os.path.exists(path)]


def dialect(node: Node, name: str, **more: str) -> tuple[Adapter, dict[str, str]]:
    """Return a dialect with options by which a runtime of it is set up that is not there."""
    adapter = registry.ADAPTERS[RuntimeName(name)]
    assert adapter is not None
    options = {
        "runtime": name,
        "restart_mode": "none",
        "drop_in_config": "",
        "set_as_default": "true",
    }
    return adapter, options | ({"hooks_dir": f"{node.root}/hooks"} if name == "crio" else {}) | more


# --- the record was lost ------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["the install directory", "the record"])
@pytest.mark.parametrize("release", ["1", "2"])
def test_a_revert_after_the_record_was_lost_leaves_no_default_handler_without_its_program(
    node: Node, cri_runtime: Daemon, lost: str, release: str
) -> None:
    """`rm -rf /usr/local/nvidia` (or a volatile one, and a reboot), then run again, then revert."""
    converge(node)
    lose(node, lost)
    fake_node.make_artifacts(node.source, release=release)
    converge(node)
    assert journal.load(node.install_dir).owned
    assert transaction.converge(node.settings(), containerd).is_noop, "it is recorded once"
    revert(node)
    assert dangling(node) == []
    assert handlers(node) == {"runc"}
    assert toml_editor.tree(node.config.read_bytes(), "") == toml_editor.tree(fake_node.KUBEADM, "")
    assert not node.toolkit.is_symlink()


@pytest.mark.parametrize("lost", ["the install directory", "the record"])
def test_a_revert_needs_no_run_in_between(node: Node, cri_runtime: Daemon, lost: str) -> None:
    converge(node, runtime_class="gpu")
    lose(node, lost)
    revert(node)
    assert dangling(node) == []
    assert handlers(node) == {"runc"}
    assert not node.toolkit.is_symlink()
    assert uninstall.revert(node.settings(), containerd).was_empty


def test_a_former_handler_goes_with_the_next_run(node: Node, cri_runtime: Daemon) -> None:
    converge(node, runtime_class="gpu")
    lose(node, "the record")
    converge(node)
    assert handlers(node) == {"runc", *OURS}
    revert(node)
    assert handlers(node) == {"runc"}


def test_what_is_taken_for_ours_is_told_beforehand(node: Node, cri_runtime: Daemon) -> None:
    converge(node)
    lose(node, "the record")
    found = make_plan(Context(settings=node.settings(), adapter=containerd, stop=Cancellation()))
    assert not found.is_noop
    assert found.config_plan.is_noop
    assert (
        f"{node.config} has handlers of the toolkit that are missing from the state file: they are"
        " adopted" in (found.config_plan.notes)
    )
    assert not node.state.parent.exists()


def test_a_runtime_whose_files_somebody_cleaned_is_told_before_the_programs_go(
    node: Node, cri_runtime: Daemon
) -> None:
    converge(node)
    lose(node, "the record")
    node.config.write_bytes(fake_node.KUBEADM)
    revert(node)
    assert handlers(node) == {"runc"}
    assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]
    assert not node.toolkit.is_symlink()


def test_an_upgrade_that_fails_does_not_take_the_toolkit_with_it(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    lose(node, "the record")
    before, link = tree(node), os.readlink(node.toolkit)
    fake_node.make_artifacts(node.source, release="2")
    with monkeypatch.context() as patch:
        fails_after(patch)
        with pytest.raises(RolledBack):
            converge(node, runtime_class="gpu")
    assert os.readlink(node.toolkit) == link
    assert tree(node)["etc/containerd/config.toml"] == before["etc/containerd/config.toml"]
    converge(node)
    revert(node)
    assert handlers(node) == {"runc"}


@pytest.mark.parametrize(("room", "step"), [(journal, "adopt"), (apply, "changes")])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_while_it_is_recorded_again_loses_nothing(
    node: Node,
    cri_runtime: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    room: Any,
    step: str,
    *,
    after: bool,
) -> None:
    converge(node)
    lose(node, "the record")
    with monkeypatch.context() as patch:
        killed_in(patch, room, step, after=after)
        with pytest.raises(Killed):
            converge(node, runtime_class="gpu")
    converge(node)
    revert(node)
    assert handlers(node) == {"runc"}
    assert toml_editor.tree(node.config.read_bytes(), "") == toml_editor.tree(fake_node.KUBEADM, "")


def test_what_runs_the_toolkit_of_another_installer_is_its_own(
    node: Node, cri_runtime: Daemon
) -> None:
    """It stands in the same place and under the same names, and both come back byte for byte."""
    converge(node)
    theirs = node.config.read_bytes()
    lose(node, "the install directory")
    node.toolkit.mkdir(parents=True)
    (node.toolkit / PROGRAM).write_bytes(b"theirs")
    before = tree(node)
    converge(node)
    assert journal.load(node.install_dir).owned == ()
    revert(node)
    assert tree(node) == before
    assert node.config.read_bytes() == theirs


# --- in the other dialects ----------------------------------------------------------------------


@pytest.mark.parametrize("between", [False, True], ids=["at once", "after a run"])
def test_docker_loses_only_what_runs_the_toolkit(node: Node, *, between: bool) -> None:
    text = b'{"runtimes": {"kata": {"path": "/usr/bin/kata"}}, "log-driver": "json-file"}\n'
    node.config.write_bytes(text)
    adapter, options = dialect(node, "docker")
    transaction.converge(node.settings(**options), adapter)
    lose(node, "the install directory")
    if between:
        transaction.converge(node.settings(**options), adapter)
    uninstall.revert(node.settings(**options), adapter)
    assert json_editor.tree(node.config.read_bytes(), "") == json_editor.tree(text, "")


@pytest.mark.parametrize("between", [False, True], ids=["at once", "after a run"])
@pytest.mark.parametrize("mode", ["config", "hook"])
def test_a_drop_in_or_a_hook_of_crio_goes_whole(node: Node, mode: str, *, between: bool) -> None:
    drop_in = node.root / "etc/crio/crio.conf.d/99-nvidia.toml"
    node.config.write_bytes(b"")
    adapter, options = dialect(node, "crio", drop_in_config=str(drop_in), config_mode=mode)
    transaction.converge(node.settings(**options), adapter)
    made = [path for path in (drop_in, *(node.root / "hooks").glob("*.json")) if path.exists()]
    assert len(made) == 1
    lose(node, "the record")
    if between:
        transaction.converge(node.settings(**options), adapter)
    uninstall.revert(node.settings(**options), adapter)
    assert not made[0].exists()


def test_what_somebody_wrote_into_our_drop_in_stays_a_valid_file(node: Node) -> None:
    drop_in = node.root / "etc/crio/crio.conf.d/99-nvidia.toml"
    node.config.write_bytes(b"")
    adapter, options = dialect(node, "crio", drop_in_config=str(drop_in))
    transaction.converge(node.settings(**options), adapter)
    drop_in.write_bytes(drop_in.read_bytes() + b'\n[crio.image]\npause_image = "theirs"\n')
    lose(node, "the record")
    uninstall.revert(node.settings(**options), adapter)
    left = without_empty_tables(toml_editor.tree(drop_in.read_bytes(), ""))
    assert left == {"crio": {"image": {"pause_image": "theirs"}}}


# --- keys that a record does not have -----------------------------------------------------------


def test_a_handler_that_somebody_else_wrote_keeps_the_toolkit_that_it_runs(
    node: Node, cri_runtime: Daemon
) -> None:
    """With --no-runtime-config the runtime's files are a person's own."""
    converge(node, no_runtime_config="true")
    section = b'\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.mine]\n'
    table = b'runtime_type = "io.containerd.runc.v2"\noptions = { BinaryName = "%b" }\n'
    mine = fake_node.KUBEADM + section + table % f"{node.toolkit}/{PROGRAM}".encode()
    node.config.write_bytes(mine)
    before = tree(node)
    with pytest.raises(StepError) as caught:
        revert(node)
    assert (
        str(caught.value)
        == f"{node.config} has handlers of the toolkit that are missing from the state file:"
        " nothing was changed"
    )
    assert tree(node) == before
    with pytest.raises(
        StepError, match=r"\(mine\) still runs the toolkit, so the toolkit's files are kept"
    ):
        revert(node, force="true")
    assert (node.config.read_bytes(), node.toolkit.exists()) == (mine, True)
    node.config.write_bytes(fake_node.KUBEADM)
    revert(node)
    assert not node.toolkit.exists()


# --- a record elsewhere -------------------------------------------------------------------------


def test_another_install_directory_is_refused_while_the_first_one_has_the_way_back(
    node: Node, cri_runtime: Daemon
) -> None:
    other = str(node.root / "opt/nvidia")
    before = tree(node)
    converge(node)
    installed = tree(node)
    with pytest.raises(UsageProblem) as caught:
        converge(node, toolkit_install_dir=other)
    assert (
        str(caught.value)
        == f"--toolkit-install-dir={other}: this node was set up with {node.install_dir}"
    )
    assert caught.value.exit_code == 2
    assert (
        caught.value.hint
        == f"revert that first: nvidia-toolkit revert --toolkit-install-dir {node.install_dir}"
    )
    assert tree(node) == installed
    assert cri_runtime.signals() == ["SIGHUP"]
    revert(node)
    assert tree(node) == before
    converge(node, toolkit_install_dir=other)
    revert(node, toolkit_install_dir=other)
    assert tree(node) == before


@pytest.mark.parametrize("name", ["docker", "crio"])
def test_the_other_dialects_refuse_it_as_well(node: Node, name: str) -> None:
    node.config.unlink()
    adapter, options = dialect(node, name, **({"config_mode": "hook"} if name == "crio" else {}))
    transaction.converge(node.settings(**options), adapter)
    with pytest.raises(UsageProblem, match=r": this node was set up with /"):
        transaction.converge(
            node.settings(**options, toolkit_install_dir=f"{node.root}/opt"), adapter
        )


def test_the_record_is_looked_for_where_the_node_is_seen(node: Node, tmp_path: Path) -> None:
    """The files name it as the node does, and the way out as we have to call it."""
    root = tmp_path / "host"
    place = replace(locate.target(node.settings(), containerd), host=Host(root=root))
    files = {
        "config": json.dumps({"path": f"/opt/nvidia/toolkit/{PROGRAM}.cdi"}).encode(),
        "absent": None,
    }
    adopt.refuse_another(place, files)
    record = InstallDir(root / "opt/nvidia").record
    record.parent.mkdir(parents=True)
    record.touch()
    with pytest.raises(UsageProblem) as caught:
        adopt.refuse_another(place, files)
    assert caught.value.hint.endswith(f"revert --toolkit-install-dir {root}/opt/nvidia")


def test_keys_that_were_moved_are_found_with_a_record_as_well(
    node: Node, cri_runtime: Daemon
) -> None:
    """`containerd config migrate` writes the file again, with another version and other places."""
    settings = node.settings()
    transaction.converge(settings, containerd)
    moved = node.config.read_bytes().replace(b"version = 2", b"version = 3")
    moved = moved.replace(b"io.containerd.grpc.v1.cri", b"io.containerd.cri.v1.runtime")
    node.config.write_bytes(moved)
    uninstall.revert(settings, containerd)
    assert b"nvidia" not in node.config.read_bytes()
    assert b"SystemdCgroup" in node.config.read_bytes()
    assert not node.toolkit.exists()


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_forced_revert_leaves_no_handler_without_its_program(
    node: Node, cri_runtime: Daemon, *, is_ours: bool
) -> None:
    settings = node.settings(force="true")
    transaction.converge(node.settings(), containerd)
    text = node.config.read_text(encoding="utf-8")
    if is_ours:  # One of our handlers, which somebody else changed.
        node.config.write_text(
            text.replace("nvidia-container-runtime.cdi", "nvidia-container-runtime")
        )
        uninstall.revert(settings, containerd)
        assert not node.toolkit.exists()
        assert "nvidia-container-runtime" not in node.config.read_text(encoding="utf-8")
        return
    other = node.config.with_name("other.toml")
    section = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.gpu.options'
    table = f'[{section}]\nBinaryName = "{node.toolkit}/nvidia-container-runtime"\n'
    other.write_text(fake_node.KUBEADM.decode() + table, encoding="utf-8")
    node.config.write_text(text.replace("version = 2", f'version = 2\nimports = ["{other}"]'))
    with pytest.raises(StepError) as caught:
        uninstall.revert(settings, containerd)
    assert (
        caught.value.message
        == f"{other} (gpu) still runs the toolkit, so the toolkit's files are kept"
    )
    assert node.toolkit.exists()
