"""What happened on the way: how long each phase took, restarts made, and where it was when it failed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from toolkit import log
from toolkit.log import LOGGER

_SHORT: Final = 0.005
_WORDS: Final = {
    "ask": "asking the runtime how it is",
    "preflight": "looking for what could be in the way",
    "begin": "keeping what is there",
    "install": "installing the toolkit",
    "apply": "writing the configuration",
    "reload": "waiting until the runtime answers again",
    "verify": "waiting for the runtime's word",
    "commit": "noting that it is done",
}
"""What a person at a terminal is told to be under way."""


class Tally:
    """A running account of one task. `phase` is the one under way, or the one that failed.

    `restarts` and `reloads` count what the runtime was made to do, `silent` is
    for how many seconds it did not answer meanwhile, and `went_back` tells that
    a change was taken back.
    """

    def __init__(self) -> None:
        self.phase = "look"
        self.seconds: dict[str, float] = {}
        self.restarts = 0
        self.reloads = 0
        self.silent = 0.0
        self.went_back = False

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Account the time within to a phase."""
        self.phase = phase
        began = time.monotonic()
        try:
            with log.under_way(_WORDS.get(phase, phase)):
                yield
        finally:
            took = time.monotonic() - began
            self.seconds[phase] = self.seconds.get(phase, 0.0) + took
            LOGGER.debug("%s took %.3f s", phase, took)

    def told(self, seconds: float, *, replaces: bool) -> None:
        """Note that the runtime was told, and after how many seconds it answered again."""
        if replaces:
            self.restarts += 1
            self.silent += seconds
        else:
            self.reloads += 1

    def words(self) -> str:
        """Say where the time went."""
        return ", ".join(f"{phase} {took:.2f} s" for phase, took in self.seconds.items() if took >= _SHORT)
