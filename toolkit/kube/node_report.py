"""Report the node's state to the API server: a label, a condition and Events.

The agent runs this module as a short-lived process (`toolkit/__main__.py node-report FD`): TLS
would stay in the memory of the agent, and an API server that does not answer must not delay a sync.
The label and the condition are sent in one patch of nodes/status, the resource through which the
API server changes nothing of a Node's spec: neither taints nor whether it is schedulable.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from toolkit import redact
from toolkit.errors import StepError
from toolkit.kube import apiserver, report_state
from toolkit.kube.apiserver import Api, ApiError
from toolkit.kube.report import ACCOUNT, Report, ReportSettings, Result
from toolkit.kube.report_state import ReportState, Series

TRUE: Final = "true"
"""The value of the label. A node that is not ready has no label."""
_REVERTED: Final = "Reverted"
_COMPONENT: Final = "nvidia-toolkit"
_NODE_NAMESPACE: Final = "default"
"""The namespace of Events about an object without a namespace."""
_SECONDS: Final = 10.0
_SHORT_SECONDS: Final = 3.0
_LONGEST_MESSAGE: Final = 1000
_LARGEST: Final = 1 << 20
_PATCH: Final = "application/strategic-merge-patch+json"
_JSON: Final = "application/json"


def send(
    report: Report,
    *,
    timeout: float = _SECONDS,
    is_limited: bool = True,
    environment: Mapping[str, str] = os.environ,
    account: Path = ACCOUNT,
) -> Result:
    """Send a report, as far as the limit on requests allows; nothing is raised.

    `timeout`, in seconds, covers all requests. With `is_limited` false the limit does not apply to
    label and condition.
    """
    settings, path = report["settings"], Path(report["settings"]["state"])
    state = report_state.load(path)
    _note(state, report)
    try:
        report_state.save(path, state)  # whatever becomes of this process
    except StepError as error:
        # Without a memory every pod that restarts would send the same Events again.
        state.series, problem = [], error.message
    else:
        problem = ""
    result: Result = {
        "is_done": report["ready"] is None,
        "error": "",
        "is_refusal": False,
        "wait": None,
    }
    try:
        api = apiserver.find(environment, account, timeout=timeout)
        _send_node(api, state, report, result, is_limited=is_limited)
        _send_series(api, state, settings, result)
    except ApiError as error:
        result["error"], result["wait"], result["is_refusal"] = str(error), error.wait, False
    if not problem:
        try:
            report_state.save(path, state)
        except StepError as error:
            problem = error.message
    if problem:  # the limit is not remembered, so the next request must wait
        result["error"], result["is_refusal"] = result["error"] or problem, False
    return result


def withdraw(
    settings: ReportSettings,
    message: str,
    *,
    environment: Mapping[str, str] = os.environ,
    account: Path = ACCOUNT,
) -> str:
    """Remove the label, and set the condition to False, before the node is reverted.

    Returns why that failed, else an empty text. It takes a few seconds at most.
    """
    report: Report = {
        "settings": settings,
        "ready": False,
        "reason": _REVERTED,
        "message": message,
        "events": [],
    }
    result = send(
        report,
        timeout=_SHORT_SECONDS,
        is_limited=False,
        environment=environment,
        account=account,
    )
    return "" if result["is_done"] else result["error"] or "not sent"


# --- the node -------------------------------------------------------------------------------------


def _send_node(
    api: Api, state: ReportState, report: Report, result: Result, *, is_limited: bool
) -> None:
    """Patch label and condition. Raises ApiError if the API server cannot be reached."""
    settings = report["settings"]
    if report["ready"] is None or not (settings["label"] or settings["condition"]):
        result["is_done"] = True
        return
    if not state.take(report_state.uptime()) and is_limited:
        result["wait"] = state.wait()
        return
    try:
        _patch_node(api, state, report)
        result["is_done"] = True
    except ApiError as error:
        # A refusal of this request says nothing about the others.
        if error.status not in {400, 403, 404, 422}:
            raise
        result["error"], result["is_refusal"] = str(error), True


def _patch_node(api: Api, state: ReportState, report: Report) -> None:
    settings, is_ready = report["settings"], bool(report["ready"])
    node = apiserver.checked_name(settings["node"])
    patch: dict[str, Any] = {}
    if settings["label"]:
        patch["metadata"] = {"labels": {settings["label"]: TRUE if is_ready else None}}
    if settings["condition"]:
        state.condition = _condition(state.condition, report)
        patch["status"] = {"conditions": [state.condition]}
    answer = apiserver.send(
        api, "PATCH", f"/api/v1/nodes/{node}/status", patch, content_type=_PATCH
    )
    metadata = answer.get("metadata") if isinstance(answer, dict) else None
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    has_label = isinstance(labels, dict) and labels.get(settings["label"]) == TRUE
    is_this = isinstance(metadata, dict) and metadata.get("name") == node
    if not is_this or (settings["label"] and has_label is not is_ready):
        raise ApiError(f"{api} answers PATCH of the node {node} with something else", status=422)


def _condition(last: Mapping[str, str], report: Report) -> dict[str, str]:
    """Return the condition. Its times change only with it, so a repeated patch changes nothing."""
    now = _time(time.time())
    content = {
        "type": report["settings"]["condition"],
        "status": "True" if report["ready"] else "False",
        "reason": report["reason"],
        "message": _message(report["message"]),
    }
    if all(last.get(name) == value for name, value in content.items()):
        return dict(last)
    same = all(last.get(name) == content[name] for name in ("type", "status"))
    since = last["lastTransitionTime"] if same and "lastTransitionTime" in last else now
    return {**content, "lastHeartbeatTime": now, "lastTransitionTime": since}


# --- Events ---------------------------------------------------------------------------------------


def _note(state: ReportState, report: Report) -> None:
    """Add what happened to the series of the node and of the pod."""
    settings = report["settings"]
    if not settings["events"]:
        state.series = []
        return
    # A policy lets no pod send Events about another one, and this one may be new.
    state.series = [
        each for each in state.series if each.kind == "Node" or each.uid == settings["pod_uid"]
    ]
    # Events of a node are looked up by its name as the UID, as the kubelet writes them.
    objects = [("Node", settings["node"], settings["node"])]
    if settings["pod"] and settings["pod_uid"]:
        objects.append(("Pod", settings["pod"], settings["pod_uid"]))
    for event in report["events"]:
        for about in objects:
            state.note(event["reason"], event["kind"], _message(event["message"]), about=about)


def _send_series(api: Api, state: ReportState, settings: ReportSettings, result: Result) -> None:
    """Send the series that are due. Raises ApiError if the API server cannot be reached."""
    for series in state.series:
        now = report_state.uptime()
        if (due := series.due()) > now:
            wait = None if due == float("inf") else due - now
        elif state.take(now, report_state.RESERVE):
            wait = _send_one(api, state, series, settings, result)
        else:
            wait = state.wait(report_state.RESERVE)
        if wait is not None:
            result["wait"] = wait if result["wait"] is None else min(wait, result["wait"])


def _send_one(
    api: Api, state: ReportState, series: Series, settings: ReportSettings, result: Result
) -> float | None:
    """Send a series; return after how many seconds to try again, None if it was sent."""
    sent_at = report_state.uptime()
    try:
        _put_event(api, state, series, settings)
    except ApiError as error:
        if error.status not in {400, 403, 404, 409, 422}:
            raise
        series.sent_at, series.tries = sent_at, series.tries + 1
        result["error"], result["is_refusal"] = result["error"] or str(error), True
        return series.due() - sent_at
    series.sent_at, series.unsent, series.tries = sent_at, 0, series.tries + 1
    return None


def _put_event(api: Api, state: ReportState, series: Series, settings: ReportSettings) -> None:
    """Create or update the Event of a series: the other one if it expired or exists already."""
    attempts = [(_create, 409), (_update, 404)]
    if series.count > series.unsent:  # the API server knows the series
        attempts.reverse()
    (first, otherwise), (second, _) = attempts
    try:
        first(api, series, settings)
    except ApiError as error:
        if error.status != otherwise:
            raise
        state.take(report_state.uptime())  # there is one: Events leave a reserve
        second(api, series, settings)


def _update(api: Api, series: Series, _: ReportSettings) -> None:
    change = {
        "count": series.count,
        "lastTimestamp": _time(series.last),
        "message": series.message,
    }
    target = apiserver.path_of(
        api, "/api/v1", "events", series.event, namespace=_namespace(api, series)
    )
    apiserver.send(api, "PATCH", target, change, content_type=_PATCH)


def _create(api: Api, series: Series, settings: ReportSettings) -> None:
    namespace = _namespace(api, series)
    about = {"kind": series.kind, "apiVersion": "v1", "name": series.name, "uid": series.uid}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": series.event, "namespace": namespace},
        "involvedObject": about if series.kind == "Node" else {**about, "namespace": namespace},
        "reason": series.reason,
        "type": series.type,
        "message": series.message,
        "count": series.count,
        "firstTimestamp": _time(series.first),
        "lastTimestamp": _time(series.last),
        "source": {"component": _COMPONENT, "host": settings["node"]},
        "reportingComponent": _COMPONENT,
        "reportingInstance": settings["pod"] or settings["node"],
    }
    target = apiserver.path_of(api, "/api/v1", "events", None, namespace=namespace)
    apiserver.send(api, "POST", target, event, content_type=_JSON)


def _namespace(api: Api, series: Series) -> str:
    return _NODE_NAMESPACE if series.kind == "Node" else api.namespace


def _message(text: str) -> str:
    """Return a text that may leave the node: without secrets, on one line, not too long."""
    line = " ".join(redact.text(text).split())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[: _LONGEST_MESSAGE - 3]}..."


def _time(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def main() -> int:
    """Send the report in the file of the descriptor that is the second argument.

    The result replaces it there.
    """
    fd = int(sys.argv[2])
    result = send(json.loads(os.pread(fd, _LARGEST, 0)))
    data = json.dumps({"kind": "report", **result}).encode()
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)
    return 0
