"""The decision which processes and files of the node are trusted.

The program runs as root and sees every process of the node, so all its input must come from root: a
kubelet that names a socket, a runtime that answers on it, a program that validates a configuration,
a file that is edited. If it runs as an ordinary user (for example `plan`), the processes and files
of that user are trusted as well.

`python -m toolkit.node.trust FILE` prints a trusted file; the entry point of the image uses it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = "/proc"
_MOST_LINKS: Final = 40
_LARGEST_DATABASE: Final = 4 << 20
_databases: Final = [Path("/")]
_NONE: Final = ""
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW


class Program(NamedTuple):
    """A trusted program: an open descriptor, and whether it is a script."""

    fd: int
    is_script: bool


class Distrusted(OSError):
    """A file or process belongs to an untrusted user; `strerror` says which and whose."""

    def __init__(self, problem: str) -> None:
        super().__init__(1, problem)


def is_trusted(uid: int) -> bool:
    """Return whether a user ID is trusted: root, and the user of this process."""
    return uid in {0, os.geteuid()}


# --- processes ----------------------------------------------------------------------------------


def process_problem(pid: int, proc: str = PROC) -> str:
    """Return why a process is not trusted, as the predicate of a sentence; empty if it is trusted.

    All four user IDs are checked: the user who starts a program with the set-user-ID bit chooses
    its name and arguments. Root of another user namespace is an ordinary user of the node
    (user_namespaces(7)).
    """
    try:
        with open(f"{proc}/{pid}/status", "rb") as stream:
            status = stream.read()
        # The first line is the name, which the process chooses. Only newlines are escaped in it.
        lines = status.split(b"\n")[1:]
        uids = next(line.split()[1:5] for line in lines if line.startswith(b"Uid:"))
        program = os.stat(f"{proc}/{pid}/exe") if os.geteuid() == 0 else None
        other = os.geteuid() == 0 and _namespace(proc, str(pid)) != _namespace(proc, "self")
    except (OSError, StopIteration):
        return "cannot be examined"
    if strange := [uid for uid in map(int, uids) if not is_trusted(uid)]:
        return f"runs as user ID {strange[0]}"
    if other:
        return "runs in another user namespace"
    if program is not None and program.st_mode & (stat.S_ISUID | stat.S_ISGID):
        return "runs a program with the set-user-ID bit"
    return _NONE


def _namespace(proc: str, process: str) -> str:
    return os.readlink(f"{proc}/{process}/ns/user")


# --- files --------------------------------------------------------------------------------------


def config_problem(path: str, root: Path = Path("/")) -> str:
    """Return why a configuration file is not trusted; empty if it may be read and edited.

    `path` is a path of the node, whose root directory is mounted at `root`. Links are followed as
    on the node, and the file need not exist. The file, every link and every directory of the path
    must belong to a trusted user and must not be writable for all users. A group may have write
    access: microk8s lets its administrators edit its files that way, and the runtime that reads
    them gives them root access anyway.
    """
    try:
        for name, status in _steps(path, root):
            if problem := _config_step_problem(status):
                return f"{name}: {problem}"
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return f"{path} cannot be examined: {error.strerror}"
    return _NONE


def _config_step_problem(status: os.stat_result) -> str:
    is_trusted_user = is_trusted(status.st_uid)
    if is_trusted_user and (stat.S_ISLNK(status.st_mode) or _is_sticky(status)):
        return _NONE  # a link has no mode; in a sticky directory other users can only add files
    return file_problem(status)


def _is_sticky(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)


def open_program(path: str, root: Path = Path("/")) -> Program:
    """Open and check a program, so that the file that is executed is the one that was checked.

    Raises Distrusted if an untrusted user could have put it there, and OSError if it cannot be
    opened.
    """
    name, status = "/", os.lstat(_local(root, "/"))
    for name, status in _steps(path, root):
        if problem := _status_problem(name, status, root):
            raise Distrusted(problem)
    fd = os.open(_local(root, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    opened = os.fstat(fd)
    if os.path.samestat(opened, status) and stat.S_ISREG(opened.st_mode):
        return Program(fd=fd, is_script=os.pread(fd, 2, 0) == b"#!")
    os.close(fd)
    if stat.S_ISREG(opened.st_mode):
        raise Distrusted(f"{path} changed while it was examined")
    raise PermissionError(13, "not a regular file")


def place_problem(path: str | Path, root: Path = Path("/")) -> str:
    """Return why other users control a file or directory, by the rule for programs; else empty.

    `path` is a path of the node, whose root directory is mounted at `root`. It need not exist.
    """
    try:
        for name, status in _steps(os.path.join(os.getcwd(), path), root):
            if problem := _status_problem(name, status, root):
                return problem
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return f"{path} cannot be examined: {error.strerror}"
    return _NONE


def status_problem(path: Path) -> str:
    """Return why a file or directory, apart from its parents, is controlled by other users.

    Raises OSError.
    """
    return _status_problem(str(path), os.lstat(path), Path("/"))


def read_own(path: Path, most: int) -> bytes | None:
    """Return the content of a file that this program wrote; None if it does not exist.

    The rule is that for programs: the file and every directory and link above it belong to trusted
    users, and no other user may write to them. No group may write to the file itself, since this
    program gives that right to none. Raises Distrusted, also for a file of more than `most` bytes
    or one that is not regular, or another OSError.
    """
    name, root = "/", Path("/")
    try:
        for name, status in _steps(os.path.join(os.getcwd(), path), root):
            if problem := _status_problem(name, status, root):
                raise Distrusted(problem)
        fd = os.open(name, _FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        data = _content(fd, most + 1)
    finally:
        os.close(fd)
    if mode & stat.S_IWGRP:
        raise Distrusted(f"a group may write to {name} (mode {mode:04o})")
    if len(data) > most:
        raise Distrusted(f"it is larger than {most} bytes")
    return data


def read(path: str | Path, most: int, root: Path = Path("/")) -> bytes:
    """Return the content of a trusted regular file, `most` bytes at most.

    `path` is a path of a process or node whose root directory is mounted at `root`. The file, every
    link and every directory of the path must belong to trusted users and must not be writable for
    all users, except on a read-only volume (the directory of a ConfigMap has mode 0777). The file
    is opened with O_NONBLOCK, so a FIFO or a device cannot block the caller. Raises Distrusted, or
    another OSError.
    """
    name = "/"
    for name, status in _steps(str(path), root):
        problem = _config_step_problem(status)
        if problem and not _is_read_only_volume(_local(root, name), status):
            raise Distrusted(f"{name}: {problem}")
    fd = os.open(_local(root, name), _FLAGS)
    try:
        return _content(fd, most)
    finally:
        os.close(fd)


def _content(fd: int, most: int) -> bytes:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise Distrusted("it is not a regular file")
    with open(fd, "rb", closefd=False) as stream:
        return stream.read(most)


def _is_read_only_volume(name: str, status: os.stat_result) -> bool:
    """Return whether a directory belongs to root and is on a read-only mount other than /host.

    No pod can write to such a volume, and on the node the kubelet restricts access to it. The file
    system of the node, mounted read-only at /host, is writable for users of the node.
    """
    if (
        not stat.S_ISDIR(status.st_mode)
        or not is_trusted(status.st_uid)
        or name.startswith("/host/")
    ):
        return False
    return bool(os.statvfs(name).f_flag & os.ST_RDONLY)


def file_problem(status: os.stat_result) -> str:
    """Return why a file with this status is not trusted; empty if it is trusted."""
    if not is_trusted(status.st_uid):
        return f"it belongs to user ID {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return f"every user may write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    return _NONE


def _status_problem(name: str, status: os.stat_result, root: Path) -> str:
    if not is_trusted(status.st_uid):
        return f"{name} belongs to user ID {status.st_uid}"
    if stat.S_ISLNK(status.st_mode):
        return _NONE  # a link has no mode; its directory has been checked
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return _NONE
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
    if status.st_mode & stat.S_IWOTH:
        return f"every user may write to {name} ({mode})"
    if status.st_mode & stat.S_IWGRP and not _is_lonely(status.st_gid, root):
        return f"group ID {status.st_gid} may write to {name} ({mode})"
    return _NONE


def use_databases_of(root: Path) -> None:
    """Look up the members of groups in the files below a directory, the node's root.

    In a pod the local files know no group of the node, so each would seem to have no member.
    """
    _databases[0] = root


def _is_lonely(gid: int, root: Path) -> bool:
    """Return whether a group has only trusted members, by the node's passwd and group files.

    On Debian, /usr/local is writable for the group `staff`, which is empty.
    """
    if gid in {0, os.getegid()}:
        return True
    root = _databases[0] if root == Path("/") else root
    try:
        groups = _database(root, "group")
        users = _database(root, "passwd")
    except OSError:
        return False
    trusted = {user[0] for user in users if user[2].isdecimal() and is_trusted(int(user[2]))}
    members = {user[0] for user in users if user[3] == str(gid)}
    for group in groups:
        if group[2] == str(gid):
            members.update(group[3].split(","))
    return not members - trusted - {""}


def _database(root: Path, name: str) -> list[list[str]]:
    """Return the lines of /etc/passwd or /etc/group with four fields or more. Raises OSError."""
    with open(root / "etc" / name, encoding="utf-8", errors="replace") as stream:
        lines = [line.split(":") for line in stream.read(_LARGEST_DATABASE).split("\n")]
    return [fields for fields in lines if len(fields) > 3]


def _steps(path: str, root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the node path and status of every directory and link of a path, then of the file."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    done: list[str] = []
    yield "/", os.lstat(_local(root, "/"))
    links = 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            done = done[:-1]
            continue
        name = "/" + "/".join([*done, part])
        status = os.lstat(_local(root, name))
        yield name, status
        if not stat.S_ISLNK(status.st_mode):
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(40, "too many links")
        to = os.readlink(_local(root, name))
        done = [] if to.startswith("/") else done
        parts = [each for each in to.split("/") if each not in ("", ".")] + parts


def _local(root: Path, name: str) -> str:
    return f"{str(root).rstrip('/')}{name}"


def _main() -> int:
    import sys  # noqa: PLC0415  # needed by the command only

    try:
        sys.stdout.buffer.write(read(os.path.abspath(sys.argv[1]), 1 << 20))
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]} is not trusted: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
