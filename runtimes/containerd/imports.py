"""The files of a configuration in the order in which containerd loads them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from runtimes import tomldoc
from runtimes.containerd.schema import CRI, table_at, version_of
from runtimes.errors import NotUnderstood
from runtimes.model import Desired, Look, Observation, Tree

_GO_TEMPLATE: Final = ".tmpl"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of the configuration in load order, with the imports it names as (pattern, files)."""

    path: str
    data: bytes
    tree: Tree
    version: int
    imports: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def cri(self) -> str:
        """Return the id of the CRI section in this schema version."""
        return CRI[self.version]

    @property
    def is_empty(self) -> bool:
        """Tell whether the file says nothing at all."""
        return not self.tree


def load(desired: Desired, seen: Observation) -> tuple[list[File], Look]:
    """Return the files in load order (breadth first), and what has to be looked at to go on."""
    files: list[File] = []
    queue, done = [desired.config], {desired.config}
    unseen: list[str] = []
    unglobbed: list[str] = []
    while queue:
        path = queue.pop(0)
        if path not in seen.files:
            unseen.append(path)
            continue
        data = seen.data(path)
        if data is None:
            continue
        file = read(path, data)
        imports = []
        for pattern in patterns(file.tree, path):
            if "*" not in pattern:
                found: tuple[str, ...] = (pattern,)
            elif pattern in seen.globs:
                found = seen.globs[pattern]
            else:
                unglobbed.append(pattern)
                continue
            imports.append((pattern, found))
            queue += [p for p in found if p not in done]
            done.update(found)
        files.append(replace(file, imports=tuple(imports)))
    return files, Look(files=tuple(unseen), globs=tuple(unglobbed))


@lru_cache(maxsize=16)
def read(path: str, data: bytes) -> File:
    """Return a file without what it imports; a plan reads each several times. Raises NotUnderstood."""
    if path.endswith(_GO_TEMPLATE):
        raise NotUnderstood(
            path,
            "it is a Go template, which is not edited",
            hint="leave --config away: what is made of the template is asked, and a drop-in or the"
            " distribution's own handlers are used",
        )
    tree = tomldoc.tree(data, path)
    for cri in set(CRI.values()):
        table_at(table_at(tree, "plugins", path), cri, path)
    return File(path=path, data=data, tree=tree, version=version_of(tree, path), imports=())


def patterns(tree: Tree, path: str) -> Iterator[str]:
    """Yield the import patterns of a file as absolute paths.

    What `config default` of 2.2 and later prints as `imports` counts for nothing:
    containerd follows only what a file itself says (seen with 2.2.7 and 2.3.4).
    """
    imports = tree.get("imports", [])
    if not isinstance(imports, list) or not all(isinstance(item, str) for item in imports):
        raise NotUnderstood(path, "its `imports` is not an array of strings")
    for item in imports:
        if "\0" in item:
            raise NotUnderstood(path, f"its import {item!r} has a NUL, which no path has")
        yield posixpath.normpath(posixpath.join(posixpath.dirname(path), item))
