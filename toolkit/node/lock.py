"""The lock of the node: only one process at a time changes the node.

The lock is flock(2) on the PID file. A process that does not get the lock does not change the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from toolkit.errors import Locked, StepError
from toolkit.log import LOGGER
from toolkit.node import files, trust

_MODE: Final = 0o600
UNUSABLE_HINT: Final = (
    "give the directory to root (chown root:root, chmod go-w), or choose another --pid-file"
)


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold the lock, with the PID of this process in the file; yields the file descriptor.

    Raises Locked, with the PID of the holder, if another process holds the lock, and StepError if
    the file cannot be created, or other users control its directory.
    """
    if problem := unusable(path):
        raise StepError(problem, hint=UNUSABLE_HINT)
    files.make_directory(path.parent)
    fd = _locked(path)
    try:
        _write_pid(fd, path)
        yield fd
    finally:
        # Truncated, not removed: a process that has opened the file would otherwise lock a removed
        # inode.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
        os.close(fd)


def unusable(path: Path) -> str:
    """Return why a lock cannot be used, since other users control its directory; else empty."""
    problem = trust.place_problem(path.parent)
    return f"the lock {path} cannot be used: {problem}" if problem else ""


@contextmanager
def inherited(path: Path, fd: int) -> Iterator[None]:
    """Use the lock of the parent process, whose descriptor was inherited.

    If the file has been removed or replaced, that lock has no effect any more, and the file at the
    path is locked instead. Raises the same errors as `held`.
    """
    if _is_still(fd, path):
        yield
        return
    with held(path):
        yield


def is_held(path: Path) -> bool | None:
    """Return whether a process holds the lock, according to /proc/locks; None if unreadable.

    The lock is not taken to find out, since another instance could fail in that moment.
    """
    try:
        os.stat("/proc/locks")
        status = os.stat(path) if path.exists() else None
    except OSError:
        return None
    return status is not None and bool(holding(status))


def _write_pid(fd: int, path: Path) -> None:
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise StepError(f"the lock {path} cannot be written: {error.strerror}") from error


def _locked(path: Path) -> int:
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if _take_over(path, fd):
                continue
            holder = _holder(fd)
            os.close(fd)
            raise Locked(
                f"another instance (PID {holder}) holds {path}",
                hint="wait for it to end, or end it; nothing was changed",
            ) from error
        is_still = _is_still(fd, path)
        if is_still and not _is_open_to_others(os.fstat(fd)):
            return fd
        try:
            if is_still:
                _unlink(path)  # a process that has the file open could lock it at any time
        finally:
            os.close(fd)  # the file was replaced between open and lock, or just now: try again


def _open(path: Path) -> int:
    """Open the lock file. A new file is private (0600), since flock(2) needs no write access."""
    try:
        fd = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, _MODE
        )
    except OSError as error:
        raise StepError(f"the lock {path} cannot be opened: {error.strerror}") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise StepError(f"the lock {path} is not a regular file")
    return fd


def _take_over(path: Path, fd: int) -> bool:
    """Replace a lock file that only untrusted processes hold; return whether it was replaced.

    A lock file of an earlier version or of another installer may be readable for all users, so that
    any of them can hold the lock forever. A private file can be held by root only.
    """
    status = os.fstat(fd)
    if not _is_open_to_others(status):
        return False
    holders = _holders(status)
    if not holders or not all(map(trust.process_problem, holders)):
        return False
    LOGGER.warning(
        "%s is locked by PID %d, which does not run as root: replacing it", path, holders[0]
    )
    try:
        _unlink(path)
    finally:
        os.close(fd)
    return True


def _holders(status: os.stat_result) -> list[int]:
    """Return the PIDs of the processes that hold the lock, according to /proc/PID/fdinfo (proc(5)).

    /proc/locks names the process that took the lock. It may have exited, and its PID may have been
    reused; processes that inherited the open file still hold the lock.
    """
    numbers = (path.name for path in Path("/proc").iterdir() if path.name.isdecimal())
    others = (int(number) for number in numbers if int(number) != os.getpid())
    return [pid for pid in others if _has_locked(Path(f"/proc/{pid}"), status)]


def _has_locked(process: Path, status: os.stat_result) -> bool:
    try:
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(link), status):
                    fdinfo = (process / "fdinfo" / link.name).read_text(
                        encoding="ascii", errors="replace"
                    )
                    if "\nlock:" in f"\n{fdinfo}":
                        return True
    except OSError:
        pass  # the process has exited
    return False


def _is_open_to_others(status: os.stat_result) -> bool:
    """Return whether others can lock the file, or it is another file of root's by a hard link."""
    return (
        status.st_nlink > 1
        or not trust.is_trusted(status.st_uid)
        or bool(stat.S_IMODE(status.st_mode) & ~_MODE)
    )


def _unlink(path: Path) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        raise StepError(f"the lock {path} cannot be replaced: {error.strerror}") from error


def holding(status: os.stat_result) -> tuple[int, ...]:
    """Return the PIDs that hold a lock on a file according to /proc/locks; none if unreadable."""
    try:
        listed = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ()
    # A line: ` 1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF`. Its device may differ from that
    # of stat(2).
    locks = [
        line.split() for line in listed.splitlines() if " FLOCK " in line and " -> " not in line
    ]
    result = [words for words in locks if len(words) > 5]
    return tuple(
        int(words[4]) for words in result if words[5].rpartition(":")[2] == str(status.st_ino)
    )


def _holder(fd: int) -> str:
    """Return the PID in the file; wait up to 0.2 s for a new holder of the lock to write it."""
    for _ in range(20):
        if holder := os.pread(fd, 32, 0).decode(errors="replace").strip():
            return holder
        time.sleep(0.01)
    return "unknown"


def _is_still(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
