"""The way a daemon was started, read while it runs, to start it again where nothing else does."""

from __future__ import annotations

import os
import resource
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from runtimes.dataclass import dataclass, replace
from toolkit import redact
from toolkit.errors import StepError
from toolkit.node import command, processes, procfs, trust
from toolkit.node.host import Host

_NAMESPACES: Final = ("mnt", "net", "uts", "ipc", "pid", "user")
_INIT: Final = 1
_PROCS: Final = "cgroup.procs"
_ENTER: Final = (
    "nsenter", "--target=1", "--mount", "--net", "--uts", "--ipc", "--root", "--wd", "--",
    "/bin/sh", "-c", 'cd "$0" && unset OLDPWD && o=$1 && shift && exec "$@" >>"$o" 2>&1',
)  # fmt: skip
"""Enter the namespaces of PID 1 and run a program in a directory, with a file for its output."""
_LIMITS: Final = tuple(
    getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """The start of a daemon: program, argv, environment, directory, control groups and limits.

    `output` is the file that gets its standard output, "" if that is none. `groups` are its control
    groups: the hierarchy, the path, and the local directory, "" if that was not found. `namespaces`
    identify its namespaces. `capabilities` are those that it has.
    """

    executable: str
    argv: tuple[str, ...]
    environment: tuple[str, ...]
    directory: str
    output: str
    groups: tuple[tuple[str, str, str], ...]
    limits: tuple[tuple[int, tuple[int, int]], ...]
    score: str
    namespaces: tuple[str, ...]
    capabilities: int = 0

    def words(self) -> str:
        """Return the command that starts the daemon, as a shell reads it, with secrets masked."""
        program = self.argv[0] if self.argv and self.argv[0].startswith("/") else self.executable
        words = [program, *redact.argv(self.argv)[1:]]
        return f"cd {shlex.quote(self.directory)} && {shlex.join(words)}"

    def obstacle(self) -> str:
        """Return why this process cannot start the daemon with the rights that it has, or ""."""
        if not self.capabilities & ~procfs.capabilities("CapBnd"):
            return ""
        return "it cannot be started from here, because it has capabilities that this process lacks"


def of(host: Host, process: processes.RuntimeProcess) -> Launch | None:
    """Return how a daemon that runs was started; None if that cannot be read."""
    place = f"/proc/{process.pid}"
    try:
        return Launch(
            executable=process.executable,
            argv=process.argv,
            environment=_texts(f"{place}/environ"),
            directory=_node_path(host, place, "cwd") or os.readlink(f"{place}/cwd"),
            output=_node_path(host, place, "fd/1") if Path(f"{place}/fd/1").is_file() else "",
            groups=tuple(
                (name, path, _directory(host, name, path, process.pid))
                for name, path in _groups(place)
            ),
            limits=tuple((each, resource.prlimit(process.pid, each)) for each in _LIMITS),
            score=Path(f"{place}/oom_score_adj").read_text(encoding="ascii"),
            namespaces=_namespaces(place),
            capabilities=procfs.capabilities("CapPrm", process.pid),
        )
    except OSError:
        return None


def start(host: Host, launch: Launch) -> None:
    """Start a daemon that has ended as it was started before; do not wait until it answers.

    Raises StepError if it cannot be started like that.
    """
    try:
        os.close(trust.open_program(launch.executable, host.root).fd)
    except OSError as error:
        raise StepError(f"{launch.executable} cannot be run: {error.strerror}") from error
    if trust.place_problem(launch.output, host.root):
        launch = replace(launch, output="")  # a user may have put a link there since
    prepare = _prepared(host, launch)
    if launch.namespaces == _namespaces("/proc/self"):
        command.start(
            launch.argv,
            executable=launch.executable,
            environment=launch.environment,
            directory=launch.directory,
            prepare=prepare,
        )
    elif launch.namespaces == _namespaces(f"/proc/{_INIT}"):
        program = launch.argv[0] if launch.argv[0].startswith("/") else launch.executable
        command.start(
            [*_ENTER, launch.directory, launch.output or os.devnull, program, *launch.argv[1:]],
            root=host.root,
            environment=launch.environment,
            prepare=prepare,
        )
    else:
        raise StepError("it ran in namespaces that cannot be entered")


def _prepared(host: Host, launch: Launch) -> Callable[[], None]:
    """Return what the new process does before it runs the program. Raises StepError."""
    group_files = _group_files(host, launch)
    output = host.below(launch.output) if launch.output else None

    def prepare() -> None:
        for files in group_files:
            _enter(files)
        Path("/proc/self/oom_score_adj").write_text(launch.score, encoding="ascii")
        for each, limit in launch.limits:
            if resource.getrlimit(each) != limit:
                resource.setrlimit(each, limit)
        if output is not None:
            with suppress(OSError):  # It may have been removed since.
                fd = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                os.dup2(fd, 1)
                os.dup2(fd, 2)

    return prepare


def _group_files(host: Host, launch: Launch) -> list[tuple[Path, ...]]:
    """Return, for each hierarchy in which this process is elsewhere, the files by which to move.

    The group of the daemon may be gone with it; then the root of the hierarchy is the next best,
    because the group of this process ends with its pod.
    """
    own = dict(_groups("/proc/self"))
    found = []
    for name, path, directory in launch.groups:
        top = _top(host, name)
        if own.get(name) != path and (top / _PROCS).exists():
            found.append((*((Path(directory) / _PROCS,) if directory else ()), top / _PROCS))
    return found


def _node_path(host: Host, place: str, link: str) -> str:
    """Return the node path of a file that a process uses, by its link in /proc; "" if not found.

    From another mount namespace the kernel shows the path within the mount only.
    """
    seen, status = os.readlink(f"{place}/{link}"), os.stat(f"{place}/{link}")
    with open(f"{place}/mountinfo", encoding="utf-8") as stream:
        points = [line.split()[4] for line in stream]
    for point in ("/", *points):
        path = os.path.normpath(f"{point}/{seen}").replace("//", "/", 1)
        with suppress(OSError):
            if os.path.samestat(os.stat(host.below(path)), status):
                return path
    return ""


def _directory(host: Host, name: str, path: str, pid: int) -> str:
    """Return the local directory of the control group in which a process is, "" if it is not found.

    What this process sees as the path may begin elsewhere than the node's mount, in a control group
    namespace for example. Therefore the group that holds the process is searched for.
    """
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    for first in range(len(parts) + 1):
        directory = _top(host, name).joinpath(*parts[first:])
        try:
            if str(pid) in (directory / _PROCS).read_text(encoding="ascii").split():
                return str(directory)
        except OSError:
            continue
    return ""


def _top(host: Host, name: str) -> Path:
    """Return a hierarchy's local directory; version 2 has no name, and may be below another."""
    top = host.below("/sys/fs/cgroup")
    unified = top / "unified"
    return unified if not name and unified.is_dir() else top / name.removeprefix("name=")


def _enter(files: tuple[Path, ...]) -> None:
    """Move this process into the first group that takes it. Raises OSError if none does."""
    for path in files[:-1]:
        try:
            path.write_text("0", encoding="ascii")
        except OSError:
            continue
        return
    files[-1].write_text("0", encoding="ascii")


def _groups(place: str) -> tuple[tuple[str, str], ...]:
    """Return the control group of a process in each hierarchy, by the controllers of that."""
    lines = os.fsdecode(Path(f"{place}/cgroup").read_bytes()).split("\n")[:-1]
    parts = [line.split(":", 2) for line in lines]
    return tuple((names, path.removesuffix(" (deleted)")) for _, names, path in parts)


def _namespaces(place: str) -> tuple[str, ...]:
    return tuple(os.readlink(f"{place}/ns/{name}") for name in _NAMESPACES)


def _texts(path: str) -> tuple[str, ...]:
    return tuple(os.fsdecode(each) for each in Path(path).read_bytes().split(b"\0") if each)
