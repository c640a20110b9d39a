"""The runtime takes a change up: by SIGHUP, by a restart of its unit, or not at all.

SIGHUP ends containerd, and what starts it again takes its time: under the
usual unit file its socket is dead for 5.3 s, against 0.1 s when systemd is
asked to restart it. Docker and CRI-O reload in place.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Final

from runtimes.model import RuntimeName
from toolkit import owner, process
from toolkit.detect import Scene
from toolkit.errors import NotReloaded, StepFailed
from toolkit.host import Host
from toolkit.log import LOGGER
from toolkit.options import RestartMode

_SYSTEMCTL: Final = {"SYSTEMD_IGNORE_CHROOT": "1"}
_SHORTEST_WAIT: Final = 0.02
_LONGEST_WAIT: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the runtime will be made to take a change up.

    `replaces` tells whether the process is another one afterwards.
    """

    mode: RestartMode
    unit: str | None
    replaces: bool

    def words(self, found: owner.Owner | None) -> str:
        """Say it for people."""
        if self.mode is RestartMode.NONE:
            return "left to you (restart mode none)"
        if self.unit is not None:
            return f"restart {self.unit}"
        return f"SIGHUP to PID {found.pid}" if found else "SIGHUP to the process that owns the socket"


def way(place: Scene, mode: RestartMode) -> Way:
    """Return how this node's runtime takes a change up. Raises StepFailed where the mode cannot work here."""
    reloads = place.desired.runtime is not RuntimeName.CONTAINERD
    if mode is RestartMode.NONE:
        return Way(mode=mode, unit=None, replaces=False)
    unit = place.owner.unit if place.owner else None
    reachable = _reaches_systemd(place.host)
    if mode is RestartMode.SYSTEMD and place.owner is not None:
        if unit is None:
            raise StepFailed(
                f"PID {place.owner.pid} belongs to no systemd service, so restart mode systemd cannot work",
                hint="use --restart-mode signal, or none and restart it yourself",
            )
        if not reachable:
            raise StepFailed(
                "the node's systemd cannot be reached from here, so restart mode systemd cannot work",
                hint="mount the node's root at --host-root, with its /run, and run as root",
            )
    if mode is RestartMode.SYSTEMD or (mode is RestartMode.AUTO and not reloads and unit and reachable):
        return Way(mode=RestartMode.SYSTEMD, unit=unit, replaces=True)
    return Way(mode=RestartMode.SIGNAL, unit=None, replaces=not reloads)


def perform(place: Scene, chosen: Way, executables: frozenset[str], *, timeout: float) -> float:
    """Make the runtime take a change up and wait until it answers again.

    Returns the seconds that passed. Raises StepFailed, or NotReloaded where it
    did not answer within `timeout` seconds.
    """
    before = place.owner
    if before is None:
        raise StepFailed(place.silence)
    begin = time.monotonic()
    if chosen.unit is not None:
        LOGGER.info("restarting %s", chosen.unit)
        result = process.run(
            ["systemctl", "restart", chosen.unit],
            root=place.host.root,
            timeout=timeout,
            environment=_SYSTEMCTL,
        )
        if not result.ok:
            raise StepFailed(f"`systemctl restart {chosen.unit}` failed: {result.err}")
    else:
        LOGGER.info("sending SIGHUP to PID %d (%s)", before.pid, before.executable)
        owner.send(before, signal.SIGHUP)
    _wait(place, before, chosen, executables, deadline=begin + timeout)
    return time.monotonic() - begin


def _wait(
    place: Scene, before: owner.Owner, chosen: Way, executables: frozenset[str], *, deadline: float
) -> None:
    pause = _SHORTEST_WAIT
    last = ""
    while True:
        try:
            now = owner.find(place.socket, executables, timeout=max(0.1, deadline - time.monotonic()))
        except owner.NoOwner as error:
            last = str(error)
        else:
            is_new = (now.pid, now.started) != (before.pid, before.started)
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


def _reaches_systemd(host: Host) -> bool:
    return (
        os.geteuid() == 0
        and host.below("/run/systemd/system").is_dir()
        and host.executable("systemctl") is not None
    )
