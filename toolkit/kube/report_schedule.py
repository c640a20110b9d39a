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

A restart of the runtime takes less, and so does a new pod. If the label were removed for every such
pause, the scheduler would flap, and a kubelet that restarts in it may refuse pods that run already.
"""
SHORTEST_CHECK: Final = 300.0
"""Seconds between periodic reports, at least: the label may have been changed."""
_FIRST_RETRY: Final = 10.0
_LONGEST_RETRY: Final = 600.0
_CHANGE_RETRY: Final = 60.0
"""Seconds after which a change is sent, at most, although reports failed before it."""
_MOST_DOUBLINGS: Final = 16
_MOST_EVENTS: Final = 16
_NEVER: Final = float("inf")


def chance() -> float:
    """Return a random number from 0 to 1; the module `random` would take memory."""
    return int.from_bytes(os.urandom(2)) / 65535


class _Pause:
    """The pause after failures: 10 s, 20 s, ... up to 600 s, each 50 to 150 % of that.

    A change in it shortens it to 10 to 60 s from the change. The random parts keep nodes from
    coming back all at once.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._failures = 0
        self._until = 0.0
        self._asked_until = 0.0
        self._changed_at = _NEVER
        self._spread = 0.0

    @property
    def end(self) -> float:
        """Return when the next attempt may be made."""
        return min(self._until, max(self._changed_at + self._spread, self._asked_until))

    def changed(self, due: float) -> None:
        """Take over that there is something new to send, which is due at a time."""
        self._changed_at = min(self._changed_at, due)

    def tried(self, now: float) -> None:
        """Take over that an attempt begins, with all that is due."""
        if self._changed_at <= now:
            self._changed_at = _NEVER

    def failed(self, now: float, wait: float = 0.0) -> None:
        """Begin a longer pause, at least the seconds that the API server asks to wait."""
        doubled = _FIRST_RETRY * 2.0 ** min(self._failures, _MOST_DOUBLINGS)
        pause = min(doubled, _LONGEST_RETRY) * (0.5 + self._chance())
        self._failures += 1
        self.limited(now, wait)
        self._until = now + max(pause, wait)
        self._spread = _FIRST_RETRY + (_CHANGE_RETRY - _FIRST_RETRY) * self._chance()
        self._changed_at = max(self._changed_at, now)  # what came since the attempt began

    def limited(self, now: float, wait: float) -> None:
        """Begin a pause that nothing shortens, without a failure; 0 s end the one that there is."""
        self._until = self._asked_until = now + wait

    def succeeded(self, now: float) -> None:
        """End the pause, and begin with the shortest one after the next failure."""
        self._failures = 0
        self.limited(now, 0.0)


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
        self._noted: bool | None = None
        self._reporting: bool | None = None
        self._events: list[Occurrence] = []
        self._sending: list[Occurrence] = []
        self._new_reasons: set[str] = set()
        self._check_at = _NEVER
        self._again_at = _NEVER
        self._pause = _Pause(chance)
        self._node_pause = _Pause(chance)
        self._error = ""

    @property
    def due(self) -> float:
        """Return the time at which the next report is due."""
        node = self._check_at
        if self._is_ready and self._reported is not True:
            node = 0.0
        if not self._is_ready and self._reported is not False:
            node = min(node, self._lost_at + HOLD)
        ends = [max(node, self._node_pause.end), self._again_at]
        if self._events:
            ends.append(0.0)
        return max(min(ends), self._pause.end)

    def observe(self, *, is_ready: bool, why: str, is_harmed: bool = False) -> None:
        """Take over whether the node is ready, and why (not).

        With `is_harmed`, a change was rolled back: that the node is not ready is no pause.
        """
        now, due = self._clock(), self._lost_at + HOLD
        if self._is_ready and not is_ready:
            self._lost_at = now
        if is_harmed and not is_ready:
            self._lost_at = min(self._lost_at, now - HOLD)
        if is_ready is not self._is_ready or due > now >= self._lost_at + HOLD:
            self._changed(now if is_ready else max(self._lost_at + HOLD, now))
        self._is_ready, self._why = is_ready, why

    def _changed(self, due: float) -> None:
        self._pause.changed(due)
        self._node_pause.changed(due)

    def add(self, event: Occurrence) -> None:
        """Add an Event to the next report; the oldest ones are dropped if there are too many.

        The first one for a reason shortens a pause; those that follow are counted in it anyway.
        """
        self._events = [*self._events, event][-_MOST_EVENTS:]
        if event["reason"] not in self._new_reasons:
            self._new_reasons.add(event["reason"])
            self._pause.changed(self._clock())

    def begin(self) -> Report:
        """Return the report to send now; label and condition only if they are due."""
        now = self._clock()
        is_lost = not self._is_ready and now >= self._lost_at + HOLD
        self._reporting = True if self._is_ready else False if is_lost else None
        is_known = self._reporting is self._reported and now < self._check_at
        if is_known or now < self._node_pause.end:
            self._reporting = None
        self._note_transition()
        self._pause.tried(now)
        if self._reporting is not None:
            self._node_pause.tried(now)
        elif not self._is_ready and self._lost_at + HOLD > now:
            self._pause.changed(self._lost_at + HOLD)
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
        report waits. If only the patch of the node was refused, only label and condition wait.
        """
        now, error = self._clock(), str(result.get("error", "no result"))
        is_done, wait = bool(result.get("is_done")), result.get("wait")
        is_node = self._reporting is not None
        if is_node:  # a patch that failed may have been applied
            self._reported = self._reporting if is_done else None
        if error and not result.get("is_refusal"):
            self._pause.failed(now, float(wait or 0.0))
            self._again_at = now
            if "is_done" not in result:  # no process read them, or it died, perhaps before
                self._events = [*self._sending, *self._events][-_MOST_EVENTS:]
        else:
            self._again_at = _NEVER if wait is None else now + float(wait)
            self._end_pauses(now, is_node=is_node, is_done=is_done, is_refused=bool(error))
        if self._check_at == _NEVER:
            self._check_at = now + self._interval * (0.8 + 0.4 * self._chance())
        is_new, self._error = error != self._error, error
        return error if is_new else ""

    def _end_pauses(self, now: float, *, is_node: bool, is_done: bool, is_refused: bool) -> None:
        """Shorten or end the pauses after a report that the API server did not leave unanswered.

        If the limit of requests left nothing to send, it is open whether it would have answered.
        """
        if is_refused or (is_done and (is_node or self._again_at == _NEVER)):
            self._pause.succeeded(now)
            self._new_reasons.clear()
        else:
            self._pause.limited(now, 0.0 if is_done else self._again_at - now)
        if is_node and is_done:
            self._node_pause.succeeded(now)
        elif is_node and is_refused:
            self._node_pause.failed(now)
