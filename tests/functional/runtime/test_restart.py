"""The runtime takes a change up by exactly one signal or one restart, and is waited for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtimes.adapter import Adapter, SighupEffect
from runtimes.containerd import ADAPTER as containerd
from runtimes.model import ConfigDelivery, DeliveryKind
from tests.support import fake_node
from toolkit.deadline import Deadline
from toolkit.errors import ReloadError, StepError
from toolkit.node import command, processes
from toolkit.node.host import Host
from toolkit.runtime import locate, restart
from toolkit.runtime.locate import Target
from toolkit.runtime.supervision.supervisor import Supervisor
from toolkit.settings.options import RestartMode

HINT = "see the runtime's log"
LOG = "see `journalctl -u containerd.service` on the node"


def scene(node: fake_node.Node) -> Target:
    return locate.target(node.settings(), containerd)


def adapter_of(on_hangup: SighupEffect) -> Adapter:
    """Return an adapter of a daemon that takes a SIGHUP in this way."""
    return replace(containerd, on_hangup=on_hangup)


def silence(node: fake_node.Node) -> str:
    return (
        f"the socket {node.socket} does not exist (is the runtime running? name its socket with"
        " --socket)"
    )


def owned(place: Target, unit: str | None) -> Target:
    """Return a scene whose daemon belongs to a unit; nobody is looked for."""
    found = processes.RuntimeProcess(
        pid=4_000_000, start_ticks=1, executable="/usr/bin/containerd", argv=(), unit=unit
    )
    return replace(place, process=found)


def perform(place: Target, adapter: Adapter = containerd, *, timeout: float = 10) -> float:
    return restart.perform(place, adapter, method(place, adapter, "signal"), Deadline(timeout))


def method(
    place: Target, adapter: Adapter, mode: str, found: Supervisor | None = None
) -> restart.RestartMethod:
    """Return the method for a runtime with a supervisor; by default none was looked for."""
    return restart.restart_method(place, adapter, RestartMode(mode), found)


# --- which way ----------------------------------------------------------------------------------


def systemd(root: Path) -> Host:
    """Return a node whose systemd can be reached."""
    (root / "run/systemd/system").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    fake_node.write_program(root / "usr/bin/systemctl", "#!/bin/sh\n")
    return Host(root=root)


@fake_node.needs_root
@pytest.mark.parametrize(
    ("on_hangup", "mode", "unit", "restart_method"),
    [
        (SighupEffect.TERMINATES, "auto", "a.service", ("systemd", "a.service", True)),
        (SighupEffect.TERMINATES, "auto", None, ("signal", None, True)),
        (SighupEffect.TERMINATES, "signal", "a.service", ("signal", None, True)),
        (SighupEffect.TERMINATES, "systemd", "a.service", ("systemd", "a.service", True)),
        (SighupEffect.TERMINATES, "none", "a.service", ("none", None, False)),
        (SighupEffect.RELOADS, "auto", "a.service", ("signal", None, False)),
        (SighupEffect.RELOADS, "signal", None, ("signal", None, False)),
        (SighupEffect.RELOADS, "systemd", "a.service", ("systemd", "a.service", True)),
        (SighupEffect.RELOADS, "none", None, ("none", None, False)),
        (SighupEffect.NEEDS_RESTART, "auto", "a.service", ("systemd", "a.service", True)),
        (SighupEffect.NEEDS_RESTART, "signal", "a.service", ("signal", None, False)),
    ],
)
def test_the_way_fits_the_runtime_and_the_node(
    node: fake_node.Node,
    on_hangup: SighupEffect,
    mode: str,
    unit: str | None,
    restart_method: tuple[str, str | None, bool],
) -> None:
    place = replace(owned(scene(node), unit), host=systemd(node.root / "host"))
    found = method(place, adapter_of(on_hangup), mode)
    assert (found.mode, found.unit, found.replaces, found.obstacle) == (*restart_method, "")


CHOICES = (
    "use --restart-mode none and restart it yourself, or --restart-mode signal if something does"
    " start it"
)
ENDED = "SIGHUP would end containerd (PID 4000000), and nothing is known to start it again: "
OWN = Supervisor(unit="a.service", after_signal="a.service")
ONCE = Supervisor(unit="a.service", doubt="a.service has Restart=no")
UNSEEN = Supervisor(
    unit="a.service", unusable="systemd is not visible", doubt="systemd is not visible"
)
RUNIT = Supervisor(no_unit="PID 4000000 is of no service", after_signal="runsv (PID 3)")
NOTHING = Supervisor(no_unit="PID 4000000 is of no service", doubt="its parent is PID 1")
NO_UNIT = "PID 4000000 is of no service (use --restart-mode signal or none)"


def ended(why: str) -> str:
    return f"{ENDED}{why} ({CHOICES})"


@pytest.mark.parametrize(
    ("on_hangup", "mode", "found", "expected", "obstacle"),
    [
        (SighupEffect.TERMINATES, "auto", OWN, ("systemd", "a.service"), ""),
        (SighupEffect.TERMINATES, "auto", ONCE, ("systemd", "a.service"), ""),
        (SighupEffect.TERMINATES, "auto", RUNIT, ("signal", None), ""),
        (
            SighupEffect.TERMINATES,
            "auto",
            UNSEEN,
            ("signal", None),
            ended("systemd is not visible"),
        ),
        (SighupEffect.TERMINATES, "auto", NOTHING, ("signal", None), ended("its parent is PID 1")),
        (SighupEffect.TERMINATES, "signal", ONCE, ("signal", None), ""),
        (SighupEffect.TERMINATES, "signal", NOTHING, ("signal", None), ""),
        (SighupEffect.TERMINATES, "systemd", ONCE, ("systemd", "a.service"), ""),
        (
            SighupEffect.TERMINATES,
            "systemd",
            UNSEEN,
            ("systemd", "a.service"),
            "systemd is not visible",
        ),
        (SighupEffect.TERMINATES, "systemd", NOTHING, ("systemd", None), NO_UNIT),
        (SighupEffect.TERMINATES, "none", NOTHING, ("none", None), ""),
        # Docker reloads: SIGHUP ends nothing, so nothing has to start it again.
        (SighupEffect.RELOADS, "auto", NOTHING, ("signal", None), ""),
        (SighupEffect.RELOADS, "signal", NOTHING, ("signal", None), ""),
        (SighupEffect.RELOADS, "systemd", NOTHING, ("systemd", None), NO_UNIT),
        (SighupEffect.NEEDS_RESTART, "auto", OWN, ("systemd", "a.service"), ""),
        (SighupEffect.NEEDS_RESTART, "auto", RUNIT, ("systemd", None), NO_UNIT),
        (
            SighupEffect.NEEDS_RESTART,
            "auto",
            UNSEEN,
            ("systemd", "a.service"),
            "systemd is not visible",
        ),
        (SighupEffect.NEEDS_RESTART, "signal", NOTHING, ("signal", None), ""),
    ],
)
def test_the_method_fits_what_starts_the_runtime_again(
    node: fake_node.Node,
    on_hangup: SighupEffect,
    mode: str,
    found: Supervisor,
    expected: tuple[str, str | None],
    obstacle: str,
) -> None:
    chosen = method(owned(scene(node), "a.service"), adapter_of(on_hangup), mode, found)
    assert (chosen.mode, chosen.unit, chosen.obstacle) == (*expected, obstacle)


def test_a_signal_that_was_asked_for_is_sent_with_a_warning(node: fake_node.Node) -> None:
    place = owned(scene(node), None)
    assert method(place, containerd, "signal", NOTHING).warning == f"{ENDED}its parent is PID 1"
    assert method(place, containerd, "signal", RUNIT).warning == ""


@pytest.mark.parametrize("mode", ["auto", "signal", "systemd"])
def test_nobody_who_listens_is_an_obstacle(node: fake_node.Node, mode: str) -> None:
    found = method(scene(node), containerd, mode)
    assert found.obstacle == silence(node)


def test_nobody_who_listens_is_none_where_nobody_is_told(node: fake_node.Node) -> None:
    assert method(scene(node), containerd, "none").obstacle == ""


def test_it_is_said_in_words(node: fake_node.Node) -> None:
    found = owned(scene(node), "a.service").process
    none = restart.RestartMethod(mode=RestartMode.NONE, unit=None, replaces=False)
    unit = restart.RestartMethod(mode=RestartMode.SYSTEMD, unit="a.service", replaces=True)
    by_signal = restart.RestartMethod(mode=RestartMode.SIGNAL, unit=None, replaces=True)
    assert none.words(found) == "not restarted (restart mode none): restart it yourself"
    assert unit.words(found) == "restart a.service"
    assert by_signal.words(found) == "SIGHUP to PID 4000000"
    again = replace(by_signal, after_signal="runsv (PID 3)")
    assert (
        again.words(found) == "SIGHUP to PID 4000000, which ends it: runsv (PID 3) starts it again"
    )
    never = replace(by_signal, warning="...")
    assert (
        never.words(found)
        == "SIGHUP to PID 4000000, which ends it: nothing is known to start it again"
    )
    assert by_signal.words(None) == "SIGHUP to the process that owns the socket"


# --- by signal ----------------------------------------------------------------------------------


@pytest.mark.timing
def test_one_signal_and_the_next_process_answers(node: fake_node.Node) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d") as daemon:
        first = daemon.pid
        seconds = perform(scene(node))
        assert daemon.signals() == ["SIGHUP"]
        assert daemon.pid != first
        assert 0 < seconds < 5


def test_a_slow_supervisor_is_waited_for(node: fake_node.Node) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d", delay=0.6) as daemon:
        assert perform(scene(node)) >= 0.6
        assert daemon.signals() == ["SIGHUP"]


def test_a_runtime_that_reloads_in_place_is_not_expected_to_die(node: fake_node.Node) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d", on_hup="stay") as daemon:
        assert perform(scene(node), adapter_of(SighupEffect.RELOADS)) < 1
        fake_node.wait_for(lambda: daemon.signals() == ["SIGHUP"], "the signal did not arrive")


@pytest.mark.timing
def test_a_runtime_that_dies_and_does_not_come_back_is_a_failure(node: fake_node.Node) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d", revives=False) as daemon:
        begin = time.monotonic()
        with pytest.raises(ReloadError) as caught:
            perform(scene(node), timeout=0.5)
        assert 0.5 <= time.monotonic() - begin < 1.5
        assert (
            str(caught.value)
            == "the runtime did not restart or reload in time: no process listens on"
            f" {node.socket}: it is not a socket, or a stale one"
        )
        assert (caught.value.exit_code, caught.value.hint) == (4, HINT)
        assert daemon.signals() == ["SIGHUP"]


def test_a_runtime_that_does_not_heed_the_signal_is_a_failure(node: fake_node.Node) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d", on_hup="stay") as daemon:
        with pytest.raises(ReloadError) as caught:
            perform(scene(node), timeout=0.5)
        assert (
            str(caught.value)
            == f"the runtime did not restart or reload in time: PID {daemon.pid} is still the old"
            " process"
        )
        assert daemon.signals() == ["SIGHUP"], "it was told more than once"


def test_one_that_was_started_again_meanwhile_is_told_in_its_predecessors_place(
    node: fake_node.Node,
) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d") as daemon:
        place = scene(node)
        assert place.process is not None
        earlier = replace(
            place, process=replace(place.process, start_ticks=place.process.start_ticks - 50)
        )
        first = daemon.pid
        perform(earlier)
        assert (first, "SIGHUP") in daemon.lines()
        assert daemon.signals() == ["SIGHUP"]


def test_a_predecessor_that_nobody_follows_is_not_signalled(node: fake_node.Node) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d", revives=False) as daemon:
        place = scene(node)
        assert daemon.process is not None
        daemon.process.kill()
        daemon.process.wait()
        with pytest.raises(StepError):
            perform(place, timeout=0.4)
        assert daemon.signals() == []


def test_nobody_is_signalled_where_nobody_was_found(node: fake_node.Node) -> None:
    with pytest.raises(StepError) as caught:
        perform(scene(node))
    assert str(caught.value) == silence(node)


# --- by the distribution ------------------------------------------------------------------------


def watched(node: fake_node.Node) -> Target:
    """Return a target as k0s makes it: a change in its drop-in directory starts containerd."""
    place = scene(node)
    assert place.process is not None
    desired = replace(
        place.desired, delivery=ConfigDelivery(kind=DeliveryKind.MERGED, watches=True)
    )
    unit = replace(place.process, unit="k0sworker.service")
    return replace(place, desired=desired, process=unit, host=systemd(node.root))


@fake_node.needs_root
def test_a_distribution_that_watches_is_left_to_start_its_daemon(node: fake_node.Node) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d") as daemon:
        place = watched(node)
        chosen = method(place, containerd, "auto")
        assert chosen.words(place.process) == "restarted by the distribution"
        assert daemon.process is not None
        timer = threading.Timer(0.5, daemon.process.kill)
        timer.start()
        assert 0.4 < restart.perform(place, containerd, chosen, Deadline(10)) < 5
        timer.join()
        assert daemon.signals() == []


@fake_node.needs_root
def test_one_that_does_not_is_restarted_by_its_unit(
    node: fake_node.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart, "NOTICED", 0.3)
    with fake_node.daemon(node.socket, home=node.root / "d") as daemon:
        systemctl = Systemctl(daemon)
        place = watched(node)
        chosen = method(place, containerd, "auto")
        monkeypatch.setattr(command, "run", systemctl.run)
        restart.perform(place, containerd, chosen, Deadline(10))
        # A whole distribution counts as started long after its runtime has: that is not waited for.
        assert systemctl.calls == [
            ("systemctl", "reset-failed", "k0sworker.service"),
            ("systemctl", "restart", "--no-block", "k0sworker.service"),
        ]


@fake_node.needs_root
def test_one_that_is_told_how_is_told(node: fake_node.Node) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d"):
        place = watched(node)
        assert not method(place, containerd, "systemd").by_itself
        assert method(place, containerd, "signal").unit is None


# --- by systemd ---------------------------------------------------------------------------------


class Systemctl:
    """Stands in for `systemctl`: it notes each call, fails so often, and restarts the daemon."""

    def __init__(self, daemon: fake_node.Daemon, failures: int = 0) -> None:
        self.daemon = daemon
        self.failures = failures
        self.calls: list[tuple[str, ...]] = []
        self.environments: list[Any] = []

    def run(self, argv: Sequence[str], **more: Any) -> command.Result:
        self.calls.append(tuple(argv))
        self.environments.append(more["environment"])
        fails = argv[1] == "restart" and self.failures > 0
        self.failures -= argv[1] == "restart"
        if argv[1] == "restart" and not fails:
            assert self.daemon.process is not None
            self.daemon.process.kill()
        return command.Result(
            argv=tuple(argv), code=int(fails), out="", err=REFUSED if fails else ""
        )


REFUSED = (
    'refused.\nSee "systemctl status containerd.service" and "journalctl -xeu ..." for details.'
)
UNIT = restart.RestartMethod(mode=RestartMode.SYSTEMD, unit="containerd.service", replaces=True)


def test_systemd_is_asked_once_and_nobody_is_signalled(
    node: fake_node.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d") as daemon:
        systemctl = Systemctl(daemon)
        place, first = scene(node), daemon.pid
        monkeypatch.setattr(command, "run", systemctl.run)
        restart.perform(place, containerd, UNIT, Deadline(10))
        assert systemctl.calls == [("systemctl", "restart", "containerd.service")]
        assert systemctl.environments == [{"SYSTEMD_IGNORE_CHROOT": "1"}]
        assert daemon.pid != first
        assert daemon.signals() == []


def test_a_unit_that_was_started_too_often_gets_a_second_chance(
    node: fake_node.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d") as daemon:
        systemctl = Systemctl(daemon, failures=1)
        place = scene(node)
        monkeypatch.setattr(command, "run", systemctl.run)
        restart.perform(place, containerd, UNIT, Deadline(10))
        assert [call[1] for call in systemctl.calls] == ["restart", "reset-failed", "restart"]


def test_a_unit_that_does_not_start_is_a_failure(
    node: fake_node.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_node.daemon(node.socket, home=node.root / "d") as daemon:
        systemctl = Systemctl(daemon, failures=5)
        place = scene(node)
        monkeypatch.setattr(command, "run", systemctl.run)
        with pytest.raises(StepError) as caught:
            restart.perform(place, containerd, UNIT, Deadline(10))
        # What systemd advises beside it is the hint.
        assert str(caught.value) == "`systemctl restart containerd.service` failed: refused"
        assert caught.value.hint == LOG
        assert len(systemctl.calls) == 3
        assert daemon.signals() == []
        assert os.path.exists(f"/proc/{daemon.pid}")
