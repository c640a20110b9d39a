"""Glob patterns with the semantics of Go's `filepath.Match`, which containerd uses for imports."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from runtimes.lazy_pattern import lazy_pattern

_PARTS: Final = lazy_pattern(r"\[\^?(?:\\.|[^\]])+\]|\\.|.", re.DOTALL)
_RANGE: Final = lazy_pattern(r"(\\.|[^\\\]-])(?:-(\\.|[^\\\]-]))?", re.DOTALL)
_SPECIAL: Final = frozenset("*?[\\")
_LONGEST: Final = 4096
"""In characters. A longer pattern cannot match, because no path is longer than PATH_MAX."""


def matches(pattern: str, path: str) -> bool:
    """Return whether a pattern matches a path; `*` and `?` match a leading dot but not a slash."""
    # Most patterns have no special character, or begin differently: nothing is compiled for those.
    begin = next((i for i, each in enumerate(pattern) if each in _SPECIAL), len(pattern))
    if begin == len(pattern):
        return path == pattern
    if not path.startswith(pattern[:begin]):
        return False
    return expression(pattern).fullmatch(path) is not None


@lru_cache(maxsize=256)
def expression(pattern: str) -> re.Pattern[str]:
    """Return the regular expression for a pattern; a malformed pattern matches only its text."""
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
    # Like Go, match the text between two stars at its first occurrence. Only the text after the
    # last star is tried at every position. Otherwise a pattern with many stars would try every way
    # to split the path among them.
    first, *between, last = chunks
    return first + "".join(f"(?>[^/]*?{chunk})" for chunk in between if chunk) + f"[^/]*{last}"


def _class(part: str) -> str:
    inner = part[1:-1]
    sign = "^" if inner.startswith("^") else ""
    inner = inner.removeprefix("^")
    if _RANGE.sub("", inner):
        raise re.error("unterminated range")
    ranges = [
        re.escape(low[-1]) + (f"-{re.escape(high[-1])}" if high else "")
        for low, high in _RANGE.findall(inner)
    ]
    return f"[{sign}{''.join(ranges)}]"
