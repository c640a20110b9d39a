"""HTTP/2 for a client's one request, without I/O: RFC 9113, on top of hyperframe and hpack.

h2, the state machine for connections of many streams on top of the same two packages, takes three
times as long to import, which is a tenth of a start of the program. One stream needs few of its
rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import hpack
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

FRAME_HEADER: Final = 9
"""The size in bytes of what comes before the payload of a frame."""
LARGEST_FRAME: Final = 16 << 10
"""The largest payload in bytes that a server may send: the default, which is not raised."""

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_STREAM: Final = 1
_DEFAULT_WINDOW: Final = 65_535
_LARGEST_WINDOW: Final = (1 << 31) - 1
_LARGEST_BLOCK: Final = 64 << 10
# Enough for the largest block in frames of 1 KiB. Empty ones would otherwise never end.
_MOST_CONTINUATIONS: Final = 64
_REASONS: Final = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
    "STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR",
    "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip


class Http2Failed(Exception):
    """The server broke the protocol, or ended the stream or the connection. It says which."""


class Exchange:
    """The frames of one request and its response.

    The server may send as much as it likes without waiting: the caller has to limit `body`.

    `headers` has the fields of the response and of its trailers, the last one of each name.
    `is_complete` is set once the server has ended the stream.
    """

    def __init__(self, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Prepare a request with a body of one byte or more."""
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.is_complete = False
        self._decoder = hpack.Decoder(max_header_list_size=_LARGEST_BLOCK)
        self._unsent = bytearray(body)
        self._windows = {0: _DEFAULT_WINDOW, _STREAM: _DEFAULT_WINDOW}
        self._initial_window = _DEFAULT_WINDOW
        self._frame_size = LARGEST_FRAME
        self._block: bytearray | None = None
        self._continuations = 0
        self._ends = False
        settings = {
            SettingsFrame.ENABLE_PUSH: 0,
            SettingsFrame.INITIAL_WINDOW_SIZE: _LARGEST_WINDOW,
            SettingsFrame.MAX_HEADER_LIST_SIZE: _LARGEST_BLOCK,
        }
        self._output = bytearray(_PREFACE)
        self._send(SettingsFrame(settings=settings))
        self._send(WindowUpdateFrame(0, window_increment=_LARGEST_WINDOW - _DEFAULT_WINDOW))
        block = hpack.Encoder().encode(headers)
        self._send(HeadersFrame(_STREAM, block, flags=["END_HEADERS"]))

    def outgoing(self) -> bytes:
        """Return, once, what is to be sent now: of the body what the server's windows allow."""
        while self._unsent:
            size = min(*self._windows.values(), self._frame_size)
            if size <= 0:
                break
            frame = DataFrame(_STREAM, bytes(self._unsent[:size]))
            del self._unsent[:size]
            for stream in self._windows:
                self._windows[stream] -= len(frame.data)
            if not self._unsent:
                frame.flags.add("END_STREAM")
            self._send(frame)
        data = bytes(self._output)
        self._output.clear()
        return data

    def take(self, data: bytes) -> None:
        """Take one whole frame from the server. Raises Http2Failed."""
        view = memoryview(data)
        try:
            frame, _ = Frame.parse_frame_header(view[:FRAME_HEADER])
            frame.parse_body(view[FRAME_HEADER:])
        except HyperframeError as error:
            raise _broken(str(error)) from error
        if self._block is not None and not isinstance(frame, ContinuationFrame):
            raise _broken("a header block was interrupted")
        match frame:
            case DataFrame():
                self._take_data(frame)
            case HeadersFrame() | ContinuationFrame():
                self._take_block(frame)
            case RstStreamFrame():
                _check_stream(frame)
                raise Http2Failed(f"the server reset the stream with {_reason(frame.error_code)}")
            case _:
                self._take_control(frame)

    def _take_control(self, frame: Frame) -> None:
        match frame:
            case SettingsFrame() if "ACK" not in frame.flags:
                self._take_settings(frame)
            case WindowUpdateFrame():
                self._take_window(frame)
            case PingFrame() if "ACK" not in frame.flags:
                self._send(PingFrame(opaque_data=frame.opaque_data, flags=["ACK"]))
            case PushPromiseFrame():
                raise _broken("a stream was pushed, which was not allowed")
            # A server that goes away may still complete what it has begun (RFC 9113, 6.8).
            case GoAwayFrame() if frame.error_code or frame.last_stream_id < _STREAM:
                why = _reason(frame.error_code)
                raise Http2Failed(f"the server closes the connection with {why}")
            case _:  # priorities, extensions and acknowledgements
                pass

    def _take_data(self, frame: DataFrame) -> None:
        _check_stream(frame)
        if not self.headers:
            raise _broken("the body came before the headers")
        self.body += frame.data
        self.is_complete = "END_STREAM" in frame.flags

    def _take_block(self, frame: HeadersFrame | ContinuationFrame) -> None:
        """Take a header block, or a part of one: it is decoded once it is complete."""
        _check_stream(frame)
        if isinstance(frame, HeadersFrame):
            self._block, self._continuations = bytearray(), 0
            self._ends = "END_STREAM" in frame.flags
        elif self._block is None:
            raise _broken("a header block was continued before it began")
        self._block += frame.data
        self._continuations += 1
        if len(self._block) > _LARGEST_BLOCK or self._continuations > _MOST_CONTINUATIONS:
            raise _broken("a header block is too large")
        if "END_HEADERS" in frame.flags:
            block, self._block = bytes(self._block), None
            self._take_headers(self._decoded(block))

    def _decoded(self, block: bytes) -> dict[str, str]:
        try:
            # Not only its own errors: hpack 4.2 lets these pass for some blocks, as h2 knows too.
            fields = self._decoder.decode(block, raw=True)
        except (hpack.HPACKError, IndexError, TypeError, UnicodeError) as error:
            raise _broken(f"headers cannot be decoded: {error}") from error
        return {_text(name): _text(value) for name, value in fields}

    def _take_headers(self, headers: dict[str, str]) -> None:
        if self.headers:
            if not self._ends or any(name.startswith(":") for name in headers):
                raise _broken("headers came again")
        elif ":status" not in headers:
            raise _broken("the headers have no status")
        elif headers[":status"].startswith("1"):  # an interim response
            if self._ends:
                raise _broken("an interim response ended the stream")
            return
        self.headers |= headers
        self.is_complete = self._ends

    def _take_settings(self, frame: SettingsFrame) -> None:
        window = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, self._initial_window)
        self._frame_size = frame.settings.get(SettingsFrame.MAX_FRAME_SIZE, self._frame_size)
        if not LARGEST_FRAME <= self._frame_size < 1 << 24:
            raise _broken(f"no frame may be of {self._frame_size} bytes")
        self._widen(_STREAM, window - self._initial_window)
        self._initial_window = window
        self._send(SettingsFrame(flags=["ACK"]))

    def _take_window(self, frame: WindowUpdateFrame) -> None:
        if frame.stream_id:
            _check_stream(frame)
        self._widen(frame.stream_id, frame.window_increment)

    def _widen(self, stream: int, size: int) -> None:
        self._windows[stream] += size
        if self._windows[stream] > _LARGEST_WINDOW:
            raise _broken("a flow-control window is too large")

    def _send(self, frame: Frame) -> None:
        self._output += frame.serialize()


def _check_stream(frame: Frame) -> None:
    if frame.stream_id != _STREAM:
        raise _broken(f"a frame is for stream {frame.stream_id}, which does not exist")


def _broken(why: str) -> Http2Failed:
    return Http2Failed(f"HTTP/2 protocol error: {why[:200]}")


def _reason(code: int) -> str:
    return _REASONS[code] if code < len(_REASONS) else f"the unknown code {code}"


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
