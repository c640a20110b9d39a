"""The node's file system, and the translation of its paths.

The program may run directly on a node, or in a container that has the node's root mounted at
`/host` and some of its directories at other paths. A *node path* is the path that the node's own
programs use; a *local path* is the path that this process can open.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from runtimes import globs
from runtimes.dataclass import dataclass, replace
from toolkit.errors import StepError
from toolkit.node import command

_MOST_LINKS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A node. `root` is the local path of its root; `places` pair node and local directories.

    `replaced` is the node path of a file and a content that is planned with in place of its own.
    """

    root: Path
    places: tuple[tuple[str, Path], ...] = ()
    replaced: tuple[str, bytes] | None = None

    @property
    def is_here(self) -> bool:
        """Return whether the program runs directly on the node."""
        return str(self.root) == "/"

    def mapped(self, node_directory: str, local_directory: Path) -> Host:
        """Return this node with one more pair of directories.

        A pair that the others imply is left out: its directory may be a link in a mounted one.
        """
        if self.places and self.local(node_directory) == local_directory:
            return self
        return replace(self, places=((node_directory, local_directory), *self.places))

    def local(self, node_path: str) -> Path:
        """Return the local path of a node path."""
        path = PurePosixPath(node_path)
        best = max(
            ((node, local) for node, local in self.places if path.is_relative_to(node)),
            key=lambda pair: len(pair[0]),
            default=None,
        )
        if best is not None:
            return best[1] / path.relative_to(best[0])
        return self.below(node_path)

    def below(self, node_path: str) -> Path:
        """Return the local path of a node path below the root; other mounts are ignored."""
        return self.root / node_path.lstrip("/")

    def seen(self, node_path: str) -> Path:
        """Return the local path of a node path; the path itself if it is the same file here."""
        own, below = Path(node_path), self.resolve(node_path)
        return own if below is not None and same_place(own, below) else self.local(node_path)

    def node(self, local_path: Path, *candidates: str) -> str:
        """Return the node path of a local path.

        `candidates` are node paths that may be the same file. If a directory is mounted at another
        path, only the inode shows that they are the same.
        """
        named = self._named(local_path)
        if named is not None:
            return named
        return self._found(local_path, (str(local_path), *candidates)) or str(local_path)

    def _found(self, local_path: Path, candidates: Sequence[str]) -> str | None:
        """Return the candidate that is the same file, or its name in a candidate's directory."""
        seen = {candidate: self.resolve(candidate) for candidate in candidates}
        for candidate, below in seen.items():
            if below is not None and same_place(local_path, below):
                return candidate
        for candidate in candidates[1:]:
            directory = PurePosixPath(candidate).parent
            below = self.resolve(str(directory))
            if below is not None and same_place(local_path.parent, below):
                return str(directory / local_path.name)
        return None

    def target(self, local_path: Path) -> Path:
        """Follow the symbolic links of a local path as the node would; return the target's path.

        Every part of the path may be a link: in a container, the kernel would follow an absolute
        one in the container's own root. Raises StepError if the links form a loop, or lead to a
        path of the node that is not mounted.
        """
        if not self.is_here and (node_path := self._named(local_path)) is not None:
            return self._resolved(local_path, PurePosixPath(node_path))
        path = local_path
        for _ in range(_MOST_LINKS):
            if not _is_link(path):
                return path
            to = os.readlink(path)
            path = self.local(to) if to.startswith("/") else path.parent / to
            outside = not self.is_here and not self._is_seen(Path(os.path.normpath(path)))
            if outside:
                raise _not_mounted(local_path, to)
        raise StepError(f"{local_path} is a loop of symbolic links")

    def is_same_place(self, node_path: str, local: Path, *, directory_of: bool = False) -> bool:
        """Return whether a node path is the same as a local path without links.

        Of a path that does not exist yet the nearest existing parents are compared, and with
        `directory_of` the directories of both. Other mounted directories than the root are ignored.
        """
        seen = self.resolve(node_path)
        if seen is not None and directory_of:
            seen, local = seen.parent, local.parent
        while seen is not None and not local.exists() and local != local.parent:
            seen, local = seen.parent, local.parent
        return seen is not None and seen.exists() and same_place(seen, local)

    def file(self, node_path: str) -> Path:
        """Return the local path of a node path, links followed as by `target`. Raises StepError."""
        return self.target(self.local(node_path))

    def opened(self, node_path: str) -> Path:
        """Return a local path that this process can open as it is; links that lead right are kept.

        Raises StepError as `target` does.
        """
        local, target = self.local(node_path), self.file(node_path)
        return local if same_place(local, target) else target

    def _named(self, local_path: Path) -> str | None:
        """Return the node path of a local path by the directories alone; None if below none."""
        for node, local in self.places:
            if local_path.is_relative_to(local):
                return str(PurePosixPath(node) / local_path.relative_to(local))
        if local_path.is_relative_to(self.root):
            return "/" + str(local_path.relative_to(self.root))
        return None

    def _resolved(self, local_path: Path, node_path: PurePosixPath) -> Path:
        """Resolve a node path part by part, in the directory that is mounted for each part."""
        mounted = {PurePosixPath(node) for node, _ in self.places}
        # A mounted directory is the right one, whatever the links on the way to it are on the node.
        inside = [place for place in mounted if node_path.is_relative_to(place)]
        done = max(inside, key=lambda place: len(place.parts), default=PurePosixPath("/"))
        parts, link = list(node_path.relative_to(done).parts), ""
        for _ in range(_MOST_LINKS * 4):
            if not parts:
                return self.seen(str(done)) if link else self.local(str(done))
            name = parts.pop(0)
            if name == "..":
                outer = self._real(done) if done in mounted else done
                if outer is None:
                    raise _not_mounted(local_path, link)
                done = outer.parent
                continue
            done /= name
            step = self.local(str(done))
            if done in mounted or not _is_link(step):
                continue
            link = os.readlink(step)
            to = PurePosixPath(link)
            done = PurePosixPath("/") if to.is_absolute() else done.parent
            parts = [part for part in to.parts if part != "/"] + parts
        raise StepError(f"{local_path} is a loop of symbolic links")

    def _real(self, place: PurePosixPath) -> PurePosixPath | None:
        """Return a mounted directory's path without links; None if the node's root lacks it."""
        below = self.resolve(str(place))
        if below is None or not same_place(self.local(str(place)), below):
            return None
        return PurePosixPath("/") / below.relative_to(self.root)

    def _is_seen(self, path: Path) -> bool:
        return path.is_relative_to(self.root) or any(path.is_relative_to(p) for _, p in self.places)

    def glob(self, pattern: str) -> tuple[str, ...]:
        """Return the sorted node paths of a Go filepath.Glob pattern; `DIR/**` is recursive."""
        if pattern.endswith("/**"):
            return tuple(self._walk(pattern.removesuffix("/**")))
        result = [""]
        for part in pattern.strip("/").split("/"):
            result = [f"{base}/{name}" for base in result for name in self._names(base, part)]
        return tuple(sorted(path for path in result if self._is_there(path)))

    def _is_there(self, node_path: str) -> bool:
        try:
            return os.path.lexists(
                self.file(posixpath.dirname(node_path)) / posixpath.basename(node_path)
            )
        except StepError:
            return False

    def _walk(self, node_directory: str) -> Iterator[str]:
        try:
            directory = self.file(node_directory)
            names = sorted(os.listdir(directory))
        except (OSError, StepError):
            return
        for name in names:
            path = f"{node_directory}/{name}"
            local = directory / name
            if local.is_dir() and not local.is_symlink():
                yield from self._walk(path)
            else:
                yield path

    def _names(self, base: str, part: str) -> Iterator[str]:
        if not any(sign in part for sign in "*?["):
            yield part
            return
        try:
            names = os.listdir(self.file(base or "/"))
        except (OSError, StepError):
            return
        yield from (name for name in names if globs.matches(part, name))

    def executable(self, name: str, search_path: str = command.SEARCH_PATH) -> str | None:
        """Return the node path of a program, absolute or a name on the search path; or None."""
        directories = [""] if name.startswith("/") else search_path.split(":")
        for directory in directories:
            node_path = f"{directory}/{name}" if directory else name
            path = self.resolve(node_path)
            if path is not None and os.access(path, os.X_OK) and path.is_file():
                return node_path
        return None

    def resolve(self, node_path: str) -> Path | None:
        """Resolve a node path below the root; absolute links start there. None for a loop."""
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


