"""The readiness record: a file that tells probes and other pods that the node is ready.

It is removed before the node changes, and written after the runtime has been verified. It is valid
only for the boot, the process, the handlers and the files that it names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from runtimes.model import Effective
from toolkit import __version__
from toolkit.errors import StepError
from toolkit.node import files, procfs, trust
from toolkit.node.processes import RuntimeProcess
from toolkit.state import readiness_probe

FORMAT: Final = readiness_probe.FORMAT

_OWNERS: Final = (
    "give the directory to root (chown root:root, chmod go-w), or choose another --readiness-file"
)

STARTED: Final = "started"
"""A container was started through the handler."""
STATUS: Final = "status"
"""The runtime lists the handler; nothing more was asked for (`--verify=status`)."""
NOT_VERIFIED: Final = "not verified: "
"""No container was started through the handler, for the reason that follows."""


def facts(
    runtime: str,
    daemon: RuntimeProcess | None,
    has: Effective,
    toolkit: str | None,
    configuration: Mapping[str, str],
    driver: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the content of a record, without `verified`, the result for each toolkit handler.

    `daemon` is the runtime's process (its start is in clock ticks since boot, as in
    /proc/PID/stat), `has` its effective configuration, `toolkit` the digest of the installed
    version, and `configuration` the fingerprints of the runtime's configuration files by local
    path. `driver` are paths that show the driver, one of them exists if it is loaded; None if
    readiness does not depend on it.
    """
    handlers = sorted(has.handlers) if has.handlers is not None else None
    effective = json.dumps([handlers, has.default, has.sandbox_image])
    return {
        "format": FORMAT,
        "tool": __version__,
        "boot": procfs.boot_id(),
        "runtime": runtime,
        "pid": daemon.pid if daemon else None,
        "started": daemon.start_ticks if daemon else None,
        "handlers": handlers,
        "default": has.default,
        "effective": hashlib.sha256(effective.encode()).hexdigest(),
        "toolkit": toolkit,
        "configuration": dict(configuration),
        "driver": None if driver is None else list(driver),
    }


def read(path: Path) -> dict[str, Any] | None:
    """Return the content of the record at a path, None if there is none or it cannot be read."""
    try:
        data = trust.read_own(path, readiness_probe.LARGEST)
        content = json.loads(data) if data is not None else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def plugin(path: Path) -> list[int] | None:
    """Return the process with the NRI plugin, from the record at a path; None if there is none."""
    process = (read(path) or {}).get("plugin")
    return process if readiness_probe.is_alive(process) else None


def is_verified(results: object, handlers: Collection[str], *, is_started: bool) -> bool:
    """Return whether `verified` of a record has a result for each of the handlers.

    With `is_started` a container must have been started through each.
    """
    if not isinstance(results, Mapping) or set(results) != set(handlers):
        return False
    enough = {STARTED} if is_started else {STARTED, STATUS}
    return all(result in enough for result in results.values())


def mismatch(path: Path, now: dict[str, Any]) -> str:
    """Return why the record at a path does not match the facts `now`; empty if it does."""
    try:
        data = trust.read_own(path, readiness_probe.LARGEST)
        content = json.loads(data) if data is not None else None
    except (OSError, ValueError, RecursionError) as error:
        return f"{path} cannot be read: {error.strerror if isinstance(error, OSError) else error}"
    if data is None:
        return f"{readiness_probe.UNVERIFIED}: {path} not found"
    if not isinstance(content, dict):
        return f"{path} is not a readiness record"
    differing = [name for name, fact in now.items() if content.get(name) != fact]
    return f"{path} is out of date: {', '.join(differing)} changed" if differing else ""


def write(path: Path, now: dict[str, Any]) -> None:
    """Write the record unless it already matches the facts `now`.

    Raises StepError, also if other users control its directory.
    """
    if mismatch(path, now):
        if problem := trust.place_problem(path.parent):
            raise StepError(f"{path} is not written: {problem}", hint=_OWNERS)
        files.make_directory(path.parent)
        files.put(path, json.dumps(now, indent=1).encode() + b"\n")


def remove(path: Path) -> None:
    """Remove the record: the node is not ready. Raises StepError."""
    files.sweep(path, None)
    files.remove(path)
