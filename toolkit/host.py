"""The node as one object: where its root is seen, and which path here is which path there.

The program may run straight on a node or in a container that sees the node's
root at `/host` and some of its directories at other places. A *node path* is
what the node's own programs use; a *local path* is what we can open.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from runtimes import globs
from toolkit import process
from toolkit.errors import StepFailed

_MOST_LINKS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A node. `root` is where its root directory is seen; `places` are pairs (node, local) of directories."""

    root: Path
    places: tuple[tuple[str, Path], ...] = ()

    @property
    def is_here(self) -> bool:
        """Tell whether we run straight on the node."""
        return str(self.root) == "/"

    def mapped(self, node_directory: str, local_directory: Path) -> Host:
        """Return this node with one more directory that is seen at another place here."""
        return replace(self, places=((node_directory, local_directory), *self.places))

    def local(self, node_path: str) -> Path:
        """Return where a path of the node is seen here."""
        path = PurePosixPath(node_path)
        best = max(
            ((node, local) for node, local in self.places if path.is_relative_to(node)),
            key=lambda place: len(place[0]),
            default=None,
        )
        if best is not None:
            return best[1] / path.relative_to(best[0])
        return self.below(node_path)

    def below(self, node_path: str) -> Path:
        """Return a node path as seen through the node's root alone."""
        return self.root / node_path.lstrip("/")

    def seen(self, node_path: str) -> Path:
        """Return where a path of the node is seen here: under its own name where that is the same place."""
        own = Path(node_path)
        return own if same_place(own, self.below(node_path)) else self.local(node_path)

    def node(self, local_path: Path, *candidates: str) -> str:
        """Return the node's name of a local path.

        `candidates` are paths of the node that may be the same file: a mount
        shows a directory under another name, and only the inode tells.
        """
        for node, local in self.places:
            if local_path.is_relative_to(local):
                return str(PurePosixPath(node) / local_path.relative_to(local))
        if self.is_here:
            return str(local_path)
        if local_path.is_relative_to(self.root):
            return "/" + str(local_path.relative_to(self.root))
        return self._found(local_path, (str(local_path), *candidates)) or str(local_path)

    def _found(self, local_path: Path, candidates: Sequence[str]) -> str | None:
        """Return the candidate that is a local path, or a path of its name in the directory of one."""
        seen = {candidate: self.through(candidate) for candidate in candidates}
        for candidate, below in seen.items():
            if below is not None and same_place(local_path, below):
                return candidate
        for candidate in candidates[1:]:
            directory = PurePosixPath(candidate).parent
            below = self.through(str(directory))
            if below is not None and same_place(local_path.parent, below):
                return str(directory / local_path.name)
        return None

    def target(self, local_path: Path) -> Path:
        """Follow the links of a local path as the node would; return the path to write at.

        Raises StepFailed where a link leads in circles or out of what is seen
        of the node.
        """
        if not self.is_here and local_path.is_relative_to(self.root):
            found = self.through("/" + str(local_path.relative_to(self.root)))
            if found is None:
                raise StepFailed(f"{local_path} is a link that leads in circles")
            return found
        path = local_path
        for _ in range(_MOST_LINKS):
            if not _is_link(path):
                return path
            to = os.readlink(path)
            path = self.local(to) if to.startswith("/") else path.parent / to
            outside = not self.is_here and not self._is_seen(Path(os.path.normpath(path)))
            if outside:
                raise StepFailed(
                    f"{local_path} is a link to {to}, which is not on the node as seen here",
                    hint="name the file itself, or mount the directory that it lies in",
                )
        raise StepFailed(f"{local_path} is a link that leads in circles")

    def _is_seen(self, path: Path) -> bool:
        return path.is_relative_to(self.root) or any(path.is_relative_to(p) for _, p in self.places)

    def glob(self, pattern: str) -> tuple[str, ...]:
        """Return the node paths that a pattern matches, sorted, as Go does it; `DIR/**` walks a directory."""
        if pattern.endswith("/**"):
            return tuple(self._walk(pattern.removesuffix("/**")))
        found = [""]
        for part in pattern.strip("/").split("/"):
            found = [f"{base}/{name}" for base in found for name in self._names(base, part)]
        return tuple(sorted(path for path in found if os.path.lexists(self.local(path))))

    def _walk(self, node_directory: str) -> Iterator[str]:
        try:
            names = sorted(os.listdir(self.local(node_directory)))
        except OSError:
            return
        for name in names:
            path = f"{node_directory}/{name}"
            local = self.local(path)
            if local.is_dir() and not local.is_symlink():
                yield from self._walk(path)
            else:
                yield path

    def _names(self, base: str, part: str) -> Iterator[str]:
        if not any(sign in part for sign in "*?["):
            yield part
            return
        try:
            names = os.listdir(self.local(base or "/"))
        except OSError:
            return
        yield from (name for name in names if globs.matches(part, name))

    def executable(self, name: str, search_path: str = process.SEARCH_PATH) -> str | None:
        """Return the node path of a program: as given where absolute, else found on the search path."""
        directories = [""] if name.startswith("/") else search_path.split(":")
        for directory in directories:
            node_path = f"{directory}/{name}" if directory else name
            seen = self.through(node_path)
            if seen is not None and os.access(seen, os.X_OK) and seen.is_file():
                return node_path
        return None

    def through(self, node_path: str) -> Path | None:
        """Resolve a node path below the root, with every absolute link meant as the node means it."""
        done = Path(self.root)
        parts = list(PurePosixPath(node_path).parts[1:])
        for _ in range(_MOST_LINKS * 4):
            if not parts:
                return done
            step = done / parts.pop(0)
            if _is_link(step):
                to = PurePosixPath(os.readlink(step))
                parts = [p for p in to.parts if p != "/"] + parts
                done = Path(self.root) if to.is_absolute() else done
                continue
            if step.name == "..":
                done = done.parent if done != self.root else done
                continue
            done = step
        return None


def _is_link(path: Path) -> bool:
    """Tell whether a path is a link; what may not be looked at is left to whoever opens it."""
    try:
        return path.is_symlink()
    except OSError:
        return False


def same_place(one: Path, other: Path) -> bool:
    """Tell whether two paths are the same file, or are absent in the same directory."""
    try:
        if one.exists() and other.exists():
            return os.path.samefile(one, other)
        return one.name == other.name and os.path.samefile(one.parent, other.parent)
    except OSError:
        return False
