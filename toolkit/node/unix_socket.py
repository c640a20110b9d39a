"""A connection to a Unix socket with a deadline. Long paths and a full accept queue are supported.

The deadline is evaluated again on every wait: it may become shorter meanwhile, and a server that
sends a few bytes now and then cannot extend it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from toolkit.node import trust

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_LONGEST_ADDRESS: Final = 108
_CREDENTIALS: Final = struct.Struct("iII")
_PAUSE: Final = 0.02
_SLICE: Final = 0.25


def connect(client: socket.socket, path: Path) -> None:
    """Connect a socket that does not block to a trusted server; a long path is supported.

    Raises BlockingIOError while the accept queue is full, trust.Distrusted or another OSError.
    """
    with contextlib.ExitStack() as undo:
        address = os.fspath(path)
        if len(os.fsencode(path)) >= _LONGEST_ADDRESS:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, directory)
            address = f"/proc/self/fd/{directory}/{path.name}"
        client.connect(address)
    # The credentials of the process that called listen(2): systemd for a socket that it activates.
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    if not trust.is_trusted(uid):
        raise trust.Distrusted(f"PID {pid} listens on it, with user ID {uid}")


class Client(socket.socket):
    """A Unix socket whose operations raise TimeoutError when `left` returns no more seconds."""

    def __init__(self, left: Callable[[], float]) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._left = left

    def delivery(self, path: Path) -> None:
        """Connect to a trusted server. Raises TimeoutError, trust.Distrusted or another OSError."""
        # A blocking connect(2) would wait without limit while the accept queue is full.
        self.settimeout(0)
        while self._slice():
            try:
                connect(self, path)
            except BlockingIOError:
                time.sleep(_PAUSE)
            else:
                break
        self.settimeout(None)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Wait for data and receive it."""
        self._await(select.POLLIN)
        return super().recv(bufsize, flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Wait for data and receive it into a buffer; http.client uses this method."""
        self._await(select.POLLIN)
        return super().recv_into(buffer, nbytes, flags)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        """Wait for data and receive it with its ancillary data."""
        self._await(select.POLLIN)
        return super().recvmsg(bufsize, ancbufsize, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        """Send all data, waiting whenever the server does not accept more."""
        rest = memoryview(data)
        while rest:
            self._await(select.POLLOUT)
            with contextlib.suppress(BlockingIOError):
                rest = rest[self.send(rest, flags | socket.MSG_DONTWAIT) :]

    def _await(self, event: int) -> None:
        poll = select.poll()
        poll.register(self, event)
        while not poll.poll(self._slice() * 1000):
            continue

    def _slice(self) -> float:
        """Return the seconds to wait before evaluating the deadline again. Raises TimeoutError."""
        left = self._left()
        if left <= 0:
            raise TimeoutError("timed out")
        return min(left, _SLICE)
