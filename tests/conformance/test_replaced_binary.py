"""The node's containerd is replaced by another version, older or newer, after the installation.

containerd 1.x takes a whole section from the last file that has it: a drop-in that was written for
2.x would take the place of everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any, Final

import pytest

from runtimes import planner
from runtimes.edits import merge
from runtimes.errors import ConfigError
from runtimes.model import ConfigPlan, Ownership, fingerprint
from tests.conformance.test_corpus import OURS, check, dump, root, runc, told
from tests.support import binaries, pure_plan

REGISTRY: Final = """\
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.example.com/pause:3.10"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/etc/containerd/certs.d"
"""
FOREIGN: Final = (
    b'version = 2\n[plugins."io.containerd.gc.v1.scheduler"]\nstartup_delay = "200ms"\n'
)
NODES: Final[Mapping[str, pure_plan.Files]] = {
    "kubeadm": {pure_plan.CONFIG: root(2, runc=runc(2)) + REGISTRY.encode()},
    "an import of others": {
        pure_plan.CONFIG: (
            root(2, 'imports = ["/etc/containerd/conf.d/*.toml"]', runc(2)) + REGISTRY.encode()
        ),
        "/etc/containerd/conf.d/10-gc.toml": FOREIGN,
    },
    "the built-in runc": {pure_plan.CONFIG: root(2) + REGISTRY.encode()},
    "no file": {},
}
PAIRS: Final = [
    pair for pair in permutations(binaries.LINES, 2) if {pair[0][0], pair[1][0]} == {"1", "2"}
] + [("2.3", "2.1"), ("2.1", "2.3"), ("2.4", "2.2"), ("2.2", "2.4")]


def owned(plan: ConfigPlan, before: tuple[Ownership, ...] = ()) -> tuple[Ownership, ...]:
    """Return what is owned once a plan is in effect: the oldest original stays."""
    result = {each.path: each for each in before}
    for each in pure_plan.ownership(plan):
        known = result.get(each.path)
        result[each.path] = (
            each
            if known is None
            else replace(known, written=each.written, edits=merge(known.edits, each.edits))
        )
    gone = [change.path for change in plan.changes if change.after is None]
    result.update({path: replace(result[path], written=(fingerprint(None),)) for path in gone})
    return tuple(result.values())


@pytest.mark.binary
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_node_is_repaired_for_the_binary_that_it_has_now(
    pair: tuple[str, str], node: str
) -> None:
    files, wish = NODES[node], pure_plan.desired()
    first, second = (binaries.find(line) for line in pair)
    installed = pure_plan.plan(wish, files, partial(binaries.ask, first))
    after, record = pure_plan.after(files, installed), owned(installed)
    ask = partial(binaries.ask, second)
    repair = pure_plan.plan(wish, after, ask, record)
    if pair[0] > pair[1] and pair[1] < "2":
        assert not repair.is_noop
    repaired, record = pure_plan.after(after, repair), owned(repair, record)
    check(told(dump(second, files)), told(dump(second, repaired)))
    assert pure_plan.plan(wish, repaired, ask, record).is_noop
    assert pure_plan.after(repaired, pure_plan.removal(wish, repaired, record, ask)) == dict(files)
    # And back again.
    ask = partial(binaries.ask, first)
    back = pure_plan.plan(wish, repaired, ask, record)
    restored, record = pure_plan.after(repaired, back), owned(back, record)
    check(told(dump(first, files)), told(dump(first, restored)))
    assert pure_plan.after(restored, pure_plan.removal(wish, restored, record, ask)) == dict(files)


@pytest.mark.binary
@pytest.mark.parametrize("line", ["1.6", "1.7"])
def test_a_revert_is_held_against_the_files_without_our_keys(line: str) -> None:
    files, wish = NODES["kubeadm"], pure_plan.desired()
    installed = pure_plan.plan(wish, files, partial(binaries.ask, binaries.find("2.1")))
    after, record = pure_plan.after(files, installed), owned(installed)
    seen = pure_plan.observe(wish, after, partial(binaries.ask, binaries.find(line)), record)
    adapter = pure_plan.ADAPTER
    broken, without = adapter.effective(wish, seen), adapter.effective_without_us(wish, seen)
    assert broken.sandbox_image != "registry.example.com/pause:3.10"
    assert broken.handlers == frozenset(OURS)
    assert without.sandbox_image == "registry.example.com/pause:3.10"
    assert without.handlers == frozenset({"runc"})


@pytest.mark.binary
@pytest.mark.parametrize("line", ["1.6", "1.7"])
def test_keys_that_do_harm_are_not_in_sync(line: str) -> None:
    """The effect decides, whatever the plan keeps: here others had taken the drop-in over."""
    files: dict[str, Any] = {**NODES["kubeadm"], pure_plan.DROP_IN: b"version = 2\n"}
    wish = pure_plan.desired()
    installed = pure_plan.plan(wish, files, partial(binaries.ask, binaries.find("2.1")))
    after, record = pure_plan.after(files, installed), owned(installed)
    seen = pure_plan.observe(wish, after, partial(binaries.ask, binaries.find(line)), record)
    assert pure_plan.ADAPTER.in_sync_problems(wish, seen)
    with pytest.raises(ConfigError):
        planner.check_in_sync(pure_plan.ADAPTER, wish, seen)
