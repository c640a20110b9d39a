"""A cache of what the runtime's binary reports, such as its defaults, valid for one boot.

Of the results that depend on a configuration, only that of the files without owned keys is cached;
it may contain passwords. The file is on a tmpfs, in the directory of the PID file, for root alone.
If it cannot be read or written, the binary is executed instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from runtimes.dataclass import dataclass, field
from runtimes.model import BinaryQuery, BinaryResult
from toolkit import __version__
from toolkit.errors import StepError
from toolkit.log import LOGGER
from toolkit.node import files, procfs, trust
from toolkit.node.host import Host
from toolkit.settings.layout import RunDir
from toolkit.settings.resolve import Settings

FORMAT: Final = 1
_LARGEST: Final = 16 << 20
_ELF: Final = b"\x7fELF"


@dataclass(slots=True, kw_only=True)
class AnswerCache:
    """The cached results of one binary. `path` is the cache file, `binary` its local path."""

    path: Path = field(default_factory=Path)
    binary: Path | None = None
    _head: dict[str, Any] = field(init=False, default_factory=dict)
    _known: dict[str, BinaryResult] = field(init=False, default_factory=dict)
    _is_new: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Read the cache file. Results of another binary, program version or boot are ignored."""
        if self.binary is not None and (identifier := _identity(self.binary)):
            self._head = {
                "format": FORMAT,
                "tool": __version__,
                "boot": procfs.boot_id(),
                "binary": identifier,
            }
            self._known = _read(self.path, self._head)

    def get(self, question: BinaryQuery) -> BinaryResult | None:
        """Return the cached result of a query; None if there is none."""
        return self._known.get(_mark(question)) if question.is_lasting else None

    def put(self, question: BinaryQuery, answer: BinaryResult) -> BinaryResult:
        """Cache the result of a query that may be cached if it succeeded; return the result."""
        if self._head and (question.is_lasting or question.is_stored) and answer.ok:
            mark = _mark(question)
            self._is_new = self._is_new or self._known.get(mark) != answer
            self._known[mark] = answer
        return answer

    def keep(self) -> None:
        """Write the cache file if there are new results. Errors are logged (debug) and ignored."""
        if not self._is_new:
            return
        answers = {
            mark: {"out": result.out, "err": result.err} for mark, result in self._known.items()
        }
        try:
            files.make_directory(self.path.parent)
            # What a binary prints of the configuration contains the passwords of registries.
            content = json.dumps({**self._head, "answers": answers}).encode() + b"\n"
            files.put(self.path, content, mode=0o600)
            self._is_new = False
        except StepError as error:
            LOGGER.debug("%s", error.message)


def identity(host: Host, binary: str | None) -> str:
    """Return an identifier of the file of the runtime's binary (a node path); empty if unknown."""
    path = host.resolve(binary) if binary else None
    return _identity(path) if path is not None else ""


def of(settings: Settings, host: Host, binary: str | None) -> AnswerCache:
    """Return the cache of the runtime's binary, which is named by its path on the node."""
    return AnswerCache(path=_path(settings), binary=host.resolve(binary) if binary else None)


def forget(settings: Settings) -> None:
    """Remove the cache file and its temporary files. Errors are ignored, since it is optional."""
    path = _path(settings)
    files.sweep(path, None)
    with contextlib.suppress(StepError):
        files.remove(path)


def _path(settings: Settings) -> Path:
    return RunDir.of(settings.pid_file).answers


def _read(path: Path, head: Mapping[str, Any]) -> dict[str, BinaryResult]:
    try:
        data = trust.read_own(path, _LARGEST)  # other users could forge the results
        # A file that others can read was written by an earlier version; it is written again.
        if data is None or path.stat().st_mode & 0o077:
            return {}
        content = json.loads(data)
        if any(content[name] != fact for name, fact in head.items()):
            return {}
        return {
            str(mark): BinaryResult(code=0, out=str(answer["out"]), err=str(answer["err"]))
            for mark, answer in content["answers"].items()
        }
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return {}


def _identity(binary: Path) -> str:
    """Return an identifier of an ELF file; empty for other files: a script may run any program."""
    try:
        with open(binary, "rb") as stream:
            is_program = stream.read(len(_ELF)) == _ELF
            status = os.fstat(stream.fileno())
    except OSError:
        return ""
    times = (status.st_mtime_ns, status.st_ctime_ns)
    facts = (binary, status.st_dev, status.st_ino, status.st_size, *times)
    return ":".join(map(str, facts)) if is_program else ""


def _mark(question: BinaryQuery) -> str:
    """Return the key of a query in the cache: a hash of its arguments and files."""
    staged = [data.hex() for data in question.files]
    return hashlib.sha256(json.dumps([question.argv, staged]).encode()).hexdigest()
