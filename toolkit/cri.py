"""What a container runtime says of itself over CRI: whether it is ready, its handlers, pods and containers.

Only what is asked for here is read, by the field numbers of CRI's api.proto
(runtime.v1), which containerd since 1.6, CRI-O since 1.20 and cri-dockerd speak.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from toolkit import protowire
from toolkit.errors import StepFailed
from toolkit.protowire import Message
from toolkit.stop import Timeout, passed

_SERVICE: Final = "/runtime.v1.RuntimeService"
_SANDBOX_READY: Final = 0
_HINTS: Final[Mapping[str | None, str]] = {
    "UNIMPLEMENTED": "the runtime does not serve CRI v1: is `cri` among containerd's `disabled_plugins`?",
}


class CriFailed(StepFailed):
    """The runtime did not answer a call, or said no.

    `code` is the name of gRPC's status (`UNIMPLEMENTED`) where the runtime sent
    one, else None; `detail` is the text that came with it.
    """

    def __init__(self, message: str, *, code: str | None = None, detail: str = "") -> None:
        self.code = code
        self.detail = detail
        super().__init__(message, hint=_HINTS.get(code, ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A pod's sandbox. `handler` is "" for the default handler; `ready` is false once it was stopped."""

    id: str
    name: str
    namespace: str
    handler: str
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container of a pod; `sandbox` is the ID of the pod's sandbox."""

    id: str
    name: str
    sandbox: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the runtime says of itself.

    `reasons` say why it or its network is not ready. `handlers` are sorted and
    without the nameless default, None where the runtime does not name any way
    it could. `config` is the running configuration, None where it is not told.
    """

    runtime_ready: bool
    network_ready: bool
    reasons: tuple[str, ...]
    handlers: tuple[str, ...] | None
    config: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The runtime's name and version, in its own words."""

    runtime_name: str
    runtime_version: str


def call(socket: Path, method: str, request: bytes, *, timeout: Timeout) -> bytes:
    """Call a method of CRI's RuntimeService and return the answer; both are encoded messages.

    `timeout` is for the whole call. Raises CriFailed.
    """
    # It brings h2 along.
    from toolkit import rpc  # noqa: PLC0415

    failed = f"{method} on {socket} failed"
    began = time.monotonic()
    try:
        return rpc.unary(socket, f"{_SERVICE}/{method}", request, timeout=timeout)
    except rpc.CallFailed as error:
        raise CriFailed(f"{failed}: {error}", code=error.code, detail=error.detail) from error
    except TimeoutError as error:
        raise CriFailed(f"{failed}: no answer within {passed(timeout, began)}") from error
    except OSError as error:
        raise CriFailed(f"{failed}: {error.strerror or error}") from error


def version(socket: Path, *, timeout: Timeout) -> Version:
    """Return the name and version of the runtime. Raises CriFailed."""
    with _answer(socket, "Version", timeout=timeout) as said:
        return Version(runtime_name=said.text(2), runtime_version=said.text(3))


def status(socket: Path, *, timeout: Timeout) -> Status:
    """Return how the runtime is and which handlers it has. Raises CriFailed."""
    with _answer(socket, "Status", (1, 1), timeout=timeout) as said:
        conditions = {each.text(1): each for each in said.message(1).messages(1)}
        reasons = {name: _why_not(name, conditions.get(name)) for name in ("RuntimeReady", "NetworkReady")}
        config = _json(said.texts_by_name(2).get("config", ""))
        names = {each.text(1) for each in said.messages(3)}
    return Status(
        runtime_ready=reasons["RuntimeReady"] is None,
        network_ready=reasons["NetworkReady"] is None,
        reasons=tuple(reason for reason in reasons.values() if reason is not None),
        handlers=tuple(sorted(names - {""})) if names else _configured(config),
        config=config,
    )


def sandboxes(socket: Path, *, timeout: Timeout) -> tuple[Sandbox, ...]:
    """Return all pod sandboxes, stopped ones as well. Raises CriFailed."""
    with _answer(socket, "ListPodSandbox", timeout=timeout) as said:
        return tuple(
            Sandbox(
                id=each.text(1),
                name=each.message(2).text(1),
                namespace=each.message(2).text(3),
                handler=each.text(7),
                ready=each.number(3) == _SANDBOX_READY,
            )
            for each in said.messages(1)
        )


def containers(socket: Path, *, timeout: Timeout) -> tuple[Container, ...]:
    """Return all containers of pods, ended ones as well. Raises CriFailed."""
    with _answer(socket, "ListContainers", timeout=timeout) as said:
        return tuple(
            Container(
                id=each.text(1),
                name=each.message(3).text(1),
                sandbox=each.text(2),
            )
            for each in said.messages(1)
        )


def sandbox_info(socket: Path, id: str, *, timeout: Timeout) -> Mapping[str, Any]:  # noqa: A002 - CRI's word
    """Return what the runtime tells of a sandbox beyond CRI: containerd names `runtimeType` and more.

    `runtimeHandler` is not among it from containerd 2.0 on; `sandboxes` names
    the handler always. It is empty where the runtime tells nothing. Raises CriFailed, with the code
    NOT_FOUND for a sandbox that does not exist.
    """
    with _answer(socket, "PodSandboxStatus", (1, id), (2, 1), timeout=timeout) as said:
        return _json(said.texts_by_name(2).get("info", "")) or {}


@contextlib.contextmanager
def _answer(socket: Path, method: str, *fields: tuple[int, int | str], timeout: Timeout) -> Iterator[Message]:
    """Ask, and hand out the answer to be read; what turns out to be unreadable then is CriFailed as well."""
    said = call(socket, method, protowire.encode(fields), timeout=timeout)
    try:
        yield protowire.decode(said)
    except protowire.Malformed as error:
        raise CriFailed(f"{method} on {socket} failed: the answer is no CRI: {error}") from error


def _why_not(name: str, condition: Message | None) -> str | None:
    """Return why a condition does not hold, or None where it does."""
    if condition is None:
        return f"{name} is not told"
    if condition.flag(2):
        return None
    return ": ".join(filter(None, (f"{name} is false", condition.text(3), condition.text(4))))


def _configured(config: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Return the handlers of containerd's running configuration: before 2.0 it does not list them itself."""
    section = config.get("containerd") if config else None
    runtimes = section.get("runtimes") if isinstance(section, dict) else None
    return tuple(sorted(runtimes)) if isinstance(runtimes, dict) else None


def _json(text: str) -> dict[str, Any] | None:
    """Return a JSON object, or None for what is not one: it is told to people, no part of CRI."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
