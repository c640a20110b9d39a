"""Three operations, disturbed at every point; `make faults` does all, and gives each call every error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Final

import pytest

from tests.faults.campaign import SAMPLED, Campaign, Tally, campaign
from tests.faults.stories import STORIES
from tests.workshop import needs_root

OFTEN: Final = ("install", "upgrade", "revert")

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(1200),
    needs_root,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]


@pytest.fixture(scope="module")
def whole() -> Iterator[Campaign]:
    with campaign(SAMPLED) as found:
        yield found


@pytest.mark.parametrize("name", OFTEN)
def test_a_run_is_forked_as_users_start_it(whole: Campaign, name: str) -> None:
    ours, theirs = whole.as_users_start_it(STORIES[name](whole.library))
    assert ours == theirs


@pytest.mark.parametrize("name", OFTEN)
def test_a_killed_run_tears_and_loses_nothing(whole: Campaign, name: str) -> None:
    assert _bad(whole.kills(STORIES[name](whole.library))) == []


@pytest.mark.parametrize("name", OFTEN)
def test_a_run_that_is_refused_a_call_changes_nothing_or_everything(whole: Campaign, name: str) -> None:
    assert _bad(whole.errors(STORIES[name](whole.library))) == []


def _bad(tally: Tally) -> list[str]:
    return [f"{kind}: {text}" for kind, text in tally.bad]
