"""A queue of signals. They are handled outside signal handlers, where every operation is safe."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final

STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_KEPT: Final = (*STOPS, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


class SignalQueue:
    """The received signals. `fd` can be polled; it becomes readable when a signal arrives."""

    def __init__(self) -> None:
        self.fd, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._kept: list[signal.Signals] = []

    def put(self, number: int) -> None:
        """Add a signal as if it had been received."""
        self._kept.append(signal.Signals(number))
        os.write(self._wake, b"\0")

    def listen(self) -> None:
        """Queue every signal from now on, including those that were blocked until now."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in _KEPT:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _KEPT)

    def empty(self) -> None:
        """Read the bytes that make `fd` readable; the signals stay in the queue."""
        os.read(self.fd, 512)

    def taken(self) -> Iterator[signal.Signals]:
        """Remove and yield the signals in the order in which they arrived."""
        while self._kept:
            yield self._kept.pop(0)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._kept.append(signal.Signals(number))


def block_signals() -> None:
    """Block signals until the next program handles them: execve(2) keeps the mask, not handlers."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT)
