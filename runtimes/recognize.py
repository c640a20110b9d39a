"""Recognize what a file is that is not a configuration of the requested runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from runtimes.errors import ConfigError
from runtimes.formats import json_scanner, toml_scanner
from runtimes.model import RuntimeName, Tree

_TABLES: Final[Mapping[str, RuntimeName]] = {
    "crio": RuntimeName.CRIO,
    "plugins": RuntimeName.CONTAINERD,
    "disabled_plugins": RuntimeName.CONTAINERD,
    "proxy_plugins": RuntimeName.CONTAINERD,
}
"""Keys at the top of a TOML file that only one runtime has."""
_MARKS: Final = (b"{{", b"{%", b"<%")
"""The beginnings of an expression in Go's and Jinja's templates, of a Jinja statement, of ERB."""


def runtime_of(data: bytes) -> RuntimeName | None:
    """Return the runtime whose configuration the content of a file can only be; None if unknown."""
    tree = _tree(data)
    if tree is None:
        return None
    if data.lstrip()[:1] == b"{":
        return RuntimeName.DOCKER
    owners = {_TABLES[key] for key in tree if key in _TABLES}
    return owners.pop() if len(owners) == 1 else None


def is_template(data: bytes) -> bool:
    """Return whether a file that cannot be parsed is a template that was not rendered."""
    return any(mark in data for mark in _MARKS) and _tree(data) is None


def _tree(data: bytes) -> Tree | None:
    for form in (toml_scanner, json_scanner):
        try:
            tree: Tree = form.tree(data, "")
        except ConfigError:
            continue
        else:
            return tree
    return None
