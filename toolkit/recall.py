"""What the node's binary said of itself alone, remembered for this boot: the same binary is not asked twice.

Nothing is taken from here that a configuration has a part in. The file lies on a
tmpfs beside the PID file; where it cannot be read or written, the binary is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from runtimes.model import Answer, Question
from toolkit import __version__, files, kernel
from toolkit.errors import NodeNotUnderstood, StepFailed
from toolkit.host import Host
from toolkit.log import LOGGER
from toolkit.settings import Settings

FORMAT: Final = 1
_ELF: Final = b"\x7fELF"


@dataclass(slots=True, kw_only=True)
class Recall:
    """The answers of one binary. `path` is where they are kept; `binary` is the program as seen here."""

    path: Path = field(default_factory=Path)
    binary: Path | None = None
    _head: dict[str, Any] = field(init=False, default_factory=dict)
    _known: dict[str, Answer] = field(init=False, default_factory=dict)
    _is_new: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Read what is remembered of this very file; of another one, or of another boot, it is nothing."""
        if self.binary is not None and (file := _identity(self.binary)):
            self._head = {"format": FORMAT, "tool": __version__, "boot": kernel.boot_id(), "binary": file}
            self._known = _read(self.path, self._head)

    def said(self, question: Question) -> Answer | None:
        """Return what the binary said to a question before; None where it has to be asked."""
        return self._known.get(_mark(question)) if question.is_lasting else None

    def learned(self, question: Question, answer: Answer) -> Answer:
        """Remember an answer that is of the binary alone, and return it. A complaint is not remembered."""
        if self._head and question.is_lasting and answer.ok:
            self._known[_mark(question)] = answer
            self._is_new = True
        return answer

    def keep(self) -> None:
        """Write down what is new. That it cannot be is no failure: the next run asks again."""
        if not self._is_new:
            return
        answers = {mark: {"out": said.out, "err": said.err} for mark, said in self._known.items()}
        try:
            files.make_directory(self.path.parent)
            files.put(self.path, json.dumps({**self._head, "answers": answers}).encode() + b"\n")
            self._is_new = False
        except StepFailed as error:
            LOGGER.debug("%s", error.message)


def identity(host: Host, binary: str | None) -> str:
    """Return what tells the file of the node's binary from every other; empty where it cannot be told."""
    seen = host.through(binary) if binary else None
    return _identity(seen) if seen is not None else ""


def of(settings: Settings, host: Host, binary: str | None) -> Recall:
    """Return what is remembered of the node's binary, which is named by its path on the node."""
    return Recall(path=_place(settings), binary=host.through(binary) if binary else None)


def forget(settings: Settings) -> None:
    """Remove what is remembered, and what a killed run left of it. What cannot be removed does no harm."""
    path = _place(settings)
    files.sweep(path, None)
    with contextlib.suppress(StepFailed):
        files.remove(path)


def _place(settings: Settings) -> Path:
    return Path(settings.text("pid_file")).with_name("answers.json")


def _read(path: Path, head: Mapping[str, Any]) -> dict[str, Answer]:
    try:
        seen = files.read(path)
        # What others can write would have them answer for the binary.
        if seen is None or seen.uid not in {0, os.geteuid()} or seen.mode & 0o022:
            return {}
        said = json.loads(seen.data)
        if any(said[name] != fact for name, fact in head.items()):
            return {}
        return {
            str(mark): Answer(code=0, out=str(answer["out"]), err=str(answer["err"]))
            for mark, answer in said["answers"].items()
        }
    except (
        NodeNotUnderstood,
        StepFailed,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return {}


def _identity(binary: Path) -> str:
    """Return what tells this file from every other; empty for what may run another one, as a script does."""
    try:
        with open(binary, "rb") as stream:
            is_program = stream.read(len(_ELF)) == _ELF
            seen = os.fstat(stream.fileno())
    except OSError:
        return ""
    facts = (binary, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    return ":".join(map(str, facts)) if is_program else ""


def _mark(question: Question) -> str:
    staged = [data.hex() for data in question.files]
    return hashlib.sha256(json.dumps([question.argv, staged]).encode()).hexdigest()
