"""Killed, refused and cut off at each call by which a run starts and removes containers."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from tests.faults import laws, stories, trees
from tests.faults.conftest import Bench
from tests.faults.site import Run
from tests.faults.stories import Story
from tests.support.fake_node import needs_root

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900), needs_root]

KILLS: Final = ("kill", "kill after")
ERRORS: Final = ("refuse", "close")
_FOR_EVER: Final = 1000
_PATIENCE: Final = "1.5"
"""Seconds for what a refused removal is tried again."""


@pytest.fixture(scope="module")
def install(bench: Bench) -> Story:
    return stories.install(bench.library)


@pytest.fixture(scope="module")
def calls(bench: Bench, install: Story) -> list[str]:
    """Return the calls about pods that an install makes, in order."""
    assert disturbed(bench, install, {}).code == 0
    found: list[str] = bench.site.pods()["calls"]
    assert found.count("RunPodSandbox") == 3
    return found


def disturbed(bench: Bench, story: Story, at: dict[str, Any], **more: str) -> Run:
    """Run an operation from its beginning, with a fault."""
    bench.site.reset(story.start, {"well": {"at": at or None}})
    run = bench.site.run(["-n", *bench.options(**more)] if more else story.argv)
    bench.site.settle()
    bench.site.tell({})
    return run


def assert_whole(bench: Bench, story: Story) -> None:
    site, tree = bench.site, bench.site.tree()
    assert list(laws.torn(story, site.node, tree, site.has())) == []
    assert laws.too_ready(story, tree, site.pid()) == ""


def assert_ends_well(bench: Bench, story: Story, *, revert: bool) -> None:
    """The next run, or a revert in its place, leaves no container and what it should lead to."""
    site = bench.site
    run = site.run(story.revert if revert else story.argv)
    site.settle()
    assert run.code == 0, run
    assert site.pods()["pods"] == {}
    assert trees.differences(site.tree(), story.original if revert else story.new) == []
    if not revert:
        record = json.loads(site.tree()[trees.READY].data)
        assert set(record["verified"].values()) == {"started"}


@pytest.mark.parametrize("revert", [False, True], ids=["run", "revert"])
@pytest.mark.parametrize("how", KILLS)
def test_killed_at_each_call_about_a_container(
    bench: Bench, install: Story, calls: list[str], *, how: str, revert: bool
) -> None:
    left = 0
    for number in range(1, len(calls) + 1):
        run = disturbed(bench, install, {"call": number, "do": how})
        assert run.was_killed, (number, calls[number - 1], run)
        assert_whole(bench, install)
        left += len(bench.site.pods()["pods"])
        assert_ends_well(bench, install, revert=revert)
    assert left  # otherwise nothing was shown


@pytest.mark.parametrize("how", ERRORS)
def test_one_call_about_a_container_fails(
    bench: Bench, install: Story, calls: list[str], how: str
) -> None:
    for number in range(1, len(calls) + 1):
        run = disturbed(bench, install, {"call": number, "do": how})
        # What fails once is tried again: it is no reason to leave the node as it was.
        assert run.code == 0, (number, calls[number - 1], run)
        assert bench.site.pods()["pods"] == {}, (number, calls[number - 1])
        assert trees.differences(bench.site.tree(), install.new) == []


@pytest.mark.parametrize("how", ERRORS)
def test_calls_about_containers_fail_from_one_on(
    bench: Bench, install: Story, calls: list[str], how: str
) -> None:
    for number in range(1, len(calls) + 1):
        at = {"call": number, "last": _FOR_EVER, "do": how}
        run = disturbed(bench, install, at, reload_timeout=_PATIENCE)
        assert laws.improper(run) == ""
        # Other handlers start nothing either, so it is not the fault of ours.
        assert run.code == 0, (number, calls[number - 1], run)
        assert trees.differences(bench.site.tree(), install.new) == []
        assert_ends_well(bench, install, revert=number % 2 == 0)
