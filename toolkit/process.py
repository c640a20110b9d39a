"""The only place that starts a process: argv only, no shell, a bounded time, both streams kept."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from toolkit.errors import StepFailed
from toolkit.log import LOGGER

SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT: Final = {"PATH": SEARCH_PATH, "LC_ALL": "C", "HOME": "/"}
_MEMORY: Final = ("/dev/shm",)  # noqa: S108  # a directory of our own is made below it
_TAIL: Final = 2000


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
    timeout: float = 30,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Run a command to its end, in the file system below `root` where one is given.

    `timeout` is in seconds; a process that takes longer is killed. Raises
    StepFailed where the command cannot be started or is killed for its time.
    """
    try:
        with subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(pass_fds),
            env={**_ENVIRONMENT, **(environment or {})},
            preexec_fn=_entering(root),  # noqa: PLW1509  # there are no threads here
            start_new_session=True,
        ) as child:
            try:
                out, err_bytes = child.communicate(timeout=timeout)
            except BaseException:
                # What it started goes with it: its session is its own.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                raise
    except subprocess.TimeoutExpired as error:
        message = f"`{' '.join(argv)}` did not end within {timeout:g} s and was killed"
        raise StepFailed(message) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise StepFailed(f"`{' '.join(argv)}` cannot be started: {error}") from error
    err = err_bytes.decode(errors="replace")[-_TAIL:].strip()
    LOGGER.debug("ran %s: exit %d", " ".join(argv), child.returncode)
    return Result(argv=tuple(argv), code=child.returncode, out=out.decode(errors="replace"), err=err)


@contextmanager
def staged_directories(directories: Sequence[Mapping[str, bytes]]) -> Iterator[tuple[list[int], list[str]]]:
    """Hold directories in memory that a child process can open, whatever its root.

    Yields descriptors and paths as `staged` does. A path ends in a slash: CRI-O
    does not follow a link in place of its directory.
    """
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
