"""A stand-in for a runtime's daemon: it owns a socket and notes every signal that it gets.

It is started under the name `containerd` (see tests/support/fake_node.py) and needs nothing but
Python. To every gRPC call it says UNIMPLEMENTED, as a containerd does whose CRI plugin is off.

With `--cri FILE` it speaks CRI as that JSON file says, which it reads at its start and every call:

    {"well": MANNER, "sick": MANNER, "sick_if": REGEX, "config": "/path/to/config.toml"}

It is sick where REGEX was found in its config and what that imports, read once, when it started;
then `sick` counts on top of `well`. A MANNER's keys, all optional, are those of `MANNER` below.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, Final

SETTINGS_FRAME: Final = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""What a gRPC server says first: an empty HTTP/2 SETTINGS frame."""
UNIMPLEMENTED: Final = b"\x88\x0f\x10\x10application/grpc\x00\x0bgrpc-status\x0212"
"""Headers in HPACK, none of them indexed: `:status` 200, `content-type`, `grpc-status` 12."""
HEADERS: Final = b"\x88\x0f\x10\x10application/grpc"
TRAILERS: Final = b"\x00\x0bgrpc-status\x010"
ANSWER: Final = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"
MANNER: Final[Mapping[str, Any]] = {
    "ready": True,  # RuntimeReady
    "network": True,  # NetworkReady
    "handlers": "from-config",  # or a list of names
    "default": None,  # the default handler; None: as the config says
    "sandbox_image": None,  # None: as the config says
    "unimplemented": False,  # CRI is off
    "cri_error": "",  # CRI is off because its plugin failed, for this reason
    "has_nri": False,  # it has the plugin of NRI
    "silent": False,  # calls are never answered
    "delay": 0,  # seconds before the socket is there
    "die": False,  # end at once
    "ignore": False,  # have the config of the first start ever
    "image": True,  # the sandbox image is there
    "no_pods": {},  # why no pod starts, by handler, or for all as ""
    "slow_pods": 0,  # seconds until a pod is there
    # A fault at the calls about pods: {"call": the first one, "last": the last one, "do": ...}.
    "at": None,
}
_OPTIONS: Final[Mapping[str, str | int | float]] = {
    "socket": "",
    "fd": -1,  # a socket that somebody else listens on
    "log": "",
    "on_hup": "die",  # or "stay"
    "speech": "grpc",  # or "http", "silent", "close"
    "delay": 0.0,
    "config": "",  # for a test that reads the command line
    "cri": "",  # speak CRI as this file says
    "packages": "",  # where the package hpack is, for --cri
}
"""The options and their defaults."""
_PREFACE: Final = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_HEADER: Final = struct.Struct(">BHBBL")
_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_ACK = _END_STREAM = 1
_PREFIX: Final = 5
POD_METHODS: Final = (
    "ImageStatus", "ListPodSandbox", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox",
)  # fmt: skip
_LENGTH: Final = 2
PODS: Final = "pods.json"
"""The file beside the log that holds the pods."""
_END_HEADERS: Final = 4
_UNHEARD: Final = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE}
_RUNTIME: Final = "/runtime.v1.RuntimeService/"
_SERVICES: Final = (_RUNTIME, "/runtime.v1.ImageService/")
_PLUGINS: Final = "/containerd.services.introspection.v1.Introspection/Plugins"
_RUNC: Final = {
    "runc": {"runtime_type": "io.containerd.runc.v2", "options": {"SystemdCgroup": True}}
}
_IMAGE: Final = "registry.k8s.io/pause:3.8"
# The newest first: what names the section of CRI, from version 3 of the config down to 1.
_SECTIONS: Final = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri")


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
    note("starts")
    time.sleep(options.delay)
    cri = None
    if options.cri:
        sys.path.append(options.packages)
        cri = Cri(Path(options.cri), first=Path(options.log).with_name("first.json"))
        cri.pods = Pods(Path(options.log).with_name(PODS))
        manner = cri.manner()
        if manner["die"]:
            sys.exit(1)
        time.sleep(manner["delay"])
    server = _server(options)
    note("listens")
    while True:
        client, _ = server.accept()
        threading.Thread(target=_speak, args=(client, options.speech, cri), daemon=True).start()


def _options() -> SimpleNamespace:
    """Return the options, each `--name=value`; what argparse would do takes a fifth of a start."""
    found = dict(_OPTIONS)
    for word in sys.argv[1:]:
        name, _, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name not in found:
            sys.exit(f"no such option: {word}")
        found[name] = type(found[name])(text)
    return SimpleNamespace(**found)


