"""The durable record of what is ours: original bytes by content hash, edits, and what is still owed.

It lies below the install directory, beside `toolkit/`, and is written before
the first byte of anything else changes. What was there first wins: however
often we write a file, its original is the one from before us.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from runtimes import edits
from runtimes.model import EMPTY, FileChange, Ownership, fingerprint
from toolkit import __version__, files
from toolkit.errors import NodeNotUnderstood, StepFailed
from toolkit.log import LOGGER
from toolkit.memory import Owned, Record, decoded, encoded

FORMAT: Final = 2
READABLE_BY: Final = 1
_DIRECTORY: Final = ".nvidia-toolkit"


def directory(install_dir: Path) -> Path:
    """Return where the record of an install directory lies."""
    return install_dir / _DIRECTORY


def path(install_dir: Path) -> Path:
    """Return the file that is the record of an install directory."""
    return directory(install_dir) / "state.json"


def load(install_dir: Path) -> Record:
    """Return what is remembered; nothing where there is no record.

    Raises NodeNotUnderstood for a record that a newer version wrote for newer
    versions only, or that is damaged.
    """
    place = path(install_dir)
    seen = files.read(place)
    if seen is None:
        return Record()
    hint = f"keep {place.parent} and ask for help, or remove it to give up the way back"
    try:
        content = json.loads(seen.data, parse_constant=_refuse)
        readable_by = int(content["readable_by"])
        if readable_by > FORMAT:
            raise NodeNotUnderstood(
                f"{place} was written by nvidia-toolkit {content.get('tool')} for newer versions",
                hint="use that version or a newer one",
            )
        return decoded(content)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise NodeNotUnderstood(f"{place} is damaged: {error!r}", hint=hint) from error


def save(install_dir: Path, record: Record) -> Record:
    """Make a record durable and return it with its new sequence number."""
    record = replace(record, sequence=record.sequence + 1)
    target = directory(install_dir)
    files.make_directory(target, 0o700)
    header = {"format": FORMAT, "readable_by": READABLE_BY, "tool": __version__}
    content = json.dumps({**header, **encoded(record)}, indent=1, sort_keys=True).encode() + b"\n"
    files.put(target / "state.json", content, mode=0o600)
    return record


def ownerships(
    install_dir: Path, owned: Sequence[Owned], *, even_if_gone: bool = False
) -> tuple[Ownership, ...]:
    """Return files of ours with their original bytes, as the planner wants them.

    Raises StepFailed where an original is gone, unless `even_if_gone`: then the
    file counts as edited since, so that only our keys are taken out of it.
    """
    return tuple(_ownership(install_dir, each, even_if_gone=even_if_gone) for each in owned)


def _ownership(install_dir: Path, owned: Owned, *, even_if_gone: bool) -> Ownership:
    written = owned.written
    try:
        before = original(install_dir, owned)
    except StepFailed as error:
        if not even_if_gone:
            raise
        LOGGER.warning("%s: only our keys are taken out of it", error.message)
        before, written = b"", ()
    return Ownership(path=owned.path, original=before, written=written, edits=owned.edits)


def remember(
    install_dir: Path,
    owned: tuple[Owned, ...],
    change: FileChange,
    *,
    local: Path,
    seen: files.Seen | None,
    without_us: bytes | None,
) -> tuple[Owned, ...]:
    """Return files of ours with a change that is about to happen; the original bytes are kept first.

    `without_us` are the bytes that the file would have now if we had never
    been: the original of a file that somebody edited between two of our writes.
    """
    before = next((each for each in owned if each.path == change.path), None)
    now = fingerprint(seen.data if seen else None)
    written = (fingerprint(change.after), *([fingerprint(change.stone)] if change.stone else []))
    known = before is not None and now in before.written
    if before is not None and known:
        earlier = tuple(mark for mark in before.written if mark == now)
        now_ours = replace(before, written=written + earlier, edits=edits.merge(before.edits, change.edits))
    else:
        earlier_edits = before.edits if before is not None else ()
        if without_us is not None:
            keep(install_dir, without_us)
        now_ours = replace(
            dressed(change.path, local, seen),
            original=None if without_us is None else fingerprint(without_us),
            # Until it is written, what is there still has our earlier keys in it: it counts as ours too.
            written=(*written, now) if before is not None else written,
            edits=edits.merge(earlier_edits, change.edits),
        )
    return (*(each for each in owned if each.path != change.path), now_ours)


def adopt(install_dir: Path, found: Ownership, *, local: Path, seen: files.Seen | None) -> Owned:
    """Return what is to be remembered of a file whose record was lost; what it is without us is kept."""
    if found.original is not None:
        keep(install_dir, found.original)
    return replace(
        dressed(found.path, local, seen),
        original=None if found.original is None else fingerprint(found.original),
        written=found.written,
        edits=found.edits,
    )


def dressed(path: str, local: Path, seen: files.Seen | None) -> Owned:
    """Return a file of ours that wears what it wears now; of its content nothing is remembered yet."""
    return Owned(
        path=path,
        local=str(local),
        original=None,
        mode=seen.mode if seen else 0o644,
        uid=seen.uid if seen else 0,
        gid=seen.gid if seen else 0,
        label=base64.b64encode(seen.label).decode() if seen and seen.label else None,
        attributes=_encoded_attributes(seen.attributes) if seen else None,
        written=(),
        edits=(),
    )


def _encoded_attributes(attributes: files.Attributes) -> tuple[tuple[str, str], ...]:
    return tuple((name, base64.b64encode(value).decode()) for name, value in attributes)


def also_written(record: Record, path: str, data: bytes) -> Record:
    """Return the record in which a content of a file counts as written by us, in its open part too."""
    mark = fingerprint(data)

    def marked(owned: Sequence[Owned]) -> tuple[Owned, ...]:
        return tuple(replace(o, written=(*o.written, mark)) if o.path == path else o for o in owned)

    opened = record.open
    if opened is not None:
        opened = replace(opened, files=marked(opened.files))
    return replace(record, owned=marked(record.owned), open=opened)


def as_on_disk(record: Record, now: Mapping[str, bytes | None]) -> Record:
    """Return the record in which what a killed run had not written yet was never to be written.

    `now` are the files of the open transaction as they are. A file that is as it
    was before that is ours as it was then.
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
    owned += [each for each in opened.earlier.owned if each.path in untouched]
    return replace(record, owned=tuple(owned))


