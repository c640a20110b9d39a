"""What the running daemon itself says: it, and not the file, decides whether a change was taken up."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from runtimes.adapter import Adapter
from runtimes.model import Observation
from toolkit import cri, unix
from toolkit.detect import Scene
from toolkit.errors import NotReloaded, StepFailed

_PAUSE: Final = 0.05
_SHORT: Final = 12
_SOON: Final = 5.0
_LARGEST: Final = 32 * 1024 * 1024


def confirmed(
    place: Scene,
    adapter: Adapter,
    files: Mapping[str, bytes | None],
    *,
    timeout: float,
    over_cri: bool = False,
) -> None:
    """Wait until the daemon has what its files say. `timeout` is in seconds.

    `over_cri` tells that CRI worked before, so it has to work, and to name the
    handlers. Raises NotReloaded where it does not, with what is missing.
    """
    deadline = time.monotonic() + timeout
    while True:
        left = max(1.0, deadline - time.monotonic())
        missing: list[str] = []
        try:
            if adapter.confirmation is not None:
                body = get(place.socket, adapter.confirmation.path, timeout=left)
                missing += adapter.unconfirmed(place.desired, files, body)
            if over_cri:
                missing += _unconfirmed_over_cri(place, adapter, files, timeout=left)
        except StepFailed as error:
            missing = [error.message]
        if not missing:
            return
        if time.monotonic() >= deadline:
            raise NotReloaded(
                f"the runtime did not take the change up: {'; '.join(missing)}",
                hint="look at the runtime's own log; `nvidia-toolkit revert` gives the files back",
            )
        time.sleep(_PAUSE)


def has_cri(place: Scene, adapter: Adapter) -> bool:
    """Tell whether the runtime answers over CRI now."""
    try:
        return adapter.speaks_cri and bool(cri.status(place.socket, timeout=_SOON))
    except StepFailed:
        return False


def _unconfirmed_over_cri(
    place: Scene, adapter: Adapter, files: Mapping[str, bytes | None], *, timeout: float
) -> list[str]:
    """Return what is wrong with the runtime as it says over CRI: kubelet asks nothing else."""
    status = cri.status(place.socket, timeout=timeout)
    if not status.runtime_ready:
        return [f"the runtime is not ready: {'; '.join(status.reasons)}"]
    if status.handlers is None:
        return []
    wanted = adapter.defined(place.desired, files)
    known = set(status.handlers)
    problems = [f"the runtime does not know the handler {handler}" for handler in sorted(wanted - known)]
    return problems + [
        f"the runtime still knows the handler {handler}"
        for handler in sorted((place.desired.names & known) - wanted)
    ]


def using(place: Scene, adapter: Adapter, seen: Observation, *, timeout: float) -> tuple[str, ...]:
    """Return the names of containers that run through our handlers, as the runtime itself says.

    `timeout` is in seconds. Raises StepFailed where it cannot be asked.
    """
    found = list(_noted(place, adapter, seen))
    if adapter.speaks_cri:
        pods, asking = _pods(place, adapter, timeout=timeout)
        found = [pods.get(name, name[:_SHORT]) for name in found] + asking
    answers: dict[str, str] = {}
    while True:
        usage = adapter.usage(place.desired, answers)
        if not usage.requests:
            return tuple(dict.fromkeys([*found, *usage.using]))
        for request in usage.requests:
            answers[request.path] = get(place.socket, request.path, timeout=timeout, gone="null")


def _pods(place: Scene, adapter: Adapter, *, timeout: float) -> tuple[dict[str, str], list[str]]:
    """Return the pod of every sandbox and container by ID, and the pods that asked for a handler of ours."""
    deadline = time.monotonic() + timeout
    while True:
        left = max(1.0, deadline - time.monotonic())
        try:
            pods = cri.sandboxes(place.socket, timeout=left)
            containers = cri.containers(place.socket, timeout=left)
            handlers = {pod.id: _handler(place, adapter, pod, timeout=left) for pod in pods}
        except cri.CriFailed as error:
            if error.code == "UNIMPLEMENTED":
                return {}, []  # CRI is off in this runtime: it has no pods
            if time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE)  # just started, and not ready yet
        else:
            names = {pod.id: f"{pod.namespace}/{pod.name}" for pod in pods}
            names |= {c.id: names[c.sandbox] for c in containers if c.sandbox in names}
            return names, [names[pod.id] for pod in pods if handlers[pod.id] in place.desired.names]


def _handler(place: Scene, adapter: Adapter, pod: cri.Sandbox, *, timeout: float) -> str:
    if pod.handler:
        return pod.handler
    try:
        return adapter.handler_in(cri.sandbox_info(place.socket, pod.id, timeout=timeout))
    except cri.CriFailed as error:
        if error.code == "NOT_FOUND":
            return ""  # it has gone since it was listed
        raise


def _noted(place: Scene, adapter: Adapter, seen: Observation) -> Iterator[str]:
    """Yield the containers whose shim noted a binary of ours, whatever handler they were started by."""
    binaries = {handler.binary for handler in place.desired.handlers}
    for pattern in adapter.task_files(place.desired, seen):
        for path in place.host.glob(pattern):
            with contextlib.suppress(OSError):
                if place.host.local(path).read_text(encoding="utf-8").strip() in binaries:
                    yield Path(path).parent.name


def get(path: Path, target: str, *, timeout: float, gone: str | None = None) -> str:
    """GET a target over HTTP on a Unix socket; `timeout` is in seconds.

    `gone` is returned for what is not there any more. Raises StepFailed.
    """
    client = _Client(path, timeout)
    try:
        client.request("GET", target, headers={"Host": "localhost"})
        answer = client.getresponse()
        body = answer.read(_LARGEST).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise StepFailed(f"{path} does not answer GET {target}: {error}") from error
    finally:
        client.close()
    if answer.status == http.client.NOT_FOUND and gone is not None:
        return gone
    if answer.status != http.client.OK:
        raise StepFailed(f"{path} answers GET {target} with {answer.status} {answer.reason}")
    return body


class _Client(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self._patience = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        unix.connect(self.sock, self._path, deadline=time.monotonic() + self._patience)
        self.sock.settimeout(self._patience)
