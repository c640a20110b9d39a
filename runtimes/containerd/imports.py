"""The files of a configuration, in the order in which containerd loads them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

from runtimes.containerd.schema import CRI, table_at, version_of
from runtimes.dataclass import dataclass, replace
from runtimes.errors import ConfigError
from runtimes.formats import toml_editor
from runtimes.model import EMPTY, Desired, FileRequest, Observation, Tree

_GO_TEMPLATE: Final = ".tmpl"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A configuration file; `imports` are pairs of an import pattern and the files matching it."""

    path: str
    data: bytes
    tree: Tree
    version: int
    imports: tuple[tuple[str, tuple[str, ...]], ...]
    section: str = ""
    """The id of the CRI section that the binary reads from it, if its version does not tell."""

    @property
    def sections(self) -> tuple[str, ...]:
        """Return the ids of the CRI sections that the file has, oldest schema first."""
        plugins = self.tree.get("plugins", EMPTY)
        return tuple(cri for cri in dict.fromkeys(CRI.values()) if cri in plugins)

    @property
    def cri(self) -> str:
        """Return the id of the CRI section in the file's schema version."""
        return CRI[self.version]

    @property
    def is_empty(self) -> bool:
        """Return whether the file contains no keys."""
        return not self.tree


def load(desired: Desired, observation: Observation) -> tuple[list[File], FileRequest]:
    """Return the known files in load order (breadth first), and the files and globs still to read.

    containerd 2.x reads nothing after an import by name of a file that does not exist, and says
    nothing; 1.x does not start with it.
    """
    files: list[File] = []
    queue, done = [desired.config], {desired.config}
    named: set[str] = set()
    unseen: list[str] = []
    unglobbed: list[str] = []
    while queue:
        path = queue.pop(0)
        if path not in observation.files:
            unseen.append(path)
            continue
        data = observation.data(path)
        if data is None and path in named:
            break
        if data is None:
            continue
        file = read(path, data)
        imports = []
        for pattern in patterns(file.tree, path):
            if "*" not in pattern:
                result: tuple[str, ...] = (pattern,)
                named.add(pattern)
            elif pattern in observation.globs:
                result = observation.globs[pattern]
            else:
                unglobbed.append(pattern)
                continue
            imports.append((pattern, result))
            queue += [p for p in result if p not in done]
            done.update(result)
        files.append(replace(file, imports=tuple(imports)))
    files = [replace(file, section=_section(files, file, observation)) for file in files]
    return files, FileRequest(files=tuple(unseen), globs=tuple(unglobbed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dangling:
    """An import by name of a file that does not exist: containerd 2.x reads nothing after it.

    `file` has the import, and `index` is its place among the imports of that file. `read` are the
    patterns that are read before it.
    """

    file: File
    index: int
    path: str
    read: tuple[str, ...]

    @property
    def words(self) -> str:
        """Return a description for messages, without the file that has the import."""
        return (
            f"its `imports` names {self.path}, which does not exist: containerd reads nothing"
            " after it"
        )


def dangling(files: Sequence[File], observation: Observation) -> Dangling | None:
    """Return the first import by name of a file that does not exist; None if there is none."""
    before: list[str] = []
    for file in files:
        for index, (pattern, _) in enumerate(file.imports):
            if (
                "*" not in pattern
                and pattern in observation.files
                and observation.data(pattern) is None
            ):
                return Dangling(file=file, index=index, path=pattern, read=tuple(before))
            before.append(pattern)
    return None


def read_patterns(files: Sequence[File], observation: Observation) -> tuple[str, ...]:
    """Return the import patterns of all files that containerd reads."""
    stop = dangling(files, observation)
    return stop.read if stop else tuple(pattern for file in files for pattern, _ in file.imports)


def _section(files: Sequence[File], file: File, observation: Observation) -> str:
    """Return the CRI section that the binary reads from a file; empty if not asked or none."""
    answer = observation.results.get(probe_name(file)) if is_ambiguous(files, file) else None
    found = [cri for cri in file.sections if answer is not None and probe_mark(cri) in answer.out]
    return found[-1] if found else ""


def is_ambiguous(files: Sequence[File], file: File) -> bool:
    """Return whether only the binary knows which CRI section it reads from a file.

    A file without a version gets version 1, the version of the root config, or the highest of all
    files, depending on the release; from 2.3 on an older section than that of the version counts
    too.
    """
    if not file.sections or (file.sections == (file.cri,) and "version" in file.tree):
        return False
    if "version" not in file.tree and file.sections == (CRI[1],):
        return any("version" in other.tree for other in files)
    # As on AKS: the rule for both sections in a version 2 file is in `binary.cri_id`.
    return not (file.tree.get("version") == 2 and set(file.sections) == {CRI[2], CRI[3]})


def probe_name(file: File) -> str:
    """Return the name of the query for the CRI section of a file."""
    return f"section of {file.path}"


def probe_mark(cri: str) -> str:
    """Return the value that marks a CRI section in that query."""
    return f"/probe/{cri}/"


@lru_cache(maxsize=8192)
def read(path: str, data: bytes) -> File:
    """Return a parsed file with empty `imports`; cached, because a plan reads each file repeatedly.

    Raise ConfigError if the file cannot be parsed or has an unsupported schema version.
    """
    if path.endswith(_GO_TEMPLATE):
        raise ConfigError(
            path,
            "it is a Go template, which cannot be edited",
            hint=(
                "omit --config: nvidia-toolkit then reads the file rendered from the template and"
                " uses a drop-in or the distribution's own handlers"
            ),
        )
    tree = toml_editor.tree(data, path)
    for cri in set(CRI.values()):
        table_at(table_at(tree, "plugins", path), cri, path)
    return File(path=path, data=data, tree=tree, version=version_of(tree, path), imports=())


def patterns(tree: Tree, path: str) -> Iterator[str]:
    """Yield the import patterns of a file as absolute paths.

    The `imports` in the output of `config default` (2.2 and later) have no effect: containerd
    follows only the imports in the file itself (seen with 2.2.9 and 2.4.2).
    """
    imports = tree.get("imports", [])
    if not isinstance(imports, list) or not all(isinstance(item, str) for item in imports):
        raise ConfigError(path, "its `imports` is not an array of strings")
    for item in imports:
        if "\0" in item:
            raise ConfigError(
                path, f"its import {item!r} contains a NUL byte, which is not valid in a path"
            )
        yield posixpath.normpath(posixpath.join(posixpath.dirname(path), item))
