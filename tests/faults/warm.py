"""The program with all imports done, so that a run costs a fork: one answer per request line.

A request is {"argv", "out", "err", "strace", "timeout"}: the program's arguments, two files for
what it says, the arguments for a strace that is attached before the first step, or null, and
seconds. The answer is {"code", "timed_out"}. What the program says goes through writev(2), so that
it counts for no write to a file.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import pkgutil
import select
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_PACKAGES: Final = ("runtimes", "toolkit", "hpack", "hyperframe", "tomli", "tomlkit")
# Loaded by whoever needs them; a child that loads them under a fault would tell of the loader.
_LATER: Final = ("ctypes", "difflib", "tempfile")
_PATIENCE: Final = 10


class Said(io.RawIOBase):
    """A stream to a descriptor that never calls write(2)."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        return os.writev(self.fd, [data])


def main() -> None:
    _import_everything()
    gc.freeze()
    while line := sys.stdin.readline():
        sys.stdout.write(json.dumps(_run(**json.loads(line))) + "\n")
        sys.stdout.flush()


def _import_everything() -> None:
    for name in _LATER:
        importlib.import_module(name)
    for name in _PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if (
                "__main__" not in module.name
                and ".tests" not in module.name
                and "._ps" not in module.name
            ):
                importlib.import_module(module.name)


def _run(
    argv: list[str], out: str, err: str, strace: list[str] | None, timeout: float
) -> dict[str, Any]:
    gate, opener = os.pipe()
    begun, beginner = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(opener)
        _become(argv, out, err, gate, beginner)
    os.close(gate)
    os.close(beginner)
    os.read(begun, 1)  # what it opens until then is no call of the program's
    os.close(begun)
    tracer = None
    if strace is not None:
        tracer = subprocess.Popen(
            ["strace", *strace, "-p", str(pid)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tracer.stderr is not None
        # It may say before how it understands a path.
        while "attached" not in (said := tracer.stderr.readline()):
            assert said, "strace gave up"
    os.write(opener, b"x")
    os.close(opener)
    timed_out = _is_late(pid, timeout)
    _, status = os.waitpid(pid, 0)
    if tracer is not None:
        tracer.communicate(timeout=_PATIENCE)
    return {"code": os.waitstatus_to_exitcode(status), "timed_out": timed_out}


def _is_late(pid: int, timeout: float) -> bool:
    """Wait for the end of a process, killed if it takes too long; return whether it was."""
    fd = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([fd], [], [], timeout)
        if not ended:
            os.kill(pid, 9)
        return not ended
    finally:
        os.close(fd)


def _become(argv: list[str], out: str, err: str, gate: int, beginner: int) -> None:
    """Be the program from here on."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for fd, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), fd)
        os.write(beginner, b"x")
        os.closerange(3, gate)
        os.closerange(gate + 1, 64)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.BufferedWriter(Said(fd)), encoding="utf-8", line_buffering=True)
            for fd in (1, 2)
        )
        os.read(gate, 1)
        os.close(gate)
        code = _code(argv)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _code(argv: list[str]) -> int:
    from toolkit.cli import main as cli  # noqa: PLC0415 - it was imported long ago

    try:
        cli.main(argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - what Python would do
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    main()
