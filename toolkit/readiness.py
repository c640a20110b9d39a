"""The readiness record: a file that a probe and other pods can read, true only for what it names.

It is removed before the node changes and written after the runtime itself said
that it is as wanted. A record of another boot, of another process, or of a
runtime that has other handlers by now counts as none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from runtimes.model import Effective
from toolkit import __version__, files, kernel, probe
from toolkit.errors import NodeNotUnderstood
from toolkit.owner import Owner

FORMAT: Final = probe.FORMAT


def facts(
    runtime: str,
    daemon: Owner | None,
    has: Effective,
    toolkit: str | None,
    configuration: Mapping[str, str],
) -> dict[str, Any]:
    """Return what a record says.

    `daemon` is the runtime's process (its start is in clock ticks since boot, as
    in /proc/PID/stat), `has` its effective configuration, `toolkit` the digest
    of the version that is installed, and `configuration` the fingerprints of the
    runtime's files by their path here.
    """
    handlers = sorted(has.handlers) if has.handlers is not None else None
    effective = json.dumps([handlers, has.default, has.sandbox_image])
    return {
        "format": FORMAT,
        "tool": __version__,
        "boot": kernel.boot_id(),
        "runtime": runtime,
        "pid": daemon.pid if daemon else None,
        "started": daemon.started if daemon else None,
        "handlers": handlers,
        "default": has.default,
        "effective": hashlib.sha256(effective.encode()).hexdigest(),
        "toolkit": toolkit,
        "configuration": dict(configuration),
    }


def mismatch(path: Path, now: dict[str, Any]) -> str:
    """Return why a record does not say that the node is ready as it is now; empty where it does."""
    try:
        seen = files.read(path)
        said = json.loads(seen.data) if seen else None
    except (NodeNotUnderstood, ValueError, RecursionError) as error:
        return f"{path} cannot be read: {error}"
    if seen is None:
        return f"there is no {path}"
    if not isinstance(said, dict):
        return f"{path} is no readiness record"
    wrong = [name for name, fact in now.items() if said.get(name) != fact]
    return f"{path} is of another {', '.join(wrong)}" if wrong else ""


def write(path: Path, now: dict[str, Any]) -> None:
    """Say that the node is ready, where the record does not say so already. Raises StepFailed."""
    if mismatch(path, now):
        files.make_directory(path.parent)
        files.put(path, json.dumps(now, indent=1).encode() + b"\n")


def remove(path: Path) -> None:
    """Say that the node is not ready. Raises StepFailed."""
    files.sweep(path, None)
    files.remove(path)
