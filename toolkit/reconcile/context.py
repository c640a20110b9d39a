"""The context of one run: its settings, its deadline, and statistics of what it did."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from runtimes.adapter import Adapter
from runtimes.dataclass import dataclass, field
from toolkit import log
from toolkit.deadline import Cancellation, Deadline
from toolkit.errors import Contradiction
from toolkit.log import LOGGER
from toolkit.settings.layout import RunDir
from toolkit.settings.options import RestartMode
from toolkit.settings.resolve import Settings
from toolkit.state.restart_budget import Budget

_SHORT: Final = 0.005
_WORDS: Final = {
    "health": "checking the runtime",
    "preflight": "running preflight checks",
    "begin": "recording the current state",
    "install": "installing the toolkit",
    "apply": "writing the configuration",
    "reload": "waiting for the runtime to answer",
    "verify": "verifying the runtime",
    "smoke_test": "starting a container through each handler",
    "commit": "committing the change",
}
"""The progress line that a terminal shows for each phase."""


class RunStats:
    """Statistics of one run.

    `phase` is the current phase, or the one that failed. `seconds` is the time spent in each
    phase. `restarts` and `reloads` count how often the runtime was restarted or reloaded in
    place. `unavailable` is for how many seconds it did not answer during restarts, and
    `rolled_back` whether a change was rolled back. `began` is when each phase began last, in
    seconds since 1970.
    """

    def __init__(self) -> None:
        self.phase = "observe"
        self.seconds: dict[str, float] = {}
        self.restarts = 0
        self.reloads = 0
        self.unavailable = 0.0
        self.rolled_back = False
        self.began: dict[str, float] = {}

    @property
    def phase(self) -> str:
        """The current phase, or the one that failed; every log record carries it."""
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        self._phase = name
        log.set_phase(name)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Enter a phase and add the time that the block takes to it."""
        self.phase = phase
        self.began[phase] = time.time()
        started = time.monotonic()
        try:
            with log.under_way(_WORDS.get(phase, phase)):
                yield
        finally:
            elapsed = time.monotonic() - started
            self.seconds[phase] = self.seconds.get(phase, 0.0) + elapsed
            LOGGER.debug("%s took %.3f s", phase, elapsed)

    def note_reload(self, seconds: float, *, replaces: bool) -> None:
        """Count a restart (`replaces`) or reload, after which the runtime answered in `seconds`."""
        if replaces:
            self.restarts += 1
            self.unavailable += seconds
        else:
            self.reloads += 1

    def words(self) -> str:
        """Return the time spent in each phase as text; phases of a few milliseconds are omitted."""
        return ", ".join(
            f"{phase} {seconds:.2f} s"
            for phase, seconds in self.seconds.items()
            if seconds >= _SHORT
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The settings of a run, the adapter of its runtime, its cancellation and its statistics.

    `is_leaving` is true for an uninstall. `plugin` is the process of the agent (PID and start)
    whose NRI plugin is registered with the runtime, None if none is. `config_content` replaces the
    content of the root config in a plan that is not applied. `unselected` says why no runtime could
    be selected; `adapter` is that of any runtime then, for what the node has whatever runs on it.
    """

    settings: Settings
    adapter: Adapter
    stop: Cancellation
    stats: RunStats = field(default_factory=RunStats)
    is_leaving: bool = False
    plugin: Sequence[int] | None = None
    config_content: bytes | None = None
    unselected: Contradiction | None = None

    @property
    def mode(self) -> RestartMode:
        """Return the configured restart mode."""
        return RestartMode(self.settings.restart_mode)

    @property
    def budget(self) -> Budget:
        """Return the restart budget, whose counter file lies beside the PID file."""
        return budget_of(self.settings)

    @property
    def readiness(self) -> Path:
        """Return the path of the readiness record."""
        return self.settings.readiness

    @property
    def created_directories(self) -> Path:
        """Return the path of the file that lists the directories created by an installation."""
        return RunDir.of(self.settings.pid_file).directories

    def deadline(self) -> Deadline:
        """Return a deadline of `--reload-timeout` from now for the runtime to load a change."""
        return Deadline(self.settings.reload_timeout, self.stop)


def budget_of(settings: Settings) -> Budget:
    """Return the restart budget, whose counter file lies beside the PID file."""
    return Budget(
        path=RunDir.of(settings.pid_file).restarts,
        most=settings.restart_budget,
        window=settings.restart_window,
    )
