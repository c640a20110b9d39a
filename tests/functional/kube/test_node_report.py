"""The report of the node's state, against HTTPS servers that take, refuse, lose and stall it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from tests.support.kubernetes import TOKEN, Api, Certificates, Speech, serving, status_of
from toolkit.agent import child
from toolkit.agent.child import Worker
from toolkit.kube import apiserver, node_report, report_state
from toolkit.kube.report import Occurrence, Report, ReportSettings, Result
from toolkit.kube.report_state import MOST, PER_HOUR, RESERVE

LABEL: Final = "nvidia-toolkit.io/ready"
CONDITION: Final = "nvidia-toolkit.io/Ready"
NODE: Final = "PATCH /api/v1/nodes/node-1/status"
ON_NODE: Final = "POST /api/v1/namespaces/default/events"
ON_POD: Final = "POST /api/v1/namespaces/gpu/events"
SENT: Final[Result] = {"is_done": True, "error": "", "is_refusal": False, "wait": None}
DRIFT: Final[Occurrence] = {"reason": "DriftRepaired", "kind": "Normal", "message": "undone"}


class Taking(dict[str, tuple[int, object]]):
    """The answers of an API server that takes every Event, and knows whether the node is ready."""

    def __missing__(self, target: str) -> tuple[int, object]:
        if "/events" in target:
            return (201 if target.startswith("POST") else 200), {"metadata": {"name": "event"}}
        raise KeyError(target)


def metadata(*, ready: bool) -> dict[str, Any]:
    """Return a Node's metadata as the API server answers a patch."""
    labels = {"kubernetes.io/hostname": "node-1"} | ({LABEL: "true"} if ready else {})
    return {"kind": "PartialObjectMetadata", "metadata": {"name": "node-1", "labels": labels}}


@dataclass
class Reporter:
    """Sends reports to a server with one service account and one file of what was reported."""

    account: Path
    certificate: Path
    state: Path
    changes: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> ReportSettings:
        made: dict[str, Any] = {
            "label": LABEL,
            "condition": CONDITION,
            "events": True,
            "node": "node-1",
            "pod": "toolkit-x7k2p",
            "pod_uid": "0e1f",
            "state": str(self.state),
        }
        return cast("ReportSettings", made | self.changes)

    def report(self, *events: Occurrence, ready: bool | None = True, message: str = "") -> Report:
        return {
            "settings": self.settings(),
            "ready": ready,
            "reason": "Verified" if ready else "NotReady",
            "message": message,
            "events": list(events),
        }

    @contextmanager
    def at(self, speech: Speech) -> Iterator[dict[str, str]]:
        with serving(speech, self.certificate) as port:
            yield {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}

    def send(
        self,
        speech: Speech,
        *events: Occurrence,
        ready: bool | None = True,
        message: str = "",
        timeout: float = 10,
    ) -> Result:
        with self.at(speech) as environment:
            result = node_report.send(
                self.report(*events, ready=ready, message=message),
                timeout=timeout,
                environment=environment,
                account=self.account,
            )
        assert TOKEN not in json.dumps(result)
        assert TOKEN not in self.state.read_text("utf-8")
        return result


@pytest.fixture
def reporter(account: Path, certificates: Certificates, tmp_path: Path) -> Reporter:
    return Reporter(account, certificates.good, tmp_path / "run/report.json")


def taking(answers: Mapping[str, tuple[int, object]] | None = None, *, ready: bool = True) -> Api:
    return Api(Taking({NODE: (200, metadata(ready=ready))} | dict(answers or {})))


def error(result: Mapping[str, Any]) -> str:
    """Return an error without the port."""
    head, colon, rest = str(result["error"]).partition("127.0.0.1:")
    return head + (f"127.0.0.1{rest.lstrip('0123456789')}" if colon else "")


# --- label and condition --------------------------------------------------------------------------


def test_a_ready_node_gets_label_and_condition_in_one_patch_of_its_status(
    reporter: Reporter,
) -> None:
    api = taking()
    result = reporter.send(api, message="nvidia-toolkit 1, containerd 2")
    assert result == SENT
    [(target, patch)] = api.sent
    assert target == NODE
    [condition] = patch.pop("status")["conditions"]
    assert patch == {"metadata": {"labels": {LABEL: "true"}}}
    assert condition.pop("lastHeartbeatTime") == condition.pop("lastTransitionTime")
    assert condition == {
        "type": CONDITION,
        "status": "True",
        "reason": "Verified",
        "message": "nvidia-toolkit 1, containerd 2",
    }
    [(_, headers)] = api.asked
    assert headers["Content-Type"] == "application/strategic-merge-patch+json"
    assert headers["Accept"].startswith("application/json;as=PartialObjectMetadata;")


