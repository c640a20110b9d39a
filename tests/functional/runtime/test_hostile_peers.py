"""Servers that waste time or memory, or lie: each is one clear failure, within the limits."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import h2.errors
import pytest

from tests.functional.runtime.test_cri import (
    GRPC,
    Server,
    Speech,
    answering,
    message,
    saying,
    serving,
    until_hung_up,
    why,
)
from toolkit.errors import StepError
from toolkit.kube import apiserver
from toolkit.kube.apiserver import Api, ApiError
from toolkit.runtime.client import cri, protobuf
from toolkit.runtime.client import http as unix_http

MIB: Final = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peer.sock"


# --- large answers over CRI -----------------------------------------------------------------------

_MEASURED: Final = """
import re, sys, time
from pathlib import Path
from toolkit.runtime.client import cri, grpc
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10
call, path, timeout = sys.argv[1:]
bare, begun = peak(), time.monotonic()
try:
    getattr(cri, call)(Path(path), timeout=float(timeout))
    said = "answered"
except cri.CriFailed as error:
    said = str(error)
print(peak() - bare, time.monotonic() - begun, said.partition(" failed: ")[2] or said)
"""


def cost(path: Path, call: str, body: bytes, *, timeout: float) -> tuple[int, float, str]:
    """Return the MiB, the seconds and the outcome of a call in a process of its own."""
    with serving(path, answering(body)):
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, call, str(path), str(timeout)],
            capture_output=True,
            text=True,
            check=True,
        )
    memory, seconds, said = done.stdout.rstrip("\n").split(" ", 2)
    return int(memory), float(seconds), said


def repeated(piece: bytes, size: int = 16 * MIB) -> bytes:
    return piece * (size // len(piece))


LARGE: Final = {
    "numbers": repeated(b"\x08\x01"),
    "empty pods": repeated(b"\x0a\x00"),
    "pods with a field": repeated(b"\x0a\x02\x08\x01"),
    "one pod of numbers": protobuf.encode([(1, repeated(b"\x18\x01", 16 * MIB - 10))]),
    "one pod of labels": protobuf.encode(
        [(1, repeated(b"\x2a\x04\x0a\x00\x12\x00", 16 * MIB - 10))]
    ),
}
TOO_MANY: Final = "the response is not valid CRI: more than 524288 fields"


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_list_costs_neither_memory_nor_time(path: Path, kind: str) -> None:
    """16 MiB, the maximum, were up to 8 million fields: 44 s and 1.1 GiB, whatever the timeout."""
    memory, _, said = cost(path, "sandboxes", LARGE[kind], timeout=60)
    assert said == TOO_MANY
    assert memory < 128


@pytest.mark.timing
def test_what_is_decoded_is_bound_by_the_timeout(path: Path) -> None:
    labels = repeated(b"\x2a\x04\x0a\x00\x12\x00", 2 * MIB)  # few enough, but read repeatedly
    with serving(path, answering(protobuf.encode([(1, labels)] * 4))):
        limit = protobuf.Limit(lambda: -1)
        with pytest.raises(TimeoutError):
            protobuf.decode(labels, limit)
        _, seconds, said = cost(
            path.with_name("b.sock"), "sandboxes", LARGE["numbers"], timeout=0.5
        )
    assert said in {
        "no answer within 0.5 s",
        "the response cannot be decoded within 0.5 s",
        TOO_MANY,
    }
    assert seconds < 5


@pytest.mark.parametrize(
    ("call", "most"),
    [("version", 64 << 10), ("status", MIB), ("sandboxes", 16 * MIB), ("containers", 16 * MIB)],
)
def test_each_kind_of_answer_has_its_size(path: Path, call: str, most: int) -> None:
    ask: Callable[..., object] = getattr(cri, call)
    fits = protobuf.encode([(9, b"x" * (most - 10))])
    with serving(path, answering(fits)):
        ask(path, timeout=20)
    path.unlink()
    with (
        serving(path, answering(b"x" * (most + 1))),
        pytest.raises(cri.CriFailed, match=f"the response is larger than {most} bytes$"),
    ):
        ask(path, timeout=20)


def pod(number: int) -> bytes:
    """Return a pod as containerd lists it: 16 labels, and annotations of an applied manifest."""
    labels = [
        (5, protobuf.encode([(1, f"label-{i}.example.com/name"), (2, "true")])) for i in range(16)
    ]
    applied = protobuf.encode(
        [(1, "kubectl.kubernetes.io/last-applied-configuration"), (2, "x" * 12_000)]
    )
    metadata = protobuf.encode([(1, f"pod-{number}"), (2, "uid"), (3, "default"), (4, 0)])
    fields: list[tuple[int, protobuf.Value]] = [(1, f"{number:064}"), (2, metadata), (3, 0), (4, 1)]
    return protobuf.encode([*fields, *labels, *[(6, applied)], (7, "nvidia")])


def test_a_thousand_pods_are_listed(path: Path) -> None:
    with serving(path, answering(protobuf.encode([(1, pod(number)) for number in range(1000)]))):
        listed = cri.sandboxes(path, timeout=60)
    assert (len(listed), listed[-1].name, listed[-1].handler) == (1000, "pod-999", "nvidia")


def test_ten_thousand_containers_are_listed(path: Path) -> None:
    one = protobuf.encode([
        (1, "0" * 64), (2, "0" * 64), (3, protobuf.encode([(1, "main"), (2, 0)])), (6, 1), (7, 1),
        *[(8, protobuf.encode([(1, f"label-{i}"), (2, "true")])) for i in range(8)],
        *[(9, protobuf.encode([(1, f"annotation-{i}"), (2, "x" * 20)])) for i in range(8)],
    ])  # fmt: skip
    with serving(path, answering(protobuf.encode([(1, one)] * 10_000))):
        assert len(cri.containers(path, timeout=60)) == 10_000


def test_large_json_in_a_status_is_small(path: Path) -> None:
    text = '{"a":[' + "[]," * (MIB // 3 - 100) + "1]}"
    body = protobuf.encode([(2, protobuf.encode([(1, "config"), (2, text)]))])
    memory, _, said = cost(path, "status", body, timeout=60)
    assert said == "answered"
    assert memory < 64


# --- HTTP/2 that never ends -----------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


SETTINGS: Final = frame(4, 0, 0)
HEADERS: Final = frame(1, 4, 1, b"\x88\x5f\x10application/grpc")
CONTINUES: Final = frame(1, 4, 1, b"\x08\x03100")


def flooding(start: bytes, again: bytes) -> Speech:
    """Say something after the request, then something else for ever, and never listen again."""

    def speech(client: socket.socket) -> None:
        Server(client).hear_all()
        client.sendall(start)
        while True:
            client.sendall(again * 100)

    return speech


ENDLESS: Final = {
    "settings": (b"", SETTINGS),
    "settings of a window": (
        b"",
        frame(4, 0, 0, b"\0\x04\0\0\0\1") + frame(4, 0, 0, b"\0\x04\0\0\xff\xff"),
    ),
    "pings": (b"", frame(6, 0, 0, b"8 bytes.")),
    "empty data": (HEADERS, frame(0, 0, 1)),
    "padding alone": (HEADERS, frame(0, 8, 1, b"\xff" + b"\0" * 255)),
    "priorities": (b"", frame(2, 0, 1, b"\0\0\0\0\x10")),
    "unknown frames": (b"", frame(99, 255, 7, b"x" * 1000)),
    "a little window": (b"", frame(8, 0, 1, b"\0\0\0\1")),
    "continues": (b"", CONTINUES),
}
REFUSED: Final = {
    "continuations": (frame(1, 0, 1, b"\x88"), frame(9, 0, 1, b"\0\1a\1b" * 100)),
    "empty continuations": (frame(1, 0, 1, b"\x88"), frame(9, 0, 1)),
    "headers": (HEADERS, HEADERS),
    "pushed streams": (HEADERS, frame(5, 4, 1, b"\0\0\0\2\x82\x87\x84\x41\1x")),
    "a window that overflows": (b"", frame(8, 0, 0, b"\x7f\xff\xff\xff")),
    "a window of nothing": (b"", frame(8, 0, 1, b"\0\0\0\0")),
    "data without headers": (b"", frame(0, 0, 1, b"x")),
    "an interrupted block": (frame(1, 0, 1, b"\x88"), SETTINGS),
    "a continuation of nothing": (b"", frame(9, 4, 1, b"\x88")),
    "another stream": (HEADERS, frame(0, 0, 3, b"x")),
    "another stream that is reset": (b"", frame(3, 0, 3, b"\0\0\0\0")),
    "no frames at all": (b"", frame(4, 0, 0, b"\0\x05\0\0\0\0")),
    "an interim end": (b"", frame(1, 5, 1, b"\x08\x03100")),
    "no status": (b"", frame(1, 4, 1, b"\x5f\x10application/grpc")),
    "a status in the trailers": (HEADERS, frame(1, 5, 1, b"\x88")),
    "headers of another table": (b"", frame(1, 4, 1, b"\xff\x80\x01")),
    "headers that are cut": (b"", frame(1, 4, 1, b"\x40\x7f")),
    "settings that are cut": (b"", frame(4, 0, 0, b"\0\x05\0")),
    "settings of a stream": (b"", frame(4, 0, 1)),
}


def outcome(path: Path, speech: Speech, *, timeout: float) -> str:
    """Return how a call of a list fails."""
    with serving(path, speech), pytest.raises(cri.CriFailed) as caught:
        cri.containers(path, timeout=timeout)
    return str(caught.value).partition(" failed: ")[2]


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_never_ends_has_the_time_that_there_is(path: Path, kind: str) -> None:
    assert outcome(path, flooding(*ENDLESS[kind]), timeout=0.4) in {
        "no answer within 0.4 s",
        "HTTP/2 protocol error: Too much data",
    }


@pytest.mark.parametrize("kind", REFUSED)
def test_what_breaks_the_rules_is_refused_at_once(path: Path, kind: str) -> None:
    said = outcome(path, flooding(*REFUSED[kind]), timeout=20)
    assert said.startswith("HTTP/2 protocol error: "), said
    assert len(said) < 300


def test_a_bomb_of_headers_is_refused(path: Path) -> None:
    """4,000 bytes enter the table of headers once; later one byte each refers to them."""
    value = b"\x7f" + bytes([(3900 - 127) & 0x7F | 0x80, (3900 - 127) >> 7]) + b"v" * 3900
    bomb = frame(1, 4, 1, b"\x88\x40\x01x" + value + b"\xbe" * 4000)
    assert "HTTP/2 protocol error" in outcome(path, flooding(bomb, b"\0"), timeout=20)


def body_alone(body: bytes) -> Speech:
    """Answer with the begin of a body and no trailers, for ever."""

    def speech(client: socket.socket) -> None:
        server = Server(client)
        server.hear_all()
        server.begin()
        server.h2.send_data(1, body)
        server.flush()
        until_hung_up(client)

    return speech


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\0\xff\xff\xff\xff", "the response is larger than 16777216 bytes"),
        (b"\0\x80\0\0\0", "the response is larger than 16777216 bytes"),
        (b"\1\0\0\0\1x", "the response is compressed, which was not requested"),
    ],
    ids=["the largest length", "a negative length", "compressed"],
)
def test_a_head_that_says_enough_is_not_waited_for(path: Path, body: bytes, said: str) -> None:
    assert outcome(path, body_alone(body), timeout=20) == said


def test_another_type_of_content_is_not_waited_for(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        server = Server(client)
        server.hear_all()
        server.begin(headers=(("content-type", "text/event-stream"),))
        server.h2.send_data(1, b"data: for ever\n")
        server.flush()
        until_hung_up(client)

    said = outcome(path, speech, timeout=20)
    assert said == "the server speaks HTTP/2, but not gRPC: status 200, type text/event-stream"


@pytest.mark.timing
def test_trailers_that_never_come_are_waited_for_no_longer(path: Path) -> None:
    begun = time.monotonic()
    assert outcome(path, body_alone(message(b"")), timeout=0.4) == "no answer within 0.4 s"
    assert time.monotonic() - begun < 3


def test_a_frame_longer_than_was_offered(path: Path) -> None:
    said = "the server does not speak HTTP/2, which gRPC requires"
    assert why(path, saying(b"\xff\xff\xff\0\0\0\0\0\1")) == said


def test_a_detail_of_any_length_is_cut(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        server = Server(client)
        server.hear_all()
        server.h2.send_headers(
            1,
            [(":status", "200"), *GRPC, ("grpc-status", "2"), ("grpc-message", "x" * 30_000)],
            end_stream=True,
        )
        server.flush()
        until_hung_up(client)

    assert outcome(path, speech, timeout=20) == f"UNKNOWN: {'x' * 4096}"


def test_names_that_are_no_utf_8_and_nesting_without_an_end(path: Path) -> None:
    nested = b""
    for _ in range(200):
        nested = protobuf.encode([(2, nested)])
    with serving(
        path, answering(protobuf.encode([(1, protobuf.encode([(1, b"\xff\xfe"), (2, nested)]))]))
    ):
        (listed,) = cri.sandboxes(path, timeout=20)
    assert listed.id == "\N{REPLACEMENT CHARACTER}" * 2


def test_a_stream_that_is_reset_again_and_again(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        server = Server(client)
        server.hear_all()
        server.begin()
        server.h2.reset_stream(1, h2.errors.ErrorCodes.NO_ERROR)
        server.flush()
        until_hung_up(client)

    assert outcome(path, speech, timeout=20) == "the server reset the stream with NO_ERROR"


# --- HTTP/1 over a Unix socket: Docker ------------------------------------------------------------


def replying(start: bytes, again: bytes = b"", *, hangs_up: bool = True) -> Speech:
    """Say something after the request, then something else for ever, or hang up."""

    def speech(client: socket.socket) -> None:
        while b"\r\n\r\n" not in client.recv(65536):
            pass
        client.sendall(start)
        while again:
            client.sendall(again)
        if not hangs_up:
            until_hung_up(client)

    return speech


OK: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "again", "said"),
    [
        (OK + b"\r\n", b"x" * MIB, "the response is larger than 16777216 bytes"),
        (CHUNKED, b"100000\r\n" + b"x" * MIB + b"\r\n",
         "the response is larger than 16777216 bytes"),
        (OK + b"X: ", b"x" * 1000, "the response is not valid HTTP: LineTooLong"),
        (OK, b"X: y\r\n" * 1000, "the response is not valid HTTP: HTTPException"),
        (OK + b"Content-Length: 100\r\n\r\nx", b"",
         "the response is truncated, 99 bytes are missing"),
        (OK + b"Content-Length: 99999999999999\r\n\r\nx", b"",
         "the response is truncated, 99999999999998"),
        (CHUNKED + b"ffffffffffffffff\r\nx", b"", "the response is not valid HTTP: IncompleteRead"),
        (CHUNKED + b"-5\r\nx", b"", "the response is "),
        (CHUNKED + b"-1\r\n", b"x" * MIB, "the response is "),
        (CHUNKED + b"2\r\n{}\r\n", b"", "the response is not valid HTTP: IncompleteRead"),
        (b"220 mail.example.com ESMTP\r\n", b"", "the response is not valid HTTP: BadStatusLine"),
        (b"\0" * 100 + b"\r\n", b"", "the response is not valid HTTP: BadStatusLine"),
        (b"", b"", "Remote end closed connection without response"),
    ],
)  # fmt: skip
def test_docker_that_lies_is_one_failure(path: Path, start: bytes, again: bytes, said: str) -> None:
    with (
        serving(path, replying(start, again)),
        pytest.raises(StepError, match=f"^GET /info on {path} failed: {re.escape(said)}"),
    ):
        unix_http.get(path, "/info", timeout=30)


@pytest.mark.parametrize("again", [b"HTTP/1.1 100 Continue\r\n\r\n" * 100, b"1\r\nx\r\n", b"0\r\n"])
def test_docker_that_never_ends_has_the_time_that_there_is(path: Path, again: bytes) -> None:
    start = b"" if again.startswith(b"HTTP") else CHUNKED
    trailers = (b"0\r\n", b"X: y\r\n") if again == b"0\r\n" else (b"", again)
    # Python 3.14 takes no more than a hundred of `100 Continue`.
    ends = (
        "timed out|the response is not valid HTTP: HTTPException|the response is larger than"
        " 33554432 bytes"
    )
    with (
        serving(path, replying(start + trailers[0], trailers[1])),
        pytest.raises(StepError, match=f"^GET /info on {path} failed: ({ends})$"),
    ):
        unix_http.get(path, "/info", timeout=0.4)


@pytest.mark.parametrize("length", [b"-1", b"x", b"1e9", b""])
def test_a_length_that_is_none_is_ignored(path: Path, length: bytes) -> None:
    with serving(path, replying(OK + b"Content-Length: " + length + b"\r\n\r\n{}")):
        assert unix_http.get(path, "/info", timeout=5) == "{}"


def test_docker_that_does_not_speak_utf_8(path: Path) -> None:
    with serving(path, replying(OK + b"Content-Length: 2\r\n\r\n\xff\xfe")):
        assert unix_http.get(path, "/info", timeout=5) == "\N{REPLACEMENT CHARACTER}" * 2


# --- the API server; the others are in test_daemonset.py ------------------------------------------


def test_without_a_thread_the_api_server_has_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    api = Api(
        host="127.0.0.1", port=1, namespace="x", token="x",  # noqa: S106  # this is none
        context=None, timeout=5, deadline=time.monotonic() + 5,  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(ApiError, match=r"does not answer GET /x: can't start new thread$"):
        apiserver.get(api, "/x")
