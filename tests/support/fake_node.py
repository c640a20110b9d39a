"""A throw-away node below a directory, a stand-in runtime, and the program run against both."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import pty
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import hpack
import pytest

from tests.support import fork_server
from toolkit.settings import resolve

_STAND_IN: Final = Path(__file__).with_name("stand_in.py")
CHECKOUT: Final = Path(__file__).resolve().parents[2]
BIN: Final = Path(sys.executable).parent
KUBEADM: Final = (CHECKOUT / "examples/containerd/config.toml").read_bytes()
PROGRAMS: Final = (
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime.legacy",
    "nvidia-container-runtime-hook",
    "nvidia-container-cli",
    "nvidia-ctk",
    "nvidia-cdi-hook",
)
NOTHING_TO_DO: Final = "I health: nothing to do: the node is in sync\n"
LIBRARIES: Final = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")
ENVIRONMENT: Final = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
MACHINES: Final = {"x86_64": 62, "aarch64": 183}
_LONG: Final = struct.calcsize("l")
# FS_IOC_GETFLAGS and FS_IOC_SETFLAGS: their numbers hold the size of a long.
_GET_INODE_FLAGS: Final = 2 << 30 | _LONG << 16 | 0x6601
_SET_INODE_FLAGS: Final = 1 << 30 | _LONG << 16 | 0x6602
_IMMUTABLE: Final = 0x10

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo make functional")
needs_sysctl = pytest.mark.skipif(
    bool(os.statvfs("/proc/sys").f_flag & os.ST_RDONLY),
    reason="/proc/sys is read-only here, so that the kernel's limits cannot be set",
)


def needs_program(name: str, *, package: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test without a program; `package` is Debian's that has it."""
    reason = f"{name} is not installed: apt-get install {package}"
    return pytest.mark.skipif(shutil.which(name) is None, reason=reason)


_EXECUTED: Final = os.environ.get("FULL") == "1"
_RESTART_PAUSE: Final = 0.05
_CGROUP: Final = "SystemdCgroup = true"

# With these capabilities gone even root is refused what the mode forbids.
ORDINARY: Final = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--") if os.geteuid() == 0 else ()
)
NOBODY: Final = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")


# --- a node -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node's files below one directory; its paths are the ones that the options name."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "etc/containerd/config.toml"

    @property
    def drop_in(self) -> Path:
        return self.root / "etc/containerd/conf.d/99-nvidia.toml"

    @property
    def socket(self) -> Path:
        return self.root / "run/c.sock"

    @property
    def install_dir(self) -> Path:
        return self.root / "usr/local/nvidia"

    @property
    def toolkit(self) -> Path:
        return self.install_dir / "toolkit"

    @property
    def state(self) -> Path:
        return self.install_dir / ".nvidia-toolkit/state.json"

    @property
    def source(self) -> Path:
        return self.root / "artifacts"

    @property
    def pid_file(self) -> Path:
        return self.root / "run/toolkit.pid"

    def options(self, **changed: str | None) -> list[str]:
        """Return options that keep the program inside this node; None takes one away."""
        options: dict[str, str | None] = {
            "runtime": "containerd",
            "config": str(self.config),
            "drop_in_config": str(self.drop_in),
            "socket": str(self.socket),
            "toolkit_install_dir": str(self.install_dir),
            "toolkit_source_root": str(self.source),
            "pid_file": str(self.pid_file),
            "host_root": "/",
            "config_source": "file",
            "restart_mode": "signal",
            "reload_timeout": "10",
            **changed,
        }
        return [
            f"--{name.replace('_', '-')}={text}"
            for name, text in options.items()
            if text is not None
        ]

    def settings(self, **changed: str) -> resolve.Settings:
        """Return the same as settings, for a test that stays in this process."""
        pairs = (word.removeprefix("--").split("=", 1) for word in self.options(**changed))
        rows = {name.replace("-", "_"): text for name, text in pairs}
        return resolve.resolve(rows, {})


