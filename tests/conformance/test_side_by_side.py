"""Every option, alias and variable of the upstream installer, in both programs, with each runtime.

The effect is the same, or it is in the list of deliberate differences (tools/differences.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import pytest

from tests.support import side_by_side
from tests.support.side_by_side import Case
from tests.unit.test_settings import PEER
from tools.differences import DIFFERENCES

pytestmark = pytest.mark.binary

NOT_SHOWN: Final = {"--set-as-default", "--ignore-errors", "--opt-in-features"}
"""Options that upstream's --help does not show."""
PATTERNS: Final = [pattern for each in DIFFERENCES for pattern in each.cases]
CASES: Final = list(side_by_side.cases())


def groups() -> dict[str, list[Case]]:
    """Return the cases of each runtime and option, of which each has several spellings."""
    result: dict[str, list[Case]] = {}
    names = {name: row[0].split()[0] for row in PEER for name in f"{row[0]} {row[1]}".split()}
    for case in CASES:
        name = case.given[0].partition("=")[0]
        is_alone = len(case.given) == 1 and name in names
        result.setdefault(
            f"{case.runtime} {names[name] if is_alone else ' '.join(case.given)}", []
        ).append(case)
    return result


def differences(case: Case, place: Path) -> Sequence[str]:
    """Return what differs in the effect of a case, in two copies of the same node."""
    theirs = side_by_side.upstream(case, place)
    shutil.rmtree(place)
    ours = side_by_side.here(case, place)
    shutil.rmtree(place)
    return side_by_side.difference(theirs, ours)


def test_the_options_are_those_of_upstream_s_help() -> None:
    shown = set(side_by_side.upstream_help()) - {("--help -h", ""), ("--version -v", "")}
    assert shown == {
        (flags, variables) for flags, variables, _ in PEER if flags.split()[0] not in NOT_SHOWN
    }


@pytest.mark.parametrize("group", groups().values(), ids=groups())
def test_the_effect_is_the_same_or_a_deliberate_difference(
    tmp_path: Path, group: list[Case]
) -> None:
    for case in group:
        found = differences(case, tmp_path / "node")
        is_listed = any(fnmatchcase(str(case), pattern) for pattern in PATTERNS)
        assert bool(found) == is_listed, f"{case}: {'listed, but the same' if is_listed else found}"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_difference_has_a_case(pattern: str) -> None:
    assert [case for case in CASES if fnmatchcase(str(case), pattern)]
