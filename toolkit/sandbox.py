"""A pod or a container that is really started through a handler, and of which nothing stays on the node.

That a runtime knows a handler says little: the handler's binary may be missing,
or fail. What is started here is the least that runs through it.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

from toolkit import cri, elf, http, protowire
from toolkit.errors import StepFailed
from toolkit.http import Answer
from toolkit.log import LOGGER
from toolkit.stop import Timeout, countdown

Left: TypeAlias = Callable[[], float]

_NAME: Final = "nvidia-toolkit-check"
_NAMESPACE: Final = "nvidia-toolkit"
_NOT_FOUND: Final = 404
_PROGRAM: Final = "exit"
# Of the whole time, in seconds, what is kept for taking away what was started; never more than a third.
_FOR_REMOVAL: Final = 10.0
_PAUSE: Final = 0.1
# NamespaceOption of CRI's api.proto.
_OF_POD: Final = 0
_OF_NODE: Final = 2
# How a sandbox image is missed: containerd 1.6 to 2.3 say the first, CRI-O 1.36 the second, and older ones
# say "Error initializing source docker://..." alone.
_NO_IMAGE: Final = ("sandbox image", "pull image", "initializing source")


class NotTried(StepFailed):
    """The handler was not even tried, for want of something else: an image, or a program to put into one."""


def start_pod(socket: Path, handler: str, *, cgroup_parent: str, timeout: Timeout) -> None:
    """Start a pod through a handler over CRI, and remove it.

    It is the pod's sandbox alone, whose one process is the runtime's own pause
    program: CRI has no way to bring an image along. `cgroup_parent` is a slice
    (`system.slice`) where systemd puts the handler's containers into their
    cgroup, and "" where the runtime does so itself; the runtime refuses the one
    where it wants the other. `timeout` is for everything. Raises
    StepFailed with what the runtime said, or NotTried where the sandbox image
    is what is missing.
    """
    name = f"{_NAME}-{handler}"

    def clear(left: Left) -> None:
        _clear_pods(socket, name, left)

    with _traceless(clear, f"a pod of the handler {handler}", timeout) as left:
        request = _pod(name, handler, cgroup_parent)
        began = time.monotonic()
        try:
            cri.call(socket, "RunPodSandbox", request, timeout=left)
        except cri.CriFailed as error:
            raise _no_pod(handler, error, time.monotonic() - began if _is_over(left) else None) from error


def _pod(name: str, handler: str, cgroup_parent: str) -> bytes:
    """Return a RunPodSandboxRequest, by the field numbers of CRI's api.proto."""
    namespaces = protowire.encode([
        # The node's own network asks for no CNI plugin, which may not be there yet.
        (1, _OF_NODE),
        # A PID namespace for the whole pod. Without one CRI-O starts no process for a sandbox and never runs
        # the handler's binary (its `drop_infra_ctr`, by default on): every handler would seem to work.
        (2, _OF_POD),
    ])  # fmt: skip
    linux = protowire.encode([
        # Without a parent containerd makes the group /k8s.io, which stays; below the root nothing does.
        (1, cgroup_parent or "/"),
        (2, protowire.encode([(1, namespaces)])),
    ])  # fmt: skip
    # A new UID each time: of a try that hung, a runtime may still hold the name for a while.
    metadata = protowire.encode([(1, name), (2, str(uuid.uuid4())), (3, _NAMESPACE)])
    return protowire.encode([(1, protowire.encode([(1, metadata), (8, linux)])), (2, handler)])


def _no_pod(handler: str, error: cri.CriFailed, seconds: float | None) -> StepFailed:
    """Return what is to be raised; `seconds` passed where the time is over."""
    said = _line(error.detail or error.message)
    if any(words in said.lower() for words in _NO_IMAGE):
        return NotTried(
            f"no pod could be started to try the handler {handler}: there is no sandbox image: {said}",
            hint="this is no fault of the handler: pull or load that image on the node",
        )
    no_pod = f"no pod starts through the handler {handler}"
    if seconds is None:
        return StepFailed(f"{no_pod}: {said}", hint=error.hint)
    return StepFailed(
        f"{no_pod}: none is there after {seconds:.1f} s",
        hint="a runtime that has to pull its sandbox image first may just need more time",
    )


def _clear_pods(socket: Path, name: str, left: Left) -> None:
    """Remove every pod of that name: left by a try that failed, or by a run that was killed."""
    problem: StepFailed | None = None
    while True:
        try:
            pods = cri.sandboxes(socket, timeout=left)
        except cri.CriFailed as error:
            raise problem or error from error  # why it stayed says more than that there is no time left
        problem = None
        for pod in pods:
            if (pod.namespace, pod.name) != (_NAMESPACE, name):
                continue
            request = protowire.encode([(1, pod.id)])
            # To remove a pod is to kill it; but it may be asked first, as long as half of the time is left.
            with contextlib.suppress(cri.CriFailed):
                cri.call(socket, "StopPodSandbox", request, timeout=_half(left))
            try:
                cri.call(socket, "RemovePodSandbox", request, timeout=left)
            except cri.CriFailed as error:
                problem = StepFailed(f"the pod {pod.name} cannot be removed: {_line(error.message)}")
        if problem is None:
            return
        _wait(left, problem)


