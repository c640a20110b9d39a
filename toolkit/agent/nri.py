"""The NRI plugin: it adds the CDI devices that pods ask for by annotation.

The runtime throws out a plugin that does not answer within two seconds, and the containers that it
creates meanwhile start without devices. Therefore nothing here waits: the agent polls the socket.
Whatever the runtime sends, the agent goes on; bytes that are no valid message end the connection,
and a new one is made.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypedDict

from toolkit.errors import ToolkitError
from toolkit.log import LOGGER
from toolkit.node import socket_peer, unix_socket
from toolkit.runtime.client import protobuf, ttrpc
from toolkit.runtime.client.protobuf import Message

NAME: Final = "nvidia-toolkit"
ANNOTATION: Final = "nvidia.cdi.k8s.io"
_PLUGIN: Final = "nri.pkg.api.v1alpha1.Plugin"
_RUNTIME: Final = "nri.pkg.api.v1alpha1.Runtime"
_VERSION: Final = "0.12.5"
"""The version of NRI that this plugin was written for; the runtime logs it."""
_CREATE_CONTAINER: Final = 1 << 3
_REGISTRATION: Final = 1
"""The stream of the only request that the plugin makes."""
_STOPPED: Final = 4
_CHUNK: Final = 64 << 10
_LONGEST_VALUE: Final = 256 << 10
"""Bytes of the longest annotation: Kubernetes' limit for all annotations of a pod."""
_MOST_FIELDS: Final = 200_000
"""Fields of the largest request, which take 0.4 s.

A container has some hundred, and a node has some hundred containers.
"""
_MOST_LISTED: Final = 100_000
"""Pods, or containers, that Synchronize may list: a node has some hundred."""
_MOST_NAMED: Final = 20
_SHOWN: Final = 200
_PATIENCE: Final = 30.0
"""Seconds for the registration; the runtime itself gives it five."""
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 2.0
_LONGEST_PAUSE_AFTER_HARM: Final = 30.0
_CALM: Final = 10.0
"""Seconds of a registration after which its end is no failure: the runtime was restarted."""
_NEVER: Final = float("inf")
_RESULTS: Final = ("injected", "unasked", "refused", "unanswered")


class NriSettings(TypedDict):
    """The settings of the plugin.

    `socket` is a local path and `index` the two digits before the plugin's name. Devices of the
    `kinds` are for pods in the `namespaces` only. `executables` are the names that the runtime's
    program may have.
    """

    socket: str
    index: str
    kinds: list[str]
    namespaces: list[str]
    executables: list[str]


