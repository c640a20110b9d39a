"""What the kernel says of this boot and of a process, by its own files alone."""

from __future__ import annotations

import os
from functools import cache
from typing import Final

from toolkit.errors import StepFailed

_BOOT: Final = "/proc/sys/kernel/random/boot_id"
# Of the fields of /proc/PID/stat behind the name, counted from 0 (field 22 in proc(5)).
_START_TIME: Final = 19


@cache
def boot_id() -> str:
    """Return what tells this boot of the node from others; it is read once. Raises StepFailed."""
    try:
        with open(_BOOT, encoding="ascii") as stream:
            return stream.read().strip()
    except OSError as error:
        raise StepFailed(f"{_BOOT} cannot be read: {error.strerror}") from error


def ticks(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot (proc(5)); None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return int(stream.read().rpartition(")")[2].split()[_START_TIME])
    except OSError:
        return None


def words(pid: int) -> tuple[str, ...]:
    """Return the argv of a process, none where it has ended and is not yet reaped. Raises OSError."""
    with open(f"/proc/{pid}/cmdline", "rb") as stream:
        said = stream.read()
    # Who writes over its own argv, to be known by it, may leave one text without the zero at its end.
    return tuple(os.fsdecode(word) for word in said.removesuffix(b"\0").split(b"\0")) if said else ()
