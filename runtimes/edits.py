"""Key edits that can be taken back: what was wanted, what stood there before, what somebody changed since."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from math import isnan
from typing import Any, Final, Protocol

from runtimes.errors import NotUnderstood
from runtimes.model import ABSENT, Edit, FileChange, Key, Ownership, Tree, fingerprint

_MANY: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """One key that shall have a value in a file; ABSENT for one that shall not be there.

    A mapping is merged into a table that is there, unless `exact`: then keys
    that it does not name go.
    """

    path: str
    key: Key
    new: Any
    exact: bool = False
    essential: tuple[str, ...] = ()


class Document(Protocol):
    """A parsed file that can give its bytes."""

    def encode(self) -> bytes:
        """Return the bytes of the document."""


class Format(Protocol):
    """What `tomldoc` and `jsondoc` have in common; the modules themselves are the values."""

    def parse(self, data: bytes, path: str) -> Any:
        """Cut bytes into a document."""

    def tree(self, data: bytes, path: str) -> dict[str, Any]:
        """Return the content as plain values, read by an independent parser."""

    def read(self, data: bytes, path: str) -> tuple[Any, dict[str, Any]]:
        """Return both, looked through once."""

    def put(self, document: Any, key: Key, new: Any) -> Any:
        """Set a key."""

    def drop(self, document: Any, key: Key) -> Any:
        """Remove a key."""


def apply(form: Format, path: str, data: bytes | None, wants: Sequence[Want]) -> FileChange | None:
    """Return the change that makes a file hold what is wanted, or None where it does already.

    The result is parsed again and must differ from the original in exactly the
    wanted keys. Raises NotUnderstood where the file cannot be read, or cannot be
    edited without touching something else.
    """
    document, expected = form.read(data or b"", path)
    edits: list[Edit] = []
    for want in wants:
        old = value(expected, want.key)
        new = _merged(old, want)
        if same(old, new):
            continue
        if _has_dates((old, new)):
            raise NotUnderstood(path, f"{spell(want.key)} holds a date or time, which cannot be remembered")
        edits.append(Edit(key=want.key, old=copy.deepcopy(old), new=new, essential=want.essential))
        document = _change(form, document, want.key, old, new)
        _assign(expected, want.key, new, path=path)
    if not edits:
        return None
    after = document.encode()
    _prove(form, path, after, expected)
    return FileChange(path=path, before=data, after=after, edits=tuple(edits))


def reverse(form: Format, path: str, data: bytes, edits: Sequence[Edit]) -> tuple[bytes, tuple[str, ...]]:
    """Take our edits out of a file that somebody edited since.

    Returns the bytes and, in words, what stays because it is not what we wrote.
    """
    document, expected = form.read(data, path)
    stayed: list[str] = []
    for edit in sorted(edits, key=lambda e: bool(e.essential) and not isinstance(e.new, Mapping)):
        now = value(expected, edit.key)
        back, names = _back(expected, edit, now)
        stayed += names
        if not same(now, back):
            document = _change(form, document, edit.key, now, back)
            _assign(expected, edit.key, back, path=path)
    after: bytes = document.encode()
    _prove(form, path, after, expected)
    return after, tuple(stayed)


def given_back(path: str, content: Tree, edit: Edit) -> Iterator[Want]:
    """Yield the wish that takes one edit back, where its key still holds what we wrote."""
    if edit.new is not ABSENT and same(value(content, edit.key), edit.new):
        yield Want(path=path, key=edit.key, new=edit.old, exact=True)


def without(form: Format, owned: Ownership, data: bytes | None) -> tuple[bytes | None, tuple[str, ...]]:
    """Return what a file would hold without us (None: it would not be there), and what stayed of others.

    Raises NotUnderstood where the file was edited since and cannot be read.
    """
    if data == owned.original:
        return data, ()
    if fingerprint(data) in owned.written:
        return owned.original, ()
    if data is None:
        return None, ()
    if not owned.edits:
        return data, ("the whole file (edited since)",)
    rest, stayed = reverse(form, owned.path, data, owned.edits)
    if owned.original is None and not solid(form.tree(rest, owned.path)):
        return None, stayed
    return rest, stayed


def value(content: Tree, key: Key) -> Any:
    """Return the value at a key, or ABSENT."""
    found: Any = content
    for part in key:
        if not isinstance(found, Mapping) or part not in found:
            return ABSENT
        found = found[part]
    return found


def solid(tree: Tree) -> dict[str, Any]:
    """Return a tree without empty tables: a header left without keys says nothing."""
    result: dict[str, Any] = {}
    for name, item in tree.items():
        kept = solid(item) if isinstance(item, Mapping) else item
        if not isinstance(item, Mapping) or kept:
            result[name] = kept
    return result


def leaves(content: Any, prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield every leaf below a value with its key; an empty table is a leaf."""
    if isinstance(content, Mapping) and (content or not prefix):
        for name, item in content.items():
            yield from leaves(item, (*prefix, str(name)))
    else:
        yield prefix, content


def differences(before: Tree, after: Tree) -> list[tuple[Key, Any, Any]]:
    """Return (key, before, after) of every leaf that differs, in order of the key."""
    old, new = dict(leaves(before)), dict(leaves(after))
    return [
        (key, old.get(key, ABSENT), new.get(key, ABSENT))
        for key in sorted({*old, *new})
        if not same(old.get(key, ABSENT), new.get(key, ABSENT))
    ]


