"""The words of containerd: schema versions, the ids of the CRI section, what counts as empty."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from runtimes import globs
from runtimes.edits import value
from runtimes.errors import NotUnderstood
from runtimes.model import ABSENT, EMPTY, Key, Tree

CRI: Final = {
    1: "cri",
    2: "io.containerd.grpc.v1.cri",
    3: "io.containerd.cri.v1.runtime",
    4: "io.containerd.cri.v1.runtime",
}
OF_CRI: Final = frozenset({*CRI.values(), "io.containerd.cri.v1.images"})
"""The ids of plugins without any of which CRI is not served."""
BINARY: Final = "BinaryName"
ESSENTIAL: Final = ("runtime_type",)
RUNC_TYPES: Final = ("io.containerd.runc.", "io.containerd.runtime.v1.")
ZERO: Final[tuple[Any, ...]] = ("", 0, False, [], {})


def version_of(tree: Tree, path: str) -> int:
    """Return the schema version that a file says; 1 where it says none. Raises NotUnderstood for others."""
    version = tree.get("version", 1)
    if type(version) is not int or version not in CRI:
        known = ", ".join(map(str, CRI))
        raise NotUnderstood(
            path,
            f"it has schema version {version!r}, which is not known (known: {known})",
            hint="a newer nvidia-toolkit may know it",
        )
    return version


def section_of(dump: Tree) -> Tree | None:
    """Return the CRI section of a dump, or None where it has none."""
    plugins = table_or_empty(dump, ("plugins",))
    for cri in (CRI[3], CRI[2], CRI[1]):
        section = plugins.get(cri)
        if isinstance(section, Mapping) and "containerd" in section:
            return section
    return None


def is_cri_off(dump: Tree) -> bool:
    """Tell whether a dump is of a containerd whose CRI plugin is disabled."""
    disabled = dump.get("disabled_plugins")
    listed = disabled if isinstance(disabled, list) else []
    return section_of(dump) is None or any(cri in listed for cri in OF_CRI)


def table_at(holder: Tree, key: str, path: str) -> Tree:
    """Return a table of a file, empty where it is absent. Raises NotUnderstood for what is no table."""
    found = holder.get(key, EMPTY)
    if not isinstance(found, Mapping):
        raise NotUnderstood(path, f"its `{key}` is not a table")
    return found


def solid(tree: Tree) -> dict[str, Any]:
    """Return a tree without what is zero: containerd does not tell it from what is absent."""
    result = {}
    for key, item in tree.items():
        kept = solid(item) if isinstance(item, Mapping) else item
        if kept not in ZERO:
            result[key] = kept
    return result


def import_glob(drop_in: str) -> str:
    """Return the glob that imports a drop-in: its directory, and every file with its suffix."""
    path = PurePosixPath(drop_in)
    return str(path.parent / f"*{path.suffix}")


def matches(pattern: str, path: str) -> bool:
    """Tell whether an import names a path: containerd takes it for a pattern where it has a star."""
    return globs.matches(pattern, path) if "*" in pattern else pattern == path


def table_or_empty(tree: Tree, key: Key) -> Tree:
    """Return the table at a key, or an empty one where there is none."""
    found = value(tree, key)
    return found if isinstance(found, Mapping) else EMPTY


def word(item: Any) -> str:
    """Return a value as a person reads it."""
    return "nothing" if item is ABSENT else repr(item)


def last_line(text: str) -> str:
    """Return the last line that a failed containerd said."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("containerd: ") if lines else "it said nothing"
