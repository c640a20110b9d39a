"""Suggest the word that was meant by a misspelt one. Only needed for a message."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_SIMILAR: Final = 0.7
_LONGEST: Final = 100
"""Longer words are not compared: it takes quadratic time, and they are rarely misspelt."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most similar to a word, "" if none is similar enough."""
    from difflib import get_close_matches  # noqa: PLC0415  # only needed for a message

    if not word or len(word) > _LONGEST:
        return ""
    names = {each.lower(): each for each in known}
    found = get_close_matches(word.lower(), names, 1, _SIMILAR)
    return names[found[0]] if found else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message, `; did you mean X?`, or "" if nothing is similar enough."""
    found = nearest(word, known)
    return f"; did you mean {found}?" if found else ""
