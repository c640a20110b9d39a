"""The node's container runtime: a real containerd or a stand-in, started again whenever it ends."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from node import Node

STANDIN: Final = Path(__file__).resolve().parents[2] / "tests/support/fake_daemon.py"
_SEARCHED: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SUPERVISOR: Final = "runsv"
"""This process acts as runit's runsv, by that name: the program sends SIGHUP to what it starts."""
_PAUSE: Final = 0.1
"""What systemd calls RestartSec=, in seconds."""
_START_TIMEOUT: Final = 30.0
_STOP_TIMEOUT: Final = 10.0


class Containerd(NamedTuple):
    """A real containerd: the path of its executable, and its version."""

    path: str
    version: str


class RuntimeFailed(Exception):
    """The runtime does not do what the demonstration needs."""


class Runtime:
    """A daemon and what starts it again, as systemd would with Restart=always.

    `argv` is its command, `environment` its variables, `log` the file that gets its output.
    """

    def __init__(
        self, node: Node, argv: Sequence[str], environment: dict[str, str], log: Path
    ) -> None:
        self.node = node
        self.argv = argv
        self.environment = environment
        self.log = log
        self.does_not_start_with = ""
        """It does not start while this text is in its configuration; empty for no such fault."""
        self.refused = 0
        """How many starts failed because of that."""
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)

    @property
    def pid(self) -> int:
        """Return the PID of the process that runs, or ran last; 0 before the first start."""
        process = self._process
        return process.pid if process is not None else 0

    def start(self) -> None:
        """Start it, and wait until it answers. Raises RuntimeFailed."""
        self._supervisor.start()
        self.wait_until_it_answers()

    def stop(self) -> None:
        """End it for good."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._supervisor.join(_STOP_TIMEOUT)

    def wait_until_it_answers(self) -> None:
        """Return once something answers on the socket. Raises RuntimeFailed."""
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            if time.monotonic() > deadline:
                said = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
                last = said[-1] if said else "it said nothing"
                raise RuntimeFailed(
                    f"{self.argv[0]} does not answer within {_START_TIMEOUT:.0f} s: {last}"
                )
            time.sleep(0.02)

    def _answers(self) -> bool:
        # A gRPC server speaks first; a socket that a dead process left refuses the connection.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, suppress(OSError):
            client.settimeout(1)
            client.connect(str(self.node.socket))
            return bool(client.recv(1))
        return False

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            if self._is_refused():
                self.refused += 1
                self._stopping.wait(_PAUSE)
                continue
            with self._lock:
                if self._stopping.is_set():
                    return
                process = self._process = self._started()
                self.starts += 1
            process.wait()
            self._stopping.wait(_PAUSE)

    def _is_refused(self) -> bool:
        fault = self.does_not_start_with
        if not fault:
            return False
        for path in self.node.etc.rglob("*.toml"):
            # The program may have just renamed it.
            with suppress(FileNotFoundError):
                if fault in path.read_text(encoding="utf-8", errors="replace"):
                    return True
        return False

    def _started(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.argv,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demonstration, which then stops it
            )


def find_containerd(named: str | None) -> Containerd | None:
    """Return this machine's containerd; None where there is none.

    `named` is the one that the user asked for: None for whichever is there, empty for none.
    Raises RuntimeFailed where it cannot be run.
    """
    if named == "":
        return None
    path = shutil.which(named or "containerd", path=f"{os.environ.get('PATH', '')}:{_SEARCHED}")
    if path is None:
        if named is None:
            return None
        raise RuntimeFailed(
            f"{named} is no executable: name another one, or none with --containerd="
        )
    path = os.path.realpath(path)
    words, why = _output(path, "--version")
    # containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6
    version = words.split()[2:3] if words.startswith("containerd ") else []
    if not why and not version:
        why = f"`{path} --version` is no containerd's"
    if not why:
        # It is to validate changes, which takes a containerd that prints a configuration.
        why = _output(path, "config", "default")[1]
    if why:
        raise RuntimeFailed(
            f"{why}: name another one with --containerd PATH, or none with --containerd="
        )
    return Containerd(path, version[0])


def _output(*argv: str) -> tuple[str, str]:
    """Return what a program prints, and why it cannot be used; empty where it can."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        return "", str(error)
    return done.stdout, (
        f"`{' '.join(argv)}` ended with {done.returncode}" if done.returncode else ""
    )


@contextmanager
def running(node: Node, containerd: str | None) -> Iterator[Runtime]:
    """Run the node's runtime until the block ends: a real containerd, or the stand-in for None.

    Raises RuntimeFailed where it does not come up.
    """
    log = node.root / "run/containerd.log"
    log.touch()
    argv = [containerd, "--config", str(node.config)] if containerd else _standin(node)
    # The node's own low-level runtime comes first: the machine's is not needed, and not used.
    environment = {"PATH": f"{node.programs}:{_SEARCHED}", "LC_ALL": "C.UTF-8"}
    runtime = Runtime(node, argv, environment, log)
    try:
        with _named(_SUPERVISOR):
            runtime.start()
            yield runtime
    finally:
        runtime.stop()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Give this process a name until the block ends, where the kernel has a file for it."""
    comm = Path("/proc/self/comm")
    try:
        before = comm.read_text(encoding="utf-8")
        comm.write_text(name, encoding="utf-8")
    except OSError:
        yield
        return
    try:
        yield
    finally:
        comm.write_text(before, encoding="utf-8")


def _standin(node: Node) -> list[str]:
    """Return the command of the stand-in, which has the name of what it stands for."""
    program = node.root / "bin/containerd"
    program.symlink_to(sys.executable)
    answers = node.root / "run/standin.json"
    answers.write_text(json.dumps({"config": str(node.config)}), encoding="utf-8")
    hpack = find_spec("hpack")
    if hpack is None or hpack.origin is None:
        raise RuntimeFailed(
            "the package hpack is missing in the virtual environment: remove .venv and try again"
        )
    return [
        str(program),
        "-I",
        "-S",
        str(STANDIN),
        f"--socket={node.socket}",
        f"--log={node.root}/run/standin.log",
        f"--cri={answers}",
        f"--packages={Path(hpack.origin).parent.parent}",
    ]
