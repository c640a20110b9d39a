"""The system calls of a run, as strace lists them: which change something, and how each may fail.

strace counts the calls of each name from 1, so a call is known by its name and number; one that
opens a file, since a run opens a changing number of others below /proc, by its number among those
with the same path.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

NAMES: Final = (
    "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat",
    "link", "linkat", "symlink", "symlinkat", "mknod", "mknodat", "creat",
)  # fmt: skip
"""What changes a name."""
CONTENT: Final = (
    "write", "pwrite64", "pwritev", "copy_file_range", "sendfile", "fallocate", "truncate",
    "ftruncate",
)  # fmt: skip
ATTRIBUTES: Final = (
    "chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat",
    "setxattr", "lsetxattr", "fsetxattr", "utimensat",
)  # fmt: skip
DURABLE: Final = ("fsync", "fdatasync", "sync_file_range", "syncfs")
SIGNALS: Final = ("kill", "pidfd_send_signal")
OPENS: Final = ("open", "openat", "openat2")
COUNTED: Final = (*NAMES, *CONTENT, *ATTRIBUTES, *DURABLE, *SIGNALS)

RUNTIME: Final = "/proc/RUNTIME/"
"""Stands in a path for the directory of the runtime's process, whose PID varies."""
KILL: Final = "KILL"
PERSISTENT: Final = {
    # What a full disk refuses, and what a disk does that became read-only.
    "ENOSPC": (
        "rename", "renameat", "renameat2", "mkdir", "mkdirat", "link", "linkat", "symlink",
        "symlinkat", "write", "pwrite64", "copy_file_range", "sendfile", "fallocate",
    ),
    "EROFS": (*NAMES, *ATTRIBUTES),
}  # fmt: skip
_LINE: Final = re.compile(r"^(\w+)\((.*)\) += (-?\d+|\?)(.*)$")
_PATH: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_OF_FD: Final = re.compile(r"(?:^|, )\d+<([^>]*)>")
_NAMELESS: Final = re.compile(r"/#\d+")
_OF_ITSELF: Final = re.compile(r"/proc/\d+/fd/")
_OF_A_PROCESS: Final = re.compile(r"/proc/\d+/")
_WRITES: Final = re.compile(r"\bO_(WRONLY|RDWR|CREAT|TMPFILE|TRUNC)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a run: its name, what it was about, and how strace is told to count up to it."""

    name: str
    about: str
    number: int
    path: str = ""
    writes: bool = True

    def __str__(self) -> str:
        return f"{self.name} {self.about} (no. {self.number})"

    def refusals(self, tree: str) -> tuple[str, ...]:
        """Return how the kernel may refuse it. `tree` holds the node; reading the rest works."""
        if self.path:
            if self.writes:
                return ("ENOSPC", "EIO", "EROFS", "EACCES", "EMFILE")
            return ("EIO", "EACCES", "EMFILE") if self.path.startswith(tree) else ("EMFILE",)
        if self.name in SIGNALS:
            return ("EPERM", "ESRCH")
        return (
            ("ENOSPC", "EIO")
            if self.name in (*CONTENT, *DURABLE)
            else ("ENOSPC", "EIO", "EROFS", "EACCES")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens at a call: `error` is an errno's name or KILL.

    `later` are calls of other names that fail from there on, too, each by its number (an error that
    stays).
    """

    call: Call
    error: str
    later: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.error}{' from then on' if self.later else ''} at {self.call}"

    def strace(self, log: str, runtime: int) -> list[str]:
        """Return the arguments that make strace do it, on a node whose runtime has this PID."""
        how = f"signal={self.error}" if self.error == KILL else f"error={self.error}"
        when = {name: f"{number}+" for name, number in self.later.items()} or {
            self.call.name: str(self.call.number)
        }
        words = ["-o", log, "-e", f"trace={_set(when)}"]
        words += (
            ["-P", self.call.path.replace(RUNTIME, f"/proc/{runtime}/")] if self.call.path else []
        )
        for name, number in when.items():
            words += ["-e", f"inject=?{name}:{how}:when={number}"]
        return words


def listing(log: str) -> list[str]:
    """Return the arguments that make strace list the calls of a run."""
    return ["-y", "-o", log, "-e", f"trace={_set((*COUNTED, *OPENS))}"]


def parsed(lines: Iterable[str], runtime: int) -> list[Call]:
    """Return the calls of a listing, in order.

    What was opened below /proc of other processes than the `runtime` of the beginning is left out:
    nobody knows their PIDs before.
    """
    numbers: Counter[tuple[str, str]] = Counter()
    found = []
    for line in lines:
        if (match := _LINE.match(line)) is None:
            continue
        name, words = match[1], match[2]
        opens = name in OPENS
        quoted = _PATH.search(words)
        path = quoted[1].replace(f"/proc/{runtime}/", RUNTIME) if opens and quoted else ""
        if _OF_A_PROCESS.match(path):
            continue
        numbers[name, path] += 1
        call = Call(
            name=name,
            about=_OF_ITSELF.sub("/proc/self/fd/", _NAMELESS.sub("/#", _about(name, words))),
            number=numbers[name, path],
            path=path,
            writes=not opens or _WRITES.search(words) is not None,
        )
        found.append(call)
    return found


def persistent(calls: Sequence[Call], error: str) -> list[Fault]:
    """Return every beginning of an error that stays."""
    names = PERSISTENT[error]
    next_ones = dict.fromkeys(names, 1)
    found = []
    for call in calls:
        if call.name in names:
            found.append(Fault(call=call, error=error, later=dict(next_ones)))
            next_ones[call.name] += 1
    return found


def _about(name: str, words: str) -> str:
    found: list[str] = _OF_FD.findall(words)
    paths: list[str] = _PATH.findall(words)
    if name.endswith("at") and paths and found and not paths[0].startswith("/"):
        paths[0] = f"{found[0]}/{paths[0]}"  # as seen from a directory that is open
    if name not in CONTENT and paths:
        return " -> ".join(paths)
    return found[-1] if found else ""  # what is copied from comes first


def _set(names: Iterable[str]) -> str:
    return ",".join(f"?{name}" for name in names)
