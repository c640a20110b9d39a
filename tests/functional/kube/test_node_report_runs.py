"""What the commands report without an agent: a failed first run, one run alone, a revert."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import fake_node
from tests.support.fake_node import Daemon, Node
from toolkit.cli import commands
from toolkit.cli.commands import Invocation
from toolkit.errors import ToolkitError
from toolkit.kube import node_report
from toolkit.kube import report as kube_report
from toolkit.kube.report import Report, ReportSettings, Result
from toolkit.reconcile import readiness
from toolkit.settings.resolve import resolve
from toolkit.state import readiness_probe

LABEL: Final = "example.com/ready"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = fake_node.make_node(tmp_path / "node")
    (tmp_path / "cri.json").write_text(json.dumps({"config": str(node.config)}), encoding="utf-8")
    return node


@pytest.fixture
def running(node: Node, tmp_path: Path) -> Iterator[Daemon]:
    with fake_node.daemon(
        node.socket, home=tmp_path / "d", cri=str(tmp_path / "cri.json")
    ) as daemon:
        yield daemon


class Api:
    """Takes reports in place of an API server, which may be away."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.error = ""
        self.sent: list[Report] = []
        self.installed: list[bool] = []

    def send(self, report: Report, **_: Any) -> Result:
        self.sent.append(report)
        self.installed.append(self.node.toolkit.exists())
        return {
            "is_done": not self.error,
            "error": self.error,
            "is_refusal": False,
            "wait": None,
        }


@pytest.fixture
def api(node: Node, monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api(node)
    settings: ReportSettings = {
        "label": LABEL,
        "condition": "",
        "events": True,
        "node": "node-1",
        "pod": "",
        "pod_uid": "",
        "state": str(node.root / "run/report.json"),
    }
    monkeypatch.setattr(kube_report, "settings_of", lambda _: settings)
    monkeypatch.setattr(node_report, "send", made.send)
    return made


def invocation(node: Node, **changed: str) -> Invocation:
    words = dict(
        option.removeprefix("--").split("=", 1)
        for option in node.options(node_label=LABEL, **changed)
    )
    options = {name.replace("-", "_"): text for name, text in words.items()} | {"no_daemon": "true"}
    return Invocation(
        settings=resolve(options, {}),
        options=options,
        environment={},
        extra={"output": "text"},
        arguments=(),
        log_options={},
    )


def told(report: Report) -> tuple[bool | None, list[str]]:
    return report["ready"], [event["reason"] for event in report["events"]]


@pytest.mark.usefixtures("running")
def test_one_run_without_an_agent_reports_what_the_record_says(node: Node, api: Api) -> None:
    assert commands.run(invocation(node)) == 0
    [report] = api.sent
    assert told(report) == (True, [])
    assert report["reason"] == "Verified"


@pytest.mark.usefixtures("running")
def test_an_api_server_that_is_away_fails_no_run(node: Node, api: Api) -> None:
    api.error = "the API server does not answer"
    assert commands.run(invocation(node)) == 0
    assert node.toolkit.exists()
    assert commands.revert(invocation(node)) == 0
    assert not node.toolkit.exists()


def test_a_first_run_that_fails_reports_why_and_that_the_node_is_not_ready(
    node: Node, api: Api
) -> None:
    """Nothing listens on the socket."""
    with pytest.raises(ToolkitError) as failure:
        commands.run(invocation(node, reload_timeout="1"))
    [report] = api.sent
    assert told(report) == (False, ["SyncFailed"])
    assert report["message"] == report["events"][0]["message"] == failure.value.message


@pytest.mark.usefixtures("running")
def test_a_run_that_fails_on_a_node_that_is_ready_leaves_the_label(
    node: Node, api: Api, tmp_path: Path
) -> None:
    commands.run(invocation(node))
    api.sent.clear()
    with pytest.raises(ToolkitError):
        commands.run(invocation(node, toolkit_source_root=str(tmp_path / "missing")))
    assert readiness_probe.unready(invocation(node).settings.readiness) == ""
    assert [told(report) for report in api.sent] == [(None, ["SyncFailed"])]


@pytest.mark.usefixtures("running")
def test_a_used_up_budget_has_a_reason_of_its_own(node: Node, api: Api) -> None:
    commands.run(invocation(node, restart_budget="1"))
    node.config.write_bytes(fake_node.KUBEADM)
    api.sent.clear()
    with pytest.raises(ToolkitError, match="--restart-budget is 1"):
        commands.run(invocation(node, restart_budget="1"))
    assert [told(report) for report in api.sent] == [(False, ["RestartBudgetUsedUp"])]


@pytest.mark.usefixtures("running")
def test_the_label_is_removed_before_anything_is_reverted(node: Node, api: Api) -> None:
    commands.run(invocation(node))
    api.sent.clear()
    api.installed.clear()
    assert commands.revert(invocation(node)) == 0
    assert [(told(report), report["reason"]) for report in api.sent] == [((False, []), "Reverted")]
    assert api.installed == [True]
    # A second revert has nothing to do, but the label may have been left.
    assert commands.revert(invocation(node)) == 0
    assert len(api.sent) == 2


def test_without_the_settings_nothing_is_loaded_for_it(node: Node) -> None:
    settings = node.settings()
    assert not kube_report.is_wanted(settings)
    assert kube_report.settings_of(settings) is None
    readiness.withdraw(settings)


@pytest.mark.parametrize(
    ("environment", "name"),
    [({"NODE_NAME": "node-1", "POD_NAME": "a"}, "a"), ({"NODE_NAME": "n", "HOSTNAME": "b"}, "b")],
)
def test_the_objects_are_named_by_the_downward_api(
    node: Node, account: Path, environment: Mapping[str, str], name: str
) -> None:
    settings = node.settings(node_label=LABEL)
    found = kube_report.settings_of(settings, environment, account)
    assert found is not None
    assert (found["node"], found["pod"]) == (environment["NODE_NAME"], name)
    assert found["state"] == str(node.pid_file.parent / "report.json")
    assert kube_report.settings_of(settings, environment, account / "missing") is None


def test_a_node_without_a_name_is_said_and_not_reported(
    node: Node, account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert kube_report.settings_of(node.settings(node_label=LABEL), {}, account) is None
    assert "NODE_NAME is not set" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "a b", "a/b/c", "-a", "a/", "/a", "A/b", "x" * 400, "a/b\n",
        f"{'x' * 254}/a", f"a/{'x' * 64}",
        "Ready", "MemoryPressure", "ready",
        "kubernetes.io/Ready", "node.kubernetes.io/Ready", "k8s.io/a", "readiness.k8s.io/a",
    ],
)  # fmt: skip
@pytest.mark.parametrize("setting", ["node_label", "node_condition"])
def test_a_label_or_condition_that_may_be_of_kubernetes_is_refused(
    node: Node, setting: str, name: str
) -> None:
    """Such as the condition `Ready`, by which the kubelet says whether it takes pods."""
    with pytest.raises(ToolkitError, match=r"must be PREFIX/NAME, such as nvidia-toolkit\.io/\w+,"):
        node.settings(**{setting: name})


@pytest.mark.parametrize(
    "name",
    ["example.com/Ready", "a/b", "my-k8s.io/a", "kubernetes.io.example.com/a", "a.b-c.1/X_y.z-1"],
)
@pytest.mark.parametrize("setting", ["node_label", "node_condition"])
def test_a_label_or_condition_with_a_prefix_of_its_own_is_accepted(
    node: Node, setting: str, name: str
) -> None:
    assert getattr(node.settings(**{setting: name}), setting) == name
