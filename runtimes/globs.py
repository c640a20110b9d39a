"""Patterns as Go's `filepath.Match` reads them, which containerd uses for its imports."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_PARTS: Final = re.compile(r"\[\^?(?:\\.|[^\]])+\]|\\.|.", re.DOTALL)


def matches(pattern: str, path: str) -> bool:
    """Tell whether a pattern names a path; `*` and `?` match a leading dot but no slash."""
    return expression(pattern).fullmatch(path) is not None


@lru_cache(maxsize=256)
def expression(pattern: str) -> re.Pattern[str]:
    """Return a pattern as a regular expression; one that is malformed matches only itself."""
    text = ""
    for part in _PARTS.findall(pattern):
        if part == "*":
            text += "[^/]*"
        elif part == "?":
            text += "[^/]"
        elif part[0] == "[" and len(part) > 1:
            text += part
        else:
            text += re.escape(part[-1])
    try:
        return re.compile(text, re.DOTALL)
    except re.error:
        return re.compile(re.escape(pattern))
