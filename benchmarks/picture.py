"""The comparison as a picture: for each row two bars, as long as the values that stand beside them.

The scale is linear, and each row has its own: the longer of its bars has the full length.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from html import escape
from typing import Final

from benchmarks.table import Row, shown

SMALL: Final = (
    "a pod start on a node that is right: ready",
    "first install: socket dead",
    "idle: memory (PSS)",
    "an OCI call through the wrapper, driver there",
    "first install of 64 MB, warm",
)
"""The rows of the small picture."""

_WIDTH: Final = 640
_EDGE: Final = 10
_NAMES: Final = 150
_BAR: Final = 380
_STEP: Final = 60
_TOP: Final = 34
_TITLE: Final = (
    "Beside the upstream installer (shorter is better; each pair has a scale of its own)"
)
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#333}.t{font-weight:bold}.o{fill:#2e8b3d}.p{fill:#8c8c8c}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)
_LINES: Final = (("this program", "o"), ("nvidia-ctk-installer", "p"))


def svg(rows: Sequence[Row], wanted: Collection[str] = ()) -> str:
    """Return a picture of the wanted rows, or of all, that compare a time or a size.

    Counts are left out, since nothing can be seen of none, and so are differences below zero.
    """
    compared = [
        row
        for row in rows
        if row.ratio is not None
        and row.ratio > 0
        and row.unit
        and (not wanted or row.what in wanted)
    ]
    height = _TOP + _STEP * len(compared)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{_TITLE}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="t" x="{_EDGE}" y="18">{_TITLE}</text>',
    ]
    for index, row in enumerate(compared):
        parts += _pair(row, _TOP + index * _STEP)
    return "\n".join([*parts, "</svg>", ""])


def _pair(row: Row, top: int) -> Iterator[str]:
    yield f'<text x="{_EDGE}" y="{top + 12}">{escape(row.what)}</text>'
    values = (row.ours, row.theirs or 0)
    for index, ((name, kind), value) in enumerate(zip(_LINES, values, strict=True)):
        y = top + 18 + index * 16
        width = max(_BAR * value / max(values), 1)
        start = _EDGE + _NAMES
        yield f'<text x="{start - 8}" y="{y + 11}" text-anchor="end">{name}</text>'
        yield (f'<rect class="{kind}" x="{start}" y="{y}" width="{width:.1f}" height="13" rx="2"/>')
        yield f'<text x="{start + width + 6:.1f}" y="{y + 11}">{shown(value, row.unit)}</text>'
