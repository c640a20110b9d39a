"""A stand-in for a runtime's daemon: it owns a socket and notes every signal that it gets.

It is started under the name `containerd` (see tests/workshop.py) and needs nothing but Python. To every
gRPC call it says UNIMPLEMENTED, as a containerd does whose CRI plugin is off.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Final

SETTINGS_FRAME: Final = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""What a gRPC server says first: an empty HTTP/2 SETTINGS frame."""
UNIMPLEMENTED: Final = b"\x88\x0f\x10\x10application/grpc\x00\x0bgrpc-status\x0212"
"""Headers in HPACK, none of them indexed: `:status` 200, `content-type`, `grpc-status` 12."""
ANSWER: Final = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"
_PREFACE: Final = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_HEADER: Final = struct.Struct(">BHBBL")
_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_ACK = _END_STREAM = 1
_END_HEADERS: Final = 4
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
    while True:
        client, _ = server.accept()
        threading.Thread(target=_speak, args=(client, options.speech), daemon=True).start()


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
    with contextlib.suppress(OSError), client:
        match speech:
            case "grpc":
                client.sendall(SETTINGS_FRAME)
                _refuse_calls(client)
            case "http":
                if client.recv(4096):
                    client.sendall(ANSWER)
            case "silent":
                while client.recv(4096):
                    continue
            case _:
                return


def _refuse_calls(client: socket.socket) -> None:
    with client.makefile("rb") as stream:
        stream.read(_PREFACE)
        while len(head := stream.read(_HEADER.size)) == _HEADER.size:
            high, low, kind, flags, number = _HEADER.unpack(head)
            payload = stream.read((high << 8) + low)
            if kind == _SETTINGS and not flags & _ACK:
                client.sendall(_HEADER.pack(0, 0, _SETTINGS, _ACK, 0))
            if kind == _PING and not flags & _ACK:
                client.sendall(_HEADER.pack(0, len(payload), _PING, _ACK, 0) + payload)
            if kind in {_DATA, _HEADERS} and flags & _END_STREAM:
                refusal = _HEADER.pack(0, len(UNIMPLEMENTED), _HEADERS, _END_STREAM | _END_HEADERS, number)
                client.sendall(refusal + UNIMPLEMENTED)


if __name__ == "__main__":
    main()
