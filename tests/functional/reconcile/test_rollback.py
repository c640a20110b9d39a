"""A change that fails is rolled back whole, and keeps others' edits; or all it needs stays."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from runtimes import registry
from runtimes.containerd import ADAPTER as containerd
from runtimes.docker import ADAPTER as docker
from runtimes.formats import json_editor, toml_editor
from runtimes.model import RuntimeName
from tests.faults import stories
from tests.support import fake_node
from tests.support.fake_node import Daemon, Node
from tests.support.fake_runtime import runtime, say
from toolkit.artifacts import versions
from toolkit.cdi import driver, nvidia_ctk, spec
from toolkit.deadline import Cancellation, Deadline
from toolkit.errors import (
    Conflict,
    NodeConfigError,
    NotRolledBack,
    ReloadError,
    RolledBack,
    StepError,
    ToolkitError,
    UsageProblem,
)
from toolkit.node.host import Host
from toolkit.reconcile import apply, describe, rollback, transaction, uninstall
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import make_plan
from toolkit.runtime import expectation, in_use, restart
from toolkit.runtime.client import cri
from toolkit.settings.layout import VERSIONS
from toolkit.settings.options import RestartMode
from toolkit.state import journal
from toolkit.state.record import Operation
from toolkit.state.restart_budget import Budget

pytestmark = pytest.mark.usefixtures("no_fsync")

OURS: Final = ("nvidia", "nvidia-cdi", "nvidia-legacy")
THEIRS: Final = b"\n# theirs\n"
TAKEN_BACK: Final = "; the change was rolled back and the node is in its previous state"


def tree(node: Node) -> dict[str, tuple[int, tuple[int, int], str]]:
    """Return every file, link and directory: all but the record, whose numbers go on, and /run."""
    found = fake_node.snapshot(node.root, node.state)
    return {
        name: (seen.mode, seen.owner, seen.content)
        for name, seen in found.items()
        if name.partition("/")[0] != "run"
    }


def converge(node: Node, **options: str) -> None:
    manner = {"restart_budget": "0", **options}
    transaction.converge(node.settings(**manner), containerd)


def revert(node: Node, **options: str) -> None:
    uninstall.revert(node.settings(**options), containerd)


def fails_after(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object] = lambda: None) -> None:
    """Let the runtime's first word be bad news; before it is told, something else happens."""
    real: Callable[..., Any] = expectation.confirmed
    words: list[object] = []

    def confirmed(*given: Any, **named: Any) -> Any:
        words.append(given)
        if len(words) == 1:
            then()
            raise ReloadError("it broke")
        return real(*given, **named)

    monkeypatch.setattr(expectation, "confirmed", confirmed)


# --- a first install ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [fake_node.KUBEADM, b"", None], ids=["kubeadm", "empty", "absent"]
)
def test_after_a_first_install_the_tree_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: bytes | None
) -> None:
    node = fake_node.make_node(tmp_path / "node", config)
    if config is not None:
        node.config.chmod(0o604)
        if os.geteuid() == 0:
            os.chown(node.config, 0, 34)
    say(node)
    before = tree(node)
    fails_after(monkeypatch, lambda: _is_installed(node))
    with runtime(node) as cri_runtime:
        with pytest.raises(RolledBack) as caught:
            converge(node)
        assert str(caught.value) == f"it broke{TAKEN_BACK}"
        assert caught.value.exit_code == 6
        assert tree(node) == before
        assert not (node.root / "usr").exists(), "the directories that we made go as well"
        assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]


def _is_installed(node: Node) -> None:
    assert (node.toolkit / "nvidia-container-runtime").exists()
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()
    assert journal.load(node.install_dir).open is not None


