"""The process that answers on a Unix socket, found by the credentials of its first message.

`SO_PEERCRED` names the process that called listen(2), which is systemd for a socket-activated
Docker. The credentials of a message name the daemon itself. `SO_PASSCRED` must be set before
connect(2): a server may send its first message before that, and the PID of that message would be 0.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import Final

from toolkit.deadline import Timeout, elapsed, remaining
from toolkit.errors import StepError
from toolkit.node import processes, trust, unix_socket

_SO_PASSCRED: Final = 16
_SCM_CREDENTIALS: Final = 2
_CREDENTIALS: Final = struct.Struct("iII")
_HTTP: Final = b"GET /info HTTP/1.0\r\nHost: localhost\r\n\r\n"


class NoPeer(StepError):
    """No container runtime was found on the socket."""


class Untrusted(NoPeer):
    """The process that answers on the socket is not trusted."""


class UnexpectedPeer(NoPeer):
    """The process that answers on the socket, `process`, is not the expected runtime."""

    def __init__(self, message: str, *, hint: str, process: processes.RuntimeProcess) -> None:
        super().__init__(message, hint=hint)
        self.process = process


def find(
    path: Path,
    executables: frozenset[str],
    *,
    server_speaks_first: bool = True,
    timeout: Timeout = 5,
) -> processes.RuntimeProcess:
    """Return the daemon that answers on a Unix socket.

    `executables` are the base names that its executable may have. `server_speaks_first` is set if
    the server sends a message without a request, as gRPC servers do. `timeout`, in seconds, is for
    the connection and the first message. Raises NoPeer if the socket does not exist, is no socket,
    is not answered in time, or is answered by another program.
    """
    return examine(
        path, _speaker(path, timeout, server_speaks_first=server_speaks_first), executables
    )


def examine(path: Path, pid: int, executables: frozenset[str]) -> processes.RuntimeProcess:
    """Return the daemon with the PID that the credentials of a message on a socket name.

    `executables` as for `find`. Raises NoPeer if the process is another program, or not trusted.
    """
    if pid <= 0:
        raise NoPeer(
            f"{path} is answered by a process outside of this PID namespace",
            hint="the pod needs `hostPID: true`",
        )
    if pid in (1, os.getpid()):
        who = "the init process (PID 1)" if pid == 1 else "this very process"
        raise NoPeer(f"{path} is answered by {who}, which is not a container runtime")
    process = processes.inspect(pid)
    # Checked after the start time was read, so that `is_alive` confirms that this process was
    # checked.
    if process is not None and (problem := trust.process_problem(pid)) and process.is_alive():
        raise Untrusted(
            f"{path} is answered by PID {pid} ({process.executable}), which {problem}: it is not"
            " trusted",
            hint="name the socket of the node's own runtime with --socket",
        )
    if process is None and processes.is_running(pid):
        raise NoPeer(
            f"{path} is answered by PID {pid}, which cannot be examined: permission denied",
            hint="the pod needs `privileged: true`, or the capability SYS_PTRACE",
        )
    if process is None:
        raise NoPeer(f"{path} is answered by PID {pid}, which has already exited")
    if not processes.looks_like(process, executables):
        raise UnexpectedPeer(
            f"{path} is answered by PID {pid} ({process.executable}), which does not look like"
            f" {' or '.join(sorted(executables))}",
            hint="name the runtime's own socket with --socket",
            process=process,
        )
    return process


def _speaker(path: Path, timeout: Timeout, *, server_speaks_first: bool) -> int:
    """Return the PID in the credentials of the first message on a connection."""
    began = time.monotonic()
    try:
        with unix_socket.Client(remaining(timeout)) as client:
            request_credentials(client)
            client.delivery(path)
            if not server_speaks_first:
                client.sendall(_HTTP)
            return _credentials(client)
    except FileNotFoundError as error:
        raise NoPeer(
            f"the socket {path} does not exist",
            hint="is the runtime running? name its socket with --socket",
        ) from error
    except ConnectionRefusedError as error:
        raise NoPeer(
            f"no process listens on {path}: it is not a socket, or a stale one",
            hint="is the runtime running? name its socket with --socket",
        ) from error
    except trust.Distrusted as error:
        raise Untrusted(
            f"{path} is not trusted: {error.strerror}",
            hint="name the socket of the node's own runtime with --socket",
        ) from error
    except TimeoutError as error:
        raise NoPeer(f"{path} was not answered within {elapsed(timeout, began)}") from error
    except OSError as error:
        raise NoPeer(f"the socket {path} cannot be used: {error.strerror}") from error


def _credentials(client: unix_socket.Client) -> int:
    data, pid = receive(client, 4096)
    if not data:
        raise ConnectionResetError(104, "the server closed the connection without an answer")
    return pid


def request_credentials(client: socket.socket) -> None:
    """Ask the kernel for the credentials of each message; to be called before connect(2)."""
    client.setsockopt(socket.SOL_SOCKET, _SO_PASSCRED, 1)


def receive(client: socket.socket, most: int) -> tuple[bytes, int]:
    """Receive a message and the PID in its credentials, 0 if there is none."""
    data, ancillary, _, _ = client.recvmsg(most, socket.CMSG_SPACE(_CREDENTIALS.size))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == _SCM_CREDENTIALS:
            pid: int = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
            return data, pid
    return data, 0
