"""The schedule of syncs: soon after a change, else periodically, with back-off after failures.

The module is pure: the clock is a parameter, and nothing waits here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

QUIET: Final = 0.3
"""Seconds without another change before a sync starts, since the writer may not have finished."""
PATIENT: Final = 1.5
"""Seconds after the first change at which a sync starts even if there are more changes."""
CALM: Final = 600.0
"""Seconds without a failure or repair after which the delay is reset."""
_LONGEST_PAUSE: Final = 300.0
_LONGEST_RETRY: Final = 60.0
_SHORT_RETRY: Final = 10.0
_AFTER_HARM: Final = 30.0
_HARM: Final = (6, 7)
_MOST_DOUBLINGS: Final = 16


class Schedule:
    """The schedule of the agent. All times are seconds of `clock`.

    `interval` is the time between periodic syncs. `streak` counts failures and repairs in a row.
    """

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._first: float | None = None
        self._changed = float("inf")
        self._poll = clock() + interval
        self._not_before = 0.0
        self._trouble = 0.0
        self.streak = 0

    @property
    def due(self) -> float:
        """Return the time at which the next sync is due."""
        return max(min(self._changed, self._poll), self._not_before)

    def set_interval(self, interval: float) -> None:
        """Set the interval of periodic syncs."""
        if interval != self._interval:
            self._interval = interval
            self._poll = self._clock() + interval

    def changed(self) -> None:
        """Record a change on the node."""
        now = self._clock()
        self._first = now if self._first is None else self._first
        self._changed = min(now + QUIET, max(self._first + PATIENT, now))

    def wanted(self) -> None:
        """Record that a user requested a sync now."""
        self._changed, self._not_before, self.streak = self._clock(), 0.0, 0

    def began(self) -> None:
        """Record that a sync has started: changes from now on cause another one."""
        self._first, self._changed = None, float("inf")

    def ended(self, *, code: int, is_changed: bool) -> None:
        """Record that a sync has ended, with its exit code and whether it had to change the node.

        The first failure or repair causes no delay. After that the delay doubles, until there was
        none for `CALM` seconds. A failed sync is repeated automatically.
        """
        now = self._clock()
        self._poll = now + self._interval
        if not code and not is_changed:
            if now - self._trouble >= CALM:
                self.streak = 0
            return
        self._trouble = now
        self.streak += 1
        doubled = 2.0 ** min(self.streak - 1, _MOST_DOUBLINGS)
        if code in _HARM:
            self._not_before = self._poll = now + min(_AFTER_HARM * doubled, _LONGEST_PAUSE)
        elif code:
            retry = min(2 * doubled, _LONGEST_RETRY)
            self._poll = min(self._poll, now + retry)
            self._not_before = now + min(retry / 2, _SHORT_RETRY)
        elif self.streak > 1:
            self._not_before = now + min(doubled / 2, _LONGEST_PAUSE)
