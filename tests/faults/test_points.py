"""Three operations, disturbed at every point; `make faults` does all, with every error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Final

import pytest

from tests.faults.campaign import SAMPLED, Campaign, Tally, campaign
from tests.faults.stories import STORIES
from tests.faults.trees import CONFIG, Item
from tests.support import real
from tests.support.fake_node import needs_root

OFTEN: Final = ("install", "upgrade", "revert")
FEWEST: Final = 40
"""Each of them makes more calls than that."""

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(1200),
    needs_root,
    pytest.mark.skipif(
        shutil.which("strace") is None, reason="strace is not installed: apt-get install strace"
    ),
]


@pytest.fixture(scope="module")
def whole() -> Iterator[Campaign]:
    with campaign(SAMPLED) as found:
        yield found


@pytest.mark.parametrize("name", OFTEN)
def test_a_run_is_forked_as_users_start_it(whole: Campaign, name: str) -> None:
    ours, theirs = whole.as_users_start_it(STORIES[name](whole.library))
    assert ours == theirs
    assert len(ours) > FEWEST


@pytest.mark.smoke
def test_an_install_killed_at_some_points_tears_and_loses_nothing(whole: Campaign) -> None:
    tally = whole.kills(STORIES["install"](whole.library), every=12)
    real.USED.add(f"faults: {tally.line()}")
    assert tally.problems() == []


@pytest.mark.parametrize("name", OFTEN)
def test_a_killed_run_tears_and_loses_nothing(whole: Campaign, name: str) -> None:
    # `make faults FULL=1` stops at every call of each.
    tally = whole.kills(STORIES[name](whole.library), every=1 if name == "install" else 3)
    real.USED.add(f"faults: {tally.line()}")
    assert tally.problems() == []
    assert tally.kills > FEWEST


@pytest.mark.parametrize("name", OFTEN)
def test_a_run_that_is_refused_a_call_changes_nothing_or_everything(
    whole: Campaign, name: str
) -> None:
    tally = whole.errors(STORIES[name](whole.library))
    real.USED.add(f"faults: {tally.line()}")
    assert tally.problems() == []
    assert tally.errors.total() > FEWEST


def test_a_proof_that_reaches_nothing_is_none() -> None:
    nothing = Tally(story="install")
    assert nothing.problems() == ["install: no point was reached"]
    some = Tally(story="install", kills=100, missed=["one", "two"])
    assert some.problems() == []
    some.missed.append("three")
    assert some.problems() == ["install: 3 points were not reached: ['one', 'two', 'three']"]


@pytest.mark.binary
def test_a_real_containerd_loads_what_is_left(whole: Campaign) -> None:
    if whole.loader.program is None:
        pytest.skip("no containerd is built: make conformance")
    assert "does not load it" in whole.loader.problem(
        {CONFIG: Item(0o644, (0, 0), b"version = 9\n")}
    )
