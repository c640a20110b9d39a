"""Who runs through our handlers: as the runtime itself says, and as containerd's shims noted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from runtimes.adapter import Adapter
from runtimes.model import Observation
from toolkit import cri, http
from toolkit.detect import Scene
from toolkit.errors import Interrupted, StepFailed
from toolkit.stop import Patience, Stop, Timeout

_PAUSE: Final = 0.05
_LEAST: Final = 1.0
_SHORT: Final = 12
_MOST_NAMED: Final = 5


def using_before(
    place: Scene,
    adapter: Adapter,
    seen: Observation,
    patience: Patience,
    stop: Stop,
    *,
    by_name: bool = False,
) -> tuple[str, ...]:
    """Ask that before anything is touched. Raises Interrupted where it was broken off by the wish to stop."""
    try:
        return using(place, adapter, seen, patience, by_name=by_name)
    except StepFailed as error:
        if stop.is_wished:
            raise Interrupted(stop.signal) from error
        raise


def using(
    place: Scene, adapter: Adapter, seen: Observation, patience: Patience, *, by_name: bool = False
) -> tuple[str, ...]:
    """Return the names of containers that run through our handlers, as the runtime itself says.

    Those `by_name` asked for a handler: where only that goes, and not what it
    runs, one that got it as the default does not miss it. Of a runtime that is
    down only what its shims noted is known: they and their containers live on
    without it. Raises StepFailed where one that is there cannot be asked.
    """
    found = list(_noted(place, adapter, seen))
    if place.owner is None:
        return tuple(name[:_SHORT] for name in found)
    found = [] if by_name else found
    if adapter.speaks_cri:
        pods, asking = _pods(place, adapter, patience)
        found = [pods.get(name, name[:_SHORT]) for name in found] + asking
    answers: dict[str, str] = {}
    while True:
        try:
            usage = adapter.usage(place.desired, answers)
        except ValueError as error:
            raise StepFailed(str(error)) from error
        if not usage.requests:
            return tuple(dict.fromkeys([*found, *usage.using]))
        for request in usage.requests:
            timeout = patience.allowing(_LEAST)
            answers[request.path] = http.get(place.socket, request.path, timeout=timeout, gone="null")


def words(using: tuple[str, ...], what: str) -> str:
    """Return who uses something, as a person would say it."""
    who = "1 container still uses" if len(using) == 1 else f"{len(using)} containers still use"
    return f"{who} {what}: {', '.join(sorted(using)[:_MOST_NAMED])}"


def _pods(place: Scene, adapter: Adapter, patience: Patience) -> tuple[dict[str, str], list[str]]:
    """Return the pod of every sandbox and container by ID, and the pods that asked for a handler of ours."""
    while True:
        left = patience.allowing(_LEAST)
        try:
            pods = cri.sandboxes(place.socket, timeout=left)
            containers = cri.containers(place.socket, timeout=left)
            handlers = {pod.id: _handler(place, adapter, pod, timeout=left) for pod in pods}
        except cri.CriFailed as error:
            if error.code == "UNIMPLEMENTED":
                return {}, []  # CRI is off in this runtime: it has no pods
            if patience.is_over:
                raise
            patience.pause(_PAUSE)  # just started, and not ready yet
        else:
            names = {pod.id: f"{pod.namespace}/{pod.name}" for pod in pods}
            names |= {c.id: names[c.sandbox] for c in containers if c.sandbox in names}
            return names, [names[pod.id] for pod in pods if handlers[pod.id] in place.desired.names]


def _handler(place: Scene, adapter: Adapter, pod: cri.Sandbox, *, timeout: Timeout) -> str:
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
    binaries = {handler.binary.encode() for handler in place.desired.handlers}
    for pattern in adapter.task_files(place.desired, seen):
        for path in place.host.glob(pattern):
            with contextlib.suppress(OSError):
                if place.host.local(path).read_bytes().strip() in binaries:
                    yield Path(path).parent.name