def start_container(socket: Path, handler: str, *, timeout: Timeout) -> None:
    """Start a container through a handler over Docker's HTTP API, see it end well, and remove it.

    Its image is made here and holds nothing but the smallest program. `timeout`,
    in seconds, is for everything. Raises StepFailed with what dockerd said, or
    NotTried where there is nothing that could be started.
    """
    # Docker takes fewer characters for a name than for a handler.
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", handler)
    name, image = f"{_NAME}-{safe}", f"{_NAME}:{safe}"

    def clear(left: Left) -> None:
        _delete(socket, f"/containers/{name}?force=1&v=1", left)
        _delete(socket, f"/images/{image}", left)

    with _traceless(clear, f"a container of the handler {handler}", timeout) as left:
        began = time.monotonic()
        try:
            _import(socket, handler, image, left)
            _run(socket, handler, name, image, left)
        except NotTried:
            raise
        except StepFailed as error:
            if not _is_over(left):
                raise
            passed = time.monotonic() - began
            raise StepFailed(f"{_no_container(handler)}: none has ended after {passed:.1f} s") from error


def _no_container(handler: str) -> str:
    return f"no container starts through the handler {handler}"


def _run(socket: Path, handler: str, name: str, image: str, left: Left) -> None:
    """Create the container, start it and wait for its end. Raises StepFailed."""
    container = {
        "Image": image,
        "Cmd": [f"/{_PROGRAM}"],
        "HostConfig": {
            "Runtime": handler,
            "NetworkMode": "none",
            # The node's own log driver may need a server that is not there; there is nothing to log.
            "LogConfig": {"Type": "none"},
        },
    }
    answer = Answer(status=0, reason="", body="")
    for target, body in (
        (f"/containers/create?name={name}", json.dumps(container).encode()),
        (f"/containers/{name}/start", None),
        (f"/containers/{name}/wait", None),
    ):
        answer = http.request(socket, "POST", target, body, timeout=left)
        if not answer.ok:
            raise StepFailed(f"{_no_container(handler)}: {_told(answer)}")
    code = _read(answer.body).get("StatusCode")
    if code != 0:
        raise StepFailed(f"{_no_container(handler)}: its program ended with {code}, not with 0")


def _import(socket: Path, handler: str, image: str, left: Left) -> None:
    """Make the image. Raises NotTried."""
    no_image = f"no container could be started to try the handler {handler}"
    program = elf.smallest()
    if program is None:
        raise NotTried(f"{no_image}: there is no program for this machine")
    repository, tag = image.split(":")
    query = urllib.parse.urlencode({"fromSrc": "-", "repo": repository, "tag": tag})
    answer = http.request(
        socket,
        "POST",
        f"/images/create?{query}",
        _archive(program),
        kind="application/x-tar",
        timeout=left,
    )
    # What goes wrong once the answer has begun is a line of it.
    lines = [_read(line) for line in answer.body.splitlines()]
    problems = [_line(str(line["error"])) for line in lines if "error" in line]
    if problems or not answer.ok:
        raise NotTried(f"{no_image}: its image cannot be made: {' '.join(problems) or _told(answer)}")


def _archive(program: bytes) -> bytes:
    """Return an archive that holds one program."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo(_PROGRAM)
        entry.mode, entry.size = 0o755, len(program)
        archive.addfile(entry, io.BytesIO(program))
    return out.getvalue()


def _delete(socket: Path, target: str, left: Left) -> None:
    """Remove something of Docker's that may not be there. Raises StepFailed."""
    while True:
        answer = http.request(socket, "DELETE", target, timeout=left)
        if answer.ok or answer.status == _NOT_FOUND:
            return
        # Another removal may be under way.
        what, _, _ = target.partition("?")
        _wait(left, StepFailed(f"{what} cannot be removed: {_told(answer)}"))


@contextlib.contextmanager
def _traceless(clear: Callable[[Left], None], what: str, timeout: Timeout) -> Iterator[Left]:
    """Clear away before and after; hand out what says how many seconds are left for what is between.

    Raises StepFailed where something cannot be cleared away, unless something
    worse is raised already.
    """
    whole = countdown(timeout)
    kept = min(_FOR_REMOVAL, whole() / 3)

    def left() -> float:
        return whole() - kept

    clear(left)
    try:
        yield left
    except BaseException:
        try:
            clear(whole)
        except StepFailed as error:
            LOGGER.warning("%s may be left on the node: %s", what, error)
        raise
    clear(whole)


def _is_over(left: Left) -> bool:
    # A server that is told how long it has may notice the end a moment earlier.
    return left() <= _PAUSE


def _wait(left: Left, problem: StepFailed) -> None:
    if _is_over(left):
        raise problem
    time.sleep(_PAUSE)


def _half(left: Left) -> Left:
    kept = left() / 2
    return lambda: left() - kept


def _told(answer: Answer) -> str:
    """Return what dockerd says of a failure, as one line."""
    said = _read(answer.body).get("message") or answer.body or f"{answer.status} {answer.reason}"
    return _line(str(said))


def _read(text: str) -> dict[str, Any]:
    """Return a JSON object; empty for what is not one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _line(text: str) -> str:
    """Return a text as one line: what a runtime quotes of a program's output may be the part that matters."""
    return " ".join(text.split())
