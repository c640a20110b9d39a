"""The runtime's part of NRI, as in containerd: registers a plugin, and asks it about containers.

Written from containerd/nri v0.12.3 (pkg/net/multiplex, pkg/adaptation/plugin.go) and ttrpc v1.2.8,
with an encoder of its own. It runs in a test's process, or in one of its own that looks like a
containerd (`process`), which reads a command per line and writes the result.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

PLUGIN: Final = "nri.pkg.api.v1alpha1.Plugin"
REQUEST_TIMEOUT: Final = 2.0
"""Seconds after which containerd throws a plugin out."""
BUFFER: Final = 4096
"""What Go's side reads at once: a larger piece is an error (ENOMEM) there."""
_TRUNK: Final = struct.Struct(">II")
_HEADER: Final = struct.Struct(">IIBB")


class ThrownOutError(Exception):
    """The plugin did not answer in time or not as it has to, and was disconnected."""


def encode(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Return a message of protocol buffers."""
    out = b""
    for field, value in fields:
        if isinstance(value, int):
            out += _varint(field << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(field << 3 | 2) + _varint(len(data)) + data
    return out


def decode(data: bytes) -> dict[int, list[Any]]:
    """Return the fields of a message of numbers and bytes."""
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        value: int | bytes
        value, at = _number(data, at)
        if key & 7 == 2:
            at, value = at + value, data[at : at + value]
        found.setdefault(key >> 3, []).append(value)
    return found


def frame(
    connection: int, stream: int, kind: int, payload: bytes, *, piece: int = 1 << 20
) -> bytes:
    """Return a message in pieces of this size."""
    message = _HEADER.pack(len(payload), stream, kind, 0) + payload
    parts = [message[at : at + piece] for at in range(0, len(message), piece)]
    return b"".join(_TRUNK.pack(connection, len(part)) + part for part in parts)


def call(
    stream: int, method: str, payload: bytes, *, service: str = PLUGIN, piece: int = 1 << 20
) -> bytes:
    """Return a request to the plugin."""
    request = encode((1, service), (2, method), (3, payload), (4, 2_000_000_000))
    return frame(1, stream, 1, request, piece=piece)


def pod(namespace: str, name: str, annotations: Mapping[str, str]) -> bytes:
    """Return a PodSandbox."""
    pairs = ((6, encode((1, key), (2, value))) for key, value in annotations.items())
    return encode((1, f"id-{name}"), (2, name), (3, "uid"), (4, namespace), *pairs)


def container(sandbox: str, name: str, *, state: int = 3, devices: Iterable[str] = ()) -> bytes:
    """Return a Container, with device nodes as the runtime's specification has them."""
    linux = encode(*((2, encode((1, path), (2, "c"))) for path in devices))
    fields = (
        (1, f"ctr-{name}"),
        (2, f"id-{sandbox}"),
        (3, name),
        (4, state),
        (8, "PATH=/bin"),
        (11, linux),
    )
    return encode(*fields)


class Runtime:
    """A runtime that listens on a socket; with one plugin at most."""

    def __init__(self, path: Path) -> None:
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(str(path))
        self.server.listen()
        self.client: socket.socket | None = None
        self.stream = 1
        self.buffers = {1: b"", 2: b""}

    def accept(self) -> None:
        """Wait for the connection of a plugin."""
        self.server.settimeout(10)
        self.client, _ = self.server.accept()
        self.buffers, self.stream = {1: b"", 2: b""}, 1

    def register(
        self, pods: Sequence[bytes] = (), containers: Sequence[bytes] = (), *, parts: int = 1
    ) -> dict[str, Any]:
        """Accept a plugin, configure it and tell it what there is, in so many requests."""
        self.accept()
        kind, stream, request = self.receive(2)
        fields = decode(request)
        registered = decode(fields[3][0])
        self.send(frame(2, stream, 2, encode((2, b""))))
        settings = ((2, "containerd"), (3, "v2.1.9"), (4, 5000), (5, 2000), (6, "0.12.3"))
        configured = decode(self.ask("Configure", encode(*settings)))
        more = []
        for part in range(parts):
            is_last = part == parts - 1
            listed = (
                *((1, each) for each in pods[part::parts]),
                *((2, c) for c in containers[part::parts]),
            )
            answer = decode(self.ask("Synchronize", encode(*listed, (3, int(not is_last)))))
            more.append(answer.get(2, [0])[0])
        return {
            "kind": kind,
            "service": fields[1][0].decode(),
            "method": fields[2][0].decode(),
            "name": registered[1][0].decode(),
            "index": registered[2][0].decode(),
            "events": configured[2][0],
            "policy": decode(configured[3][0]),
            "more": more,
        }

    def create(
        self,
        namespace: str,
        annotations: Mapping[str, str],
        *,
        name: str = "p",
        container_name: str = "c",
        piece: int = 1 << 20,
    ) -> list[str]:
        """Create a container and return the CDI devices that the plugin adds."""
        request = encode(
            (1, pod(namespace, name, annotations)), (2, container(name, container_name, state=1))
        )
        answer = decode(self.ask("CreateContainer", request, piece=piece))
        assert set(answer) <= {1}, answer
        adjustment = decode(answer[1][0]) if 1 in answer else {}
        assert set(adjustment) <= {8}, adjustment
        return [decode(device)[1][0].decode() for device in adjustment.get(8, [])]

    def ask(
        self, method: str, payload: bytes, *, service: str = PLUGIN, piece: int = 1 << 20
    ) -> bytes:
        """Call the plugin and return its response."""
        stream, self.stream = self.stream, self.stream + 2
        self.send(call(stream, method, payload, service=service, piece=piece))
        kind, answered, response = self.receive(1)
        if (kind, answered) != (2, stream):
            self.drop()
            raise ThrownOutError(f"a message of type {kind} on stream {answered}")
        fields = decode(response)
        if 1 in fields and decode(fields[1][0]).get(1):
            status = decode(fields[1][0])
            raise AssertionError(f"{method}: {status[2][0].decode()} ({status[1][0]})")
        return bytes(fields.get(2, [b""])[0])

    def send(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        assert self.client is not None
        self.client.settimeout(REQUEST_TIMEOUT)
        self.client.sendall(data)

    def receive(self, connection: int) -> tuple[int, int, bytes]:
        """Return type, stream and content of the next message on a connection."""
        end = time.monotonic() + REQUEST_TIMEOUT
        while True:
            buffer = self.buffers[connection]
            if len(buffer) >= _HEADER.size:
                length, stream, kind, _ = _HEADER.unpack_from(buffer)
                if len(buffer) >= _HEADER.size + length:
                    self.buffers[connection] = buffer[_HEADER.size + length :]
                    return kind, stream, buffer[_HEADER.size : _HEADER.size + length]
            number, size = _TRUNK.unpack(self._exactly(_TRUNK.size, end))
            if size > BUFFER:
                self.drop()
                raise ThrownOutError(f"a piece of {size} bytes: ENOMEM")
            self.buffers[number] += self._exactly(size, end)

    def _exactly(self, size: int, end: float) -> bytes:
        assert self.client is not None
        data = b""
        while len(data) < size:
            self.client.settimeout(max(end - time.monotonic(), 0.001))
            try:
                more = self.client.recv(size - len(data))
            except TimeoutError:
                self.drop()
                raise ThrownOutError("no answer in time") from None
            if not more:
                raise ThrownOutError("the plugin closed the connection")
            data += more
        return data

    def drop(self) -> None:
        """Throw the plugin out."""
        if self.client is not None:
            self.client.close()

    def close(self) -> None:
        """Stop listening and end the connection."""
        self.drop()
        self.server.close()


# --- a process of its own -------------------------------------------------------------------------


class Process:
    """A fake containerd that plays the runtime's part of NRI, with the methods of `Runtime`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def do(self, method: str, *arguments: Any, **more: Any) -> Any:
        """Call a method in that process; bytes are passed as Latin-1."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([method, _texts(arguments), more]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the fake runtime ended in {method}"
        result, problem = json.loads(line)
        if problem:
            raise ThrownOutError(problem)
        return result


@contextmanager
def process(path: Path, home: Path, *, name: str = "containerd") -> Iterator[Process]:
    """Run it under a name until the block ends. An old socket is replaced, as a runtime does."""
    home.mkdir(parents=True, exist_ok=True)
    program = home / name
    program.unlink(missing_ok=True)
    program.symlink_to(sys.executable)
    argv = [str(program), "-I", "-S", __file__, str(path)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            yield Process(running)
        finally:
            running.kill()


def _texts(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.decode("latin-1")}
    return [_texts(each) for each in value] if isinstance(value, list | tuple) else value


def _bytes(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"bytes"}:
        return value["bytes"].encode("latin-1")
    return [_bytes(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    """Carry out the commands on stdin."""
    path = Path(sys.argv[1])
    with suppress(FileNotFoundError):
        os.unlink(path)
    runtime = Runtime(path)
    for line in sys.stdin:
        method, arguments, more = json.loads(line)
        result, problem = None, ""
        try:
            result = getattr(runtime, method)(*_bytes(arguments), **more)
        except (ThrownOutError, OSError, AssertionError) as error:
            problem = repr(error)
        text = json.dumps([result, problem], default=lambda value: value.decode("latin-1"))
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


if __name__ == "__main__":
    main()