def test_a_node_that_is_not_ready_loses_the_label(reporter: Reporter) -> None:
    api = taking(ready=False)
    assert reporter.send(api, ready=False, message="no driver")["is_done"]
    [(_, patch)] = api.sent
    assert patch["metadata"] == {"labels": {LABEL: None}}
    assert patch["status"]["conditions"][0]["status"] == "False"


def test_the_same_report_is_the_same_patch_so_that_nothing_is_written(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = taking()
    now = 1_800_000_000.0
    for message in ("a", "a", "b"):
        now += 300
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert reporter.send(api, message=message)["is_done"]
    first, same, other = [patch["status"]["conditions"][0] for _, patch in api.sent]
    assert same == first
    assert other["lastTransitionTime"] == first["lastTransitionTime"]
    assert other["lastHeartbeatTime"] > first["lastHeartbeatTime"]


@pytest.mark.parametrize(
    ("changes", "keys"),
    [({"condition": ""}, {"metadata"}), ({"label": ""}, {"status"})],
)
def test_either_of_them_can_be_left_out(
    reporter: Reporter, changes: dict[str, Any], keys: set[str]
) -> None:
    reporter.changes = changes
    api = taking()
    assert reporter.send(api)["is_done"]
    assert {key for _, patch in api.sent for key in patch} == keys


def test_with_neither_nothing_is_patched(reporter: Reporter) -> None:
    reporter.changes = {"label": "", "condition": ""}
    api = taking()
    assert reporter.send(api) == SENT
    assert api.sent == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(metadata(ready=False), id="the label was dropped"),
        pytest.param({}, id="nothing"),
        pytest.param(b"<html>", id="html"),
        pytest.param({"metadata": {"name": "node-2", "labels": {LABEL: "true"}}}, id="another"),
        pytest.param({"metadata": {"name": "node-1", "labels": []}}, id="no labels"),
    ],
)
def test_an_answer_that_does_not_show_the_label_is_no_success(
    reporter: Reporter, answer: object
) -> None:
    result = reporter.send(Api(Taking({NODE: (200, answer)})), DRIFT)
    assert not result["is_done"]
    assert error(result) == "127.0.0.1 answers PATCH of the node node-1 with something else"


@pytest.mark.parametrize("code", [403, 404, 422])
def test_a_refused_patch_keeps_no_event_back(reporter: Reporter, code: int) -> None:
    api = Api(Taking({NODE: (code, status_of(code, "Forbidden"))}))
    result = reporter.send(api, DRIFT)
    assert (result["is_done"], result["is_refusal"], result["wait"]) == (False, True, None)
    assert error(result).startswith(f"127.0.0.1 answers {NODE} with {code} ")
    assert [target for target, _ in api.sent] == [NODE, ON_NODE, ON_POD]


def test_a_refused_event_is_no_reason_to_send_no_label(reporter: Reporter) -> None:
    result = reporter.send(taking({ON_POD: (403, status_of(403, "Forbidden"))}), DRIFT)
    assert (result["is_done"], result["is_refusal"]) == (True, True)
    assert result["wait"] == pytest.approx(60)


def test_a_refusal_before_the_server_goes_away_is_not_the_last_word(reporter: Reporter) -> None:
    refused = (403, status_of(403, "Forbidden"))
    result = reporter.send(Api(Taking({NODE: refused, ON_NODE: (503, b"")})), DRIFT)
    assert (result["is_done"], result["is_refusal"]) == (False, False)
    assert error(result).startswith(f"127.0.0.1 answers {ON_NODE} with 503")


@pytest.mark.parametrize("code", [401, 409, 429, 500, 503])
def test_a_server_with_troubles_of_its_own_gets_one_request(reporter: Reporter, code: int) -> None:
    api = Api(Taking({NODE: (code, b"")}), headers={"Retry-After": "17"})
    result = reporter.send(api, DRIFT)
    assert (result["is_done"], result["is_refusal"], result["wait"]) == (False, False, 17.0)
    assert len(api.sent) == 1
    # The Event is not lost.
    api = taking()
    assert reporter.send(api)["error"] == ""
    assert [target for target, _ in api.sent] == [NODE, ON_NODE, ON_POD]


@pytest.mark.parametrize(
    "text", ["-5", "1e9", "soon", "99999999999", "Wed, 21 Oct 2026 07:28:00 GMT"]
)
def test_a_wait_that_is_no_short_number_counts_as_none(reporter: Reporter, text: str) -> None:
    api = Api(Taking({NODE: (503, b"")}), headers={"Retry-After": text})
    assert reporter.send(api)["wait"] == 0.0


def test_a_wait_is_bounded(reporter: Reporter) -> None:
    api = Api(Taking({NODE: (503, b"")}), headers={"Retry-After": "999999999"})
    assert reporter.send(api)["wait"] == 3600.0