def test_directories_that_were_there_before_stay(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.install_dir.mkdir(parents=True, mode=0o750)
    node.drop_in.parent.mkdir()
    before = tree(node)
    fails_after(monkeypatch)
    with pytest.raises(RolledBack):
        converge(node)
    assert tree(node) == before


def test_what_somebody_put_into_a_directory_of_ours_meanwhile_stays(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_after(monkeypatch, lambda: (node.install_dir / "mine").write_bytes(b"theirs"))
    with pytest.raises(RolledBack):
        converge(node)
    assert [path.name for path in node.install_dir.iterdir()] == ["mine"]
    assert node.config.read_bytes() == fake_node.KUBEADM


def test_the_directory_of_another_installer_stands_where_it_stood(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.toolkit.mkdir(parents=True)
    (node.toolkit / "nvidia-ctk").write_bytes(b"theirs")
    before, inode = tree(node), node.toolkit.stat().st_ino
    fails_after(monkeypatch)
    with pytest.raises(RolledBack):
        converge(node)
    assert tree(node) == before
    assert node.toolkit.stat().st_ino == inode


def breaks(
    monkeypatch: pytest.MonkeyPatch, module: Any, step: str, *, after: Callable[[], object]
) -> None:
    """Let a step fail the first time: it is done, something else happens, an error is raised."""
    real: Callable[..., Any] = getattr(module, step)
    calls: list[object] = []

    def broken(*words: Any, **named: Any) -> Any:
        calls.append(words)
        done = real(*words, **named)
        if len(calls) == 1:
            after()
            raise StepError("no room", hint="make some")
        return done

    monkeypatch.setattr(module, step, broken)


@pytest.mark.parametrize(
    ("module", "step"), [(versions, "install"), (apply, "changes")], ids=["files", "config"]
)
def test_a_runtime_that_was_not_told_is_not_told_of_the_way_back_either(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, module: Any, step: str
) -> None:
    before, pid = tree(node), cri_runtime.pid
    breaks(monkeypatch, module, step, after=lambda: None)
    with pytest.raises(RolledBack) as caught:
        converge(node)
    assert (str(caught.value), caught.value.hint) == (f"no room{TAKEN_BACK}", "make some")
    assert tree(node) == before
    assert (cri_runtime.signals(), cri_runtime.pid) == ([], pid)


def test_a_runtime_that_somebody_restarted_meanwhile_is_told_of_the_way_back(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)
    breaks(monkeypatch, apply, "changes", after=lambda: start_anew(cri_runtime))
    with pytest.raises(RolledBack):
        converge(node)
    assert tree(node) == before
    assert cri_runtime.signals() == ["SIGHUP"], "it has read what was taken back"
    assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}


def test_a_runtime_that_somebody_restarted_while_the_files_went_back_is_told_of_them(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)
    breaks(monkeypatch, apply, "changes", after=lambda: None)
    real: Callable[..., Any] = rollback.restore_files

    def files_back(*words: Any) -> Any:
        start_anew(cri_runtime)
        return real(*words)

    monkeypatch.setattr(rollback, "restore_files", files_back)
    with pytest.raises(RolledBack):
        converge(node)
    assert tree(node) == before
    assert cri_runtime.signals() == ["SIGHUP"], "it has read what was taken back"
    assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}


def start_anew(daemon: Daemon) -> None:
    first = daemon.pid
    os.kill(first, signal.SIGKILL)
    fake_node.wait_for(
        lambda: daemon.pid != first and (daemon.pid, "listens") in daemon.lines(),
        "it does not come back",
    )


# It has read what was taken back, and only its own word could say that it has not.
def test_with_mode_none_the_files_go_back_and_the_rest_waits_until_somebody_restarts_it(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)
    breaks(monkeypatch, apply, "changes", after=lambda: start_anew(cri_runtime))
    for run in range(2):
        with pytest.raises(NotRolledBack) as caught:
            converge(
                node,
                restart_mode="none",
                toolkit_source_root=str(node.source if run == 0 else node.root),
            )
        assert "no room; rollback failed: the runtime may have loaded the change" in str(
            caught.value
        )
        assert node.config.read_bytes() == fake_node.KUBEADM
        opened = journal.load(node.install_dir).open
        assert opened is not None
        assert opened.failure == "no room"
    start_anew(cri_runtime)
    monkeypatch.undo()
    transaction.recover(
        Context(
            settings=node.settings(restart_mode="none"), adapter=containerd, stop=Cancellation()
        )
    )
    assert tree(node) == before
    assert cri_runtime.signals() == []


def test_with_mode_none_nothing_is_forgotten_while_the_runtime_is_dead(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck(node, monkeypatch, cri_runtime)
    kept = tree(node)
    with pytest.raises(NotRolledBack, match=r"^it broke; rollback failed: "):
        converge(node, restart_mode="none")
    assert tree(node) == kept
    with runtime(node) as daemon:
        signals = daemon.signals()
        converge(node, restart_mode="none")
        assert daemon.signals() == signals


def test_a_bug_of_ours_is_taken_back_as_well(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(versions, "install", fail)
    with pytest.raises(RolledBack) as caught:
        converge(node)
    assert str(caught.value) == f"ZeroDivisionError('oh'){TAKEN_BACK}"
    assert caught.value.hint == "please report this"
    assert tree(node) == before


def test_a_runtime_that_was_not_well_before_need_not_be_so_after_the_way_back(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.reconcile.preflight.SOON", 0.1)
    say(node, "", {"ready": False})
    before = tree(node)
    with pytest.raises(RolledBack):
        converge(node, ignore_unhealthy="true", reload_timeout="0.4")
    assert tree(node) == before


def test_every_restart_counts_the_one_on_the_way_back_too(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_after(monkeypatch)
    with pytest.raises(RolledBack):
        converge(node)
    notes = json.loads(node.pid_file.with_name("restarts.json").read_bytes())
    assert len(notes["restarts"]) == 2


def test_a_restart_on_the_way_back_that_cannot_be_noted_happens_all_the_same(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spend(_: Budget) -> None:
        raise StepError("no room")

    fails_after(monkeypatch, lambda: monkeypatch.setattr(Budget, "spend", spend))
    before = tree(node)
    with pytest.raises(RolledBack, match=r"^it broke"):
        converge(node)
    assert tree(node) == before
    assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]


def test_a_restart_that_cannot_be_counted_does_not_happen(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, pid = tree(node), cri_runtime.pid
    monkeypatch.setattr(Budget, "spend", full)
    with pytest.raises(RolledBack) as caught:
        converge(node, restart_budget="3")
    assert str(caught.value) == f"no room{TAKEN_BACK}"
    assert tree(node) == before
    assert (cri_runtime.signals(), cri_runtime.pid) == ([], pid)


@pytest.mark.parametrize("budget", ["0", "3"])
def test_a_revert_that_cannot_be_counted_happens_all_the_same(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    before = tree(node)
    converge(node)
    monkeypatch.setattr(Budget, "spend", full)
    revert(node, restart_budget=budget)
    assert tree(node) == before
    assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]


def killed_on_the_way_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fails_after(patch)
        killed_in(patch, rollback, "_reload_runtime", after=False)
        with pytest.raises(Killed):
            converge(node)


@pytest.mark.parametrize("why", ["the budget is used up", "it cannot be counted"])
def test_a_later_run_on_the_way_back_restarts_no_more_than_the_budget_allows(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    killed_on_the_way_back(node, monkeypatch)
    kept = tree(node)
    said = "the runtime was restarted 1 times within 600 s, and --restart-budget is 1"
    with monkeypatch.context() as patch:
        if why == "it cannot be counted":
            patch.setattr(Budget, "spend", full)
            said = "no room"
        for _ in range(2):
            with pytest.raises(NotRolledBack, match=rf"^it broke; rollback failed: {said}"):
                converge(node, restart_budget="1" if said != "no room" else "9")
    assert tree(node) == kept
    assert cri_runtime.signals() == ["SIGHUP"]
    # Somebody restarts it: then the old files are what it has, and there is nothing to restart for.
    start_anew(cri_runtime)
    transaction.recover(
        Context(settings=node.settings(restart_budget="1"), adapter=containerd, stop=Cancellation())
    )
    assert not node.install_dir.exists()


def test_without_a_limit_a_later_run_on_the_way_back_restarts_as_often_as_it_takes(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_on_the_way_back(node, monkeypatch)
    monkeypatch.setattr(Budget, "spend", full)
    transaction.recover(
        Context(settings=node.settings(restart_budget="0"), adapter=containerd, stop=Cancellation())
    )
    assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]


# --- a runtime that died ------------------------------------------------------------------------


@pytest.mark.parametrize("with_new_files", [False, True], ids=["nothing else to do", "new files"])
def test_repair_starts_a_dead_runtime_again_though_no_file_of_it_is_to_change(
    node: Node, monkeypatch: pytest.MonkeyPatch, *, with_new_files: bool
) -> None:
    with runtime(node):
        converge(node)
    if with_new_files:
        fake_node.make_artifacts(node.source, release="2")
    unit = restart.RestartMethod(mode=RestartMode.SYSTEMD, unit="containerd.service", replaces=True)
    monkeypatch.setattr(restart, "start_stopped", lambda *_, **__: unit)
    started: list[Daemon] = []
    with ExitStack() as stack:
        # Without --ignore-unhealthy it is somebody else's.
        with pytest.raises(StepError):
            converge(node)
        assert started == []
        monkeypatch.setattr(
            restart, "restart_unit", lambda *_: started.append(stack.enter_context(runtime(node)))
        )
        context = Context(
            settings=node.settings(ignore_unhealthy="true"), adapter=containerd, stop=Cancellation()
        )
        assert (
            describe.reload_reason(make_plan(context))
            == "the runtime is stopped and has to be started (--ignore-unhealthy)"
        )
        converge(node, ignore_unhealthy="true")
        assert len(started) == 1
        assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc", *OURS}
        converge(node, ignore_unhealthy="true")
    assert len(started) == 1
    assert len(json.loads(node.pid_file.with_name("restarts.json").read_bytes())["restarts"]) == 2


def test_a_runtime_that_a_killed_run_ended_is_started_again_beyond_the_budget(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd may have refused the start (StartLimitBurst): it is down, but not on purpose."""
    unit = restart.RestartMethod(mode=RestartMode.SYSTEMD, unit="containerd.service", replaces=True)
    options = {"restart_mode": "auto", "restart_budget": "1"}
    asked: list[bool] = []

    def start_stopped(*_: object, even_if_stopped: bool) -> restart.RestartMethod:
        asked.append(even_if_stopped)
        return unit

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(restart, "start_stopped", start_stopped)
    with runtime(node), monkeypatch.context() as patched:
        patched.setattr(restart, "perform", killed)
        with pytest.raises(Killed):
            converge(node, **options)
    record = journal.load(node.install_dir)
    assert record.open is not None
    with ExitStack() as stack:
        monkeypatch.setattr(restart, "restart_unit", lambda *_: stack.enter_context(runtime(node)))
        context = Context(
            settings=node.settings(**options), adapter=containerd, stop=Cancellation()
        )
        said = describe.reload_reason(make_plan(context))
        assert (
            said
            == "the runtime is stopped and has to be started (a run was killed while restarting it)"
        )
        converge(node, **options)
        assert asked == [True, True]
        assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc", *OURS}
        assert journal.load(node.install_dir).open is None


def test_a_start_that_fails_is_tried_again_by_the_next_run(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose it is that the runtime is down is not forgotten with the try."""

    def start_stopped(*_: object, even_if_stopped: bool) -> restart.RestartMethod | None:
        unit = restart.RestartMethod(
            mode=RestartMode.SYSTEMD, unit="containerd.service", replaces=True
        )
        return unit if even_if_stopped else None

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(restart, "start_stopped", start_stopped)
    with runtime(node), monkeypatch.context() as patched:
        patched.setattr(restart, "perform", killed)
        with pytest.raises(Killed):
            converge(node, restart_mode="auto")
    monkeypatch.setattr(restart, "restart_unit", full)
    for _ in range(3):
        with pytest.raises(ToolkitError, match="no room"):
            converge(node, restart_mode="auto")
    with ExitStack() as stack:
        monkeypatch.setattr(restart, "restart_unit", lambda *_: stack.enter_context(runtime(node)))
        converge(node, restart_mode="auto")
        assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc", *OURS}


def test_repair_that_cannot_start_a_dead_runtime_changes_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runtime(node):
        converge(node)
    before = tree(node)
    unit = restart.RestartMethod(mode=RestartMode.SYSTEMD, unit="containerd.service", replaces=True)
    monkeypatch.setattr(restart, "start_stopped", lambda *_, **__: unit)
    monkeypatch.setattr(restart, "restart_unit", full)
    with pytest.raises(StepError, match=r"^no room; no file was changed$"):
        converge(node, ignore_unhealthy="true")
    assert tree(node) == before


# --- no file is changed -------------------------------------------------------------------------


def lacking(node: Node, **options: str) -> str:
    """Run where a healthy runtime does not name the handlers of its files; return the message."""
    said = tree(node)
    with pytest.raises(StepError) as caught:
        converge(node, **options)
    assert (caught.value.exit_code, tree(node)) == (4, said)
    assert journal.load(node.install_dir).open is None
    return str(caught.value)


def test_a_restart_that_does_not_help_is_not_called_taken_back_and_not_tried_again(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectation, "SETTLING", 0.3)
    converge(node)
    say(node, "", {"handlers": ["runc", "nvidia-cdi", "nvidia-legacy"]})
    lacks = "the runtime does not know the handler nvidia"
    why, already = (
        f"the runtime did not apply the change: {lacks}",
        f"the runtime is not in the expected state: {lacks}",
    )
    assert lacking(node) == f"{why}; no file was changed"
    for _ in range(2):
        assert lacking(node) == f"{already}; reloading the same files did not help"
    assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]
    # Another process may take them up, and so may this one take other files up.
    start_anew(cri_runtime)
    assert lacking(node) == f"{why}; no file was changed"
    assert lacking(node) == f"{already}; reloading the same files did not help"
    append(node.config)
    assert lacking(node) == f"{why}; no file was changed"
    assert len(cri_runtime.signals()) == 4
    say(node)
    converge(node)
    assert len(cri_runtime.signals()) == 4


def test_a_restart_that_a_signal_cut_short_may_be_tried_again(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectation, "SETTLING", 0.3)
    converge(node)
    say(node, "", {"handlers": ["runc"]})
    stop = Cancellation()

    def perform(*_: Any) -> float:
        stop._note(signal.SIGTERM, None)
        raise ReloadError("it takes long")

    with monkeypatch.context() as patch:
        patch.setattr(restart, "perform", perform)
        with pytest.raises(
            StepError, match=r"^interrupted by SIGTERM: it takes long; no file was changed$"
        ):
            transaction.converge(node.settings(), containerd, stop)
    assert lacking(node).endswith("; no file was changed")
    assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]


# --- an upgrade ---------------------------------------------------------------------------------


def test_after_an_upgrade_the_old_version_stands_and_there_is_no_trace_of_the_new(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    before, record, link = tree(node), journal.load(node.install_dir), os.readlink(node.toolkit)
    fake_node.make_artifacts(node.source, release="2")
    before |= {name: seen for name, seen in tree(node).items() if name.startswith("artifacts")}
    fails_after(monkeypatch, lambda: _is_upgraded(node, link))
    with pytest.raises(RolledBack):
        converge(node, runtime_class="gpu")
    assert tree(node) == before
    assert os.readlink(node.toolkit) == link
    assert [path.name for path in (node.install_dir / VERSIONS).iterdir()] == [
        link.rpartition("/")[2]
    ]
    now = journal.load(node.install_dir)
    assert replace(now, sequence=record.sequence) == record
    assert now.sequence > record.sequence
    monkeypatch.undo()
    converge(node, runtime_class="gpu")
    assert os.readlink(node.toolkit) != link
    revert(node)
    assert not node.install_dir.exists()
    assert node.config.read_bytes() == fake_node.KUBEADM


def _is_upgraded(node: Node, link: str) -> None:
    assert os.readlink(node.toolkit) != link
    assert b"runtimes.gpu]" in node.config.read_bytes()


def test_a_version_from_before_that_is_used_no_more_stays_where_the_new_one_fails(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    for release in ("2", "3"):
        fake_node.make_artifacts(node.source, release=release)
        if release == "3":
            fails_after(monkeypatch)
            with pytest.raises(RolledBack):
                converge(node, runtime_class="gpu")
        else:
            converge(node)
    assert (node.toolkit / "libnvidia-container.so.1.2").exists()
    assert len(list((node.install_dir / VERSIONS).iterdir())) == 2


@pytest.mark.parametrize("first", [True, False], ids=["first install", "upgrade"])
def test_a_version_that_does_not_run_on_this_node_is_taken_back_before_the_runtime_hears_of_it(
    node: Node, cri_runtime: Daemon, *, first: bool
) -> None:
    if not first:
        converge(node)
    signals = cri_runtime.signals()
    fake_node.make_artifacts(node.source, release="2")
    script = "#!/bin/sh\necho 'no such C library' >&2\nexit 127\n"
    fake_node.write_program(node.source / "usr/bin/nvidia-ctk", script)
    before = tree(node)
    with pytest.raises(RolledBack) as caught:
        converge(node)
    why = (
        "the new `nvidia-ctk.real --version` does not run on this node (exit 127): no such C"
        " library"
    )
    assert str(caught.value) == why + TAKEN_BACK
    assert caught.value.hint == "is the toolkit for this node's architecture and C library?"
    assert tree(node) == before
    assert cri_runtime.signals() == signals


# --- a revert -----------------------------------------------------------------------------------


def test_after_a_revert_that_failed_everything_of_ours_stands(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    before = tree(node)
    fails_after(monkeypatch, lambda: _is_reverted(node))
    with pytest.raises(RolledBack):
        revert(node)
    assert tree(node) == before
    assert journal.load(node.install_dir).open is None
    assert transaction.converge(node.settings(), containerd).is_noop
    revert(node)
    assert node.config.read_bytes() == fake_node.KUBEADM


WITHOUT_US: Final = r"\A(?!(?s:.)*nvidia-cdi)"


@pytest.mark.parametrize(
    ("module", "step", "after"),
    [(apply, "changes", True), (expectation, "confirmed", False), (rollback, "undo", False)],
    ids=["after the write", "after the reload", "before the way back"],
)
def test_a_revert_goes_on_after_a_kill_as_if_there_had_been_none(
    node: Node,
    cri_runtime: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    step: str,
    *,
    after: bool,
) -> None:
    original = tree(node)
    converge(node)
    before = tree(node)
    say(node, WITHOUT_US, {"handlers": ["nvidia"]})
    killed_in(monkeypatch, module, step, after=after)
    with pytest.raises(Killed):
        revert(node, reload_timeout="1")
    monkeypatch.undo()
    with pytest.raises(RolledBack, match="handler runc is missing; it existed before"):
        revert(node, reload_timeout="1")
    assert tree(node) == before
    say(node)
    revert(node)
    assert tree(node) == original


def test_an_install_goes_on_after_a_kill_as_if_there_had_been_none(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)
    say(node, "nvidia-cdi", {"handlers": list(OURS)})
    killed_in(monkeypatch, expectation, "confirmed", after=False)
    with pytest.raises(Killed):
        converge(node)
    monkeypatch.undo()
    fake_node.make_artifacts(node.source, release="2")
    with pytest.raises(RolledBack, match="handler runc is missing; it existed before"):
        converge(node, reload_timeout="1")
    shutil.rmtree(node.source)
    fake_node.make_artifacts(node.source)
    assert tree(node) == before


def test_a_handler_of_another_installer_that_we_made_the_default_is_it_no_more(
    node: Node, cri_runtime: Daemon
) -> None:
    theirs = fake_node.KUBEADM + stories.THEIRS.format(toolkit=node.toolkit).encode()
    node.config.write_bytes(theirs)
    node.toolkit.mkdir(parents=True)  # without it, its keys would count as ours of a lost record
    fake_node.write_program(node.toolkit / "nvidia-container-runtime", "#!/bin/sh\necho theirs\n")
    before = tree(node)
    start_anew(cri_runtime)
    converge(node)
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()
    revert(node)
    assert tree(node) == before


def _is_reverted(node: Node) -> None:
    assert node.config.read_bytes() == fake_node.KUBEADM
    opened = journal.load(node.install_dir).open
    assert opened is not None
    assert opened.operation is Operation.REVERT


def test_a_file_that_a_revert_removed_comes_back_with_the_mode_and_the_owner_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = fake_node.make_node(tmp_path / "node", None)
    say(node)
    with runtime(node):
        converge(node)
        node.config.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(node.config, 0, 34)
        before = fake_node.trace(node.config)
        fails_after(monkeypatch, lambda: _is_gone(node.config))
        with pytest.raises(RolledBack):
            revert(node)
        after = fake_node.trace(node.config)
        assert (after.mode, after.owner, after.content) == (
            before.mode,
            before.owner,
            before.content,
        )


def _is_gone(path: Path) -> None:
    assert not path.exists()


# --- somebody edits meanwhile -------------------------------------------------------------------


def edit(path: Path, old: bytes, new: bytes) -> None:
    """Edit a file as a person does: it is not the one that we wrote any more."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + THEIRS)


def test_an_edit_between_the_write_and_the_undo_survives(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_after(monkeypatch, lambda: append(node.config))
    with pytest.raises(RolledBack):
        converge(node)
    assert node.config.read_bytes() == fake_node.KUBEADM + THEIRS
    assert not node.install_dir.exists()


def test_an_edit_during_an_upgrade_survives_it_and_the_revert_after_it(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    installed = node.config.read_bytes()
    fails_after(monkeypatch, lambda: append(node.config))
    with pytest.raises(RolledBack):
        converge(node, runtime_class="gpu")
    data = node.config.read_bytes()
    assert data.endswith(THEIRS)
    assert tomllib.loads(data.decode()) == tomllib.loads(installed.decode())
    assert transaction.converge(node.settings(), containerd).is_noop
    revert(node)
    assert node.config.read_bytes() == fake_node.KUBEADM + THEIRS


def test_an_edit_of_what_we_wrote_stays_and_is_named(
    node: Node,
    cri_runtime: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours, theirs = b'default_runtime_name = "nvidia"', b'default_runtime_name = "runc"'
    fails_after(monkeypatch, lambda: edit(node.config, ours, theirs))
    with caplog.at_level(logging.WARNING), pytest.raises(RolledBack):
        converge(node)
    assert theirs in node.config.read_bytes()
    assert b"nvidia" not in node.config.read_bytes()
    (said,) = [
        text
        for text in caplog.messages
        if text.startswith("kept, because it was modified meanwhile")
    ]
    assert str(node.config) in said
    assert "default_runtime_name" in said


# Then nothing has to be restored and the process is new; but it read the files in between.
@pytest.mark.parametrize("restored", [b"version = 2\n", None], ids=["put back by hand", "removed"])
def test_a_file_that_somebody_gave_back_or_removed_meanwhile_stays_so_and_the_runtime_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: bytes | None
) -> None:
    node = fake_node.make_node(tmp_path / "node", b"version = 2\n")
    say(node)
    monkeypatch.setattr(expectation, "SETTLING", 0.3)

    def give_back() -> None:
        node.config.unlink() if restored is None else node.config.write_bytes(restored)

    fails_after(monkeypatch, give_back)
    with runtime(node) as cri_runtime:
        with pytest.raises(RolledBack):
            converge(node)
        assert (node.config.read_bytes() if restored else node.config.exists()) == (
            restored or False
        )
        assert not node.install_dir.exists()
        assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]


# --- the way back fails -------------------------------------------------------------------------


def stuck(
    node: Node, monkeypatch: pytest.MonkeyPatch, cri_runtime: Daemon, **options: str
) -> NotRolledBack:
    """Run into a change that fails, after which nobody starts the runtime again."""
    with monkeypatch.context() as patch:
        patch.setattr(rollback, "deadline_of", lambda _: Deadline(0.3))
        fails_after(patch, lambda: setattr(cri_runtime, "revives", False))
        with pytest.raises(NotRolledBack) as caught:
            converge(node, **options)
    assert caught.value.exit_code == 7
    return caught.value


def test_where_the_way_back_fails_everything_is_kept_and_named(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = stuck(node, monkeypatch, cri_runtime)
    (original,) = (node.state.parent / "originals").iterdir()
    assert original.read_bytes() == fake_node.KUBEADM
    said = str(error)
    assert said.startswith(
        "it broke; rollback failed: the runtime did not restart or reload in time: "
    )
    assert said.endswith(
        f"; everything needed is kept in {node.state.parent} ({node.config} was saved as"
        f" {original})"
    )
    assert "run the same command again to continue the rollback" in error.hint
    # The files are the old ones already, and the toolkit is still there for whatever runs from it.
    assert node.config.read_bytes() == fake_node.KUBEADM
    assert (node.toolkit / "nvidia-container-runtime").exists()
    opened = journal.load(node.install_dir).open
    assert opened is not None
    assert (opened.failure, opened.notified) == ("it broke", True)


def test_a_file_that_was_not_there_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = fake_node.make_node(tmp_path / "node", None)
    say(node)
    with runtime(node) as cri_runtime:
        error = stuck(node, monkeypatch, cri_runtime)
    assert f"({node.config} did not exist)" in str(error)
    assert not node.config.exists()


def test_as_long_as_the_runtime_is_away_every_run_says_the_same_and_keeps_all(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck(node, monkeypatch, cri_runtime)
    before = tree(node)
    for _ in range(2):
        with pytest.raises(NotRolledBack) as caught:
            converge(node, reload_timeout="0.3")
        assert str(caught.value).startswith("it broke; rollback failed: ")
        assert tree(node) == before


# The files are the old ones already, but whether the runtime can start with them is unknown.
def test_a_revert_waits_for_the_runtime_to_run_again_and_keeps_everything_until_then(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)
    stuck(node, monkeypatch, cri_runtime)
    kept = tree(node)
    with pytest.raises(NotRolledBack, match=r"^it broke; rollback failed: "):
        revert(node, reload_timeout="0.3")
    assert tree(node) == kept
    with runtime(node):
        revert(node)
        assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}
    assert tree(node) == before


def test_a_revert_does_not_wait_for_a_runtime_that_is_given_up(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)
    stuck(node, monkeypatch, cri_runtime)
    revert(node, force="true")
    assert tree(node) == before


def test_a_runtime_that_nobody_has_told_of_what_was_put_back_by_hand_is_told_by_the_revert(
    node: Node, cri_runtime: Daemon
) -> None:
    before = tree(node)
    converge(node, set_as_default="true")
    node.config.write_bytes(fake_node.KUBEADM)
    with pytest.raises(StepError) as caught:
        revert(node, restart_mode="none")
    assert (
        str(caught.value)
        == f"PID {cri_runtime.pid} was not restarted and still has the toolkit's handlers,"
        " so their files are kept"
    )
    assert (node.toolkit / "nvidia-container-runtime").exists()
    revert(node)
    assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]
    assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}
    assert tree(node) == before


def test_a_runtime_that_does_not_say_what_it_has_keeps_the_files(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uninstall, "SOON", 0.2)
    monkeypatch.setattr(in_use, "using", lambda *_, **__: ())
    converge(node)
    node.config.write_bytes(fake_node.KUBEADM)
    say(node, "", {"cri_error": "no space left"})
    with pytest.raises(StepError) as caught:
        revert(node)
    assert (
        str(caught.value)
        == "its CRI plugin failed: no space left: cannot check whether the runtime still has the"
        " toolkit's handlers, so their files are kept"
    )
    assert (node.toolkit / "nvidia-container-runtime").exists()
    assert cri_runtime.signals() == ["SIGHUP"]


# As from a pod into which the directory is not mounted: to it every file of ours is gone.
def test_a_directory_that_a_revert_does_not_see_keeps_everything(
    node: Node, cri_runtime: Daemon
) -> None:
    before = tree(node)
    converge(node)
    directory = node.config.parent
    elsewhere = directory.rename(directory.with_name("elsewhere"))
    installed = tree(node)
    with pytest.raises(StepError) as caught:
        revert(node)
    assert (
        str(caught.value)
        == f"{directory}, the directory of {node.config}, was not found: nothing was changed"
    )
    assert tree(node) == installed
    elsewhere.rename(directory)
    assert cri_runtime.signals() == ["SIGHUP"]
    revert(node)
    assert tree(node) == before


def test_a_directory_of_ours_that_somebody_removed_keeps_no_revert(tmp_path: Path) -> None:
    node = fake_node.make_node(tmp_path / "node", None)
    shutil.rmtree(node.config.parent)
    say(node)
    before = tree(node)
    with runtime(node):
        converge(node)
        shutil.rmtree(node.config.parent)
        revert(node)
    assert tree(node) == before


def test_a_revert_of_an_upgrade_that_is_stuck_leads_to_before_us(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)
    converge(node)
    stuck(node, monkeypatch, cri_runtime, runtime_class="gpu")
    with pytest.raises(StepError, match=r": nothing was changed$"):
        revert(node)
    with runtime(node):
        revert(node)
        assert tree(node) == before
        assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}


def test_the_next_run_goes_on_with_the_way_back_and_then_with_its_own(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)
    stuck(node, monkeypatch, cri_runtime)
    with runtime(node):
        converge(node)
        assert set(cri.status(node.socket, timeout=5).handlers or ()) >= {"nvidia", "runc"}
        assert journal.load(node.install_dir).open is None
        revert(node)
    assert tree(node) == before


def test_the_next_run_only_goes_back_where_it_is_killed_then(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)
    stuck(node, monkeypatch, cri_runtime)
    with runtime(node):
        transaction.recover(
            Context(settings=node.settings(), adapter=containerd, stop=Cancellation())
        )
    assert tree(node) == before
    assert not node.install_dir.exists()


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
def test_a_runtime_that_has_the_change_is_told_where_the_way_back_was_killed_at_its_write(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    before = tree(node)
    fails_after(monkeypatch, lambda: killed_in(monkeypatch, apply, "changes", after=written))
    with pytest.raises(Killed):
        converge(node)
    monkeypatch.undo()
    transaction.recover(Context(settings=node.settings(), adapter=containerd, stop=Cancellation()))
    assert tree(node) == before
    assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}


def test_a_revert_after_a_killed_way_back_does_not_miss_what_the_runtime_has_of_the_change(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)
    converge(node)
    fails_after(monkeypatch, lambda: killed_in(monkeypatch, apply, "changes", after=True))
    with pytest.raises(Killed):
        converge(node, runtime_class="gpu")
    monkeypatch.undo()
    assert "gpu" in (cri.status(node.socket, timeout=5).handlers or ())
    revert(node)
    assert tree(node) == before
    assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}


def test_another_runtime_is_neither_told_nor_asked_on_the_way_back(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_after(monkeypatch)
    killed_in(monkeypatch, rollback, "_reload_runtime", after=False)
    with pytest.raises(Killed):
        converge(node)
    monkeypatch.undo()
    socket, kept = node.root / "run/docker.sock", tree(node)
    options = {"runtime": "docker", "config": f"{node.root}/daemon.json", "socket": str(socket)}
    settings = node.settings(drop_in_config="", **options)
    with fake_node.daemon(
        socket, home=node.root.parent / "docker", name="dockerd", on_hup="stay", speech="http"
    ) as dockerd:
        for run in (transaction.converge, uninstall.revert):
            with pytest.raises(UsageProblem) as caught:
                run(settings, docker)
            assert str(caught.value) == "--runtime=docker: this node was set up for containerd"
            assert (
                caught.value.hint == "revert that first: nvidia-toolkit revert --runtime containerd"
            )
        assert dockerd.signals() == []
    assert tree(node) == kept
    assert cri_runtime.signals() == ["SIGHUP"]
    converge(node)
    assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc", *OURS}


@pytest.mark.parametrize("earlier", [False, True], ids=["at the first install", "at a repair"])
def test_a_file_that_is_overwritten_before_the_runtime_reads_it_is_named_and_no_dead_end(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, *, earlier: bool
) -> None:
    """Two tools fight: the runtime reads theirs, and has lost our handlers, which it had before."""
    theirs = node.config.read_bytes()
    monkeypatch.setattr(expectation, "SETTLING", 0.1)
    if earlier:
        converge(node)
        node.config.write_bytes(theirs)
    real = restart.perform

    def perform(*given: Any) -> float:
        node.config.write_bytes(theirs)
        return real(*given)

    monkeypatch.setattr(restart, "perform", perform)
    with pytest.raises(RolledBack) as caught:
        converge(node)
    assert f"{node.config} was modified before the runtime loaded it" in str(caught.value)
    assert node.config.read_bytes() == theirs
    assert journal.load(node.install_dir).open is None
    monkeypatch.setattr(restart, "perform", real)
    converge(node)
    assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc", *OURS}


def test_an_upgrade_that_is_stuck_gets_its_old_version_back_once_the_runtime_is(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    before, link = tree(node), os.readlink(node.toolkit)
    fake_node.make_artifacts(node.source, release="2")
    stuck(node, monkeypatch, cri_runtime, runtime_class="gpu")
    with runtime(node):
        transaction.recover(
            Context(settings=node.settings(), adapter=containerd, stop=Cancellation())
        )
    assert os.readlink(node.toolkit) == link
    after = tree(node)
    assert {n: s for n, s in after.items() if n.startswith(("etc", "usr"))} == {
        n: s for n, s in before.items() if n.startswith(("etc", "usr"))
    }


def test_an_original_that_is_gone_is_no_guess(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_after(monkeypatch, lambda: shutil.rmtree(node.state.parent / "originals"))
    with pytest.raises(
        NotRolledBack, match=r"^it broke; rollback failed: the original of .* was not found in "
    ):
        converge(node)
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()


def test_an_original_that_is_gone_is_no_dead_end_where_its_bytes_are_in_place(
    node: Node, cri_runtime: Daemon
) -> None:
    before = tree(node)
    converge(node)
    shutil.rmtree(node.state.parent / "originals")
    node.config.write_bytes(fake_node.KUBEADM)
    revert(node)
    assert tree(node) == before


@pytest.mark.parametrize("name", ["containerd", "docker", "crio"])
def test_of_a_file_whose_original_is_gone_only_our_keys_can_be_taken_out(
    node: Node, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """By force only: the bytes of before us are what a revert promises."""
    text = {
        "containerd": fake_node.KUBEADM,
        "docker": (
            b'{"log-driver": "json-file",\n "runtimes": {"kata": {"path": "/usr/bin/kata"}}}\n'
        ),
        "crio": b'[crio.runtime]\nlog_level = "info" # theirs\n',
    }[name]
    node.config.write_bytes(text)
    adapter = registry.ADAPTERS[RuntimeName(name)]
    assert adapter is not None
    hooks = {"hooks_dir": f"{node.root}/hooks"} if name == "crio" else {}
    options = {"runtime": name, "restart_mode": "none", "drop_in_config": "", **hooks}
    settings = node.settings(**options, set_as_default="true")
    transaction.converge(settings, adapter)
    assert b"nvidia" in node.config.read_bytes()
    shutil.rmtree(node.state.parent / "originals")
    with pytest.raises(StepError, match=r"^the original of .* was not found in .*$") as caught:
        uninstall.revert(settings, adapter)
    assert "--force" in caught.value.hint
    uninstall.revert(node.settings(**options, force="true"), adapter)
    assert any(
        "only the keys of the toolkit are removed from the file" in line for line in caplog.messages
    )
    assert not (node.root / "usr").exists()
    read = json_editor.tree if name == "docker" else toml_editor.tree
    assert read(node.config.read_bytes(), "") == read(text, "")


def full(*_: Any, **__: Any) -> None:
    raise StepError("no room")


def test_a_first_install_is_taken_back_on_a_full_disk_as_well(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(node)
    fails_after(monkeypatch, lambda: monkeypatch.setattr(journal, "save", full))
    with pytest.raises(RolledBack):
        converge(node)
    assert tree(node) == before
    assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}


# The failure cannot be recorded either: the next run finds an open transaction, nothing to do.
def test_an_upgrade_on_a_full_disk_gets_its_files_back_and_the_next_run_does_the_rest(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    before = tree(node)
    with monkeypatch.context() as patch:
        fails_after(patch, lambda: patch.setattr(journal, "save", full))
        with pytest.raises(NotRolledBack):
            converge(node, runtime_class="gpu")
    assert node.config.read_bytes() != fake_node.KUBEADM
    assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc", *OURS}
    transaction.converge(node.settings(restart_budget="0"), containerd)
    assert {**tree(node), **before} == tree(node)
    revert(node)
    assert node.config.read_bytes() == fake_node.KUBEADM


class Killed(BaseException):
    """Ends a run at a chosen place, as SIGKILL would."""


# As after an upgrade, killed and reverted by its user: the record lists what was never written.
@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
def test_after_a_killed_upgrade_the_former_wish_can_be_had_again_and_reverted(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    before = tree(node)
    converge(node)
    installed = node.config.read_bytes()
    killed_in(monkeypatch, apply, "changes", after=written)
    with pytest.raises(Killed):
        converge(node, runtime_class="gpu")
    monkeypatch.undo()
    converge(node)
    assert tomllib.loads(node.config.read_text()) == tomllib.loads(installed.decode())
    revert(node)
    assert tree(node) == before


def test_after_a_killed_upgrade_of_the_toolkit_the_way_back_leads_to_what_stands_there(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    link = os.readlink(node.toolkit)
    fake_node.make_artifacts(node.source, release="2")
    killed_in(monkeypatch, versions, "install", after=False)
    with pytest.raises(Killed):
        converge(node)
    monkeypatch.undo()
    fake_node.make_artifacts(node.source, release="1")
    assert transaction.converge(node.settings(), containerd).is_noop
    fake_node.make_artifacts(node.source, release="3")
    fails_after(monkeypatch)
    with pytest.raises(RolledBack):
        converge(node, runtime_class="gpu")
    assert os.readlink(node.toolkit) == link


# The run could not note any more when it wrote, but the files themselves say it.
@pytest.mark.parametrize("config", [fake_node.KUBEADM, None], ids=["changed", "made"])
def test_a_runtime_that_somebody_restarted_after_a_killed_write_is_asked_and_not_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: bytes | None
) -> None:
    node = fake_node.make_node(tmp_path / "node", config)
    say(node)
    with runtime(node) as cri_runtime:
        with monkeypatch.context() as patch:
            killed_in(patch, apply, "changes", after=True)
            with pytest.raises(Killed):
                converge(node)
        time.sleep(0.1)
        start_anew(cri_runtime)
        converge(node)
        assert cri_runtime.signals() == []
        assert journal.load(node.install_dir).open is None
        with monkeypatch.context() as patch:
            killed_in(patch, apply, "changes", after=True)
            with pytest.raises(Killed):
                revert(node)
        time.sleep(0.1)
        start_anew(cri_runtime)
        revert(node)
        assert cri_runtime.signals() == []
        assert not node.install_dir.exists()


def test_a_runtime_that_nobody_restarted_after_a_killed_write_is_restarted(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_in(patch, apply, "changes", after=True)
        with pytest.raises(Killed):
            converge(node)
    converge(node)
    assert cri_runtime.signals() == ["SIGHUP"]


def test_a_way_back_to_the_former_version_that_fails_before_the_switch_is_still_made(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    link = os.readlink(node.toolkit)
    fake_node.make_artifacts(node.source, release="2")
    with monkeypatch.context() as patch:
        killed_in(patch, transaction, "commit", after=False)
        with pytest.raises(Killed):
            converge(node)
    assert os.readlink(node.toolkit) != link
    shutil.rmtree(node.source)
    fake_node.make_artifacts(node.source)
    with monkeypatch.context() as patch:
        patch.setattr(versions, "install", full)
        with pytest.raises(RolledBack, match=r"^no room; "):
            converge(node)
    assert os.readlink(node.toolkit) == link
    assert link.endswith(str(journal.load(node.install_dir).toolkit_digest))


def killed_in(monkeypatch: pytest.MonkeyPatch, module: Any, step: str, *, after: bool) -> None:
    """Let a run be killed when it comes to a step, or right after it."""
    real: Callable[..., Any] = getattr(module, step)

    def kill(*words: Any, **named: Any) -> None:
        if after:
            real(*words, **named)
        raise Killed

    monkeypatch.setattr(module, step, kill)


# --- the CDI specification ----------------------------------------------------------------------


def test_a_specification_made_beside_an_open_transaction_is_not_forgotten_with_it(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made after the transaction, and so it is none that the way back of one may lose."""
    monkeypatch.setattr(spec, "dependencies", lambda *_: "of this driver")
    monkeypatch.setattr(spec, "wants_nodes", lambda _: False)
    monkeypatch.setattr(driver, "absence", lambda *_: "")
    monkeypatch.setattr(driver, "roots", lambda *_: SimpleNamespace(named=("/", "/")))
    monkeypatch.setattr(nvidia_ctk, "require", lambda *_: None)
    monkeypatch.setattr(nvidia_ctk, "specification", lambda *_, **__: b'{"cdiVersion": "0.5.0"}\n')
    options = {"cdi_enabled": "true", "cdi_output_dir": str(node.root / "cdi")}
    before = tree(node)
    with monkeypatch.context() as patch:
        killed_in(patch, restart, "perform", after=False)
        with pytest.raises(Killed):
            converge(node, **options)
    converge(node, restart_mode="none", **options)  # leaves the transaction open, and makes it
    say(node, "nvidia-cdi", {"handlers": list(OURS)})
    with pytest.raises(RolledBack):
        converge(node, **options)
    record = journal.load(node.install_dir)
    assert record.specification is not None
    assert (record.owned, record.toolkit_digest, record.open) == ((), None, None)
    say(node)
    revert(node, **options)
    assert tree(node) == before


# --- a record that is damaged -------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "kind", "baseline"])
def test_a_damaged_transaction_is_exit_3_and_nothing_is_touched(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    stuck(node, monkeypatch, cri_runtime)
    said = json.loads(node.state.read_bytes())
    text = json.dumps(said)
    if damage == "cut":
        text = text[: len(text) // 2]
    elif damage == "kind":
        text = json.dumps({**said, "open": ["x"]})
    else:
        del said["open"]["baseline"]["has"]
        text = json.dumps(said)
    node.state.write_text(text, encoding="utf-8")
    with runtime(node) as daemon:
        before, told = fake_node.snapshot(node.root, node.pid_file, node.socket), daemon.signals()
        for run in (converge, revert):
            with pytest.raises(NodeConfigError) as caught:
                run(node)
            assert str(caught.value).startswith(f"{node.state} is damaged: ")
            assert caught.value.exit_code == 3
        with pytest.raises(NodeConfigError):
            make_plan(Context(settings=node.settings(), adapter=containerd, stop=Cancellation()))
        if damage == "kind":
            done = fake_node.cli("-n", *node.options())
            assert (done.returncode, done.stdout) == (3, "")
            assert "hint: keep " in done.stderr
        after = fake_node.snapshot(node.root, node.pid_file, node.socket)
        assert {**after, "run": before["run"]} == before
        assert daemon.signals() == told


# --- before the first change --------------------------------------------------------------------


@pytest.mark.parametrize(
    "turn", [1, 2], ids=["what is about to be made", "what is about to change"]
)
@pytest.mark.parametrize("is_first", [True, False], ids=["first install", "upgrade"])
def test_what_cannot_be_remembered_is_not_begun(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, turn: int, *, is_first: bool
) -> None:
    if not is_first:
        converge(node)
    before, signals, real = tree(node), cri_runtime.signals(), journal.save
    saved: list[object] = []

    def save(*words: Any) -> Any:
        saved.append(words)
        if len(saved) == turn:
            raise StepError("no room")
        return real(*words)

    monkeypatch.setattr(journal, "save", save)
    with pytest.raises(StepError, match=r"^no room$") as caught:
        converge(node, runtime_class="gpu")
    assert not isinstance(caught.value, RolledBack)
    assert tree(node) == before
    assert node.state.exists() is not is_first
    assert cri_runtime.signals() == signals


def test_a_file_that_changed_since_the_plan_is_not_begun_with(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = transaction.begin

    def changed(*words: Any) -> Any:
        append(node.config)
        return real(*words)

    monkeypatch.setattr(transaction, "begin", changed)
    with pytest.raises(
        Conflict, match=r"was modified while the change was planned; nothing was written$"
    ):
        converge(node)
    assert node.config.read_bytes() == fake_node.KUBEADM + THEIRS
    assert not node.install_dir.exists()
    assert cri_runtime.signals() == []


# --- the switch back ----------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return an install directory with the versions `one` and `two`, of which `two` is in use."""
    for digest in ("one", "two"):
        (tmp_path / VERSIONS / digest).mkdir(parents=True)
        (tmp_path / VERSIONS / digest / "nvidia-ctk").write_text(digest, encoding="utf-8")
    (tmp_path / "toolkit").symlink_to(f"{VERSIONS}/two")
    return tmp_path


def stand(root: Path) -> tuple[str, list[str]]:
    found = sorted(path.name for path in (root / VERSIONS).iterdir())
    return (root / "toolkit/nvidia-ctk").read_text(encoding="utf-8"), found


def test_the_link_goes_back_and_the_failed_version_goes(root: Path) -> None:
    (root / VERSIONS / "three.partial").mkdir()
    versions.switch_back(root, "one", "two", None)
    assert stand(root) == ("one", ["one"])
    versions.switch_back(root, "one", "two", None)
    assert stand(root) == ("one", ["one"])


@pytest.mark.parametrize("failed", [None, "two"], ids=["none was installed", "the same one"])
def test_where_the_version_did_not_change_nothing_does(root: Path, failed: str | None) -> None:
    before = fake_node.snapshot(root)
    versions.switch_back(root, "two", failed, None)
    assert fake_node.snapshot(root) == before


@pytest.mark.parametrize("failed", [None, "one"], ids=["none was installed", "the one from before"])
def test_a_link_that_a_killed_run_left_at_another_version_goes_back(
    root: Path, failed: str | None
) -> None:
    versions.switch_back(root, "one", failed, None)
    assert stand(root) == ("one", ["one", "two"])


def test_what_another_installer_put_in_place_of_the_link_stays_where_no_version_failed(
    root: Path,
) -> None:
    (root / "toolkit").unlink()
    (root / "toolkit").mkdir()
    (root / "toolkit/nvidia-ctk").write_text("theirs", encoding="utf-8")
    versions.switch_back(root, "one", "one", None)
    assert stand(root) == ("theirs", ["one", "two"])


def test_without_an_earlier_version_all_of_them_go(root: Path) -> None:
    versions.switch_back(root, None, "two", None)
    assert list(root.iterdir()) == []


def test_a_version_from_before_that_is_gone_is_told_and_the_failed_one_stays(root: Path) -> None:
    (root / "toolkit").unlink()
    (root / "toolkit").symlink_to(f"{VERSIONS}/gone")
    with pytest.raises(StepError) as caught:
        versions.switch_back(root, "zero", "two", None)
    assert str(caught.value) == f"{root}/{VERSIONS}/zero, the previous version, was not found"
    assert sorted(path.name for path in (root / VERSIONS).iterdir()) == ["one", "two"]


def test_a_version_is_tried_where_the_node_runs_it(tmp_path: Path) -> None:
    host, target = Host(root=Path("/")), tmp_path / "v"
    target.mkdir()
    words = tmp_path / "words"
    fake_node.write_program(target / "nvidia-ctk.real", f'#!/bin/sh\necho "$0" "$@" > {words}\n')
    versions._run(target, host)
    assert words.read_text(encoding="utf-8") == f"{target}/nvidia-ctk.real --version\n"
    fake_node.write_program(target / "nvidia-ctk.real", "#!/bin/sh\nexit 3\n")
    with pytest.raises(StepError, match=r"does not run on this node \(exit 3\): $"):
        versions._run(target, host)
    # A node whose root shows nothing of the directory cannot try it.
    versions._run(target, Host(root=tmp_path / "host"))


def test_a_version_that_does_not_answer_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "TRIAL_SECONDS", 0.2)
    fake_node.write_program(tmp_path / "nvidia-ctk.real", "#!/bin/sh\nexec sleep 30\n")
    with pytest.raises(StepError, match=r"did not end within 0\.2 s and was killed$"):
        versions._run(tmp_path, Host(root=Path("/")))


_AFTER_BEGIN: Final = """
import sys
from toolkit.cli import main
from toolkit.reconcile import transaction
begin, loaded = transaction.begin, []
def began(*words):
    record = begin(*words)
    loaded.append(set(sys.modules))
    return record
transaction.begin = began
try:
    main.main(sys.argv[1:])
except SystemExit as end:
    needed = {
        "ctypes", "shutil", "subprocess", "toolkit.redact",
        "toolkit.runtime.supervision.unit_log",
    }
    new = set(sys.modules) - loaded[0] | (needed - loaded[0])
    own = ("toolkit", "runtimes", *needed)
    print(end.code, *sorted(name for name in new if name.startswith(own)))
"""


def test_a_rollback_loads_no_module_of_the_program(node: Node) -> None:
    """One that is being upgraded, or has no descriptor left, could not load it."""
    with fake_node.daemon(node.socket, home=node.root.parent / "d") as daemon:
        daemon.revives = False
        words = ["run", "--no-daemon", *node.options(reload_timeout="0.4")]
        done = subprocess.run(
            [sys.executable, "-c", _AFTER_BEGIN, *words],
            env=fake_node.ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    code, *loaded = done.stdout.split()
    assert code in {"6", "7"}, done.stderr
    assert loaded == []
