"""Everything that a node feels, measured side by side with the peer in one run: `make bench`.

It prints, and nothing fails on a slow machine. `--write` puts the table and the
picture into docs/; `--table FILE` keeps the table for somebody else.
"""

from __future__ import annotations

import argparse
import compileall
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import booted, local, peer, picture, table
from benchmarks.table import Row
from tests.support import nodes

_PAGE: Final = nodes.CHECKOUT / "docs/performance.md"
_PICTURE: Final = nodes.CHECKOUT / "docs/performance.svg"
_SMALL: Final = nodes.CHECKOUT / "docs/performance-small.svg"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer repetitions")
    parser.add_argument("--write", action="store_true", help="put the results into docs/")
    parser.add_argument("--table", type=Path, help="write the table into a file")
    parser.add_argument("--idle", type=int, help="seconds for which an idle process is watched")
    given = parser.parse_args()
    idle = given.idle or (15 if given.short else 600)
    nodes.cache().mkdir(parents=True, exist_ok=True)
    said = [table.machine(short=given.short)]
    if reason := peer.why_not():
        said.append(f"Nothing to compare with: {reason}.")
    parts: list[Callable[..., Iterator[Row]]] = [
        partial(booted.rows, idle_seconds=idle),
        local.rows,
    ]
    if reason := booted.why_not():
        said.append(f"Without booted nodes: {reason}.")
        del parts[0]
    if reason := local.why_no_image():
        said.append(f"Without the image: {reason}.")
    _compile()
    rows: list[Row] = []
    began = time.monotonic()
    for part in parts:
        for row in part(short=given.short):
            rows.append(row)
            sys.stderr.write(f"{time.monotonic() - began:5.0f} s  {row.line()}\n")
    text = table.text(rows, said)
    sys.stdout.write(text)
    if given.table:
        given.table.parent.mkdir(parents=True, exist_ok=True)
        given.table.write_text(text, encoding="utf-8")
    if given.write:
        table.put(_PAGE, text)
        _PICTURE.write_text(picture.svg(rows), encoding="utf-8")
        _SMALL.write_text(picture.svg(rows, picture.SMALL), encoding="utf-8")


def _compile() -> None:
    """Write the byte code, as every installation has it: the measured processes write none.

    Without it, a start from a fresh checkout takes twice as long.
    """
    for package in ("runtimes", "toolkit"):
        compileall.compile_dir(nodes.CHECKOUT / package, quiet=1)


if __name__ == "__main__":
    main()
