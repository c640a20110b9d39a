"""CRI client: the runtime's status, its handlers, pods and containers.

Only the fields used here are decoded, by the field numbers of CRI's api.proto (runtime.v1), which
containerd since 1.6, CRI-O since 1.20 and cri-dockerd serve.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from runtimes.dataclass import dataclass
from toolkit.deadline import Timeout, elapsed, remaining
from toolkit.errors import StepError
from toolkit.runtime.client import protobuf
from toolkit.runtime.client.protobuf import Message

# --- containerd's introspection of plugins --------------------------------------------------------

_INTROSPECTION: Final = "/containerd.services.introspection.v1.Introspection"
_FILTER: Final = "type==io.containerd.grpc.v1,id==cri"
_OF_NRI: Final = "type==io.containerd.nri.v1"
_OF_SNAPSHOTTERS: Final = "type==io.containerd.snapshotter.v1"
# Fields of PluginsResponse, Plugin and google.rpc.Status (api/services/introspection/v1, 1.6 to
# 2.3).
_PLUGINS, _ID, _INIT_ERROR, _MESSAGE = 1, 2, 7, 2


def cri_failure(socket: Path, *, timeout: Timeout) -> str:
    """Return the error with which containerd's CRI plugin failed to load.

    Returns "" if it loaded, if it is disabled, and if the socket does not belong to containerd or
    does not answer within `timeout`.
    """
    return next((error for _, error in _plugins(socket, _FILTER, timeout=timeout) if error), "")


def snapshotters(socket: Path, *, timeout: Timeout) -> dict[str, str]:
    """Return the snapshotters of a running containerd by name, each with its start error or "".

    The result is empty if the socket does not belong to containerd or does not answer within
    `timeout`.
    """
    return dict(_plugins(socket, _OF_SNAPSHOTTERS, timeout=timeout))


def has_nri(socket: Path, *, timeout: Timeout) -> bool:
    """Return whether containerd has NRI, which may be switched off; false if it does not answer."""
    return bool(_plugins(socket, _OF_NRI, timeout=timeout))


def _plugins(socket: Path, filter_: str, *, timeout: Timeout) -> list[tuple[str, str]]:
    """Return the id and the start error of each plugin that matches a filter."""
    try:
        with _answer(
            socket, "Plugins", (1, filter_), timeout=timeout, service=_INTROSPECTION
        ) as message:
            plugins = message.messages(_PLUGINS)
            return [
                (plugin.text(_ID), _masked(plugin.message(_INIT_ERROR).text(_MESSAGE)))
                for plugin in plugins
            ]
    except CriFailed:
        return []


# --- the runtime service --------------------------------------------------------------------------

_SERVICE: Final = "/runtime.v1.RuntimeService"
_IMAGE_SERVICE: Final = "/runtime.v1.ImageService"
_LARGEST: Final[Mapping[str, int]] = {
    # kubelet's own limit: a larger response would already break the node. 16 KiB for each of 1,000
    # pods.
    "ListPodSandbox": 16 << 20,
    "ListContainers": 16 << 20,
    # The annotations of a pod, at most 256 KiB, three times, twice of these escaped in JSON.
    "PodSandboxStatus": 4 << 20,
    # With the configuration of containerd as JSON: 6 KB, and 0.6 KB for each handler.
    "Status": 1 << 20,
    "Plugins": 1 << 20,
}
_LARGEST_OF_OTHERS: Final = 64 << 10
"""Bytes of a response that holds a few names and numbers: Version, ImageStatus, RunPodSandbox."""
_SANDBOX_READY: Final = 0
LABELLED: Final = "true"
"""The value of the labels by which pods are selected."""
_HINTS: Final[Mapping[str | None, str]] = {
    "UNIMPLEMENTED": (
        "the runtime does not serve CRI v1: is `cri` among containerd's `disabled_plugins`?"
    ),
}


class CriFailed(StepError):
    """A CRI call failed or was not answered.

    `code` is the name of the gRPC status (`UNIMPLEMENTED`), None if the runtime sent none; `detail`
    is the text of that status.
    """

    def __init__(self, message: str, *, code: str | None = None, detail: str = "") -> None:
        self.code = code
        self.detail = _masked(detail)
        super().__init__(_masked(message), hint=_HINTS.get(code, ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A pod's sandbox. `handler` is "" for the default handler; `ready` is false once stopped."""

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
    """The status that the runtime reports.

    `reasons` say why it or its network is not ready. `handlers` are sorted and exclude the unnamed
    default; None if the runtime does not list them. `config` is the running configuration, None if
    it is not reported.
    """

    runtime_ready: bool
    network_ready: bool
    reasons: tuple[str, ...]
    handlers: tuple[str, ...] | None
    config: Mapping[str, Any] | None


def call(
    socket: Path, method: str, request: bytes, *, timeout: Timeout, service: str = _SERVICE
) -> bytes:
    """Call a method of CRI's RuntimeService and return the response; both messages are encoded.

    `service` is the gRPC name of another service. `timeout` covers the whole call. Raises
    CriFailed.
    """
    # Imported here because it imports hpack and hyperframe, which not every command needs.
    from toolkit.runtime.client import grpc  # noqa: PLC0415

    failed = f"{method} on {socket} failed"
    began = time.monotonic()
    try:
        largest = _LARGEST.get(method, _LARGEST_OF_OTHERS)
        return grpc.unary(socket, f"{service}/{method}", request, largest=largest, timeout=timeout)
    except grpc.CallFailed as error:
        raise CriFailed(f"{failed}: {error}", code=error.code, detail=error.detail) from error
    except TimeoutError as error:
        raise CriFailed(f"{failed}: no answer within {elapsed(timeout, began)}") from error
    except OSError as error:
        raise CriFailed(f"{failed}: {error.strerror or error}") from error


