"""The files of a configuration in the order in which CRI-O reads them, and their handlers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from runtimes.edits import value
from runtimes.errors import ConfigError
from runtimes.formats import toml_editor
from runtimes.model import ABSENT, EMPTY, Desired, Observation, Tree

RUNTIME: Final = ("crio", "runtime")
RUNTIMES: Final = (*RUNTIME, "runtimes")
DEFAULT: Final = (*RUNTIME, "default_runtime")
ESSENTIAL: Final = ("runtime_path",)


def drop_ins(desired: Desired) -> str:
    """Return the pattern of all drop-ins; CRI-O reads them even if our drop-in is elsewhere."""
    return f"{desired.directory}/**"


def listed(desired: Desired, files: Mapping[str, bytes | None]) -> tuple[str, ...]:
    """Return the drop-ins among the given files, in the order in which CRI-O reads them."""
    existing = [p for p, data in files.items() if data is not None]
    inside = [p for p in existing if PurePosixPath(p).is_relative_to(desired.directory)]
    return tuple(sorted(inside, key=lambda p: PurePosixPath(p).parts))


def _in_order(desired: Desired, files: Mapping[str, bytes | None]) -> list[tuple[str, Tree]]:
    """Return the path and content of crio.conf and of all drop-ins, in the order of reading."""
    order = [desired.config, *listed(desired, files)]
    return [
        (path, toml_editor.tree(data, path))
        for path in dict.fromkeys(order)
        if (data := files.get(path)) is not None
    ]


def handlers(desired: Desired, observation: Observation, *, without: str) -> dict[str, Tree]:
    """Return the handlers that the files define, except file `without`; the last definition wins.

    Raise ConfigError if a handler is not a table.
    """
    result: dict[str, Tree] = {}
    for path, tree in _in_order(desired, observation.files):
        if path == without:
            continue
        for handler, entry in table(tree, RUNTIMES, path).items():
            if not isinstance(entry, Mapping):
                raise ConfigError(path, f"its handler {handler} is not a table")
            result[handler] = entry
    return result


def configured_default(desired: Desired, observation: Observation, *, without: str) -> str:
    """Return the default handler that the files set, except file `without`; empty if none does."""
    default = ""
    for path, tree in _in_order(desired, observation.files):
        if path != without:
            default = str(table(tree, RUNTIME, path).get("default_runtime", default))
    return default


def table(tree: Tree, key: tuple[str, ...], path: str) -> Tree:
    """Return the table at a key, empty if missing. Raise ConfigError if it is not a table."""
    for length in range(1, len(key) + 1):
        result = value(tree, key[:length])
        if result is ABSENT:
            return EMPTY
        if not isinstance(result, Mapping):
            raise ConfigError(path, f"its `{'.'.join(key[:length])}` is not a table")
    result = value(tree, key)
    return result if isinstance(result, Mapping) else EMPTY


def is_ours(desired: Desired, handler: str) -> bool:
    """Return whether a handler belongs to this or another NVIDIA installer and is no source."""
    return handler in desired.names or handler.startswith("nvidia")
