"""List the containers that use our handlers, from the runtime's API and containerd's shim files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from runtimes.adapter import Adapter
from runtimes.model import Observation
from toolkit.deadline import Cancellation, Deadline, Timeout
from toolkit.errors import Interrupted, StepError, ToolkitError
from toolkit.node import files
from toolkit.runtime.client import cri, http
from toolkit.runtime.locate import Target

_PAUSE: Final = 0.05
_LEAST: Final = 1.0
_SHORT: Final = 12
_MOST_NAMED: Final = 5


def using_before(
    target: Target,
    adapter: Adapter,
    observation: Observation,
    deadline: Deadline,
    stop: Cancellation,
    *,
    by_name: bool = False,
) -> tuple[str, ...]:
    """Return the same as `using`, for a check before any change.

    Raises Interrupted instead of StepError if the program is stopping.
    """
    try:
        return using(target, adapter, observation, deadline, by_name=by_name)
    except StepError as error:
        if stop.is_requested:
            raise Interrupted(stop.signal) from error
        raise


def using(
    target: Target,
    adapter: Adapter,
    observation: Observation,
    deadline: Deadline,
    *,
    by_name: bool = False,
) -> tuple[str, ...]:
    """Return the names of the containers and pods that use our handlers.

    With `by_name`, only pods that requested the handler explicitly count. If the runtime is down,
    only the files of its shims are read, because shims and their containers run on without it.
    Raises StepError if a running runtime does not answer.
    """
    result = list(_from_shims(target, adapter, observation))
    if target.process is None:
        return tuple(name[:_SHORT] for name in result)
    result = [] if by_name else result
    if adapter.supports_cri:
        pods, requesting = _pods(target, adapter, deadline)
        result = [pods.get(name, name[:_SHORT]) for name in result] + requesting
    answers: dict[str, str] = {}
    while True:
        try:
            usage = adapter.usage(target.desired, answers)
        except ValueError as error:
            raise StepError(str(error)) from error
        if not usage.requests:
            return tuple(dict.fromkeys([*result, *usage.using]))
        for request in usage.requests:
            timeout = deadline.at_least(_LEAST)
            answers[request.path] = http.get(
                target.socket, request.path, timeout=timeout, gone="null"
            )


def describe(using: tuple[str, ...], what: str) -> str:
    """Return a message with the number and the first names of the containers that use `what`."""
    users = "1 container still uses" if len(using) == 1 else f"{len(using)} containers still use"
    return f"{users} {what}: {', '.join(sorted(using)[:_MOST_NAMED])}"


def _pods(target: Target, adapter: Adapter, deadline: Deadline) -> tuple[dict[str, str], list[str]]:
    """Return pod names by sandbox and container ID, and the pods that requested our handlers."""
    while True:
        timeout = deadline.at_least(_LEAST)
        try:
            pods = cri.sandboxes(target.socket, timeout=timeout)
            containers = cri.containers(target.socket, timeout=timeout)
            handlers = {pod.id: _handler(target, adapter, pod, timeout=timeout) for pod in pods}
        except cri.CriFailed as error:
            if error.code == "UNIMPLEMENTED":
                return {}, []  # CRI is off in this runtime: it has no pods
            if deadline.is_over:
                raise
            deadline.pause(_PAUSE)  # the runtime may have just started and not be ready yet
        else:
            names = {pod.id: f"{pod.namespace}/{pod.name}" for pod in pods}
            names |= {c.id: names[c.sandbox] for c in containers if c.sandbox in names}
            return names, [
                names[pod.id] for pod in pods if handlers[pod.id] in target.desired.names
            ]


def _handler(target: Target, adapter: Adapter, pod: cri.Sandbox, *, timeout: Timeout) -> str:
    if pod.handler:
        return pod.handler
    try:
        return adapter.handler_in(cri.sandbox_info(target.socket, pod.id, timeout=timeout))
    except cri.CriFailed as error:
        if error.code == "NOT_FOUND":
            return ""  # the pod was removed after it was listed
        raise


def _from_shims(target: Target, adapter: Adapter, observation: Observation) -> Iterator[str]:
    """Yield the IDs of containers whose shim recorded one of our binaries, whatever the handler."""
    binaries = {handler.binary.encode() for handler in target.desired.handlers}
    for pattern in adapter.task_files(target.desired, observation):
        for path in target.host.glob(pattern):
            with contextlib.suppress(OSError, ToolkitError):
                snapshot = files.read(target.host.file(path))
                if snapshot is not None and snapshot.data.strip() in binaries:
                    yield Path(path).parent.name
