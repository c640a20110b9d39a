"""A short-lived child that does one round: it may import what it likes, and its memory goes with it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from toolkit import handover, log

_CHUNK: Final = 65536
_DEFAULTS: Final = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCHLD,
    signal.SIGPIPE,
)  # fmt: skip


class Errand:
    """A child at work. `fd` has its log to read; `began` is a monotonic time."""

    def __init__(self, kind: str, arguments: Sequence[str], lock: int, given: Mapping[str, Any]) -> None:
        """Start the child. Raises OSError where that cannot be done now."""
        self.kind = kind
        self.began = time.monotonic()
        self._rest = b""
        self._report = handover.paper(given)
        self.fd, told = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(self.fd, False)
            argv = [*handover.interpreter("toolkit"), "round", f"--kind={kind}", *arguments]
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            theirs = {0: nothing, handover.LOCK: lock, handover.REPORT: self._report, handover.LOG: told}
            try:
                self.pid = os.posix_spawn(
                    argv[0],
                    argv,
                    os.environ,
                    file_actions=[(os.POSIX_SPAWN_DUP2, ours, number) for number, ours in theirs.items()],
                    setsigmask=(),
                    setsigdef=_DEFAULTS,
                )
            finally:
                os.close(nothing)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(told)

    def relay(self) -> None:
        """Tell on what it has told since this was asked last, line by line."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.fd, _CHUNK):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    log.relay(line)

    def signal(self, number: signal.Signals) -> None:
        """Pass a signal on to it. It is our child and not waited for yet, so the PID is its own."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def report(self) -> dict[str, Any]:
        """Return what it has put down in the end; empty where it did not get that far."""
        found = handover.read(self._report)
        return found if found.get("kind") == self.kind else {}

    def close(self) -> None:
        """Let go of its files."""
        os.close(self.fd)
        os.close(self._report)
