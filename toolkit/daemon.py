"""Stay until the pod is stopped. Stopping changes nothing on the node."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from toolkit.log import LOGGER


class Stop:
    """A wish to stop, set by a signal and asked for at safe places."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.signal: signal.Signals | None = None

    def listen(self) -> None:
        """Let SIGTERM and SIGINT set the wish from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
        self._event.set()

    def wait(self) -> signal.Signals:
        """Wait until stopping is wished, and return the signal that said so."""
        while not self._event.wait(timeout=3600):
            continue
        return self.signal or signal.SIGTERM


def stay(stop: Stop) -> None:
    """Keep the process in the foreground until it is told to stop."""
    LOGGER.info("set up; waiting for SIGTERM")
    number = stop.wait()
    LOGGER.info("%s: stopping, the node stays as it is", number.name)
