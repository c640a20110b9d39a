"""Conversion of the record to JSON values and back. Every value is validated when it is read."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from runtimes.lazy_pattern import lazy_pattern
from runtimes.model import ABSENT, Edit, Effective
from toolkit.state import record

_HASH: Final = lazy_pattern("[0-9a-f]{64}")
_HIGHEST_ID: Final = (1 << 32) - 2
_END_OF_TIME: Final = 1e12


def encoded(record: record.Record) -> dict[str, Any]:
    """Return a record as JSON values."""
    specification = record.specification
    optional: dict[str, Any] = (
        {
            "specification": _encoded_owned(specification),
            "specification_source": record.specification_source,
        }
        if specification is not None
        else {}
    )
    if record.location:
        optional["location"] = dict(record.location)
    return {
        **optional,
        "sequence": record.sequence,
        "runtime": record.runtime,
        "pending_reload": (
            _encoded_pending(record.pending_reload) if record.pending_reload else None
        ),
        "restarting": record.restarting,
        "directories": list(record.directories),
        "toolkit_digest": record.toolkit_digest,
        "displaced": record.displaced,
        "unit": record.unit,
        "owned": [_encoded_owned(owned) for owned in record.owned],
        "open": _encoded_open(record.open) if record.open else None,
    }


def _encoded_pending(pending: record.PendingReload) -> dict[str, Any]:
    return {
        "since": pending.since,
        "process": list(pending.process) if pending.process else None,
        "boot_id": pending.boot_id,
        "uptime": pending.uptime,
    }


def _encoded_open(opened: record.Transaction) -> dict[str, Any]:
    baseline = opened.baseline
    return {
        "operation": opened.operation,
        "previous": encoded(opened.previous),
        "baseline": {
            "has": _encoded_effective(baseline.has),
            "files": _encoded_effective(baseline.files),
            "was_healthy": baseline.was_healthy,
            "supports_cri": baseline.supports_cri,
            "has_network": baseline.has_network,
            "identity": baseline.identity,
            "boot": baseline.boot,
            "dependents": list(baseline.dependents),
        },
        "files": [_encoded_owned(owned) for owned in opened.files],
        "notified": opened.notified,
        "failure": opened.failure,
    }


def _encoded_effective(has: Effective) -> dict[str, Any]:
    return {
        "handlers": None if has.handlers is None else sorted(has.handlers),
        "default": has.default,
        "sandbox_image": has.sandbox_image,
    }


def _encoded_owned(owned: record.Owned) -> dict[str, Any]:
    # Records of earlier versions have no attributes; they must not be read back as an empty set.
    optional = {"attributes": dict(owned.attributes)} if owned.attributes is not None else {}
    return {
        **optional,
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
    encoded: dict[str, Any] = {"key": list(edit.key), "required_keys": list(edit.required_keys)}
    # An absent value is left out, to tell it from null.
    encoded |= {
        name: item for name, item in (("old", edit.old), ("new", edit.new)) if item is not ABSENT
    }
    return encoded


def decoded(content: Mapping[str, Any]) -> record.Record:
    """Return the record that JSON values contain.

    Raises ValueError, KeyError, TypeError or AttributeError if they are not a valid record.
    """
    return record.Record(
        sequence=_typed(content["sequence"], int),
        runtime=_typed(content["runtime"], str),
        pending_reload=(
            _decoded_pending(item) if (item := content["pending_reload"]) is not None else None
        ),
        restarting=_typed(content["restarting"], bool),
        directories=tuple(map(_path, _typed(content["directories"], list))),
        toolkit_digest=_typed(content["toolkit_digest"], str, type(None)),
        displaced=_typed(content["displaced"], str, type(None)),
        unit=_typed(content.get("unit"), str, type(None)),
        owned=tuple(_decoded_owned(item) for item in content["owned"]),
        # Records of earlier versions have no location and no CDI specification.
        location=_location(content.get("location", {})),
        specification=(
            _decoded_owned(item) if (item := content.get("specification")) is not None else None
        ),
        specification_source=_typed(content.get("specification_source", ""), str),
        # Records of format 1 have no transaction.
        open=_decoded_open(content["open"]) if content.get("open") is not None else None,
    )


def _location(value: Any) -> tuple[tuple[str, str], ...]:
    paths: dict[str, Any] = _typed(value, dict)
    return tuple(sorted((name, _path(path)) for name, path in paths.items()))


def _decoded_pending(item: Mapping[str, Any]) -> record.PendingReload:
    since = _time(item["since"])
    if since is None:
        raise ValueError("pending_reload has no time")
    return record.PendingReload(
        since=since,
        process=_decoded_process(item["process"]),
        boot_id=_typed(item["boot_id"], str),
        uptime=_time(item["uptime"]),
    )


def _decoded_process(item: Any) -> tuple[int, int | None] | None:
    if item is None:
        return None
    pid, ticks = item
    return _typed(pid, int), _typed(ticks, int, type(None))


def _decoded_open(item: Mapping[str, Any]) -> record.Transaction:
    previous, baseline = item["previous"], item["baseline"]
    if previous.get("open") is not None:
        raise ValueError("the previous record of a transaction contains a transaction")
    return record.Transaction(
        operation=record.Operation(item["operation"]),
        previous=decoded(previous),
        baseline=record.Baseline(
            has=_decoded_effective(baseline["has"]),
            files=_decoded_effective(baseline["files"]),
            was_healthy=_typed(baseline["was_healthy"], bool),
            supports_cri=_typed(baseline["supports_cri"], bool),
            has_network=_typed(baseline["has_network"], bool),
            identity=_typed(baseline.get("identity", ""), str),
            boot=_typed(baseline.get("boot", ""), str),
            dependents=_texts(baseline.get("dependents", [])),
        ),
        files=tuple(_decoded_owned(each) for each in item["files"]),
        notified=_typed(item["notified"], bool),
        failure=_typed(item["failure"], str),
    )


def _decoded_effective(item: Mapping[str, Any]) -> Effective:
    handlers = item["handlers"]
    return Effective(
        handlers=None if handlers is None else frozenset(_texts(handlers)),
        default=_typed(item["default"], str, type(None)),
        sandbox_image=_typed(item["sandbox_image"], str, type(None)),
    )


def _decoded_owned(item: Mapping[str, Any]) -> record.Owned:
    return record.Owned(
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
                required_keys=_texts(edit["required_keys"]),
            )
            for edit in item["edits"]
        ),
    )


def _path(value: Any) -> str:
    text: str = _typed(value, str)
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"{text!r} is not an absolute path")
    return text


def _hash(value: Any) -> str | None:
    text: str | None = _typed(value, str, type(None))
    if text is not None and not _HASH.fullmatch(text):
        raise ValueError(f"{text!r} is not a SHA-256 hash")
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
            raise ValueError(f"{name!r} is not the name of an attribute")
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
        raise ValueError(f"{seconds} is not a valid time")
    return seconds


def _key(value: Any) -> tuple[str, ...]:
    key = _texts(value)
    if not key:
        raise ValueError("an edit has no key")
    return key


def _typed(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError(f"{value!r} is not of type {kinds[0].__name__}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_typed(item, str) for item in _typed(value, list))
