"""The runtime takes a change up by exactly one signal or one restart, and is waited for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runtimes import containerd
from runtimes.adapter import Adapter, HangUp
from runtimes.model import Reach, ReachKind
from tests import workshop
from toolkit import detect, owner, process, reload
from toolkit.detect import Scene
from toolkit.errors import NotReloaded, StepFailed
from toolkit.host import Host
from toolkit.options import RestartMode
from toolkit.stop import Patience

HINT = "look at the runtime's own log"
LOG = "`journalctl -u containerd.service` on the node says why"


@pytest.fixture
def node(tmp_path: Path) -> workshop.Node:
    return workshop.make_node(tmp_path / "node")


def scene(node: workshop.Node) -> Scene:
    return detect.scene(node.settings(), containerd)


def adapter_of(on_hangup: HangUp) -> Adapter:
    """Return an adapter of a daemon that takes a SIGHUP in this way."""
    names = {name: getattr(containerd, name) for name in containerd.__all__}
    return cast("Adapter", SimpleNamespace(**{**names, "on_hangup": on_hangup}))


def silence(node: workshop.Node) -> str:
    return f"the socket {node.socket} does not exist (is the runtime running? name its socket with --socket)"


def owned(place: Scene, unit: str | None) -> Scene:
    """Return a scene whose daemon belongs to a unit; nobody is looked for."""
    found = owner.Owner(pid=4_000_000, started=1, executable="/usr/bin/containerd", argv=(), unit=unit)
    return replace(place, owner=found)


def perform(place: Scene, adapter: Adapter = containerd, *, timeout: float = 10) -> float:
    return reload.perform(place, adapter, reload.way(place, adapter, RestartMode.SIGNAL), Patience(timeout))


# --- which way ----------------------------------------------------------------------------------


def systemd(root: Path) -> Host:
    """Return a node whose systemd can be reached."""
    (root / "run/systemd/system").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    workshop.write_program(root / "usr/bin/systemctl", "#!/bin/sh\n")
    return Host(root=root)


@workshop.needs_root
@pytest.mark.parametrize(
    ("on_hangup", "mode", "unit", "way"),
    [
        (HangUp.ENDS, "auto", "a.service", ("systemd", "a.service", True)),
        (HangUp.ENDS, "auto", None, ("signal", None, True)),
        (HangUp.ENDS, "signal", "a.service", ("signal", None, True)),
        (HangUp.ENDS, "systemd", "a.service", ("systemd", "a.service", True)),
        (HangUp.ENDS, "none", "a.service", ("none", None, False)),
        (HangUp.RELOADS, "auto", "a.service", ("signal", None, False)),
        (HangUp.RELOADS, "signal", None, ("signal", None, False)),
        (HangUp.RELOADS, "systemd", "a.service", ("systemd", "a.service", True)),
        (HangUp.RELOADS, "none", None, ("none", None, False)),
        (HangUp.FORGETS, "auto", "a.service", ("systemd", "a.service", True)),
        (HangUp.FORGETS, "signal", "a.service", ("signal", None, False)),
    ],
)
def test_the_way_fits_the_runtime_and_the_node(
    node: workshop.Node, on_hangup: HangUp, mode: str, unit: str | None, way: tuple[str, str | None, bool]
) -> None:
    place = replace(owned(scene(node), unit), host=systemd(node.root / "host"))
    found = reload.way(place, adapter_of(on_hangup), RestartMode(mode))
    assert (found.mode, found.unit, found.replaces, found.obstacle) == (*way, "")


@workshop.needs_root
def test_auto_signals_where_systemd_cannot_be_reached(node: workshop.Node) -> None:
    place = owned(replace(scene(node), host=Host(root=node.root)), "a.service")
    assert reload.way(place, containerd, RestartMode.AUTO).mode is RestartMode.SIGNAL
    asked = reload.way(place, containerd, RestartMode.SYSTEMD)
    assert asked.obstacle == (
        f"the node's systemd is not seen below {node.root} (its /run has to be mounted there)"
    )


def test_auto_never_sends_a_signal_that_would_be_forgotten(node: workshop.Node) -> None:
    asked = reload.way(owned(scene(node), None), adapter_of(HangUp.FORGETS), RestartMode.AUTO)
    assert asked.mode is RestartMode.SYSTEMD
    assert asked.obstacle == ("PID 4000000 belongs to no systemd service (use --restart-mode signal or none)")


def test_what_no_service_started_cannot_be_restarted_by_systemd(node: workshop.Node) -> None:
    asked = reload.way(owned(scene(node), None), containerd, RestartMode.SYSTEMD)
    assert asked.obstacle == ("PID 4000000 belongs to no systemd service (use --restart-mode signal or none)")


@pytest.mark.parametrize("mode", ["auto", "signal", "systemd"])
def test_nobody_who_listens_is_an_obstacle(node: workshop.Node, mode: str) -> None:
    found = reload.way(scene(node), containerd, RestartMode(mode))
    assert found.obstacle == silence(node)


def test_nobody_who_listens_is_none_where_nobody_is_told(node: workshop.Node) -> None:
    assert reload.way(scene(node), containerd, RestartMode.NONE).obstacle == ""


def test_it_is_said_in_words(node: workshop.Node) -> None:
    found = owned(scene(node), "a.service").owner
    none = reload.Way(mode=RestartMode.NONE, unit=None, replaces=False)
    unit = reload.Way(mode=RestartMode.SYSTEMD, unit="a.service", replaces=True)
    by_signal = reload.Way(mode=RestartMode.SIGNAL, unit=None, replaces=True)
    assert none.words(found) == "left to you (restart mode none)"
    assert unit.words(found) == "restart a.service"
    assert by_signal.words(found) == "SIGHUP to PID 4000000"
    assert by_signal.words(None) == "the process that owns the socket is told"


# --- by signal ----------------------------------------------------------------------------------


def test_one_signal_and_the_next_process_answers(node: workshop.Node) -> None:
    with workshop.daemon(node.socket, home=node.root / "d") as daemon:
        first = daemon.pid
        seconds = perform(scene(node))
        assert daemon.signals() == ["SIGHUP"]
        assert daemon.pid != first
        assert 0 < seconds < 5


def test_a_slow_supervisor_is_waited_for(node: workshop.Node) -> None:
    with workshop.daemon(node.socket, home=node.root / "d", delay=0.6) as daemon:
        assert perform(scene(node)) >= 0.6
        assert daemon.signals() == ["SIGHUP"]


def test_a_runtime_that_reloads_in_place_is_not_expected_to_die(node: workshop.Node) -> None:
    with workshop.daemon(node.socket, home=node.root / "d", on_hup="stay") as daemon:
        assert perform(scene(node), adapter_of(HangUp.RELOADS)) < 1
        workshop.wait_for(lambda: daemon.signals() == ["SIGHUP"], "the signal did not arrive")


def test_a_runtime_that_dies_and_does_not_come_back_is_a_failure(node: workshop.Node) -> None:
    with workshop.daemon(node.socket, home=node.root / "d", revives=False) as daemon:
        begin = time.monotonic()
        with pytest.raises(NotReloaded) as caught:
            perform(scene(node), timeout=0.5)
        assert 0.5 <= time.monotonic() - begin < 1.5
        assert str(caught.value) == (
            f"the runtime does not answer as it should: nobody listens on {node.socket}:"
            " it is no socket, or a stale one"
        )
        assert (caught.value.exit_code, caught.value.hint) == (4, HINT)
        assert daemon.signals() == ["SIGHUP"]


def test_a_runtime_that_does_not_heed_the_signal_is_a_failure(node: workshop.Node) -> None:
    with workshop.daemon(node.socket, home=node.root / "d", on_hup="stay") as daemon:
        with pytest.raises(NotReloaded) as caught:
            perform(scene(node), timeout=0.5)
        assert str(caught.value) == (
            f"the runtime does not answer as it should: PID {daemon.pid} is still the process from before"
        )
        assert daemon.signals() == ["SIGHUP"], "it was told more than once"


def test_one_that_was_started_again_meanwhile_is_told_in_its_predecessors_place(node: workshop.Node) -> None:
    with workshop.daemon(node.socket, home=node.root / "d") as daemon:
        place = scene(node)
        assert place.owner is not None
        earlier = replace(place, owner=replace(place.owner, started=place.owner.started - 50))
        first = daemon.pid
        perform(earlier)
        assert (first, "SIGHUP") in daemon.lines()
        assert daemon.signals() == ["SIGHUP"]


def test_a_predecessor_that_nobody_follows_is_not_signalled(node: workshop.Node) -> None:
    with workshop.daemon(node.socket, home=node.root / "d", revives=False) as daemon:
        place = scene(node)
        assert daemon.process is not None
        daemon.process.kill()
        daemon.process.wait()
        with pytest.raises(StepFailed):
            perform(place, timeout=0.4)
        assert daemon.signals() == []


def test_nobody_is_signalled_where_nobody_was_found(node: workshop.Node) -> None:
    with pytest.raises(StepFailed) as caught:
        perform(scene(node))
    assert str(caught.value) == silence(node)


# --- by the distribution ------------------------------------------------------------------------


def watched(node: workshop.Node) -> Scene:
    """Return a scene as k0s makes it: what changes in its directory of drop-ins, it starts containerd for."""
    place = scene(node)
    assert place.owner is not None
    desired = replace(place.desired, reach=Reach(kind=ReachKind.MERGED, watches=True))
    unit = replace(place.owner, unit="k0sworker.service")
    return replace(place, desired=desired, owner=unit, host=systemd(node.root))


@workshop.needs_root
def test_a_distribution_that_watches_is_left_to_start_its_daemon(node: workshop.Node) -> None:
    with workshop.daemon(node.socket, home=node.root / "d") as daemon:
        place = watched(node)
        way = reload.way(place, containerd, RestartMode.AUTO)
        assert way.words(place.owner) == "the distribution starts it anew by itself"
        assert daemon.process is not None
        timer = threading.Timer(0.5, daemon.process.kill)
        timer.start()
        assert 0.4 < reload.perform(place, containerd, way, Patience(10)) < 5
        timer.join()
        assert daemon.signals() == []


@workshop.needs_root
def test_one_that_does_not_is_restarted_by_its_unit(
    node: workshop.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_NOTICED", 0.3)
    with workshop.daemon(node.socket, home=node.root / "d") as daemon:
        systemctl = Systemctl(daemon)
        place = watched(node)
        way = reload.way(place, containerd, RestartMode.AUTO)
        monkeypatch.setattr(process, "run", systemctl.run)
        reload.perform(place, containerd, way, Patience(10))
        # A whole distribution counts as started long after its runtime has: that is not waited for.
        assert systemctl.calls == [
            ("systemctl", "reset-failed", "k0sworker.service"),
            ("systemctl", "restart", "--no-block", "k0sworker.service"),
        ]


@workshop.needs_root
def test_one_that_is_told_how_is_told(node: workshop.Node) -> None:
    with workshop.daemon(node.socket, home=node.root / "d"):
        place = watched(node)
        assert not reload.way(place, containerd, RestartMode.SYSTEMD).by_itself
        assert reload.way(place, containerd, RestartMode.SIGNAL).unit is None


# --- by systemd ---------------------------------------------------------------------------------


class Systemctl:
    """Stands in for `systemctl`: it notes each call, fails so often, and restarts the daemon."""

    def __init__(self, daemon: workshop.Daemon, failures: int = 0) -> None:
        self.daemon = daemon
        self.failures = failures
        self.calls: list[tuple[str, ...]] = []
        self.environments: list[Any] = []

    def run(self, argv: Sequence[str], **more: Any) -> process.Result:
        self.calls.append(tuple(argv))
        self.environments.append(more["environment"])
        fails = argv[1] == "restart" and self.failures > 0
        self.failures -= argv[1] == "restart"
        if argv[1] == "restart" and not fails:
            assert self.daemon.process is not None
            self.daemon.process.kill()
        return process.Result(argv=tuple(argv), code=int(fails), out="", err="refused" if fails else "")


UNIT = reload.Way(mode=RestartMode.SYSTEMD, unit="containerd.service", replaces=True)


def test_systemd_is_asked_once_and_nobody_is_signalled(
    node: workshop.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workshop.daemon(node.socket, home=node.root / "d") as daemon:
        systemctl = Systemctl(daemon)
        place, first = scene(node), daemon.pid
        monkeypatch.setattr(process, "run", systemctl.run)
        reload.perform(place, containerd, UNIT, Patience(10))
        assert systemctl.calls == [("systemctl", "restart", "containerd.service")]
        assert systemctl.environments == [{"SYSTEMD_IGNORE_CHROOT": "1"}]
        assert daemon.pid != first
        assert daemon.signals() == []


def test_a_unit_that_was_started_too_often_gets_a_second_chance(
    node: workshop.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workshop.daemon(node.socket, home=node.root / "d") as daemon:
        systemctl = Systemctl(daemon, failures=1)
        place = scene(node)
        monkeypatch.setattr(process, "run", systemctl.run)
        reload.perform(place, containerd, UNIT, Patience(10))
        assert [call[1] for call in systemctl.calls] == ["restart", "reset-failed", "restart"]


def test_a_unit_that_does_not_start_is_a_failure(
    node: workshop.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workshop.daemon(node.socket, home=node.root / "d") as daemon:
        systemctl = Systemctl(daemon, failures=5)
        place = scene(node)
        monkeypatch.setattr(process, "run", systemctl.run)
        with pytest.raises(StepFailed) as caught:
            reload.perform(place, containerd, UNIT, Patience(10))
        assert str(caught.value) == "`systemctl restart containerd.service` failed: refused"
        assert caught.value.hint == LOG
        assert len(systemctl.calls) == 3
        assert daemon.signals() == []
        assert os.path.exists(f"/proc/{daemon.pid}")
