"""HTTP client for a Unix socket, for the APIs of Docker and CRI-O."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from toolkit.deadline import Timeout, remaining
from toolkit.errors import StepError
from toolkit.node import unix_socket

_LARGEST: Final = 32 * 1024 * 1024


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

    If the target does not exist and `gone` is set, return `gone`. Raises StepError for any other status
    than 200.
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

    `kind` is the media type of the body. `timeout` covers everything. Raises StepError if there is no
    response.
    """
    client = _Client(path, remaining(timeout))
    headers = {"Host": "localhost"} | ({} if body is None else {"Content-Type": kind})
    try:
        client.request(method, target, body=body, headers=headers)
        answer = client.getresponse()
        text = answer.read(_LARGEST).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise StepError(f"{method} {target} on {path} failed: {error}") from error
    finally:
        client.close()
    return Response(status=answer.status, reason=answer.reason, body=text)


class _Client(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: Path, time_left: Callable[[], float]) -> None:
        super().__init__("localhost")
        self._path = path
        self._time_left = time_left

    def connect(self) -> None:
        self.sock = client = unix_socket.Client(self._time_left)
        client.delivery(self._path)
