"""A stand-in for a runtime's daemon: it owns a socket and notes every signal that it gets.

It is started under the name `containerd` (see tests/workshop.py) and needs nothing but Python.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from types import FrameType
from typing import Final

SETTINGS_FRAME: Final = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""What a gRPC server says first: an empty HTTP/2 SETTINGS frame."""
ANSWER: Final = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"
_UNHEARD: Final = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE}


def main() -> None:
    options = _options()
    log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def note(text: str) -> None:
        os.write(log, f"{os.getpid()} {text}\n".encode())

    def heard(number: int, _frame: FrameType | None) -> None:
        note(signal.Signals(number).name)
        if number == signal.SIGTERM or (number == signal.SIGHUP and options.on_hup == "die"):
            os._exit(0)

    for number in signal.valid_signals() - _UNHEARD:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, heard)
    time.sleep(options.delay)
    server = _server(options)
    note("listens")
    kept: list[socket.socket] = []
    while True:
        client, _ = server.accept()
        _speak(client, options.speech)
        if options.speech != "close":
            kept.append(client)
        else:
            client.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", default="")
    parser.add_argument("--fd", type=int, default=-1, help="a socket that somebody else listens on")
    parser.add_argument("--log", required=True)
    parser.add_argument("--on-hup", choices=("die", "stay"), default="die")
    parser.add_argument("--speech", choices=("grpc", "http", "silent", "close"), default="grpc")
    parser.add_argument("--delay", type=float, default=0)
    return parser.parse_args()


def _server(options: argparse.Namespace) -> socket.socket:
    if options.fd >= 0:
        return socket.socket(fileno=options.fd)
    path = Path(options.socket)
    os.chdir(path.parent)  # so that the path may be longer than an address
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path.name)
    server.listen()
    return server


def _speak(client: socket.socket, speech: str) -> None:
    with contextlib.suppress(OSError):
        if speech == "grpc":
            client.sendall(SETTINGS_FRAME)
        if speech == "http" and client.recv(4096):
            client.sendall(ANSWER)


if __name__ == "__main__":
    main()
