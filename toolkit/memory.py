"""What is remembered of a node, as frozen values and as plain ones for a file."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from runtimes.model import ABSENT, Edit, Effective

UNTOLD: Final = Effective()
_HASH: Final = re.compile("[0-9a-f]{64}")
_HIGHEST_ID: Final = (1 << 32) - 2
_END_OF_TIME: Final = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """A file that we changed: as the node names it and as we did, its original, and what we wrote.

    `original` is the SHA-256 of the original bytes, None where there was no
    file. `written` holds the hashes of what we wrote last and, until that is
    known to have happened, of what we wrote before. `attributes` are the extended
    ones, in base64 as the label is; None where nobody noted them.
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
    attributes: tuple[tuple[str, str], ...] | None = None


class Job(StrEnum):
    """What a transaction is for."""

    INSTALL = "install"
    REVERT = "revert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """How the runtime was before a transaction: what it had and what its files said, and how well it was.

    `of` names its files without us and its program, and `boot` the boot, as they were then.
    """

    has: Effective = UNTOLD
    files: Effective = UNTOLD
    was_well: bool = True
    speaks_cri: bool = False
    has_network: bool = False
    of: str = ""
    boot: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A transaction that is not committed: everything that its undo needs.

    `earlier` is the record from before it. `files` are those it changes, each as
    it was before. `told` says that the runtime may have read the change, and
    `why`, where it is not empty, that the change failed and is being taken back.
    """

    job: Job
    earlier: Record
    baseline: Baseline
    files: tuple[Owned, ...] = ()
    told: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything remembered of a node.

    `owed_since` is when a change was written, or was about to be (seconds since the
    epoch), that the runtime is not known to have taken up; None where nothing is
    owed. `owed_uptime` is when that was in seconds of the boot `owed_boot`; None
    while it is not known to be written. `owed_by` is the process that ran then
    (PID, and its start in ticks since boot). `ends` tells that we were about to
    end the runtime for it.
    `directories` are those that we made, outermost first. `replaced` is where
    the plain directory lies that stood in the way of the toolkit's. `unit` is
    the systemd service that the runtime was then. `specification` is the CDI
    specification that we made, and `made_of` names what it was made of. `open` is
    the transaction under way, None where there is none.
    """

    sequence: int = 0
    runtime: str = ""
    owed_since: float | None = None
    owed_by: tuple[int, int | None] | None = None
    owed_boot: str = ""
    owed_uptime: float | None = None
    ends: bool = False
    owned: tuple[Owned, ...] = ()
    directories: tuple[str, ...] = ()
    artifacts: str | None = None
    replaced: str | None = None
    unit: str | None = None
    specification: Owned | None = None
    made_of: str = ""
    open: Open | None = None

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing on the node is ours."""
        has_files = bool(self.owned) or self.specification is not None
        return not has_files and self.artifacts is None and not self.directories


# --- as plain values ----------------------------------------------------------------------------


def encoded(record: Record) -> dict[str, Any]:
    """Return a record as plain values."""
    made = record.specification
    more = {"specification": _encoded_owned(made), "made_of": record.made_of} if made is not None else {}
    return {
        **more,
        "sequence": record.sequence,
        "runtime": record.runtime,
        "owed_since": record.owed_since,
        "owed_by": list(record.owed_by) if record.owed_by else None,
        "owed_boot": record.owed_boot,
        "owed_uptime": record.owed_uptime,
        "ends": record.ends,
        "directories": list(record.directories),
        "artifacts": record.artifacts,
        "replaced": record.replaced,
        "unit": record.unit,
        "owned": [_encoded_owned(owned) for owned in record.owned],
        "open": _encoded_open(record.open) if record.open else None,
    }


def _encoded_open(opened: Open) -> dict[str, Any]:
    baseline = opened.baseline
    return {
        "job": opened.job,
        "earlier": encoded(opened.earlier),
        "baseline": {
            "has": _encoded_effective(baseline.has),
            "files": _encoded_effective(baseline.files),
            "was_well": baseline.was_well,
            "speaks_cri": baseline.speaks_cri,
            "has_network": baseline.has_network,
            "of": baseline.of,
            "boot": baseline.boot,
        },
        "files": [_encoded_owned(owned) for owned in opened.files],
        "told": opened.told,
        "why": opened.why,
    }


def _encoded_effective(has: Effective) -> dict[str, Any]:
    return {
        "handlers": None if has.handlers is None else sorted(has.handlers),
        "default": has.default,
        "sandbox_image": has.sandbox_image,
    }


