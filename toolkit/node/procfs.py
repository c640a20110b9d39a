"""Readers for the files in /proc about the current boot and about processes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from typing import Final

from toolkit.errors import StepError

_BOOT: Final = "/proc/sys/kernel/random/boot_id"
# Indices of `state`, `ppid` and `starttime` (fields 3, 4 and 22 in proc(5)) among the fields of
# /proc/PID/stat behind the name.
_STATE: Final = 0
_PARENT: Final = 1
_START_TIME: Final = 19
CAP_CHOWN: Final = 1 << 0
CAP_DAC_OVERRIDE: Final = 1 << 1
"""Capabilities, as bits of a mask."""


@cache
def boot_id() -> str:
    """Return the ID of the current boot, which is read once. Raises StepError."""
    try:
        with open(_BOOT, encoding="ascii") as stream:
            return stream.read().strip()
    except OSError as error:
        raise StepError(f"{_BOOT} cannot be read: {error.strerror}") from error


def any_exists(paths: Iterable[str]) -> bool:
    """Return whether one of the paths exists, such as the directory of a kernel module."""
    return any(os.path.exists(path) for path in paths)


def start_time(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None if it has ended.

    A process whose parent does not ask for its end remains as a zombie.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] == "Z" else int(fields[_START_TIME])


def parent(pid: int) -> int | None:
    """Return the PID of a process's parent; 0 if it has none here, None if it does not exist."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return int(stream.read().rpartition(")")[2].split()[_PARENT])
    except OSError:
        return None


def name(pid: int) -> str | None:
    """Return the name of a process, of at most 15 bytes; None if it does not exist."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().removesuffix("\n")
    except OSError:
        return None


def capabilities(kind: str, pid: int | str = "self") -> int:
    """Return a set of capabilities of a process, such as CapEff, as a bit mask. Raises OSError."""
    with open(f"/proc/{pid}/status", "rb") as stream:
        # The first line is the name, which the process chooses. Only newlines are escaped in it.
        lines = stream.read().split(b"\n")[1:]
    start = f"{kind}:".encode()
    return next((int(line.split()[1], 16) for line in lines if line.startswith(start)), 0)


def argv(pid: int) -> tuple[str, ...]:
    """Return the argv of a process; empty for a zombie. Raises OSError."""
    with open(f"/proc/{pid}/cmdline", "rb") as stream:
        content = stream.read()
    # A process that overwrites its argv to set its title may leave a text without a zero at the
    # end.
    return (
        tuple(os.fsdecode(word) for word in content.removesuffix(b"\0").split(b"\0"))
        if content
        else ()
    )