def version(socket: Path, *, timeout: Timeout) -> str:
    """Return the runtime's version. Raises CriFailed."""
    with _answer(socket, "Version", timeout=timeout) as message:
        return message.text(3)


def status(socket: Path, *, timeout: Timeout) -> Status:
    """Return the runtime's status and its handlers. Raises CriFailed."""
    with _answer(socket, "Status", (1, 1), timeout=timeout) as message:
        conditions = {each.text(1): each for each in message.message(1).messages(1)}
        reasons = {
            name: _why_not(name, conditions.get(name)) for name in ("RuntimeReady", "NetworkReady")
        }
        config = _json(message.texts_by_name(2).get("config", ""))
        names = {each.text(1) for each in message.messages(3)}
    return Status(
        runtime_ready=reasons["RuntimeReady"] is None,
        network_ready=reasons["NetworkReady"] is None,
        reasons=tuple(reason for reason in reasons.values() if reason is not None),
        handlers=tuple(sorted(names - {""})) if names else _configured(config),
        config=config,
    )


def sandboxes(socket: Path, *, timeout: Timeout, label: str = "") -> tuple[Sandbox, ...]:
    """Return all pod sandboxes, also stopped ones, or only those with `label`. Raises CriFailed.

    The label's value must be LABELLED: CRI selects by key and value.
    """
    selector = protobuf.encode([(1, label), (2, LABELLED)])
    fields = [(1, protobuf.encode([(3, selector)]))] if label else []
    with _answer(socket, "ListPodSandbox", *fields, timeout=timeout) as message:
        return tuple(
            Sandbox(
                id=each.text(1),
                name=each.message(2).text(1),
                namespace=each.message(2).text(3),
                handler=each.text(7),
                ready=each.number(3) == _SANDBOX_READY,
            )
            for each in message.messages(1)
            if not label or each.texts_by_name(5).get(label) == LABELLED
        )


def containers(socket: Path, *, timeout: Timeout) -> tuple[Container, ...]:
    """Return all containers of pods, including exited ones. Raises CriFailed."""
    with _answer(socket, "ListContainers", timeout=timeout) as message:
        return tuple(
            Container(
                id=each.text(1),
                name=each.message(3).text(1),
                sandbox=each.text(2),
            )
            for each in message.messages(1)
        )


def sandbox_info(socket: Path, id: str, *, timeout: Timeout) -> Mapping[str, Any]:  # noqa: A002 - CRI's name
    """Return the verbose information about a sandbox, for example containerd's `runtimeType`.

    containerd 2.0 and later omit `runtimeHandler`; use `sandboxes` for the handler. The result is
    empty if the runtime reports nothing. Raises CriFailed, with the code NOT_FOUND if the sandbox
    does not exist.
    """
    with _answer(socket, "PodSandboxStatus", (1, id), (2, 1), timeout=timeout) as message:
        return _json(message.texts_by_name(2).get("info", "")) or {}


def has_image(socket: Path, image: str, *, timeout: Timeout) -> bool:
    """Return whether the runtime has an image. Raises CriFailed."""
    request = (1, protobuf.encode([(1, image)]))
    with _answer(
        socket, "ImageStatus", request, timeout=timeout, service=_IMAGE_SERVICE
    ) as message:
        return bool(message.pieces(1))


@contextlib.contextmanager
def _answer(
    socket: Path,
    method: str,
    *fields: tuple[int, protobuf.Value],
    timeout: Timeout,
    service: str = _SERVICE,
) -> Iterator[Message]:
    """Call a method and yield its response; the timeout also covers what the body decodes of it.

    Raises CriFailed for a failed call, and for a response that the body finds to be malformed.
    """
    began, time_left = time.monotonic(), remaining(timeout)
    response = call(socket, method, protobuf.encode(fields), timeout=timeout, service=service)
    failed = f"{method} on {socket} failed: the response"
    try:
        yield protobuf.decode(response, protobuf.Limit(time_left))
    except protobuf.Malformed as error:
        raise CriFailed(f"{failed} is not valid CRI: {error}") from error
    except TimeoutError as error:
        raise CriFailed(f"{failed} cannot be decoded within {elapsed(timeout, began)}") from error


def _masked(said: str) -> str:
    """Return what the runtime says of a failure with secrets masked, as in a registry's URL."""
    if not said:
        return said
    from toolkit import redact  # noqa: PLC0415  # needed for errors only

    return redact.text(said)


def _why_not(name: str, condition: Message | None) -> str | None:
    """Return why a condition is not true, or None if it is."""
    if condition is None:
        return f"{name} is not reported"
    if condition.flag(2):
        return None
    return ": ".join(
        filter(None, (f"{name} is false", condition.text(3), _masked(condition.text(4))))
    )


def _configured(config: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Return the handlers in containerd's running configuration, for 1.x, which lists none."""
    section = config.get("containerd") if config else None
    runtimes = section.get("runtimes") if isinstance(section, dict) else None
    return tuple(sorted(runtimes)) if isinstance(runtimes, dict) else None


def _json(text: str) -> dict[str, Any] | None:
    """Return a JSON object, or None for other text: CRI does not specify verbose information."""
    try:
        result = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return result if isinstance(result, dict) else None
