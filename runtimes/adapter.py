"""The contract of a runtime's dialect: what must be looked at, what is wanted, what may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from runtimes.edits import Format, Want
from runtimes.model import (
    Answer,
    Desired,
    Effective,
    Look,
    Observation,
    Question,
    Request,
    RuntimeName,
    Tree,
    Usage,
)

BANNER: Final = (
    "# Written by nvidia-toolkit. It holds only the keys of nvidia-toolkit, which takes it back\n"
    "# with `nvidia-toolkit revert`.\n"
)
"""The comment that opens a TOML file of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What an adapter asks for, file by file in the order of writing, and what a person should know."""

    wants: tuple[Want, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    low_level: tuple[str, ...] = ()
    fresh: frozenset[str] = frozenset()
    """Files that are ours alone: written from nothing each time, so that they hold only our keys."""
    whole: Mapping[str, bytes | None] = field(default_factory=dict)
    """Files that shall hold exactly this; None: that shall not be there."""
    made: frozenset[str] = frozenset()
    """Handlers that the distribution makes by itself, of which it has to have made these."""
    unmade: str = ""
    """What the distribution's next start will do, where it has not made them yet."""


class HangUp(StrEnum):
    """What a SIGHUP does to a runtime's daemon."""

    ENDS = "ends"
    """The process dies; whatever supervises it starts it again."""
    RELOADS = "reloads"
    """It uses the new handlers, in the same process."""
    FORGETS = "forgets"
    """It reads them and says so, but does not use them until it is started again."""


class Adapter(Protocol):
    """A dialect. It looks at nothing itself and never builds bytes."""

    name: RuntimeName
    form: Format
    executables: frozenset[str]
    """Base names that the daemon's executable may have."""
    banner: str
    """The comment that opens a file of ours; empty where the format has no comments."""
    essential: tuple[str, ...]
    """The keys without which the table of a handler is not valid."""
    config_flags: tuple[str, ...]
    """The flags by which the daemon is told its root config."""
    speaks_first: bool
    """Whether the daemon says something on its socket before it is spoken to."""
    speaks_cri: bool
    """Whether the daemon can be asked over CRI."""
    directory_flags: tuple[str, ...]
    """The flags by which the daemon is told its drop-in directory; empty where it has none."""
    on_hangup: HangUp
    confirmation: Request | None
    """What to ask the running daemon to see that it took a change up; None: it says nothing of that."""

    def look(self, desired: Desired, seen: Observation) -> Look:
        """Return what must be looked at next; empty when everything has been."""

    def questions(self, desired: Desired, seen: Observation) -> tuple[Question, ...]:
        """Return the questions to the node's binary that are not answered yet."""

    def wants(self, desired: Desired, seen: Observation) -> Wants:
        """Return the keys that are wanted. Raises NotUnderstood."""

    def trial(
        self, desired: Desired, seen: Observation, after: Mapping[str, bytes | None]
    ) -> Question | None:
        """Return the question that loads the candidate, or None where the binary cannot tell."""

    def verdict(self, desired: Desired, seen: Observation, answer: Answer) -> Sequence[str]:
        """Return every effect of the candidate that nobody asked for, or that is missing, in words."""

    def unconfirmed(self, desired: Desired, files: Mapping[str, bytes | None], body: str) -> Sequence[str]:
        """Return where the daemon's answer to `confirmation` is not what the files say, in words."""

    def effective(self, desired: Desired, seen: Observation) -> Effective:
        """Return what the files make the daemon have when it starts, as far as its binary says so."""

    def programs(self, desired: Desired, seen: Observation) -> Mapping[str, Sequence[str]]:
        """Return the programs that the handlers in effect name, by handler: a path, or a name to be searched.

        Without an answer of the binary these are those of the files. Raises NotUnderstood.
        """

    def running(self, config: Tree | None, body: str) -> Effective:
        """Return what the running daemon has: by CRI's verbose status, or by its answer to `confirmation`.

        Raises ValueError where the answer cannot be read.
        """

    def defined(self, desired: Desired, files: Mapping[str, bytes | None]) -> frozenset[str]:
        """Return which of our handlers some files define."""

    def stone(self, path: str, before: bytes | None, after: bytes | None) -> bytes | None:
        """Return what the daemon must read before `after` to notice what is gone; None: nothing."""

    def usage(self, desired: Desired, answers: Mapping[str, str]) -> Usage:
        """Return whom the daemon says to run through our handlers, and what to ask it to know more."""

    def removal_verdict(self, desired: Desired, seen: Observation, answer: Answer) -> Sequence[str]:
        """Return every effect of a removal that would harm the runtime, in words."""

    def handler_in(self, info: Mapping[str, Any]) -> str:
        """Return the handler that a pod's verbose status names; empty where it names none."""

    def task_files(self, desired: Desired, seen: Observation) -> Sequence[str]:
        """Return globs of files that hold the path of the binary that a running container uses."""
