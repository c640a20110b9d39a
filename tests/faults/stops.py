"""The program stopped at a call, as `python -m toolkit`, and continued when a test is ready."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults.calls import Call
from tests.faults.site import ENVIRONMENT, LONGEST_RUN, Run, Site
from tests.support import fake_node

_STOPPED: Final = "--- stopped by SIGSTOP ---"


@dataclass(slots=True, kw_only=True)
class Stopped:
    """A run that stands still."""

    process: subprocess.Popen[str]
    pid: int

    def go_on(self) -> Run:
        """Let it go on to its end."""
        os.kill(self.pid, signal.SIGCONT)
        out, err = self.process.communicate(timeout=LONGEST_RUN)
        return Run(code=self.process.returncode, said=out + err)


@contextmanager
def stopped(
    site: Site, argv: Sequence[str], call: Call, *, prefix: Sequence[str] = ()
) -> Iterator[Stopped]:
    """Run the program up to a call (see `Call`: its name, number and, for a few, path)."""
    trace = site.home / "stops"
    trace.unlink(missing_ok=True)
    only = ("-P", call.path) if call.path else ()
    inject = (
        "-e",
        f"trace={call.name}",
        "-e",
        f"inject={call.name}:signal=STOP:when={call.number}",
    )
    words = (
        *site.prefix,
        *prefix,
        "strace",
        "-o",
        str(trace),
        *only,
        *inject,
        *fake_node.program(*argv),
    )
    with fake_node.started(words, **ENVIRONMENT) as process:
        _wait(process, trace)
        yield Stopped(process=process, pid=_child(process.pid))


def _wait(process: subprocess.Popen[str], trace: Path) -> None:
    deadline = time.monotonic() + LONGEST_RUN
    while not trace.exists() or _STOPPED not in trace.read_text(encoding="utf-8"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it was not stopped"
        time.sleep(0.005)


def _child(strace: int) -> int:
    children = Path(f"/proc/{strace}/task/{strace}/children").read_text(encoding="ascii").split()
    return int(children[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A mount namespace that stays while its holder lives: to run commands in, and to look into."""

    site: Site
    pid: int

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--")

    def seen(self, path: Path) -> Path:
        """Return where a path of the room can be opened from outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def do(self, script: str, *words: str) -> None:
        """Run a shell script in the room."""
        argv = (*self.prefix, "sh", "-c", f"set -e\n{script}", "sh", *words)
        subprocess.run(argv, check=True, capture_output=True, text=True)


@contextmanager
def room(site: Site, script: str, *words: str) -> Iterator[Room]:
    """Make a namespace where a shell script has mounted something more, also for the runtime."""
    ready = site.home / "ready"
    ready.unlink(missing_ok=True)
    whole = f"set -e\n{script}\n: >{ready}\nexec sleep 1000"
    argv = (*site.prefix, "unshare", "--mount", "--", "sh", "-c", whole, "sh", *words)
    with fake_node.started(argv) as process:
        fake_node.wait_for(ready.exists, "nothing was mounted")
        with site.moved(f"/proc/{process.pid}/ns/mnt"):
            yield Room(site=site, pid=process.pid)
