"""The memory of reports to the API server: the condition, series of Events, and a request limit.

The file lies beside the PID file, so that a pod that restarts again and again sends no more than
one that stays. It ends with the boot. Only a short-lived process imports this module.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any, Final

from runtimes.dataclass import asdict, dataclass, field
from toolkit.errors import StepError
from toolkit.node import files, procfs, trust

FORMAT: Final = 1
MOST: Final = 20
"""Requests that may be sent at once."""
PER_HOUR: Final = 40
"""Requests per hour after that: with `MOST` at most 60 in any hour."""
RESERVE: Final = 5
"""Requests that Events leave for the label and the condition."""
_HOUR: Final = 3600.0
_FIRST_PAUSE: Final = 60.0
_LONGEST_PAUSE: Final = 600.0
_MOST_SERIES: Final = 32
_LARGEST: Final = 1 << 20
_LONGEST_NODE: Final = 200


@dataclass(slots=True, kw_only=True)
class Series:
    """Events for one reason about one object, which the API server keeps as one with a count.

    `kind` is Node or Pod, `name` and `uid` those of that object, `event` the name of the Event.
    `count` are the occurrences until now, `unsent` how many of them the API server does not know,
    `tries` how many requests were sent. `first` and `last` are in seconds since the epoch,
    `sent_at` is the time of the last request, in seconds since the boot.
    """

    reason: str
    type: str
    message: str
    kind: str
    name: str
    uid: str
    event: str
    count: int = 0
    unsent: int = 0
    tries: int = 0
    first: float = 0.0
    last: float = 0.0
    sent_at: float = 0.0

    def due(self) -> float:
        """Return when the series may be sent, in seconds since the boot; infinity if all is sent.

        The pauses between requests double, from one minute to ten.
        """
        if not self.unsent:
            return float("inf")
        pause = min(_FIRST_PAUSE * 2.0 ** min(self.tries - 1, 10), _LONGEST_PAUSE)
        return self.sent_at + pause if self.tries else 0.0


@dataclass(slots=True, kw_only=True)
class ReportState:
    """The content of the file.

    `tokens` are the requests that may be sent now, as of `at`, in seconds since the boot.
    `condition` is the last condition of the node, as the API has it.
    """

    tokens: float = float(MOST)
    at: float = 0.0
    condition: dict[str, str] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)

    def take(self, now: float, reserve: int = 0) -> bool:
        """Take the right to send one request; return False if fewer than `reserve` would remain."""
        passed = max(now - self.at, 0.0) if self.at else 0.0
        self.tokens = min(self.tokens + passed * PER_HOUR / _HOUR, float(MOST))
        self.at = now
        if self.tokens < 1 + reserve:
            return False
        self.tokens -= 1
        return True

    def wait(self, reserve: int = 0) -> float:
        """Return the seconds until `take` succeeds, counted from its last call."""
        return max((1 + reserve - self.tokens) * _HOUR / PER_HOUR, 0.0)

    def note(self, reason: str, kind: str, message: str, *, about: tuple[str, str, str]) -> Series:
        """Count an occurrence at this moment and return its series.

        `kind` is Normal or Warning, `about` the kind, the name and the UID of the object.
        """
        moment = time.time()
        for each in self.series:
            if (each.reason, (each.kind, each.name, each.uid)) == (reason, about):
                break
        else:
            named = f"{reason}/{'/'.join(about)}/{moment}".encode()
            prefix = about[1][:_LONGEST_NODE].rstrip(".-")
            each = Series(
                reason=reason,
                type=kind,
                message=message,
                kind=about[0],
                name=about[1],
                uid=about[2],
                event=f"{prefix}.{hashlib.sha256(named).hexdigest()[:16]}",
                first=moment,
            )
            self.series.append(each)
        each.message, each.last = message, moment
        each.count += 1
        each.unsent += 1
        return each

    def prune(self) -> None:
        """Forget series that ended an hour ago: the API server drops such Events, too."""
        oldest = time.time() - _HOUR
        kept = sorted((each for each in self.series if each.last > oldest), key=lambda s: s.last)
        self.series = kept[-_MOST_SERIES:]


def load(path: Path) -> ReportState:
    """Return the content of the file; an empty state if there is none of this boot.

    A damaged file counts as an exhausted limit: it may not become a way around it.
    """
    now = uptime()
    exhausted = ReportState(tokens=0.0, at=now)
    try:
        data = trust.read_own(path, _LARGEST)
        content: Any = {"boot": ""} if data is None else json.loads(data)
        if content["boot"] != procfs.boot_id():
            return ReportState()
        series = [Series(**each) for each in content["series"]]
        condition = {str(key): str(text) for key, text in content["condition"].items()}
        tokens, at = float(content["tokens"]), float(content["at"])
        is_sound = content["format"] == FORMAT and 0 <= tokens <= MOST and 0 <= at <= now
        is_sound = is_sound and all(0 <= each.sent_at <= now for each in series)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return exhausted
    if not is_sound:
        return exhausted
    return ReportState(tokens=tokens, at=at, condition=condition, series=series)


def save(path: Path, state: ReportState) -> None:
    """Replace the file. Raises StepError, also if other users control its directory."""
    if problem := trust.place_problem(path.parent):
        raise StepError(f"{path} is not written: {problem}")
    state.prune()
    content = {"format": FORMAT, "boot": procfs.boot_id(), **asdict(state)}
    files.make_directory(path.parent)
    files.put(path, json.dumps(content).encode() + b"\n", mode=0o600)


def uptime() -> float:
    """Return the time since the boot in seconds, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
