"""The pages over HTTP: bad, slow or frequent requests get a page at most, and harm nothing."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import pods
from toolkit.agent.http_server import Exporter


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Serve as the daemon's loop does."""
    with Exporter(
        "127.0.0.1:0", {"/healthz": lambda: (200, "ok\n"), "/readyz": lambda: (503, "not ready\n")}
    ) as server:
        over = threading.Event()

        def loop() -> None:
            while not over.is_set():
                if select.select([server.fd], [], [], 0.05)[0]:
                    server.serve()

        thread = threading.Thread(target=loop)
        thread.start()
        yield int(server.server_address[1])
        over.set()
        thread.join()


def said(port: int, data: bytes, *, closes: bool = True) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(data)
        if closes:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while more := client.recv(4096):
            answer += more
    return answer


def test_a_page_is_an_answer_that_a_library_reads(port: int) -> None:
    assert pods.page(port, "/healthz") == (200, "ok\n")
    assert pods.page(port, "/readyz") == (503, "not ready\n")
    assert pods.page(port, "/healthz?verbose") == (200, "ok\n")
    assert pods.page(port, "/") == (
        404,
        "not found; the pages are /healthz, /readyz and /metrics\n",
    )
    assert pods.page(port, "/healthz", "HEAD") == (200, "")
    assert pods.page(port, "/healthz", "DELETE")[0] == 405


def test_the_answer_to_a_probe_is_this(port: int) -> None:
    assert (
        said(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", closes=False)
        == b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 3\r\nConnection: close\r\n\r\nok\n"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz\r\n\r\n",
        b"GET  /healthz HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n",
        b"x" * 20000,
    ],
    ids=["no version", "two blanks", "TLS", "half a head", "too long"],
)
def test_what_is_no_request_is_told_so(port: int, data: bytes) -> None:
    try:
        answer = said(port, data)
    except OSError:
        answer = b"HTTP/1.1 400"  # it did not read all of it
    assert answer.startswith(b"HTTP/1.1 400")


@given(st.binary(max_size=200))
def test_anything_may_be_said(port: int, data: bytes) -> None:
    said(port, data + b"\r\n\r\n")
    assert pods.page(port, "/healthz") == (200, "ok\n")


@pytest.mark.parametrize("clients", [8, 16, 30])
def test_who_says_nothing_keeps_nobody_out(port: int, clients: int) -> None:
    """The oldest is dropped: 8 that said nothing shut every probe out for five seconds."""
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(clients)]
    try:
        for _ in range(20):
            assert pods.page(port, "/healthz") == (200, "ok\n")
    finally:
        for client in silent:
            client.close()


def test_without_a_thread_a_client_is_answered_all_the_same(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At pids.max no thread starts: ten requests made the pages silent until the end."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(20):
            assert pods.page(port, "/healthz") == (200, "ok\n")
        with socket.create_connection(("127.0.0.1", port)):
            assert pods.page(port, "/healthz") == (200, "ok\n")
    assert pods.page(port, "/healthz") == (200, "ok\n")


def test_without_threads_clients_that_say_nothing_only_delay(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, contextlib.ExitStack() as silent:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(8):
            silent.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert pods.page(port, "/healthz") == (200, "ok\n")