def _encoded_owned(owned: Owned) -> dict[str, Any]:
    # Versions before this one noted none.
    more = {"attributes": dict(owned.attributes)} if owned.attributes is not None else {}
    return {
        **more,
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


def _encoded_edit(edit: Edit) -> dict[str, Any]:
    encoded: dict[str, Any] = {"key": list(edit.key), "essential": list(edit.essential)}
    # A value that is absent is told from null by not being there.
    encoded |= {name: item for name, item in (("old", edit.old), ("new", edit.new)) if item is not ABSENT}
    return encoded


def decoded(content: Mapping[str, Any]) -> Record:
    """Return plain values as a record.

    Raises ValueError, KeyError, TypeError or AttributeError where they are none.
    """
    return Record(
        sequence=_typed(content["sequence"], int),
        runtime=_typed(content["runtime"], str),
        owed_since=_time(content["owed_since"]),
        owed_by=_decoded_process(content.get("owed_by")),
        # Versions before this one went by the clock.
        owed_boot=_typed(content.get("owed_boot", ""), str),
        owed_uptime=_time(content.get("owed_uptime")),
        ends=_typed(content.get("ends", False), bool),
        directories=_texts(content["directories"]),
        artifacts=_typed(content["artifacts"], str, type(None)),
        replaced=_typed(content["replaced"], str, type(None)),
        unit=_typed(content.get("unit"), str, type(None)),
        owned=tuple(_decoded_owned(item) for item in content["owned"]),
        # Versions before this one made none.
        specification=_decoded_owned(item) if (item := content.get("specification")) is not None else None,
        made_of=_typed(content.get("made_of", ""), str),
        # A record of format 1 has none.
        open=_decoded_open(content["open"]) if content.get("open") is not None else None,
    )


def _decoded_process(item: Any) -> tuple[int, int | None] | None:
    if item is None:
        return None
    pid, ticks = item
    return _typed(pid, int), _typed(ticks, int, type(None))


def _decoded_open(item: Mapping[str, Any]) -> Open:
    earlier, baseline = item["earlier"], item["baseline"]
    if earlier.get("open") is not None:
        raise ValueError("a transaction within a transaction")
    return Open(
        job=Job(item["job"]),
        earlier=decoded(earlier),
        baseline=Baseline(
            has=_decoded_effective(baseline["has"]),
            files=_decoded_effective(baseline["files"]),
            was_well=_typed(baseline["was_well"], bool),
            speaks_cri=_typed(baseline["speaks_cri"], bool),
            has_network=_typed(baseline["has_network"], bool),
            of=_typed(baseline.get("of", ""), str),
            boot=_typed(baseline.get("boot", ""), str),
        ),
        files=tuple(_decoded_owned(each) for each in item["files"]),
        told=_typed(item["told"], bool),
        why=_typed(item["why"], str),
    )


def _decoded_effective(item: Mapping[str, Any]) -> Effective:
    handlers = item["handlers"]
    return Effective(
        handlers=None if handlers is None else frozenset(_texts(handlers)),
        default=_typed(item["default"], str, type(None)),
        sandbox_image=_typed(item["sandbox_image"], str, type(None)),
    )


def _decoded_owned(item: Mapping[str, Any]) -> Owned:
    return Owned(
        path=_path(item["path"]),
        local=_path(item["local"]),
        original=_hash(item["original"]),
        mode=_number(item["mode"], 0o7777),
        uid=_number(item["uid"], _HIGHEST_ID),
        gid=_number(item["gid"], _HIGHEST_ID),
        label=_label(item["label"]),
        written=_texts(item["written"]),
        attributes=_attributes(item.get("attributes")),
        edits=tuple(
            Edit(
                key=_key(edit["key"]),
                old=edit.get("old", ABSENT),
                new=edit.get("new", ABSENT),
                essential=_texts(edit["essential"]),
            )
            for edit in item["edits"]
        ),
    )


def _path(value: Any) -> str:
    text: str = _typed(value, str)
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"{text!r} is no path")
    return text


def _hash(value: Any) -> str | None:
    text: str | None = _typed(value, str, type(None))
    if text is not None and not _HASH.fullmatch(text):
        raise ValueError(f"{text!r} is no hash")
    return text


def _label(value: Any) -> str | None:
    text: str | None = _typed(value, str, type(None))
    base64.b64decode(text or "", validate=True)
    return text


def _attributes(value: Any) -> tuple[tuple[str, str], ...] | None:
    if value is None:
        return None
    texts: dict[str, Any] = _typed(value, dict)
    for name, text in texts.items():
        if "\0" in name:
            raise ValueError(f"{name!r} is no name")
        base64.b64decode(_typed(text, str), validate=True)
    return tuple(sorted(texts.items()))


def _number(value: Any, highest: int) -> int:
    number: int = _typed(value, int)
    if not 0 <= number <= highest:
        raise ValueError(f"{number} is not between 0 and {highest}")
    return number


def _time(value: Any) -> float | None:
    seconds: float | None = _typed(value, float, int, type(None))
    if seconds is not None and not abs(seconds) < _END_OF_TIME:
        raise ValueError(f"{seconds} is no time")
    return seconds


def _key(value: Any) -> tuple[str, ...]:
    key = _texts(value)
    if not key:
        raise ValueError("an edit without a key")
    return key


def _typed(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError(f"{value!r} is no {kinds[0].__name__}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_typed(item, str) for item in _typed(value, list))
