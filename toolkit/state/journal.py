"""The durable record of the changes on a node, and the original content of the changed files.

It is stored below the install directory, beside `toolkit/`, and is written before anything else on
the node changes. The original of a file is its content before the first change by this program,
however often the file is written. Originals are stored by their hash.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from runtimes import edits
from runtimes.dataclass import replace
from runtimes.model import EMPTY, FileChange, Ownership, fingerprint
from toolkit import __version__
from toolkit.errors import NodeConfigError, StepError
from toolkit.log import LOGGER
from toolkit.node import files, trust
from toolkit.settings.layout import InstallDir
from toolkit.state.codec import decoded, encoded
from toolkit.state.record import Owned, PendingReload, Record

FORMAT: Final = 2
READABLE_BY: Final = 1
_OWNERS: Final = (
    "a writer there controls what root runs: check the content, then `chown root:root` and"
    " `chmod go-w` what is named, or choose another --toolkit-install-dir"
)


def load(install_dir: Path) -> Record:
    """Return the record of an install directory; an empty one if there is none.

    Raises NodeConfigError if the record is damaged, needs a newer version of this program, or is in
    a file or directory that other users control.
    """
    location = InstallDir(install_dir).record
    data = _trusted(location)
    if data is None:
        return Record()
    hint = (
        f"keep {location.parent} and report the problem; if you remove it, the original files can"
        " no longer be restored"
    )
    try:
        content = json.loads(data, parse_constant=_refuse)
        readable_by = int(content["readable_by"])
        if readable_by > FORMAT:
            raise NodeConfigError(
                f"{location} was written by nvidia-toolkit {content.get('tool')} and needs a newer"
                " version",
                hint="use that version or a newer one",
            )
        return decoded(content)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise NodeConfigError(f"{location} is damaged: {error!r}", hint=hint) from error


def _trusted(location: Path) -> bytes | None:
    try:
        return trust.read_own(location, files.LARGEST)
    except trust.Distrusted as error:
        raise NodeConfigError(
            f"{location} is not trusted: {error.strerror}", hint=_OWNERS
        ) from error
    except OSError as error:
        raise NodeConfigError(
            f"{location} cannot be read: {error.strerror}", hint=files.hint(error)
        ) from error


def save(install_dir: Path, record: Record) -> Record:
    """Write a record durably; return it with its new sequence number. Raises StepError."""
    record = replace(record, sequence=record.sequence + 1)
    target = InstallDir(install_dir).state
    files.make_directory(target, 0o700)
    header = {"format": FORMAT, "readable_by": READABLE_BY, "tool": __version__}
    content = json.dumps({**header, **encoded(record)}, indent=1, sort_keys=True).encode() + b"\n"
    files.put(InstallDir(install_dir).record, content, mode=0o600)
    return record


def ownerships(
    install_dir: Path, owned: Sequence[Owned], *, even_if_gone: bool = False
) -> tuple[Ownership, ...]:
    """Return owned files with their original content, in the form that the planner takes.

    Raises StepError if an original is missing, unless `even_if_gone` is set: the file then counts
    as modified by others, so that only owned keys are removed from it.
    """
    return tuple(_ownership(install_dir, each, even_if_gone=even_if_gone) for each in owned)


def _ownership(install_dir: Path, owned: Owned, *, even_if_gone: bool) -> Ownership:
    written = owned.written
    try:
        before = original(install_dir, owned)
    except StepError as error:
        if not even_if_gone:
            raise
        LOGGER.warning("%s; only the keys of the toolkit are removed from the file", error.message)
        before, written = b"", ()
    return Ownership(path=owned.path, original=before, written=written, edits=owned.edits)


def remember(
    install_dir: Path,
    owned: tuple[Owned, ...],
    change: FileChange,
    *,
    local: Path,
    snapshot: files.FileSnapshot | None,
    without_us: bytes | None,
) -> tuple[Owned, ...]:
    """Store a file's original content, and return the owned files with a change about to happen.

    `local` is the local path of the file, `snapshot` its current content; None if it does not
    exist. `without_us` is the current content without owned keys: the new original of a file that
    others modified between two writes of this program.
    """
    before = next((each for each in owned if each.path == change.path), None)
    current = fingerprint(snapshot.data if snapshot else None)
    written = (
        fingerprint(change.after),
        *([fingerprint(change.reset_content)] if change.reset_content else []),
    )
    known = before is not None and current in before.written
    if before is not None and known:
        earlier = tuple(mark for mark in before.written if mark == current)
        after = replace(
            before, written=written + earlier, edits=edits.merge(before.edits, change.edits)
        )
    else:
        earlier_edits = before.edits if before is not None else ()
        if without_us is not None:
            keep(install_dir, without_us)
        after = replace(
            with_metadata(change.path, local, snapshot),
            original=None if without_us is None else fingerprint(without_us),
            # The current content still contains owned keys of an earlier run, so until the change
            # is written it counts as written by this program as well.
            written=(*written, current) if before is not None else written,
            edits=edits.merge(earlier_edits, change.edits),
        )
    return (*(each for each in owned if each.path != change.path), after)


def adopt(
    install_dir: Path, result: Ownership, *, local: Path, snapshot: files.FileSnapshot | None
) -> Owned:
    """Return an `Owned` entry for a file with a lost record; store its content without owned keys.

    `result` is what the planner derived from the file, `local` its local path, `snapshot` its
    content.
    """
    if result.original is not None:
        keep(install_dir, result.original)
    return replace(
        with_metadata(result.path, local, snapshot),
        original=None if result.original is None else fingerprint(result.original),
        written=result.written,
        edits=result.edits,
    )


def with_metadata(path: str, local: Path, snapshot: files.FileSnapshot | None) -> Owned:
    """Return an `Owned` entry with the file's current metadata and no content yet."""
    return Owned(
        path=path,
        local=str(local),
        original=None,
        mode=snapshot.mode if snapshot else 0o644,
        uid=snapshot.uid if snapshot else 0,
        gid=snapshot.gid if snapshot else 0,
        label=base64.b64encode(snapshot.label).decode() if snapshot and snapshot.label else None,
        attributes=_encoded_attributes(snapshot.attributes) if snapshot else None,
        written=(),
        edits=(),
    )