def test_a_server_that_stalls_costs_the_deadline_alone(reporter: Reporter) -> None:
    def speech(client: Any) -> None:
        while client.recv(65536):
            pass

    result = reporter.send(speech, DRIFT, timeout=0.5)
    assert error(result) == f"127.0.0.1 does not answer {NODE} within 0.5 s"


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a?b", "x" * 254])
def test_what_is_no_name_of_a_node_is_sent_nowhere(reporter: Reporter, name: str) -> None:
    reporter.changes = {"node": name}
    api = taking()
    result = reporter.send(api)
    assert result["error"] == f"{name[:80]!r} is not a valid Kubernetes name"
    assert api.asked == []


def test_a_withdrawal_is_not_held_up_by_the_limit(reporter: Reporter) -> None:
    exhausted = report_state.ReportState(tokens=0.0, at=report_state.uptime())
    report_state.save(reporter.state, exhausted)
    api = taking(ready=False)
    with reporter.at(api) as environment:
        problem = node_report.withdraw(
            reporter.settings(), "reverting", environment=environment, account=reporter.account
        )
    assert problem == ""
    [(_, patch)] = api.sent
    assert patch["metadata"] == {"labels": {LABEL: None}}
    assert patch["status"]["conditions"][0]["reason"] == "Reverted"


# --- Events ---------------------------------------------------------------------------------------


def events(api: Api) -> list[tuple[str, Any]]:
    return [(target, body) for target, body in api.sent if "/events" in target]


def test_an_event_is_about_the_node_and_the_pod(reporter: Reporter) -> None:
    api = taking()
    assert reporter.send(api, DRIFT)["error"] == ""
    (_, on_node), (_, on_pod) = events(api)
    assert on_node["involvedObject"] == {
        "kind": "Node", "apiVersion": "v1", "name": "node-1", "uid": "node-1",
    }  # fmt: skip
    assert on_node["metadata"]["namespace"] == "default"
    assert on_pod["involvedObject"] == {
        "kind": "Pod", "apiVersion": "v1", "name": "toolkit-x7k2p", "uid": "0e1f",
        "namespace": "gpu",
    }  # fmt: skip
    for event in (on_node, on_pod):
        assert (event["reason"], event["type"], event["count"]) == ("DriftRepaired", "Normal", 1)
        assert event["source"] == {"component": "nvidia-toolkit", "host": "node-1"}


