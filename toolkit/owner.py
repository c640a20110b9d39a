"""The process that owns a socket: found by the credentials of what it says, held by PID and start time.

`SO_PEERCRED` names the process that called listen(), which for a
socket-activated Docker is systemd. The credentials of a *message* name the
daemon itself. They have to be asked for before connect(): a server that speaks
first may do so before they are, and then the PID reads 0.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from toolkit import unix
from toolkit.errors import StepFailed

_SO_PASSCRED: Final = 16
_SCM_CREDENTIALS: Final = 2
_CREDENTIALS: Final = struct.Struct("iII")
# Of the fields of /proc/PID/stat behind the name, counted from 0 (field 22 in proc(5)).
_START_TIME: Final = 19
_INTERPRETERS: Final = ("python", "sh", "bash", "dash", "busybox")
_HTTP: Final = b"GET /info HTTP/1.0\r\nHost: localhost\r\n\r\n"
_UNIT: Final = re.compile(r"/([^/]+\.service)(?=/|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A daemon: PID in our namespace, start time (seconds since the epoch), executable, argv, systemd unit.

    `executable` is the path as the daemon's own mount namespace has it; `unit`
    is None where the process belongs to no service.
    """

    pid: int
    started: float
    executable: str
    argv: tuple[str, ...]
    unit: str | None

    def is_alive(self) -> bool:
        """Tell whether this very process still runs (not a later one of the same PID)."""
        return _started(self.pid) == self.started


class NoOwner(StepFailed):
    """Nobody who may be signalled owns the socket."""


def find(path: Path, executables: frozenset[str], *, speaks_first: bool = True, timeout: float = 5) -> Owner:
    """Return the daemon that answers on a Unix socket.

    `executables` are the base names that it may have; `speaks_first` tells
    whether it says something before it is spoken to. `timeout`, in seconds, is
    for connecting and for its first words. Raises NoOwner for a socket that is
    missing, is no socket, is not answered, or is answered by what is not such a
    daemon.
    """
    pid = _speaker(path, timeout, speaks_first=speaks_first)
    if pid <= 0:
        raise NoOwner(
            f"{path} is answered by a process outside of this PID namespace",
            hint="the pod needs `hostPID: true`",
        )
    if pid in (1, os.getpid()):
        who = "the init process (PID 1)" if pid == 1 else "this very process"
        raise NoOwner(f"{path} is answered by {who}, which is not a container runtime")
    found = inspect(pid)
    if found is None:
        raise NoOwner(f"{path} is answered by PID {pid}, which is gone already")
    if not looks_like(found, executables):
        raise NoOwner(
            f"{path} is answered by PID {pid} ({found.executable}), which does not look like"
            f" {' or '.join(sorted(executables))}",
            hint="name the runtime's own socket with --socket",
        )
    return found


def inspect(pid: int) -> Owner | None:
    """Return what can be known of a process, or None where it is gone."""
    try:
        started = _started(pid)
        process = psutil.Process(pid)
        argv = tuple(process.cmdline())
        executable = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        unit = _unit(pid)
    except (psutil.Error, OSError):
        return None
    if started is None:
        return None
    return Owner(pid=pid, started=started, executable=executable, argv=argv, unit=unit)


def age(found: Owner) -> float:
    """Return for how many seconds a process has run, to a hundredth: `started` is only good to tell it by.

    Infinite where it is gone.
    """
    try:
        with open(f"/proc/{found.pid}/stat", encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    began = int(fields[_START_TIME]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def looks_like(found: Owner, executables: frozenset[str]) -> bool:
    """Tell whether a process is one of these programs, by its executable or by the name it was started by."""
    executable = os.path.basename(found.executable)
    words = [os.path.basename(word) for word in found.argv[:2]]
    # A script has its name behind that of what reads it.
    is_script = executable.startswith(_INTERPRETERS)
    return bool({executable, *words[: 2 if is_script else 1]} & executables)


def send(found: Owner, number: signal.Signals) -> None:
    """Send a signal to exactly this process. Raises StepFailed where it is gone or is another one now."""
    try:
        fd = os.pidfd_open(found.pid)
    except ProcessLookupError as error:
        raise StepFailed(f"PID {found.pid} is gone; nothing was signalled") from error
    except OSError:
        fd = None  # a kernel before 5.3
    try:
        if not found.is_alive():
            raise StepFailed(f"PID {found.pid} is another process now; nothing was signalled")
        if fd is None:
            os.kill(found.pid, number)
        else:
            signal.pidfd_send_signal(fd, number)
    except OSError as error:
        raise StepFailed(f"PID {found.pid} cannot be signalled: {error.strerror}") from error
    finally:
        if fd is not None:
            os.close(fd)


def _speaker(path: Path, timeout: float, *, speaks_first: bool) -> int:
    """Return the PID that the kernel gives for the first words said on a connection."""
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setsockopt(socket.SOL_SOCKET, _SO_PASSCRED, 1)
            unix.connect(client, path, deadline=deadline)
            if not speaks_first:
                client.sendall(_HTTP)
            client.settimeout(max(0.1, deadline - time.monotonic()))
            return _credentials(client)
    except FileNotFoundError as error:
        raise NoOwner(
            f"the socket {path} does not exist",
            hint="is the runtime running? name its socket with --socket",
        ) from error
    except ConnectionRefusedError as error:
        raise NoOwner(
            f"nobody listens on {path}: it is no socket, or a stale one",
            hint="is the runtime running? name its socket with --socket",
        ) from error
    except TimeoutError as error:
        raise NoOwner(f"{path} was not answered within {timeout:g} s") from error
    except OSError as error:
        raise NoOwner(f"the socket {path} cannot be used: {error.strerror}") from error


def _credentials(client: socket.socket) -> int:
    space = socket.CMSG_SPACE(_CREDENTIALS.size)
    data, ancillary, _, _ = client.recvmsg(4096, space)
    if not data:
        raise ConnectionResetError(104, "the connection was closed without a word")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == _SCM_CREDENTIALS:
            pid: int = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
            return pid
    return 0


def _started(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _unit(pid: int) -> str | None:
    """Return the innermost service in a process's control group, whichever hierarchy says it."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as stream:
        lines = [line.rstrip("\n").split(":", 2) for line in stream]
    if any("user@" in line[2] or ".scope" in line[2] for line in lines):
        return None  # of another service manager than the node's own
    ranked = sorted(lines, key=lambda line: (line[1] not in ("", "name=systemd"), line[0]))
    for line in ranked:
        found = _UNIT.findall(line[2])
        if found:
            return str(found[-1])
    return None
