"""The downtime that is stated for a runtime: the documented measurements, rounded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtimes import distributions

TEXT = (Path(__file__).resolve().parents[2] / "docs/compatibility.md").read_text(encoding="utf-8")
UNITS = {"containerd": "containerd.service", "Docker": "docker.service", "CRI-O": "crio.service"}


def longest(runtime: str) -> float:
    """Return the longest silence of a runtime in the table of docs/compatibility.md, in seconds."""
    rows = re.findall(rf"^\| {runtime} [^|]*\|[^|]*\|[^|]*\|([^|]*)\|", TEXT, re.MULTILINE)
    return max(int(number) for row in rows for number in re.findall(r"(\d+) ms", row)) / 1000


@pytest.mark.parametrize(
    ("runtime", "table"),
    [
        ("containerd", distributions.RESTARTED),
        ("CRI-O", distributions.RESTARTED),
        ("Docker", distributions.SIGNALLED),
    ],
)
def test_the_numbers_are_the_documented_ones(runtime: str, table: dict[str, float]) -> None:
    assert table[UNITS[runtime]] == longest(runtime)


def test_that_of_a_hang_up_is_the_documented_one() -> None:
    found = re.search(r"socket is then\s+dead for [\d.]+ to ([\d.]+) s", TEXT)
    assert found is not None
    assert distributions.SIGNALLED["containerd.service"] == float(found[1])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.007, "less than 0.1 s"),
        (0.111, "about 0.1 s"),
        (0.151, "about 0.2 s"),
        (5.2, "about 5 s"),
    ],
)
def test_it_is_said_as_roughly_as_it_is_known(seconds: float, words: str) -> None:
    assert distributions.duration(seconds) == words
