"""The legacy OCI hook file (schema 1.0.0): written in hook mode, removed in config mode."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Final

from runtimes.model import Desired, Observation

_HOOKS: Final = frozenset({"nvidia-container-runtime-hook", "nvidia-container-toolkit"})
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def hook_file(desired: Desired, observation: Observation) -> dict[str, bytes | None]:
    """Return the desired content of the hook file by path; empty if the file must not be changed.

    In config mode, a hook file of this or another NVIDIA installer is removed (None).
    """
    if not desired.hook:
        return {}
    data = observation.data(desired.hook)
    if desired.hook_mode:
        return {desired.hook: _hook_text(desired)}
    if data is None or not (_is_our_hook(data) or data == _hook_text(desired)):
        return {}
    return {desired.hook: None}


def _hook_text(desired: Desired) -> bytes:
    """Return the content of our hook file."""
    program = PurePosixPath(desired.hook_binary)
    content = {
        "version": "1.0.0",
        "hook": {
            "path": str(program),
            "args": [program.name, "prestart"],
            "env": [f"PATH={program.parent}:{_PATH}"],
        },
        "when": {"always": True, "commands": [".*"]},
        "stages": ["prestart"],
    }
    return json.dumps(content, indent=2).encode() + b"\n"


def _is_our_hook(data: bytes) -> bool:
    """Return whether a hook runs a program in a directory `toolkit/`, as installers create it.

    A hook that runs a program of the distribution's packages, for example in /usr/bin, is foreign.
    """
    try:
        path = json.loads(data)["hook"]["path"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    program = PurePosixPath(path) if isinstance(path, str) else PurePosixPath()
    return program.name in _HOOKS and program.parent.name == "toolkit"
