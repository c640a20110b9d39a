"""The OCI hook file of old, schema 1.0.0: ours in hook mode, gone in config mode."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Final

from runtimes.model import Desired, Observation

_HOOKS: Final = frozenset({"nvidia-container-runtime-hook", "nvidia-container-toolkit"})
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def hook_file(desired: Desired, seen: Observation) -> dict[str, bytes | None]:
    """Return what the hook file shall hold: ours in hook mode; in config mode none of ours."""
    if not desired.hook:
        return {}
    data = seen.data(desired.hook)
    if desired.hook_mode:
        return {desired.hook: _hook_text(desired)}
    if data is None or not (_is_our_hook(data) or data == _hook_text(desired)):
        return {}
    return {desired.hook: None}


def _hook_text(desired: Desired) -> bytes:
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
    """Tell whether a hook runs a toolkit that an installer put below its `toolkit/`, ours or upstream's.

    One of the distribution's own packages, in /usr/bin say, is foreign.
    """
    try:
        path = json.loads(data)["hook"]["path"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    program = PurePosixPath(path) if isinstance(path, str) else PurePosixPath()
    return program.name in _HOOKS and program.parent.name == "toolkit"
