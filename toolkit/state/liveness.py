"""The state of the agent in a file: what the liveness probe decides on, without a listening port.

The agent replaces the file when a sync starts or ends and removes it when it exits. The file names
the process and a time by which the agent replaces it: an agent that hangs or was killed leaves it
unchanged. /healthz is decided by the same function, `AgentState.problem`.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from toolkit.log import LOGGER
from toolkit.node import procfs, trust

FORMAT: Final = 1
_LARGEST: Final = 1 << 16
_MOST_FAILED_STARTS: Final = 3
"""Syncs in a row that could not be started, after which only a new process is likely to help."""


class AgentState(NamedTuple):  # A dataclass would cost the agent 1 MB of memory.
    """The content of the file. Times are those of CLOCK_MONOTONIC, which all processes share.

    `pid`, `started` (in clock ticks since boot) and `boot` identify the process. `since` is when
    the running sync began, or when the last one ended. `deadline` is when the running sync must
    have ended, or the next one have been started; None if none is due. `failed_starts` counts the
    syncs in a row that could not be started, `failure` is why.
    """

    pid: int
    started: int | None
    boot: str
    format: int = FORMAT
    is_syncing: bool = False
    since: float = 0.0
    deadline: float | None = None
    failed_starts: int = 0
    failure: str = ""

    def problem(self, now: float) -> str:
        """Return why only a new process is likely to help; empty if the agent is healthy."""
        if self.deadline is not None and now > self.deadline:
            seconds = f"{now - self.since:.0f} s"
            if self.is_syncing:
                return f"a sync has been running for {seconds}"
            return f"a sync is due and has not been started; the last one ended {seconds} ago"
        if self.failed_starts >= _MOST_FAILED_STARTS:
            return f"{self.failure} ({self.failed_starts} times)"
        return ""

    def other_process(self) -> str:
        """Return why the state is not that of a running agent; empty if it is."""
        if self.boot != procfs.boot_id():
            return "the state of the agent is from another boot"
        if procfs.start_time(self.pid) != self.started:
            return f"PID {self.pid} is no longer the agent"
        return ""


class StateFile:
    """The writer of the file. `state` is what it should contain, also if it cannot be written."""

    def __init__(self) -> None:
        pid = os.getpid()
        self.state = AgentState(pid=pid, started=procfs.start_time(pid), boot=procfs.boot_id())
        self._path: Path | None = None
        self._problem = ""

    def publish(
        self, path: Path, *, began: float | None, deadline: float, failure: str = ""
    ) -> None:
        """Write the state: a sync `began`, none is running, or one was not started (`failure`).

        If the file cannot be written, the old one says later that the agent is not healthy, since
        its deadline passes. That is logged once. The next call tries again.
        """
        self.state = self.state._replace(
            is_syncing=began is not None,
            since=time.monotonic() if began is None else began,
            deadline=None if deadline == float("inf") else deadline,
            failed_starts=self.state.failed_starts + 1 if failure else 0,
            failure=failure,
        )
        if self._path != path:  # the settings were reloaded
            self.remove()
        self._path = path
        problem = _written(path, self.state)
        if problem and problem != self._problem:
            LOGGER.warning("the liveness probe may fail: %s", problem)
        self._problem = problem

    def problem(self) -> str:
        """Return why the agent is not healthy, by the same decision as that of the probe."""
        return self.state.problem(time.monotonic())

    def remove(self) -> None:
        """Remove the file: the agent exits."""
        if self._path is not None:
            remove(self._path)


def _written(path: Path, state: AgentState) -> str:
    """Replace the file atomically; return why it cannot be written.

    It need not survive the boot, so it is not flushed to the disk: the agent would have to wait for
    that.
    """
    if problem := trust.place_problem(path.parent):
        return f"{path} is not written: {problem}"
    spare = _spare(path)
    try:
        with suppress(FileNotFoundError):
            os.unlink(spare)
        fd = os.open(
            spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with open(fd, "wb") as stream:
            stream.write(json.dumps(state._asdict()).encode() + b"\n")
        os.rename(spare, path)
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    return ""


def _spare(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def remove(path: Path) -> None:
    """Remove the file, which an agent that was killed left, and its temporary file."""
    for each in (path, _spare(path)):
        with suppress(OSError):
            os.unlink(each)


def unhealthy(path: Path) -> str:
    """Return why the agent with this file is unhealthy or not running; empty if it is healthy."""
    try:
        data = trust.read_own(path, _LARGEST)
        if data is None:
            return f"no agent is running: {path} not found"
        content = json.loads(data)
        if content["format"] != FORMAT:
            return f"{path} is not the state of an agent in format {FORMAT}"
        state = AgentState(**content)
        return state.other_process() or state.problem(time.monotonic())
    except OSError as error:
        return f"{path}: {error.strerror}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"{path} is not the state of an agent"
