"""A minimal HTTP server for `/healthz`, `/readyz` and `/metrics`.

It reads no more than the request line, which is enough for three static pages: `http.server` of the
standard library would nearly double the memory of the agent.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from toolkit.settings.checks import endpoint

Page = tuple[int, str]
_MOST: Final = 8
_SECONDS: Final = 5.0
_SECONDS_HERE: Final = 0.25
"""Seconds for a client that is answered in the main thread of the agent, which waits for it."""
_LONGEST: Final = 16384
_TEXT: Final = "text/plain; charset=utf-8"
_KINDS: Final[Mapping[str, str]] = {"/metrics": "text/plain; version=0.0.4; charset=utf-8"}
_REASONS: Final[Mapping[int, str]] = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    503: "Service Unavailable",
}  # fmt: skip


class Exporter(socketserver.ThreadingTCPServer):
    """The server. `fd` can be polled; `serve` answers one waiting client in a thread."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 16
    timeout = 0

    def __init__(self, address: str, answers: Mapping[str, Callable[[], Page]]) -> None:
        """Listen on HOST:PORT, an address that the settings have validated.

        `answers` maps paths to functions that return the page. Raises OSError if the address cannot
        be bound.
        """
        self.address = address
        self.answers = answers
        self._clients: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        host_and_port = endpoint(address) or ("127.0.0.1", 0)
        self.address_family = socket.AF_INET6 if ":" in host_and_port[0] else socket.AF_INET
        super().__init__(host_and_port, _Page)

    @property
    def fd(self) -> int:
        """Return the descriptor of the listening socket."""
        return self.fileno()

    def serve(self) -> None:
        """Accept and answer a waiting client, if there is one."""
        self.handle_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a client in a thread. The oldest of too many clients is dropped, as the slowest.

        Without a thread (pids.max is reached) a client is answered here, if it is quick.
        """
        with self._lock:
            oldest = next(iter(self._clients)) if len(self._clients) >= _MOST else None
            if oldest is not None:
                del self._clients[oldest]
            self._clients[request] = _SECONDS
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # "can't start new thread"
            self._clients[request] = _SECONDS_HERE
            self.process_request_thread(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a client, then forget it."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._clients.pop(request, None)

    def patience(self, request: Any) -> float:
        """Return the seconds that a client may take."""
        return self._clients.get(request, _SECONDS)

    def handle_error(self, _request: Any, _client: Any) -> None:
        """Ignore errors of a connection, for example of a client that closed it."""


class _Page(socketserver.BaseRequestHandler):
    server: Exporter

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            method, path = self._request()
            status, text = self._answer(method, path)
            body = text.encode()
            head = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type:"
                f" {_KINDS.get(path, _TEXT)}\r\nContent-Length: {len(body)}\r\nConnection:"
                " close\r\n\r\n"
            )
            self.request.sendall(head.encode() + (b"" if method == "HEAD" else body))

    def _request(self) -> tuple[str, str]:
        """Return the method and the path of the request; empty ones if it is malformed."""
        patience = self.server.patience(self.request)
        end = time.monotonic() + patience
        data = b""
        while b"\r\n\r\n" not in data and len(data) < _LONGEST:
            self.request.settimeout(max(end - time.monotonic(), 0.001))
            more = self.request.recv(_LONGEST)
            if not more:
                break
            data += more
        self.request.settimeout(patience)
        words = data.partition(b"\r\n")[0].decode("ascii", "replace").split(" ")
        if len(words) != 3 or b"\r\n\r\n" not in data or not words[2].startswith("HTTP/1."):
            return "", ""
        return words[0], words[1].partition("?")[0]

    def _answer(self, method: str, path: str) -> Page:
        if not method:
            return 400, "malformed request\n"
        if method not in ("GET", "HEAD"):
            return 405, "only GET and HEAD are supported\n"
        answer = self.server.answers.get(path)
        return (
            answer()
            if answer
            else (404, "not found; the pages are /healthz, /readyz and /metrics\n")
        )
