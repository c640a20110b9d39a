"""Alerts and dashboard of the chart, on the metrics that the program exports, by promtool."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support import helm, promtool
from toolkit.agent import counters, metrics
from toolkit.agent.report import SyncReport
from toolkit.reconcile.context import RunStats
from toolkit.state.readiness_record import STARTED
from tools import deploy

pytestmark = [pytest.mark.binary, pytest.mark.timeout(120)]

ALERTS: Final = helm.CHART / "files/alerts.yaml"
DASHBOARD: Final = helm.CHART / "files/dashboard.json"
FOREIGN: Final = frozenset({
    "up", "kube_pod_status_ready", "kube_pod_container_status_last_terminated_exitcode",
})  # fmt: skip
"""Metrics of Prometheus and of kube-state-metrics."""
ON: Final = (
    "--set", "metrics.enabled=true", "--set", "prometheusRule.create=true",
    "--set", "grafanaDashboard.create=true",
)  # fmt: skip
POD: Final = {"namespace": helm.NAMESPACE, "pod": f"{helm.RELEASE}-x7k2p"}
OTHER: Final = {**POD, "pod": f"{helm.RELEASE}-crio-x7k2p"}
"""A pod of another release in the same namespace, which has alerts of its own."""


def rules(*options: str) -> dict[str, Any]:
    """Return what the chart gives to Prometheus."""
    spec: dict[str, Any] = helm.one(helm.rendered(*ON, *options), "PrometheusRule")["spec"]
    return spec


def alerts(*options: str) -> dict[str, dict[str, Any]]:
    """Return the chart's alerts by name."""
    return {rule["alert"]: rule for group in rules(*options)["groups"] for rule in group["rules"]}


@cache
def dashboard() -> dict[str, Any]:
    """Return the dashboard as its ConfigMap holds it."""
    [config] = [each for each in helm.rendered(*ON) if each["kind"] == "ConfigMap"]
    found: dict[str, Any] = json.loads(config["data"]["nvidia-toolkit.json"])
    return found


def queries() -> dict[str, str]:
    """Return the dashboard's queries by panel, with its variables set to all."""
    known = {"$namespace": ".*", "$node": ".*", "$__rate_interval": "5m"}
    found = {}
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in known.items():
                text = text.replace(name, value)
            assert "$" not in text, text
            found[f"{panel['title']}: {target['refId']}"] = text
    return found


def report(*, is_ready: bool) -> SyncReport:
    """Return the report of a sync that found everything in order, or of one that failed."""
    base: SyncReport = {
        "outcome": counters.IN_SYNC if is_ready else counters.FAILED,
        "code": 0 if is_ready else 4,
        "check": "" if is_ready else "preflight",
        "ready": is_ready,
        "is_drift": True,
        "seconds": 0.3,
        "driver": True,
        "verified": {"nvidia": STARTED} if is_ready else {},
    }
    counts = counters.after(counters.initial(), base, RunStats())
    counts["versions"] = {
        "tool": "1", "toolkit": "2", "runtime": "containerd", "runtime_version": "2.1",
        "configuration": "c",
    }  # fmt: skip
    return {**base, "counts": counts}


def exported(*, is_ready: bool = True) -> list[tuple[str, dict[str, str], float]]:
    """Return what the program exports: name, labels and value of each sample."""
    text = metrics.exposition(report(is_ready=is_ready), restarts_remaining=3)
    families = text_string_to_metric_families(text)
    return [(each.name, each.labels, each.value) for family in families for each in family.samples]


def names(expression: str) -> set[str]:
    """Return the metrics that an expression asks for, other than those of Kubernetes."""
    return set(re.findall(r"\b(?:nvidia_toolkit|kube)_\w+|\bup\b", expression))


def series(name: str, labels: dict[str, str], values: str) -> dict[str, str]:
    """Return a series as promtool takes it."""
    listed = ",".join(f"{key}={json.dumps(value)}" for key, value in labels.items())
    return {"series": f"{name}{{{listed}}}", "values": values}


