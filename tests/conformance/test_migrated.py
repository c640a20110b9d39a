"""`containerd config migrate`, the documented way from 1.x to 2.x, moves our keys elsewhere."""

from __future__ import annotations

import tomllib
from functools import partial
from typing import Final

import pytest

from runtimes import planner
from runtimes.model import BinaryQuery, token
from tests.conformance.test_corpus import OURS, told
from tests.conformance.test_replaced_binary import NODES, owned
from tests.support import binaries, pure_plan

MIGRATING: Final = ("2.1", "2.2", "2.3", "2.4")


def migrated(line: str, data: bytes) -> bytes:
    query = BinaryQuery(
        name="migrate", argv=("--config", token(0), "config", "migrate"), files=(data,)
    )
    answer = binaries.ask(binaries.find(line), query)
    assert answer.ok, answer.err
    return answer.out.encode()


@pytest.mark.binary
@pytest.mark.parametrize("default", ["nvidia", None])
@pytest.mark.parametrize("line", MIGRATING)
@pytest.mark.parametrize("old", ["1.6", "1.7"])
def test_a_revert_finds_our_keys_where_they_were_moved(
    old: str, line: str, default: str | None
) -> None:
    files, wish = NODES["kubeadm"], pure_plan.desired(default=default)
    installed = pure_plan.plan(wish, files, partial(binaries.ask, binaries.find(old)))
    after, record = pure_plan.after(files, installed), owned(installed)
    moved = {**after, pure_plan.CONFIG: migrated(line, after[pure_plan.CONFIG])}
    record = planner.relocated(pure_plan.ADAPTER, record, moved)
    ask = partial(binaries.ask, binaries.find(line))
    removal = pure_plan.removal(wish, moved, record, ask)
    left = pure_plan.after(moved, removal)[pure_plan.CONFIG]
    assert b"nvidia" not in left.replace(b"/conf.d/99-nvidia", b"")
    # What is left is what the migration makes of the files as they were before us.
    expected = told(tomllib.loads(migrated(line, files[pure_plan.CONFIG]).decode()))
    actual = told(tomllib.loads(left.decode()))
    assert (actual.rest, actual.handlers) == (expected.rest, expected.handlers)
    assert actual.default in {"", expected.default}


@pytest.mark.binary
@pytest.mark.parametrize("line", MIGRATING)
def test_a_run_after_the_migration_leads_back_as_well(line: str) -> None:
    files, wish = NODES["kubeadm"], pure_plan.desired()
    installed = pure_plan.plan(wish, files, partial(binaries.ask, binaries.find("1.7")))
    after, record = pure_plan.after(files, installed), owned(installed)
    moved = {**after, pure_plan.CONFIG: migrated(line, after[pure_plan.CONFIG])}
    ask = partial(binaries.ask, binaries.find(line))
    known = planner.relocated(pure_plan.ADAPTER, record, moved)
    plan = pure_plan.plan(wish, moved, ask, known)
    now = pure_plan.after(moved, plan)
    known = planner.relocated(pure_plan.ADAPTER, owned(plan, known), now)
    assert pure_plan.plan(wish, now, ask, known).is_noop
    left = pure_plan.after(now, pure_plan.removal(wish, now, known, ask))
    assert not any(name.encode() in data for data in left.values() for name in OURS - {"nvidia"})