def _server(options: SimpleNamespace) -> socket.socket:
    if options.fd >= 0:
        return socket.socket(fileno=options.fd)
    path = Path(options.socket)
    os.chdir(path.parent)  # so that the path may be longer than an address
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path.name)
    server.listen()
    return server


def _speak(client: socket.socket, speech: str, cri: Cri | None) -> None:
    with contextlib.suppress(OSError), client:
        match speech:
            case "grpc":
                client.sendall(SETTINGS_FRAME)
                if cri is None:
                    _refuse_calls(client)
                else:
                    cri.answer_calls(client)
            case "http":
                if client.recv(4096):
                    client.sendall(ANSWER)
            case "silent":
                while client.recv(4096):
                    continue
            case _:
                return


def _refuse_calls(client: socket.socket) -> None:
    for kind, flags, number, _ in _frames(client):
        if kind in {_DATA, _HEADERS} and flags & _END_STREAM:
            _refuse(client, number)


def _frames(client: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield type, flags, stream and payload of frames; answer what HTTP/2 itself asks."""
    with client.makefile("rb") as stream:
        stream.read(_PREFACE)
        while len(head := stream.read(_HEADER.size)) == _HEADER.size:
            high, low, kind, flags, number = _HEADER.unpack(head)
            payload = stream.read((high << 8) + low)
            if kind == _SETTINGS and not flags & _ACK:
                client.sendall(_HEADER.pack(0, 0, _SETTINGS, _ACK, 0))
            if kind == _PING and not flags & _ACK:
                client.sendall(_HEADER.pack(0, len(payload), _PING, _ACK, 0) + payload)
            yield kind, flags, number, payload


def _refuse(client: socket.socket, number: int) -> None:
    client.sendall(_frame(_HEADERS, _END_STREAM | _END_HEADERS, number, UNIMPLEMENTED))


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    high, low = divmod(len(payload), 256)
    return _HEADER.pack(high >> 8, (high & 0xFF) << 8 | low, kind, flags, number) + payload


# --- CRI ----------------------------------------------------------------------------------------


class Refused(Exception):
    """A call that fails, with the text that the runtime gives."""


class Pods:
    """The pods, in a file: they outlive the daemon. `run` counts the calls that started one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()

    def read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            found = {"calls": [], "run": [], "pods": {}}
        return found

    def fault(self, method: str, at: Mapping[str, Any] | None) -> str:
        """Count a call, and return the fault that happens at it; "" for none."""
        with self.lock:
            content = self.read()
            content["calls"].append(method)
            self.write(content)
        if at is None or not at["call"] <= len(content["calls"]) <= at.get("last", at["call"]):
            return ""
        return str(at["do"]) if at.get("method", method) == method else ""

    def write(self, content: Mapping[str, Any]) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(content), encoding="utf-8")
        new.rename(self.path)

    def answer(self, method: str, request: bytes, manner: Mapping[str, Any]) -> bytes:
        fields = _fields(request)
        if method == "RunPodSandbox":
            return self._run(fields, manner)
        with self.lock:
            content = self.read()
            match method:
                case "ImageStatus":
                    return _field(1, _field(1, b"image")) if manner["image"] else b""
                case "ListPodSandbox":
                    return b"".join(_sandbox(key, **pod) for key, pod in content["pods"].items())
                case "StopPodSandbox":
                    return b""
                case _:
                    content["pods"].pop(fields[1].decode(), None)
                    self.write(content)
                    return b""

    def _run(self, fields: Mapping[int, bytes], manner: Mapping[str, Any]) -> bytes:
        config, handler = _fields(fields[1]), fields[2].decode()
        metadata, label = _fields(config[1]), _fields(config[6])
        refused = manner["no_pods"].get(handler, manner["no_pods"].get(""))
        with self.lock:
            content = self.read()
            content["run"].append(handler)
            key = f"{len(content['run']):064x}"
            if refused is None:
                content["pods"][key] = {
                    "name": metadata[1].decode(),
                    "namespace": metadata[3].decode(),
                    "label": label[1].decode(),
                    "value": label[2].decode(),
                    "handler": handler,
                }
            self.write(content)
        time.sleep(manner["slow_pods"])
        if refused is not None:
            raise Refused(refused)
        return _field(1, key.encode())


def _sandbox(key: str, *, name: str, namespace: str, label: str, value: str, handler: str) -> bytes:
    metadata = _field(1, name.encode()) + _field(3, namespace.encode())
    entry = _field(1, label.encode()) + _field(2, value.encode())
    found = (
        _field(1, key.encode())
        + _field(2, metadata)
        + _field(5, entry)
        + _field(7, handler.encode())
    )
    return _field(1, found)


