"""What a process that stays costs an idle node: memory, wake-ups and time on the processor.

`python -m benchmarks.idle [--minutes 10]` boots a node, lets the program stay on
it, waits, and prints a row; another one with its pages served, and one for the
peer where that was built. Needs what the tests of real runtimes need (root, mmdebstrap).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import peer
from tests.support import artifacts, containers, nodes, pods

PROGRAM: Final = str(Path(sys.executable).parent / "nvidia-toolkit")
SETTLING: Final = 5.0
HEADER: Final = (
    "| process | memory (PSS) | wake-ups in ten minutes | processor in an hour |\n| --- | --- | ---"
    " | --- |"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The cost of a process at rest: MB, wake-ups in ten minutes, processor seconds in an hour.

    `seconds` is for how long it was watched. What happens once in a while, as a
    look every five minutes does, is in it only where that is longer.
    """

    memory: float
    wakeups: float
    cpu: float
    seconds: float


def rest(pid: int, seconds: float) -> Rest:
    """Watch a process for some seconds, once it has come to rest."""
    time.sleep(SETTLING)
    woken, used = pods.wakeups(pid), spent(pid)
    time.sleep(seconds)
    return Rest(
        memory=pods.memory(pid) / (1 << 20),
        wakeups=(pods.wakeups(pid) - woken) * 600 / seconds,
        cpu=(spent(pid) - used) * 3600 / seconds,
        seconds=seconds,
    )


def spent(pid: int) -> float:
    """Return the processor seconds of a process and of its children that have ended (proc(5))."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
        ticks = [int(field) for field in stream.read().rpartition(")")[2].split()[11:15]]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def measured(name: str, argv: Sequence[str], seconds: float) -> str:
    """Let a process stay on a node of its own; return the row of what it cost."""
    with nodes.boot("trixie") as node, containers.start_daemonset(node, argv) as process:
        try:
            found = rest(containers.inner(process), seconds)
        finally:
            process.terminate()
            process.communicate(timeout=60)
    return f"| {name} | {found.memory:.1f} MB | {found.wakeups:.0f} | {found.cpu:.2f} s |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = artifacts.make(Path(scratch) / "artifacts")
        options = ["--runtime=containerd", f"--toolkit-source-root={source}"]
        rows = [
            ("this program", [PROGRAM, *options]),
            ("with --metrics-address", [PROGRAM, *options, "--metrics-address=:9100"]),
        ]
        if theirs := peer.found():
            # It would signal PID 0, that is all of us, where the socket's owner is faster than it.
            rows.append(("nvidia-ctk-installer", [str(theirs), *options, "--restart-mode=none"]))
        sys.stdout.write(f"{HEADER}\n")
        for name, argv in rows:
            sys.stdout.write(measured(name, argv, given.minutes * 60) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
