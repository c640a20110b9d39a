"""One writer per node: a lock on a file that the loser never truncates and nobody deletes under it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit import files
from toolkit.errors import Locked, StepFailed


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold the node's lock and keep our PID in it; yields its file descriptor.

    Raises Locked where another process holds it, naming its PID, and StepFailed
    where the file cannot be made.
    """
    files.make_directory(path.parent)
    fd = _locked(path)
    try:
        _sign(fd, path)
        yield fd
    finally:
        # Emptied, not unlinked: whoever waits for this inode must not end up with a lock of its own.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
        os.close(fd)


@contextmanager
def lent(path: Path, fd: int) -> Iterator[None]:
    """Work under the lock of the process that sent us, whose open file we were handed.

    Where somebody has removed or replaced the file since, that lock keeps nobody
    out any more, and the one at the path is taken. Raises as `held` does.
    """
    if _is_still(fd, path):
        yield
        return
    with held(path):
        yield


def is_held(path: Path) -> bool | None:
    """Tell whether a process holds a lock, by the kernel's own list; None where that cannot be seen.

    Nothing is tried: even a moment of holding it would turn another instance away.
    """
    try:
        listed = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
        status = os.stat(path) if path.exists() else None
    except OSError:
        return None
    if status is None:
        return False
    # ` 1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF`; the device may be another than that of stat().
    locks = [line.split() for line in listed.splitlines() if " FLOCK " in line]
    return any(words[5].rpartition(":")[2] == str(status.st_ino) for words in locks if len(words) > 5)


def _sign(fd: int, path: Path) -> None:
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise StepFailed(f"the lock {path} cannot be written: {error.strerror}") from error


def _locked(path: Path) -> int:
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise StepFailed(f"the lock {path} cannot be opened: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StepFailed(f"the lock {path} is not a regular file")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(fd)
            os.close(fd)
            raise Locked(
                f"another instance (PID {holder}) holds {path}",
                hint="wait for it to end, or end it; nothing was changed",
            ) from error
        if _is_still(fd, path):
            return fd
        os.close(fd)  # somebody replaced the file between open and lock


def _holder(fd: int) -> str:
    """Return the PID in the file. Who has just taken the lock needs a moment to write it."""
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
