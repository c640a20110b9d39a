"""Two installers at the same moment with different wishes: one of them has its way, and whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from tests.faults import trees
from tests.faults.conftest import Bench
from tests.faults.site import ENVIRONMENT
from tests.faults.trees import Tree
from tests.support import fake_node
from tests.support.fake_node import needs_root

pytestmark = [
    pytest.mark.faults,
    needs_root,
    pytest.mark.skipif(
        shutil.which("strace") is None, reason="strace is not installed: apt-get install strace"
    ),
]

TIMES: Final = 50
CLASSES: Final = ("red", "green")


def both(bench: Bench) -> Iterator[tuple[int, int, str]]:
    """Run both at once; yield PID, exit code and stderr of each."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                fake_node.started(
                    (
                        *bench.site.prefix,
                        *fake_node.program("-n", *bench.options(runtime_class=name)),
                    ),
                    **ENVIRONMENT,
                )
            )
            for name in CLASSES
        ]
        for process in running:
            _, said = process.communicate(timeout=60)
            yield process.pid, process.returncode, said


def after(bench: Bench, *names: str) -> Tree:
    bench.begin()
    for name in names:
        done = bench.site.run(["-n", *bench.options(runtime_class=name)])
        assert done.code == 0, done
    return bench.site.tree()


@pytest.mark.timeout(600)
def test_one_of_two_has_its_way(bench: Bench) -> None:
    wanted = [after(bench, *names) for names in (CLASSES[:1], CLASSES[1:], CLASSES, CLASSES[::-1])]
    lost = 0
    for _ in range(TIMES):
        bench.begin()
        ends = list(both(bench))
        bench.site.settle()
        found = [trees.differences(bench.site.tree(), each) for each in wanted]
        assert [] in found, (ends, found)
        codes = sorted(code for _, code, _ in ends)
        assert codes in ([0, 0], [0, 5])
        if codes == [0, 5]:
            lost += 1
            winner = next(pid for pid, code, _ in ends if code == 0)
            told = next(said for _, code, said in ends if code == 5)
            assert f"another instance (PID {winner}) holds" in told
    assert lost > 0, "they never met"
