"""A root config that is a template: what its `${VARIABLES}` stand for.

The binary is asked about what it would be started with, never about a template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from runtimes import edits, tomldoc
from runtimes.edits import value
from runtimes.model import Desired, Observation, ReachKind

_VARIABLE: Final = re.compile(r"\$\{(\w+)\}")


def variables(desired: Desired, seen: Observation) -> dict[str, str]:
    """Return what the variables of a template stand for, as what was made of it last tells."""
    if desired.reach.kind is not ReachKind.TEMPLATE:
        return {}
    found = dict(desired.reach.values)
    template, rendered = seen.data(desired.config), seen.data(desired.reach.rendered)
    if template is None or rendered is None:
        return found
    made = tomldoc.tree(rendered, desired.reach.rendered)
    for key, item in edits.leaves(tomldoc.tree(template, desired.config)):
        other = value(made, key)
        if isinstance(item, str) and isinstance(other, str):
            found |= _matched(item, other)
    return found


def filled(data: bytes, values: Mapping[str, str]) -> bytes:
    """Return a template with its variables replaced; one of an unknown variable stays."""
    for name, text in values.items():
        data = data.replace(f"${{{name}}}".encode(), text.encode())
    return data


def _matched(template: str, rendered: str) -> dict[str, str]:
    names = _VARIABLE.findall(template)
    text = [re.escape(part) for part in _VARIABLE.split(template)[::2]]
    found = re.fullmatch("(.*)".join(text), rendered, re.DOTALL) if names else None
    return dict(zip(names, found.groups(), strict=True)) if found else {}
