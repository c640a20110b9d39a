"""Show the program's whole job on a throw-away node; `make demo` runs it.

It needs Python and the program's own packages: no root, no container runtime, no network. The node
has stand-ins for the toolkit's files and for runc. Its runtime is the containerd of this machine
where that can be used, else a stand-in that speaks containerd's protocols on its socket.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import node as nodes
import runtime as runtimes
from node import Node
from runtime import Runtime

CHECKOUT: Final = Path(__file__).resolve().parents[2]
BIN: Final = Path(sys.executable).parent
PROGRAM: Final = "nvidia-toolkit"
NEW_NAME: Final = "gpu"
"""The handler's name in the change with which the runtime does not start."""
RECORD: Final = ".nvidia-toolkit"
"""The directory with the program's record, below the install directory."""
ROLLED_BACK: Final = 6
_STEPS: Final = 7
_COMMAND_TIMEOUT: Final = 180.0
_PATIENCE: Final = 60.0
_PAUSE: Final = 0.05
_SETTLED: Final = 0.2
_LOOKS: Final = 5


class StepFailed(Exception):
    """A step did not do what it says."""


class Stopped(BaseException):
    """A signal asked the demonstration to stop; its only argument is the number."""


class Demo:
    """The steps, on one node with one runtime. Each raises StepFailed or RuntimeFailed."""

    def __init__(self, node: Node, runtime: Runtime) -> None:
        self.node = node
        self.runtime = runtime
        # Nothing else of this environment: a variable such as ROOT is a setting of the program.
        self.environment = {
            "PATH": f"{BIN}:{os.environ.get('PATH', os.defpath)}",
            "LC_ALL": "C.UTF-8",
            "TOOLKIT_ENV_FILE": str(node.env_file),
        }
        self.config_before = node.config.read_bytes()
        self.number = 0

    def run(self) -> None:
        """Show every step in turn."""
        original = self.content()
        with self.step("Plan: what would change? Nothing is written."):
            # What a terminal shows without the option; here the output goes through a pipe.
            self.command("plan --diff=full")
            expect(self.content() == original, "the plan changed a file")
        starts = self.runtime.starts
        with self.step(
            "Install: one restart of the runtime, and a container through each handler."
        ):
            self.command("run --no-daemon")
            expect(self.runtime.starts == starts + 1, "the runtime was not restarted exactly once")
        with self.step("Is the node ready?"):
            answer = self.command("status")
            expect("ready" in answer.splitlines(), "the node is not ready")
        with self.step("Install again: nothing to do, no write, no restart."):
            pid, files = self.runtime.pid, self.content(identity=True)
            self.command("run --no-daemon")
            expect(self.content(identity=True) == files, "the second install wrote a file")
            expect(self.runtime.pid == pid, "the second install restarted the runtime")
        with self.step("Stay: another tool overwrites the configuration, and it is repaired."):
            self.repair()
        with self.step("A bad change: with this one the runtime does not come up."):
            self.roll_back()
        with self.step("Revert: every byte as before the install."):
            self.command("revert")
            expect(self.content() == original, "the revert left something behind")
            self.runtime.wait_until_it_answers()

    def repair(self) -> None:
        """Let the program stay, overwrite what it wrote, and wait until that is back."""
        wanted, starts = self.in_effect(), self.runtime.starts
        with self.staying() as process:
            print(
                f"(another tool writes {self.node.config} as it was before the install)", flush=True
            )
            self.node.config.write_bytes(self.config_before)
            expect(self.in_effect() != wanted, "the install had not changed the configuration")
            wait(lambda: self.in_effect() == wanted, process, "the configuration was not repaired")
            wait(lambda: self.runtime.starts > starts, process, "the runtime was not restarted")
            wait(self.is_ready, process, "the node did not become ready again")
            wait(lambda: is_idle(process.pid), process, f"`{PROGRAM} run` did not come to rest")
        expect(self.in_effect() == wanted, "the end of the process changed a file")
        expect(self.runtime.starts == starts + 1, "the runtime was restarted more than once")

    def roll_back(self) -> None:
        """Make a change with which the runtime does not start."""
        before = self.in_effect()
        print(
            "(a fault of the demonstration: containerd does not start with a handler named"
            f" {NEW_NAME})",
            flush=True,
        )
        self.runtime.does_not_start_with = f"runtimes.{NEW_NAME}]"
        self.command(
            f"run --no-daemon --runtime-class {NEW_NAME} --reload-timeout 5", expected=ROLLED_BACK
        )
        expect(self.runtime.refused > 0, "the runtime was never to start with the change")
        expect(self.in_effect() == before, "the old files did not come back")
        self.runtime.wait_until_it_answers()
        self.runtime.does_not_start_with = ""
        self.command("run --no-daemon")
        expect(self.in_effect() == before, "the node is not what it was before the bad change")
        expect(self.is_ready(), "the node is not ready after the way back")

    # --- how ------------------------------------------------------------------------------------

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print a step's title and, where it did what it says, how long it took."""
        self.number += 1
        print(f"\n== {self.number}/{_STEPS} {title}", flush=True)
        begun = time.monotonic()
        yield
        print(f"-- done in {time.monotonic() - begun:.1f} s", flush=True)

    def command(self, words: str, *, expected: int = 0) -> str:
        """Show a command and what it prints; return that. Raise StepFailed for another code."""
        print(f"$ {PROGRAM} {words}", flush=True)
        with self.started(words) as process:
            watchdog = threading.Timer(_COMMAND_TIMEOUT, process.kill)
            watchdog.daemon = True  # an interrupt right after the start must not wait for it
            watchdog.start()
            try:
                said = list(echoed(process))
            finally:
                watchdog.cancel()
            code = process.wait()
        expect(
            code == expected,
            f"`{PROGRAM} {words}` ended with exit code {code}, not {expected}: the lines above"
            " say why",
        )
        if code:
            print(f"(exit code {code})", flush=True)
        return "".join(said)

    def is_ready(self) -> bool:
        """Tell whether the node counts as ready, as a probe would ask."""
        with self.started("status --quiet") as process:
            process.communicate(timeout=_COMMAND_TIMEOUT)
        return process.returncode == 0

    @contextmanager
    def staying(self) -> Iterator[subprocess.Popen[str]]:
        """Run the program until the block ends, and show what it says meanwhile."""
        print(f"$ {PROGRAM} run &", flush=True)
        with self.started("run") as process:
            reader = threading.Thread(target=lambda: list(echoed(process)), daemon=True)
            reader.start()
            wait(lambda: watches(process.pid), process, f"`{PROGRAM} run` watches nothing")
            yield process
            print("$ kill %1", flush=True)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            reader.join(1)
            # It ends with 143 where it looked at the node once more, and the signal broke that off.
            is_well = process.returncode in {0, 128 + signal.SIGTERM}
            expect(is_well, f"`{PROGRAM} run` ended with {process.returncode} on SIGTERM")

    @contextmanager
    def started(self, words: str) -> Iterator[subprocess.Popen[str]]:
        """Start the program; it does not outlive the block."""
        process = subprocess.Popen(
            [BIN / PROGRAM, *words.split()],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def content(self, *, identity: bool = False) -> str:
        """Return a fingerprint of the configuration and of all that is installed."""
        return nodes.fingerprint(self.node.root, ("etc", "usr"), identity=identity)

    def in_effect(self) -> str:
        """Return the same without the program's own record, which counts its changes."""
        return nodes.fingerprint(self.node.root, ("etc", "usr"), without=RECORD)


def expect(is_so: bool, problem: str) -> None:  # noqa: FBT001 - as `assert`, which may be off
    """Raise StepFailed with a problem where something is not so."""
    if not is_so:
        raise StepFailed(problem)


def wait(condition: Callable[[], bool], process: subprocess.Popen[str], problem: str) -> None:
    """Return once a condition holds; raise StepFailed where the process ends or takes too long."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        expect(process.poll() is None, f"{problem}: the process ended with {process.returncode}")
        expect(time.monotonic() < deadline, f"{problem} within {_PATIENCE:.0f} s")
        time.sleep(_PAUSE)


def watches(pid: int) -> bool:
    """Tell whether a process watches files, and has no more watches to add."""

    def count() -> int:
        found = 0
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError):
                found += path.read_text(encoding="ascii").count("inotify wd:")
        return found

    before = count()
    if before:
        time.sleep(_SETTLED)
    return before > 0 and count() == before


def is_idle(pid: int) -> bool:
    """Tell whether a process has no child for a while: one of its own looks at the node for it."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for _ in range(_LOOKS):
        # A kernel may be built without this file; then nothing is known, and nothing is waited for.
        with contextlib.suppress(OSError):
            if children.read_text(encoding="ascii"):
                return False
        time.sleep(_SETTLED)
    return True


def echoed(process: subprocess.Popen[str]) -> Iterator[str]:
    """Print each line that a process says, as it comes, and yield it."""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        yield line


def main() -> int:
    """Run the demonstration; return 0 where each step did what it says, 1 where one did not."""
    named = options().containerd
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        demonstrate(named)
    except (StepFailed, runtimes.RuntimeFailed, nodes.NoRoom, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The pipe has no reader any more; the interpreter would complain about it at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"demo: failed: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Stopped) as error:
        print("demo: stopped; nothing is left of it", file=sys.stderr)
        return 128 + (error.args[0] if isinstance(error, Stopped) else signal.SIGINT)
    return 0


def demonstrate(named: str | None) -> None:
    """Make the node, show the steps on it, and remove it. `named` is as for find_containerd()."""
    begun = time.monotonic()
    expect(
        (BIN / PROGRAM).exists(),
        f"{BIN / PROGRAM} is not installed: start the demonstration with `make demo`",
    )
    program = find_spec("toolkit")
    expect(
        program is not None and Path(program.origin or "").parents[1] == CHECKOUT,
        f"the virtual environment of {BIN} was made for another checkout: `make clean`, then `make"
        " demo`",
    )
    containerd = runtimes.find_containerd(named)
    real = containerd.path if containerd is not None and os.geteuid() == 0 else None
    with nodes.throw_away() as node:
        nodes.furnish(node, validator=containerd and containerd.path, is_real=real is not None)
        print(f"A throw-away node below {node.root}; the toolkit's files and runc are stand-ins.")
        if containerd is None:
            kind = "stand-in, no containerd here"
            print(
                "No containerd is on this machine: a stand-in answers on its socket, in"
                " containerd's\nprotocols. It is not the real one: it says that containers started,"
                " but starts none, and validates\nnothing."
            )
        elif real is None:
            kind = f"stand-in, validated by containerd {containerd.version}"
            print(
                f"{containerd.path} ({containerd.version}) validates every change. Only root can"
                " run it as\na daemon: a stand-in answers on its socket, in containerd's"
                " protocols."
            )
        else:
            kind = f"containerd {containerd.version}"
            print(
                f"Its runtime is the real {containerd.path} ({containerd.version}), kept below it."
            )
        print(f"\n$ export TOOLKIT_ENV_FILE={node.env_file}\n$ cat $TOOLKIT_ENV_FILE")
        print(node.env_file.read_text(encoding="utf-8"), end="", flush=True)
        with runtimes.running(node, real) as runtime:
            Demo(node, runtime).run()
    print(
        f"\nShown in {time.monotonic() - begun:.1f} s: planned, installed, restarted once, ready,"
        " repeated without a write, repaired, rolled back, reverted to the same bytes (runtime:"
        f" {kind}).",
        flush=True,
    )


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--containerd",
        metavar="PATH",
        default=os.environ.get("CONTAINERD"),
        help="the containerd to use; empty for none (default: $CONTAINERD, else the one on PATH)",
    )
    return parser.parse_args()


def stop(number: int, _frame: FrameType | None) -> NoReturn:
    """End the demonstration as Ctrl-C does."""
    raise Stopped(number)


if __name__ == "__main__":
    sys.exit(main())
