"""A note of directories about to be created or removed, so that a killed run leaves none behind.

The record cannot list them: it is stored in one of them, and does not exist before that is created
or after it is removed. The note is a file in the directory of the PID file, and is lost on reboot.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from toolkit.errors import StepError
from toolkit.log import LOGGER
from toolkit.node import files, trust

_LARGEST: Final = 1 << 20
# Errors of rmdir(2) that are accepted: the directory is already removed, not empty, or a mount
# point.
_ACCEPTED: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}
)


def note(path: Path, directories: Iterable[str]) -> None:
    """Add directories to the note at a path. Raises StepError if the note cannot be written."""
    everything = sorted({*read(path), *directories})
    if not everything:
        return
    try:
        files.make_directory(path.parent)
        files.put(path, json.dumps(everything).encode() + b"\n")
    except StepError:
        clear(path)
        raise


def read(path: Path) -> tuple[str, ...]:
    """Return the directories in the note, outermost first; none if it cannot be read or trusted."""
    try:
        data = trust.read_own(path, _LARGEST)
        result = json.loads(data) if data else []
    except trust.Distrusted as error:
        LOGGER.warning("%s is ignored, since it is not trusted: %s", path, error.strerror)
        return ()
    except (OSError, ValueError, RecursionError):
        return ()
    return tuple(filter(_is_path, result)) if isinstance(result, list) else ()


def _is_path(item: object) -> bool:
    return (
        isinstance(item, str)
        and item.startswith("/")
        and "\0" not in item
        and ".." not in item.split("/")
    )


def clear(path: Path) -> None:
    """Remove the note. Errors are ignored, since a note that stays is harmless."""
    files.sweep(path, None)
    with contextlib.suppress(StepError):
        files.remove(path)


def take_down(path: Path, directories: Iterable[str]) -> tuple[str, ...]:
    """Remove the given directories and those in the note. Directories that are not empty stay.

    Return the paths that could not be removed because of an error; the note then stays as well.
    """
    everything = sorted({*read(path), *directories}, reverse=True)
    refused = tuple(directory for directory in everything if not _is_done(directory))
    if refused:  # try again: an outer directory may have been kept only because an inner one was
        refused = tuple(directory for directory in everything if not _is_done(directory))
    if not refused:
        clear(path)
    return (*refused, *([str(path)] if path.exists() else []))


def _is_done(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except OSError as error:
        return error.errno in _ACCEPTED
    return True
