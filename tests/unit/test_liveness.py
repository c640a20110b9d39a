"""What the liveness probe and /healthz decide on: the one function for both."""

from __future__ import annotations

import pytest

from toolkit.state.liveness import AgentState

IDLE = AgentState(pid=1, started=1, boot="b", since=1000.0, deadline=1540.0)
SYNCING = IDLE._replace(is_syncing=True, deadline=1240.0)


@pytest.mark.parametrize(
    ("state", "now", "problem"),
    [
        (IDLE, 1000, ""),
        (IDLE, 1540, ""),
        (IDLE, 1541, "a sync is due and has not been started; the last one ended 541 s ago"),
        (IDLE._replace(deadline=None), 10**9, ""),
        (SYNCING, 1240, ""),
        (SYNCING, 1241, "a sync has been running for 241 s"),
        (IDLE._replace(failed_starts=2, failure="no"), 1000, ""),
        (IDLE._replace(failed_starts=3, failure="no"), 1000, "no (3 times)"),
    ],
)
def test_the_agent_is_unhealthy_where_only_a_new_process_helps(
    state: AgentState, now: float, problem: str
) -> None:
    assert state.problem(now) == problem
