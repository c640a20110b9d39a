"""The schedule of the agent's reports to the API server, and their content.

The module is pure: clock and chance are parameters. The agent imports it, so it imports little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from toolkit.kube.report import Occurrence, Report, ReportSettings

VERIFIED: Final = "Verified"
NOT_READY: Final = "NotReady"
HOLD: Final = 60.0
"""Seconds that a node may be not ready before label and condition say so.

A restart of the runtime takes less, and so does a new pod. Whoever removes the label for every such
pause makes the scheduler flap, and a kubelet that restarts in it may refuse pods that run already.
"""
SHORTEST_CHECK: Final = 300.0
"""Seconds between periodic reports, at least: somebody may have changed the label."""
_FIRST_RETRY: Final = 10.0
_LONGEST_RETRY: Final = 600.0
_MOST_DOUBLINGS: Final = 16
_MOST_EVENTS: Final = 16
_NEVER: Final = float("inf")


def chance() -> float:
    """Return a random number from 0 to 1; the module `random` would take memory."""
    return int.from_bytes(os.urandom(2)) / 65535


class ReportSchedule:
    """The schedule of reports. All times are seconds of `clock`.

    `settings` are those of the report, `interval` the seconds between checks of the node.
    """

    def __init__(
        self,
        settings: ReportSettings,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = chance,
    ) -> None:
        self.settings = settings
        self._interval = max(interval, SHORTEST_CHECK)
        self._clock = clock
        self._chance = chance
        self._is_ready = False
        self._why = ""
        self._reason = ""
        self._lost_at = clock()
        self._reported: bool | None = None
        self._is_unsent = False
        self._noted: bool | None = None
        self._reporting: bool | None = None
        self._events: list[Occurrence] = []
        self._sending: list[Occurrence] = []
        self._check_at = _NEVER
        self._again_at = _NEVER
        self._not_before = 0.0
        self._failures = 0
        self._error = ""

    @property
    def due(self) -> float:
        """Return the time at which the next report is due."""
        ends = [self._check_at, self._again_at]
        if self._events:
            ends.append(0.0)
        if self._is_ready and self._reported is not True:
            ends.append(0.0)
        if not self._is_ready and self._reported is not False:
            ends.append(self._lost_at + HOLD)
        return max(min(ends), self._not_before)

    def observe(self, *, is_ready: bool, why: str, is_harmed: bool = False) -> None:
        """Take over whether the node is ready, and why (not).

        With `is_harmed`, a change was rolled back: that the node is not ready is no pause.
        """
        if self._is_ready and not is_ready:
            self._lost_at = self._clock()
        if is_harmed and not is_ready:
            self._lost_at = min(self._lost_at, self._clock() - HOLD)
        self._is_ready, self._why = is_ready, why

    def add(self, event: Occurrence) -> None:
        """Add an Event to the next report; the oldest ones are dropped if there are too many."""
        self._events = [*self._events, event][-_MOST_EVENTS:]

    def begin(self) -> Report:
        """Return the report to send now; label and condition only if they are due."""
        now = self._clock()
        is_lost = not self._is_ready and now >= self._lost_at + HOLD
        self._reporting = True if self._is_ready else False if is_lost else None
        if self._reporting is self._reported and now < self._check_at and not self._is_unsent:
            self._reporting = None
        self._note_transition()
        self._sending, self._events = self._events, []
        self._again_at = _NEVER
        if self._reporting is not None or now >= self._check_at:
            self._check_at = _NEVER
        return {
            "settings": self.settings,
            "ready": self._reporting,
            "reason": VERIFIED if self._is_ready else NOT_READY,
            "message": self._why,
            "events": self._sending,
        }

    def _note_transition(self) -> None:
        """Add an Event if the report says that readiness was lost, or is there again."""
        noted, self._noted = (
            self._noted,
            self._noted if self._reporting is None else self._reporting,
        )
        if noted is True and self._noted is False:
            self.add({"reason": NOT_READY, "kind": "Warning", "message": self._why})
        elif noted is False and self._noted is True:
            self.add({"reason": "Ready", "kind": "Normal", "message": "the node is ready again"})

    def end(self, result: Mapping[str, Any]) -> str:
        """Take over the result of the report (`report.Result`); return an error to log.

        An error is returned once, until there is another one or none. After a failure the next
        report waits: 10 s, 20 s, ... up to 600 s, at least as long as the API server asks for, and
        each node by another half more or less, so that they do not come back all at once.
        """
        now, error = self._clock(), str(result.get("error", "no result"))
        if self._reporting is not None:
            self._is_unsent = not result.get("is_done")
            self._reported = self._reported if self._is_unsent else self._reporting
        wait = result.get("wait")
        if error:
            doubled = _FIRST_RETRY * 2.0 ** min(self._failures, _MOST_DOUBLINGS)
            pause = min(doubled, _LONGEST_RETRY) * (0.5 + self._chance())
            self._failures += 1
            self._not_before = self._again_at = now + max(pause, float(wait or 0.0))
            if not result:  # the process died, perhaps before it read them
                self._events = [*self._sending, *self._events][-_MOST_EVENTS:]
        else:
            self._failures = 0
            self._again_at = _NEVER if wait is None else now + float(wait)
            self._not_before = self._again_at if not result.get("is_done") else now
        if self._check_at == _NEVER:
            self._check_at = now + self._interval * (0.8 + 0.4 * self._chance())
        is_new, self._error = error != self._error, error
        return error if is_new else ""
