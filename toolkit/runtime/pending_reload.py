"""Track whether the running daemon still has to reload what we wrote."""

from __future__ import annotations

import os
import time
from typing import Final

from runtimes.dataclass import replace
from toolkit.errors import StepError
from toolkit.node import processes, procfs
from toolkit.node.host import Host
from toolkit.runtime.locate import Target
from toolkit.settings.options import RestartMode
from toolkit.state.record import PendingReload, Record

# Seconds added to file times, because the clocks of files and of processes are both coarse.
_TICKS: Final = 0.05


def add(
    record: Record,
    *,
    is_written: bool,
    by: processes.RuntimeProcess | None = None,
    ends: bool = False,
) -> Record:
    """Return the record with a pending reload for files that are, or are about to be, written.

    `is_written` says that they are written. `by` is the daemon that ran before the write and cannot
    have loaded it. `ends` says that this run is about to terminate the daemon.
    """
    is_known = is_written and by is not None and by.is_alive()
    pending = PendingReload(
        since=time.time(),
        boot_id=procfs.boot_id(),
        uptime=_uptime() if is_written else None,
        process=(by.pid, by.start_ticks) if is_known and by is not None else None,
    )
    return replace(record, pending_reload=pending, restarting=record.restarting or ends)


def is_unwritten(record: Record) -> bool:
    """Return whether a reload is pending for files that may not have been written yet."""
    return record.pending_reload is not None and record.pending_reload.uptime is None


def is_pending(target: Target, record: Record, mode: RestartMode) -> bool:
    """Return whether the running daemon was started before the change was written.

    If the daemon of that time is recorded, compare PID and start time. Otherwise compare the time
    of the change with the daemon's start on the boot clock, because the wall clock may be set at
    any time.
    """
    pending, process = record.pending_reload, target.process
    if pending is None or process is None or mode is RestartMode.NONE:
        return False
    if pending.boot_id not in {"", procfs.boot_id()}:
        return False  # the node was rebooted since, so the runtime was started after the change
    if pending.process is not None:
        return pending.process == (process.pid, process.start_ticks)
    if pending.uptime is not None:
        return processes.age(process) >= _uptime() - pending.uptime
    return processes.age(process) >= time.time() - _written(target, record, pending)


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _written(target: Target, record: Record, pending: PendingReload) -> float:
    """Return when the change was written, in seconds since the epoch.

    If a run was killed before it recorded the time, take it from the files.
    """
    if record.open is None:
        return pending.since
    try:
        return max(_changed(target.host, each.path) for each in record.open.files) + _TICKS
    except (OSError, StepError, ValueError):
        return pending.since


def _changed(host: Host, node_path: str) -> float:
    """Return when a file was last renamed into place or removed. Raises OSError and StepError."""
    path = host.file(node_path)
    try:
        return os.stat(path).st_ctime
    except FileNotFoundError:
        return os.stat(path.parent).st_mtime
