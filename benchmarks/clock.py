"""The cost of a process: wall time, processor time and memory, as the kernel counts them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

_ENVIRONMENT: Final = {
    "PATH": os.environ.get("PATH", os.defpath),
    "LC_ALL": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds from start to end, and seconds on the processor with all children."""

    wall: float
    cpu: float


def spawn(argv: list[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a program silently to its end. Raises RuntimeError where it fails."""
    quiet = os.open(os.devnull, os.O_RDWR)
    to_null = [(os.POSIX_SPAWN_DUP2, quiet, fd) for fd in (0, 1, 2)]
    began = time.perf_counter()
    pid = os.posix_spawnp(argv[0], argv, environment or _ENVIRONMENT, file_actions=to_null)
    _, status, used = os.wait4(pid, 0)
    wall = time.perf_counter() - began
    os.close(quiet)
    if code := os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{' '.join(argv)} ended with {code}")
    return Cost(wall=wall, cpu=used.ru_utime + used.ru_stime)


def memory(module: str, arguments: list[str]) -> float:
    """Return the most memory that a Python module has at once when it is run, in MB.

    It is read by the process itself: wait4 counts what its parent had before the
    execve as well.
    """
    inside = (
        "import os, runpy, sys\n"
        "def tell(code):\n"
        "    line = [l for l in open('/proc/self/status') if l.startswith('VmHWM')][0]\n"
        "    os.write(int(out), line.split()[1].encode())\n"
        "    end(code)\n"
        "out = sys.argv.pop(1)\n"
        "end, os._exit = os._exit, tell\n"  # see toolkit/program.py
        "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)\n"
    )
    here, there = os.pipe()
    with open(here, "rb") as stream:
        subprocess.run(
            [sys.executable, "-c", inside, str(there), module, *arguments],
            env=_ENVIRONMENT,
            pass_fds=(there,),
            capture_output=True,
            check=True,
        )
        os.close(there)
        return int(stream.read()) / 1024


def median(times: int, act: Callable[[], Cost]) -> Cost:
    """Return the median of each cost of several runs."""
    seen = [act() for _ in range(times)]
    return Cost(
        wall=statistics.median(cost.wall for cost in seen),
        cpu=statistics.median(cost.cpu for cost in seen),
    )
