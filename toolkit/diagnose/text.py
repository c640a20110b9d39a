"""Format the report of `diagnose` as text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from toolkit import log


def text(result: Mapping[str, Any], *, colour: bool = False) -> str:
    """Return a report as text: the problems first, then every section."""
    coloured = partial(_coloured, wanted=colour)
    lines = ["findings\n"]
    for number, each in enumerate(result["findings"], 1):
        lines.append(coloured(f"  {number}. {each['problem']}\n", log.RED))
        lines.append(coloured(f"     -> {each['hint']}\n", log.CYAN))
    if not result["findings"]:
        lines.append(coloured("  no problems found\n", log.GREEN))
    for name, section in result.items():
        if name not in ("findings", "format"):
            lines.append("\n")
            lines += ["".join(_printable(line)) for line in _shown(name, section, "")]
    return "".join(lines)


def _coloured(line: str, code: str, *, wanted: bool) -> str:
    """Return a line without control characters, with `wanted` in a colour."""
    plain = "".join(_printable(line)).removesuffix("\n")
    return f"{log.coloured(plain, code, wanted=wanted)}\n"


def _shown(name: str, item: Any, indent: str) -> Iterator[str]:
    """Yield the lines of a value under its name."""
    if isinstance(item, Mapping) and item:
        yield f"{indent}{name}\n"
        for key, inner in item.items():
            yield from _shown(str(key), inner, indent + "  ")
    elif isinstance(item, list) and name == "argv":
        yield f"{indent}{name}: {shlex.join(item)}\n"
    elif isinstance(item, list) and any(not isinstance(each, str) or " " in each for each in item):
        yield f"{indent}{name}\n"
        for each in item:
            yield from _entry(each, indent + "  ")
    elif isinstance(item, str) and "\n" in item:
        yield f"{indent}{name}\n"
        yield from (f"{indent}  | {line}\n" for line in item.splitlines())
    else:
        yield f"{indent}{name}: {_scalar(item)}\n"


def _entry(item: Any, indent: str) -> Iterator[str]:
    if not isinstance(item, Mapping):
        yield f"{indent}- {_scalar(item)}\n"
        return
    marker = "- "
    for key, inner in item.items():
        first, *rest = _shown(str(key), inner, indent + "  ")
        yield f"{indent}{marker}{first.lstrip()}"
        yield from rest
        marker = "  "


def _scalar(item: Any) -> str:
    match item:
        case None | "" | [] | {}:
            return "-"
        case bool():
            return "yes" if item else "no"
        case list():
            return " ".join(map(str, item))
        case _:
            return str(item)


def _printable(line: str) -> Iterator[str]:
    """Yield the characters of a line, with control and unprintable characters escaped."""
    for char in line:
        yield char if char.isprintable() or char == "\n" else ascii(char)[1:-1]
