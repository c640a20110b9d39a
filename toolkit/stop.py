"""The wish to stop, and how long anything may still be waited for once it is there."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn, TypeAlias

from toolkit import log
from toolkit.errors import Interrupted

GRACE: Final = 8.0
"""For how many seconds a step under way is still waited for once stopping is wished.

With as much again for the way back it stays well below the 30 s that a pod is given to end.
"""

Timeout: TypeAlias = float | Callable[[], float]
"""How long something may take: a number of seconds, or a function that says how many are left."""


class Stop:
    """A wish to stop, set by a signal and asked for at safe places."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._since = 0.0
        self.signal: signal.Signals | None = None

    def listen(self) -> None:
        """Let SIGTERM and SIGINT set the wish from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    @property
    def is_wished(self) -> bool:
        """Tell whether stopping is wished."""
        return self._event.is_set()

    @property
    def since(self) -> float:
        """Return the monotonic time at which it was wished first."""
        return self._since

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            self._since = time.monotonic()
        self._event.set()

    def wait(self) -> signal.Signals:
        """Wait until stopping is wished, and return the signal that said so."""
        while not self._event.wait(timeout=3600):
            continue
        return self.signal or signal.SIGTERM


class Patience:
    """How long something may be waited for: a number of seconds, and less once stopping is wished."""

    def __init__(self, seconds: float, stop: Stop | None = None) -> None:
        self._end = time.monotonic() + seconds
        self._stop = stop

    @property
    def left(self) -> float:
        """Return the seconds that are left, 0 where none are."""
        end = self._end
        if self._stop is not None and self._stop.is_wished:
            end = min(end, self._stop.since + GRACE)
        return max(0.0, end - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Tell whether nothing may be waited for any more."""
        return self.left <= 0

    def pause(self, seconds: float) -> None:
        """Wait a moment, but not longer than may be waited."""
        log.beat()
        time.sleep(min(seconds, self.left))

    def allowing(self, least: float) -> Callable[[], float]:
        """Return what says how long a question that begins now may take: so many seconds in any case."""
        end = time.monotonic() + least
        return lambda: max(self.left, end - time.monotonic())


def countdown(timeout: Timeout) -> Callable[[], float]:
    """Return what says how many seconds are left; a mere number of them counts from now."""
    if callable(timeout):
        return timeout
    end = time.monotonic() + timeout
    return lambda: end - time.monotonic()


def passed(timeout: Timeout, began: float) -> str:
    """Say for how long something was waited for in vain that began at a monotonic time."""
    seconds = time.monotonic() - began if callable(timeout) else timeout
    return f"{round(seconds, 1):g} s"


def end_at_once() -> None:
    """Let SIGTERM and SIGINT end the program wherever it is: for what only looks and changes nothing."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(signal.Signals(number))