def of_process(pid: int) -> Host | None:
    """Return the file system as a process sees it; None if it does not exist or cannot be examined.

    It differs from that of this process if this one is in a container, or if the unit of the
    process has settings such as `TemporaryFileSystem=` or `InaccessiblePaths=` (systemd.exec(5)).
    Then it is opened by `/proc/PID/root` (proc_pid_root(5)); else the root is `/`.
    """
    try:
        is_own = all(
            os.path.samestat(os.stat(f"/proc/{pid}/{name}"), os.stat(f"/proc/self/{name}"))
            for name in ("ns/mnt", "root")
        )
    except OSError:
        return None
    return Host(root=Path("/") if is_own else Path(f"/proc/{pid}/root"))


def _not_mounted(path: Path, link: str) -> StepError:
    return StepError(
        f"{path} is a link to {link}, which is not mounted from the node",
        hint="name the target file itself, or mount its directory from the node",
    )


def _is_link(path: Path) -> bool:
    """Return whether a path is a symlink; False if lstat(2) fails, so opening it reports why."""
    try:
        return path.is_symlink()
    except OSError:
        return False


def same_place(one: Path, other: Path) -> bool:
    """Return whether two paths are the same file, or the same missing name in one directory."""
    try:
        if one.exists() and other.exists():
            return os.path.samefile(one, other)
        return one.name == other.name and os.path.samefile(one.parent, other.parent)
    except OSError:
        return False
