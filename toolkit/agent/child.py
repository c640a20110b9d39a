"""A child process of the agent, which runs one sync or one report, and the files that both share.

The child may import large modules: its memory is freed when it exits.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import toolkit
from toolkit import log
from toolkit.agent.report import SyncReport, from_json

RESIDENT: Final = "resident"
"""The first argument of the process that stays; `toolkit.__main__` knows it."""
NODE_REPORT: Final = "node-report"
"""The first argument of the process that reports to the API server."""

# --- JSON files in memory, shared with a child ----------------------------------------------------

# The descriptors of the lock, the report and the log in a child.
LOCK: Final = 100
REPORT: Final = 101
LOG: Final = 102
_LARGEST: Final = 16 << 20


def program() -> list[str]:
    """Return the command to run this program again, isolated from the working directory.

    It is named by its path: an isolated interpreter does not find the packages of an installation
    that has them in a directory of its own, and could find those of another one.
    """
    # -I ignores PYTHONUTF8, and in the locale of another encoding the names of files would be
    # decoded by it.
    return [
        sys.executable,
        "-IX",
        "utf8",
        *(["-B"] if sys.dont_write_bytecode else []),
        *(["-S"] if sys.flags.no_site else []),
        f"{toolkit.__path__[0]}/__main__.py",
    ]


def sync_command(kind: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a sync of a kind with the arguments of the command line."""
    return [*program(), "sync", f"--kind={kind}", *arguments]


def report_command() -> list[str]:
    """Return the command that reports the node's state to the API server."""
    return [*program(), NODE_REPORT, str(REPORT)]


def shared_json_fd(content: Mapping[str, Any]) -> int:
    """Return the descriptor of a new memory file with an object as JSON; a child may inherit it."""
    fd = os.memfd_create("nvidia-toolkit-report")
    write(fd, content)
    return fd


def write(fd: int, content: Mapping[str, Any]) -> None:
    """Replace the content of a file by an object as JSON."""
    data = json.dumps(content).encode()
    os.ftruncate(fd, 0)
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], done)


def read(fd: int) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none."""
    try:
        result = json.loads(os.pread(fd, _LARGEST, 0))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


# --- the child ------------------------------------------------------------------------------------

_CHUNK: Final = 65536
_DEFAULTS: Final = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCHLD,
    signal.SIGPIPE,
)  # fmt: skip


class Worker:
    """A running child. `fd` is the read end of its log, `began` the monotonic time of its start."""

    def __init__(
        self, kind: str, argv: list[str], given: Mapping[str, Any], lock: int | None = None
    ) -> None:
        """Start a child of a kind with a command.

        `given` is the content of the file in which the child leaves its report, `lock` the
        descriptor of the lock file for a child that changes the node. Raises OSError if the child
        cannot be started.
        """
        self.kind = kind
        self.began = time.monotonic()
        self._rest = b""
        self._report = shared_json_fd(given)
        self.fd, log_end = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(self.fd, False)
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            inherited = {0: null, REPORT: self._report, LOG: log_end}
            if lock is not None:
                inherited[LOCK] = lock
            try:
                self.pid = os.posix_spawn(
                    argv[0],
                    argv,
                    os.environ,
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, fd, number) for number, fd in inherited.items()
                    ],
                    setsigmask=(signal.SIGTERM, signal.SIGINT),  # until the child handles them
                    setsigdef=_DEFAULTS,
                )
            finally:
                os.close(null)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(log_end)

    def relay(self) -> None:
        """Write the complete log lines that the child wrote since the last call to our log."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.fd, _CHUNK):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    log.relay(line)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child. Its PID cannot be reused before the agent reaps it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def report(self) -> SyncReport:
        """Return the report of the child; empty if it exited without writing one."""
        return from_json(self.content(), self.kind)

    def content(self) -> dict[str, Any]:
        """Return what is in the file of the report, whatever it is."""
        return read(self._report)

    def close(self) -> None:
        """Close the descriptors of the log and the report."""
        os.close(self.fd)
        os.close(self._report)
