"""The runtime takes a change up: by SIGHUP, by a restart of its unit, or not at all.

SIGHUP ends containerd, and what starts it again takes its time: under the
usual unit file its socket is dead for 5.3 s, against 0.1 s when systemd is
asked to restart it. Docker reloads in place. CRI-O says so, but goes on with
what it had for new pods until it is started again.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Final

from runtimes.adapter import Adapter, HangUp
from toolkit import owner, process
from toolkit.detect import Scene
from toolkit.errors import NotReloaded, StepFailed
from toolkit.log import LOGGER
from toolkit.options import RestartMode

_SYSTEMCTL: Final = {"SYSTEMD_IGNORE_CHROOT": "1"}
_SHORTEST_WAIT: Final = 0.02
_LONGEST_WAIT: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the runtime will be made to take a change up.

    `replaces` tells whether the process is another one afterwards. `obstacle`
    says why it cannot be done.
    """

    mode: RestartMode
    unit: str | None
    replaces: bool
    obstacle: str = ""

    def words(self, found: owner.Owner | None) -> str:
        """Say it for people."""
        if self.mode is RestartMode.NONE:
            return "left to you (restart mode none)"
        if self.unit is not None:
            return f"restart {self.unit}"
        return f"SIGHUP to PID {found.pid}" if found else "the process that owns the socket is told"


def way(place: Scene, adapter: Adapter, mode: RestartMode) -> Way:
    """Return how this node's runtime takes a change up."""
    if mode is RestartMode.NONE:
        return Way(mode=mode, unit=None, replaces=False)
    found = place.owner
    ends = adapter.on_hangup is HangUp.ENDS
    if found is None:
        return Way(mode=mode, unit=None, replaces=ends, obstacle=place.silence)
    obstacle = _no_systemd(place, found)
    by_unit = Way(mode=RestartMode.SYSTEMD, unit=found.unit, replaces=True, obstacle=obstacle)
    by_signal = Way(mode=RestartMode.SIGNAL, unit=None, replaces=ends)
    reloads = adapter.on_hangup is HangUp.RELOADS
    signal_it = mode is RestartMode.SIGNAL or (mode is RestartMode.AUTO and (reloads or (obstacle and ends)))
    return by_signal if signal_it else by_unit


def revival(place: Scene, unit: str | None) -> Way | None:
    """Return how a runtime that died is started again; None where it did not die, or nobody can."""
    if unit is None or place.owner is not None or _unreachable(place):
        return None
    state = process.run(["systemctl", "is-active", unit], root=place.host.root, environment=_SYSTEMCTL)
    if state.out.strip() not in {"failed", "activating"}:
        return None  # somebody stopped it, and may have meant it
    return Way(mode=RestartMode.SYSTEMD, unit=unit, replaces=True)


def perform(place: Scene, adapter: Adapter, chosen: Way, *, timeout: float) -> float:
    """Make the runtime take a change up and wait until it answers again.

    Returns the seconds that passed. Raises StepFailed, or NotReloaded where it
    did not answer within `timeout` seconds.
    """
    before = place.owner
    if chosen.obstacle:
        raise StepFailed(chosen.obstacle)
    begin = time.monotonic()
    if chosen.unit is not None:
        _restart(place, chosen.unit, timeout=timeout)
    elif before is not None:
        LOGGER.info("sending SIGHUP to PID %d (%s)", before.pid, before.executable)
        owner.send(before, signal.SIGHUP)
        if adapter.on_hangup is HangUp.FORGETS:
            LOGGER.warning("%s uses the change for new pods only once it is restarted", adapter.name)
    _wait(place, adapter, before, chosen, deadline=begin + timeout)
    return time.monotonic() - begin


def _restart(place: Scene, unit: str, *, timeout: float) -> None:
    LOGGER.info("restarting %s", unit)
    result = _systemctl(place, "restart", unit, timeout=timeout)
    if not result.ok:
        # systemd refuses a unit that was started too often in a short time (StartLimitBurst), and then the
        # runtime is *down*. Those starts were not ours to count: forget them and try once more.
        LOGGER.warning("%s did not start (%s); trying once more", unit, result.err)
        _systemctl(place, "reset-failed", unit, timeout=timeout)
        result = _systemctl(place, "restart", unit, timeout=timeout)
    if not result.ok:
        raise StepFailed(
            f"`systemctl restart {unit}` failed: {result.err}",
            hint=f"`journalctl -u {unit}` on the node says why; `nvidia-toolkit revert` gives the files back",
        )


def _systemctl(place: Scene, verb: str, unit: str, *, timeout: float) -> process.Result:
    return process.run(
        ["systemctl", verb, unit], root=place.host.root, timeout=timeout, environment=_SYSTEMCTL
    )


def _wait(
    place: Scene, adapter: Adapter, before: owner.Owner | None, chosen: Way, *, deadline: float
) -> None:
    pause = _SHORTEST_WAIT
    last = ""
    while True:
        try:
            now = owner.find(
                place.socket,
                adapter.executables,
                speaks_first=adapter.speaks_first,
                timeout=max(0.1, deadline - time.monotonic()),
            )
        except owner.NoOwner as error:
            last = str(error)
        else:
            is_new = before is None or (now.pid, now.started) != (before.pid, before.started)
            if is_new or not chosen.replaces:
                LOGGER.info("PID %d answers on %s", now.pid, place.socket)
                return
            last = f"PID {now.pid} is still the process from before"
        if time.monotonic() >= deadline:
            raise NotReloaded(
                f"the runtime does not answer as it should: {last}",
                hint="look at the runtime's own log; `nvidia-toolkit revert` gives the files back",
            )
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_WAIT)


def _no_systemd(place: Scene, found: owner.Owner) -> str:
    """Return why the process cannot be restarted by systemd; empty where it can."""
    if found.unit is None:
        return f"PID {found.pid} belongs to no systemd service (use --restart-mode signal or none)"
    return _unreachable(place)


def _unreachable(place: Scene) -> str:
    """Return why the node's systemd cannot be asked; empty where it can."""
    host = place.host
    if os.geteuid() != 0:
        return "only root can ask the node's systemd"
    if not host.below("/run/systemd/system").is_dir() or host.executable("systemctl") is None:
        return f"the node's systemd is not seen below {host.root} (its /run has to be mounted there)"
    return ""
