"""The report of a sync: what the agent and its children pass to each other as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypedDict, cast

if TYPE_CHECKING:
    from toolkit.agent.nri import NriSettings
    from toolkit.kube.report import Occurrence, ReportSettings

STEP_FAILED: Final = 4
ROLLED_BACK: Final = 6
NOT_ROLLED_BACK: Final = 7
_BY_SIGNAL: Final = 128


class AgentSettings(TypedDict):
    """The settings of the agent itself. Times are in seconds; `bound` is the longest for a sync.

    `refuses` says that containers which request GPUs are refused without the driver, and
    `needs_driver` is why the node is not ready without it, empty if it does not have to be loaded.
    `readiness` is the path of the readiness record, `state` that of the file for the liveness
    probe. `nri` are the settings of the NRI plugin, `report` those of the report to the API server,
    each None without it.
    """

    interval: float
    on_drift: str
    on_exit: str
    grace: float
    daemonset: str
    metrics: str
    bound: float
    refuses: bool
    needs_driver: str
    readiness: str
    nri: NriSettings | None
    report: ReportSettings | None
    state: str


class SyncReport(TypedDict, total=False):
    """The findings and the outcome of a sync of a `kind`.

    `outcome` is one of counters.OUTCOMES and `code` the exit code. After a failure `message`,
    `hint` and `check`, the step that failed, are set. `unready` says why the node is not ready.
    `is_drift` says that a change undid one by others. `pid` is the runtime's process, None if it
    is not watched. `watch` are the directories to watch, each with the names that matter there,
    None for all; `observed_at` is the time of day before they were read. `verified` is the result
    for each handler of a node that is ready. `found` is what discovery found, for the next sync.
    `driver` says that the NVIDIA driver is loaded; one of the
    paths in `signs` exists then. `metrics` is the text for Prometheus. `is_known` says that the API
    server knows the DaemonSet. `seconds` is the duration. `plugin` is the agent's process (PID and
    start) for the next sync, None while its NRI plugin is not registered. `is_exhausted` says that
    the sync failed while the restart budget is used up.
    """

    kind: str
    outcome: str
    code: int
    message: str
    hint: str
    check: str
    ready: bool
    unready: str
    is_drift: bool
    seconds: float
    pid: int | None
    watch: dict[str, list[str] | None]
    observed_at: float
    versions: dict[str, str]
    driver: bool
    signs: list[str]
    verified: dict[str, str]
    counts: dict[str, Any]
    metrics: str
    settings: AgentSettings
    found: dict[str, str]
    is_known: bool
    is_exhausted: bool
    plugin: list[int] | None


def from_json(content: Mapping[str, Any], kind: str = "") -> SyncReport:
    """Return what a process passed on as a report; an empty one if it is not of the `kind`."""
    return cast("SyncReport", content) if not kind or content.get("kind") == kind else {}


def occurrence(report: SyncReport) -> Occurrence | None:
    """Return the Event for what a sync did to the node; None if it found everything in sync."""
    match report["outcome"]:
        case "changed" if report.get("is_drift"):
            return _event("DriftRepaired", "Normal", "changes on the node were undone")
        case "changed":
            return _event("SetUp", "Normal", f"the node is set up: {versions(report)}")
        case "drift":
            return _event("Drift", "Warning", report["unready"] or "the node is not in sync")
        case "failed" if report["code"] < _BY_SIGNAL:
            is_exhausted = bool(report.get("is_exhausted"))
            return failure(report["code"], report["message"], is_exhausted=is_exhausted)
    return None


def failure(code: int, message: str, *, is_exhausted: bool) -> Occurrence:
    """Return the Event for a run that failed with an exit code, perhaps without restart budget."""
    reasons = {ROLLED_BACK: "RolledBack", NOT_ROLLED_BACK: "RollbackFailed"}
    otherwise = "RestartBudgetUsedUp" if is_exhausted else "SyncFailed"
    return _event(reasons.get(code, otherwise), "Warning", message)


def versions(report: SyncReport) -> str:
    """Return the versions of this program and of the runtime as text."""
    known = report.get("versions") or {}
    runtime = f"{known.get('runtime', '')} {known.get('runtime_version', '')}".strip()
    return ", ".join(filter(None, (f"nvidia-toolkit {known.get('tool', '')}".strip(), runtime)))


def _event(reason: str, kind: str, message: str) -> Occurrence:
    return {"reason": reason, "kind": kind, "message": message}