def _encoded_attributes(attributes: files.Attributes) -> tuple[tuple[str, str], ...]:
    return tuple((name, base64.b64encode(value).decode()) for name, value in attributes)


def with_content(record: Record, path: str, data: bytes) -> Record:
    """Return the record with a content of a file added to those that this program wrote.

    The open transaction, if any, is changed as well.
    """
    mark = fingerprint(data)

    def marked(owned: Sequence[Owned]) -> tuple[Owned, ...]:
        return tuple(replace(o, written=(*o.written, mark)) if o.path == path else o for o in owned)

    opened = record.open
    if opened is not None:
        opened = replace(opened, files=marked(opened.files))
    return replace(record, owned=marked(record.owned), open=opened)


def without_unwritten(record: Record, now: Mapping[str, bytes | None]) -> Record:
    """Return the record without the changes that a killed run had planned but not written.

    `now` holds the current content of the files of the open transaction, by path. A file that still
    has the content from before the transaction gets back its previous entry.
    """
    opened = record.open
    if opened is None:
        return record
    untouched = {
        each.path
        for each in opened.files
        if fingerprint(now[each.path]) == (each.original or fingerprint(None))
    }
    owned = [each for each in record.owned if each.path not in untouched]
    owned += [each for each in opened.previous.owned if each.path in untouched]
    return replace(record, owned=tuple(owned))


def close_transaction(
    record: Record, now: Mapping[str, bytes | None] = EMPTY, *, pending: PendingReload | None = None
) -> Record:
    """Return the record of a finished transaction.

    `now` holds the current content of files by path: of the contents that may have been written,
    only that one is kept. `pending` is set if the runtime still has to reload.
    """
    owned = tuple(replace(o, written=_written(o, now)) for o in record.owned)
    restarting = record.restarting and pending is not None
    return replace(record, owned=owned, pending_reload=pending, restarting=restarting, open=None)


def _written(owned: Owned, now: Mapping[str, bytes | None]) -> tuple[str, ...]:
    mark = fingerprint(now[owned.path]) if owned.path in now else ""
    return (mark,) if mark in owned.written else owned.written[:1]


def prune(install_dir: Path, record: Record) -> None:
    """Remove the stored originals that a record does not need. Errors are ignored."""
    opened = record.open
    owned = (*record.owned, *((*opened.files, *opened.previous.owned) if opened else ()))
    needed = {
        each.original
        for each in (*owned, *([record.specification] if record.specification else ()))
    }
    with contextlib.suppress(OSError, StepError):
        for stored in InstallDir(install_dir).originals.iterdir():
            if stored.name not in needed:
                files.remove(stored)
        if not needed - {None}:
            InstallDir(install_dir).originals.rmdir()


def forget(install_dir: Path) -> None:
    """Remove the record and the stored originals. The caller has removed everything that is owned.

    The record is removed first, so that no record refers to originals that are missing. If the
    process is killed, the next run removes the rest. Raises StepError.
    """
    target = InstallDir(install_dir).state
    originals = InstallDir(install_dir).originals
    files.sweep(InstallDir(install_dir).record, None)
    files.remove(InstallDir(install_dir).record)
    try:
        for stored in originals.iterdir() if originals.is_dir() else ():
            stored.unlink()
        for location in (originals, target):
            if location.is_dir():
                location.rmdir()
    except OSError as error:
        raise StepError(f"{target} cannot be removed: {error.strerror}") from error


def sweep(install_dir: Path) -> None:
    """Remove temporary files that a killed run left in the record's directory."""
    files.sweep(InstallDir(install_dir).record, None)
    with contextlib.suppress(OSError):
        for stored in InstallDir(install_dir).originals.iterdir():
            if stored.name.startswith("."):
                stored.unlink()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


# --- stored originals ---------------------------------------------------------------------------


def keep(install_dir: Path, data: bytes) -> None:
    """Store bytes durably in a file named by their hash. Raises StepError."""
    path = InstallDir(install_dir).originals / fingerprint(data)
    files.make_directory(InstallDir(install_dir).state, 0o700)
    files.make_directory(path.parent, 0o700)
    try:
        is_kept = trust.read_own(path, files.LARGEST) == data
    except OSError:
        is_kept = False
    if not is_kept:
        files.put(path, data, mode=0o600)


def original(install_dir: Path, owned: Owned) -> bytes | None:
    """Return the original content of an owned file; None if the file did not exist.

    If the stored original is missing, the file itself is used, provided that it has its original
    content again. Otherwise StepError is raised.
    """
    if owned.original is None:
        return None
    path = InstallDir(install_dir).originals / owned.original
    for location in (path, Path(owned.local)):
        snapshot = files.read(location)
        if snapshot is not None and fingerprint(snapshot.data) == owned.original:
            return snapshot.data
    raise StepError(
        f"the original of {owned.path} was not found in {path}",
        hint=(
            "restore it there, or the file itself, from a backup; or remove only the keys of the"
            " toolkit with `revert --force`"
        ),
    )
