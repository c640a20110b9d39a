"""Time and memory grow with an input and not faster, however it is made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz import pathological
from tests.fuzz.pathological import KINDS
from tests.fuzz.strategies import SCALE, budget, unit_of_json, unit_of_toml

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_SIZE: Final = 12_000 * min(SCALE, 5)
_TIMES: Final = 4
_SUPERLINEAR: Final = 9.0
"""For four times the size: twice what is linear, and half of what is quadratic."""
_LITTLE: Final = 0.25
"""In seconds: what takes less on the greater size tells nothing."""
_MOST_PER_KIB: Final = 0.05
"""In seconds, on a slow machine."""


def measured(cases: Sequence[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """Measure cases in one process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.pathological"],
        input="".join(json.dumps(case) + "\n" for case in cases),
        cwd=_CHECKOUT, capture_output=True, text=True, timeout=110 * SCALE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timing
@pytest.mark.parametrize("kind", KINDS)
def test_time_and_memory_grow_with_the_input(kind: str) -> None:
    names = list(KINDS[kind][0])
    size = _SIZE if kind != "patterns" else 500
    found = measured([(kind, name, size * times) for name in names for times in (1, _TIMES)])
    assert len(found) == 2 * len(names)
    suspects = []
    for less, more in list(pairwise(found))[::2]:
        assert more["kib"] * 1024 < 40 * more["size"] + 60e6, more
        assert more["seconds"] < _MOST_PER_KIB * (more["size"] / 1024 + 4), more
        if more["seconds"] > _LITTLE and more["seconds"] > _SUPERLINEAR * less["seconds"]:
            suspects.append((less, more))
    # Once more, alone: a machine that is busy measures anything.
    for less, more in suspects:
        again = measured(
            [(kind, case["name"], case["size"]) for case in (less, more) for _ in range(3)]
        )
        fastest = [min(case["seconds"] for case in again[start : start + 3]) for start in (0, 3)]
        assert fastest[1] < _SUPERLINEAR * fastest[0], (less, more, fastest)


@budget(25)
@given(unit_of_toml(), st.integers(4, 12))
@example((b"a = ", b" ", b"[1]\n"), 8)
@example((b"a", b".a", b" = 1\n"), 8)
def test_any_repetition_in_toml_takes_linear_work(
    parts: tuple[bytes, bytes, bytes], size: int
) -> None:
    _linear("TOML", parts, size * 1024)


@budget(25)
@given(unit_of_json(), st.integers(4, 12))
@example((b'{"a": ', b"[", b""), 8)
def test_any_repetition_in_json_takes_linear_work(
    parts: tuple[bytes, bytes, bytes], size: int
) -> None:
    _linear("JSON", parts, size * 1024)


def _linear(kind: str, parts: tuple[bytes, bytes, bytes], size: int) -> None:
    """Check that a unit that is repeated takes work that grows with how often it is."""
    before, unit, after = parts
    count = max(1, size // max(1, len(unit)))
    calls = [_calls(kind, before + _repeated(unit, count * times) + after) for times in (1, _TIMES)]
    assert calls[1] < _SUPERLINEAR * max(calls[0], 1000), calls


def _repeated(unit: bytes, count: int) -> bytes:
    return b"".join(unit.replace(b"@", str(number).encode()) for number in range(count))


def _calls(kind: str, data: bytes) -> int:
    """Count the calls that a work makes, of Python and C functions: the same on every machine."""
    count = 0

    def called(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    outer = sys.getprofile()
    sys.setprofile(called)
    try:
        KINDS[kind][1](data)
    finally:
        sys.setprofile(outer)
    return count


@pytest.mark.timing
def test_the_largest_files_are_edited() -> None:
    """What is refused for its size is larger than anything known, and refused at once."""
    names = ("keys", "comments") if SCALE == 1 else tuple(pathological.TOML)
    found = measured([("TOML", name, 2_000_000) for name in names if name != "rubbish"])
    assert all(case["seconds"] < 1 for case in found if case["size"] > 1 << 20)