def settled(
    record: Record, now: Mapping[str, bytes | None] = EMPTY, *, owed_since: float | None = None
) -> Record:
    """Return the record once everything in it has happened, but perhaps for the reload.

    `now` are files as they are: of what we may have written, that is what we wrote.
    """
    owned = tuple(replace(o, written=_written(o, now)) for o in record.owned)
    if owed_since is None:
        record = replace(record, owed_by=None, owed_boot="", owed_uptime=None, ends=False)
    return replace(record, owned=owned, owed_since=owed_since, open=None)


def _written(owned: Owned, now: Mapping[str, bytes | None]) -> tuple[str, ...]:
    mark = fingerprint(now[owned.path]) if owned.path in now else ""
    return (mark,) if mark in owned.written else owned.written[:1]


def prune(install_dir: Path, record: Record) -> None:
    """Remove the kept bytes that a record does not need any more. What cannot be removed stays."""
    opened = record.open
    owned = (*record.owned, *((*opened.files, *opened.earlier.owned) if opened else ()))
    needed = {each.original for each in (*owned, *([record.specification] if record.specification else ()))}
    with contextlib.suppress(OSError, StepFailed):
        for kept in (directory(install_dir) / "originals").iterdir():
            if kept.name not in needed:
                files.remove(kept)
        if not needed - {None}:
            (directory(install_dir) / "originals").rmdir()


def forget(install_dir: Path) -> None:
    """Remove the record with everything that it kept. The caller knows that nothing is ours any more.

    The record goes first: none may ask for originals that are gone. What a kill
    leaves of the rest, the next one finds. Raises StepFailed.
    """
    target = directory(install_dir)
    originals = target / "originals"
    files.sweep(target / "state.json", None)
    files.remove(target / "state.json")
    try:
        for kept in originals.iterdir() if originals.is_dir() else ():
            kept.unlink()
        for place in (originals, target):
            if place.is_dir():
                place.rmdir()
    except OSError as error:
        raise StepFailed(f"{target} cannot be removed: {error.strerror}") from error


def sweep(install_dir: Path) -> None:
    """Remove what a run left that was killed while it wrote here."""
    target = directory(install_dir)
    files.sweep(target / "state.json", None)
    with contextlib.suppress(OSError):
        for kept in (target / "originals").iterdir():
            if kept.name.startswith("."):
                kept.unlink()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


# --- on disk ------------------------------------------------------------------------------------


def keep(install_dir: Path, data: bytes) -> None:
    """Keep bytes under their own hash, durably. Raises StepFailed."""
    path = directory(install_dir) / "originals" / fingerprint(data)
    files.make_directory(directory(install_dir), 0o700)
    files.make_directory(path.parent, 0o700)
    seen = files.read(path)
    if seen is None or seen.data != data:
        files.put(path, data, mode=0o600)


def original(install_dir: Path, owned: Owned) -> bytes | None:
    """Return a file's original bytes; None where there was none.

    A file that somebody gave them back already is as good as what was kept of
    it. Raises StepFailed where they are gone.
    """
    if owned.original is None:
        return None
    path = directory(install_dir) / "originals" / owned.original
    for place in (path, Path(owned.local)):
        seen = files.read(place)
        if seen is not None and fingerprint(seen.data) == owned.original:
            return seen.data
    raise StepFailed(
        f"the original of {owned.path} is not in {path} any more",
        hint="put it there or in the file's place from a backup;"
        " or have only our keys taken out: revert --even-if-in-use",
    )
