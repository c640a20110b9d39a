"""`/healthz`, `/readyz` and `/metrics` over HTTP, answered from what is known already.

Three pages that say the same to everybody need no more of HTTP than a request's
first line; `http.server` would nearly double the memory of a process that stays.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from toolkit.settings import endpoint

Answer = tuple[int, str]
_MOST: Final = 8
_SECONDS: Final = 5.0
_LONGEST: Final = 16384
_TEXT: Final = "text/plain; charset=utf-8"
_KINDS: Final[Mapping[str, str]] = {"/metrics": "text/plain; version=0.0.4; charset=utf-8"}
_REASONS: Final[Mapping[int, str]] = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable",
}  # fmt: skip


class Exporter(socketserver.ThreadingTCPServer):
    """The server: `fd` can be waited for, and `serve` answers who is there, each in a thread of its own."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 16
    timeout = 0

    def __init__(self, address: str, answers: Mapping[str, Callable[[], Answer]]) -> None:
        """Listen on HOST:PORT, an address that the settings let through. Raises OSError."""
        self.address = address
        self.answers = answers
        self._busy = threading.BoundedSemaphore(_MOST)
        where = endpoint(address) or ("127.0.0.1", 0)
        self.address_family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        super().__init__(where, _Page)

    @property
    def fd(self) -> int:
        """Return what can be waited for."""
        return self.fileno()

    def serve(self) -> None:
        """Answer whoever waits."""
        self.handle_request()

    def verify_request(self, _request: Any, _client: Any) -> bool:
        """Let in as many as can be answered at once."""
        return self._busy.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one, and make room for the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._busy.release()

    def handle_error(self, _request: Any, _client: Any) -> None:
        """Say nothing: a client that hung up is no event."""


class _Page(socketserver.BaseRequestHandler):
    server: Exporter

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            method, path = self._asked()
            status, text = self._answer(method, path)
            body = text.encode()
            head = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {_KINDS.get(path, _TEXT)}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.request.sendall(head.encode() + (b"" if method == "HEAD" else body))

    def _asked(self) -> tuple[str, str]:
        """Return the method and the path that are asked for; empty ones where that is no request."""
        end = time.monotonic() + _SECONDS
        data = b""
        while b"\r\n\r\n" not in data and len(data) < _LONGEST:
            self.request.settimeout(max(end - time.monotonic(), 0.001))
            more = self.request.recv(_LONGEST)
            if not more:
                break
            data += more
        self.request.settimeout(_SECONDS)
        words = data.partition(b"\r\n")[0].decode("ascii", "replace").split(" ")
        if len(words) != 3 or b"\r\n\r\n" not in data or not words[2].startswith("HTTP/1."):
            return "", ""
        return words[0], words[1].partition("?")[0]

    def _answer(self, method: str, path: str) -> Answer:
        if not method:
            return 400, "this is no request\n"
        if method not in ("GET", "HEAD"):
            return 405, "there is nothing to do here but to look\n"
        answer = self.server.answers.get(path)
        return answer() if answer else (404, "there are /healthz, /readyz and /metrics\n")