class Plugin:
    """The plugin and its connection. `problem` says why it is not registered, empty if it is.

    `fd` and `events` are for poll(2), `serve` is called for an event, and `tick` at the time `due`
    or later. `missed` names the containers that asked for devices while the plugin was not
    connected.
    """

    def __init__(
        self,
        settings: NriSettings,
        clock: Callable[[], float] = time.monotonic,
        examine: Callable[[Path, int, frozenset[str]], object] = socket_peer.examine,
    ) -> None:
        self.settings = settings
        self.problem = "it has not connected yet"
        self.missed: list[str] = []
        self.results = dict.fromkeys(_RESULTS, 0)
        self.connections_lost = 0
        self._clock = clock
        self._examine = examine
        self._path = Path(settings["socket"])
        self._socket: socket.socket | None = None
        self._retry = clock()
        self._failures = 0
        self._since = 0.0
        self._lost = 0.0
        self._logged = ""
        self._begin()

    def _begin(self) -> None:
        self._reader = ttrpc.Reader()
        self._unsent = bytearray()
        self._expires = _NEVER
        self._is_examined = False
        self._is_accepted = False
        self._is_synchronized = False
        self._runtime = "the runtime"
        self._pods: dict[str, Message] = {}
        self._bare: list[tuple[str, str]] = []

    # --- for the loop ---

    @property
    def is_registered(self) -> bool:
        """Return whether the runtime calls this plugin for each new container."""
        return self._is_accepted and self._is_synchronized

    @property
    def fd(self) -> int:
        """Return the descriptor of the connection; negative if there is none."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def events(self) -> int:
        """Return the events to poll for: nothing is read while something is to be sent.

        So a runtime that reads no answers is not answered without end.
        """
        return select.POLLOUT if self._unsent else select.POLLIN

    @property
    def due(self) -> float:
        """Return the time at which `tick` has something to do."""
        return self._retry if self._socket is None else self._expires

    def tick(self) -> None:
        """Connect if it is time to, and give up a registration that takes too long."""
        if self._clock() < self.due:
            return
        if self._socket is None:
            self._connect()
        else:
            self._lose("it does not finish the registration", is_harm=True)

    def serve(self) -> None:
        """Send what waits to be sent, and answer what has arrived."""
        if self._socket is None:
            return
        try:
            self._send()
            self._receive(self._socket)
            self._send()
        except BlockingIOError:
            return
        except ttrpc.Broken as error:
            self._lose(str(error), is_harm=True)
        except ToolkitError as error:
            hint = f" ({error.hint.replace('--socket', '--nri-socket')})" if error.hint else ""
            self._lose(f"{error.message.removeprefix(f'{self._path} ')}{hint}", is_harm=True)
        except OSError as error:
            self._lose(error.strerror or str(error), is_harm=not self.is_registered)
        except Exception as error:  # noqa: BLE001  # whatever a runtime sends, the agent must not die of it
            LOGGER.debug("the NRI plugin failed", exc_info=True)
            self._lose(f"this is a bug in nvidia-toolkit: {error!r}", is_harm=True)

    def close(self) -> None:
        """Close the connection, without another attempt."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._retry = None, _NEVER
        self._begin()

    # --- the connection ---

    def _connect(self) -> None:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(0)
        try:
            socket_peer.request_credentials(client)
            unix_socket.connect(client, self._path)
        except OSError as error:
            client.close()
            self._postpone(f"{self._path}: {error.strerror or error}", is_harm=False)
            return
        self._socket, self._expires = client, self._clock() + _PATIENCE
        payload = protobuf.encode([(1, NAME), (2, self.settings["index"]), (3, _VERSION)])
        self._unsent += ttrpc.request(_REGISTRATION, _RUNTIME, "RegisterPlugin", payload)

    def _lose(self, why: str, *, is_harm: bool) -> None:
        """Close the connection and try again later."""
        was_registered = self.is_registered
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.connections_lost += 1
        if self._unsent and was_registered:
            self.results["unanswered"] += 1
            LOGGER.error("NRI: an answer was not delivered: the connection ended before")
        self._begin()
        if was_registered:
            self._lost = self._clock()
            self._failures = 0 if self._lost - self._since >= _CALM else self._failures
        self._postpone(f"{self._path}: {why}", is_harm=is_harm)

    def _postpone(self, problem: str, *, is_harm: bool) -> None:
        """Schedule the next attempt; log a problem that differs from the previous one."""
        longest = _LONGEST_PAUSE_AFTER_HARM if is_harm else _LONGEST_PAUSE
        self._retry = self._clock() + min(_FIRST_PAUSE * 2.0 ** min(self._failures, 16), longest)
        self._failures += 1
        self.problem = problem
        if problem != self._logged:
            LOGGER.warning(
                "the NRI plugin is not registered: %s; containers get no device now", problem
            )
        self._logged = problem

    def _send(self) -> None:
        while self._socket is not None and self._unsent:
            with contextlib.suppress(InterruptedError):
                del self._unsent[: self._socket.send(self._unsent, socket.MSG_NOSIGNAL)]

    def _receive(self, client: socket.socket) -> None:
        data, pid = socket_peer.receive(client, _CHUNK)
        if not data:
            raise ConnectionResetError(104, "the runtime closed the connection")
        if not self._is_examined:
            self._examine(self._path, pid, frozenset(self.settings["executables"]))
            self._is_examined = True
        for message in self._reader.feed(data):
            if isinstance(message, ttrpc.Call):
                self._unsent += self._answer(message)
            else:
                self._take(message)
        if self.problem and self.is_registered:
            self._registered()

    def _take(self, message: ttrpc.Answer) -> None:
        """Take the runtime's answer to the registration."""
        if message.stream != _REGISTRATION or self._is_accepted:
            raise ttrpc.Broken(
                f"a response on stream {message.stream}, to which nothing was requested"
            )
        if message.problem:
            raise ttrpc.Broken(f"the registration was refused: {message.problem[:_SHOWN]}")
        self._is_accepted = True

    def _registered(self) -> None:
        again = f" again, after {self._clock() - self._lost:.2f} s" if self._since else ""
        self.problem, self._logged, self._since, self._expires = "", "", self._clock(), _NEVER
        name = f"{self.settings['index']}-{NAME}"
        LOGGER.info("the NRI plugin %s is registered with %s%s", name, self._runtime, again)

    # --- the calls of the runtime ---

    def _answer(self, call: ttrpc.Call) -> bytes:
        """Return the bytes that answer a call."""
        methods: dict[str, Callable[[Message], bytes]] = {
            "CreateContainer": self._create,
            "Configure": self._configure,
            "Synchronize": self._synchronize,
            "Shutdown": lambda _: b"",
            "StateChange": lambda _: b"",
        }
        method = methods.get(call.method) if call.service == _PLUGIN else None
        if method is None:
            self.results["unanswered"] += 1
            LOGGER.warning(
                "NRI: %s of %s is not supported", _shown(call.method), _shown(call.service)
            )
            return ttrpc.refusal(call.stream, ttrpc.UNIMPLEMENTED, "not supported")
        try:
            request = protobuf.decode(call.payload, protobuf.Limit(fields=_MOST_FIELDS))
            return ttrpc.response(call.stream, method(request))
        except protobuf.Malformed as error:
            if call.method != "CreateContainer":
                raise ttrpc.Broken(f"{call.method}: {error}") from error
            # An error would keep the container from starting, and most ask for no device.
            self.results["unanswered"] += 1
            LOGGER.error("NRI: a request to create a container is not valid: %s", error)
            return ttrpc.response(call.stream, b"")

    def _configure(self, request: Message) -> bytes:
        """Subscribe to CreateContainer only.

        A runtime that knows failure policies fails the one request that the plugin did not answer,
        which the kubelet repeats, instead of starting the container without its devices. It does
        not keep the plugin connected, since each request would fail then.
        """
        name, version = request.text(2), request.text(3)
        self._runtime = _shown(f"{name} {version}".strip() or "the runtime")
        fail_request = protobuf.encode([(1, 1)])
        return protobuf.encode([(2, _CREATE_CONTAINER), (3, fail_request)])

    def _create(self, request: Message) -> bytes:
        pod, name = request.message(1), request.message(2).text(3)
        devices = self._allowed(pod, name)
        return protobuf.encode([(1, _adjustment(devices))]) if devices else b""

    def _allowed(self, pod: Message, name: str) -> list[str]:
        """Return the devices to add to a container: all that it asks for, or none."""
        where = _shown(f"the container {name} of the pod {pod.text(4)}/{pod.text(2)}")
        try:
            devices = requested(pod, name)
        except ValueError as error:
            self.results["unanswered"] += 1
            LOGGER.error("NRI: %s: %s", where, error)
            return []
        asked = _shown(", ".join(devices))
        if not devices:
            self.results["unasked"] += 1
        elif not self._may_have(pod, devices):
            self.results["refused"] += 1
            LOGGER.warning(
                "NRI: %s asks for %s, but its namespace is not among %s: it starts without",
                where,
                asked,
                ", ".join(self.settings["namespaces"]),
            )
            return []
        else:
            self.results["injected"] += 1
            LOGGER.info("NRI: %s gets %s", where, asked)
        return devices

    def _may_have(self, pod: Message, devices: list[str]) -> bool:
        is_management = any(
            device.partition("=")[0] in self.settings["kinds"] for device in devices
        )
        return not is_management or pod.text(4) in self.settings["namespaces"]

    # --- containers that were created while the plugin was away ---

    def _synchronize(self, request: Message) -> bytes:
        """Look at the pods and containers of the node; they may come in several requests."""
        for pod in request.messages(1):
            if any(key.partition("/")[0] == ANNOTATION for key in pod.texts_by_name(6)):
                self._pods[pod.text(1)] = pod
        for container in request.messages(2):
            if container.number(4) != _STOPPED and not _has_devices(container):
                self._bare.append((container.text(2), container.text(3)))
        if len(self._pods) > _MOST_LISTED or len(self._bare) > _MOST_LISTED:
            raise ttrpc.Broken("it lists too many pods or containers")
        if request.flag(3):
            return protobuf.encode([(2, 1)])
        self.missed = list(self._find_missed())
        self._pods, self._bare, self._is_synchronized = {}, [], True
        self._log_missed()
        return b""

    def _log_missed(self) -> None:
        for name in self.missed[:_MOST_NAMED]:
            LOGGER.warning(
                "NRI: %s, but started without, while the plugin was not connected: delete the pod,"
                " so that it is created again",
                name,
            )
        if more := len(self.missed[_MOST_NAMED:]):
            LOGGER.warning("NRI: %d more containers started without their devices", more)

    def _find_missed(self) -> Iterator[str]:
        """Yield the containers without any device that ask for some and may have them."""
        for sandbox, name in self._bare:
            pod = self._pods.get(sandbox)
            if pod is None:
                continue
            with contextlib.suppress(ValueError):
                devices = requested(pod, name)
                if devices and self._may_have(pod, devices):
                    asked = ", ".join(devices)
                    yield _shown(
                        f"the container {name} of {pod.text(4)}/{pod.text(2)} asks for {asked}"
                    )

    def state(self) -> dict[str, Any]:
        """Return the state for the log."""
        return {
            "registered": self.is_registered,
            "problem": self.problem,
            "requests": self.results,
            "connections_lost": self.connections_lost,
            "missed": self.missed[:_MOST_NAMED],
        }

    def metrics(self) -> str:
        """Return the plugin's metrics in Prometheus' text format."""
        prefix = "nvidia_toolkit_nri"
        lines = [
            *_family(f"{prefix}_registered", "gauge", "Whether the NRI plugin is registered."),
            f"{prefix}_registered {float(self.is_registered)}",
            *_family(
                f"{prefix}_connections_lost_total",
                "counter",
                "Connections to the runtime that ended.",
            ),
            f"{prefix}_connections_lost_total {float(self.connections_lost)}",
            *_family(
                f"{prefix}_missed_containers",
                "gauge",
                "Running containers that asked for devices while the plugin was not connected.",
            ),
            f"{prefix}_missed_containers {float(len(self.missed))}",
            *_family(f"{prefix}_requests_total", "counter", "Containers created, by result."),
            *(
                f'{prefix}_requests_total{{result="{name}"}} {float(n)}'
                for name, n in self.results.items()
            ),
        ]
        return "\n".join(lines) + "\n"


