"""The report of a sync: what the agent and its children pass to each other as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict, cast

if TYPE_CHECKING:
    from toolkit.agent.nri import NriSettings


class AgentSettings(TypedDict):
    """The settings of the agent itself. Times are in seconds; `bound` is the longest for a sync.

    `refuses` says that containers which request GPUs are refused without the driver, and
    `needs_driver` is why the node is not ready without it, empty if it does not have to be loaded.
    `readiness` is the path of the readiness record, `state` that of the file for the liveness
    probe. `nri` are the settings of the NRI plugin, None without it.
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
    state: str


class SyncReport(TypedDict, total=False):
    """The findings and the outcome of a sync of a `kind`.

    `outcome` is one of counters.OUTCOMES and `code` the exit code. After a failure `message`,
    `hint` and `check`, the step that failed, are set. `unready` says why the node is not ready.
    `is_drift` says that a change undid somebody else's. `pid` is the runtime's process, None if it
    is not watched. `watch` are the directories to watch, each with the names that matter there,
    None for all. `verified` is the result for each handler of a node that is ready. `found` is what
    discovery found, for the next sync. `driver` says that the NVIDIA driver is loaded; one of the
    paths in `signs` exists then. `metrics` is the text for Prometheus. `is_known` says that the API
    server knows the DaemonSet. `seconds` is the duration. `plugin` is the agent's process (PID and
    start) for the next sync, None while its NRI plugin is not registered.
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
    versions: dict[str, str]
    driver: bool
    signs: list[str]
    verified: dict[str, str]
    counts: dict[str, Any]
    metrics: str
    settings: AgentSettings
    found: dict[str, str]
    is_known: bool
    plugin: list[int] | None


def from_json(content: Mapping[str, Any], kind: str = "") -> SyncReport:
    """Return what a process passed on as a report; an empty one if it is not of the `kind`."""
    return cast("SyncReport", content) if not kind or content.get("kind") == kind else {}
