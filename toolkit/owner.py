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

from toolkit import kernel, unix
from toolkit.errors import StepFailed
from toolkit.stop import Timeout, countdown, passed

_SO_PASSCRED: Final = 16
_SCM_CREDENTIALS: Final = 2
_CREDENTIALS: Final = struct.Struct("iII")
_INTERPRETERS: Final = ("python", "sh", "bash", "dash", "busybox")
_HTTP: Final = b"GET /info HTTP/1.0\r\nHost: localhost\r\n\r\n"
_UNIT: Final = re.compile(r"/([^/]+\.service)(?=/|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A daemon: PID in our namespace, start, executable, argv, systemd unit.

    `started` is in clock ticks since boot, by which a process stays the same
    whatever is done to the clock. `executable` is the path as the daemon's own mount namespace has it; `unit`
    is None where the process belongs to no service.
    """

    pid: int
    started: int
    executable: str
    argv: tuple[str, ...]
    unit: str | None

    def is_alive(self) -> bool:
        """Tell whether this very process still runs (not a later one of the same PID)."""
        return kernel.ticks(self.pid) == self.started


class NoOwner(StepFailed):
    """Nobody who may be signalled owns the socket."""


class Stranger(NoOwner):
    """What answers on the socket is no such runtime. `found` is it."""

    def __init__(self, message: str, *, hint: str, found: Owner) -> None:
        super().__init__(message, hint=hint)
        self.found = found


def find(
    path: Path, executables: frozenset[str], *, speaks_first: bool = True, timeout: Timeout = 5
) -> Owner:
    """Return the daemon that answers on a Unix socket.

    `executables` are the base names that it may have; `speaks_first` tells
    whether it says something before it is spoken to. `timeout` is for
    connecting and for its first words. Raises NoOwner for a socket that is
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
    if found is None and _is_there(pid):
        raise NoOwner(
            f"{path} is answered by PID {pid}, which may not be looked at from here",
            hint="the pod needs `privileged: true`, or the capability SYS_PTRACE",
        )
    if found is None:
        raise NoOwner(f"{path} is answered by PID {pid}, which is gone already")
    if not looks_like(found, executables):
        raise Stranger(
            f"{path} is answered by PID {pid} ({found.executable}), which does not look like"
            f" {' or '.join(sorted(executables))}",
            hint="name the runtime's own socket with --socket",
            found=found,
        )
    return found


def _is_there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def inspect(pid: int) -> Owner | None:
    """Return what can be known of a process, or None where it is gone."""
    try:
        started = kernel.ticks(pid)
        argv = kernel.words(pid)
        executable = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        unit = _unit(pid)
    except OSError:
        return None
    if started is None:
        return None
    return Owner(pid=pid, started=started, executable=executable, argv=argv, unit=unit)


def age(found: Owner) -> float:
    """Return for how many seconds a process has run, to a hundredth; infinite where it is gone."""
    if not found.is_alive():
        return float("inf")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - found.started / os.sysconf("SC_CLK_TCK")


def search_path(found: Owner) -> str | None:
    """Return the PATH that a daemon looks its programs up on; None where it cannot be seen."""
    try:
        with open(f"/proc/{found.pid}/environ", "rb") as stream:
            variables = stream.read().split(b"\0")
    except OSError:
        return None
    paths = [os.fsdecode(item[5:]) for item in variables if item.startswith(b"PATH=")]
    return paths[0] if paths else None


def argument(found: Owner | None, flags: tuple[str, ...]) -> str | None:
    """Return the value that the daemon was started with for one of these flags, where it says so."""
    words = found.argv if found else ()
    for index, word in enumerate(words):
        if word in flags and index + 1 < len(words):
            return words[index + 1]
        name, equals, value = word.partition("=")
        if equals and name in flags:
            return value
    return None


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


def _speaker(path: Path, timeout: Timeout, *, speaks_first: bool) -> int:
    """Return the PID that the kernel gives for the first words said on a connection."""
    began = time.monotonic()
    try:
        with unix.Client(countdown(timeout)) as client:
            client.setsockopt(socket.SOL_SOCKET, _SO_PASSCRED, 1)
            client.reach(path)
            if not speaks_first:
                client.sendall(_HTTP)
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
        raise NoOwner(f"{path} was not answered within {passed(timeout, began)}") from error
    except OSError as error:
        raise NoOwner(f"the socket {path} cannot be used: {error.strerror}") from error


def _credentials(client: unix.Client) -> int:
    space = socket.CMSG_SPACE(_CREDENTIALS.size)
    data, ancillary, _, _ = client.recvmsg(4096, space)
    if not data:
        raise ConnectionResetError(104, "the connection was closed without a word")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == _SCM_CREDENTIALS:
            pid: int = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
            return pid
    return 0


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
