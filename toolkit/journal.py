"""The durable record of what is ours: original bytes by content hash, edits, and what is still owed.

It lies below the install directory, beside `toolkit/`, and is written before
the first byte of anything else changes. What was there first wins: however
often we write a file, its original is the one from before us.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from runtimes import edits
from runtimes.model import ABSENT, Edit, FileChange, Ownership, fingerprint
from toolkit import __version__, files
from toolkit.errors import NodeNotUnderstood, StepFailed

FORMAT: Final = 1
READABLE_BY: Final = 1
_DIRECTORY: Final = ".nvidia-toolkit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """A file that we changed: as the node names it and as we did, its original, and what we wrote.

    `original` is the SHA-256 of the original bytes, None where there was no
    file. `written` holds the hashes of what we wrote last and, until that is
    known to have happened, of what we wrote before.
    """

    path: str
    local: str
    original: str | None
    mode: int
    uid: int
    gid: int
    label: str | None
    written: tuple[str, ...]
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything remembered of a node.

    `owed_since` is when a change was written (seconds since the epoch) that the
    runtime is not known to have taken up; None where nothing is owed.
    `directories` are those that we made, outermost first. `replaced` is where
    the plain directory lies that stood in the way of the toolkit's. `unit` is
    the systemd service that the runtime was then, and `had_cri` tells whether it
    answered over CRI before what is owed.
    """

    sequence: int = 0
    runtime: str = ""
    owed_since: float | None = None
    owned: tuple[Owned, ...] = ()
    directories: tuple[str, ...] = ()
    artifacts: str | None = None
    replaced: str | None = None
    unit: str | None = None
    had_cri: bool = False

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing on the node is ours."""
        return not self.owned and self.artifacts is None and not self.directories


def directory(install_dir: Path) -> Path:
    """Return where the record of an install directory lies."""
    return install_dir / _DIRECTORY


def load(install_dir: Path) -> Record:
    """Return what is remembered; nothing where there is no record.

    Raises NodeNotUnderstood for a record that a newer version wrote for newer
    versions only, or that is damaged.
    """
    path = directory(install_dir) / "state.json"
    seen = files.read(path)
    if seen is None:
        return Record()
    hint = f"keep {path.parent} and ask for help, or remove it to give up the way back"
    try:
        content = json.loads(seen.data)
        readable_by = int(content["readable_by"])
        if readable_by > FORMAT:
            raise NodeNotUnderstood(
                f"{path} was written by nvidia-toolkit {content.get('tool')} for newer versions",
                hint="use that version or a newer one",
            )
        return _decoded(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NodeNotUnderstood(f"{path} is damaged: {error!r}", hint=hint) from error


def save(install_dir: Path, record: Record) -> Record:
    """Make a record durable and return it with its new sequence number."""
    record = replace(record, sequence=record.sequence + 1)
    target = directory(install_dir)
    files.make_directory(target, 0o700)
    content = json.dumps(_encoded(record), indent=1, sort_keys=True).encode() + b"\n"
    files.put(target / "state.json", content, mode=0o600)
    return record


def ownerships(install_dir: Path, record: Record) -> tuple[Ownership, ...]:
    """Return what we own with the original bytes, as the planner wants it. Raises StepFailed."""
    return tuple(
        Ownership(
            path=owned.path,
            original=_original(install_dir, owned),
            written=owned.written,
            edits=owned.edits,
        )
        for owned in record.owned
    )


def remember(
    install_dir: Path,
    record: Record,
    change: FileChange,
    *,
    local: Path,
    seen: files.Seen | None,
    without_us: bytes | None,
) -> Record:
    """Return the record with a change that is about to happen; the original bytes are kept first.

    `without_us` are the bytes that the file would have now if we had never
    been: the original of a file that somebody edited between two of our writes.
    """
    before = next((owned for owned in record.owned if owned.path == change.path), None)
    now = fingerprint(seen.data if seen else None)
    written = (fingerprint(change.after), *([fingerprint(change.stone)] if change.stone else []))
    known = before is not None and now in before.written
    if before is not None and known:
        earlier = tuple(mark for mark in before.written if mark == now)
        owned = replace(before, written=written + earlier, edits=edits.merge(before.edits, change.edits))
    else:
        earlier_edits = before.edits if before is not None else ()
        if without_us is not None:
            _keep(install_dir, without_us)
        owned = Owned(
            path=change.path,
            local=str(local),
            original=None if without_us is None else fingerprint(without_us),
            mode=seen.mode if seen else 0o644,
            uid=seen.uid if seen else 0,
            gid=seen.gid if seen else 0,
            label=base64.b64encode(seen.label).decode() if seen and seen.label else None,
            # Until it is written, what is there still has our earlier keys in it: it counts as ours too.
            written=(*written, now) if before is not None else written,
            edits=edits.merge(earlier_edits, change.edits),
        )
    others = tuple(o for o in record.owned if o.path != change.path)
    return replace(record, owned=(*others, owned))


def also_written(record: Record, path: str, data: bytes) -> Record:
    """Return the record in which a content of a file of ours counts as written by us."""
    owned = tuple(
        replace(o, written=(*o.written, fingerprint(data))) if o.path == path else o for o in record.owned
    )
    return replace(record, owned=owned)


def settled(record: Record, *, owed_since: float | None = None) -> Record:
    """Return the record once everything in it has happened, but perhaps for the reload."""
    owned = tuple(replace(o, written=o.written[:1]) for o in record.owned)
    return replace(record, owned=owned, owed_since=owed_since)


def forget(install_dir: Path) -> None:
    """Remove the record with everything that it kept. The caller knows that nothing is ours any more."""
    target = directory(install_dir)
    originals = target / "originals"
    # From here on nothing is owed: a kill must not leave a record that asks for originals which are gone.
    save(install_dir, replace(load(install_dir), owned=(), artifacts=None, replaced=None))
    if originals.is_dir():
        for kept in originals.iterdir():
            files.remove(kept)
        originals.rmdir()
    files.remove(target / "state.json")
    if target.is_dir():
        try:
            target.rmdir()
        except OSError as error:
            raise StepFailed(f"{target} cannot be removed: {error.strerror}") from error


# --- on disk ------------------------------------------------------------------------------------


def _keep(install_dir: Path, data: bytes) -> None:
    path = directory(install_dir) / "originals" / fingerprint(data)
    files.make_directory(directory(install_dir), 0o700)
    files.make_directory(path.parent, 0o700)
    seen = files.read(path)
    if seen is None or seen.data != data:
        files.put(path, data, mode=0o600)


def _original(install_dir: Path, owned: Owned) -> bytes | None:
    if owned.original is None:
        return None
    path = directory(install_dir) / "originals" / owned.original
    seen = files.read(path)
    if seen is None or fingerprint(seen.data) != owned.original:
        raise StepFailed(
            f"the original of {owned.path} is not in {path} any more",
            hint="restore it from a backup, or edit the file by hand",
        )
    return seen.data


def _encoded(record: Record) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "readable_by": READABLE_BY,
        "tool": __version__,
        "sequence": record.sequence,
        "runtime": record.runtime,
        "owed_since": record.owed_since,
        "directories": list(record.directories),
        "artifacts": record.artifacts,
        "replaced": record.replaced,
        "unit": record.unit,
        "had_cri": record.had_cri,
        "owned": [
            {
                "path": owned.path,
                "local": owned.local,
                "original": owned.original,
                "mode": owned.mode,
                "uid": owned.uid,
                "gid": owned.gid,
                "label": owned.label,
                "written": list(owned.written),
                "edits": [_encoded_edit(edit) for edit in owned.edits],
            }
            for owned in record.owned
        ],
    }


def _encoded_edit(edit: Edit) -> dict[str, Any]:
    encoded: dict[str, Any] = {"key": list(edit.key), "essential": list(edit.essential)}
    # A value that is absent is told from null by not being there.
    encoded |= {name: item for name, item in (("old", edit.old), ("new", edit.new)) if item is not ABSENT}
    return encoded


def _decoded(content: Mapping[str, Any]) -> Record:
    return Record(
        sequence=_typed(content["sequence"], int),
        runtime=_typed(content["runtime"], str),
        owed_since=_typed(content["owed_since"], float, int, type(None)),
        directories=_texts(content["directories"]),
        artifacts=_typed(content["artifacts"], str, type(None)),
        replaced=_typed(content["replaced"], str, type(None)),
        unit=_typed(content.get("unit"), str, type(None)),
        had_cri=_typed(content.get("had_cri", False), bool),
        owned=tuple(_decoded_owned(item) for item in content["owned"]),
    )


def _decoded_owned(item: Mapping[str, Any]) -> Owned:
    return Owned(
        path=_typed(item["path"], str),
        local=_typed(item["local"], str),
        original=_typed(item["original"], str, type(None)),
        mode=_typed(item["mode"], int),
        uid=_typed(item["uid"], int),
        gid=_typed(item["gid"], int),
        label=_typed(item["label"], str, type(None)),
        written=_texts(item["written"]),
        edits=tuple(
            Edit(
                key=_texts(edit["key"]),
                old=edit.get("old", ABSENT),
                new=edit.get("new", ABSENT),
                essential=_texts(edit["essential"]),
            )
            for edit in item["edits"]
        ),
    )


def _typed(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError(f"{value!r} is no {kinds[0].__name__}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_typed(item, str) for item in _typed(value, list))