def test_what_happens_again_is_counted_and_comes_later(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(report_state, "uptime", lambda: now[0])
    api = taking()
    reporter.send(api, DRIFT)
    name = events(api)[0][1]["metadata"]["name"]
    api.sent.clear()
    waits = []
    for _ in range(4):
        now[0] += 10
        waits.append(reporter.send(api, {**DRIFT, "message": "undone again"})["wait"])
    assert events(api) == []
    assert waits == [50.0, 40.0, 30.0, 20.0]
    now[0] += 20
    assert reporter.send(api)["wait"] is None
    [(target, patch), _] = events(api)
    assert target == f"PATCH /api/v1/namespaces/default/events/{name}"
    assert (patch["count"], patch["message"]) == (5, "undone again")


def test_an_event_that_expired_is_sent_anew(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(report_state, "uptime", lambda: now[0])
    reporter.changes = {"pod": ""}
    api = taking()
    reporter.send(api, DRIFT)
    [(_, first)] = events(api)
    update = f"PATCH /api/v1/namespaces/default/events/{first['metadata']['name']}"
    now[0] += 600
    api = taking({update: (404, status_of(404, "NotFound"))})
    assert reporter.send(api, DRIFT)["error"] == ""
    assert [target for target, _ in events(api)] == [update, ON_NODE]
    assert events(api)[1][1]["count"] == 2


def test_an_event_whose_answer_was_lost_is_not_sent_twice(reporter: Reporter) -> None:
    reporter.changes = {"pod": ""}
    api = taking({ON_NODE: (503, b"")})
    assert reporter.send(api, DRIFT)["error"]
    name = events(api)[0][1]["metadata"]["name"]
    api = taking({ON_NODE: (409, status_of(409, "AlreadyExists"))})
    assert reporter.send(api)["error"] == ""
    assert [target for target, _ in events(api)] == [
        ON_NODE,
        f"PATCH /api/v1/namespaces/default/events/{name}",
    ]


def test_events_that_are_refused_come_ever_more_seldom(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(report_state, "uptime", lambda: now[0])
    reporter.changes = {"pod": ""}
    waits: list[float | None] = []
    for _ in range(5):
        api = taking({ON_NODE: (403, status_of(403, "Forbidden"))})
        result = reporter.send(api, *([] if waits else [DRIFT]))
        assert error(result) == f"127.0.0.1 answers {ON_NODE} with 403 Forbidden"
        waits.append(result["wait"])
        now[0] += result["wait"] or 0
    assert waits == [60, 120, 240, 480, 600]


def test_nothing_secret_and_nothing_long_leaves_the_node(reporter: Reporter) -> None:
    api = taking(ready=False)
    text = "the proxy refuses:\npassword=hunter2 " + "x" * 5000
    reporter.send(api, {**DRIFT, "message": text}, ready=False, message=text)
    [(_, node), (_, event), _] = api.sent
    for message in (event["message"], node["status"]["conditions"][0]["message"]):
        assert "hunter2" not in message
        assert "\n" not in message
        assert message.startswith("the proxy refuses: password=***")
        assert len(message) <= 1024
    assert "hunter2" not in reporter.state.read_text("utf-8")


def test_events_can_be_left_out(reporter: Reporter) -> None:
    reporter.changes = {"events": False}
    api = taking()
    assert reporter.send(api, DRIFT) == SENT
    assert [target for target, _ in api.sent] == [NODE]


# --- the limit ------------------------------------------------------------------------------------


def test_an_hour_of_a_pod_that_restarts_all_the_time_is_bounded(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each second another thing happens, and each time it is another process that reports."""
    now, sent = [1000.0], [0]
    monkeypatch.setattr(report_state, "uptime", lambda: now[0])

    def put(*_: object, **__: object) -> dict[str, Any]:
        sent[0] += 1
        return metadata(ready=True)

    monkeypatch.setattr(apiserver, "send", put)
    monkeypatch.setattr(apiserver, "find", lambda *_, **__: SimpleNamespace(namespace="gpu"))
    for second in range(0, 3600, 30):
        now[0] = 1000.0 + second
        happened: Occurrence = {"reason": f"R{second % 7}", "kind": "Normal", "message": ""}
        node_report.send(reporter.report(happened, ready=True, message=str(second)))
    assert MOST <= sent[0] <= MOST + PER_HOUR
    assert reporter.state.stat().st_size < 20_000


def test_events_leave_something_for_the_label(reporter: Reporter) -> None:
    state = report_state.ReportState(tokens=float(RESERVE), at=report_state.uptime())
    report_state.save(reporter.state, state)
    api = taking()
    result = reporter.send(api, DRIFT)
    assert result["is_done"]
    assert 0 < (result["wait"] or 0) <= 3 * 3600 / PER_HOUR
    assert [target for target, _ in api.sent] == [NODE]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"boot": 1}',
        b"[" * 100_000,
        b'{"boot": "BOOT"}',
        b'{"boot": "BOOT", "format": 1, "tokens": NaN, "at": 1, "series": [], "condition": {}}',
        b'{"boot": "BOOT", "format": 1, "tokens": 9e9, "at": 1, "series": [], "condition": {}}',
        b'{"boot": "BOOT", "format": 1, "tokens": 1, "at": 9e15, "series": [], "condition": {}}',
        b'{"boot": "BOOT", "format": 1, "tokens": 1, "at": 1, "series": [{}], "condition": {}}',
    ],
)
def test_a_damaged_memory_is_no_way_around_the_limit(reporter: Reporter, content: bytes) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    reporter.state.parent.mkdir()
    reporter.state.write_bytes(content.replace(b"BOOT", boot.encode()))
    api = taking()
    result = reporter.send(api, DRIFT)
    if content == b'{"boot": 1}':  # of another boot
        assert result["is_done"]
    else:
        assert (result["is_done"], api.sent) == (False, [])
        assert 0 < (result["wait"] or 0) <= 3600 / PER_HOUR


def test_a_memory_that_others_control_is_neither_believed_nor_written(reporter: Reporter) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory to another user")
    reporter.state.parent.mkdir()
    reporter.state.write_text("{}", encoding="utf-8")
    reporter.state.parent.chmod(0o777)
    api = taking({NODE: (403, status_of(403, "Forbidden"))})
    assert not reporter.send(api, DRIFT)["is_refusal"]  # a limit that is not remembered is none
    api = taking()
    result = reporter.send(api, DRIFT)
    assert "report.json is not written" in result["error"]
    # Every pod that restarts would send the Events again.
    assert [target for target, _ in api.sent] in ([], [NODE])
    assert reporter.state.read_text("utf-8") == "{}"


# --- the process ----------------------------------------------------------------------------------


def test_the_child_of_the_agent_sends_and_answers_by_its_file(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no service account here, which is what it says."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    worker = Worker("report", child.report_command(), reporter.report(DRIFT))
    _, status = os.waitpid(worker.pid, 0)
    content = worker.content()
    worker.close()
    assert os.waitstatus_to_exitcode(status) == 0
    assert content["kind"] == "report"
    assert not content["is_done"]
    assert content["error"].startswith("KUBERNETES_SERVICE_HOST and _PORT are not set")
