"""The restart budget: a limit on how often the runtime is restarted, also by a crash-looping pod.

Restarts are counted in a file on a tmpfs, which is lost on reboot. Times are those of
CLOCK_BOOTTIME, which cannot be set.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

from runtimes.dataclass import asdict, dataclass, field, replace
from toolkit.log import LOGGER
from toolkit.node import files, procfs, trust

_FREE: Final = 2
_MOST: Final = 64
_LARGEST: Final = 1 << 20
_LONGEST: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _History:
    """The content of the file.

    `restarts` are the times of restarts, `vain` the mark of a restart that had no effect, `failed`
    the mark of the change that was rolled back last, `times` how often it was, and `at` when.
    """

    restarts: list[float] = field(default_factory=list)
    vain: str = ""
    failed: str = ""
    times: int = 0
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit of `most` restarts within `window` seconds; 0 for no limit. `path` is the file."""

    path: Path
    most: int
    window: float

    def restart_refusal(self) -> str:
        """Return why the runtime may not be restarted now; empty if it may."""
        spent = self.spent()
        if not self.most or len(spent) < self.most:
            return ""
        wait = spent[-self.most] + self.window - uptime()
        return (
            f"the runtime was restarted {len(spent)} times within {self.window:g} s,"
            f" and --restart-budget is {self.most}: next restart allowed in {wait:.0f} s"
        )

    def spend(self) -> None:
        """Record a restart about to happen. Raises StepError if the file cannot be written."""
        history = self._read()
        self._write(replace(history, restarts=[*history.restarts, uptime()], vain=""))

    def sweep(self) -> None:
        """Remove the temporary file of a killed process."""
        files.sweep(self.path, None)

    def spent(self) -> list[float]:
        """Return the times of the restarts within the window."""
        return self._read().restarts

    def remaining(self) -> int | None:
        """Return how many restarts the budget still allows within the window; None: no limit."""
        return max(self.most - len(self.spent()), 0) if self.most else None

    def was_ineffective(self, mark: str) -> bool:
        """Return whether the last restart had no effect (see `record_ineffective_restart`)."""
        return self._read().vain == mark

    def record_ineffective_restart(self, mark: str) -> None:
        """Record that a restart had no effect. `mark` identifies the files and the process.

        Raises StepError if the file cannot be written.
        """
        self._write(replace(self._read(), vain=mark))

    def retry_refusal(self, mark: str) -> str:
        """Return why a change that was rolled back must wait; empty if it may be tried again.

        A second attempt is limited by the budget alone. After that each delay is twice the one
        before, up to a day: a change that always fails would otherwise cost two restarts in every
        window.
        """
        history = self._read()
        if not self.most or history.failed != mark or history.times < _FREE:
            return ""
        wait = history.at + min(self.window * 2 ** (history.times - 1), _LONGEST) - uptime()
        if wait <= 0:
            return ""
        return (
            f"this change was rolled back {history.times} times: next attempt in {wait:.0f} s"
            " (use --restart-budget=0 to retry now)"
        )

    def note_failed(self, mark: str) -> None:
        """Record the rollback of the change `mark`. Raises StepError if it cannot be written."""
        history = self._read()
        times = history.times + 1 if history.failed == mark else 1
        self._write(replace(history, failed=mark, times=times, at=uptime()))

    def _write(self, history: _History) -> None:
        content = {"format": 1, "boot": procfs.boot_id(), **asdict(history)}
        files.make_directory(self.path.parent)
        files.put(self.path, json.dumps(content).encode() + b"\n")

    def _read(self) -> _History:
        """Return the content of the file for this boot, with the restarts within the window."""
        try:
            data = trust.read_own(self.path, _LARGEST)
            content: Any = json.loads(data) if data is not None else {"boot": "", "restarts": []}
            history = _History(
                restarts=[float(moment) for moment in content["restarts"]],
                vain=str(content.get("vain", "")),
                failed=str(content.get("failed", "")),
                times=min(int(content.get("times", 0)), _MOST),
                at=float(content.get("at", 0)),
            )
            is_this_boot = content["boot"] == procfs.boot_id()
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
        ) as error:
            why = error.strerror if isinstance(error, OSError) else error
            LOGGER.warning(
                "%s cannot be read, so earlier restarts are not counted: %s", self.path, why
            )
            return _History()
        now = uptime()
        if not is_this_boot or history.at > now:
            history = replace(history if is_this_boot else _History(), failed="")
        spent = sorted(moment for moment in history.restarts if now - self.window < moment <= now)
        return replace(history, restarts=spent)


def uptime() -> float:
    """Return the time since the boot in seconds, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
