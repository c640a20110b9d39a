"""A connection to a Unix socket, also where its path is too long or its queue is full.

How long it is waited for is asked again and again: that may become less meanwhile,
and a server that says a little now and then gets no more time by it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_LONGEST_ADDRESS: Final = 108
_PAUSE: Final = 0.02
_SLICE: Final = 0.25


class Client(socket.socket):
    """A socket of which every wait ends with TimeoutError once no seconds are left."""

    def __init__(self, left: Callable[[], float]) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._left = left

    def reach(self, path: Path) -> None:
        """Connect. Raises TimeoutError, or another OSError."""
        with contextlib.ExitStack() as undo:
            address = os.fspath(path)
            if len(os.fsencode(path)) >= _LONGEST_ADDRESS:
                directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, directory)
                address = f"/proc/self/fd/{directory}/{path.name}"
            # The kernel would wait without end where too many wait to be accepted.
            self.settimeout(0)
            while self._some_time():
                try:
                    self.connect(address)
                except BlockingIOError:
                    time.sleep(_PAUSE)
                else:
                    break
            self.settimeout(None)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive once there is something."""
        self._await(select.POLLIN)
        return super().recv(bufsize, flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive once there is something; http.client reads by this."""
        self._await(select.POLLIN)
        return super().recv_into(buffer, nbytes, flags)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        """Receive once there is something, with what the kernel says of it."""
        self._await(select.POLLIN)
        return super().recvmsg(bufsize, ancbufsize, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        """Send as the server takes it."""
        rest = memoryview(data)
        while rest:
            self._await(select.POLLOUT)
            with contextlib.suppress(BlockingIOError):
                rest = rest[self.send(rest, flags | socket.MSG_DONTWAIT) :]

    def _await(self, event: int) -> None:
        poll = select.poll()
        poll.register(self, event)
        while not poll.poll(self._some_time() * 1000):
            continue

    def _some_time(self) -> float:
        """Return how long to wait before that is asked for again. Raises TimeoutError where none is left."""
        left = self._left()
        if left <= 0:
            raise TimeoutError("timed out")
        return min(left, _SLICE)
