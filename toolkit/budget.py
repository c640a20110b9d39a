"""How often a runtime may be restarted: counted on disk, so that no loop of pods restarts it on and on.

The file lies on a tmpfs and goes with the boot; times are those of
CLOCK_BOOTTIME, which nobody sets.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from toolkit import files, kernel
from toolkit.errors import NodeNotUnderstood
from toolkit.log import LOGGER


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
        self._note([*self.spent(), _now()])

    def spent(self) -> list[float]:
        """Return when, within the window, it was restarted."""
        return self._noted()[0]

    def was_in_vain(self, mark: str) -> bool:
        """Tell whether the last restart did not help, with these files and this process (see `note_vain`)."""
        return self._noted()[1] == mark

    def note_vain(self, mark: str) -> None:
        """Note that a restart did not help. `mark` names the files and the process. Raises StepFailed."""
        self._note(self.spent(), vain=mark)

    def _note(self, restarts: list[float], **more: str) -> None:
        content = json.dumps({"format": 1, "boot": kernel.boot_id(), "restarts": restarts, **more})
        files.make_directory(self.path.parent)
        files.put(self.path, content.encode() + b"\n")

    def _noted(self) -> tuple[list[float], str]:
        """Return when, within the window, it was restarted, and what the last restart did not help."""
        try:
            seen = files.read(self.path)
            content = json.loads(seen.data) if seen else {"boot": "", "restarts": []}
            times = [float(moment) for moment in content["restarts"]]
            vain = str(content.get("vain", ""))
            is_ours = content["boot"] == kernel.boot_id()
        except (NodeNotUnderstood, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            LOGGER.warning("%s cannot be read, so earlier restarts are not counted: %s", self.path, error)
            return [], ""
        now = _now()
        spent = sorted(moment for moment in times if is_ours and now - self.window < moment <= now)
        return spent, vain if is_ours else ""


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