def run_tests(home: Path, tests: list[dict[str, Any]], *options: str) -> str:
    """Run promtool's tests on the chart's rules; return what it says of those that fail."""
    (home / "rules.yaml").write_text(yaml.safe_dump(rules(*options)), encoding="utf-8")
    content = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (home / "tests.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    done = promtool.run("test", "rules", "tests.yaml", home=home)
    return "" if done.returncode == 0 else done.stdout + done.stderr


# --- the names ----------------------------------------------------------------------------------


def test_alerts_and_dashboard_ask_for_metrics_that_are_exported() -> None:
    known = {name for is_ready in (True, False) for name, *_ in exported(is_ready=is_ready)}
    asked = set()
    for text in [*(rule["expr"] for rule in alerts().values()), *queries().values()]:
        assert names(text) - known - FOREIGN == set(), text
        asked |= names(text)
    for variable in dashboard()["templating"]["list"]:
        assert names(str(variable["query"])) <= known
    assert len(asked & known) > 12


def test_every_exported_metric_is_documented() -> None:
    text = (helm.ROOT / "docs/operations.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([a-z_]+)(?:\{[a-z_,]+\})?`", text))
    known = {name for is_ready in (True, False) for name, *_ in exported(is_ready=is_ready)}
    prefix = f"{metrics.PREFIX}_"
    assert {name.removeprefix(prefix) for name in known if name.startswith(prefix)} <= listed


def test_every_alert_is_documented_and_can_be_left_out() -> None:
    text = (helm.ROOT / "docs/operations.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(NvidiaToolkit\w+)` \|", text, re.MULTILINE)
    assert listed == list(alerts())
    schema = json.loads(deploy.STRICT.read_text(encoding="utf-8"))
    disabled = schema["properties"]["prometheusRule"]["properties"]["disabled"]
    assert disabled["items"]["enum"] == list(alerts())
    left_out = "--set=prometheusRule.disabled={NvidiaToolkitDriverNotLoaded}"
    assert alerts().keys() - alerts(left_out).keys() == {"NvidiaToolkitDriverNotLoaded"}


# --- the alerts ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Series, one value a minute, with which an alert fires, and the last minute before it does."""

    alert: str
    given: tuple[tuple[str, dict[str, str], str], ...]
    is_quiet_at: int
    fires_at: int
    labels: tuple[tuple[str, str], ...] = ()


