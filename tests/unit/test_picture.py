"""The picture of the comparison."""

from __future__ import annotations

import re

from benchmarks import picture
from benchmarks.table import Row

SLOW = Row(what="a <slow> row", unit="s", ours=2.0, theirs=0.5)
FAST = Row(what="a fast row", unit="s", ours=0.001, theirs=4.0)


def bars(text: str, kind: str) -> list[float]:
    return [float(width) for width in re.findall(rf'class="{kind}"[^>]* width="([\d.]+)"', text)]


def test_each_pair_of_bars_is_in_proportion() -> None:
    text = picture.svg([SLOW, FAST])
    ours, theirs = bars(text, "o"), bars(text, "p")
    assert max(ours) == max(theirs) == ours[0] == theirs[1]
    assert theirs[0] == ours[0] / 4
    assert ours[1] == 1  # it can be seen
    assert "a &lt;slow&gt; row" in text
    assert re.findall(r">([\d.]+ m?s)<", text) == ["2 s", "500 ms", "1 ms", "4 s"]


def test_what_cannot_be_compared_by_length_is_left_out() -> None:
    rows = [
        Row(what="a count", unit="", ours=0, theirs=21),
        Row(what="a difference", unit="s", ours=-0.1, theirs=0.5),
        Row(what="no peer", unit="s", ours=1),
        FAST,
    ]
    assert len(bars(picture.svg(rows), "o")) == 1
    assert bars(picture.svg([SLOW, FAST], {"a fast row"}), "o") == [1.0]
    assert "rect" not in picture.svg([])
