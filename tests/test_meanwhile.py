"""What happens while a transaction is open: the node is upgraded, the clock set, other options are given."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests import workshop
from tests.test_undo import (
    OURS,
    Killed,
    converge,
    fails_after,
    killed_in,
    killed_on_the_way_back,
    revert,
    runtime,
    say,
    start_anew,
    stuck,
)
from tests.workshop import Daemon, Node
from toolkit import apply, cri, journal, kernel, owner, reload, transaction, undo, verify
from toolkit.artifacts import VERSIONS
from toolkit.errors import NotRolledBack, ToolkitError
from toolkit.options import RestartMode

UNIT: Final = reload.Way(mode=RestartMode.SYSTEMD, unit="containerd.service", replaces=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(verify, "_SETTLING", 0.2)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = workshop.make_node(tmp_path / "node")
    say(node)
    return node


@pytest.fixture
def running(node: Node) -> Iterator[Daemon]:
    with runtime(node) as daemon:
        yield daemon


def killed(monkeypatch: pytest.MonkeyPatch, room: Any, step: str, run: Any, *, after: bool = False) -> None:
    with monkeypatch.context() as patch:
        killed_in(patch, room, step, after=after)
        with pytest.raises(Killed):
            run()


def new_pause_image(node: Node) -> None:
    """Edit what is nobody's but the node's own, as an upgrade of Kubernetes does."""
    new = re.sub(rb"pause:3\.\d+", b"pause:3.99", node.config.read_bytes())
    assert b"pause:3.99" in new
    node.config.write_bytes(new)


@pytest.mark.parametrize("job", [converge, revert])
def test_a_node_that_was_upgraded_after_a_killed_run_is_no_dead_end(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch, job: Any
) -> None:
    if job is revert:
        converge(node)
    killed(monkeypatch, apply, "changes", lambda: job(node), after=True)
    new_pause_image(node)
    start_anew(running)
    with suppress(NotRolledBack):  # once may be too much to ask for
        job(node)
    with suppress(NotRolledBack):
        job(node)
    job(node)
    assert journal.load(node.install_dir).open is None


def test_a_node_that_was_upgraded_while_the_way_back_was_stuck_is_no_dead_end(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck(node, monkeypatch, running)
    new_pause_image(node)
    with runtime(node):
        revert(node)
    assert not node.install_dir.exists()


def test_a_handler_that_somebody_took_away_after_a_kill_is_not_missed_for_ever(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    cri_section = b'[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]\n'
    kata = b"\n" + cri_section + b'runtime_type = "io.containerd.kata.v2"\n'
    node.config.write_bytes(workshop.KUBEADM + kata)
    start_anew(running)
    killed(monkeypatch, apply, "changes", lambda: converge(node), after=True)
    node.config.write_bytes(node.config.read_bytes().replace(kata, b""))
    start_anew(running)
    with suppress(ToolkitError):
        converge(node)  # once may be too much to ask for
    converge(node)


def test_a_network_that_is_not_up_after_a_reboot_takes_no_good_change_back(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power fails right before the commit; at boot the CNI plugin comes later than we do."""
    killed(monkeypatch, transaction, "_commit", lambda: converge(node))
    say(node, "", {"network": False})
    start_anew(running)
    told = len(running.signals())
    monkeypatch.setattr(kernel, "boot_id", lambda: "another boot")
    converge(node)
    assert len(running.signals()) == told


def test_a_runtime_that_a_killed_way_back_left_down_is_started_beyond_the_budget(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd refused the restart, and the kill came before the second."""
    monkeypatch.setattr(reload, "revival", lambda *_, **__: UNIT)
    with runtime(node), monkeypatch.context() as patch:
        fails_after(patch)
        killed_in(patch, undo, "_tell", after=False)
        with pytest.raises(Killed):
            converge(node)
    with ExitStack() as stack:
        monkeypatch.setattr(reload, "_restart", lambda *_: stack.enter_context(runtime(node)))
        revert(node, restart_mode="auto", restart_budget="1")
        assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}


@pytest.mark.parametrize("between", [{"no_runtime_config": "true"}, {"restart_mode": "none"}])
def test_a_runtime_that_a_killed_run_left_down_is_started_whatever_ran_between(
    node: Node, monkeypatch: pytest.MonkeyPatch, between: dict[str, str]
) -> None:
    """A pod with other options and another toolkit commits, and so forgets whose it is that it is down."""

    def revival(*_: object, even_if_stopped: bool) -> reload.Way | None:
        return UNIT if even_if_stopped else None

    monkeypatch.setattr(reload, "revival", revival)
    with runtime(node):
        killed(monkeypatch, reload, "perform", lambda: converge(node, restart_mode="auto"))
    workshop.make_artifacts(node.source, release="2")
    converge(node, **{"restart_mode": "auto", **between})
    with ExitStack() as stack:
        monkeypatch.setattr(reload, "_restart", lambda *_: stack.enter_context(runtime(node)))
        converge(node, restart_mode="auto")
        assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc", *OURS}


def test_a_version_from_before_that_somebody_removed_is_no_dead_end(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    shutil.rmtree(node.install_dir / VERSIONS)
    workshop.make_artifacts(node.source, release="2")
    with monkeypatch.context() as patch:
        fails_after(patch)
        with pytest.raises(ToolkitError):
            converge(node, runtime_class="gpu")
    converge(node)  # the hint says: run the same again
    assert (node.toolkit / "nvidia-container-runtime").exists()


def test_a_clock_that_is_set_forward_does_not_hide_that_the_way_back_is_owed(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board without a battery gets its time after we were killed on the way back."""
    killed_on_the_way_back(node, monkeypatch)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    revert(node)
    assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}


def test_a_runtime_that_read_a_killed_write_is_not_restarted_an_hour_later_either(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, apply, "changes", lambda: converge(node), after=True)
    time.sleep(0.1)
    start_anew(running)
    clock, age = time.time, owner.age
    monkeypatch.setattr(time, "time", lambda: clock() + 3700)  # both go on for as long
    monkeypatch.setattr(owner, "age", lambda found: age(found) + 3700)
    converge(node)
    assert running.signals() == []


def test_a_change_that_failed_is_not_made_again_of_the_same_files_window_after_window(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pod crash-loops: two restarts each time that the window of the budget has passed, for ever."""
    say(node, "nvidia-cdi", {"handlers": list(OURS)})
    told = []
    for _ in range(8):
        with pytest.raises(ToolkitError) as caught:
            converge(node, restart_budget="3", restart_window="0.5", reload_timeout="1")
        told.append(str(caught.value))
        time.sleep(0.6)
    # Twice at once, and then after 1, 2 and 4 seconds.
    assert len(running.signals()) <= 8
    assert any("this very change was taken back" in words for words in told)


def test_the_documented_way_out_of_a_runtime_that_is_gone_leads_out_of_a_stuck_way_back(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/troubleshooting.md: `revert --runtime X --restart-mode none` where X does not run any more."""
    stuck(node, monkeypatch, running)
    revert(node, restart_mode="none")
    assert not node.install_dir.exists()


def test_a_killed_revert_can_be_forced_whatever_became_of_the_node(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    killed(monkeypatch, apply, "changes", lambda: revert(node), after=True)
    new_pause_image(node)
    start_anew(running)
    with suppress(ToolkitError):
        revert(node)
    revert(node, even_if_in_use="true")
    assert not node.install_dir.exists()
