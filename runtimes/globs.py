"""Patterns as Go reads them: `filepath.Match`, which containerd uses for its imports."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_PARTS: Final = re.compile(r"\[\^?(?:\\.|[^\]])+\]|\\.|.", re.DOTALL)
_RANGE: Final = re.compile(r"(\\.|[^\\\]-])(?:-(\\.|[^\\\]-]))?", re.DOTALL)
_LONGEST: Final = 4096
"""No path is longer (PATH_MAX), so no longer pattern names one."""


def matches(pattern: str, path: str) -> bool:
    """Tell whether a pattern names a path; `*` and `?` match a leading dot but no slash."""
    return expression(pattern).fullmatch(path) is not None


@lru_cache(maxsize=256)
def expression(pattern: str) -> re.Pattern[str]:
    """Return a pattern as a regular expression; one that is malformed matches only itself."""
    try:
        text = _translated(pattern) if len(pattern) <= _LONGEST else re.escape(pattern)
        return re.compile(text, re.DOTALL)
    except re.error:
        return re.compile(re.escape(pattern))


def _translated(pattern: str) -> str:
    chunks = [""]
    for part in _PARTS.findall(pattern):
        if part == "*":
            chunks.append("")
        elif part == "?":
            chunks[-1] += "[^/]"
        elif part[0] == "[" and len(part) > 1:
            chunks[-1] += _class(part)
        else:
            chunks[-1] += re.escape(part[-1])
    if len(chunks) == 1:
        return chunks[0]
    # As Go does: what is between two stars is taken where it is first found. Only the end is tried
    # everywhere, so that many stars do not cost all ways to share a path out among them.
    first, *between, last = chunks
    return first + "".join(f"(?>[^/]*?{chunk})" for chunk in between if chunk) + f"[^/]*{last}"


def _class(part: str) -> str:
    inner = part[1:-1]
    sign = "^" if inner.startswith("^") else ""
    inner = inner.removeprefix("^")
    if _RANGE.sub("", inner):
        raise re.error("a range without an end")
    ranges = [
        re.escape(low[-1]) + (f"-{re.escape(high[-1])}" if high else "")
        for low, high in _RANGE.findall(inner)
    ]
    return f"[{sign}{''.join(ranges)}]"
