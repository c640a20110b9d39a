"""A connection to a Unix socket, also where its path is too long or its queue is full."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Final

_LONGEST_ADDRESS: Final = 108
_PAUSE: Final = 0.02


def connect(client: socket.socket, path: Path, *, deadline: float) -> None:
    """Connect before a deadline of the monotonic clock. Raises TimeoutError, or another OSError."""
    with contextlib.ExitStack() as undo:
        address = os.fspath(path)
        if len(os.fsencode(path)) >= _LONGEST_ADDRESS:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, directory)
            address = f"/proc/self/fd/{directory}/{path.name}"
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            client.settimeout(left)
            try:
                client.connect(address)
            except BlockingIOError:
                # The kernel does not wait on behalf of a socket that has a timeout.
                time.sleep(_PAUSE)
            else:
                return
