"""What can go wrong, each with its exit code and the way out; docs/exit-codes.md lists the codes."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import NamedTuple


class Contradiction(NamedTuple):
    """What on the node speaks against the settings, and the way out."""

    problem: str
    way_out: str


class ToolkitError(Exception):
    """The root of all errors that a person may see. `hint` is the way out, a sentence of its own."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(message)


class UsageProblem(ToolkitError):
    """The options contradict each other or the node; every problem found is listed."""

    exit_code = 2

    def __init__(self, problems: Sequence[str], *, hint: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems), hint=hint)


class NodeNotUnderstood(ToolkitError):
    """A file on the node cannot be understood; nothing was touched."""

    exit_code = 3


class StepFailed(ToolkitError):
    """A step on the node failed."""

    exit_code = 4


class Conflict(StepFailed):
    """Somebody changed a file between the plan and its application; nothing was written."""


class NotReloaded(StepFailed):
    """The runtime did not take the change up within the time it was given."""


class Locked(ToolkitError):
    """Another instance holds the node's lock."""

    exit_code = 5


class Interrupted(ToolkitError):
    """Stopping was wished before anything was done."""

    def __init__(self, number: signal.Signals | None) -> None:
        number = number or signal.SIGTERM
        self.exit_code = 128 + number
        super().__init__(f"interrupted by {number.name}: nothing was changed")


class RolledBack(ToolkitError):
    """A change failed after it was begun, and the node was brought back to where it was before it."""

    exit_code = 6


class NotRolledBack(ToolkitError):
    """A change failed, and so did the way back; everything that is needed for it was kept."""

    exit_code = 7