def make_node(root: Path, config: bytes | None = KUBEADM) -> Node:
    """Make a node with a config, a toolkit to install, and nobody who listens."""
    node = Node(root=root)
    node.config.parent.mkdir(parents=True)
    node.socket.parent.mkdir(parents=True)
    if config is not None:
        node.config.write_bytes(config)
        node.config.chmod(0o640)
    make_artifacts(node.source)
    return node


def name_low_level(node: Node) -> None:
    """Put a fake runc on a node, and name it in the runc handler of its containerd configuration.

    The nodes here have the machine's own root. Without a name the program looks for `runc` on the
    PATH of the runtime, if that runs, and in the machine's directories, where there may be none.
    """
    program = node.root / "opt/bin/runc"
    program.parent.mkdir(parents=True)
    write_program(program, "#!/bin/sh\n")
    text = node.config.read_text(encoding="utf-8")
    named = text.replace(_CGROUP, f'BinaryName = "{program}"\n        {_CGROUP}')
    assert named != text, "the configuration has no handler runc"
    node.config.write_text(named, encoding="utf-8")


def make_artifacts(source: Path, *, release: str = "1") -> None:
    """Write stand-ins of the toolkit's programs, which print their arguments, and libraries."""
    binaries, libraries = source / "usr/bin", source / "usr/lib64"
    binaries.mkdir(parents=True, exist_ok=True)
    libraries.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        text = f'#!/bin/sh\n# {program}, release {release}\nprintf \'%s\\0\' "$0" "$@"\n'
        write_program(binaries / program, text)
    for library in LIBRARIES:
        real = libraries / f"{library}.{release}"
        real.write_bytes(f"{library}, release {release}\n".encode())
        link = libraries / library
        link.unlink(missing_ok=True)
        link.symlink_to(real.name)


