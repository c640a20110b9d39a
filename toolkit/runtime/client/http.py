"""HTTP client for a Unix socket, for the APIs of Docker and CRI-O."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtimes.dataclass import dataclass
from toolkit.deadline import Timeout, remaining
from toolkit.errors import StepError
from toolkit.node import unix_socket

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LARGEST: Final = 16 << 20
"""Bytes of a response: 4 KiB for each of 4,000 containers, which `/containers/json` lists."""
_MOST_RECEIVED: Final = 2 * _LARGEST
_LONGEST_REASON: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An HTTP response: the status code, its reason phrase, and the body."""

    status: int
    reason: str
    body: str

    @property
    def ok(self) -> bool:
        """Return whether the request succeeded (status 2xx)."""
        return 200 <= self.status < 300


def get(path: Path, target: str, *, timeout: Timeout, gone: str | None = None) -> str:
    """Send a GET request over a Unix socket and return the body; `timeout` covers everything.

    If the target does not exist and `gone` is set, return `gone`. Raises StepError for any other
    status than 200.
    """
    answer = request(path, "GET", target, timeout=timeout)
    if answer.status == http.client.NOT_FOUND and gone is not None:
        return gone
    if answer.status != http.client.OK:
        raise StepError(f"GET {target} on {path} failed: {answer.status} {answer.reason}")
    return answer.body


def request(
    path: Path,
    method: str,
    target: str,
    body: bytes | None = None,
    *,
    kind: str = "application/json",
    timeout: Timeout,
) -> Response:
    """Send a request over a Unix socket and return the response, whatever its status is.

    `kind` is the media type of the body. `timeout` covers everything. Raises StepError if there is
    no response.
    """
    failed = f"{method} {target} on {path} failed"
    client = _Client(path, remaining(timeout))
    headers = {"Host": "localhost"} | ({} if body is None else {"Content-Type": kind})
    try:
        client.request(method, target, body=body, headers=headers)
        answer = client.getresponse()
        data = answer.read(_LARGEST + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise StepError(f"{failed}: {_words(error)}") from error
    finally:
        client.close()
    if len(data) > _LARGEST:
        raise StepError(f"{failed}: the response is larger than {_LARGEST} bytes")
    if answer.length:  # http.client does not compare what it read with a limit
        raise StepError(f"{failed}: the response is truncated, {answer.length} bytes are missing")
    reason = answer.reason[:_LONGEST_REASON]
    return Response(status=answer.status, reason=reason, body=data.decode(errors="replace"))


def _words(error: Exception) -> str:
    """Return the text of an error; only its kind if the server may have written the text."""
    if isinstance(error, OSError):
        return str(error)
    return f"the response is not valid HTTP: {type(error).__name__}"


class _Client(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: Path, time_left: Callable[[], float]) -> None:
        super().__init__("localhost")
        self._path = path
        self._time_left = time_left

    def connect(self) -> None:
        self.sock = client = _Socket(self._time_left)
        client.delivery(self._path)


class _Socket(unix_socket.Client):
    """A Unix socket that receives a limited number of bytes.

    http.client reads a chunk of -1 bytes until the end of the connection, and ignores any number of
    headers.
    """

    _received = 0

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        """Wait for data and receive it into a buffer."""
        size = super().recv_into(buffer, nbytes, flags)
        self._received += size
        if self._received > _MOST_RECEIVED:
            raise OSError(f"the response is larger than {_MOST_RECEIVED} bytes")
        return size