def requested(pod: Message, container: str) -> list[str]:
    """Return the CDI devices that a pod's annotations name for a container.

    The annotation of the container is used, else that of the pod, else the one without a suffix. A
    device is named once, since the runtime refuses a container to which it is added twice. Raises
    ValueError if the annotation is too long.
    """
    annotations = pod.texts_by_name(6)
    keys = (f"{ANNOTATION}/container.{container}", f"{ANNOTATION}/pod", ANNOTATION)
    text = next((annotations[key] for key in keys if key in annotations), "")
    if (size := len(text.encode(errors="replace"))) > _LONGEST_VALUE:
        raise ValueError(f"its annotation has {size} bytes")
    return list(dict.fromkeys(name for item in text.split(",") if (name := item.strip())))


def _adjustment(devices: list[str]) -> bytes:
    """Return a ContainerAdjustment with these CDI devices."""
    return protobuf.encode((8, protobuf.encode([(1, device)])) for device in devices)


def _has_devices(container: Message) -> bool:
    """Return whether a container has what CDI devices add: devices, CDI devices or hooks."""
    hooks = container.message(10).fields
    return bool(container.message(11).pieces(2) or container.pieces(20) or hooks)


def _shown(text: str) -> str:
    """Return a text of the runtime for the log: one line, not too long."""
    line = "".join(c if c.isprintable() else "?" for c in text[: _SHOWN + 1])
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def _family(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"
