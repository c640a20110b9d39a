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
from toolkit.stop import Patience

_SYSTEMCTL: Final = {"SYSTEMD_IGNORE_CHROOT": "1"}
_SHORTEST_WAIT: Final = 0.02
_LONGEST_WAIT: Final = 0.25
_LEAST: Final = 0.1
_NOTICED: Final = 10.0
"""Seconds within which a distribution that watches its drop-ins starts the daemon anew (k0s waits for 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the runtime will be made to take a change up.

    `replaces` tells whether the process is another one afterwards. `obstacle`
    says why it cannot be done. `by_itself` tells that the distribution notices the
    change and starts the daemon anew; the unit is restarted where it does not.
    """

    mode: RestartMode
    unit: str | None
    replaces: bool
    obstacle: str = ""
    by_itself: bool = False

    def is_revival(self, place: Scene) -> bool:
        """Tell whether it starts a runtime again that is down."""
        return place.owner is None and self.unit is not None

    def words(self, found: owner.Owner | None) -> str:
        """Say it for people."""
        if self.mode is RestartMode.NONE:
            return "left to you (restart mode none)"
        if self.by_itself:
            return "the distribution starts it anew by itself"
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
    by_itself = place.desired.reach.watches and mode is RestartMode.AUTO
    by_unit = Way(
        mode=RestartMode.SYSTEMD, unit=found.unit, replaces=True, obstacle=obstacle, by_itself=by_itself
    )
    by_signal = Way(mode=RestartMode.SIGNAL, unit=None, replaces=ends)
    reloads = adapter.on_hangup is HangUp.RELOADS
    signal_it = mode is RestartMode.SIGNAL or (mode is RestartMode.AUTO and (reloads or (obstacle and ends)))
    return by_signal if signal_it else by_unit


def is_told(adapter: Adapter, way: Way) -> bool:
    """Tell whether a way makes the runtime use a change, and not merely read it."""
    forgets = adapter.on_hangup is HangUp.FORGETS and way.mode is RestartMode.SIGNAL
    return way.mode is not RestartMode.NONE and not forgets


def revival(
    place: Scene, unit: str | None, patience: Patience, *, even_if_stopped: bool = False
) -> Way | None:
    """Return how a runtime that died is started again; None where it did not die, or nobody can.

    `even_if_stopped` is for one that we ended ourselves: whatever systemd thinks
    of its unit, it shall be restarted.
    """
    if unit is None or place.owner is not None or _unreachable(place):
        return None
    if even_if_stopped:
        return Way(mode=RestartMode.SYSTEMD, unit=unit, replaces=True)
    state = _systemctl(place, "is-active", unit, patience=patience)
    if state.out.strip() not in {"failed", "activating"}:
        return None  # somebody stopped it, and may have meant it
    return Way(mode=RestartMode.SYSTEMD, unit=unit, replaces=True)


def perform(place: Scene, adapter: Adapter, chosen: Way, patience: Patience) -> float:
    """Make the runtime take a change up and wait until it answers again.

    Returns the seconds that passed. Raises StepFailed, or NotReloaded where it
    did not answer before patience was over.
    """
    before = place.owner
    if chosen.obstacle:
        raise StepFailed(chosen.obstacle)
    begin = time.monotonic()
    if before is not None and chosen.by_itself and _is_replaced(place, adapter, before, patience):
        LOGGER.info("the distribution started %s anew by itself", adapter.name)
    elif chosen.unit is not None:
        _restart(place, chosen.unit, patience)
    elif before is not None:
        before = _hang_up(place, adapter, before, patience)
        if adapter.on_hangup is HangUp.FORGETS:
            LOGGER.warning("%s uses the change for new pods only once it is restarted", adapter.name)
    _wait(place, adapter, before, chosen, patience)
    return time.monotonic() - begin


def _is_replaced(place: Scene, adapter: Adapter, before: owner.Owner, patience: Patience) -> bool:
    """Wait a little for another process to answer in place of one; tell whether one does."""
    soon = Patience(min(_NOTICED, patience.left))
    while before.is_alive():
        if soon.is_over:
            return False
        patience.pause(_LONGEST_WAIT)
    return True


def _hang_up(place: Scene, adapter: Adapter, before: owner.Owner, patience: Patience) -> owner.Owner:
    """Send SIGHUP to the process that owns the socket *now*; return it.

    It may have been started again by somebody else since it was looked at, and
    may not have read the change then.
    """
    while True:
        try:
            LOGGER.info("sending SIGHUP to PID %d (%s)", before.pid, before.executable)
            owner.send(before, signal.SIGHUP)
        except StepFailed as error:
            if patience.is_over:
                raise
            LOGGER.info("%s; looking for its successor", error.message)
            before = _answering(place, adapter, patience)
        else:
            return before


def _answering(place: Scene, adapter: Adapter, patience: Patience) -> owner.Owner:
    """Return the process that owns the socket, once one does. Raises NoOwner when patience is over."""
    while True:
        try:
            return owner.find(
                place.socket,
                adapter.executables,
                speaks_first=adapter.speaks_first,
                timeout=patience.allowing(_LEAST),
            )
        except owner.NoOwner:
            if patience.is_over:
                raise
        patience.pause(_LONGEST_WAIT)


def _restart(place: Scene, unit: str, patience: Patience) -> None:
    LOGGER.info("restarting %s", unit)
    if place.desired.reach.is_made_anew:
        # The unit is a whole distribution (rke2-server), and counts as started long after its runtime has.
        _systemctl(place, "reset-failed", unit, patience=patience)
        result = _systemctl(place, "restart", "--no-block", unit, patience=patience)
        if not result.ok:
            raise _not_restarted(unit, result)
        return
    result = _systemctl(place, "restart", unit, patience=patience)
    if not result.ok:
        # systemd refuses a unit that was started too often in a short time (StartLimitBurst), and then the
        # runtime is *down*. Those starts were not ours to count: forget them and try once more.
        LOGGER.warning("%s did not start (%s); trying once more", unit, result.err)
        _systemctl(place, "reset-failed", unit, patience=patience)
        result = _systemctl(place, "restart", unit, patience=patience)
    if not result.ok:
        raise _not_restarted(unit, result)


def _not_restarted(unit: str, result: process.Result) -> StepFailed:
    return StepFailed(
        f"`systemctl restart {unit}` failed: {result.err}",
        hint=f"`journalctl -u {unit}` on the node says why",
    )


def _systemctl(place: Scene, *words: str, patience: Patience) -> process.Result:
    return process.run(
        ["systemctl", *words],
        root=place.host.root,
        timeout=patience.allowing(_LEAST),
        environment=_SYSTEMCTL,
    )


def _wait(
    place: Scene, adapter: Adapter, before: owner.Owner | None, chosen: Way, patience: Patience
) -> None:
    pause = _SHORTEST_WAIT
    last = ""
    while True:
        try:
            now = owner.find(
                place.socket,
                adapter.executables,
                speaks_first=adapter.speaks_first,
                timeout=patience.allowing(_LEAST),
            )
        except owner.NoOwner as error:
            last = str(error)
        else:
            is_new = before is None or (now.pid, now.started) != (before.pid, before.started)
            if is_new or not chosen.replaces:
                LOGGER.info("PID %d answers on %s", now.pid, place.socket)
                return
            last = f"PID {now.pid} is still the process from before"
        if patience.is_over:
            raise NotReloaded(
                f"the runtime does not answer as it should: {last}",
                hint="look at the runtime's own log",
            )
        patience.pause(pause)
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
