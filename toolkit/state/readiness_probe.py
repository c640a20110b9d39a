"""The readiness probe: a check of the readiness record alone, for a probe every few seconds.

It does not query the runtime and imports as little as possible. The record is valid as long as the
boot, the runtime's process and the configuration files are those that it names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from toolkit import __version__
from toolkit.node import procfs, trust

FORMAT: Final = 2
LARGEST: Final = 1 << 20
_LARGEST_CONFIG: Final = 64 << 20
UNVERIFIED: Final = "no run has verified the runtime since the node's start or the last change"
NO_PLUGIN: Final = "the NRI plugin is not registered with the runtime"
NO_DRIVER: Final = "the NVIDIA driver is not loaded (--readiness-requires-driver)"


def unready(record: Path) -> str:
    """Return why the node is not ready; empty if it is. `record` is the path of the record."""
    try:
        data = trust.read_own(record, LARGEST)
        if data is None:
            return f"{UNVERIFIED}: {record} not found"
        content = json.loads(data)
    except OSError as error:
        return f"{record}: {error.strerror}"
    except (ValueError, RecursionError):
        return f"{record} is not a readiness record"
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return f"{record} is not a readiness record of format {FORMAT}"
    return _reason_not_ready(content)


def _reason_not_ready(content: Mapping[str, Any]) -> str:
    """Return why the content of a record does not apply to the node any more; empty if it does."""
    if content.get("tool") != __version__:
        return f"the readiness record was written by version {content.get('tool')}"
    if content.get("boot") != procfs.boot_id():
        return "the readiness record is from another boot"
    pid = content.get("pid")
    if pid is not None and procfs.start_time(pid) != content.get("started"):
        return f"PID {pid} is no longer the runtime's process"
    if (plugin := content.get("plugin")) is not None and not is_alive(plugin):
        return NO_PLUGIN
    signs = content.get("driver")
    if signs is not None and not procfs.any_exists(signs):
        return NO_DRIVER
    files = content.get("configuration")
    changed = (
        [path for path, known in files.items() if _fingerprint(path) != known] if files else []
    )
    return (
        f"changed since the readiness record was written: {', '.join(changed)}" if changed else ""
    )


def is_alive(process: object) -> bool:
    """Return whether a process still runs that a record names by its PID and its start."""
    match process:
        case [int(pid), int(started)]:
            return procfs.start_time(pid) == started
        case _:
            return False


def _fingerprint(path: str) -> str:
    """Return a file's fingerprint, as `runtimes.model.fingerprint` does; empty if unreadable."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as stream:
            import hashlib  # noqa: PLC0415  # The agent, which imports this module, hashes nothing.

            return hashlib.sha256(stream.read(_LARGEST_CONFIG)).hexdigest()
    except FileNotFoundError:
        return "absent"
    except OSError:
        return ""
