"""Execution of commands: without a shell, with a timeout, with stdout and stderr captured.

No other module starts processes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtimes.dataclass import dataclass
from toolkit import log
from toolkit.deadline import Timeout
from toolkit.errors import StepError
from toolkit.log import LOGGER, facts
from toolkit.node import trust

if TYPE_CHECKING:
    import subprocess

SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT: Final = {"PATH": SEARCH_PATH, "LC_ALL": "C", "HOME": "/"}
_MEMORY: Final = ("/dev/shm",)  # noqa: S108  # a private directory is created below it
_TAIL: Final = 2000
_SHOWN: Final = 400
_SLICE: Final = 0.25
KILL_SECONDS: Final = 2.0
# Errors that are caused by the program itself. Others, such as ENOMEM or EMFILE, are not.
_NOT_EXECUTABLE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENOEXEC, errno.ELIBBAD})


def load() -> None:
    """Load what `run` and `start` need, so that they do not have to when it may fail."""
    import subprocess  # noqa: F401, PLC0415


class NotStarted(StepError):
    """A program cannot be executed: the file or its interpreter cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a command: argv, exit status, stdout, and the end of stderr.

    Secrets are masked in the `err` of a command that failed, because messages quote it.
    """

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        """Return whether the exit status is 0."""
        return self.code == 0


def run(
    argv: Sequence[str],
    *,
    root: Path | None = None,
    timeout: Timeout = 30,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    is_quoted: bool = False,
) -> Result:
    """Run a command and wait for it, in the file system below `root` if that is given.

    `timeout` is in seconds, or a function that returns the seconds left; a process that takes
    longer is killed. A program that is named by its path must be trusted: the file and all
    directories above it belong to root. Raises NotStarted if the program cannot be executed, and
    StepError if it is not trusted, if it exceeds the timeout, or if something else fails. A
    non-zero exit status is no error; it is logged on level info, or debug with `is_quoted`, if the
    caller's own message says the same.
    """
    searched = {**_ENVIRONMENT, **(environment or {})}["PATH"]
    with _opened(argv[0], root, searched) as (executable, own_fds):
        result = _run(
            argv,
            executable,
            root,
            timeout=timeout,
            fds=(*pass_fds, *own_fds),
            environment=environment,
        )
    _log(argv, result.code, result.err, is_quoted=is_quoted)
    return result


def start(
    argv: Sequence[str],
    *,
    executable: str | None = None,
    root: Path | None = None,
    directory: str | None = None,
    environment: Sequence[str],
    prepare: Callable[[], None],
) -> None:
    """Start a daemon that outlives this process, in a session of its own, and do not wait for it.

    `environment` are its variables as `NAME=value`. `prepare` is called in the new process. Raises
    StepError if the program cannot be executed.
    """
    import subprocess  # noqa: PLC0415  # with what it imports 3 ms; most starts run no program

    enter = _entering(root)

    def detach() -> None:
        prepare()
        if os.fork():
            os._exit(0)  # the daemon becomes a child of init, which sees to its end
        if enter is not None:
            enter()

    try:
        child = subprocess.Popen(
            list(argv),
            executable=executable,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env=dict(each.partition("=")[::2] for each in environment),
            preexec_fn=detach,  # noqa: PLW1509  # there are no threads here
            start_new_session=True,
        )
        child.wait()
    except (OSError, subprocess.SubprocessError) as error:
        raise StepError(f"`{' '.join(argv)}` cannot be started: {error}") from error


@contextmanager
def _opened(
    name: str, root: Path | None, searched: str
) -> Iterator[tuple[str | None, tuple[int, ...]]]:
    """Yield the executable of a program, and the descriptors that the child needs for it.

    The file is opened and checked, and the opened file is executed. A script is executed by its
    path, since its interpreter opens it again. A name without a slash is searched for on the PATH
    of the command. Raises StepError if the program is not trusted.
    """
    candidates = (
        [name] if name.startswith("/") else [f"{each}/{name}" for each in searched.split(":")]
    )
    paths = [
        path for path in candidates if os.path.lexists(f"{str(root or '/').rstrip('/')}{path}")
    ]
    try:
        program = trust.open_program((paths or candidates)[0], root or Path("/"))
    except trust.Distrusted as error:
        raise StepError(
            f"{name} is not run: {error.strerror}",
            hint=(
                "a program that root runs, and every directory above it, must belong to root and be"
                " writable by root alone (chown root:root, chmod go-w)"
            ),
        ) from error
    except OSError:
        yield None, ()  # starting it by name fails as well, with a better error message
        return
    try:
        by_descriptor = f"/proc/self/fd/{program.fd}"
        # A root directory may have no /proc.
        is_usable = not program.is_script and (root or Path("/")).joinpath("proc/self/fd").is_dir()
        yield (by_descriptor, (program.fd,)) if is_usable else (None, ())
    finally:
        os.close(program.fd)


def _run(
    argv: Sequence[str],
    executable: str | None,
    root: Path | None,
    *,
    timeout: Timeout,
    fds: Sequence[int],
    environment: Mapping[str, str] | None,
) -> Result:
    import subprocess  # noqa: PLC0415  # with what it imports 3 ms; most starts run no program

    try:
        child = subprocess.Popen(
            list(argv),
            executable=executable,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(fds),
            env={**_ENVIRONMENT, **(environment or {})},
            preexec_fn=_entering(root),  # noqa: PLW1509  # there are no threads here
            start_new_session=True,
        )
        try:
            out, err_bytes = communicate(child, timeout)
        except BaseException:
            _end(child)
            raise
    except subprocess.TimeoutExpired as error:
        message = f"`{' '.join(argv)}` did not end within {error.timeout:g} s and was killed"
        raise StepError(message) from error
    except subprocess.SubprocessError as error:
        # subprocess reports any error of `preexec_fn` by this exception, and that only calls
        # chroot(2). It says nothing about the program, so this is no NotStarted.
        raise StepError(
            f"`{' '.join(argv)}` cannot be started: the node's root {root} cannot be entered",
            hint="the pod needs `privileged: true`, or the capability SYS_CHROOT",
        ) from error
    except OSError as error:
        kind = NotStarted if error.errno in _NOT_EXECUTABLE else StepError
        raise kind(f"`{' '.join(argv)}` cannot be started: {error}") from error
    err = err_bytes.decode(errors="replace")[-_TAIL:].strip()
    if err and child.returncode != 0:
        from toolkit import redact  # noqa: PLC0415  # A message may quote the configuration.

        err = redact.text(err)
    return Result(
        argv=tuple(argv), code=child.returncode, out=out.decode(errors="replace"), err=err
    )


def _log(argv: Sequence[str], code: int, err: str, *, is_quoted: bool) -> None:
    """Log the exit status of a command, with the end of stderr if it is not 0."""
    words = " ".join(argv)
    if code == 0:
        LOGGER.debug("`%s` succeeded", words)
        return
    tail = err[-_SHOWN:].strip()
    detail = f": {tail}" if tail else ""
    extra = facts(argv=list(argv), code=code, stderr=tail)
    level = logging.DEBUG if is_quoted else logging.INFO
    LOGGER.log(level, "`%s` ended with %d%s", words, code, detail, extra=extra)


def communicate(child: subprocess.Popen[bytes], timeout: Timeout) -> tuple[bytes, bytes]:
    """Wait for a process and return its stdout and stderr; every wait evaluates `timeout` again."""
    if not callable(timeout):
        return child.communicate(timeout=timeout)

    import subprocess  # noqa: PLC0415

    begin = time.monotonic()
    while True:
        left = timeout()
        log.tick()
        try:
            return child.communicate(timeout=min(left, _SLICE))
        except subprocess.TimeoutExpired as error:
            if left <= _SLICE:
                raise subprocess.TimeoutExpired(
                    error.cmd, round(time.monotonic() - begin, 1)
                ) from error


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants in its session. One that does not exit is left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()

    import subprocess  # noqa: PLC0415

    try:
        child.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        LOGGER.warning(
            "PID %d waits for the kernel (a disk, a mount) and cannot be killed", child.pid
        )


@contextmanager
def staged_directories(
    directories: Sequence[Mapping[str, bytes]],
) -> Iterator[tuple[list[int], list[str]]]:
    """Create temporary directories in memory that a child process can open, whatever its root.

    Each directory maps names to file contents. Yields descriptors and paths as `staged` does. A
    path ends in a slash, because CRI-O does not follow a symbolic link to its configuration
    directory.
    """
    from tempfile import TemporaryDirectory  # noqa: PLC0415  # needed for CRI-O only

    with ExitStack() as stack:
        fds = []
        for directory in directories:
            base = next((p for p in _MEMORY if os.access(p, os.W_OK)), None)
            path = Path(stack.enter_context(TemporaryDirectory(prefix="nvidia-toolkit-", dir=base)))
            for name, data in directory.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, fd)
            fds.append(fd)
        yield fds, [f"/proc/self/fd/{fd}/" for fd in fds]


@contextmanager
def staged_files(files: Sequence[bytes]) -> Iterator[tuple[list[int], list[str]]]:
    """Create files in memory that a child process can open.

    Yields their descriptors, to be passed to the child, and the paths at which the child can open
    them. Nothing is written to a disk, so nothing can be left behind.
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
