"""What a daemon counts, and how Prometheus is told: every number means what its name says."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from toolkit.agent import counters, metrics
from toolkit.agent.report import SyncReport, from_json
from toolkit.reconcile.context import RunStats


def report(outcome: str, **more: Any) -> SyncReport:
    done = {
        "outcome": outcome,
        "is_drift": True,
        "check": "",
        "seconds": 0.5,
        "ready": True,
        "code": 0,
    }
    return from_json({**done, **more})


def tally(*, restarts: int = 0, reloads: int = 0, went_back: bool = False) -> RunStats:
    account = RunStats()
    for _ in range(restarts):
        account.note_reload(0.1, replaces=True)
    for _ in range(reloads):
        account.note_reload(0.01, replaces=False)
    account.rolled_back = went_back
    return account


@pytest.mark.parametrize(
    ("done", "account", "wanted"),
    [
        (report("in sync"), tally(), {"restarts_avoided": 1}),
        (
            report("changed"),
            tally(restarts=1),
            {"repairs": 1, "restarts": 1, "runtime_unavailable_seconds": 0.1},
        ),
        (
            report("changed", is_drift=False),
            tally(restarts=1),
            {"restarts": 1, "runtime_unavailable_seconds": 0.1},
        ),
        (report("changed"), tally(reloads=1), {"repairs": 1, "reloads": 1, "restarts_avoided": 1}),
        (report("drift"), tally(), {}),
        (
            report("failed", check="verify"),
            tally(restarts=2, went_back=True),
            {"restarts": 2, "rollbacks": 1, "runtime_unavailable_seconds": 0.2},
        ),
    ],
    ids=["in sync", "a repair", "the set-up", "a reload", "only reported", "taken back"],
)
def test_a_round_counts(done: SyncReport, account: RunStats, wanted: dict[str, float]) -> None:
    before = counters.initial()
    after = counters.after(before, done, account)
    assert {name: after[name] for name in counters.COUNTS if after[name]} == wanted
    assert after["outcomes"][done["outcome"]] == 1
    assert before == counters.initial()
    twice = counters.after(after, done, account)
    assert {name: twice[name] for name in counters.COUNTS if twice[name]} == {
        n: 2 * v for n, v in wanted.items()
    }


def test_failed_checks_are_counted_by_name() -> None:
    counts = counters.initial()
    for check in ("preflight", "verify", "preflight", ""):
        counts = counters.after(
            counts, report("failed" if check else "in sync", check=check), tally()
        )
    assert counts["failed"] == {"preflight": 2, "verify": 1}


def test_metrics_are_what_prometheus_reads() -> None:
    counts = counters.initial()
    failed = report("failed", check="preflight", ready=False, code=4)
    for done, account in ((report("changed"), tally(restarts=1)), (failed, tally())):
        counts = counters.after(counts, done, account)
    counts["versions"] = {"tool": "1", "runtime": "containerd", "configuration": 'a"b'}
    told: SyncReport = {**failed, "counts": counts, "driver": False}
    families = list(text_string_to_metric_families(metrics.exposition(told)))
    samples = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    prefix = metrics.PREFIX
    assert samples[f"{prefix}_last_sync_exit_code",] == 4
    assert (f"{prefix}_restart_budget_remaining",) not in samples
    assert "\nnvidia_toolkit_restart_budget_remaining 0.0\n" in metrics.exposition(
        told, restarts_remaining=0
    )
    assert samples[f"{prefix}_in_sync",] == samples[f"{prefix}_ready",] == 0
    assert samples[f"{prefix}_driver_loaded",] == 0
    assert samples[f"{prefix}_repairs_total",] == samples[f"{prefix}_restarts_total",] == 1
    assert samples[f"{prefix}_syncs_total", "in_sync"] == 0
    assert (
        samples[f"{prefix}_syncs_total", "failed"]
        == samples[f"{prefix}_syncs_total", "changed"]
        == 1
    )
    assert samples[f"{prefix}_checks_failed_total", "preflight"] == 1
    assert samples[f"{prefix}_check_failing", "preflight"] == 1
    assert samples[f"{prefix}_last_restart_unavailable_seconds",] == 0.1
    [info] = [s.labels for family in families for s in family.samples if s.name == f"{prefix}_info"]
    assert info == counts["versions"]
    assert all(family.documentation for family in families)


def test_a_child_that_leaves_no_report_is_a_failure_with_a_reason() -> None:
    assert counters.cut_short(-9, 1.26)["message"] == "the sync ended with signal 9 after 1.3 s"
    assert counters.cut_short(-9, 0)["code"] == 137
    assert counters.cut_short(3, 0)["code"] == 3
    assert counters.cut_short(0, 0)["code"] == 1