def same(one: Any, other: Any) -> bool:
    """Compare values as documents do: true is not 1, and 1 is not 1.0."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float) and isnan(one) and isnan(other):
        return True
    return type(one) is type(other) and bool(one == other)


def spell(key: Key) -> str:
    """Return a key as a person writes it."""
    return ".".join(part if part.replace("-", "").replace("_", "").isalnum() else f'"{part}"' for part in key)


def merge(edits: Sequence[Edit], later: Sequence[Edit]) -> tuple[Edit, ...]:
    """Return both as one list: for a key that both have, the oldest old value and the newest new one."""
    found = {edit.key: edit for edit in edits}
    for edit in later:
        first = found.get(edit.key)
        old = edit.old if first is None else first.old
        found[edit.key] = Edit(key=edit.key, old=old, new=edit.new, essential=edit.essential)
    return tuple(found.values())


# --- one key ------------------------------------------------------------------------------------


def _merged(old: Any, want: Want) -> Any:
    if want.exact or not isinstance(want.new, Mapping) or not isinstance(old, Mapping):
        return want.new
    return overlaid(old, want.new)


def overlaid(old: Tree, new: Tree) -> dict[str, Any]:
    """Return two trees as one: key by key the new one wins, and what it holds as ABSENT goes."""
    result = dict(old)
    for name, item in new.items():
        below = result.get(name)
        if isinstance(item, Mapping) and isinstance(below, Mapping):
            result[name] = overlaid(below, item)
        elif item is ABSENT:
            result.pop(name, None)
        else:
            result[name] = item
    return result


def _has_dates(item: Any) -> bool:
    """Tell whether a value has a date or time in it: JSON, which the record is in, has none."""
    if isinstance(item, Mapping):
        return any(map(_has_dates, item.values()))
    return any(map(_has_dates, item)) if isinstance(item, (list, tuple)) else isinstance(item, (date, time))


def _change(form: Format, document: Any, key: Key, old: Any, new: Any) -> Any:
    """Lead a document from one value at a key to another, touching only what differs."""
    if new is ABSENT:
        return form.drop(document, key)
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if isinstance(old, Mapping) or (isinstance(new, Mapping) and old is not ABSENT):
            document = form.drop(document, key)
        return form.put(document, key, new)
    gone = [name for name in old if name not in new]
    if len(gone) + sum(name not in old for name in new) > _MANY:
        # Each key on its own costs a look at the whole document.
        return form.put(form.drop(document, key), key, new)
    for name in gone:
        document = form.drop(document, (*key, name))
    for name, item in new.items():
        below = old.get(name, ABSENT)
        if not same(below, item):
            document = _change(form, document, (*key, name), below, item)
    return document


def _assign(tree: dict[str, Any], key: Key, new: Any, *, path: str = "") -> None:
    holder = tree
    for part in key[:-1]:
        if new is ABSENT and part not in holder:
            return
        holder = holder.setdefault(part, {})
        if not isinstance(holder, dict):
            raise NotUnderstood(path, f"{spell(key)} cannot be set: one of its parents is not a table")
    if new is ABSENT:
        holder.pop(key[-1], None)
    else:
        holder[key[-1]] = copy.deepcopy(new)


def _prove(form: Format, path: str, after: bytes, expected: Tree) -> None:
    seen = form.tree(after, path)
    wrong = [key for key, _, _ in differences(solid(expected), solid(seen))]
    if wrong:
        raise NotUnderstood(
            path,
            f"it cannot be edited without changing {', '.join(map(spell, wrong[:3]))} too",
            hint="please report this file: it is written in a way that the editor does not handle",
        )


def _back(tree: Tree, edit: Edit, now: Any) -> tuple[Any, list[str]]:
    """Return what a key shall hold after the removal, and in words what stays of somebody else's."""
    if same(now, edit.old) or (now is ABSENT and edit.new is not ABSENT):
        return now, []
    name = spell(edit.key)
    if same(now, edit.new):
        others = solid(value(tree, edit.key[:-1])) if edit.essential else {}
        if edit.key[-1] in edit.essential and any(k != edit.key[-1] for k in others):
            return now, [f"{name} = {now!r} (other keys need it)"]
        return edit.old, []
    if isinstance(now, list) and isinstance(edit.new, (list, tuple)):
        before = edit.old if isinstance(edit.old, (list, tuple)) else []
        return (_without_ours(now, edit.new, before) or edit.old), []
    if not isinstance(now, Mapping) or not isinstance(edit.new, Mapping):
        return now, [f"{name} = {now!r}"]
    return _back_table(edit, now, name)


def _without_ours(now: Sequence[Any], ours: Sequence[Any], before: Sequence[Any]) -> list[Any]:
    """Return a list without the items that we added to those of before."""
    try:
        added = frozenset(ours) - frozenset(before)
        return [item for item in now if item not in added]
    except TypeError:  # Tables are among them, which nothing but a longer search finds.
        return [item for item in now if item in before or item not in ours]


def _back_table(edit: Edit, now: Tree, name: str) -> tuple[Any, list[str]]:
    ours, found = dict(leaves(edit.new)), dict(leaves(now))
    if any(not same(found.get(key, ABSENT), item) for key, item in ours.items()):
        return now, [f"{name} (edited since)"]
    foreign = [key for key in found if key not in ours]
    rest = copy.deepcopy(dict(now))
    before = dict(leaves(edit.old)) if isinstance(edit.old, Mapping) else {}
    for key in ours:
        if key in before:
            _assign(rest, key, before[key])
        elif key[-1] not in edit.essential:
            _assign(rest, key, ABSENT)
    return solid(rest), [f"{name}.{spell(key)} = {found[key]!r}" for key in foreign]
