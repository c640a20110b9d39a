"""The ratios as a picture: one bar for each row, on a logarithmic scale, the peer at 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

from benchmarks.table import Row, shown

_WIDTH: Final = 860
_LEFT: Final = 330
_RIGHT: Final = 150
_STEP: Final = 26
_TOP: Final = 46
_LEAST: Final = 0.001
_TITLE: Final = "This program as a share of nvidia-ctk-installer (1 is the same, left is better)"
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#333}.t{font-weight:bold}.n{fill:#777}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.n{fill:#999}}"
)


def svg(rows: Sequence[Row]) -> str:
    """Return a picture of the rows that have a ratio."""
    compared = [row for row in rows if row.ratio is not None]
    ratios = [max(row.ratio or 0, _LEAST) for row in compared]
    low = min([0.1, *ratios])
    high = max([2.0, *ratios])
    room = _WIDTH - _LEFT - _RIGHT

    def x(ratio: float) -> float:
        share = (math.log(ratio) - math.log(low)) / (math.log(high) - math.log(low))
        return _LEFT + share * room

    height = _TOP + _STEP * len(compared) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{_TITLE}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="t" x="10" y="20">{_TITLE}</text>',
    ]
    for mark in (0.001, 0.01, 0.1, 1.0, 10.0):
        if low <= mark <= high:
            parts.append(_line(x(mark), height - 26, strong=mark == 1))
            parts.append(
                f'<text class="n" x="{x(mark):.1f}" y="{height - 10}"'
                f' text-anchor="middle">{mark:g}</text>'
            )
    for index, (row, ratio) in enumerate(zip(compared, ratios, strict=True)):
        parts += _bar(row, _TOP + index * _STEP, x(1), x(ratio))
    return "\n".join([*parts, "</svg>", ""])


def _line(x: float, bottom: float, *, strong: bool) -> str:
    width = 1.5 if strong else 0.5
    ends = f'x1="{x:.1f}" y1="{_TOP - 10}" x2="{x:.1f}" y2="{bottom}"'
    return f'<line {ends} stroke="#888" stroke-width="{width}"/>'


def _bar(row: Row, y: float, one: float, end: float) -> list[str]:
    colour = "#3a7d2c" if end <= one else "#b3541e"
    start, width = min(one, end), max(abs(end - one), 1)
    theirs = shown(row.theirs or 0, row.unit)
    values = f"{row.ratio:.2g}: {shown(row.ours, row.unit)} / {theirs}"
    return [
        f'<text x="{_LEFT - 10}" y="{y + 12}" text-anchor="end">{escape(row.what)}</text>',
        f'<rect x="{start:.1f}" y="{y}" width="{width:.1f}" height="16" rx="2" fill="{colour}"/>',
        f'<text class="n" x="{_WIDTH - _RIGHT + 8}" y="{y + 12}">{escape(values)}</text>',
    ]
