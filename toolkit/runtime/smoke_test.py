"""Smoke test: start a pod or container through a handler, and remove it again.

A runtime that lists a handler does not prove that the handler works: its binary may be missing or
may fail. The pod or container started here is the smallest one that runs the handler's binary. It
has a label, so that a run removes what a killed run left behind.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from runtimes.lazy_pattern import lazy_pattern
from toolkit.deadline import Timeout, remaining
from toolkit.errors import StepError
from toolkit.log import LOGGER
from toolkit.node import elf
from toolkit.runtime.client import cri, protobuf

if TYPE_CHECKING:
    from toolkit.runtime.client.http import Response

TimeLeft: TypeAlias = Callable[[], float]

_NAME: Final = "nvidia-toolkit-check"
_LABEL: Final = "nvidia-toolkit/check"
_NAMESPACE: Final = "nvidia-toolkit"
_NOT_FOUND: Final = 404
_PROGRAM: Final = "exit"
# Seconds of the timeout that are reserved for the removal; at most a third of the timeout.
_FOR_REMOVAL: Final = 10.0
_FOR_STOP: Final = 3.0
_PAUSE: Final = 0.1
# Values of NamespaceMode in CRI's api.proto.
_NAMESPACE_MODE_POD: Final = 0
_NAMESPACE_MODE_NODE: Final = 2
_NO_DISK: Final = lazy_pattern("no space left on device|disk quota exceeded", re.IGNORECASE)
# The errors of a runtime that finds the handler's configuration wrong, whatever else works on the
# node: containerd 1.6 to 2.3, then CRI-O, then dockerd.
_WRONG_HANDLER: Final = lazy_pattern(
    "no runtime for|no corresponding runtime|snapshotter .*not found|snapshotter not loaded"
    "|custom binary path|can't convert|not installed on|type with url"
    "|failed to find runtime handler|unknown or invalid runtime",
    re.IGNORECASE,
)
# The first is from containerd 1.6 to 2.3, the second from CRI-O 1.36, the third from older CRI-O
# ("Error initializing source docker://...").
_NO_IMAGE: Final = lazy_pattern("sandbox image|pull image|initializing source", re.IGNORECASE)
_NO_NETWORK: Final = lazy_pattern("network plugin|cni plugin|sandbox network", re.IGNORECASE)
_UNAVAILABLE: Final = frozenset(
    {"UNIMPLEMENTED", "UNAVAILABLE", "PERMISSION_DENIED", "UNAUTHENTICATED"}
)


class NotTried(StepError):
    """The handler could not be tried, for a reason other than the handler, given as the message."""


class HandlerFailed(StepError):
    """No container started through the handler. `is_certain` says that nothing else is the reason.

    `is_over` says that the time was over.
    """

    def __init__(self, message: str, *, hint: str = "", is_over: bool = False) -> None:
        self.is_over = is_over
        self.is_certain = not is_over and bool(_WRONG_HANDLER.search(message))
        super().__init__(message, hint=hint)


def start_pod(
    socket: Path, handler: str, *, cgroup_parent: str, timeout: Timeout, image: str | None = None
) -> None:
    """Start a pod through a handler over CRI, and remove it.

    Only the pod's sandbox is started, with the runtime's pause program as its one process, because
    CRI cannot import an image. `cgroup_parent` is a slice (`system.slice`) if the handler uses the
    systemd cgroup driver, and "" if it uses cgroupfs; the runtime rejects the wrong kind. `image`
    is the name of the sandbox image if it is known: a missing image is not pulled, because it would
    stay on the node. `timeout`, in seconds, covers everything, including the removal. Raises
    HandlerFailed with the runtime's error, NotTried, and StepError if the pod cannot be removed.
    """
    name = f"{_NAME}-{handler}"

    def clear(time_left: TimeLeft) -> None:
        _clear_pods(socket, name, time_left)

    with _cleaned_up(clear, f"a pod of the handler {handler}", timeout) as time_left:
        _require_image(socket, image, time_left)
        request = pod_request(name, handler, cgroup_parent)
        began = time.monotonic()
        try:
            cri.call(socket, "RunPodSandbox", request, timeout=time_left)
        except cri.CriFailed as error:
            raise _pod_error(
                handler, error, time.monotonic() - began if _is_over(time_left) else None
            ) from error


def pod_request(name: str, handler: str, cgroup_parent: str) -> bytes:
    """Return an encoded RunPodSandboxRequest (field numbers from CRI's api.proto)."""
    namespaces = protobuf.encode([
        # The host network needs no CNI plugin, which may not be installed yet.
        (1, _NAMESPACE_MODE_NODE),
        # One PID namespace for the pod. Without it CRI-O starts no process for a sandbox
        # (`drop_infra_ctr` is on by default) and never runs the handler's binary, so every handler
        # would seem to work.
        (2, _NAMESPACE_MODE_POD),
    ])  # fmt: skip
    linux = protobuf.encode([
        # Without a parent containerd creates the cgroup /k8s.io and leaves it behind. With / it
        # does not.
        (1, cgroup_parent or "/"),
        (2, protobuf.encode([(1, namespaces)])),
    ])  # fmt: skip
    # A new UID each time, because the runtime may still reserve the name of an earlier pod that
    # hung.
    metadata = protobuf.encode([(1, name), (2, str(uuid.uuid4())), (3, _NAMESPACE)])
    label = protobuf.encode([(1, _LABEL), (2, cri.LABELLED)])
    return protobuf.encode(
        [(1, protobuf.encode([(1, metadata), (6, label), (8, linux)])), (2, handler)]
    )


def _require_image(socket: Path, image: str | None, time_left: TimeLeft) -> None:
    """Raise NotTried if the sandbox image is known to be missing."""
    if not image:
        return
    try:
        is_there = cri.has_image(socket, image, timeout=time_left)
    except cri.CriFailed:
        return  # It remains unknown; the start of the pod will show it.
    if not is_there:
        raise NotTried(
            f"sandbox image not found: {image}",
            hint=f"pull or load that image on the node: {image}",
        )


def _pod_error(handler: str, error: cri.CriFailed, seconds: float | None) -> StepError:
    """Return the exception for a pod that did not start.

    `seconds` is the time that passed if the start timed out, else None.
    """
    text = _one_line(error.detail or error.message)
    failure = f"no pod starts through the handler {handler}"
    if reason := _reason(error, text):
        return NotTried(reason, hint=error.hint)
    if seconds is None:
        return HandlerFailed(f"{failure}: {text}", hint=error.hint)
    return HandlerFailed(
        f"{failure}: not started within {seconds:.1f} s",
        hint="the runtime may need more time if it has to pull its sandbox image first",
        is_over=True,
    )


def _reason(error: cri.CriFailed, text: str) -> str:
    """Return the reason for a failed start that is not the handler; empty if it may be."""
    if error.code in _UNAVAILABLE or isinstance(error.__cause__, PermissionError):
        return text
    if _NO_DISK.search(text):
        return f"disk full: {text}"
    if _WRONG_HANDLER.search(text):
        return ""
    if _NO_IMAGE.search(text):
        return f"sandbox image not found: {text}"
    return f"network not ready: {text}" if _NO_NETWORK.search(text) else ""


def clear_pods(socket: Path, *, timeout: Timeout) -> None:
    """Remove the pods that killed runs left behind, of every handler. Raises StepError."""
    _clear_pods(socket, None, remaining(timeout))


def _clear_pods(socket: Path, name: str | None, time_left: TimeLeft) -> None:
    """Remove the pods of that name, or all of them, including those of failed or killed runs."""
    problem: StepError | None = None
    while True:
        try:
            pods = cri.sandboxes(socket, timeout=time_left, label=_LABEL)
        except cri.CriFailed as error:
            # The reason why a pod was not removed says more than the timeout of this call.
            raise (problem or error) from error
        problem = None
        for pod in pods:
            if pod.namespace != _NAMESPACE or name not in {None, pod.name}:
                continue
            request = protobuf.encode([(1, pod.id)])
            # RemovePodSandbox kills the pod, so try to stop it first, but not for long: CRI-O 1.36
            # once did not answer for 15 s, and then removed the pod at once.
            with contextlib.suppress(cri.CriFailed):
                cri.call(socket, "StopPodSandbox", request, timeout=min(_FOR_STOP, time_left() / 2))
            try:
                cri.call(socket, "RemovePodSandbox", request, timeout=time_left)
            except cri.CriFailed as error:
                problem = StepError(
                    f"the pod {pod.name} cannot be removed: {_one_line(error.message)}"
                )
        if problem is None:
            return
        _wait(time_left, problem)


def start_container(socket: Path, handler: str, *, timeout: Timeout) -> None:
    """Start a container through a handler over Docker's API, check for exit code 0, and remove it.

    The image is built here and holds only a minimal program. `timeout`, in seconds, covers
    everything, including the removal. Raises HandlerFailed with dockerd's error, NotTried if the
    image cannot be built, and StepError if they cannot be removed.
    """
    # Docker allows fewer characters in a container's name than in a handler's.
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", handler)
    name, image = f"{_NAME}-{safe}", f"{_NAME}:{safe}"

    def clear(time_left: TimeLeft) -> None:
        delete(socket, f"/containers/{name}?force=1&v=1", time_left)
        delete(socket, f"/images/{image}", time_left)

    with _cleaned_up(clear, f"a container of the handler {handler}", timeout) as time_left:
        began = time.monotonic()
        try:
            _import(socket, image, time_left)
            _run(socket, handler, name, image, time_left)
        except NotTried:
            raise
        except StepError as error:
            if not _is_over(time_left):
                raise
            elapsed = time.monotonic() - began
            failure = f"{_container_failure(handler)}: did not finish within {elapsed:.1f} s"
            raise HandlerFailed(failure, is_over=True) from error


def clear_containers(socket: Path, *, timeout: Timeout) -> None:
    """Remove all handlers' containers and images that killed runs left. Raises StepError."""
    time_left = remaining(timeout)
    label = json.dumps({"label": [f"{_LABEL}={cri.LABELLED}"]})
    for container in _listed(
        socket, f"/containers/json?all=1&filters={urllib.parse.quote(label)}", time_left
    ):
        delete(socket, f"/containers/{container.get('Id')}?force=1&v=1", time_left)
    reference = json.dumps({"reference": [_NAME]})
    for image in _listed(
        socket, f"/images/json?filters={urllib.parse.quote(reference)}", time_left
    ):
        for name in image.get("RepoTags") or ():
            delete(socket, f"/images/{name}", time_left)


def _listed(socket: Path, target: str, time_left: TimeLeft) -> list[dict[str, Any]]:
    """Return the JSON objects in the answer to a request. Raises StepError."""
    answer = _request(socket, "GET", target, timeout=time_left)
    if not answer.ok:
        raise StepError(f"GET {target} on {socket} failed: {_error_text(answer)}")
    try:
        result = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise StepError(
            f"GET {target} on {socket}: the response is not valid JSON: {error}"
        ) from error
    return [each for each in result if isinstance(each, dict)] if isinstance(result, list) else []


def _container_failure(handler: str) -> str:
    return f"no container starts through the handler {handler}"


def _run(socket: Path, handler: str, name: str, image: str, time_left: TimeLeft) -> None:
    """Create the container, start it and wait until it exits. Raises StepError."""
    container = {
        "Image": image,
        "Cmd": [f"/{_PROGRAM}"],
        "Labels": {_LABEL: cri.LABELLED},
        "HostConfig": {
            "Runtime": handler,
            "NetworkMode": "none",
            # The node's default log driver may need a server that is not running; there is nothing
            # to log.
            "LogConfig": {"Type": "none"},
        },
    }
    body = ""
    for target, request in (
        (f"/containers/create?name={name}", json.dumps(container).encode()),
        (f"/containers/{name}/start", None),
        (f"/containers/{name}/wait", None),
    ):
        answer = _request(socket, "POST", target, request, timeout=time_left)
        body = answer.body
        if not answer.ok:
            text = _error_text(answer)
            if _NO_DISK.search(text):
                raise NotTried(f"disk full: {text}")
            raise HandlerFailed(f"{_container_failure(handler)}: {text}")
    code = _json_object(body).get("StatusCode")
    if code != 0:
        raise HandlerFailed(
            f"{_container_failure(handler)}: its program exited with {code} instead of 0"
        )


def _import(socket: Path, image: str, time_left: TimeLeft) -> None:
    """Create the image. Raises NotTried."""
    program = elf.minimal()
    if program is None:
        raise NotTried("no test program for this CPU architecture")
    repository, tag = image.split(":")
    query = urllib.parse.urlencode({"fromSrc": "-", "repo": repository, "tag": tag})
    answer = _request(
        socket,
        "POST",
        f"/images/create?{query}",
        _archive(program),
        kind="application/x-tar",
        timeout=time_left,
    )
    # dockerd reports an error that occurs after the response has begun as a line of the body.
    lines = [_json_object(line) for line in answer.body.splitlines()]
    problems = [_one_line(str(line["error"])) for line in lines if "error" in line]
    if problems or not answer.ok:
        raise NotTried(
            f"cannot create the image to start: {' '.join(problems) or _error_text(answer)}"
        )


def _request(
    socket: Path, method: str, target: str, body: bytes | None = None, **more: Any
) -> Response:
    from toolkit.runtime.client import http  # noqa: PLC0415  # costs 15 ms, only Docker speaks it

    return http.request(socket, method, target, body, **more)


def _archive(program: bytes) -> bytes:
    """Return a tar archive that holds one program."""
    import tarfile  # noqa: PLC0415  # only Docker needs an image

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo(_PROGRAM)
        entry.mode, entry.size = 0o755, len(program)
        archive.addfile(entry, io.BytesIO(program))
    return out.getvalue()


def delete(socket: Path, target: str, time_left: TimeLeft) -> None:
    """Delete a container or an image, if it exists. Raises StepError."""
    while True:
        answer = _request(socket, "DELETE", target, timeout=time_left)
        if answer.ok or answer.status == _NOT_FOUND:
            return
        # Another removal may be in progress, so try again.
        path, _, _ = target.partition("?")
        _wait(time_left, StepError(f"{path} cannot be removed: {_error_text(answer)}"))


@contextlib.contextmanager
def _cleaned_up(
    clear: Callable[[TimeLeft], None], what: str, timeout: Timeout
) -> Iterator[TimeLeft]:
    """Run `clear` before and after the body; yield a function that returns the body's seconds left.

    Raises StepError if the removal fails. If the body raised an exception, that one is raised
    instead, and the failed removal is logged.
    """
    whole = remaining(timeout)
    reserved = min(_FOR_REMOVAL, whole() / 3)

    def time_left() -> float:
        return whole() - reserved

    clear(time_left)
    try:
        yield time_left
    except BaseException:
        try:
            clear(whole)
        except StepError as error:
            LOGGER.warning("%s may remain on the node: %s", what, error)
        raise
    clear(whole)


def _is_over(time_left: TimeLeft) -> bool:
    # A server that knows the deadline may report a timeout a moment before it.
    return time_left() <= _PAUSE


def _wait(time_left: TimeLeft, problem: StepError) -> None:
    if _is_over(time_left):
        raise problem
    time.sleep(_PAUSE)


def _error_text(answer: Response) -> str:
    """Return dockerd's error message, as one line, with secrets masked."""
    from toolkit import redact  # noqa: PLC0415  # needed for errors only

    text = (
        _json_object(answer.body).get("message")
        or answer.body
        or f"{answer.status} {answer.reason}"
    )
    return _one_line(redact.text(str(text)))


def _json_object(text: str) -> dict[str, Any]:
    """Return a JSON object, or an empty one if the text is not a JSON object."""
    try:
        result = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return result if isinstance(result, dict) else {}


def _one_line(text: str) -> str:
    """Return a text as one line, complete, because a quoted program's output may be important."""
    return " ".join(text.split())
