"""When the next look is due: debounce, back-off in a fight, retries, and looks without a reason."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.agent.schedule import CALM, PATIENT, QUIET, Schedule

START = 1000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Schedule:
    return Schedule(300.0, clock)


def test_without_a_reason_a_look_is_due_after_the_interval(pace: Schedule, clock: Clock) -> None:
    assert pace.due == START + 300
    clock.now += 300
    pace.began()
    pace.ended(code=0, is_changed=False)
    assert pace.due == START + 600


def test_another_interval_counts_from_now(pace: Schedule, clock: Clock) -> None:
    clock.now += 100
    pace.set_interval(300)
    assert pace.due == START + 300
    pace.set_interval(60)
    assert pace.due == clock.now + 60


def test_a_change_is_looked_at_once_it_is_quiet(pace: Schedule, clock: Clock) -> None:
    pace.changed()
    assert pace.due == START + QUIET
    clock.now += QUIET / 2
    pace.changed()
    assert pace.due == pytest.approx(START + QUIET * 1.5)


def test_changes_without_an_end_are_looked_at_all_the_same(pace: Schedule, clock: Clock) -> None:
    while clock.now < START + 10 and pace.due > clock.now:
        pace.changed()
        clock.now += QUIET / 3
    assert clock.now <= START + PATIENT + QUIET


def test_a_change_during_a_look_is_a_reason_for_another(pace: Schedule, clock: Clock) -> None:
    pace.changed()
    clock.now = pace.due
    pace.began()
    clock.now += 0.1
    pace.changed()
    pace.ended(code=0, is_changed=True)
    assert pace.due == clock.now + QUIET


def test_what_was_looked_at_is_no_reason_any_more(pace: Schedule, clock: Clock) -> None:
    pace.changed()
    pace.began()
    pace.ended(code=0, is_changed=False)
    assert pace.due == clock.now + 300


def test_a_fight_is_slowed_down(pace: Schedule, clock: Clock) -> None:
    pauses = []
    for _ in range(12):
        pace.changed()
        pauses.append(pace.due - clock.now)
        clock.now = pace.due
        pace.began()
        pace.ended(code=0, is_changed=True)
    assert pauses[:5] == pytest.approx([QUIET, QUIET, 1.0, 2.0, 4.0])
    assert pauses[-1] == 300
    assert pauses == sorted(pauses)


def test_a_fight_is_forgotten_after_a_calm_time(pace: Schedule, clock: Clock) -> None:
    for _ in range(5):
        clock.now = max(clock.now, pace.due)
        pace.began()
        pace.ended(code=0, is_changed=True)
    assert pace.streak == 5
    for _ in range(2):
        clock.now += CALM - 1
        pace.began()
        pace.ended(code=0, is_changed=False)
    assert pace.streak == 0
    pace.changed()
    assert pace.due == clock.now + QUIET


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
def test_what_failed_is_tried_again_by_itself(pace: Schedule, clock: Clock, code: int) -> None:
    pauses = []
    for _ in range(10):
        pace.began()
        pace.ended(code=code, is_changed=False)
        pauses.append(pace.due - clock.now)
        clock.now = pace.due
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 60, 60]


def test_a_change_shortens_the_wait_after_a_failure(pace: Schedule, clock: Clock) -> None:
    for _ in range(8):
        pace.began()
        pace.ended(code=4, is_changed=False)
        clock.now = pace.due
    pace.began()
    pace.ended(code=4, is_changed=False)
    pace.changed()
    assert pace.due == clock.now + 10


@pytest.mark.parametrize("code", [6, 7])
def test_after_a_change_that_had_to_be_taken_back_nothing_is_hurried(
    pace: Schedule, clock: Clock, code: int
) -> None:
    pauses = []
    for _ in range(6):
        pace.began()
        pace.ended(code=code, is_changed=False)
        pace.changed()
        pauses.append(pace.due - clock.now)
        clock.now = pace.due
    assert pauses == [30, 60, 120, 240, 300, 300]


def test_who_asks_is_served_at_once(pace: Schedule, clock: Clock) -> None:
    for _ in range(5):
        pace.began()
        pace.ended(code=7, is_changed=False)
    pace.wanted()
    assert pace.due == clock.now


def test_who_never_looks_looks_when_asked(clock: Clock) -> None:
    pace = Schedule(float("inf"), clock)
    assert pace.due == float("inf")
    pace.wanted()
    assert pace.due == clock.now
    pace.began()
    pace.ended(code=0, is_changed=False)
    assert pace.due == float("inf")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["changed", "look"]),
            st.floats(0, 50),
            st.booleans(),
            st.integers(0, 7),
        )
    )
)
def test_no_story_makes_it_look_more_often_than_a_fight_allows(
    story: list[tuple[str, float, bool, int]],
) -> None:
    """Two checks that found trouble are never closer than their streak allows."""
    clock = Clock()
    pace = Schedule(300.0, clock)
    troubles = []
    for what, wait, is_changed, code in story:
        clock.now += wait
        if what == "changed":
            pace.changed()
        elif pace.due <= clock.now:
            pace.began()
            if is_changed or code:
                troubles.append((clock.now, code, pace.streak))
            pace.ended(code=code, is_changed=is_changed)
        assert pace.due >= START
    for (before, code, streak), (now, _, _) in itertools.pairwise(troubles):
        if not code and streak:
            assert now - before >= min(2.0**streak / 2, 300)
