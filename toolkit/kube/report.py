"""The report to the API server, as JSON values that the agent and its child exchange."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from toolkit.log import LOGGER
from toolkit.settings.layout import RunDir

if TYPE_CHECKING:
    from toolkit.settings.resolve import Settings

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ReportSettings(TypedDict):
    """The objects of a report, and what is reported about them.

    `label` is the key of the label and `condition` the type of the condition, each empty for none.
    `events` says whether Events are sent. `state` is the path of the file for `report_state`.
    """

    label: str
    condition: str
    events: bool
    node: str
    pod: str
    pod_uid: str
    state: str


class Occurrence(TypedDict):
    """An Event. `kind` is Normal or Warning, `reason` one word in CamelCase."""

    reason: str
    kind: str
    message: str


class Report(TypedDict):
    """The content of a report.

    `ready` is whether the node is ready, None to leave label and condition as they are. `reason`
    (one word in CamelCase) and `message` are those of the condition.
    """

    settings: ReportSettings
    ready: bool | None
    reason: str
    message: str
    events: list[Occurrence]


class Result(TypedDict):
    """The result of a report.

    `is_done` says that label and condition are as reported. `error` is why something could not be
    sent, else empty. With `is_refusal` the API server answered, and refused single requests: others
    may be sent. `wait` is after how many seconds there is more to send, None if all was sent.
    """

    is_done: bool
    error: str
    is_refusal: bool
    wait: float | None


def is_wanted(settings: Settings) -> bool:
    """Return whether anything is to be reported."""
    return bool(settings.node_label or settings.node_condition or settings.events)


def settings_of(
    settings: Settings,
    environment: Mapping[str, str] = os.environ,
    account: Path = ACCOUNT,
) -> ReportSettings | None:
    """Return the settings of the report; None if nothing is to be reported, or not from here.

    Outside a pod, or without the pod's token, there is no node to report for.
    """
    if not is_wanted(settings) or not os.path.exists(account / "token"):
        return None
    node = environment.get("NODE_NAME", "")
    if not node:
        LOGGER.warning("the node's state is not reported: NODE_NAME is not set (downward API)")
        return None
    return {
        "label": settings.node_label,
        "condition": settings.node_condition,
        "events": settings.events,
        "node": node,
        "pod": environment.get("POD_NAME") or environment.get("HOSTNAME", ""),
        "pod_uid": environment.get("POD_UID", ""),
        "state": str(RunDir.of(settings.pid_file).report),
    }