class Cri:
    """The daemon's answers over CRI: from the file of `--cri`, and from its config at the start.

    `first` is a file that remembers the config of the first start ever.
    """

    pods: Pods

    def __init__(self, told: Path, *, first: Path) -> None:
        self.told = told
        path = self.said().get("config", "")
        self.texts = _texts(Path(path)) if path else []
        self.section = _section(self.texts)
        if not first.exists():
            first.write_text(json.dumps(self.section), encoding="utf-8")
        self.first = json.loads(first.read_text(encoding="utf-8"))

    def said(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.told.read_bytes())
        return found

    def manner(self) -> dict[str, Any]:
        """Return how the daemon has to be now."""
        said = self.said()
        regex = said.get("sick_if")
        is_sick = (
            regex is not None and re.search(regex.encode(), b"\n".join(self.texts)) is not None
        )
        found = {**MANNER, **said.get("well", {}), **(said.get("sick", {}) if is_sick else {})}
        if unknown := found.keys() - MANNER.keys():
            raise ValueError(f"{self.told}: unknown {unknown}")
        return found

    def answer_calls(self, client: socket.socket) -> None:
        from hpack import Decoder  # noqa: PLC0415 - it is not there without --cri

        decoder = Decoder()
        methods: dict[int, str] = {}
        bodies: dict[int, bytes] = {}
        for kind, flags, number, payload in _frames(client):
            if kind == _HEADERS:
                names = {str(name): str(text) for name, text in decoder.decode(payload)}
                methods[number] = names[":path"]
            if kind == _DATA:
                bodies[number] = bodies.get(number, b"") + payload
            if kind in {_DATA, _HEADERS} and flags & _END_STREAM:
                self._answer(client, number, methods.pop(number), bodies.pop(number, b"")[_PREFIX:])

    def _answer(self, client: socket.socket, number: int, method: str, request: bytes) -> None:
        manner = self.manner()
        if manner["silent"]:
            return
        section = self.first if manner["ignore"] else self.section
        name = method.rpartition("/")[2]
        try:
            body = _body(method, manner, section)
            if body is not None and name in POD_METHODS:
                body = self._of_pods(client, name, request, manner, section)
        except Refused as error:
            _fail(client, number, str(error))
            return
        if body is None:
            _refuse(client, number)
            return
        client.sendall(
            _frame(_HEADERS, _END_HEADERS, number, HEADERS)
            + _frame(_DATA, 0, number, b"\0" + len(body).to_bytes(4, "big") + body)
            + _frame(_HEADERS, _END_STREAM | _END_HEADERS, number, TRAILERS)
        )

    def _of_pods(
        self,
        client: socket.socket,
        name: str,
        request: bytes,
        manner: Mapping[str, Any],
        section: Mapping[str, Any],
    ) -> bytes:
        fault = self.pods.fault(name, manner["at"])
        if fault == "refuse":
            raise Refused("refused, as the test wants it")
        if fault == "kill":
            _kill(client)
        body = self._of_known(name, request, manner, section)
        if fault == "kill after":
            _kill(client)
        if fault == "close":
            raise OSError("closed, as the test wants it")
        return body

    def _of_known(
        self, name: str, request: bytes, manner: Mapping[str, Any], section: Mapping[str, Any]
    ) -> bytes:
        known = section["runtimes"] if manner["handlers"] == "from-config" else manner["handlers"]
        if name == "RunPodSandbox" and (asked := _fields(request)[2].decode()) not in known:
            raise Refused(f'failed to get sandbox runtime: no runtime for "{asked}" is configured')
        return self.pods.answer(name, request, manner)


def _kill(client: socket.socket) -> None:
    """Kill who asks."""
    pid, _, _ = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    os.kill(pid, signal.SIGKILL)
    raise OSError("nobody waits any more")


def _fail(client: socket.socket, number: int, text: str) -> None:
    message = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte != ord("%") else f"%{byte:02X}"
        for byte in text.encode()
    ).encode()
    headers = (
        HEADERS + b"\x00\x0bgrpc-status\x012" + b"\x00\x0cgrpc-message" + _length(message) + message
    )
    client.sendall(_frame(_HEADERS, _END_STREAM | _END_HEADERS, number, headers))


def _length(text: bytes) -> bytes:
    """Return the length of a text as HPACK writes it."""
    if (left := len(text)) < 0x7F:
        return bytes([left])
    size, left = b"\x7f", left - 0x7F
    while left > 0x7F:
        size += bytes([left & 0x7F | 0x80])
        left >>= 7
    return size + bytes([left])


