"""What the runtime owes: its word for what was written; and that it shall live, where we were to end it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Final

from toolkit import kernel, owner
from toolkit.detect import Scene
from toolkit.host import Host
from toolkit.memory import Record
from toolkit.options import RestartMode

# The clocks of files and of processes both tick coarsely.
_TICKS: Final = 0.05


def incurred(
    record: Record, *, is_written: bool, by: owner.Owner | None = None, ends: bool = False
) -> Record:
    """Return the record in which the runtime owes its word for what is, or is about to be, written.

    `by` is the process that ran then, where nothing was written since it was
    looked at; `ends` says that it is about to be ended for it.
    """
    is_known = is_written and by is not None and by.is_alive()
    return replace(
        record,
        owed_since=time.time(),
        owed_boot=kernel.boot_id(),
        owed_uptime=_uptime() if is_written else None,
        owed_by=(by.pid, by.started) if is_known and by is not None else None,
        ends=record.ends or ends,
    )


def is_unwritten(record: Record) -> bool:
    """Tell whether the files that the runtime owes its word for are not known to have been written."""
    if record.owed_since is None:
        return False
    # Versions before this one noted a time that was yet to come.
    return record.owed_uptime is None if record.owed_boot else record.owed_since > time.time()


def is_owed(place: Scene, record: Record, mode: RestartMode) -> bool:
    """Tell whether a change of ours was written which the running daemon is too old to have read.

    Where the process is noted that has not read it, that alone counts: a start in
    whole ticks is too coarse for a daemon that is back at once. The clock may be
    set at any time, so that of the boot counts.
    """
    found = place.owner
    if record.owed_since is None or found is None or mode is RestartMode.NONE:
        return False
    if record.owed_boot not in {"", kernel.boot_id()}:
        return False  # whatever runs was started since
    if record.owed_by is not None:
        return record.owed_by == (found.pid, found.started)
    if record.owed_uptime is not None:
        return owner.age(found) >= _uptime() - record.owed_uptime
    return owner.age(found) >= time.time() - _written(place, record, record.owed_since)


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _written(place: Scene, record: Record, since: float) -> float:
    """Return when what is owed was written: of a run that was killed before it noted that, its files tell."""
    if record.open is None or not is_unwritten(record):
        return since
    try:
        return max(_changed(place.host, each.path) for each in record.open.files) + _TICKS
    except (OSError, ValueError):
        return since


def _changed(host: Host, node_path: str) -> float:
    """Return when a file got its name, or lost it. Raises OSError."""
    path = host.local(node_path)
    try:
        return os.stat(path).st_ctime
    except FileNotFoundError:
        return os.stat(path.parent).st_mtime
