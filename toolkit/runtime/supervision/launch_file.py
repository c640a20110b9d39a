"""The file that holds how a daemon was started, from before it is ended until it runs again.

A run that is killed in between leaves no process that knows it. The environment of a daemon may
hold secrets (the password of a proxy). Therefore only root can read the file, as only root can read
the environment of a process; it lies beside the PID file, usually in memory, and is removed as soon
as the daemon runs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from runtimes.dataclass import asdict
from toolkit.log import LOGGER
from toolkit.node import files, processes, procfs, trust
from toolkit.runtime.supervision.launch import Launch
from toolkit.runtime.supervision.supervisor import Supervisor

_LARGEST: Final = 16 << 20
_MODE: Final = 0o600


def save(path: Path, process: processes.RuntimeProcess, found: Supervisor) -> None:
    """Save how a daemon was started that is about to be ended. Raises StepError."""
    content = {
        "boot_id": procfs.boot_id(),
        "process": [process.pid, process.start_ticks],
        "unit": found.unit,
        "unusable": found.unusable,
        "doubt": found.doubt,
        "launch": None if found.launch is None else asdict(found.launch),
    }
    files.make_directory(path.parent)
    files.put(path, json.dumps(content).encode() + b"\n", mode=_MODE)


def saved(path: Path) -> Supervisor | None:
    """Return the supervisor of a daemon that a killed run has ended; None if there is none.

    What another boot left does not count, nor does a daemon that still runs, nor a file that others
    than root could have written or read.
    """
    try:
        content = json.loads(_read(path))
        pid, ticks = content["process"]
        if content["boot_id"] != procfs.boot_id() or procfs.start_time(int(pid)) == ticks:
            return None
        launch = content["launch"]
        return Supervisor(
            unit=content["unit"],
            unusable=content["unusable"],
            doubt=content["doubt"],
            was_ended=True,
            launch=None if launch is None else _launch(launch),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        LOGGER.warning("%s is ignored: %s", path, error)
        return None


def _read(path: Path) -> bytes:
    """Return the content of the file. Raises OSError, and ValueError if others have access."""
    if os.lstat(path).st_mode & 0o077:
        raise ValueError("it is not a file that only root can read and write")
    return trust.read_own(path, _LARGEST) or b""


def _launch(content: dict[str, Any]) -> Launch:
    """Return the launch that `asdict` wrote; JSON has no tuples."""
    return Launch(
        executable=content["executable"],
        argv=tuple(content["argv"]),
        environment=tuple(content["environment"]),
        directory=content["directory"],
        output=content["output"],
        groups=tuple((name, path, local) for name, path, local in content["groups"]),
        limits=tuple((each, (soft, hard)) for each, (soft, hard) in content["limits"]),
        score=content["score"],
        namespaces=tuple(content["namespaces"]),
        capabilities=content.get("capabilities", 0),
    )
