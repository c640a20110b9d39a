"""CRI against servers that answer, refuse, stall, misbehave; real ones: test_cri_nodes.py."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, TypeAlias

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.deadline import remaining
from toolkit.node import unix_socket
from toolkit.runtime.client import cri, grpc, protobuf
from toolkit.runtime.client.cri import CriFailed

# What a server does with a connection; it ends when the client hangs up, at the latest.
Speech: TypeAlias = Callable[[socket.socket], None]
GRPC = (("content-type", "application/grpc"),)


@contextlib.contextmanager
def serving(path: Path, speech: Speech) -> Iterator[Path]:
    """Serve one connection in a thread."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                with client:
                    client.settimeout(20)
                    speech(client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)
            assert not thread.is_alive()


class Server:
    """The server's side of a call, by h2."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.h2.initiate_connection()
        self.headers: dict[bytes, bytes] = {}
        self.request = bytearray()
        self.flush()

    def flush(self) -> None:
        self.client.sendall(self.h2.data_to_send())

    def hear(self) -> bool:
        """Take what the client says; tell whether its request ended."""
        data = self.client.recv(65536)
        if not data:
            raise ConnectionResetError
        ended = False
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.headers = {bytes(name): bytes(value) for name, value in event.headers}
            if isinstance(event, h2.events.DataReceived):
                self.request += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, 1)
            ended |= isinstance(event, h2.events.StreamEnded)
        self.flush()
        return ended

    def hear_all(self) -> None:
        while not self.hear():
            pass

    def send(self, body: bytes) -> None:
        while body:
            room = min(self.h2.local_flow_control_window(1), self.h2.max_outbound_frame_size)
            self.h2.send_data(1, body[:room])
            body = body[room:]
            self.flush()
            while body and self.h2.local_flow_control_window(1) == 0:
                self.hear()

    def begin(self, *, status: str = "200", headers: Sequence[tuple[str, str]] = GRPC) -> None:
        self.h2.send_headers(1, [(":status", status), *headers])

    def end(self, status: str = "0", *more: tuple[str, str]) -> None:
        self.h2.send_headers(1, [("grpc-status", status), *more], end_stream=True)
        self.flush()


def message(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4, "big") + body


def until_hung_up(client: socket.socket) -> None:
    while client.recv(65536):
        pass


def answering(body: bytes, *, heard: list[Server] | None = None) -> Speech:
    def speech(client: socket.socket) -> None:
        server = Server(client)
        server.hear_all()
        if heard is not None:
            heard.append(server)
        server.begin()
        server.send(message(body))
        server.end()

    return speech


def heading(*headers: tuple[str, str], status: str = "200", body: bytes | None = None) -> Speech:
    """Answer with headers alone, or with a body after them and no trailers."""

    def speech(client: socket.socket) -> None:
        server = Server(client)
        server.hear_all()
        server.h2.send_headers(1, [(":status", status), *headers], end_stream=body is None)
        if body is not None:
            server.h2.send_data(1, body, end_stream=True)
        server.flush()
        until_hung_up(client)

    return speech


def trailing(body: bytes, status: str, *more: tuple[str, str]) -> Speech:
    def speech(client: socket.socket) -> None:
        server = Server(client)
        server.hear_all()
        server.begin()
        server.send(body)
        server.end(status, *more)
        until_hung_up(client)

    return speech


def saying(data: bytes) -> Speech:
    """Say some bytes and hang up, whatever the client says."""

    def speech(client: socket.socket) -> None:
        client.sendall(data)

    return speech


def failure(path: Path, speech: Speech, *, timeout: float = 5) -> CriFailed:
    with serving(path, speech), pytest.raises(CriFailed) as caught:
        cri.call(path, "Version", b"", timeout=timeout)
    assert str(caught.value).startswith(f"Version on {path} failed: ")
    assert caught.value.exit_code == 4
    return caught.value


def why(path: Path, speech: Speech, *, timeout: float = 5) -> str:
    return str(failure(path, speech, timeout=timeout)).removeprefix(f"Version on {path} failed: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cri.sock"


# Calls that succeed


def test_call(path: Path) -> None:
    heard: list[Server] = []
    with serving(path, answering(b"answer", heard=heard)):
        assert cri.call(path, "Version", b"question", timeout=5) == b"answer"
    (server,) = heard
    assert server.request == message(b"question")
    assert 0 < int(server.headers.pop(b"grpc-timeout").removesuffix(b"m")) <= 5001
    assert server.headers == {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/runtime.v1.RuntimeService/Version",
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 200_000, (16 << 20) - 5])
def test_answers_of_any_size_pass_the_window(path: Path, size: int) -> None:
    with serving(path, answering(b"x" * size)):
        assert cri.call(path, "ListContainers", b"", timeout=20) == b"x" * size


def test_big_request_passes_the_window(path: Path) -> None:
    heard: list[Server] = []
    with serving(path, answering(b"", heard=heard)):
        cri.call(path, "Version", b"x" * 1_000_000, timeout=20)
    assert heard[0].request == message(b"x" * 1_000_000)


def test_answer_byte_by_byte(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        server = Server(client)
        server.hear_all()
        server.begin()
        server.h2.send_data(1, message(b"slowly"))
        server.h2.send_headers(1, [("grpc-status", "0")], end_stream=True)
        for byte in server.h2.data_to_send():
            client.sendall(bytes([byte]))
            time.sleep(0.001)

    with serving(path, speech):
        assert cri.call(path, "Version", b"", timeout=5) == b"slowly"


def test_long_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    short = tmp_path / "cri.sock"
    with serving(short, answering(b"answer")):
        short.rename(deep / "cri.sock")
        assert cri.call(deep / "cri.sock", "Version", b"", timeout=5) == b"answer"


def test_server_that_goes_away_after_this_answer(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        server = Server(client)
        server.hear_all()
        # As gRPC's graceful stop: no call after the greatest possible number, then none after this.
        for last in (0x7FFF_FFFF, 1):
            client.sendall(goaway(last, 0))
        server.begin()
        server.send(message(b"still"))
        server.end()

    with serving(path, speech):
        assert cri.call(path, "Version", b"", timeout=5) == b"still"


@pytest.mark.timing
def test_full_queue_is_waited_for(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as crowd:
        listener.bind(str(path))
        listener.listen(0)
        while True:
            one = crowd.enter_context(socket.socket(socket.AF_UNIX))
            one.settimeout(0)
            try:
                one.connect(str(path))
            except BlockingIOError:
                break
        begun = time.monotonic()
        with pytest.raises(CriFailed, match=r"no answer within 0\.3 s$"):
            cri.call(path, "Version", b"", timeout=0.3)
        assert 0.25 < time.monotonic() - begun < 2


def test_another_implementation_of_grpc(path: Path) -> None:
    grpc: Any = importlib.import_module("grpc")

    def answer(request: bytes, context: Any) -> bytes:
        if request == b"no":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: ü %")
        return request * 2

    methods = {"ListContainers": grpc.unary_unary_rpc_method_handler(answer)}
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", methods)]
        )
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            big = os.urandom(1_000_000)
            assert cri.call(path, "ListContainers", big, timeout=20) == big * 2
            with pytest.raises(CriFailed) as refused:
                cri.call(path, "ListContainers", b"no", timeout=20)
            with pytest.raises(CriFailed) as unknown:
                cri.call(path, "Nonsense", b"", timeout=20)
        finally:
            server.stop(None).wait()
    assert str(refused.value) == f"ListContainers on {path} failed: NOT_FOUND: no such thing: ü %"
    assert unknown.value.code == "UNIMPLEMENTED"


# Calls that fail


def goaway(last: int, code: int) -> bytes:
    return b"\0\0\x08\x07\0\0\0\0\0" + last.to_bytes(4, "big") + code.to_bytes(4, "big")


def test_status_in_the_trailers(path: Path) -> None:
    more = ("grpc-message", "an error occurred when try to find sandbox: not%20found %C3%BC")
    error = failure(path, trailing(b"", "5", more))
    detail = "an error occurred when try to find sandbox: not found ü"
    assert str(error) == f"Version on {path} failed: NOT_FOUND: {detail}"
    assert (error.code, error.detail, error.hint) == ("NOT_FOUND", detail, "")


def test_status_in_the_only_headers(path: Path) -> None:
    speech = heading(*GRPC, ("grpc-status", "12"), ("grpc-message", "unknown service runtime.v1"))
    error = failure(path, speech)
    assert str(error) == f"Version on {path} failed: UNIMPLEMENTED: unknown service runtime.v1"
    assert error.code == "UNIMPLEMENTED"
    assert (
        error.hint
        == "the runtime does not serve CRI v1: is `cri` among containerd's `disabled_plugins`?"
    )


@pytest.mark.parametrize("status", ["17", "-1", "x", "", "99999999999"])
def test_unknown_status(path: Path, status: str) -> None:
    assert why(path, trailing(message(b""), status)) == "UNKNOWN"


@pytest.mark.parametrize(
    "body", [b"", b"\0\0\0\0", message(b"abc")[:-1], message(b"abc") * 2, message(b"") + b"x"]
)
def test_ok_without_exactly_one_message(path: Path, body: bytes) -> None:
    assert (
        why(path, trailing(body, "0")) == f"the response is not one gRPC message: {len(body)} bytes"
    )


def test_compressed(path: Path) -> None:
    assert (
        why(path, trailing(b"\1" + message(b"x")[1:], "0"))
        == "the response is compressed, which was not requested"
    )


def test_http2_without_grpc(path: Path) -> None:
    html = ("content-type", "text/html")
    told = why(path, heading(html, status="404", body=b"<html>"))
    assert told == "the server speaks HTTP/2, but not gRPC: status 404, type text/html"
    # No one connection is served twice.
    path.unlink()
    told = why(path, heading(status="503"))
    assert told == "the server speaks HTTP/2, but not gRPC: status 503, type none"


def test_no_trailers(path: Path) -> None:
    assert (
        why(path, heading(*GRPC, body=message(b"x"))) == "the response ended without a gRPC status"
    )


def test_reset(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        server = Server(client)
        server.hear_all()
        server.begin()
        server.h2.reset_stream(1, h2.errors.ErrorCodes.CANCEL)
        server.flush()
        until_hung_up(client)

    assert why(path, speech) == "the server reset the stream with CANCEL"


def test_reset_by_an_unknown_code(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        Server(client).hear_all()
        client.sendall(b"\0\0\x04\x03\0\0\0\0\x01" + (999).to_bytes(4, "big"))
        until_hung_up(client)

    assert why(path, speech) == "the server reset the stream with the unknown code 999"


@pytest.mark.parametrize(
    ("last", "code", "told"),
    [(0, 0, "NO_ERROR"), (1, 11, "ENHANCE_YOUR_CALM"), (0, 77, "the unknown code 77")],
)
def test_goaway(path: Path, last: int, code: int, told: str) -> None:
    def speech(client: socket.socket) -> None:
        server = Server(client)
        server.hear_all()
        server.begin()
        server.h2.send_data(1, message(b"half of it")[:7])
        server.flush()
        client.sendall(goaway(last, code))
        until_hung_up(client)

    assert why(path, speech) == f"the server closes the connection with {told}"


def test_goes_away_and_closes_after_all(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        Server(client).hear_all()
        client.sendall(goaway(1, 0))

    assert why(path, speech) == "the server closed the connection before it answered"


@pytest.mark.parametrize("greeting", [b"", b"\0\0\0\x04\0\0\0\0\0"])
def test_closes(path: Path, greeting: bytes) -> None:
    assert why(path, saying(greeting)) == "the server closed the connection before it answered"


@pytest.mark.parametrize("heard_first", [True, False])
def test_http1(path: Path, *, heard_first: bool) -> None:
    def speech(client: socket.socket) -> None:
        if heard_first:
            client.recv(10)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")

    assert why(path, speech) == "the server speaks HTTP/1, not gRPC"


def test_speaks_something_else(path: Path) -> None:
    told = why(path, saying(b"220 mail.example.com ESMTP\r\n"))
    assert told == "the server does not speak HTTP/2, which gRPC requires"


def test_breaks_the_rules(path: Path) -> None:
    # HEADERS of a stream that nobody asked for.
    assert why(path, saying(b"\0\0\0\x01\x04\0\0\0\x03")).startswith("HTTP/2 protocol error: ")


def bound(path: Path, speech: Speech) -> None:
    begun = time.monotonic()
    assert why(path, speech, timeout=0.3) == "no answer within 0.3 s"
    assert time.monotonic() - begun > 0.25  # the server goes on for ever, and so would the call


def test_silent(path: Path) -> None:
    bound(path, until_hung_up)


def test_silent_after_the_question(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        Server(client).hear_all()
        until_hung_up(client)

    bound(path, speech)


def test_dribbles_for_ever(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        client.sendall(b"\0\x20\0\0\0\0\0\0\1")  # 8 KiB of DATA are announced
        while True:
            client.sendall(b"\0")
            time.sleep(0.02)

    bound(path, speech)


def test_pings_for_ever_and_never_listens(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        client.sendall(b"\0\0\0\x04\0\0\0\0\0")
        while True:
            client.sendall(b"\0\0\x08\x06\0\0\0\0\0 a ping " * 1000)

    bound(path, speech)


def test_takes_no_request(path: Path) -> None:
    def speech(client: socket.socket) -> None:
        client.sendall(b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0")  # an initial window of nothing
        until_hung_up(client)

    with serving(path, speech), pytest.raises(CriFailed, match=r"no answer within 0\.3 s$"):
        cri.call(path, "Version", b"x" * 1_000_000, timeout=0.3)


@pytest.mark.parametrize("timeout", [0, -1])
def test_no_time_at_all(path: Path, timeout: float) -> None:
    with (
        serving(path, answering(b"")),
        pytest.raises(CriFailed, match=f"no answer within {timeout} s$"),
    ):
        cri.call(path, "Version", b"", timeout=timeout)


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(CriFailed) as missing:
        cri.version(tmp_path / "none.sock", timeout=1)
    assert (
        str(missing.value) == f"Version on {tmp_path}/none.sock failed: No such file or directory"
    )
    (tmp_path / "file").touch()
    with pytest.raises(CriFailed, match=r"file failed: Connection refused$"):
        cri.version(tmp_path / "file", timeout=1)
    with pytest.raises(CriFailed, match=r"failed: No such file or directory$"):
        cri.version(tmp_path / ("d" * 120) / "none.sock", timeout=1)


FRAMES = st.lists(
    st.builds(
        lambda kind, flags, stream, body: (
            len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body
        ),
        st.integers(0, 11), st.integers(0, 255), st.integers(0, 3), st.binary(max_size=40),
    ),
    max_size=8,
).map(b"".join)  # fmt: skip


@given(st.binary(max_size=100) | FRAMES)
def test_junk_is_a_clean_failure(junk: bytes) -> None:
    left = remaining(5)
    ours, theirs = socket.socketpair()
    with ours, theirs, unix_socket.Client(left) as client:
        os.dup2(ours.fileno(), client.fileno())
        theirs.sendall(junk)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(grpc.CallFailed):
            grpc._message(grpc._exchange(client, "/a/b", b"", 1000, left))


# What is read from the answers


def answer_of(
    path: Path, fields: Sequence[tuple[int, protobuf.Value]]
) -> contextlib.AbstractContextManager[Path]:
    return serving(path, answering(protobuf.encode(fields)))


def nested(*fields: tuple[int, protobuf.Value]) -> bytes:
    return protobuf.encode(fields)


def test_version(path: Path) -> None:
    with answer_of(path, [(1, "0.1.0"), (2, "containerd"), (3, "1.7.24"), (4, "v1")]):
        assert cri.version(path, timeout=5) == "1.7.24"


def test_sandboxes(path: Path) -> None:
    first = nested(
        (1, "a"),
        (2, nested((1, "pod"), (2, "uid"), (3, "default"), (4, 1))),
        (4, 5),
        (7, "nvidia"),
    )
    second = nested((1, "b"), (3, 1))
    with answer_of(path, [(1, first), (1, second)]):
        assert cri.sandboxes(path, timeout=5) == (
            cri.Sandbox(id="a", name="pod", namespace="default", handler="nvidia", ready=True),
            cri.Sandbox(id="b", name="", namespace="", handler="", ready=False),
        )


def test_containers(path: Path) -> None:
    first = nested((1, "a"), (2, "pod"), (3, nested((1, "main"))), (6, 1))
    second = nested((1, "b"), (2, "pod"), (3, nested((1, "other"))), (6, 2))
    with answer_of(path, [(1, first), (1, second)]):
        assert cri.containers(path, timeout=5) == (
            cri.Container(id="a", name="main", sandbox="pod"),
            cri.Container(id="b", name="other", sandbox="pod"),
        )


READY = nested((1, nested((1, "RuntimeReady"), (2, 1))), (1, nested((1, "NetworkReady"), (2, 1))))


def test_status_with_handlers(path: Path) -> None:
    handlers = [(3, nested((1, name))) for name in ("", "runc", "nvidia")]
    with answer_of(path, [(1, READY), *handlers]):
        assert cri.status(path, timeout=5) == cri.Status(
            runtime_ready=True,
            network_ready=True,
            reasons=(),
            handlers=("nvidia", "runc"),
            config=None,
        )


def test_status_with_handlers_in_the_configuration(path: Path) -> None:
    config = {"containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc": {}, "nvidia": {}}}}
    info = nested((1, "config"), (2, json.dumps(config)))
    with answer_of(path, [(1, READY), (2, nested((1, "golang"), (2, '"go1.22"'))), (2, info)]):
        found = cri.status(path, timeout=5)
    assert found.handlers == ("nvidia", "runc")
    assert found.config == config


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 100_000, "{}", '{"containerd": 1}', '{"containerd": {"runtimes": []}}'],
)
def test_status_without_handlers(path: Path, text: str) -> None:
    with answer_of(path, [(1, READY), (2, nested((1, "config"), (2, text)))]):
        assert cri.status(path, timeout=5).handlers is None


def test_status_that_is_not_ready(path: Path) -> None:
    reason = ((3, "NetworkPluginNotReady"), (4, "cni plugin not initialized"))
    network = nested((1, "NetworkReady"), *reason)
    other = nested((1, "ContainerdHasNoDeprecationWarnings"), (3, "noise"))
    with answer_of(path, [(1, nested((1, network), (1, other)))]):
        found = cri.status(path, timeout=5)
    assert (found.runtime_ready, found.network_ready) == (False, False)
    assert found.reasons == (
        "RuntimeReady is not reported",
        "NetworkReady is false: NetworkPluginNotReady: cni plugin not initialized",
    )


def test_sandbox_info(path: Path) -> None:
    heard: list[Server] = []
    info = nested((1, "info"), (2, '{"runtimeType": "io.containerd.runc.v2"}'))
    with serving(path, answering(nested((2, info)), heard=heard)):
        assert cri.sandbox_info(path, "abc", timeout=5) == {"runtimeType": "io.containerd.runc.v2"}
    assert heard[0].request == message(nested((1, "abc"), (2, 1)))


def test_sandbox_without_info(path: Path) -> None:
    with answer_of(path, []):
        assert cri.sandbox_info(path, "abc", timeout=5) == {}


@pytest.mark.parametrize("answer", [b"\x0a", b"\x0a\x01\x0a", b"\x08\x01"])
def test_answers_that_are_no_cri(path: Path, answer: bytes) -> None:
    ask: Callable[..., object]
    for ask in (cri.sandboxes, cri.containers, cri.status):
        with (
            serving(path, answering(answer)),
            pytest.raises(CriFailed, match=r"the response is not valid CRI: "),
        ):
            ask(path, timeout=5)
        path.unlink()


def test_nothing_is_loaded_before_a_call() -> None:
    program = (
        "import sys, toolkit.runtime.client.cri; print(sorted({'h2', 'socket', 'grpc'} &"
        " set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