_TERMINATED: Final = "kube_pod_container_status_last_terminated_exitcode"
_CONTAINER: Final = {**POD, "container": "nvidia-toolkit"}
_KUBE_READY: Final = {**POD, "condition": "true"}
CASES: Final = (
    Case(
        alert="NvidiaToolkitNotReady",
        given=(("nvidia_toolkit_ready", POD, "1 1 1 0x40"),),
        is_quiet_at=17,
        fires_at=18,
    ),
    Case(  # of a pod that ends before it serves metrics
        alert="NvidiaToolkitNotReady",
        given=(("kube_pod_status_ready", _KUBE_READY, "0x40"),),
        is_quiet_at=14,
        fires_at=15,
        labels=(("condition", "true"),),
    ),
    Case(
        alert="NvidiaToolkitMetricsMissing",
        given=(("up", _CONTAINER, "1 0x40"),),
        is_quiet_at=15,
        fires_at=16,
        labels=(("container", "nvidia-toolkit"),),
    ),
    Case(
        alert="NvidiaToolkitRolledBack",
        given=(("nvidia_toolkit_rollbacks_total", POD, "0x70 1x70"),),
        is_quiet_at=70,
        fires_at=71,
    ),
    Case(  # the counter is new, and begins with 1
        alert="NvidiaToolkitRolledBack",
        given=(("nvidia_toolkit_rollbacks_total", POD, "_x5 1x70"),),
        is_quiet_at=4,
        fires_at=6,
    ),
    Case(
        alert="NvidiaToolkitRolledBack",
        given=(
            (_TERMINATED, _CONTAINER, "_ _ 6x40"),
            ("kube_pod_status_ready", _KUBE_READY, "0x40"),
        ),
        is_quiet_at=1,
        fires_at=2,
        labels=(("container", "nvidia-toolkit"),),
    ),
    Case(
        alert="NvidiaToolkitRollbackFailed",
        given=(("nvidia_toolkit_last_sync_exit_code", POD, "0 6 7x5"),),
        is_quiet_at=1,
        fires_at=2,
    ),
    Case(
        alert="NvidiaToolkitRollbackFailed",
        given=((_TERMINATED, _CONTAINER, "6 7x40"),),
        is_quiet_at=0,
        fires_at=1,
        labels=(("container", "nvidia-toolkit"),),
    ),
    Case(
        alert="NvidiaToolkitDriftRepeated",
        given=(("nvidia_toolkit_repairs_total", POD, "0x70 1 1 2 2 3x10"),),
        is_quiet_at=74,
        fires_at=76,
    ),
    Case(
        alert="NvidiaToolkitRestartBudgetUsedUp",
        given=(("nvidia_toolkit_restart_budget_remaining", POD, "3 1 0x20"),),
        is_quiet_at=6,
        fires_at=7,
    ),
    Case(
        alert="NvidiaToolkitDriverNotLoaded",
        given=(("nvidia_toolkit_driver_loaded", POD, "1 0x40"),),
        is_quiet_at=15,
        fires_at=16,
    ),
    Case(
        alert="NvidiaToolkitHandlerNotVerified",
        given=(("nvidia_toolkit_handler_verified", {**POD, "handler": "nvidia"}, "0x60"),),
        is_quiet_at=29,
        fires_at=30,
        labels=(("handler", "nvidia"),),
    ),
)


def expected(case: Case) -> dict[str, Any]:
    """Return the alert that a case leads to, with its texts filled in."""
    rule = alerts()[case.alert]
    labels = {**POD, **dict(case.labels)}
    texts = {
        name: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        for name, text in rule["annotations"].items()
    }
    assert "{{" not in "".join(texts.values())
    return {"exp_labels": labels | rule["labels"], "exp_annotations": texts}


