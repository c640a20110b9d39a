"""Write the file changes of a plan: each is rechecked against the disk and replaced atomically."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from runtimes.model import FileChange, fingerprint
from toolkit.errors import Conflict, StepError, ToolkitError
from toolkit.log import LOGGER
from toolkit.node import files
from toolkit.node.files import FileMetadata
from toolkit.node.host import Host
from toolkit.state.record import Owned


def check(host: Host, changes: Sequence[FileChange]) -> dict[str, files.FileSnapshot | None]:
    """Return the current state of the files.

    Raises Conflict if one was modified since it was planned, or is open for writing.
    """
    result = {}
    for change in changes:
        path = host.file(change.path)
        files.refuse_writers(path)
        result[change.path] = _as_planned(path, change, is_first=True)
    return result


def overwritten(host: Host, changes: Sequence[FileChange]) -> list[str]:
    """Return the local paths of the files whose content is not what was written."""
    result = []
    for change in changes:
        try:
            snapshot = files.read(host.file(change.path))
        except ToolkitError:
            snapshot = None
        if (snapshot.data if snapshot else None) != change.after:
            result.append(str(host.local(change.path)))
    return result


def unwritable(host: Host, changes: Sequence[FileChange], *, is_tried: bool = True) -> list[str]:
    """Return a message for every file that cannot be replaced, and every unwritable directory.

    `is_tried` as in `files.writable`.
    """
    result = immutable_files(host, changes)
    named = {host.file(change.path).parent for change in changes if _fixed(host, change)}
    rest: dict[Path, str] = {}
    for change in changes:
        local, path = host.local(change.path), host.file(change.path)
        if (
            path.parent in named | rest.keys()
            or (problem := files.writable(path.parent, is_tried=is_tried)) is None
        ):
            continue
        leads = (
            f" ({local} leads there by a link: mount that directory writable)"
            if path != local
            else ""
        )
        rest[path.parent] = f"{problem}{leads}"
    return [*result, *rest.values()]


def immutable_files(host: Host, changes: Sequence[FileChange]) -> list[str]:
    """Return a message for every existing file that no user can replace where it is."""
    return [problem for change in changes if (problem := _fixed(host, change))]


def _fixed(host: Host, change: FileChange) -> str:
    """Return why an existing file cannot be replaced, with its link's target; "" if it can."""
    if change.before is None:
        return ""
    local = host.local(change.path)
    try:
        target = host.target(local)
    except StepError:
        return ""
    why = files.immutable_reason(target)
    if not why:
        return ""
    other = target if target != local else Path(os.path.realpath(local))
    return f"{local} (a link to {other}) {why}" if other != local else f"{local} {why}"


def sweep(
    host: Host,
    paths: Sequence[str],
    root_config: str,
    *,
    owned: Sequence[Owned] = (),
    open_files: Sequence[Owned] = (),
) -> None:
    """Remove the temporary files that killed runs left beside these files.

    `owned` are the files of the record, `open_files` those of the open transaction: their contents
    are known. Another program may have written a file at the moment when it was replaced. Content
    that is not known is never removed: it is put back, if that replaces nothing but a known
    content, else kept.
    """
    known: dict[str, set[str | None]] = {}
    for each in (*owned, *open_files):
        known.setdefault(each.path, {fingerprint(None)}).update({each.original, *each.written})
    is_open = {each.path for each in open_files}
    for path in dict.fromkeys((*paths, *known)):
        with contextlib.suppress(ToolkitError, OSError):  # Dangling link: nothing written there.
            local = host.file(path)
            aside = None if path == root_config else local.parent.parent
            files.sweep(local, aside)
            left = files.exchanged(local, aside)
            if left is None:
                continue
            expected = known.get(path, set())
            snapshot = files.read(left)
            if fingerprint(snapshot.data if snapshot else None) in expected:
                left.unlink()
            elif path in is_open and _content(local) in expected:
                left.rename(local)
                LOGGER.warning("put back %s, which was modified at the moment of the change", local)
            else:
                files.keep(left, local)


def _content(path: Path) -> str:
    return fingerprint(path.read_bytes() if path.exists() else None)


def missing_directories(host: Host, changes: Sequence[FileChange]) -> list[Path]:
    """Return the directories that the changes need and that do not exist, outermost first."""
    result: dict[Path, None] = {}
    for change in changes:
        if change.after is not None:
            result |= dict.fromkeys(files.missing_directories(host.file(change.path).parent))
    return list(result)


def changes(
    host: Host, todo: Sequence[FileChange], root_config: str, *, give_back: Sequence[Owned] = ()
) -> None:
    """Write the files of a plan.

    `give_back` are records of files from before they were changed: a file that gets its original
    content back gets its original owner, mode, SELinux label and attributes as well. Raises
    Conflict if a file was modified since it was planned, and StepError if it cannot be written.
    """
    originals = {owned.path: owned for owned in give_back}
    for change in todo:
        path = host.file(change.path)
        snapshot = _as_planned(path, change)
        owned = originals.get(change.path)
        is_restored = owned is not None and owned.original == fingerprint(change.after)
        # Another program may modify the file while the new content is written, so what is replaced
        # is checked again.
        aside, check = _aside(path, change, root_config), partial(_as_planned, path, change)
        if change.after is None:
            files.remove(path, aside=aside, check=check)
        else:
            files.make_directory(path.parent)
            files.put(
                path,
                change.after,
                metadata=(
                    metadata_of(owned) if owned is not None and is_restored else _metadata(snapshot)
                ),
                aside=aside,
                check=check,
            )
        LOGGER.info("%s %s", "restored" if originals else _DONE[change.action], path)


def _metadata(snapshot: files.FileSnapshot | None) -> FileMetadata:
    """Return the metadata of an existing file, or the default metadata of a new one."""
    if snapshot is None:
        return FileMetadata()
    return FileMetadata(
        mode=snapshot.mode,
        owner=(snapshot.uid, snapshot.gid),
        selinux=snapshot.label,
        attributes=snapshot.attributes,
    )


def metadata_of(owned: Owned) -> FileMetadata:
    """Return the metadata that an owned file had before it was first changed."""
    label = base64.b64decode(owned.label) if owned.label else None
    attributes = None
    if owned.attributes is not None:
        attributes = tuple((name, base64.b64decode(value)) for name, value in owned.attributes)
    return FileMetadata(
        mode=owned.mode, owner=(owned.uid, owned.gid), selinux=label, attributes=attributes
    )


_DONE: Final = {"create": "created", "modify": "changed", "delete": "removed"}


def _as_planned(
    path: Path, change: FileChange, place: Path | None = None, *, is_first: bool = False
) -> files.FileSnapshot | None:
    """Return the current state of a file. Raises Conflict if it was modified since it was planned.

    `place` is where the file is, if it was moved. `is_first` says that nothing was written yet, for
    the message.
    """
    snapshot = files.read(place or path)
    data = snapshot.data if snapshot else None
    if data != change.before and (data is None or data != change.reset_content):
        raise Conflict(
            (
                f"{path} was modified while the change was planned; nothing was written"
                if is_first
                else f"{path} was modified after the change was planned; it was not written"
            ),
            hint="run the command again",
        )
    return snapshot


def _aside(path: Path, change: FileChange, root_config: str) -> Path | None:
    """Return the directory for the temporary file of a drop-in, None for the directory of the file.

    The runtime reads every file in a drop-in directory, so a temporary file must not lie there.
    """
    return None if change.path == root_config else path.parent.parent
