"""How a daemon stands: its counts and the last round, as plain values that pass from process to process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from toolkit.tally import Tally

IN_SYNC: Final = "in sync"
CHANGED: Final = "changed"
DRIFT: Final = "drift"
FAILED: Final = "failed"
OUTCOMES: Final = (IN_SYNC, CHANGED, DRIFT, FAILED)
COUNTS: Final = ("repairs", "restarts", "reloads", "restarts_avoided", "rollbacks", "silent_seconds")


def fresh() -> dict[str, Any]:
    """Return the counts of a daemon that has done nothing yet."""
    return {
        "outcomes": dict.fromkeys(OUTCOMES, 0),
        "failed": {},
        **dict.fromkeys(COUNTS, 0),
    }


def after(counts: Mapping[str, Any], report: Mapping[str, Any], tally: Tally) -> dict[str, Any]:
    """Return the counts once a round is added to them.

    A restart counts as avoided where the node was in sync, or the runtime took a
    change up in place: the upstream installer restarts it each time that it starts.
    """
    outcome = report["outcome"]
    is_repair = outcome == CHANGED and report["is_drift"]
    avoided = outcome == IN_SYNC or (outcome == CHANGED and not tally.restarts)
    added = {
        "repairs": int(is_repair),
        "restarts": tally.restarts,
        "reloads": tally.reloads,
        "restarts_avoided": int(avoided),
        "rollbacks": int(tally.went_back),
        "silent_seconds": round(tally.silent, 3),
    }
    failed = dict(counts["failed"])
    if report["check"]:
        failed[report["check"]] = failed.get(report["check"], 0) + 1
    outcomes = {**counts["outcomes"], outcome: counts["outcomes"].get(outcome, 0) + 1}
    return {
        **{name: counts[name] + more for name, more in added.items()},
        "outcomes": outcomes,
        "failed": failed,
        "last": {"time": time.time(), "seconds": report["seconds"], "outcome": outcome},
        "silent_last": round(tally.silent, 3) if tally.restarts else counts.get("silent_last", 0),
    }


def cut_short(code: int, seconds: float) -> dict[str, Any]:
    """Return the report of a child that left none."""
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    why = f"a round ended with {how} after {seconds:.1f} s"
    return {
        "outcome": FAILED,
        "code": 128 - code if code < 0 else code or 1,
        "message": why,
        "hint": "",
        "check": "round",
        "ready": False,
        "unready": why,
        "metrics": "",  # what they say is not so any more
    }
