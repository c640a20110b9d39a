"""The pages over HTTP: who asks badly, slowly or too often gets a page at most, and takes nothing down."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import pods
from toolkit import exporter
from toolkit.exporter import Exporter


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
    assert pods.page(port, "/") == (404, "there are /healthz, /readyz and /metrics\n")
    assert pods.page(port, "/healthz", "HEAD") == (200, "")
    assert pods.page(port, "/healthz", "DELETE")[0] == 405


def test_the_answer_to_a_probe_is_this(port: int) -> None:
    assert said(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", closes=False) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
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


def test_who_says_nothing_keeps_nobody_out_for_long(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_SECONDS", 0.5)
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    began = time.monotonic()
    try:
        while True:
            try:
                assert pods.page(port, "/healthz") == (200, "ok\n")
                break
            except (OSError, ValueError):
                assert time.monotonic() - began < 5
                time.sleep(0.05)
    finally:
        for client in silent:
            client.close()
