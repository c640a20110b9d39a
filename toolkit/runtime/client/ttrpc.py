"""ttrpc over NRI's multiplexer: frames in and out as bytes, without a socket.

One Unix socket carries two connections: on the first the runtime calls the plugin, on the second
the plugin calls the runtime. Only unary calls exist. The input is untrusted: what is buffered is
bounded, and everything that is not a valid frame ends in Broken.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from runtimes.dataclass import dataclass
from toolkit.runtime.client import protobuf

PLUGIN: Final = 1
"""The connection on which the runtime calls the plugin."""
RUNTIME: Final = 2
"""The connection on which the plugin calls the runtime."""
LARGEST: Final = 4 << 20
"""Bytes of the largest message, as in containerd's ttrpc."""
UNIMPLEMENTED: Final = 12

_MOST_FIELDS: Final = 1000
_REQUEST: Final = 1
_RESPONSE: Final = 2
_TRUNK: Final = struct.Struct(">II")
_HEADER: Final = struct.Struct(">IIBB")
_LARGEST_PIECE: Final = LARGEST + _HEADER.size
_PIECE: Final = 4096
"""Bytes of a sent piece: Go's side reads into a buffer of this size, and refuses a larger piece."""


class Broken(ValueError):
    """The bytes are no valid frames; nothing on this socket can be read any more."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the runtime. `stream` is repeated in the response."""

    stream: int
    service: str
    method: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The runtime's response to the request of a `stream`; `problem` is empty if it succeeded."""

    stream: int
    problem: str


class Reader:
    """The received bytes, until they form whole messages."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._left = 0
        self._connection = 0
        self._buffers = {PLUGIN: bytearray(), RUNTIME: bytearray()}

    @property
    def held(self) -> int:
        """Return how many bytes are kept until a message is complete."""
        return sum(map(len, self._buffers.values())) + len(self._header)

    def feed(self, data: bytes) -> Iterator[Call | Answer]:
        """Yield the messages that these bytes complete. Raises Broken."""
        view = memoryview(data)
        while view:
            if not self._left:
                view = self._begin(view)
                continue
            piece, view = view[: self._left], view[self._left :]
            self._left -= len(piece)
            # As in Go's multiplexer, what is sent on another connection is ignored.
            if (buffer := self._buffers.get(self._connection)) is not None:
                buffer += piece
                yield from _messages(buffer, self._connection)

    def _begin(self, view: memoryview) -> memoryview:
        """Read the header of the next piece, or a part of it; return the bytes behind it."""
        missing = _TRUNK.size - len(self._header)
        self._header += view[:missing]
        if len(self._header) == _TRUNK.size:
            self._connection, self._left = _TRUNK.unpack(self._header)
            self._header.clear()
            if self._left > _LARGEST_PIECE:
                raise Broken(f"a piece of {self._left} bytes")
        return view[missing:]


def request(stream: int, service: str, method: str, payload: bytes) -> bytes:
    """Return the bytes of a request to the runtime; `stream` is an odd number, used once."""
    content = protobuf.encode([(1, service), (2, method), (3, payload)])
    return b"".join(_pieces(RUNTIME, stream, _REQUEST, content))


def response(stream: int, payload: bytes) -> bytes:
    """Return the bytes of the response to a request of the runtime."""
    return b"".join(_pieces(PLUGIN, stream, _RESPONSE, protobuf.encode([(2, payload)])))


def refusal(stream: int, code: int, text: str) -> bytes:
    """Return the bytes of a response that says why the request failed, with a code of gRPC."""
    status = protobuf.encode([(1, code), (2, text)])
    return b"".join(_pieces(PLUGIN, stream, _RESPONSE, protobuf.encode([(1, status)])))


def _messages(buffer: bytearray, connection: int) -> Iterator[Call | Answer]:
    """Remove the whole messages at the start of a buffer and yield them. Raises Broken."""
    expected = _REQUEST if connection == PLUGIN else _RESPONSE
    while len(buffer) >= _HEADER.size:
        length, stream, kind, _ = _HEADER.unpack_from(buffer)
        if length > LARGEST:
            raise Broken(f"a message of {length} bytes")
        if kind != expected or not stream & 1:
            raise Broken(f"a message of type {kind} on stream {stream} of connection {connection}")
        end = _HEADER.size + length
        if len(buffer) < end:
            return
        payload = bytes(buffer[_HEADER.size : end])
        del buffer[:end]
        try:
            yield _call(stream, payload) if connection == PLUGIN else _answer(stream, payload)
        except protobuf.Malformed as error:
            raise Broken(f"a message that is not valid: {error}") from error


def _call(stream: int, payload: bytes) -> Call:
    message = protobuf.decode(payload, protobuf.Limit(fields=_MOST_FIELDS))
    return Call(stream, message.text(1), message.text(2), (message.pieces(3) or (b"",))[-1])


def _answer(stream: int, payload: bytes) -> Answer:
    status = protobuf.decode(payload, protobuf.Limit(fields=_MOST_FIELDS)).message(1)
    failed = status.number(1)
    return Answer(stream, (status.text(2) or f"code {failed}") if failed else "")


def _pieces(connection: int, stream: int, kind: int, payload: bytes) -> Iterable[bytes]:
    """Yield a message in pieces, each with the multiplexer's header."""
    message = _HEADER.pack(len(payload), stream, kind, 0) + payload
    for at in range(0, len(message), _PIECE):
        piece = message[at : at + _PIECE]
        yield _TRUNK.pack(connection, len(piece)) + piece
