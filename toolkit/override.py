"""The keys that somebody wants in containerd's handlers over what they inherit, given as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_OURS: Final = frozenset({"binaryname", "runtime"})
_LARGEST: Final = 1 << 63


def read(text: str) -> dict[str, Any]:
    """Return the keys of a JSON object. Raises ValueError that says what is wrong with it."""
    try:
        found = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError("this is no JSON object")  # noqa: TRY004  # it is a text that somebody wrote
    _check(found, "")
    options = found.get("options", {})
    ours = (
        sorted(key for key in options if key.lower() in _OURS) if isinstance(options, dict) else ["options"]
    )
    if ours:
        raise ValueError(f"{ours[0]} is what the handlers are made of and cannot be overridden")
    return found


def _refused(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")


def _check(item: Any, where: str) -> None:
    """Refuse what containerd's TOML cannot hold."""
    if isinstance(item, Mapping):
        for key, below in item.items():
            _check(key, where)
            _check(below, f"{where}.{key}" if where else key)
    elif isinstance(item, list):
        for below in item:
            if isinstance(below, Mapping | list):
                raise ValueError(f"{where} holds a list of lists or objects, which no handler has")  # noqa: TRY004
            _check(below, where)
    elif problem := _unfit(item):
        raise ValueError(f"{where or 'a key'} {problem}")


def _unfit(item: Any) -> str:
    if item is None:
        return "is null, which no handler can hold"
    if isinstance(item, int) and not -_LARGEST <= item < _LARGEST:
        return "is a number that is too large"
    if isinstance(item, str) and any("\ud800" <= c <= "\udfff" for c in item):
        return "holds half of a character"
    return ""
