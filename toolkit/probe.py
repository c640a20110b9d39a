"""Whether the node counts as ready, by the readiness record alone: for a probe that runs every few seconds.

It asks no runtime and imports next to nothing. What the record names has to be
as it was when the runtime gave its word: this boot, that process, those files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from toolkit import __version__, kernel

FORMAT: Final = 2


def unready(record: Path) -> str:
    """Return why the node does not count as ready; empty where it does."""
    try:
        said = json.loads(record.read_bytes())
    except OSError as error:
        return f"{record}: {error.strerror}"
    except (ValueError, RecursionError):
        return f"{record} is no readiness record"
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        return f"{record} is no readiness record of format {FORMAT}"
    return _differing(said)


def _differing(said: Mapping[str, Any]) -> str:
    if said.get("tool") != __version__:
        return f"it is the record of version {said.get('tool')}"
    if said.get("boot") != kernel.boot_id():
        return "it is the record of another boot"
    pid = said.get("pid")
    if pid is not None and kernel.ticks(pid) != said.get("started"):
        return f"the runtime's process, PID {pid}, is another one now"
    files = said.get("configuration")
    changed = [path for path, known in files.items() if _fingerprint(path) != known] if files else []
    return f"changed since: {', '.join(changed)}" if changed else ""


def _fingerprint(path: str) -> str:
    """Return what the record says of a file (`runtimes.model.fingerprint`)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except FileNotFoundError:
        return "absent"
    except OSError:
        return ""
