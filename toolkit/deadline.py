"""Cancellation by signals, and deadlines that become shorter when the program is asked to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection
from types import FrameType
from typing import Final, NoReturn, TypeAlias

from toolkit import log
from toolkit.errors import Interrupted

GRACE: Final = 8.0
"""Seconds that a running step may still take after the program was asked to stop.

Together with a rollback, which may take as long again, this is less than the grace period of a pod,
30 s.
"""

_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
"""The signals that terminate a process that does not handle them."""

Timeout: TypeAlias = float | Callable[[], float]
"""A time limit: a number of seconds, or a function that returns the seconds left."""


class Cancellation:
    """A request to stop, set by a signal and checked where the program can stop safely."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._since = 0.0
        self.signal: signal.Signals | None = None
        self.kept: list[signal.Signals] = []

    def listen(self, *, keep: Collection[signal.Signals] = ()) -> None:
        """Handle the terminating signals as a request to stop from now on.

        SIGUSR1 and the signals in `keep` are only recorded in `kept`, in order. An ignored signal
        stays ignored, as nohup(1) requires for SIGHUP.
        """
        for number in _ENDING:
            if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                is_kept = number is signal.SIGUSR1 or number in keep
                signal.signal(number, self._keep if is_kept else self._note)
        # The parent process may have blocked them until there are handlers.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)

    @property
    def is_requested(self) -> bool:
        """Return whether the program was asked to stop."""
        return self._event.is_set()

    @property
    def since(self) -> float:
        """Return the monotonic time of the first request to stop."""
        return self._since

    def _keep(self, number: int, _frame: FrameType | None) -> None:
        self.kept.append(signal.Signals(number))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            self._since = time.monotonic()
        self._event.set()


class Deadline:
    """A deadline `seconds` from now, or `GRACE` seconds after a request to stop, if earlier."""

    def __init__(self, seconds: float, stop: Cancellation | None = None) -> None:
        self._end = time.monotonic() + seconds
        self._stop = stop

    @property
    def left(self) -> float:
        """Return the seconds left; 0 if the deadline has passed."""
        end = self._end
        if self._stop is not None and self._stop.is_requested:
            end = min(end, self._stop.since + GRACE)
        return max(0.0, end - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Return whether the deadline has passed."""
        return self.left <= 0

    def pause(self, seconds: float) -> None:
        """Sleep for some seconds, but not beyond the deadline."""
        log.tick()
        time.sleep(min(seconds, self.left))

    def at_least(self, least: float) -> Callable[[], float]:
        """Return a timeout function for a request that starts now, of at least `least` seconds."""
        end = time.monotonic() + least
        return lambda: max(self.left, end - time.monotonic())


def remaining(timeout: Timeout) -> Callable[[], float]:
    """Return a function for the seconds left of a timeout; a number of seconds starts now."""
    if callable(timeout):
        return timeout
    end = time.monotonic() + timeout
    return lambda: end - time.monotonic()


def elapsed(timeout: Timeout, began: float) -> str:
    """Return the duration of a wait that timed out, as text, for a message.

    `began` is the monotonic time at which the wait started.
    """
    seconds = time.monotonic() - began if callable(timeout) else timeout
    return f"{round(seconds, 1):g} s"


def end_at_once() -> None:
    """Make SIGTERM and SIGINT raise Interrupted at once, for commands that change nothing."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(signal.Signals(number))
