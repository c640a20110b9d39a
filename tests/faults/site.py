"""A node for faults: its tree comes from a template, its runtime and the program are forked.

Several of them work at the same time, each in a mount namespace in which its node lies at the same
path: so what the program writes on one is byte for byte what it writes on another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import hpack

from tests.faults import runtime, trees, warm
from tests.faults.calls import Call, Fault, listing, parsed
from tests.support import fake_daemon, fake_node
from tests.support.fake_node import Node

ENVIRONMENT: Final = {
    **fake_node.ENVIRONMENT,
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
}
LONGEST_RUN: Final = 30
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a directory of our own is made below it
_SHOWN: Final = 4
_SOCKET: Final = "run/c.sock"
_AT_PLACE: Final = 'mount --bind "$1" "$2"\nshift 2'


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How a run ended: the exit code, negative for a signal, and what it said."""

    code: int
    said: str
    timed_out: bool = False

    @property
    def was_killed(self) -> bool:
        return self.code == -9

    def __str__(self) -> str:
        end = "did not end" if self.timed_out else f"exit {self.code}"
        lines = self.said.strip().splitlines()
        return f"{end}: {' | '.join(lines[-_SHOWN:])}"


class Partner:
    """A process that is asked by lines and answers by lines."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            text=True,
            cwd=fake_node.CHECKOUT,
        )

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate(timeout=10)


class Site:
    """One node: `real` is where it lies, `node` where the program and the runtime see it."""

    def __init__(self, base: Path, number: int) -> None:
        self.home = base / f"w{number}"
        self.real = self.home / "site/node"
        place = base / "site"
        self.node = Node(root=place / "node")
        self.had = self.home / "had.json"
        self.told = self.home / "told.json"
        self.log = self.home / "log"
        self.trace = self.home / "trace"
        self.mounts = ""
        self.real.parent.mkdir(parents=True)
        (self.home / "bin").mkdir()
        place.mkdir(exist_ok=True)
        fake_node.write_program(self.home / "bin/runc", "#!/bin/sh\n")
        (self.home / "containerd").symlink_to(sys.executable)
        self.prefix = fake_node.in_mounts(_AT_PLACE, str(self.real.parent), str(place))
        self.program = Partner([*self.prefix, sys.executable, "-m", warm.__name__], ENVIRONMENT)
        packages = str(Path(hpack.__file__).parent.parent)
        words = ("-I", "-S", str(runtime.__file__), str(fake_daemon.__file__), packages)
        path = {"PATH": f"{self.home / 'bin'}:{ENVIRONMENT['PATH']}"}
        self.runtime = Partner(
            [*self.prefix, str(self.home / "containerd"), *words], {**ENVIRONMENT, **path}
        )

    def close(self) -> None:
        self.program.close()
        self.runtime.close()

    # --- the node and its runtime ---------------------------------------------------------------

    def reset(self, template: Path, manner: Mapping[str, Any]) -> None:
        """Put the node back to what it was, with a runtime that has just started on it."""
        self.runtime.ask(do="stop")
        self.put_back(template)
        self.tell(manner)
        self.log.unlink(missing_ok=True)
        self.log.with_name(fake_daemon.PODS).unlink(missing_ok=True)
        self.start()

    def put_back(self, template: Path) -> None:
        script = 'rm -rf "$2" && cp -a "$1" "$2"'
        subprocess.run(("sh", "-c", script, "sh", str(template), str(self.real)), check=True)

    def copy_to(self, template: Path) -> None:
        """Keep this tree as a template: with times and links between files, without socket."""
        script = 'cp -a "$1" "$2" && rm -f "$2/run/c.sock"'
        subprocess.run(("sh", "-c", script, "sh", str(self.real), str(template)), check=True)

    def tell(self, manner: Mapping[str, Any]) -> None:
        """Say how the runtime has to be from now on (see tests/support/fake_daemon.py)."""
        self.told.write_text(
            json.dumps({"config": str(self.node.config), **manner}), encoding="utf-8"
        )

    def start(self) -> None:
        """Start the runtime, or start it anew, and wait until it listens."""
        argv = [f"--socket={self.node.socket}", f"--log={self.log}", f"--cri={self.told}"]
        files = [str(self.node.config), str(self.node.drop_in)]
        pid = self.runtime.ask(
            do="start", argv=argv, files=files, had=str(self.had), mounts=self.mounts
        )
        fake_node.wait_for(
            lambda: f"{pid} listens" in self._noted(), "the stand-in does not listen"
        )

    @contextmanager
    def moved(self, mounts: str) -> Iterator[None]:
        """Restart the runtime in another mount namespace; its next start is in its own again."""
        self.runtime.ask(do="stop")
        self.log.unlink(missing_ok=True)
        self.mounts = mounts
        try:
            self.start()
            yield
        finally:
            self.mounts = ""

    def settle(self) -> None:
        """Wait until a runtime that was told to end is there again."""
        fake_node.wait_for(
            lambda: self._noted()[-1:] != [] and "listens" in self._noted()[-1], "no runtime"
        )

    def pid(self) -> int:
        """Return the PID of the runtime that listens, or listened last."""
        return int(next(line for line in reversed(self._noted()) if "listens" in line).split()[0])

    def starts(self) -> int:
        return sum(line.endswith(" starts") for line in self._noted())

    def has(self) -> dict[str, str | None]:
        """Return the files that the runtime has read, by the path where they were."""
        found: dict[str, str | None] = json.loads(self.had.read_bytes())
        return found

    def _noted(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []

    def pods(self) -> dict[str, Any]:
        """Return what the runtime knows of pods: those that are there, and the calls about them."""
        path = self.log.with_name(fake_daemon.PODS)
        found: dict[str, Any] = (
            json.loads(path.read_bytes()) if path.exists() else {"calls": [], "pods": {}}
        )
        return found

    def tree(self) -> dict[str, trees.Item]:
        return trees.read(self.real)

    def traces(self) -> dict[str, tuple[int, int, int]]:
        """Return what a run that has nothing to do may not change."""
        return trees.traces(self.real, (*trees.NOTES[:1], _SOCKET, "run"))

    # --- the program ----------------------------------------------------------------------------

    def run(self, argv: Sequence[str], fault: Fault | None = None) -> Run:
        """Run the program, with a fault or without one."""
        return self._run(argv, fault.strace(str(self.trace), self.pid()) if fault else None)

    def listed(self, argv: Sequence[str]) -> tuple[Run, list[Call]]:
        """Run the program and return its calls."""
        runtime = self.pid()
        done = self._run(argv, listing(str(self.trace)))
        return done, parsed(self.trace.read_text(encoding="utf-8").splitlines(), runtime)

    def listed_for_real(self, argv: Sequence[str]) -> tuple[Run, list[Call]]:
        """Do the same with `python -m toolkit`, as a user starts it."""
        strace, runtime = ("strace", *listing(str(self.trace))), self.pid()
        done = fake_node.cli(
            *argv, environment=ENVIRONMENT, prefix=[*self.prefix, *strace], timeout=LONGEST_RUN
        )
        calls = parsed(self.trace.read_text(encoding="utf-8").splitlines(), runtime)
        return Run(code=done.returncode, said=done.stdout + done.stderr), calls

    def reached(self, fault: Fault) -> bool:
        """Tell whether the last run came to the call that it was to fail at."""
        wanted = "killed by SIGKILL" if fault.error == "KILL" else "(INJECTED)"
        lines = self.trace.read_text(encoding="utf-8").splitlines()
        hit = [line for line in lines if wanted in line]
        if fault.error == "KILL":
            hit = hit and lines[-2:-1]
        return any(line.startswith(f"{fault.call.name}(") for line in hit)

    def _run(self, argv: Sequence[str], strace: list[str] | None) -> Run:
        out, err = self.home / "out", self.home / "err"
        answer = self.program.ask(
            argv=list(argv), out=str(out), err=str(err), strace=strace, timeout=LONGEST_RUN
        )
        said = out.read_text("utf-8") + err.read_text("utf-8")
        return Run(code=answer["code"], said=said, timed_out=answer["timed_out"])


@contextmanager
def sites(count: int) -> Iterator[list[Site]]:
    """Make nodes, in memory where programs can be run there, and take them away again."""
    with ExitStack() as stack:
        directory = tempfile.TemporaryDirectory(
            prefix="faults-", dir=_in_memory(), ignore_cleanup_errors=True
        )
        base = Path(stack.enter_context(directory))
        made = []
        for number in range(count):
            made.append(Site(base, number))
            stack.callback(made[-1].close)
        yield made


def _in_memory() -> str | None:
    if not os.access(_MEMORY, os.W_OK) or os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC:
        return None
    return str(_MEMORY)
