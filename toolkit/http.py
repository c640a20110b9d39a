"""HTTP on a Unix socket: what Docker and CRI-O are asked and told that way."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from toolkit import unix
from toolkit.errors import StepFailed
from toolkit.stop import Timeout, countdown

_LARGEST: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server says to a request: the status, its name, and a text."""

    status: int
    reason: str
    body: str

    @property
    def ok(self) -> bool:
        """Tell whether the server did what it was told."""
        return 200 <= self.status < 300


def get(path: Path, target: str, *, timeout: Timeout, gone: str | None = None) -> str:
    """GET a target over HTTP on a Unix socket; `timeout` is for everything.

    `gone` is returned for what is not there any more. Raises StepFailed.
    """
    answer = request(path, "GET", target, timeout=timeout)
    if answer.status == http.client.NOT_FOUND and gone is not None:
        return gone
    if answer.status != http.client.OK:
        raise StepFailed(f"{path} answers GET {target} with {answer.status} {answer.reason}")
    return answer.body


def request(
    path: Path,
    method: str,
    target: str,
    body: bytes | None = None,
    *,
    kind: str = "application/json",
    timeout: Timeout,
) -> Answer:
    """Send a request over HTTP on a Unix socket and return the answer, whatever its status is.

    `kind` is the media type of the body. `timeout` is for everything. Raises
    StepFailed where there is no answer.
    """
    client = _Client(path, countdown(timeout))
    headers = {"Host": "localhost"} | ({} if body is None else {"Content-Type": kind})
    try:
        client.request(method, target, body=body, headers=headers)
        answer = client.getresponse()
        said = answer.read(_LARGEST).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise StepFailed(f"{path} does not answer {method} {target}: {error}") from error
    finally:
        client.close()
    return Answer(status=answer.status, reason=answer.reason, body=said)


class _Client(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path, left: Callable[[], float]) -> None:
        super().__init__("localhost")
        self._path = path
        self._left = left

    def connect(self) -> None:
        self.sock = client = unix.Client(self._left)
        client.reach(self._path)
