"""A plan's file changes, done: each checked once more against the disk, each replaced in one step."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from runtimes.model import FileChange, fingerprint
from toolkit import files
from toolkit.errors import Conflict, StepFailed, ToolkitError
from toolkit.files import Dress
from toolkit.host import Host
from toolkit.log import LOGGER
from toolkit.memory import Owned


def check(host: Host, changes: Sequence[FileChange]) -> dict[str, files.Seen | None]:
    """Return the files as they are now. Raises Conflict where one is not what the plan was made for."""
    found = {}
    for change in changes:
        path = host.target(host.local(change.path))
        found[change.path] = _as_planned(path, change, "nothing")
    return found


def overwritten(host: Host, done: Sequence[FileChange]) -> list[str]:
    """Return which files, as they are seen here, are not as they were written any more."""
    found = []
    for change in done:
        try:
            seen = files.read(host.target(host.local(change.path)))
        except ToolkitError:
            seen = None
        if (seen.data if seen else None) != change.after:
            found.append(str(host.local(change.path)))
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


def changes(
    host: Host, todo: Sequence[FileChange], root_config: str, *, give_back: Sequence[Owned] = ()
) -> None:
    """Write the files of a plan.

    `give_back` are files as they once were: one that gets those bytes back gets
    its owner, mode, label and attributes as well. Raises Conflict where a file is not what
    the plan was made for, and StepFailed.
    """
    former = {owned.path: owned for owned in give_back}
    for change in todo:
        path = host.target(host.local(change.path))
        seen = _as_planned(path, change)
        owned = former.get(change.path)
        is_back = owned is not None and owned.original == fingerprint(change.after)
        if change.after is None:
            files.remove(path)
        else:
            files.make_directory(path.parent)
            files.put(
                path,
                change.after,
                dress=dress_of(owned) if owned is not None and is_back else _dress_as(seen),
                aside=_aside(path, change, root_config),
                # To write all of it takes a while, in which somebody may have done so too.
                check=partial(_as_planned, path, change),
            )
        LOGGER.info("%s %s", "gave back" if former else _DONE[change.action], path)


def _dress_as(seen: files.Seen | None) -> Dress:
    if seen is None:
        return Dress()
    return Dress(mode=seen.mode, owner=(seen.uid, seen.gid), selinux=seen.label, attributes=seen.attributes)


def dress_of(owned: Owned) -> Dress:
    """Return what a file of ours wore before us."""
    label = base64.b64decode(owned.label) if owned.label else None
    attributes = None
    if owned.attributes is not None:
        attributes = tuple((name, base64.b64decode(value)) for name, value in owned.attributes)
    return Dress(mode=owned.mode, owner=(owned.uid, owned.gid), selinux=label, attributes=attributes)


_DONE: Final = {"create": "made", "modify": "changed", "delete": "removed"}


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
