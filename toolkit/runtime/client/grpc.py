"""gRPC client for one unary call over a Unix socket, on top of h2.

Imported only when a call is made, so that an idle agent does not load h2. One deadline covers all
waits, and the size of the response is limited, because any program may be listening on the socket.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from runtimes.dataclass import dataclass, field
from toolkit.deadline import Timeout, remaining
from toolkit.node import unix_socket

_NAMES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_CODES: Final = {str(number): name for number, name in enumerate(_NAMES)}

# A runtime's error is read by people; HTTP/2 itself allows 64 KiB of headers.
_LONGEST_DETAIL: Final = 4096
# HTTP/2's default maximum, which this client does not raise.
_LARGEST_FRAME: Final = 16 << 10
_FRAME_HEADER: Final = 9
_GOAWAY: Final = 7
_CHUNK: Final = 64 << 10
_STREAM: Final = 1
_PREFIX: Final = 5


class CallFailed(Exception):
    """The call failed. `code` is the gRPC status, None if none was sent; `detail` is its text."""

    def __init__(self, why: str, *, code: str | None = None, detail: str = "") -> None:
        self.code = code
        self.detail = detail
        super().__init__(why)


@dataclass(slots=True, kw_only=True)
class _Answer:
    largest: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    is_complete: bool = False


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
) -> _Answer:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    connection.local_settings.enable_push = 0
    connection.initiate_connection()
    connection.send_headers(_STREAM, _headers(method, time_left()))
    pending = bytearray(b"\0" + len(request).to_bytes(4, "big") + request)
    buffer = bytearray()
    answer = _Answer(largest=largest)
    while True:
        _push(connection, pending)
        _send(client, connection.data_to_send())
        _receive(client, buffer)
        for frame in _frames(buffer):
            if time_left() <= 0:  # a chunk may hold thousands of frames
                raise TimeoutError
            try:
                events = connection.receive_data(frame)
                for event in events:
                    _take(connection, event, answer)
            except (h2.exceptions.H2Error, UnicodeError) as error:
                raise CallFailed(f"HTTP/2 protocol error: {error}") from error
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
        # Lets the server stop working once the client has given up. At most eight digits are
        # allowed.
        ("grpc-timeout", f"{min(int(max(seconds, 0) * 1000) + 1, 99_999_999)}m"),
    ]


def _push(connection: h2.connection.H2Connection, pending: bytearray) -> None:
    """Send as much of the request as the server's flow-control window allows."""
    while pending:
        size = min(
            connection.local_flow_control_window(_STREAM), connection.max_outbound_frame_size
        )
        if size <= 0:
            return
        connection.send_data(_STREAM, bytes(pending[:size]), end_stream=len(pending) <= size)
        del pending[:size]


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
    """Remove complete frames from the buffer and yield them one by one.

    h2 discards the events of earlier frames in the same data if it rejects one.
    """
    while len(buffer) >= _FRAME_HEADER:
        size = int.from_bytes(buffer[:3], "big")
        if size > _LARGEST_FRAME:
            raise CallFailed("the server does not speak HTTP/2, which gRPC requires")
        frame = bytes(buffer[: _FRAME_HEADER + size])
        if len(frame) < _FRAME_HEADER + size:
            return
        del buffer[: len(frame)]
        if not _is_patient_goaway(frame):
            yield frame


def _is_patient_goaway(frame: bytes) -> bool:
    """Return whether a frame is a GOAWAY after which the server still completes this call.

    h2 accepts no more frames after any GOAWAY, so such a frame must not be passed to it.
    """
    last, code = (
        frame[_FRAME_HEADER : _FRAME_HEADER + 4],
        frame[_FRAME_HEADER + 4 : _FRAME_HEADER + 8],
    )
    if frame[3] != _GOAWAY or len(code) < 4:
        return False
    return int.from_bytes(last, "big") & 0x7FFF_FFFF >= _STREAM and not any(code)


def _take(connection: h2.connection.H2Connection, event: h2.events.Event, answer: _Answer) -> None:
    match event:
        case h2.events.ResponseReceived() | h2.events.TrailersReceived():
            answer.headers |= {_decoded(name): _decoded(value) for name, value in event.headers}
        case h2.events.DataReceived():
            answer.body += event.data
            _check_body(answer)
            if event.flow_controlled_length:
                connection.acknowledge_received_data(event.flow_controlled_length, _STREAM)
        case h2.events.StreamEnded():
            answer.is_complete = True
        case h2.events.StreamReset():
            raise CallFailed(f"the server reset the stream with {_reason(event.error_code)}")
        case h2.events.ConnectionTerminated():
            raise CallFailed(f"the server closes the connection with {_reason(event.error_code)}")
        case _:
            pass


def _check_body(answer: _Answer) -> None:
    """Raise CallFailed if a body that is not complete yet will not be a valid response."""
    if not _is_grpc(answer.headers):
        raise CallFailed(_why_no_grpc(answer.headers))
    if any(answer.body[:1]):
        raise CallFailed("the response is compressed, which was not requested")
    announced = int.from_bytes(answer.body[1:_PREFIX], "big") if len(answer.body) >= _PREFIX else 0
    if max(announced, len(answer.body) - _PREFIX) > answer.largest:
        raise CallFailed(f"the response is larger than {answer.largest} bytes")


def _message(answer: _Answer) -> bytes:
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


def _reason(code: int | None) -> str:
    # h2 returns an ErrorCodes member for the codes that it knows, else the number.
    return code.name if isinstance(code, h2.errors.ErrorCodes) else f"the unknown code {code}"


def _decoded(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
