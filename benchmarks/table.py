"""The results: rows for people, ratios first, since machines differ and ratios less so."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"
_HEADER: Final = (
    "| what | ratio | this program | nvidia-ctk-installer | goal | met |\n"
    "| --- | ---: | ---: | ---: | --- | --- |"
)
_NONE: Final = "—"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement: less is better.

    `theirs` is None where the peer cannot do it, or was not there. The goal is
    `most` in the row's unit, or `share` of what the peer takes; both None where
    there is none.
    """

    what: str
    unit: str
    ours: float
    theirs: float | None = None
    most: float | None = None
    share: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Return ours as a share of theirs, where both are something that happened."""
        return (
            self.ours / self.theirs
            if self.theirs and math.isfinite(self.ours + self.theirs)
            else None
        )

    @property
    def is_met(self) -> bool | None:
        """Tell whether the goal is reached; None where there is none, or nobody to compare with."""
        if self.most is not None:
            return self.ours <= self.most
        if self.share is None or self.theirs is None:
            return None
        return self.ours <= self.share * self.theirs

    def line(self) -> str:
        """Return the row as Markdown."""
        goal = _NONE
        if self.most is not None:
            goal = f"at most {shown(self.most, self.unit)}"
        elif self.share is not None:
            goal = f"at most {self.share:g} of the peer's"
        met = {True: "yes", False: "**no**", None: _NONE}[self.is_met]
        note = f" ({self.note})" if self.note else ""
        cells = (
            f"{self.what}{note}",
            _NONE if self.ratio is None else f"{self.ratio:.2f}",
            shown(self.ours, self.unit),
            _NONE if self.theirs is None else shown(self.theirs, self.unit),
            goal,
            met,
        )
        return f"| {' | '.join(cells)} |"


def shown(value: float, unit: str) -> str:
    """Return a value as people read it: three digits that count."""
    if math.isinf(value):
        return "never, while it was watched"
    if unit == "":
        return f"{value:.0f}"
    if unit == "s" and value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} {unit}"


def machine(*, short: bool) -> str:
    """Return what the numbers were measured on, in one line."""
    load = os.getloadavg()[0]
    form = "short form" if short else "full form"
    return (
        f"Measured ({form}) on {os.cpu_count()} cores, Linux {platform.release()}, Python"
        f" {platform.python_version()}; load when it began {load:.1f}."
    )


def text(rows: Sequence[Row], said: Sequence[str]) -> str:
    """Return the whole table, with what is to be said about it."""
    return "\n".join([*said, "", _HEADER, *(row.line() for row in rows), ""])


def put(page: Path, table: str) -> None:
    """Write the table into a page, between its marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table}{END}{after}", encoding="utf-8")
