"""When a report to the API server is due: holds, checks, retries with jitter, and a storm."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.unit.test_schedule import Clock
from toolkit.kube import report_schedule
from toolkit.kube.report import Occurrence, ReportSettings
from toolkit.kube.report_schedule import HOLD, ReportSchedule

DONE = {"is_done": True, "error": "", "wait": None}
AWAY = {"is_done": False, "error": "the API server does not answer", "wait": 0.0}
REFUSED = {"is_done": False, "error": "403 Forbidden", "is_refusal": True, "wait": None}
LIMITED = {"is_done": False, "error": "", "wait": 90.0}
SETTINGS: ReportSettings = {
    "label": "example.com/ready",
    "condition": "",
    "events": True,
    "node": "node",
    "pod": "",
    "pod_uid": "",
    "state": "/run/report.json",
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reports(clock: Clock) -> ReportSchedule:
    return ReportSchedule(SETTINGS, 300.0, clock, lambda: 0.5)


def ready(reports: ReportSchedule, clock: Clock) -> None:
    """Have it reported that the node is ready."""
    reports.observe(is_ready=True, why="versions")
    assert reports.due <= clock.now
    report = reports.begin()
    assert (report["ready"], report["reason"], report["message"]) == (True, "Verified", "versions")
    assert reports.end(DONE) == ""


def test_a_ready_node_is_reported_at_once_and_checked_after_the_interval(
    reports: ReportSchedule, clock: Clock
) -> None:
    ready(reports, clock)
    assert reports.due == clock.now + 300
    clock.now += 300
    assert reports.begin()["ready"] is True  # somebody may have removed the label


def test_an_event_alone_repeats_no_label_and_delays_no_check(
    reports: ReportSchedule, clock: Clock
) -> None:
    ready(reports, clock)
    checked = reports.due
    clock.now += 100
    reports.add({"reason": "DriftRepaired", "kind": "Normal", "message": ""})
    assert reports.begin()["ready"] is None
    reports.end(DONE)
    assert reports.due == checked
    clock.now = checked
    assert reports.begin()["ready"] is True


def test_a_short_interval_does_not_ask_more_often(clock: Clock) -> None:
    reports = ReportSchedule(SETTINGS, 5.0, clock, lambda: 0.5)
    ready(reports, clock)
    assert reports.due == clock.now + 300


def test_a_node_that_is_not_ready_for_a_moment_stays_as_it_is(
    reports: ReportSchedule, clock: Clock
) -> None:
    ready(reports, clock)
    reports.observe(is_ready=False, why="the runtime's process ended")
    assert reports.due == clock.now + HOLD
    clock.now += HOLD - 1
    reports.observe(is_ready=True, why="versions")
    assert reports.due > clock.now + HOLD


def test_a_node_that_is_not_ready_for_long_is_reported(
    reports: ReportSchedule, clock: Clock
) -> None:
    ready(reports, clock)
    reports.observe(is_ready=False, why="first")
    clock.now += HOLD / 2
    reports.observe(is_ready=False, why="no driver")
    clock.now += HOLD / 2
    assert reports.due <= clock.now
    report = reports.begin()
    assert (report["ready"], report["reason"], report["message"]) == (
        False,
        "NotReady",
        "no driver",
    )
    assert [event["reason"] for event in report["events"]] == ["NotReady"]
    reports.end(AWAY)
    clock.now = reports.due
    again = reports.begin()
    assert (again["ready"], again["events"]) == (False, [])  # the first one was noted
    reports.end(DONE)
    reports.observe(is_ready=True, why="versions")
    assert reports.due <= clock.now
    assert [event["reason"] for event in reports.begin()["events"]] == ["Ready"]


def test_a_rollback_is_no_moment(reports: ReportSchedule, clock: Clock) -> None:
    ready(reports, clock)
    reports.observe(is_ready=False, why="rolled back", is_harmed=True)
    assert reports.due <= clock.now
    assert reports.begin()["ready"] is False


def test_a_new_agent_leaves_the_label_for_a_minute_if_the_node_is_not_ready(
    reports: ReportSchedule, clock: Clock
) -> None:
    reports.observe(is_ready=False, why="no driver")
    assert reports.due == clock.now + HOLD
    reports.add({"reason": "SetUp", "kind": "Normal", "message": ""})
    assert reports.due <= clock.now
    assert reports.begin()["ready"] is None  # an Event alone changes no label
    reports.end(DONE)
    assert reports.due == clock.now + HOLD


def test_failures_are_retried_later_and_later_and_logged_once(
    reports: ReportSchedule, clock: Clock
) -> None:
    reports.observe(is_ready=True, why="versions")
    pauses, logged = [], []
    for _ in range(9):
        reports.begin()
        logged.append(reports.end(AWAY))
        pauses.append(reports.due - clock.now)
        clock.now = reports.due
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert logged == [AWAY["error"], *[""] * 8]
    reports.begin()
    reports.end(DONE)
    # A check that fails is repeated as well, and the node was ready all the time.
    clock.now += 300
    assert reports.begin()["ready"] is True
    assert reports.end(AWAY) == AWAY["error"]
    assert reports.due == clock.now + 10
    clock.now += 10
    again = reports.begin()
    assert (again["ready"], again["events"]) == (True, [])
    reports.end(DONE)
    assert reports.due == clock.now + 300


def test_the_api_server_may_ask_for_more_time(reports: ReportSchedule, clock: Clock) -> None:
    reports.observe(is_ready=True, why="versions")
    reports.begin()
    reports.end({**AWAY, "wait": 120.0})
    assert reports.due == clock.now + 120


@pytest.mark.parametrize("result", [{}, {"error": "cannot be started"}])
def test_events_of_a_child_that_died_are_sent_again_and_bounded(
    reports: ReportSchedule, clock: Clock, result: dict[str, str]
) -> None:
    for number in range(40):
        reports.add({"reason": "Drift", "kind": "Warning", "message": str(number)})
    sent = reports.begin()["events"]
    assert [event["message"] for event in sent] == [str(number) for number in range(24, 40)]
    assert reports.end(result) == result.get("error", "no result")
    assert reports.due > clock.now
    assert reports.begin()["events"] == sent


def test_what_is_left_by_the_limit_comes_later(reports: ReportSchedule, clock: Clock) -> None:
    reports.observe(is_ready=True, why="versions")
    reports.begin()
    reports.end(LIMITED)
    assert reports.due == clock.now + 90


def fail(reports: ReportSchedule, clock: Clock, times: int = 9, **result: object) -> None:
    """Have reports fail until the pause is 600 s, and end at the beginning of that pause."""
    for _ in range(times):
        clock.now = max(clock.now, reports.due)
        reports.begin()
        reports.end({**AWAY, **result})


def test_a_node_that_becomes_ready_in_an_outage_waits_a_minute_at_most(
    reports: ReportSchedule, clock: Clock
) -> None:
    reports.observe(is_ready=False, why="no driver")
    fail(reports, clock)
    assert reports.due == clock.now + 600
    clock.now += 100
    reports.observe(is_ready=True, why="versions")
    assert reports.due == clock.now + 35
    clock.now += 35
    assert reports.begin()["ready"] is True
    reports.end(AWAY)
    assert reports.due == clock.now + 600  # the API server is still away


def test_a_node_that_is_lost_in_an_outage_waits_a_minute_more_at_most(
    reports: ReportSchedule, clock: Clock
) -> None:
    ready(reports, clock)
    fail(reports, clock)
    reports.observe(is_ready=False, why="no driver")
    reports.add({"reason": "DriverGone", "kind": "Warning", "message": ""})
    # A report that begins before the hold is over leaves the label, and does not use up the change.
    clock.now += 35
    assert reports.due == clock.now
    assert reports.begin()["ready"] is None
    reports.end(AWAY)
    clock.now += HOLD - 35
    assert reports.due == clock.now + 35
    clock.now += 35
    assert reports.begin()["ready"] is False


def test_a_rollback_in_an_outage_waits_a_minute_at_most(
    reports: ReportSchedule, clock: Clock
) -> None:
    ready(reports, clock)
    fail(reports, clock)
    reports.observe(is_ready=False, why="the sync failed")
    clock.now += 1
    reports.observe(is_ready=False, why="rolled back", is_harmed=True)
    assert reports.due == clock.now + 35
    clock.now += 35
    assert reports.begin()["ready"] is False


def test_an_event_shortens_the_pause_of_an_outage_once(
    reports: ReportSchedule, clock: Clock
) -> None:
    """A node on which every sync fails may not ask a server that is away once a minute."""
    ready(reports, clock)
    fail(reports, clock)
    failed: Occurrence = {"reason": "SyncFailed", "kind": "Warning", "message": ""}
    reports.add(failed)
    assert reports.due == clock.now + 35
    fail(reports, clock, 1)
    reports.add(failed)
    assert reports.due == clock.now + 600
    reports.add({**failed, "reason": "RolledBack"})
    assert reports.due == clock.now + 35
    clock.now += 35
    assert reports.begin()["ready"] is True  # the failed check, too
    reports.end(DONE)
    fail(reports, clock)
    reports.add(failed)
    assert reports.due == clock.now + 35


def test_a_change_during_a_report_that_fails_comes_after_a_pause(
    reports: ReportSchedule, clock: Clock
) -> None:
    reports.observe(is_ready=False, why="no driver")
    fail(reports, clock, 8)
    clock.now = reports.due
    reports.begin()
    reports.observe(is_ready=True, why="versions")
    clock.now += 30
    reports.end(AWAY)
    assert reports.due == clock.now + 35


@pytest.mark.parametrize(
    ("result", "due"),
    [pytest.param({**AWAY, "wait": 120.0}, 120, id="asked"), pytest.param(LIMITED, 90, id="limit")],
)
def test_a_change_neither_passes_the_limit_nor_what_the_server_asks_for(
    reports: ReportSchedule, clock: Clock, result: Mapping[str, object], due: float
) -> None:
    ready(reports, clock)
    fail(reports, clock)
    fail(reports, clock, 1, **result)
    reports.observe(is_ready=False, why="rolled back", is_harmed=True)
    reports.add({"reason": "RolledBack", "kind": "Warning", "message": ""})
    assert reports.due == clock.now + due


def test_the_limit_does_not_shorten_the_pauses_of_an_outage(
    reports: ReportSchedule, clock: Clock
) -> None:
    ready(reports, clock)
    fail(reports, clock)
    fail(reports, clock, 1, **LIMITED)
    fail(reports, clock, 1)
    assert reports.due == clock.now + 600


def test_a_refused_patch_of_the_node_delays_no_event(reports: ReportSchedule, clock: Clock) -> None:
    reports.observe(is_ready=True, why="versions")
    pauses = []
    for _ in range(8):
        assert reports.begin()["ready"] is True
        reports.end(REFUSED)
        pauses.append(reports.due - clock.now)
        reports.add({"reason": "DriftRepaired", "kind": "Normal", "message": ""})
        assert reports.due <= clock.now
        report = reports.begin()
        assert (report["ready"], len(report["events"])) == (None, 1)
        reports.end(DONE)
        assert reports.due == clock.now + pauses[-1]
        clock.now = reports.due
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600]
    fail(reports, clock, 1, **REFUSED)
    clock.now += 100
    reports.observe(is_ready=False, why="rolled back", is_harmed=True)
    assert reports.due == clock.now + 35
    clock.now += 35
    assert reports.begin()["ready"] is False


def test_a_refused_event_delays_no_label(reports: ReportSchedule, clock: Clock) -> None:
    ready(reports, clock)
    reports.add({"reason": "DriftRepaired", "kind": "Normal", "message": ""})
    reports.begin()
    assert reports.end({**REFUSED, "is_done": True, "wait": 60.0}) == REFUSED["error"]
    assert reports.due == clock.now + 60  # the Event
    reports.observe(is_ready=False, why="rolled back", is_harmed=True)
    assert reports.due <= clock.now


@pytest.mark.parametrize(
    ("outage", "change"),
    [
        pytest.param(60.0, None, id="a minute"),
        pytest.param(3600.0, None, id="an hour"),
        pytest.param(3600.0, {"is_ready": False, "is_harmed": True}, id="all rolled back"),
        pytest.param(3600.0, {"is_ready": False}, id="all lost"),
    ],
)
def test_after_an_outage_nodes_do_not_come_back_all_at_once(
    outage: float, change: dict[str, bool] | None
) -> None:
    """Every node loses the API server at the same moment, and gets it back at the same moment.

    With a `change`, each node changes as well, half a minute or a hold before the outage ends.
    """
    clock, nodes, arrivals = Clock(), 500, []
    changes_at = outage - (30 if change and "is_harmed" in change else HOLD)
    for _ in range(nodes):
        clock.now, is_changed = 0.0, False
        reports = ReportSchedule(SETTINGS, 300.0, clock)
        reports.observe(is_ready=True, why="versions")
        while clock.now <= outage:
            reports.begin()
            reports.end(AWAY)
            if change and not is_changed and reports.due > changes_at >= clock.now:
                clock.now, is_changed = changes_at, True
                reports.observe(why="", **change)
            clock.now = reports.due
        arrivals.append(clock.now - outage)
    busiest = max(sum(second <= each < second + 1 for each in arrivals) for second in range(1000))
    assert max(arrivals) <= 900
    # A tenth of the nodes in a second after a minute, a hundredth after an hour.
    assert busiest <= nodes * (0.1 if outage < 600 else 0.06 if change else 0.02)


def test_the_jitter_is_between_nothing_and_one() -> None:
    numbers = [report_schedule.chance() for _ in range(1000)]
    assert 0 <= min(numbers) < 0.1
    assert 0.9 < max(numbers) <= 1
