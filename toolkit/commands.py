"""What each command does. The command line imports this room only when it is sure that it needs all of it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from runtimes import registry
from runtimes.adapter import Adapter
from runtimes.model import RuntimeName
from toolkit import attest, choice, handover, lock, log, terminal, transaction
from toolkit.errors import Contradiction, StepFailed, ToolkitError, UsageProblem
from toolkit.settings import Settings, resolve
from toolkit.stop import Stop, end_at_once
from toolkit.view import Task, View, view

_PENDING: Final = 2
_NONE: Final = 2
_FALLBACK: Final[Mapping[str, str]] = MappingProxyType({"runtime": "docker"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A command as it was given: its settings, what they were made of, its own options, and the words.

    `manner` is how events are told.
    """

    settings: Settings
    options: Mapping[str, str]
    environment: Mapping[str, str]
    extra: Mapping[str, Any]
    arguments: tuple[str, ...]
    manner: Mapping[str, bool]

    @property
    def is_json(self) -> bool:
        """Tell whether the answer shall be JSON."""
        return bool(self.extra.get("output") == "json")

    @property
    def lock(self) -> Path:
        """Return the file that holds the node's lock."""
        return Path(self.settings.text("pid_file"))

    def task(self, stop: Stop | None = None, last: Mapping[str, str] | None = None) -> Task:
        """Return what is to be done, in the dialect of the node's runtime. Raises UsageProblem.

        `last` is what the round before found out about the runtime.
        """
        settings = choice.settle(self.settings, self.options, self.environment, last)
        return Task(settings=settings, adapter=_adapter(settings), stop=stop or Stop())

    def task_anyhow(self) -> Task:
        """Return the same where it only is to be seen or taken back: what cannot be told is no obstacle."""
        try:
            return self.task()
        except ToolkitError as error:
            against = (Contradiction(error.message, error.hint),)
            settings = replace(resolve(self.options, self.environment, _FALLBACK), against=against)
            return Task(settings=settings, adapter=_adapter(settings), stop=Stop())


def run(order: Order) -> int:
    """Set the node up; then stay, unless that is not wanted. Raises ToolkitError."""
    stop = Stop()
    stop.listen()
    task = order.task(stop)
    is_short = order.settings.flag("no_daemon")
    if order.is_json and not is_short:
        raise UsageProblem(
            ["-o json: a process that stays has no last word"],
            hint="add --no-daemon, or let it tell its story as JSON: --log-format=json",
        )
    with lock.held(order.lock) as fd:
        if is_short:
            began = time.monotonic()
            found = transaction.converge(task.settings, task.adapter, stop)
            _refuse_to_wait(found)
            if order.is_json:
                from toolkit import report  # noqa: PLC0415

                _say(report.run_json(found, seconds=time.monotonic() - began))
            return 128 + stop.signal if stop.signal is not None else 0
        from toolkit import daemon, rounds  # noqa: PLC0415  # each command pays for itself alone

        first = rounds.first(task)
        return daemon.stay(fd, first, order.arguments, order.manner, stop)


def keep(order: Order) -> int:
    """Do one round for the process that stays, and leave the report with it."""
    from toolkit import rounds  # noqa: PLC0415

    stop = Stop()
    stop.listen()
    given = handover.read(handover.REPORT)
    with lock.lent(order.lock, handover.LOCK):
        done = rounds.later(order.task(stop, given.get("found")), str(order.extra["kind"]), given)
    handover.write(handover.REPORT, done)
    return int(done["code"])


def plan(order: Order) -> int:
    """Show what would change."""
    from toolkit import report  # noqa: PLC0415

    end_at_once()
    found = view(order.task())
    if order.is_json:
        _say(report.plan_json(found))
    else:
        _say(report.plan_text(found, colour=terminal.is_colourful(sys.stdout)))
    return _PENDING if order.extra["exit_code"] and not found.is_noop else 0


def status(order: Order) -> int:
    """Say whether the node is as wanted."""
    from toolkit import report  # noqa: PLC0415

    end_at_once()
    task = order.task()
    found = view(task)
    unready = attest.unready(task, found)
    if order.is_json:
        _say(report.status_json(found, unready))
    else:
        _say(report.status_text(found, unready, colour=terminal.is_colourful(sys.stdout)))
    return _PENDING if order.extra["exit_code"] and not found.is_noop else 0


def detect(order: Order) -> int:
    """Say which runtimes are there, and which one would be set up."""
    from toolkit import roster  # noqa: PLC0415 - an install has no use for it

    end_at_once()
    found = roster.roster(choice.ask(order.settings, order.options, order.environment))
    _say(json.dumps(found, indent=2) + "\n" if order.is_json else roster.text(found))
    return _NONE if found["choice"]["problems"] else 0


def diagnose(order: Order) -> int:
    """Tell everything that a bug report should hold."""
    from toolkit import diagnosis  # noqa: PLC0415 - an install has no use for all the rooms that it looks into

    task = order.task_anyhow()
    with log.under_way("looking at everything"):
        found = diagnosis.collect(task)
    _say(json.dumps(found, indent=2) + "\n" if order.is_json else diagnosis.text(found))
    return 0


def revert(order: Order) -> int:
    """Take everything back. Raises ToolkitError."""
    from toolkit import removal, report  # noqa: PLC0415

    task = order.task_anyhow()
    stop = Stop()
    stop.listen()
    with lock.held(order.lock):
        done = removal.revert(task.settings, task.adapter, stop)
    _say(report.removal_json(done) if order.is_json else report.removal_text(done))
    return 128 + stop.signal if stop.signal is not None else 0


COMMANDS: Final[Mapping[str, Callable[[Order], int]]] = MappingProxyType(
    {
        "run": run,
        "plan": plan,
        "revert": revert,
        "status": status,
        "detect": detect,
        "diagnose": diagnose,
        "round": keep,
    }
)


def _refuse_to_wait(found: View) -> None:
    """Say what is left to be done by whoever runs us again: nobody waits for the driver here."""
    if waits_for := found.specification.waits_for:
        raise StepFailed(
            f"the CDI specification was not made: {waits_for}; the runtime and its files are as wanted",
            hint="run again once it is there; without --no-daemon it is waited for",
        )


def _adapter(settings: Settings) -> Adapter:
    name = RuntimeName(settings.text("runtime"))
    found = registry.adapter(name)
    if found is None:
        known = ", ".join(registry.ADAPTERS)
        raise UsageProblem([f"--runtime={name}: this version knows {known} only"])
    return found


def _say(text: str) -> None:
    """Write the answer. A reader that has seen enough is no bug."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
