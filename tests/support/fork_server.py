"""Runs the program as processes that are forked, not executed: that takes no start of Python.

A test process starts one server, which imports the program once. For each run the server forks:
the child has the streams, variables and arguments that were asked for, executes the module
`toolkit` as `python -m toolkit` does, and then what an interpreter does at its end. It is no
process whose modules are imported in the order of a fresh start, or whose command line names the
program. `fake_node.cli` says which runs need an interpreter of their own; with FULL=1 all get one.

Run as a program, this file is the server; its argument is the file descriptor of its socket.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

CHECKOUT: Final = Path(__file__).resolve().parents[2]
# Python reads these when it starts; the server has started already.
_READ_AT_START: Final = ("LANG", "LC_", "LD_", "PYTHON")
_REQUESTED: Final = 3
"""The descriptors of a request: a socket for its text and its answer, stdout and stderr."""
_CHUNK: Final = 1 << 16
_NOT_FLUSHED: Final = 120
"""The exit status of Python whose standard streams could not be flushed."""


def is_possible(environment: Mapping[str, str], base: Mapping[str, str]) -> bool:
    """Return whether a process with these variables can be forked off a server that has `base`."""
    return all(
        base.get(name) == text
        for name, text in environment.items()
        if name.startswith(_READ_AT_START)
    )


# --- the test's side ----------------------------------------------------------------------------


class Server:
    """A server that runs, and the socket over which it is asked."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
                cwd=CHECKOUT,
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        atexit.register(self.close)

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._process.wait()

    def run(
        self, words: Sequence[str], *, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run the program with arguments and variables; raise TimeoutExpired after some seconds."""
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        ours, theirs = socket.socketpair()
        request = {
            "words": list(words),
            "environment": dict(environment),
            "directory": str(Path.cwd()),
            "umask": _umask(),
        }
        with ours, open(out, "rb", buffering=0) as stdout, open(err, "rb", buffering=0) as stderr:
            try:
                with self._lock:
                    socket.send_fds(self._socket, [b"."], [theirs.fileno(), out_end, err_end])
            finally:
                theirs.close()
                os.close(out_end)
                os.close(err_end)
            ours.sendall(json.dumps(request).encode() + b"\n")
            with ours.makefile("rb") as answers:
                pid = int(answers.readline())
                deadline = time.monotonic() + timeout
                try:
                    texts = _read([stdout, stderr], deadline)
                    ours.settimeout(max(0.001, deadline - time.monotonic()))
                    code = int(answers.readline())
                except TimeoutError:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(list(words), timeout) from None
        return subprocess.CompletedProcess(list(words), code, *map(_text, texts))


def _umask() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("\nUmask:")[2].split(maxsplit=1)[0], 8)


def _read(streams: Sequence[io.RawIOBase], deadline: float) -> list[bytes]:
    """Read streams to their ends; raise TimeoutError where that is not before the deadline."""
    found = [bytearray() for _ in streams]
    with selectors.DefaultSelector() as selector:
        for stream, data in zip(streams, found, strict=True):
            selector.register(stream, selectors.EVENT_READ, data)
        while selector.get_map():
            ready = selector.select(max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK)
                key.data.extend(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
    return [bytes(data) for data in found]


def _text(data: bytes) -> str:
    """Decode what a process wrote, as `subprocess.run(text=True)` does."""
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()


_SERVERS: Final[dict[tuple[tuple[str, str], ...], Server]] = {}
_STARTING: Final = threading.Lock()


def server(environment: Mapping[str, str]) -> Server:
    """Return this process's server with these variables, started where there is none yet."""
    key = tuple(sorted(environment.items()))
    with _STARTING:
        if key not in _SERVERS:
            _SERVERS[key] = Server(environment)
        return _SERVERS[key]


# --- the server's side --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What a child is to be, and the descriptors that its streams become."""

    answer: socket.socket
    out: int
    err: int


def _serve(control: socket.socket) -> _Order | None:
    """Fork for each request, and answer how each child ended.

    Return None at the end of the requests, and in a child its order.
    """
    answers: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    selector.unregister(key.fileobj)
                    pid, answer = answers.pop(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(pid, 0)
                    with answer, contextlib.suppress(BrokenPipeError):
                        answer.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                    continue
                message, fds, _, _ = socket.recv_fds(control, 1, _REQUESTED)
                if not message:
                    return None
                order = _Order(answer=socket.socket(fileno=fds[0]), out=fds[1], err=fds[2])
                pid = os.fork()
                if not pid:
                    # Each descriptor is closed by the object that has it: a later end of that
                    # object must not close what has got its number since.
                    control.close()
                    for fd, (_, other) in answers.items():
                        os.close(fd)
                        other.close()
                    return order
                os.close(order.out)
                os.close(order.err)
                with contextlib.suppress(BrokenPipeError):
                    order.answer.sendall(b"%d\n" % pid)
                ended = os.pidfd_open(pid)
                answers[ended] = pid, order.answer
                selector.register(ended, selectors.EVENT_READ)


def _become(order: _Order) -> None:
    """Take the streams, arguments and variables of an order."""
    with order.answer, order.answer.makefile("rb") as text:
        request: dict[str, Any] = json.loads(text.readline())
    for fd, target in ((order.out, 1), (order.err, 2)):
        os.dup2(fd, target)
        os.close(fd)
    os.chdir(request["directory"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["toolkit", *request["words"]]
    sys.stdout = sys.__stdout__ = _stream(1, sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, sys.stderr)  # type: ignore[misc]


def _stream(fd: int, like: Any) -> io.TextIOWrapper:
    """Open a standard stream as Python does at its start."""
    return io.TextIOWrapper(
        open(fd, "wb", closefd=False),  # it stays open
        encoding=like.encoding,
        errors=like.errors,
        newline="\n",
        line_buffering=fd == 2,  # stderr
    )


def _import_all() -> None:
    """Import the program's modules, but for those that run when they are imported."""
    for name in ("runtimes", "toolkit"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)


def main() -> None:
    """Serve; in a child, be the program."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    _import_all()
    # What is there now is not looked through, and so not copied, in each child.
    gc.collect()
    gc.freeze()
    try:
        order = _serve(control)
    except KeyboardInterrupt:  # which is for the tests
        return
    if order is not None:
        _become(order)
        _end(_run())


def _run() -> int:
    """Execute the program as `python -m` does; return its exit status."""
    try:
        runpy.run_module("toolkit", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:  # noqa: BLE001  # Python prints it, whatever it is
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End as an interpreter does, but for the end of each object, which takes longer than a run."""
    threading._shutdown()  # type: ignore[attr-defined]  # it waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = _NOT_FLUSHED
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
