"""gRPC client for one unary call over a Unix socket.

Imported only when a call is made, so that an idle agent does not load it. One deadline covers all
waits, and the size of the response is limited, because any program may be listening on the socket.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from toolkit.deadline import Timeout, remaining
from toolkit.node import unix_socket
from toolkit.runtime.client.http2 import FRAME_HEADER, LARGEST_FRAME, Exchange, Http2Failed

_NAMES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_CODES: Final = {str(number): name for number, name in enumerate(_NAMES)}

# A runtime's error is read by people; HTTP/2 itself allows 64 KiB of headers.
_LONGEST_DETAIL: Final = 4096
_CHUNK: Final = 64 << 10
_PREFIX: Final = 5


class CallFailed(Exception):
    """The call failed. `code` is the gRPC status, None if none was sent; `detail` is its text."""

    def __init__(self, why: str, *, code: str | None = None, detail: str = "") -> None:
        self.code = code
        self.detail = detail
        super().__init__(why)


def unary(path: Path, method: str, request: bytes, *, largest: int, timeout: Timeout) -> bytes:
    """Call a method, given as /SERVICE/METHOD, and return its response.

    `largest` is the number of bytes that the response may have. `timeout` covers everything. Raises
    CallFailed for an error status or an invalid response, TimeoutError, and OSError if the
    connection fails.
    """
    time_left = remaining(timeout)
    with unix_socket.Client(time_left) as client:
        client.delivery(path)
        return _message(_exchange(client, method, request, largest, time_left))


def _exchange(
    client: unix_socket.Client,
    method: str,
    request: bytes,
    largest: int,
    time_left: Callable[[], float],
) -> Exchange:
    body = b"\0" + len(request).to_bytes(4, "big") + request
    exchange = Exchange(_headers(method, time_left()), body)
    buffer = bytearray()
    while True:
        _send(client, exchange.outgoing())
        _receive(client, buffer)
        for frame in _frames(buffer):
            if time_left() <= 0:  # a chunk may hold thousands of frames
                raise TimeoutError
            try:
                exchange.take(frame)
            except Http2Failed as error:
                raise CallFailed(str(error)) from error
            if exchange.body:
                _check_body(exchange, largest)
            if exchange.is_complete:
                return exchange


def _headers(method: str, seconds: float) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        # Lets the server stop working once the client has given up. At most eight digits are
        # allowed.
        ("grpc-timeout", f"{min(int(max(seconds, 0) * 1000) + 1, 99_999_999)}m"),
    ]


def _send(client: unix_socket.Client, data: bytes) -> None:
    # A server that closed the connection may have sent the reason before, so read before failing.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(data)


def _receive(client: unix_socket.Client, buffer: bytearray) -> None:
    try:
        data = client.recv(_CHUNK)
    except ConnectionResetError:
        data = b""
    buffer += data
    if buffer.startswith(b"HTTP/"):
        raise CallFailed("the server speaks HTTP/1, not gRPC")
    if not data:
        raise CallFailed("the server closed the connection before it answered")


def _frames(buffer: bytearray) -> Iterator[bytes]:
    """Remove complete frames from the buffer and yield them one by one."""
    while len(buffer) >= FRAME_HEADER:
        size = int.from_bytes(buffer[:3], "big")
        if size > LARGEST_FRAME:
            raise CallFailed("the server does not speak HTTP/2, which gRPC requires")
        frame = bytes(buffer[: FRAME_HEADER + size])
        if len(frame) < FRAME_HEADER + size:
            return
        del buffer[: len(frame)]
        yield frame


def _check_body(answer: Exchange, largest: int) -> None:
    """Raise CallFailed if a body that is not complete yet will not be a valid response."""
    if not _is_grpc(answer.headers):
        raise CallFailed(_why_no_grpc(answer.headers))
    if any(answer.body[:1]):
        raise CallFailed("the response is compressed, which was not requested")
    announced = int.from_bytes(answer.body[1:_PREFIX], "big") if len(answer.body) >= _PREFIX else 0
    if max(announced, len(answer.body) - _PREFIX) > largest:
        raise CallFailed(f"the response is larger than {largest} bytes")


def _message(answer: Exchange) -> bytes:
    """Return the one message of a response. Raises CallFailed on an error status or if not gRPC."""
    status = answer.headers.get("grpc-status")
    if status is None:
        raise CallFailed(_why_no_grpc(answer.headers))
    if status != "0":
        from urllib.parse import unquote  # noqa: PLC0415  # only needed for an error

        code = _CODES.get(status, "UNKNOWN")
        detail = unquote(answer.headers.get("grpc-message", ""))[:_LONGEST_DETAIL]
        raise CallFailed(f"{code}: {detail}" if detail else code, code=code, detail=detail)
    size = int.from_bytes(answer.body[1:_PREFIX], "big")
    if len(answer.body) < _PREFIX or len(answer.body) != _PREFIX + size:
        raise CallFailed(f"the response is not one gRPC message: {len(answer.body)} bytes")
    del answer.body[:_PREFIX]
    return bytes(answer.body)


def _is_grpc(headers: Mapping[str, str]) -> bool:
    return headers.get(":status") == "200" and headers.get("content-type", "").startswith(
        "application/grpc"
    )


def _why_no_grpc(headers: Mapping[str, str]) -> str:
    status, kind = headers.get(":status", ""), headers.get("content-type", "")
    if not _is_grpc(headers):
        return (
            f"the server speaks HTTP/2, but not gRPC: status {status or 'none'}, type"
            f" {kind or 'none'}"
        )
    return "the response ended without a gRPC status"
