"""A CDI specification as nvidia-ctk makes it in JSON: checked, and its host paths moved to other roots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final, TypeAlias

from runtimes.errors import NotUnderstood

Roots: TypeAlias = tuple[tuple[str, str], ...]
"""Pairs of roots, each as it was seen and as the node names it; the first that fits a path counts."""

# The program of any other hook is run by the low-level runtime, in the node's file system.
_PROGRAM_INSIDE: Final = "startContainer"
_SAID: Final = "what nvidia-ctk made"


def parse(text: str, kind: str) -> dict[str, Any]:
    """Return a specification. Raises NotUnderstood where it is none, or not of devices of this kind."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotUnderstood(_SAID, f"not valid JSON: {error}") from error
    if not isinstance(tree, dict) or not tree.get("cdiVersion") or not tree.get("devices"):
        raise NotUnderstood(_SAID, "a CDI specification without devices")
    if tree.get("kind") != kind:
        raise NotUnderstood(_SAID, f"a CDI specification of the kind {tree.get('kind')}, not {kind}")
    return tree


def programs(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the programs of hooks that are run in the node's file system."""
    named = (
        str(hook["path"])
        for each in _edits(tree)
        for hook in each.get("hooks") or ()
        if hook["hookName"] != _PROGRAM_INSIDE
    )
    return tuple(dict.fromkeys(named))


def moved(tree: dict[str, Any], roots: Roots) -> dict[str, Any]:
    """Return a specification whose device nodes and mounts lie below other roots on the node.

    The hooks stay: they were named as the node sees them from the outset.
    """
    for each in _edits(tree):
        for node in each.get("deviceNodes") or ():
            node["hostPath"] = _moved(node.get("hostPath") or node["path"], roots)
        for mount in each.get("mounts") or ():
            mount["hostPath"] = _moved(mount["hostPath"], roots)
    return tree


def _edits(tree: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for each in (*tree["devices"], tree):
        yield each.get("containerEdits") or {}


def _moved(path: str, roots: Roots) -> str:
    for seen, named in roots:
        if PurePosixPath(path).is_relative_to(seen):
            return str(PurePosixPath(named) / PurePosixPath(path).relative_to(seen))
    return path
