"""What a process of ours is handed by the one that starts it: open files at fixed numbers, one JSON object.

The lock stays taken from the first process to the last, since it belongs to the
open file and not to a process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

LOCK: Final = 100
REPORT: Final = 101
LOG: Final = 102
_LARGEST: Final = 16 << 20


def interpreter(module: str) -> list[str]:
    """Return the command that runs one of our modules, out of reach of the directory it is started in."""
    return [sys.executable, "-I", *(["-B"] if sys.dont_write_bytecode else []), "-m", module]


def paper(content: Mapping[str, Any]) -> int:
    """Return a file in memory that holds an object; another process may have it."""
    fd = os.memfd_create("nvidia-toolkit-report")
    write(fd, content)
    return fd


def write(fd: int, content: Mapping[str, Any]) -> None:
    """Put an object in the place of what a file holds."""
    data = json.dumps(content).encode()
    os.ftruncate(fd, 0)
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], done)


def read(fd: int) -> dict[str, Any]:
    """Return the object that a file holds; an empty one where it holds none."""
    try:
        found = json.loads(os.pread(fd, _LARGEST, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
