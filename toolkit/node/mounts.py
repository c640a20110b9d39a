"""Mount points, file systems and their free space."""

from __future__ import annotations

import os
import re
from pathlib import Path

from toolkit.node import files


def device(directory: Path) -> int:
    """Return the device number of the file system of a directory, which may not exist yet."""
    status = files.status(nearest(directory))
    return status.st_dev if status is not None else 0


def space(directory: Path, needed: int) -> list[str]:
    """Return why `needed` bytes do not fit into a directory, as messages; empty if they do."""
    existing = nearest(directory)
    try:
        status = os.statvfs(existing)
    except OSError as error:
        return [f"{existing} cannot be examined: {error.strerror}"]
    free = status.f_bavail * status.f_frsize
    if free < needed:
        return [f"{existing} has {free >> 10} KiB of free space, and {needed >> 10} KiB are needed"]
    if status.f_files and not status.f_favail:
        return [f"{existing} has no inodes left"]
    return []


def nearest(directory: Path) -> Path:
    """Return a directory, or its nearest existing parent."""
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    return directory


def mount_points() -> set[str]:
    """Return the mount points of this namespace. mountinfo escapes special characters in octal."""
    try:
        # Users can mount file systems (FUSE) in directories of any name. Of the characters that
        # may end a line, the kernel escapes only the newline.
        lines = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]
    except OSError:
        return set()
    return {
        re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split(" ")[4]) for line in lines
    }
