"""The errors that a user may see, each with an exit code and a hint (see docs/exit-codes.md)."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class Answer(IntEnum):
    """The exit codes of a command that did what was asked, and whose answer is no.

    They differ from those of all errors, so that a script can tell a node with pending changes from
    a misspelt option: as with `terraform plan -detailed-exitcode` and `kubectl diff`, whose own
    numbers are errors here.
    """

    PENDING = 8
    """Changes are pending, or the node is not ready or not alive."""
    REFUSED = 9
    """`run` would be refused."""


class Contradiction(NamedTuple):
    """A conflict between the settings and the node, and a hint how to resolve it."""

    problem: str
    hint: str


class ToolkitError(Exception):
    """The base class of all errors that a user may see. `hint` says how to fix it, or is empty."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(message)


class UsageProblem(ToolkitError):
    """Invalid options, or options that do not fit the node. `problems` lists every one of them."""

    exit_code = 2

    def __init__(self, problems: Sequence[str], *, hint: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems), hint=hint)


class NodeConfigError(ToolkitError):
    """A file on the node cannot be parsed; nothing was changed."""

    exit_code = 3


class StepError(ToolkitError):
    """A step on the node failed."""

    exit_code = 4


class Conflict(StepError):
    """A conflicting change: a file was modified after the plan was made; it was not written."""


class ReloadError(StepError):
    """The runtime did not load the change in time."""


class HandlerAtFault(StepError):
    """No container starts through a handler of a node whose files did not change."""


class Locked(ToolkitError):
    """Another instance holds the node's lock."""

    exit_code = 5


class Interrupted(ToolkitError):
    """The program received a signal before it changed anything."""

    def __init__(self, number: signal.Signals | None) -> None:
        number = number or signal.SIGTERM
        self.exit_code = 128 + number
        super().__init__(f"interrupted by {number.name}: nothing was changed")


class RolledBack(ToolkitError):
    """A change failed and was rolled back; the node is as it was before."""

    exit_code = 6


class NotRolledBack(ToolkitError):
    """A change failed, and so did its rollback. Everything that a later rollback needs was kept."""

    exit_code = 7
