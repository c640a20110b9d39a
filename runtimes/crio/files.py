"""The files of a configuration in the order in which CRI-O reads them, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from runtimes import tomldoc
from runtimes.edits import value
from runtimes.errors import NotUnderstood
from runtimes.model import ABSENT, EMPTY, Desired, Observation, Tree

RUNTIME: Final = ("crio", "runtime")
RUNTIMES: Final = (*RUNTIME, "runtimes")
DEFAULT: Final = (*RUNTIME, "default_runtime")
ESSENTIAL: Final = ("runtime_path",)


def drop_ins(desired: Desired) -> str:
    """Return the pattern of all drop-ins: their directory is read whether ours lies there or not."""
    return f"{desired.directory}/**"


def listed(desired: Desired, files: Mapping[str, bytes | None]) -> tuple[str, ...]:
    """Return the drop-ins among some files, in the order in which CRI-O reads them."""
    there = [p for p, data in files.items() if data is not None]
    inside = [p for p in there if PurePosixPath(p).is_relative_to(desired.directory)]
    return tuple(sorted(inside, key=lambda p: PurePosixPath(p).parts))


def _in_order(desired: Desired, files: Mapping[str, bytes | None]) -> list[tuple[str, Tree]]:
    order = [desired.config, *listed(desired, files)]
    return [
        (path, tomldoc.tree(data, path))
        for path in dict.fromkeys(order)
        if (data := files.get(path)) is not None
    ]


def handlers(desired: Desired, seen: Observation, *, without: str) -> dict[str, Tree]:
    """Return the handlers that the files define, the last definition of each."""
    found: dict[str, Tree] = {}
    for path, tree in _in_order(desired, seen.files):
        if path == without:
            continue
        for handler, entry in table(tree, RUNTIMES, path).items():
            if not isinstance(entry, Mapping):
                raise NotUnderstood(path, f"its handler {handler} is not a table")
            found[handler] = entry
    return found


def said_default(desired: Desired, seen: Observation, *, without: str) -> str:
    """Return the default handler that the files say; empty where none does."""
    said = ""
    for path, tree in _in_order(desired, seen.files):
        if path != without:
            said = str(table(tree, RUNTIME, path).get("default_runtime", said))
    return said


def table(tree: Tree, key: tuple[str, ...], path: str) -> Tree:
    """Return the table at a key, empty where it is absent. Raises NotUnderstood for what is no table."""
    for length in range(1, len(key) + 1):
        found = value(tree, key[:length])
        if found is ABSENT:
            return EMPTY
        if not isinstance(found, Mapping):
            raise NotUnderstood(path, f"its `{'.'.join(key[:length])}` is not a table")
    found = value(tree, key)
    return found if isinstance(found, Mapping) else EMPTY


def is_ours(desired: Desired, handler: str) -> bool:
    """Tell whether a handler does not count as a source: ours, and any that another installer made."""
    return handler in desired.names or handler.startswith("nvidia")