def _fields(message: bytes) -> dict[int, bytes]:
    """Return the bytes fields of a protocol buffers message; the last one of each number."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(message):
        tag, at = _number(message, at)
        value, at = _number(message, at)
        if tag & 7 == _LENGTH:
            found[tag >> 3] = message[at : at + value]
            at += value
    return found


def _number(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _body(method: str, manner: Mapping[str, Any], section: Mapping[str, Any]) -> bytes | None:
    """Return the answer to a call; None is no answer at all."""
    if method == _PLUGINS and manner["has_nri"]:
        return _field(1, _field(2, b"nri"))
    if method == _PLUGINS and manner["cri_error"]:
        return _field(1, _field(7, _field(2, manner["cri_error"].encode())))
    if not method.startswith(_SERVICES) or manner["unimplemented"] or manner["cri_error"]:
        return None
    name = method.rpartition("/")[2]
    if name == "Status":
        return _status(manner, section)
    return {
        "Version": b"".join(
            _field(i, word) for i, word in enumerate((b"0.1.0", b"containerd", b"1.7.0"), 1)
        ),
        **dict.fromkeys(("ListContainers", *POD_METHODS), b""),
    }.get(name)


def _status(manner: Mapping[str, Any], section: Mapping[str, Any]) -> bytes:
    runtimes = section["runtimes"]
    if manner["handlers"] != "from-config":
        runtimes = dict.fromkeys(manner["handlers"], _RUNC["runc"])
    config = {
        "containerd": {
            "defaultRuntimeName": manner["default"] or section["default"],
            "runtimes": {
                name: {
                    "runtimeType": each.get("runtime_type", ""),
                    "options": each.get("options", {}),
                }
                for name, each in runtimes.items()
            },
        },
        "sandboxImage": manner["sandbox_image"] or section["image"],
    }
    conditions = _condition("RuntimeReady", "ContainerdNotReady", well=manner["ready"])
    conditions += _condition("NetworkReady", "NetworkPluginNotReady", well=manner["network"])
    entry = _field(1, b"config") + _field(2, json.dumps(config).encode())
    return _field(1, conditions) + _field(2, entry)


def _condition(name: str, reason: str, *, well: bool) -> bytes:
    why = b"\x10\x01" if well else _field(3, reason.encode()) + _field(4, b"as the test wants it")
    return _field(1, _field(1, name.encode()) + why)


def _field(number: int, data: bytes) -> bytes:
    """Return a field of bytes in the wire format of protocol buffers."""
    size, left = b"", len(data)
    while left > 0x7F:
        size += bytes([left & 0x7F | 0x80])
        left >>= 7
    return bytes([number << 3 | 2]) + size + bytes([left]) + data


# --- the config ---------------------------------------------------------------------------------


def _texts(path: Path) -> list[bytes]:
    """Return the bytes of a containerd config and of everything that it imports."""
    if not path.exists():
        return []
    text = path.read_bytes()
    patterns = _toml(text).get("imports", [])
    imported = [
        found
        for pattern in patterns
        for found in sorted(glob.glob(os.path.join(path.parent, pattern)))
    ]
    return [text, *(part for found in imported for part in _texts(Path(found)))]


def _toml(text: bytes) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 - a quarter of a start, and many read no config

    return tomllib.loads(text.decode())


def _section(texts: list[bytes]) -> dict[str, Any]:
    """Return what a containerd has of these files: 1.x replaces whole sections, 2.x merges them."""
    trees = [_toml(text) for text in texts]
    merges = bool(trees) and trees[0].get("version", 1) >= 3
    plugins: dict[str, Any] = {}
    for tree in trees:
        new = tree.get("plugins", {})
        plugins = _merged(plugins, new) if merges else {**plugins, **new}
    found: dict[str, Any] = next((plugins[name] for name in _SECTIONS if name in plugins), {})
    containerd = found.get("containerd", {})
    runtimes = containerd.get("runtimes", {})
    pinned = plugins.get("io.containerd.cri.v1.images", {}).get("pinned_images", {}).get("sandbox")
    return {
        "default": containerd.get("default_runtime_name", "runc"),
        "runtimes": {**_RUNC, **runtimes} if merges else runtimes or _RUNC,
        "image": found.get("sandbox_image") or pinned or _IMAGE,
    }


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both = {k: _merged(one[k], v) for k, v in other.items() if isinstance(v, dict) and k in one}
    return {**one, **other, **both}


if __name__ == "__main__":
    main()