def test_promtool_has_no_complaint(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()), encoding="utf-8")
    done = promtool.run("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout


def test_each_alert_fires_after_its_time_and_not_before(tmp_path: Path) -> None:
    tests: list[dict[str, Any]] = []
    for case in CASES:
        given = list(case.given)
        # The same of another release is no concern of this one.
        given += [(name, {**labels, **OTHER}, values) for name, labels, values in case.given]
        at = {"alertname": case.alert}
        tests.append({
            "interval": "1m",
            "name": f"{case.alert} {case.given[0][0]}",
            "input_series": [series(*each) for each in given],
            "alert_rule_test": [
                {**at, "eval_time": f"{case.is_quiet_at}m", "exp_alerts": []},
                {**at, "eval_time": f"{case.fires_at}m", "exp_alerts": [expected(case)]},
            ],
        })  # fmt: skip
    assert run_tests(tmp_path, tests) == ""
    assert {case.alert for case in CASES} == alerts().keys()


def test_no_alert_fires_on_a_node_in_order(tmp_path: Path) -> None:
    """Nor for what ended long ago: a rollback, exit codes of an earlier container, two repairs."""
    given = [series(name, labels | POD, f"{value}x130") for name, labels, value in exported()]
    kept = [each for each in given if "_rollbacks" not in str(each) and "_repairs" not in str(each)]
    assert len(given) == len(kept) + 2
    given = [
        *kept,
        series("nvidia_toolkit_rollbacks_total", POD, "0 1x130"),
        series("nvidia_toolkit_repairs_total", POD, "0x70 1x20 2x40"),
        series("up", _CONTAINER, "1x130"),
        series("kube_pod_status_ready", _KUBE_READY, "1x130"),
        series(_TERMINATED, _CONTAINER, "6x60 7x70"),
    ]
    quiet = [{"eval_time": f"{m}m", "alertname": name, "exp_alerts": []} for name in alerts()
             for m in (65, 95, 125)]  # fmt: skip
    test = {"interval": "1m", "input_series": given, "alert_rule_test": quiet}
    assert run_tests(tmp_path, [test]) == ""


def test_a_wrong_expectation_is_found(tmp_path: Path) -> None:
    [case] = [each for each in CASES if each.alert == "NvidiaToolkitDriverNotLoaded"]
    wrong = {"alertname": case.alert, "eval_time": f"{case.fires_at}m", "exp_alerts": []}
    test = {
        "interval": "1m",
        "input_series": [series(*each) for each in case.given],
        "alert_rule_test": [wrong],
    }
    assert "NvidiaToolkitDriverNotLoaded" in run_tests(tmp_path, [test])


def test_without_started_containers_no_handler_is_said_to_be_unverified() -> None:
    words = ("--set", "toolkit.env[0].name=TOOLKIT_VERIFY", "--set", "toolkit.env[0].value=status")
    assert alerts().keys() - alerts(*words).keys() == {"NvidiaToolkitHandlerNotVerified"}


def test_the_alerts_know_the_pods_of_a_release_by_their_names() -> None:
    spec = helm.rendered(*ON, "--set", "prometheusRule.labels.release=prometheus")
    rule = helm.one(spec, "PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    name = helm.one(spec, "DaemonSet")["metadata"]["name"]
    for alert in (each for group in rule["spec"]["groups"] for each in group["rules"]):
        assert f'namespace="{helm.NAMESPACE}",pod=~"{name}-[a-z0-9]{{5}}"' in alert["expr"]
        assert "@" not in alert["expr"]


# --- the dashboard ------------------------------------------------------------------------------


def test_every_query_of_the_dashboard_finds_something(tmp_path: Path) -> None:
    """Two nodes, one of which is in order."""
    given = []
    for number, is_ready in enumerate((True, False)):
        labels = {**POD, "pod": f"{helm.RELEASE}-0000{number}", "node": f"node-{number}"}
        given += [
            series(name, more | labels, f"{value}x30")
            for name, more, value in exported(is_ready=is_ready)
        ]
    wanted = {"labels": "{}", "value": 1}
    tests = [
        {"expr": f"count({text}) > bool 0", "eval_time": "20m", "exp_samples": [wanted]}
        for text in queries().values()
    ]
    test = {"interval": "1m", "input_series": given, "promql_expr_test": tests}
    assert run_tests(tmp_path, [test]) == ""
    assert len(tests) > 15


def test_the_dashboard_is_one_that_grafana_s_sidecar_finds() -> None:
    [config] = [each for each in helm.rendered(*ON) if each["kind"] == "ConfigMap"]
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard() == json.loads(DASHBOARD.read_text(encoding="utf-8"))
    words = (
        "--set-string", "grafanaDashboard.labels.found=here",
        "--set", "grafanaDashboard.namespace=monitoring",
        "--set", "grafanaDashboard.annotations.grafana_folder=GPU",
    )  # fmt: skip
    [config] = [each for each in helm.rendered(*ON, *words) if each["kind"] == "ConfigMap"]
    assert config["metadata"]["namespace"] == "monitoring"
    assert config["metadata"]["annotations"] == {"grafana_folder": "GPU"}
    assert config["metadata"]["labels"]["found"] == "here"


def test_panels_have_a_place_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        assert panel["title"]
        assert panel["description"]
        taken |= cells


@pytest.mark.parametrize("name", ["prometheusRule", "podMonitor"])
def test_without_metrics_there_is_nothing_to_watch(name: str) -> None:
    assert "without metrics.enabled=true" in helm.refusal("--set", f"{name}.create=true")
