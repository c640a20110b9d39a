"""When the next look at the node is due: soon after a change, now and then without, less often in a fight.

Pure: a clock is given, and nothing is waited for here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

QUIET: Final = 0.3
"""For how many seconds nothing may change before a change is looked at: who writes may not have ended."""
PATIENT: Final = 1.5
"""After how many seconds a change is looked at although more of them keep coming."""
CALM: Final = 600.0
"""After how many seconds without trouble an old one is forgotten."""
_LONGEST_PAUSE: Final = 300.0
_LONGEST_RETRY: Final = 60.0
_SHORT_RETRY: Final = 10.0
_AFTER_HARM: Final = 30.0
_HARM: Final = (6, 7)
_MOST_DOUBLINGS: Final = 16


class Pace:
    """Decides when to look next.

    Times are seconds of `clock`; `interval` is that of looks without a reason.
    `streak` is how often in a row there was trouble.
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
        """Return when the next look is due."""
        return max(min(self._changed, self._poll), self._not_before)

    def look_every(self, interval: float) -> None:
        """Look without a reason this often from now on."""
        if interval != self._interval:
            self._interval = interval
            self._poll = self._clock() + interval

    def changed(self) -> None:
        """Note that something changed."""
        now = self._clock()
        self._first = now if self._first is None else self._first
        self._changed = min(now + QUIET, max(self._first + PATIENT, now))

    def wanted(self) -> None:
        """Note that somebody asked for a look now."""
        self._changed, self._not_before, self.streak = self._clock(), 0.0, 0

    def began(self) -> None:
        """Note that a look has begun: what changes from now on is another reason."""
        self._first, self._changed = None, float("inf")

    def ended(self, *, code: int, is_changed: bool) -> None:
        """Note how a look ended: by its exit code, and whether the node had to be changed.

        The first trouble costs nothing; after that the pause doubles, until there
        was none for a while. What failed is tried again by itself.
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
