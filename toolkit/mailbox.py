"""Signals, kept until there is time for them: outside of a handler anything may be done."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final

STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_KEPT: Final = (*STOPS, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


class Mailbox:
    """What signals came. `fd` can be waited for, and has something to read when one did."""

    def __init__(self) -> None:
        self.fd, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._kept: list[signal.Signals] = []

    def put(self, number: int) -> None:
        """Leave a signal as if it had come."""
        self._kept.append(signal.Signals(number))
        os.write(self._wake, b"\0")

    def listen(self) -> None:
        """Keep every signal from now on, those that were held back until now included."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in _KEPT:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _KEPT)

    def empty(self) -> None:
        """Take what makes `fd` readable; the signals stay."""
        os.read(self.fd, 512)

    def taken(self) -> Iterator[signal.Signals]:
        """Yield the signals that came, oldest first, each once."""
        while self._kept:
            yield self._kept.pop(0)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._kept.append(signal.Signals(number))


def hold_back() -> None:
    """Let signals wait until the next program listens: a mask outlives execve(2), a handler does not."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT)
