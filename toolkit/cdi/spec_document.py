"""Parse nvidia-ctk's CDI specification (JSON), and map its host paths to the node's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final, TypeAlias

from runtimes.errors import ConfigError

Roots: TypeAlias = tuple[tuple[str, str], ...]
"""Pairs of roots: the local path and the node path. The first one that contains a path applies."""

# Runs inside the container. The low-level runtime runs the programs of all other hooks on the node.
_PROGRAM_INSIDE: Final = "startContainer"
_SUBJECT: Final = "the output of nvidia-ctk"


def parse(text: str, kind: str) -> dict[str, Any]:
    """Return a specification. Raises ConfigError if invalid, without devices or of another kind."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(_SUBJECT, f"not valid JSON: {error}") from error
    if not isinstance(tree, dict) or not tree.get("cdiVersion") or not tree.get("devices"):
        raise ConfigError(_SUBJECT, "a CDI specification without devices")
    if tree.get("kind") != kind:
        raise ConfigError(
            _SUBJECT, f"a CDI specification of kind {tree.get('kind')} instead of {kind}"
        )
    return tree


def programs(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the programs of hooks that run on the node, outside the container."""
    paths = (
        str(hook["path"])
        for each in _edits(tree)
        for hook in each.get("hooks") or ()
        if hook["hookName"] != _PROGRAM_INSIDE
    )
    return tuple(dict.fromkeys(paths))


def moved(tree: dict[str, Any], roots: Roots) -> dict[str, Any]:
    """Map the device nodes and mounts of a specification to the node's roots, and return it.

    The hooks already have node paths.
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
    for local_root, node_root in roots:
        if PurePosixPath(path).is_relative_to(local_root):
            return str(PurePosixPath(node_root) / PurePosixPath(path).relative_to(local_root))
    return path
