"""A container through each of our handlers, where that was asked for: `--verify=run`."""

from __future__ import annotations

from typing import Final

from toolkit import attest, health
from toolkit.log import LOGGER
from toolkit.memory import Job
from toolkit.options import RestartMode, VerifyMode
from toolkit.view import Task, View

_LEAST: Final = 1.0
_SLICE: Final = "system.slice"


def start(task: Task, found: View) -> None:
    """Start a container through each of our handlers, where that was asked for.

    What keeps a handler from being tried, an image that cannot be had, is not
    the handler's fault and only told. Raises StepFailed.
    """
    is_told = found.way.mode is not RestartMode.NONE and not task.settings.flag("no_runtime_config")
    if task.settings.text("verify") != VerifyMode.RUN or found.job is not Job.INSTALL or not is_told:
        return
    from toolkit import sandbox  # noqa: PLC0415  # it makes an image, and brings along what that takes

    task.tally.phase = "start"
    by_systemd = health.once(found.place, task.adapter, timeout=attest.soon(task)).has.by_systemd
    for handler in sorted(task.adapter.defined(found.place.desired, found.files_after)):
        try:
            _start(task, found, handler, _SLICE if handler in by_systemd else "")
            LOGGER.info("a container was started through the handler %s", handler)
        except sandbox.NotTried as error:
            LOGGER.warning("%s", error.message)


def _start(task: Task, found: View, handler: str, cgroup_parent: str) -> None:
    from toolkit import sandbox  # noqa: PLC0415

    socket, timeout = found.place.socket, task.patience().allowing(_LEAST)
    if task.adapter.speaks_cri:
        sandbox.start_pod(socket, handler, cgroup_parent=cgroup_parent, timeout=timeout)
    else:
        sandbox.start_container(socket, handler, timeout=timeout)
