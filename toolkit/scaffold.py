"""Directories that are about to be made or removed, noted where a kill cannot lose them.

The record lies in one of them, so it can tell of them neither before it is made
nor after it is gone. The note lies beside the PID file and goes with the boot.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from toolkit import files
from toolkit.errors import NodeNotUnderstood, StepFailed

# It is gone already, or somebody has put something into it, or mounted something at it.
_NOT_OURS: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY})


def note(path: Path, directories: Iterable[str]) -> None:
    """Note directories, those noted before included. Raises StepFailed."""
    everything = sorted({*noted(path), *directories})
    if not everything:
        return
    try:
        files.make_directory(path.parent)
        files.put(path, json.dumps(everything).encode() + b"\n")
    except StepFailed:
        clear(path)
        raise


def noted(path: Path) -> tuple[str, ...]:
    """Return what is noted, outermost first; nothing where that cannot be read."""
    try:
        seen = files.read(path)
        found = json.loads(seen.data) if seen else []
    except (NodeNotUnderstood, ValueError, RecursionError):
        return ()
    return tuple(item for item in found if isinstance(item, str)) if isinstance(found, list) else ()


def clear(path: Path) -> None:
    """Forget the note: it is not needed any more, and if it stays it does no harm."""
    files.sweep(path, None)
    with contextlib.suppress(StepFailed):
        files.remove(path)


def take_down(path: Path, directories: Iterable[str]) -> tuple[str, ...]:
    """Remove directories of ours, noted or given. One that somebody put something into stays.

    Returns what could not be removed and should have been; then the note stays as well.
    """
    everything = sorted({*noted(path), *directories}, reverse=True)
    refused = tuple(directory for directory in everything if not _is_done(directory))
    if refused:  # once more, all of them: the outer ones were not empty then
        refused = tuple(directory for directory in everything if not _is_done(directory))
    if not refused:
        clear(path)
    return (*refused, *([str(path)] if path.exists() else []))


def _is_done(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except OSError as error:
        return error.errno in _NOT_OURS
    return True
