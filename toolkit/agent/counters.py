"""The agent's counters and the outcomes of a sync, as JSON values that agent and child exchange."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from toolkit.agent.report import SyncReport

if TYPE_CHECKING:
    from toolkit.reconcile.context import RunStats

IN_SYNC: Final = "in sync"
CHANGED: Final = "changed"
DRIFT: Final = "drift"
FAILED: Final = "failed"
OUTCOMES: Final = (IN_SYNC, CHANGED, DRIFT, FAILED)
COUNTS: Final = (
    "repairs",
    "restarts",
    "reloads",
    "restarts_avoided",
    "rollbacks",
    "runtime_unavailable_seconds",
)


def initial() -> dict[str, Any]:
    """Return the initial counters of an agent."""
    return {
        "outcomes": dict.fromkeys(OUTCOMES, 0),
        "failed": {},
        **dict.fromkeys(COUNTS, 0),
    }


def after(counts: Mapping[str, Any], report: SyncReport, tally: RunStats) -> dict[str, Any]:
    """Return counters with a sync added: its report, and the statistics of its run.

    A restart counts as avoided if the node was in sync or the runtime only reloaded: the upstream
    installer restarts the runtime each time that it starts.
    """
    outcome = report["outcome"]
    is_repair = outcome == CHANGED and report["is_drift"]
    avoided = outcome == IN_SYNC or (outcome == CHANGED and not tally.restarts)
    added = {
        "repairs": int(is_repair),
        "restarts": tally.restarts,
        "reloads": tally.reloads,
        "restarts_avoided": int(avoided),
        "rollbacks": int(tally.rolled_back),
        "runtime_unavailable_seconds": round(tally.unavailable, 3),
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
        "silent_last": (
            round(tally.unavailable, 3) if tally.restarts else counts.get("silent_last", 0)
        ),
    }


def cut_short(code: int, seconds: float) -> SyncReport:
    """Return the report of a child that exited without one, by exit code (negative: a signal)."""
    status = f"signal {-code}" if code < 0 else f"exit code {code}"
    return {
        **not_started(f"the sync ended with {status} after {seconds:.1f} s"),
        "code": 128 - code if code < 0 else code or 1,
    }


def not_started(problem: str) -> SyncReport:
    """Return the report of a sync that did not take place, so that nothing is known of the node."""
    return {
        "outcome": FAILED,
        "code": 1,
        "message": problem,
        "hint": "",
        "check": "sync",
        "ready": False,
        "unready": problem,
        "is_exhausted": False,
        "metrics": "",  # the metrics of the report before are out of date
    }
