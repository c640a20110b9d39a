"""One unary gRPC call over a Unix socket: HTTP/2 by h2, the rest of gRPC by hand.

Imported only when a call is made, so that a waiting daemon does not carry h2.
There is one end of all waits, and what the server sends is bounded: it may be
anything that happens to listen on the socket.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from toolkit import unix
from toolkit.stop import Timeout, countdown

_NAMES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_CODES: Final = {str(number): name for number, name in enumerate(_NAMES)}

# What kubelet takes at most; an answer that is larger stops the whole node anyhow.
_LARGEST_ANSWER: Final = 16 << 20
# HTTP/2's default, which is not raised here.
_LARGEST_FRAME: Final = 16 << 10
_FRAME_HEADER: Final = 9
_GOAWAY: Final = 7
_CHUNK: Final = 64 << 10
_STREAM: Final = 1
_PREFIX: Final = 5


class CallFailed(Exception):
    """The call brought no answer. `code` names gRPC's status where the server sent one, `detail` its text."""

    def __init__(self, why: str, *, code: str | None = None, detail: str = "") -> None:
        self.code = code
        self.detail = detail
        super().__init__(why)


@dataclass(slots=True, kw_only=True)
class _Answer:
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    is_complete: bool = False


def unary(path: Path, method: str, request: bytes, *, timeout: Timeout) -> bytes:
    """Call a method, given as /SERVICE/METHOD, and return its answer.

    `timeout` is for everything. Raises CallFailed for what the
    server says or fails to say, TimeoutError, and OSError where the socket
    cannot be connected to.
    """
    left = countdown(timeout)
    with unix.Client(left) as client:
        client.reach(path)
        return _message(_exchange(client, method, request, left))


def _exchange(client: unix.Client, method: str, request: bytes, left: Callable[[], float]) -> _Answer:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    connection.local_settings.enable_push = 0
    connection.initiate_connection()
    connection.send_headers(_STREAM, _headers(method, left()))
    pending = bytearray(b"\0" + len(request).to_bytes(4, "big") + request)
    buffer = bytearray()
    answer = _Answer()
    while True:
        _push(connection, pending)
        _send(client, connection.data_to_send())
        _receive(client, buffer)
        for frame in _frames(buffer):
            try:
                events = connection.receive_data(frame)
                for event in events:
                    _take(connection, event, answer)
            except (h2.exceptions.H2Error, UnicodeError) as error:
                raise CallFailed(f"the server broke the rules of HTTP/2: {error}") from error
            if answer.is_complete:
                return answer


def _headers(method: str, seconds: float) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        # So that a server does not go on working for who has gone. At most eight digits.
        ("grpc-timeout", f"{min(int(max(seconds, 0) * 1000) + 1, 99_999_999)}m"),
    ]


def _push(connection: h2.connection.H2Connection, pending: bytearray) -> None:
    """Send as much of the request as the server takes by now."""
    while pending:
        room = min(connection.local_flow_control_window(_STREAM), connection.max_outbound_frame_size)
        if room <= 0:
            return
        connection.send_data(_STREAM, bytes(pending[:room]), end_stream=len(pending) <= room)
        del pending[:room]


def _send(client: unix.Client, data: bytes) -> None:
    # A server that has hung up may have said why: it is read before it is called gone.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(data)


def _receive(client: unix.Client, buffer: bytearray) -> None:
    try:
        data = client.recv(_CHUNK)
    except ConnectionResetError:
        data = b""
    buffer += data
    if buffer.startswith(b"HTTP/"):
        raise CallFailed("the server speaks HTTP/1, not gRPC")
    if not data:
        raise CallFailed("the server closed the connection before it had answered")


def _frames(buffer: bytearray) -> Iterator[bytes]:
    """Take whole frames out of the buffer, one by one: h2 forgets those before one that it refuses."""
    while len(buffer) >= _FRAME_HEADER:
        size = int.from_bytes(buffer[:3], "big")
        if size > _LARGEST_FRAME:
            raise CallFailed("the server speaks no HTTP/2, which gRPC is made of")
        frame = bytes(buffer[: _FRAME_HEADER + size])
        if len(frame) < _FRAME_HEADER + size:
            return
        del buffer[: len(frame)]
        if not _is_patient_goaway(frame):
            yield frame


def _is_patient_goaway(frame: bytes) -> bool:
    """Tell whether a server that goes away says that it still answers this call.

    After any GOAWAY, h2 takes nothing more, so it must not see such a one.
    """
    last, code = frame[_FRAME_HEADER : _FRAME_HEADER + 4], frame[_FRAME_HEADER + 4 : _FRAME_HEADER + 8]
    if frame[3] != _GOAWAY or len(code) < 4:
        return False
    return int.from_bytes(last, "big") & 0x7FFF_FFFF >= _STREAM and not any(code)


def _take(connection: h2.connection.H2Connection, event: h2.events.Event, answer: _Answer) -> None:
    match event:
        case h2.events.ResponseReceived() | h2.events.TrailersReceived():
            answer.headers |= {_decoded(name): _decoded(value) for name, value in event.headers}
        case h2.events.DataReceived():
            answer.body += event.data
            if len(answer.body) > _LARGEST_ANSWER + _PREFIX:
                raise CallFailed(f"the answer is larger than {_LARGEST_ANSWER} bytes")
            if event.flow_controlled_length:
                connection.acknowledge_received_data(event.flow_controlled_length, _STREAM)
        case h2.events.StreamEnded():
            answer.is_complete = True
        case h2.events.StreamReset():
            raise CallFailed(f"the server broke the call off with {_reason(event.error_code)}")
        case h2.events.ConnectionTerminated():
            raise CallFailed(f"the server goes away with {_reason(event.error_code)}")
        case _:
            pass


def _message(answer: _Answer) -> bytes:
    """Return the one message of an answer. Refuses a status other than OK and what is no gRPC."""
    status = answer.headers.get("grpc-status")
    if status is None:
        raise CallFailed(_why_no_grpc(answer.headers))
    if status != "0":
        code = _CODES.get(status, "UNKNOWN")
        detail = urllib.parse.unquote(answer.headers.get("grpc-message", ""))
        raise CallFailed(f"{code}: {detail}" if detail else code, code=code, detail=detail)
    size = int.from_bytes(answer.body[1:_PREFIX], "big")
    if len(answer.body) < _PREFIX or len(answer.body) != _PREFIX + size:
        raise CallFailed(f"the answer is no gRPC message: {len(answer.body)} bytes")
    if answer.body[0]:
        raise CallFailed("the answer is compressed, which was not asked for")
    return bytes(answer.body[_PREFIX:])


def _why_no_grpc(headers: Mapping[str, str]) -> str:
    status, kind = headers.get(":status", ""), headers.get("content-type", "")
    if status != "200" or not kind.startswith("application/grpc"):
        return f"the server speaks HTTP/2, but not gRPC: status {status or 'none'}, type {kind or 'none'}"
    return "the answer ended without a gRPC status"


def _reason(code: int | None) -> str:
    # h2 makes an ErrorCodes of what it knows.
    return code.name if isinstance(code, h2.errors.ErrorCodes) else f"the unknown code {code}"


def _decoded(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