def write_program(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def elf(machine: int) -> bytes:
    """Return the header of a 64-bit little-endian executable of a machine, by its ELF number."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, machine, 1) + bytes(44)


def other_machine() -> tuple[str, int]:
    """Return a machine that this one is not."""
    return next((name, number) for name, number in MACHINES.items() if name != platform.machine())


# --- what is there ------------------------------------------------------------------------------


class Trace(NamedTuple):
    """Everything that a write could change of one file."""

    mode: int
    owner: tuple[int, int]
    mtime: int
    inode: int
    content: str


def snapshot(root: Path, *ignored: Path) -> dict[str, Trace]:
    """Return every file, directory and link below a directory, with its content."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path not in ignored:
            with suppress(FileNotFoundError):  # it was temporary
                found[str(path.relative_to(root))] = trace(path)
    return found


def trace(path: Path) -> Trace:
    status = path.lstat()
    content = ""
    if stat.S_ISREG(status.st_mode):
        with suppress(PermissionError):  # then nobody could write to it either
            content = hashlib.sha256(path.read_bytes()).hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    return Trace(
        mode=status.st_mode,
        owner=(status.st_uid, status.st_gid),
        mtime=status.st_mtime_ns,
        inode=status.st_ino,
        content=content,
    )


def content(root: Path) -> dict[str, tuple[int, str]]:
    """Return mode and content of every file below a directory, without its inode and times."""
    return {name: (seen.mode, seen.content) for name, seen in snapshot(root).items()}


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Give a file or directory the attribute that `chattr +i` sets, without that program."""
    file = os.open(path, os.O_RDONLY)
    try:
        flags = bytearray(fcntl.ioctl(file, _GET_INODE_FLAGS, bytes(_LONG)))
        before = bytes(flags)
        flags[0] |= _IMMUTABLE
        fcntl.ioctl(file, _SET_INODE_FLAGS, bytes(flags))
        try:
            yield
        finally:
            fcntl.ioctl(file, _SET_INODE_FLAGS, before)
    finally:
        os.close(file)


# --- the program --------------------------------------------------------------------------------


def cli(
    *words: str,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    timeout: float = 30,
) -> subprocess.CompletedProcess[str]:
    """Run the program as a process of its own, with no variable but those given.

    It is forked off a process that has the program's modules (see `fork_server`), except after a
    `prefix`, or if Python itself has to read one of the variables.
    """
    variables = {**ENVIRONMENT, **(environment or {})}
    if not _EXECUTED and not prefix and fork_server.is_possible(variables, ENVIRONMENT):
        server = fork_server.server(ENVIRONMENT)
        return server.run(words, environment=variables, timeout=timeout)
    return subprocess.run(
        [*prefix, sys.executable, "-m", "toolkit", *words],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def done(*words: str, **more: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the program and expect it to succeed."""
    result = cli(*words, environment=more.get("environment"))
    assert result.returncode == 0, result.stderr
    return result


def in_mounts(script: str, *words: str) -> tuple[str, ...]:
    """Return a prefix to run a command after a script of mounts, in a namespace that ends with it.

    `words` are the script's `$1` and so on; it must say `shift` for each of them.
    """
    whole = f'set -e\n{script}\nexec "$@"'
    return ("unshare", "--mount", "--", "sh", "-c", whole, "mounts", *words)


def beside(daemon: Daemon) -> tuple[str, ...]:
    """Return a prefix that runs a command in the mount namespace of a daemon."""
    return ("nsenter", f"--mount=/proc/{daemon.pid}/ns/mnt", "--")


def read_only(directory: Path) -> tuple[str, ...]:
    """Return a prefix that runs a command with a directory on a read-only file system."""
    script = 'mount --bind "$1" "$1"\nmount -o remount,bind,ro "$1"\nshift'
    return in_mounts(script, str(directory))


def on_terminal(*words: str, environment: Mapping[str, str] | None = None) -> str:
    """Run the program with a terminal for stdout and return what it wrote there."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "toolkit", *words],
            env={**ENVIRONMENT, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.DEVNULL,
        ) as process:
            os.close(theirs)
            theirs = -1
            text = b"".join(chunks(ours))
            process.wait(30)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
    return text.decode()


def chunks(fd: int) -> Iterator[bytes]:
    # A terminal whose other end is closed says EIO, not the end of the file.
    with suppress(OSError):
        while chunk := os.read(fd, 65536):
            yield chunk


# --- the runtime --------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Daemon:
    """A stand-in that runs, and what starts it again."""

    argv: tuple[str, ...]
    log: Path
    revives: bool
    delay: float
    environment: Mapping[str, str]
    limit: int | None = None
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def lines(self) -> list[tuple[int, str]]:
        """Return what the stand-ins noted, with the PID that did."""
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        return [(int(pid), word) for pid, word in (line.split() for line in text.splitlines())]

    def signals(self) -> list[str]:
        """Return the signals that any of them got, in order."""
        return [word for _, word in self.lines() if word.startswith("SIG")]

    def starts(self) -> int:
        """Return how many times it was started."""
        return sum(word == "starts" for _, word in self.lines())

    def start(self, *, delay: float = 0) -> None:
        with self.lock:
            if not self.stopped:
                self.process = subprocess.Popen(
                    [*self.argv, f"--delay={delay}"],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    pass_fds=self.pass_fds,
                )

    def supervise(self) -> None:
        """Start it again whenever it ends, as systemd's `Restart=always` would.

        What failed `limit` times in a row is left down (StartLimitBurst=).
        """
        failures = 0
        while not self.stopped:
            assert self.process is not None
            failed = self.process.wait() > 0
            failures = failures + 1 if failed else 0
            if not self.revives or failures == self.limit:
                return
            # Neither does systemd start at once what ends at once (RestartSec=).
            self.start(delay=self.delay + _RESTART_PAUSE * failed)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Give this process a name: that of a supervisor, as long as it starts its children again."""
    comm = Path("/proc/self/comm")
    before = comm.read_text(encoding="ascii")
    comm.write_text(name, encoding="ascii")
    try:
        yield
    finally:
        comm.write_text(before, encoding="ascii")


@contextmanager
def daemon(  # noqa: PLR0913  # each is a property of the stand-in
    path: Path,
    *,
    home: Path,
    name: str = "containerd",
    revives: bool = True,
    delay: float = 0,
    fd: int | None = None,
    prefix: Sequence[str] = (),
    **manner: str,
) -> Iterator[Daemon]:
    """Run a stand-in that owns a socket, under a name, until the block ends.

    `home` is a directory for its log, its name and its low-level runtime; `fd` is
    a socket that somebody else listens on already; `prefix` is a command that ends in
    execve(2) of the stand-in, such as `in_mounts`; `manner` are options of
    tests/support/fake_daemon.py. This process starts it again if it `revives`, under the
    name of the supervisor that does so.
    """
    (home / "bin").mkdir(parents=True, exist_ok=True)
    for low_level in ("runc", "containerd-shim-runc-v2"):
        write_program(home / "bin" / low_level, "#!/bin/sh\n")
    program = home / name
    program.unlink(missing_ok=True)
    program.symlink_to(sys.executable)
    log = home / "log"
    if "cri" in manner:
        # It runs without the site's packages, which takes half as long.
        manner["packages"] = str(Path(hpack.__file__).parent.parent)
    where = (f"--fd={fd}",) if fd is not None else (f"--socket={path}",)
    options = [f"--{option.replace('_', '-')}={text}" for option, text in manner.items()]
    running = Daemon(
        argv=(
            *prefix,
            str(program),
            "-I",
            "-S",
            str(_STAND_IN),
            *where,
            f"--log={log}",
            *options,
        ),
        log=log,
        revives=revives,
        delay=delay,
        environment={**os.environ, "PATH": f"{home / 'bin'}:{ENVIRONMENT['PATH']}"},
        pass_fds=() if fd is None else (fd,),
    )
    running.start()
    thread = threading.Thread(target=running.supervise, daemon=True)
    thread.start()
    try:
        wait_for(
            lambda: (running.pid, "listens") in running.lines(), "the stand-in does not listen"
        )
        with named("runsv" if revives else "python"):
            yield running
    finally:
        with running.lock:
            running.stopped = True
        assert running.process is not None
        running.process.kill()
        running.process.wait()
        thread.join(5)
        for pid in {pid for pid, _ in running.lines()} - {running.pid}:
            _end(pid, log)


def _end(pid: int, log: Path) -> None:
    """End a stand-in that the program started, if it is still there."""
    with suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            if f"--log={log}\0" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8"):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Own a socket in this very process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        yield server


@contextmanager
def started(argv: Sequence[str], **more: str) -> Iterator[subprocess.Popen[str]]:
    """Run the program, or another, beside the test; it is killed if it does not end by itself."""
    process = subprocess.Popen(
        list(argv),
        env={**ENVIRONMENT, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def program(*words: str) -> list[str]:
    """Return the argv that runs the program."""
    return [sys.executable, "-m", "toolkit", *words]


def ended(
    process: subprocess.Popen[str], number: signal.Signals | None = None
) -> tuple[int, str, str]:
    """Wait for a process, after a signal if one is given; return its exit status and streams."""
    if number is not None:
        process.send_signal(number)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def wait_for(condition: Callable[[], bool], problem: str, *, timeout: float = 10) -> None:
    """Wait until a condition holds; fail where it does not within the time.

    What takes long to find out, such as a run of the program, is looked at less often: it takes the
    time of what is waited for.
    """
    deadline = time.monotonic() + timeout
    while True:
        began = time.monotonic()
        if condition():
            return
        assert time.monotonic() < deadline, problem
        time.sleep(min(0.1, max(0.005, 2 * (time.monotonic() - began))))
