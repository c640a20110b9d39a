"""The only place that starts a process: argv only, no shell, a bounded time, both streams kept."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from toolkit import log
from toolkit.errors import StepFailed
from toolkit.log import LOGGER, facts
from toolkit.stop import Timeout

SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT: Final = {"PATH": SEARCH_PATH, "LC_ALL": "C", "HOME": "/"}
_MEMORY: Final = ("/dev/shm",)  # noqa: S108  # a directory of our own is made below it
_TAIL: Final = 2000
_SHOWN: Final = 400
_SLICE: Final = 0.25
_LAST_WORDS: Final = 2.0
# Anything else, memory or descriptors that ran out, says nothing of the program.
_UNFIT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENOEXEC, errno.ELIBBAD})


class NotStarted(StepFailed):
    """A program cannot be run here at all: it, its loader or its root is missing, or not for us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a process ended: argv, exit status, stdout, and the end of stderr."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        """Tell whether it succeeded."""
        return self.code == 0


def run(
    argv: Sequence[str],
    *,
    root: Path | None = None,
    timeout: Timeout = 30,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Run a command to its end, in the file system below `root` where one is given.

    `timeout` is in seconds, or a function that says how many are left; a process
    that takes longer is killed. Raises NotStarted where the command cannot be
    run here, and StepFailed where something else failed or its time was over.
    """
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(pass_fds),
            env={**_ENVIRONMENT, **(environment or {})},
            preexec_fn=_entering(root),  # noqa: PLW1509  # there are no threads here
            start_new_session=True,
        )
        try:
            out, err_bytes = _communicate(child, timeout)
        except BaseException:
            _end(child)
            raise
    except subprocess.TimeoutExpired as error:
        message = f"`{' '.join(argv)}` did not end within {error.timeout:g} s and was killed"
        raise StepFailed(message) from error
    except subprocess.SubprocessError as error:
        # All that is said of what goes wrong in the child before the program begins, and that is a chroot.
        raise NotStarted(
            f"`{' '.join(argv)}` cannot be started: the node's root {root} cannot be entered",
            hint="the pod needs `privileged: true`, or the capability SYS_CHROOT",
        ) from error
    except OSError as error:
        kind = NotStarted if error.errno in _UNFIT else StepFailed
        raise kind(f"`{' '.join(argv)}` cannot be started: {error}") from error
    err = err_bytes.decode(errors="replace")[-_TAIL:].strip()
    _log(argv, child.returncode, err)
    return Result(argv=tuple(argv), code=child.returncode, out=out.decode(errors="replace"), err=err)


def _log(argv: Sequence[str], code: int, err: str) -> None:
    """Tell how a command ended. One that failed may still be an answer; nobody shall have to guess it."""
    words = " ".join(argv)
    if code == 0:
        LOGGER.debug("`%s` ended well", words)
        return
    tail = err[-_SHOWN:].strip()
    said = f": {tail}" if tail else ""
    extra = facts(argv=list(argv), code=code, stderr=tail)
    LOGGER.info("`%s` ended with %d%s", words, code, said, extra=extra)


def _communicate(child: subprocess.Popen[bytes], timeout: Timeout) -> tuple[bytes, bytes]:
    """Wait for a process; what may still be waited for is asked for again and again."""
    if not callable(timeout):
        return child.communicate(timeout=timeout)
    begin = time.monotonic()
    while True:
        left = timeout()
        log.beat()
        try:
            return child.communicate(timeout=min(left, _SLICE))
        except subprocess.TimeoutExpired as error:
            if left <= _SLICE:
                raise subprocess.TimeoutExpired(error.cmd, round(time.monotonic() - begin, 1)) from error


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a process with what it started: its session is its own. One that does not die is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()
    try:
        child.wait(_LAST_WORDS)
    except subprocess.TimeoutExpired:
        LOGGER.warning("PID %d waits for the kernel (a disk, a mount) and cannot be ended", child.pid)


@contextmanager
def staged_directories(directories: Sequence[Mapping[str, bytes]]) -> Iterator[tuple[list[int], list[str]]]:
    """Hold directories in memory that a child process can open, whatever its root.

    Yields descriptors and paths as `staged` does. A path ends in a slash: CRI-O
    does not follow a link in place of its directory.
    """
    from tempfile import TemporaryDirectory  # noqa: PLC0415  # only CRI-O is asked by directories

    with ExitStack() as stack:
        fds = []
        for directory in directories:
            base = next((p for p in _MEMORY if os.access(p, os.W_OK)), None)
            place = Path(stack.enter_context(TemporaryDirectory(prefix="nvidia-toolkit-", dir=base)))
            for name, data in directory.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(data)
            fd = os.open(place, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, fd)
            fds.append(fd)
        yield fds, [f"/proc/self/fd/{fd}/" for fd in fds]


@contextmanager
def staged(files: Sequence[bytes]) -> Iterator[tuple[list[int], list[str]]]:
    """Hold bytes in memory as files that a child process can open.

    Yields their descriptors, to be passed on, and the paths at which the child
    finds them: nothing is written to a disk, and nothing can be left behind.
    """
    with ExitStack() as stack:
        fds = []
        for data in files:
            fd = os.memfd_create("nvidia-toolkit-staged", 0)
            stack.callback(os.close, fd)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            fds.append(fd)
        yield fds, [f"/proc/self/fd/{fd}" for fd in fds]


def _entering(root: Path | None) -> Callable[[], None] | None:
    if root is None or str(root) == "/":
        return None

    def enter() -> None:
        os.chroot(root)
        os.chdir("/")

    return enter
