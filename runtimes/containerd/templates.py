"""Root configs that are templates: the values of their `${VARIABLES}`.

The binary never loads a template. Queries stage the text with all variables replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from runtimes import edits
from runtimes.edits import value
from runtimes.formats import toml_editor
from runtimes.lazy_pattern import lazy_pattern
from runtimes.model import DeliveryKind, Desired, Observation

_VARIABLE: Final = lazy_pattern(r"\$\{(\w+)\}")


def variables(desired: Desired, observation: Observation) -> dict[str, str]:
    """Return the values of a template's variables, found by comparing it with the rendered file."""
    if desired.delivery.kind is not DeliveryKind.TEMPLATE:
        return {}
    result = dict(desired.delivery.values)
    template, rendered = (
        observation.data(desired.config),
        observation.data(desired.delivery.rendered),
    )
    if template is None or rendered is None:
        return result
    rendered_tree = toml_editor.tree(rendered, desired.delivery.rendered)
    for key, item in edits.leaves(toml_editor.tree(template, desired.config)):
        other = value(rendered_tree, key)
        if isinstance(item, str) and isinstance(other, str):
            result |= _matched(item, other)
    return result


def filled(data: bytes, values: Mapping[str, str]) -> bytes:
    """Return a template with its variables replaced; variables without a value stay in the text."""
    for name, text in values.items():
        data = data.replace(f"${{{name}}}".encode(), text.encode())
    return data


def filled_value(item: Any, values: Mapping[str, str]) -> Any:
    """Return a value of a template with the variables in its strings replaced."""
    if isinstance(item, str):
        return filled(item.encode(), values).decode()
    if isinstance(item, Mapping):
        return {key: filled_value(each, values) for key, each in item.items()}
    return [filled_value(each, values) for each in item] if isinstance(item, list) else item


def _matched(template: str, rendered: str) -> dict[str, str]:
    """Return the variables' values in one string; empty if the rendered string does not match."""
    names = _VARIABLE.findall(template)
    text = [re.escape(part) for part in _VARIABLE.split(template)[::2]]
    result = re.fullmatch("(.*)".join(text), rendered, re.DOTALL) if names else None
    return dict(zip(names, result.groups(), strict=True)) if result else {}
