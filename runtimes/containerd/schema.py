"""Constants of containerd's schema (versions, CRI plugin ids, zero values) and access to its tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from runtimes import globs
from runtimes.edits import value
from runtimes.errors import ConfigError
from runtimes.model import EMPTY, Key, Tree

CRI: Final = {
    1: "cri",
    2: "io.containerd.grpc.v1.cri",
    3: "io.containerd.cri.v1.runtime",
    4: "io.containerd.cri.v1.runtime",
}
OF_CRI: Final = frozenset({*CRI.values(), "io.containerd.cri.v1.images"})
"""The ids of the CRI plugins; if any of them is disabled, CRI is not served."""
BINARY: Final = "BinaryName"
ESSENTIAL: Final = ("runtime_type",)
RUNC_TYPES: Final = ("io.containerd.runc.", "io.containerd.runtime.v1.")
ZERO: Final[tuple[Any, ...]] = ("", 0, False, [], {})


def version_of(tree: Tree, path: str) -> int:
    """Return the schema version of a file; 1 if it has none. Raise ConfigError for an unknown version."""
    version = tree.get("version", 1)
    if type(version) is not int or version not in CRI:
        supported = ", ".join(map(str, CRI))
        raise ConfigError(
            path,
            f"schema version {version!r} is not supported: must be one of {supported}",
            hint="a newer nvidia-toolkit may support it",
        )
    return version


def section_of(dump: Tree) -> Tree | None:
    """Return the CRI section of a dump; None if it has none."""
    plugins = table_or_empty(dump, ("plugins",))
    for cri in (CRI[3], CRI[2], CRI[1]):
        section = plugins.get(cri)
        if isinstance(section, Mapping) and "containerd" in section:
            return section
    return None


def is_cri_off(dump: Tree) -> bool:
    """Return whether the CRI plugin is disabled in a dump."""
    disabled = dump.get("disabled_plugins")
    listed = disabled if isinstance(disabled, list) else []
    return section_of(dump) is None or any(cri in listed for cri in OF_CRI)


def table_at(holder: Tree, key: str, path: str) -> Tree:
    """Return a table of a file, empty if it does not exist. Raise ConfigError if it is not a table."""
    result = holder.get(key, EMPTY)
    if not isinstance(result, Mapping):
        raise ConfigError(path, f"its `{key}` is not a table")
    return result


def without_zero_values(tree: Tree) -> dict[str, Any]:
    """Return a tree without zero values, which containerd treats like missing keys."""
    result = {}
    for key, item in tree.items():
        reduced = without_zero_values(item) if isinstance(item, Mapping) else item
        if reduced not in ZERO:
            result[key] = reduced
    return result


def import_glob(drop_in: str) -> str:
    """Return the glob that imports a drop-in and all files of its directory with the same suffix."""
    path = PurePosixPath(drop_in)
    return str(path.parent / f"*{path.suffix}")


def matches(pattern: str, path: str) -> bool:
    """Return whether an import includes a path; containerd treats it as a pattern only if it has a star."""
    return globs.matches(pattern, path) if "*" in pattern else pattern == path


def table_or_empty(tree: Tree, key: Key) -> Tree:
    """Return the table at a key; empty if there is none."""
    result = value(tree, key)
    return result if isinstance(result, Mapping) else EMPTY


def last_line(text: str) -> str:
    """Return the last line of containerd's error output that is not blank."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("containerd: ") if lines else "no error message"
