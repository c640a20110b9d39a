"""The contract of a runtime's dialect: what must be looked at, what is wanted, what may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtimes.edits import Format, Want
from runtimes.model import Answer, Desired, Look, Observation, Question, RuntimeName


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What an adapter asks for, file by file in the order of writing, and what a person should know."""

    wants: tuple[Want, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    low_level: tuple[str, ...] = ()
    fresh: frozenset[str] = frozenset()
    """Files that are ours alone: written from nothing each time, so that they hold only our keys."""


class Adapter(Protocol):
    """A dialect. It looks at nothing itself and never builds bytes."""

    name: RuntimeName
    form: Format
    executables: frozenset[str]
    """Base names that the daemon's executable may have."""
    banner: str
    """The comment that opens a file of ours."""

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

    def removal_verdict(self, desired: Desired, seen: Observation, answer: Answer) -> Sequence[str]:
        """Return every effect of a removal that would harm the runtime, in words."""

    def task_files(self, desired: Desired, seen: Observation) -> Sequence[str]:
        """Return globs of files that hold the path of the binary that a running container uses."""
