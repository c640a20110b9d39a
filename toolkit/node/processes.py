"""A process of the node: its identity, its command line, its unit, and signals to it."""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from runtimes.dataclass import dataclass
from runtimes.lazy_pattern import lazy_pattern
from toolkit.errors import StepError
from toolkit.node import procfs

_INTERPRETERS: Final = ("python", "sh", "bash", "dash", "busybox")
_UNIT: Final = lazy_pattern(r"/([^/]+\.service)(?=/|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeProcess:
    """A daemon: its PID in this PID namespace, start time, executable, argv and systemd unit.

    `start_ticks` is the start time in clock ticks since boot; together with the PID it identifies
    the process. `executable` is a path in the mount namespace of the daemon. `unit` is None if the
    process belongs to no service.
    """

    pid: int
    start_ticks: int
    executable: str
    argv: tuple[str, ...]
    unit: str | None

    def is_alive(self) -> bool:
        """Return whether the process still runs, and its PID has not been reused."""
        return procfs.start_time(self.pid) == self.start_ticks


def is_running(pid: int) -> bool:
    """Return whether a process exists, a zombie included."""
    return os.path.exists(f"/proc/{pid}")


def inspect(pid: int) -> RuntimeProcess | None:
    """Return the process with a PID; None if it does not exist or may not be examined."""
    try:
        started = procfs.start_time(pid)
        argv = procfs.argv(pid)
        executable = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        unit = _unit(pid)
    except OSError:
        return None
    if started is None:
        return None
    return RuntimeProcess(pid=pid, start_ticks=started, executable=executable, argv=argv, unit=unit)


def age(process: RuntimeProcess) -> float:
    """Return for how many seconds a process has run; infinity if it has exited."""
    if not process.is_alive():
        return float("inf")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - process.start_ticks / os.sysconf("SC_CLK_TCK")


def search_path(process: RuntimeProcess) -> str | None:
    """Return the PATH of a daemon; None if it has none or its environment cannot be read."""
    try:
        with open(f"/proc/{process.pid}/environ", "rb") as stream:
            variables = stream.read().split(b"\0")
    except OSError:
        return None
    paths = [os.fsdecode(item[5:]) for item in variables if item.startswith(b"PATH=")]
    return paths[0] if paths else None


def argument(process: RuntimeProcess | None, flags: tuple[str, ...]) -> str | None:
    """Return the value of one of these flags on the daemon's command line, or None."""
    words = process.argv if process else ()
    for index, word in enumerate(words):
        if word in flags and index + 1 < len(words):
            return words[index + 1]
        name, equals, value = word.partition("=")
        if equals and name in flags:
            return value
    return None


def looks_like(process: RuntimeProcess, executables: frozenset[str]) -> bool:
    """Return whether a process is one of these programs, by its executable or its argv[0]."""
    executable = os.path.basename(process.executable)
    words = [os.path.basename(word) for word in process.argv[:2]]
    # The name of a script is behind that of its interpreter.
    is_script = executable.startswith(_INTERPRETERS)
    return bool({executable, *words[: 2 if is_script else 1]} & executables)


def send(process: RuntimeProcess, number: signal.Signals) -> None:
    """Send a signal to a process. Raises StepError if it has exited or its PID has been reused."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError as error:
        raise StepError(f"PID {process.pid} is gone; nothing was signalled") from error
    except OSError:
        fd = None  # Linux before 5.3 has no pidfd_open(2)
    try:
        if not process.is_alive():
            raise StepError(f"PID {process.pid} is another process now; nothing was signalled")
        if fd is None:
            os.kill(process.pid, number)
        else:
            signal.pidfd_send_signal(fd, number)
    except OSError as error:
        raise StepError(f"PID {process.pid} cannot be signalled: {error.strerror}") from error
    finally:
        if fd is not None:
            os.close(fd)


def _unit(pid: int) -> str | None:
    """Return the innermost systemd service in the control group of a process, or None."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", newline="\n") as stream:
        lines = [line.rstrip("\n").split(":", 2) for line in stream]
    # Behind its unit: started by a user's service manager or in a session, not by the system's. In
    # front of it: the container that is the whole node (kind).
    if any("user@" in line[2] or ".scope" in _UNIT.split(line[2])[-1] for line in lines):
        return None
    ranked = sorted(lines, key=lambda line: (line[1] not in ("", "name=systemd"), line[0]))
    for line in ranked:
        result = _UNIT.findall(line[2])
        if result:
            return str(result[-1])
    return None
