"""How often a runtime may be restarted: counted on disk, so that no loop of pods restarts it on and on.

The file lies on a tmpfs and goes with the boot; times are those of
CLOCK_BOOTTIME, which nobody sets.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from toolkit import files, kernel
from toolkit.errors import NodeNotUnderstood
from toolkit.log import LOGGER

_FREE: Final = 2
_MOST: Final = 64
_LONGEST: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noted:
    """What the file says: when the runtime was restarted, which restart did not help, which change failed."""

    restarts: list[float] = field(default_factory=list)
    vain: str = ""
    failed: str = ""
    times: int = 0
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """At most `most` restarts within `window` seconds; 0 is no limit. `path` is where they are noted."""

    path: Path
    most: int
    window: float

    def refusal(self) -> str:
        """Return why the runtime may not be restarted now; empty where it may."""
        spent = self.spent()
        if not self.most or len(spent) < self.most:
            return ""
        wait = spent[-self.most] + self.window - _now()
        return (
            f"the runtime was restarted {len(spent)} times within {self.window:g} s,"
            f" and --restart-budget is {self.most}: not again for {wait:.0f} s"
        )

    def spend(self) -> None:
        """Note a restart that is about to happen. Raises StepFailed."""
        noted = self._noted()
        self._note(replace(noted, restarts=[*noted.restarts, _now()], vain=""))

    def spent(self) -> list[float]:
        """Return when, within the window, it was restarted."""
        return self._noted().restarts

    def was_in_vain(self, mark: str) -> bool:
        """Tell whether the last restart did not help, with these files and this process (see `note_vain`)."""
        return self._noted().vain == mark

    def note_vain(self, mark: str) -> None:
        """Note that a restart did not help. `mark` names the files and the process. Raises StepFailed."""
        self._note(replace(self._noted(), vain=mark))

    def put_off(self, mark: str) -> str:
        """Return why a change that was taken back before is not made again yet; empty where it may be.

        A second time is up to the budget alone. Then each wait is twice the one before, up to a day:
        what fails always would cost two restarts in every window, for ever.
        """
        noted = self._noted()
        if not self.most or noted.failed != mark or noted.times < _FREE:
            return ""
        wait = noted.at + min(self.window * 2 ** (noted.times - 1), _LONGEST) - _now()
        if wait <= 0:
            return ""
        return (
            f"this very change was taken back {noted.times} times: not again for {wait:.0f} s"
            " (--restart-budget 0 makes it all the same)"
        )

    def note_failed(self, mark: str) -> None:
        """Note that a change had to be taken back. `mark` names it. Raises StepFailed."""
        noted = self._noted()
        times = noted.times + 1 if noted.failed == mark else 1
        self._note(replace(noted, failed=mark, times=times, at=_now()))

    def _note(self, noted: _Noted) -> None:
        content = {"format": 1, "boot": kernel.boot_id(), **asdict(noted)}
        files.make_directory(self.path.parent)
        files.put(self.path, json.dumps(content).encode() + b"\n")

    def _noted(self) -> _Noted:
        """Return what is noted of this boot, with the restarts within the window."""
        try:
            seen = files.read(self.path)
            content: Any = json.loads(seen.data) if seen else {"boot": "", "restarts": []}
            noted = _Noted(
                restarts=[float(moment) for moment in content["restarts"]],
                vain=str(content.get("vain", "")),
                failed=str(content.get("failed", "")),
                times=min(int(content.get("times", 0)), _MOST),
                at=float(content.get("at", 0)),
            )
            is_ours = content["boot"] == kernel.boot_id()
        except (NodeNotUnderstood, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            LOGGER.warning("%s cannot be read, so earlier restarts are not counted: %s", self.path, error)
            return _Noted()
        now = _now()
        if not is_ours or noted.at > now:
            noted = replace(noted if is_ours else _Noted(), failed="")
        spent = sorted(moment for moment in noted.restarts if now - self.window < moment <= now)
        return replace(noted, restarts=spent)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
