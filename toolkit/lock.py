"""One writer per node: a lock on a file that the loser never truncates and nobody deletes under it."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit import files
from toolkit.errors import Locked, StepFailed


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the node's lock and keep our PID in it.

    Raises Locked where another process holds it, naming its PID, and StepFailed
    where the file cannot be made.
    """
    files.make_directory(path.parent)
    fd = _locked(path)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # Emptied, not unlinked: whoever waits for this inode must not end up with a lock of its own.
        os.ftruncate(fd, 0)
        os.close(fd)


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
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise Locked(
                f"another instance (PID {holder}) holds {path}",
                hint="wait for it to end, or end it; nothing was changed",
            ) from error
        if _is_still(fd, path):
            return fd
        os.close(fd)  # somebody replaced the file between open and lock


def _is_still(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
