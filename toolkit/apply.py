"""A plan's file changes, done: each checked once more against the disk, each replaced in one step."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence
from pathlib import Path

from runtimes.model import FileChange
from toolkit import files
from toolkit.errors import Conflict, StepFailed
from toolkit.host import Host
from toolkit.journal import Owned
from toolkit.log import LOGGER


def check(host: Host, changes: Sequence[FileChange]) -> dict[str, files.Seen | None]:
    """Return the files as they are now. Raises Conflict where one is not what the plan was made for."""
    found = {}
    for change in changes:
        path = host.target(host.local(change.path))
        found[change.path] = _as_planned(path, change, "nothing")
    return found


def obstacles(host: Host, changes: Sequence[FileChange]) -> list[str]:
    """Return, in words, everything that would keep the changes from being written."""
    places = dict.fromkeys(host.target(host.local(change.path)).parent for change in changes)
    return [problem for place in places if (problem := files.writable(place)) is not None]


def sweep(host: Host, paths: Sequence[str], root_config: str) -> None:
    """Remove what a killed run left beside these files."""
    for path in paths:
        with contextlib.suppress(StepFailed):  # a link that leads nowhere: nothing was written there
            local = host.target(host.local(path))
            files.sweep(local, None if path == root_config else local.parent.parent)


def missing_directories(host: Host, changes: Sequence[FileChange]) -> list[Path]:
    """Return the directories that the changes need and that are not there, outermost first."""
    found: dict[Path, None] = {}
    for change in changes:
        if change.after is not None:
            found |= dict.fromkeys(files.missing_directories(host.local(change.path).parent))
    return list(found)


def changes(host: Host, todo: Sequence[FileChange], root_config: str) -> None:
    """Write the files of a plan. Raises StepFailed."""
    for change in todo:
        path = host.target(host.local(change.path))
        seen = _as_planned(path, change)
        if change.after is None:
            files.remove(path)
        else:
            files.make_directory(path.parent)
            files.put(
                path,
                change.after,
                mode=seen.mode if seen else 0o644,
                owner=(seen.uid, seen.gid) if seen else None,
                selinux=seen.label if seen else None,
                aside=_aside(path, change, root_config),
            )
        LOGGER.info("%s %s", _DONE[change.action], path)


def give_back(host: Host, change: FileChange, owned: Owned, root_config: str) -> None:
    """Write a file as it was before us, with its owner, mode and label. Raises StepFailed."""
    path = host.target(host.local(change.path))
    _as_planned(path, change)
    if change.after is None:
        files.remove(path)
    else:
        files.put(
            path,
            change.after,
            mode=owned.mode,
            owner=(owned.uid, owned.gid),
            selinux=base64.b64decode(owned.label) if owned.label else None,
            aside=_aside(path, change, root_config),
        )
    LOGGER.info("gave back %s", path)


_DONE = {"create": "made", "modify": "changed", "delete": "removed"}


def _as_planned(path: Path, change: FileChange, what: str = "it") -> files.Seen | None:
    """Return a file as it is now. Raises Conflict where it is not what the plan was made for."""
    seen = files.read(path)
    data = seen.data if seen else None
    if data != change.before and (data is None or data != change.stone):
        raise Conflict(
            f"{path} was changed by someone while the plan was made; {what} was written"
            if what == "nothing"
            else f"{path} was changed by someone since the plan was made; it was not written",
            hint="run again",
        )
    return seen


def _aside(path: Path, change: FileChange, root_config: str) -> Path | None:
    """Return where a temporary file may lie: never in a drop-in directory, whose files are live."""
    return None if change.path == root_config else path.parent.parent
