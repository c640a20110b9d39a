"""Run the demo and the tests on machines that have nothing but Python.

`python3 -m tools.bare [--jobs N] [SUITE...]` makes a minimal root file system of each Debian suite
and, as root and as an ordinary user, runs the commands of the Makefile in a throw-away copy of it:
without a network, with wheels that were downloaded before. What is tested is the commit HEAD of
this checkout. It needs root, mmdebstrap, util-linux and git, and no package of Python.

Root file systems and wheels are kept in the cache of the tests (NVIDIA_TOOLKIT_TEST_CACHE chooses
another) and made again where they are missing. The output of a run is kept in build/bare/.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from tests.support.nodes import PATH, cache, children

ROOT: Final = Path(__file__).resolve().parents[1]
SUITES: Final = ("bookworm", "forky")
"""By default the oldest Python that is allowed (3.11) and the newest that a suite has (3.14)."""
_STEPS: Final = ("demo", "unit", "functional", "test")
_STEPS_OF: Final = {("bookworm", "user"): ("demo", "test")}
"""With the oldest Python a user runs `make test`, which includes the unit and functional tests."""
_STEP_SECONDS: Final = 1800
_PREPARE_SECONDS: Final = 900
_TAIL_LINES: Final = 60
_UNSTEADY: Final = "unsteady ("
"""How `tools.tiers` begins the list of tests that passed only alone."""
_NAME: Final = "nvidia-toolkit"
_PROGRAMS: Final = ("git", "mmdebstrap", "mount", "pivot_root", "setpriv", "umount", "unshare")
_RECIPE: Final = (
    "mmdebstrap",
    "--quiet",
    "--variant=minbase",
    "--include=python3,python3-venv,make,git",
    # The index of a suite may be older than its Valid-Until on a mirror that lags.
    '--aptopt=Acquire::Check-Valid-Until "false"',
)

# Nothing in a bare root can bring an interface up. The number is that of SIOCSIFFLAGS, the flags
# are IFF_UP and IFF_RUNNING.
_LOOPBACK: Final = """
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    fcntl.ioctl(one, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
"""
# Runs as PID 1 of the namespaces, still with the machine's /proc and programs.
_BOOT: Final = """
set -eu
if [ -n "$BARE_LOOPBACK" ]; then "$BARE_PYTHON" -I -c "$BARE_LOOPBACK"; fi
cd "$BARE_SCRATCH"
mkdir top root
mount -t tmpfs -o mode=0755 bare top
mkdir top/upper top/work
mount -t overlay -o "lowerdir=$BARE_IMAGE,upperdir=top/upper,workdir=top/work" bare root
cd root
mount -t proc -o nosuid,nodev,noexec proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o mode=0755,nosuid bare dev
mknod -m 0666 dev/null c 1 3
mknod -m 0666 dev/zero c 1 5
mknod -m 0666 dev/full c 1 7
mknod -m 0666 dev/random c 1 8
mknod -m 0666 dev/urandom c 1 9
mknod -m 0666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777,nosuid,nodev bare dev/shm
mount -t tmpfs -o mode=0755,nosuid,nodev bare run
mount -t tmpfs -o mode=1777,nosuid,nodev bare tmp
echo "$BARE_USER:x:$BARE_UID:$BARE_UID::$BARE_HOME:/bin/sh" >> etc/passwd
echo "$BARE_USER:x:$BARE_UID:" >> etc/group
printf '127.0.0.1 localhost\\n::1 localhost\\n' > etc/hosts
if [ -z "$BARE_LOOPBACK" ]; then
    # Names are resolved and certificates believed as on the machine.
    rm -rf etc/resolv.conf etc/hosts etc/ssl
    cp -L /etc/resolv.conf /etc/hosts etc
    cp -rL /etc/ssl etc
    if [ -e /etc/pip.conf ]; then cp -L /etc/pip.conf etc; fi
fi
mkdir -p ".$BARE_HOME" wheels
cp -a "$BARE_CLONE" ".$BARE_HOME/$BARE_NAME"
chown -R "$BARE_UID:$BARE_UID" ".$BARE_HOME"
mount --bind "$BARE_WHEELS" wheels
mount -o "remount,bind,$BARE_WHEELS_MODE" wheels
if [ -n "$BARE_SHARED" ]; then
    mkdir ".$BARE_HOME/shared"
    mount --bind "$BARE_SHARED" ".$BARE_HOME/shared"
    mount -o remount,bind,ro ".$BARE_HOME/shared"
fi
pivot_root . mnt
cd /
umount -l /mnt
cd "$BARE_HOME/$BARE_NAME"
eval "set -- $BARE_VARIABLES"
exec /usr/bin/env -i "$@" /bin/sh -c "$BARE_COMMANDS"
"""
# The report goes to standard output, what the commands say to standard error. The shell ends by
# `exit`: it must not become its last command, because PID 1 has to reap what others leave behind.
_RUN: Final = """
for step in {steps}; do
    echo "begin $step"
    code=0
    timeout --kill-after=10 {seconds} setpriv --reuid={uid} --regid={uid} --clear-groups \\
        make "$step" >&2 || code=$?
    echo "end $step $code"
done
exit 0
"""
_DOWNLOAD: Final = """
set -e
python3 -m venv /tmp/venv >&2
/tmp/venv/bin/pip download --only-binary=:all: --dest /wheels --constraint constraints.txt \\
    '.[test]' setuptools wheel >&2
rm -f /wheels/nvidia_toolkit-*
echo done
exit 0
"""


class BareError(Exception):
    """A bare machine could not be prepared or started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Whose commands are run, with a home directory."""

    name: str
    uid: int
    home: str


_ROOT: Final = User(name="root", uid=0, home="/root")
USERS: Final = (_ROOT, User(name="user", uid=1000, home="/home/user"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a bare machine is made of: a suite, its root file system, its Python and its wheels."""

    suite: str
    image: Path
    python: str
    wheels: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a step ended: the exit status of `make`, and how long it took in seconds."""

    step: str
    code: int
    seconds: float


class Stage:
    """Starts commands in bare machines, and ends all that still run when it is left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def __enter__(self) -> Stage:
        """Take commands."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every command that still runs, and take no more."""
        with self._lock:
            self._ended = True
            for process in self._running:
                _kill(process)

    def run(
        self, machine: Machine, user: User, commands: str, log: Path, *, network: bool = False
    ) -> Iterator[str]:
        """Run shell commands as PID 1 of a fresh machine; yield the lines of their standard output.

        Their standard error goes to the log. With a network, /wheels is writable.
        """
        with (
            tempfile.TemporaryDirectory(prefix="nvidia-toolkit-bare-") as scratch,
            log.open("wb") as errors,
        ):
            clone = Path(scratch, "clone")
            quiet("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone))
            environment = _environment(
                machine, user, commands, scratch=Path(scratch), network=network
            )
            spaces = ("--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts")
            with self._started(
                # Nothing may outlive this program, even where it is killed.
                ("setpriv", "--pdeathsig=KILL", "--", "unshare", *spaces,
                 *(() if network else ("--net",)), "--", "/bin/sh", "-c", _BOOT),
                environment, errors.fileno(),
            ) as process:  # fmt: skip
                assert process.stdout is not None
                for line in process.stdout:
                    yield line.rstrip("\n")
            if process.returncode != 0:
                why = f"the machine ended with {process.returncode}"
                raise BareError(f"{machine.suite}, {user.name}: {why}\n{_tail(log)}")

    @contextlib.contextmanager
    def _started(
        self, argv: Sequence[str], environment: Mapping[str, str], errors: int
    ) -> Iterator[subprocess.Popen[str]]:
        with self._lock:
            if self._ended:
                raise BareError("no machine is started any more")
            process = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=errors,
                # Ctrl-C at the terminal is for this program, which then ends the machines in order.
                text=True, start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
        with process:
            try:
                yield process
                process.wait()
            finally:
                with self._lock:
                    _kill(process)
                    self._running.discard(process)


def main(words: Sequence[str] | None = None) -> int:
    """Prepare the machines, run the steps on each as each user; return 1 if any step failed."""
    asked = _options(words)
    signal.signal(signal.SIGTERM, _stop)
    if why := why_not():
        sys.stderr.write(f"tools.bare: {why}\n")
        return 2
    if quiet("git", "-C", str(ROOT), "status", "--porcelain"):
        _say("note: there are changes that are not committed; what is tested is the commit HEAD")
    logs = ROOT / "build" / "bare"
    logs.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    try:
        with ThreadPoolExecutor(max_workers=asked.jobs) as pool, Stage() as stage:
            machines = [_machine(suite, stage, logs) for suite in asked.suites]
            _say(f"{'suite':10}{'Python':10}{'user':6}{'step':12}{'result':8}{'seconds':>8}")
            waiting = [
                pool.submit(
                    _all_steps,
                    stage,
                    machine,
                    user,
                    steps_of(machine.suite, user.name, asked.step),
                    logs,
                )
                for machine in machines
                for user in asked.users
            ]
            for one in as_completed(waiting):
                failed += one.result()
    except BareError as error:
        sys.stderr.write(f"tools.bare: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    _say(f"failed: {', '.join(failed)}" if failed else "all steps passed")
    return 1 if failed else 0


def why_not() -> str:
    """Return why this machine cannot make bare machines, with a hint; empty if it can."""
    if sys.platform != "linux":
        return "bare machines need Linux"
    if os.geteuid() != 0:
        return "bare machines need root: sudo python3 -m tools.bare"
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"{', '.join(missing)} missing: apt-get install mmdebstrap util-linux mount git"
    return ""


def image_name(suite: str) -> str:
    """Return the name of a suite's root file system in the cache; each recipe has its own."""
    return f"{suite}-{digest(*_RECIPE)}"


def image(suite: str) -> Path:
    """Return the root file system of a suite, made where it is missing; it must not be written to.

    Raises BareError where mmdebstrap fails.
    """

    def make(directory: Path) -> None:
        sys.stderr.write(f"{suite}: making the root file system\n")
        quiet(*_RECIPE, suite, str(directory), timeout=_PREPARE_SECONDS)

    return kept("bare", image_name(suite), make)


def python_version(root: Path) -> str:
    """Return the version of the Python of a root file system, such as 3.11.2."""
    return quiet(
        "chroot", str(root), "/usr/bin/python3", "-I", "-S", "-B", "-c",
        "import platform; print(platform.python_version())",
    ).strip()  # fmt: skip


def kept(group: str, name: str, make: Callable[[Path], None]) -> Path:
    """Return a directory of the cache; `make` fills it where it is missing, once and as a whole."""
    home = cache() / group
    home.mkdir(parents=True, exist_ok=True)
    wanted = home / name
    with (home / f"{name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if wanted.is_dir():
            return wanted
        for stale in home.glob(f".{name}-*"):
            shutil.rmtree(stale)
        made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=home))
        try:
            make(made)
            made.chmod(0o755)
            made.rename(wanted)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return wanted


def quiet(*argv: str, timeout: float = 120) -> str:
    """Run a program and return what it printed; raise BareError with its message on failure."""
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise BareError(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def digest(*texts: str) -> str:
    """Return a short name for some texts: other texts have another."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:10]


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m tools.bare", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"Debian suites ({' '.join(SUITES)})"
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many machines run at a time (1)")
    parser.add_argument("--user", choices=[user.name for user in USERS], help="only as this user")
    parser.add_argument("--step", choices=_STEPS, help="only this step")
    asked = parser.parse_args(words)
    if asked.jobs < 1:
        parser.error("--jobs must be at least 1")
    asked.suites = list(dict.fromkeys(asked.suites or SUITES))
    asked.users = [user for user in USERS if asked.user in {None, user.name}]
    return asked


def _machine(suite: str, stage: Stage, logs: Path) -> Machine:
    root = image(suite)
    version = python_version(root)
    inputs = [
        (ROOT / name).read_text(encoding="utf-8") for name in ("constraints.txt", "pyproject.toml")
    ]
    name = f"wheels-{version}-{digest(*inputs, version, platform.machine())}"

    def make(directory: Path) -> None:
        _say(f"{suite}: downloading wheels for Python {version}")
        log = logs / f"{suite}-wheels.log"
        bare = Machine(suite=suite, image=root, python=version, wheels=directory)
        if list(stage.run(bare, _ROOT, _DOWNLOAD, log, network=True)) != ["done"]:
            raise BareError(f"{suite}: no wheels for Python {version}\n{_tail(log)}")

    return Machine(suite=suite, image=root, python=version, wheels=kept("bare", name, make))


def steps_of(suite: str, user: str, step: str | None) -> Sequence[str]:
    """Return the steps of a suite as a user, or the one that was asked for."""
    return (step,) if step else _STEPS_OF.get((suite, user), ("demo", "unit", "functional"))


def _all_steps(
    stage: Stage, machine: Machine, user: User, steps: Sequence[str], logs: Path
) -> list[str]:
    """Run the steps in order, print how each ended, and return the names of those that failed."""
    log = logs / f"{machine.suite}-{user.name}.log"
    failed = []
    left = list(steps)
    told: set[str] = set()
    commands = _RUN.format(steps=" ".join(steps), seconds=_STEP_SECONDS, uid=user.uid)
    for result in _results(stage.run(machine, user, commands, log)):
        left.remove(result.step)
        ended = "ok" if result.code == 0 else "FAILED"
        line = f"{machine.suite:10}{machine.python:10}{user.name:6}{result.step:12}{ended:8}"
        _say(f"{line}{result.seconds:>8.0f}" + (f"\n{_tail(log)}" if result.code else ""))
        for test in sorted(_unsteady(log) - told):
            _say(f"  unsteady: {test}")
            told.add(test)
        if result.code:
            failed.append(f"{machine.suite} {user.name} {result.step}")
    if left:
        raise BareError(f"{machine.suite}, {user.name}: {', '.join(left)} did not end: see {log}")
    return failed


def _results(lines: Iterator[str]) -> Iterator[Result]:
    began = time.monotonic()
    for line in lines:
        word, step, *code = line.split()
        if word == "begin":
            began = time.monotonic()
        else:
            yield Result(step=step, code=int(code[0]), seconds=time.monotonic() - began)


def _environment(
    machine: Machine, user: User, commands: str, *, scratch: Path, network: bool
) -> dict[str, str]:
    shared = ROOT.parent / "shared"
    variables = {"PATH": PATH, "HOME": user.home, "LANG": "C.UTF-8"}
    if network:
        # How this machine reaches the index, but for what is a path that is not there.
        names = [
            name
            for name in os.environ
            if name.startswith("PIP_") or name.lower().endswith("_proxy")
        ]
        variables |= {name: os.environ[name] for name in names if name != "PIP_FIND_LINKS"}
    else:
        variables |= {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "/wheels",
            "CI": "1",
            "NO_SYSTEM_PACKAGES": "1",
        }
        variables["NO_TIMING"] = "1"  # machines share the processors
        variables["JOBS"] = "3"  # a test waits for a fifth of its time
    return {
        "PATH": PATH,
        "BARE_CLONE": str(scratch / "clone"),
        "BARE_COMMANDS": commands,
        "BARE_HOME": user.home,
        "BARE_IMAGE": str(machine.image),
        "BARE_LOOPBACK": "" if network else _LOOPBACK,
        "BARE_NAME": _NAME,
        "BARE_PYTHON": sys.executable,
        "BARE_SCRATCH": str(scratch),
        "BARE_SHARED": str(shared.resolve()) if shared.is_dir() else "",
        "BARE_UID": str(user.uid),
        "BARE_USER": user.name,
        "BARE_VARIABLES": shlex.join(f"{name}={value}" for name, value in variables.items()),
        "BARE_WHEELS": str(machine.wheels),
        "BARE_WHEELS_MODE": "rw" if network else "ro",
    }


def _kill(process: subprocess.Popen[str]) -> None:
    """End a machine with all its processes and mounts."""
    # With PID 1 its namespace ends; then `unshare` ends, which must live to reap PID 1.
    if process.poll() is None:
        for pid in children(process.pid) or [process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _unsteady(log: Path) -> set[str]:
    """Return the tests that a log names as unsteady."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(_UNSTEADY)]
    result = set()
    for start in starts:
        result |= {
            line.strip()
            for line in takewhile(lambda each: each.startswith("  "), lines[start + 1 :])
        }
    return result


def _tail(log: Path) -> str:
    """Return the last lines of a log, each marked as quoted."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join([*(f"  | {line}" for line in lines), f"  ({log})"])


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
