"""Check that the runtime sees the directories that are written to, in its own mount namespace.

Files that only this process sees are worse than none: the configuration then names programs that
the runtime cannot start, and it reads nothing of what was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from toolkit.node import host as hosts
from toolkit.node.host import Host
from toolkit.runtime.locate import Target

_INIT: Final = 1
_MOUNT_IT: Final = (
    "mount that directory of the node into this container at the same path (a hostPath volume), or"
    " name one that is mounted"
)
_CHOOSE: Final = (
    "choose a directory that the runtime sees, or change the settings of its unit that hide it"
    " (TemporaryFileSystem=, InaccessiblePaths=, RootDirectory= and the like)"
)


class _Place(NamedTuple):
    """A directory, or the directory of a file, that an installation uses.

    `option` names it, if any does. `node_path` and `local` are the paths of the directory, or of
    the file if `is_file`.
    """

    option: str
    node_path: str
    local: Path
    is_file: bool = True

    @property
    def directory(self) -> str:
        return str(Path(self.node_path).parent) if self.is_file else self.node_path

    @property
    def name(self) -> str:
        """Return the directory, with the option that names it if there is one."""
        return f"{self.option}={self.directory}" if self.option else self.directory

    def is_shown(self, host: Host) -> bool:
        return host.is_same_place(self.node_path, self.local, directory_of=self.is_file)


class Invisible(NamedTuple):
    """A problem with a directory that the runtime does not see, and a hint how to solve it."""

    problem: str
    hint: str


def of_runtime(target: Target) -> Host | None:
    """Return the file system as the runtime sees it, None if it is this process's own."""
    seen = hosts.of_process(target.process.pid) if target.process is not None else None
    return None if seen is None or seen.is_here else seen


def check(
    target: Target, *, installs: bool, files: Iterable[str], specification: tuple[str, Path] | None
) -> list[Invisible]:
    """Return a problem for every directory of an installation that the runtime would not see.

    `installs` is whether the toolkit is installed; otherwise the node's own one is used. `files`
    are the node paths of the runtime's files, `specification` are the node path and the local path
    of the CDI specification, None if there is none. If the runtime is not running or may not be
    examined, the node's root directory is searched instead.
    """
    seen = hosts.of_process(target.process.pid) if target.process is not None else None
    if seen is not None and seen.is_here:
        return []
    problems: dict[str, Invisible] = {}
    for place in _places(target, files, specification, installs=installs):
        if seen is not None and place.is_shown(seen):
            continue
        on_node = _is_on_node(target.host, place)
        if on_node is False:
            mounted = f"{place.name} is not a directory of the node, but of this container"
            problems[place.name] = Invisible(mounted, _MOUNT_IT)
        elif seen is not None and target.process is not None:
            hint = _CHOOSE if on_node else f"in a container, {_MOUNT_IT}; else {_CHOOSE}"
            runtime = f"{target.desired.runtime} (PID {target.process.pid})"
            problems[place.name] = Invisible(_hidden(runtime, seen, place), hint)
    return list(problems.values())


def _hidden(runtime: str, seen: Host, place: _Place) -> str:
    at_path = seen.resolve(place.directory)
    what = "is another directory" if at_path is not None and at_path.exists() else "does not exist"
    return f"{runtime} does not see {place.name}: in its mount namespace that path {what}"


def _places(
    target: Target, files: Iterable[str], specification: tuple[str, Path] | None, *, installs: bool
) -> Iterator[_Place]:
    """Yield what an installation reads and writes, and what the handlers run."""
    host = target.host
    if installs:
        install_dir = target.install_dir
        yield _Place(
            "--toolkit-install-dir", host.node(install_dir), host.target(install_dir), is_file=False
        )
    elif target.desired.handlers:
        program = target.desired.handlers[0].binary
        yield _Place("--toolkit-bin-dir", program, host.target(host.seen(program)))
    options = {
        target.desired.config: "--config",
        target.desired.drop_in: "--drop-in-config",
        target.desired.hook: "--hooks-dir",
    }
    for path in sorted(files):
        yield _Place(options.get(path, ""), path, host.file(path))
    if specification is not None:
        yield _Place("--cdi-output-dir", specification[0], host.target(specification[1]))


def _is_on_node(host: Host, place: _Place) -> bool | None:
    """Return whether the node itself has a directory at its node path, None if that is not known.

    The node is what is mounted as its root, or what its first process sees.
    """
    if not host.is_here:
        return place.is_shown(host)
    init = hosts.of_process(_INIT)
    return None if init is None or init.is_here else place.is_shown(init)
