"""Apply edits of single keys to a file, and revert them even if others edited the file since."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from math import isnan
from typing import Any, Final, Protocol

from runtimes.dataclass import dataclass
from runtimes.errors import ConfigError
from runtimes.model import (
    ABSENT,
    Edit,
    FileChange,
    Key,
    Ownership,
    Tree,
    fingerprint,
    without_empty_tables,
)

_MANY: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredKey:
    """The desired value of one key of a file; ABSENT if the key must not exist.

    A mapping is merged into an existing table. With `exact`, keys that it does not name are
    removed.
    """

    path: str
    key: Key
    new: Any
    exact: bool = False
    required_keys: tuple[str, ...] = ()


class Document(Protocol):
    """A parsed file that can be encoded to bytes again."""

    def encode(self) -> bytes:
        """Return the bytes of the document."""


class Format(Protocol):
    """The interface of the modules `toml_editor` and `json_editor`."""

    def parse(self, data: bytes, path: str) -> Any:
        """Return the bytes as a document that can be edited."""

    def tree(self, data: bytes, path: str) -> dict[str, Any]:
        """Return the content as plain values, as parsed by the standard library."""

    def read(self, data: bytes, path: str) -> tuple[Any, dict[str, Any]]:
        """Return the document and the plain values from one pass over the bytes."""

    def put(self, document: Any, key: Key, new: Any) -> Any:
        """Return the document with a key set."""

    def drop(self, document: Any, key: Key) -> Any:
        """Return the document without a key."""


def apply(
    form: Format, path: str, data: bytes | None, wants: Sequence[DesiredKey]
) -> FileChange | None:
    """Return the change that sets the desired keys in a file; None if they are already set.

    The result is parsed again and must differ from the original in exactly the desired keys. Raise
    ConfigError if the file cannot be parsed, or cannot be edited without changing other keys.
    """
    document, expected = form.read(data or b"", path)
    edits: list[Edit] = []
    for want in wants:
        old = value(expected, want.key)
        new = _merged(old, want)
        if same(old, new):
            continue
        if _has_dates((old, new)):
            raise ConfigError(
                path,
                f"{dotted(want.key)} contains a date or time, which the state file cannot store",
            )
        edits.append(
            Edit(key=want.key, old=copy.deepcopy(old), new=new, required_keys=want.required_keys)
        )
        document = _change(form, document, want.key, old, new)
        _assign(expected, want.key, new, path=path)
    if not edits:
        return None
    after = document.encode()
    _check_result(form, path, after, expected)
    return FileChange(path=path, before=data, after=after, edits=tuple(edits))


def reverse(
    form: Format, path: str, data: bytes, edits: Sequence[Edit]
) -> tuple[bytes, tuple[str, ...]]:
    """Revert our edits in a file that others edited since.

    Return the new content, and a message for each key that stays because others changed it.
    """
    document, expected = form.read(data, path)
    stayed: list[str] = []
    for edit in sorted(edits, key=_is_last):
        current = value(expected, edit.key)
        reverted, names = _reverted(expected, edit, current)
        stayed += names
        if not same(current, reverted):
            document = _change(form, document, edit.key, current, reverted)
            _assign(expected, edit.key, reverted, path=path)
    after: bytes = document.encode()
    _check_result(form, path, after, expected)
    return after, tuple(stayed)


def _is_last(edit: Edit) -> bool:
    """Return whether an edit is reverted after those of other keys beside or below its key."""
    is_required = bool(edit.required_keys) and not isinstance(edit.new, Mapping)
    return is_required or edit.new == {}


def reverting_keys(path: str, content: Tree, edit: Edit) -> Iterator[DesiredKey]:
    """Yield the desired key that reverts one edit, if the key still has the value that we wrote."""
    if edit.new is not ABSENT and same(value(content, edit.key), edit.new):
        yield DesiredKey(path=path, key=edit.key, new=edit.old, exact=True)


def without(
    form: Format, owned: Ownership, data: bytes | None
) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the content of a file without our changes (None: no file), and what others changed.

    Raise ConfigError if the file was edited since and cannot be parsed.
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
    if owned.original is None and not without_empty_tables(form.tree(rest, owned.path)):
        return None, stayed
    return rest, stayed


def value(content: Tree, key: Key) -> Any:
    """Return the value at a key, or ABSENT."""
    result: Any = content
    for part in key:
        if not isinstance(result, Mapping) or part not in result:
            return ABSENT
        result = result[part]
    return result


def leaves(content: Any, prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield every leaf below a value with its key; an empty table counts as a leaf."""
    if _is_table(content) and (content or not prefix):
        for name, item in content.items():
            yield from leaves(item, (*prefix, str(name)))
    else:
        yield prefix, content


def differences(before: Tree, after: Tree) -> list[tuple[Key, Any, Any]]:
    """Return (key, before, after) for every leaf that differs, sorted by key."""
    return sorted(_differing(before, after, ()), key=lambda difference: difference[0])


def _differing(old: Any, new: Any, prefix: Key) -> Iterator[tuple[Key, Any, Any]]:
    """Yield the differences below a key. The whole trees are walked once, side by side."""
    if not (_is_table(old) and _is_table(new) and ((old and new) or not prefix)):
        before = {} if old is ABSENT else dict(leaves(old, prefix))
        after = {} if new is ABSENT else dict(leaves(new, prefix))
        for key in {**before, **after}:
            values = before.get(key, ABSENT), after.get(key, ABSENT)
            if not same(*values):
                yield key, *values
        return
    for name in {**old, **new}:
        one, other = old.get(name, ABSENT), new.get(name, ABSENT)
        if not (type(one) is type(other) is str and one == other):  # as most are
            yield from _differing(one, other, (*prefix, str(name)))


def _is_table(value_: object) -> bool:
    # Asking about an abstract class takes many times as long.
    return type(value_) is dict or isinstance(value_, Mapping)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and of the same type: true is not 1, and 1 is not 1.0."""
    if type(one) is type(other) is str:
        return bool(one == other)
    if _is_table(one) and _is_table(other):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float) and isnan(one) and isnan(other):
        return True
    return type(one) is type(other) and bool(one == other)


def dotted(key: Key) -> str:
    """Return a key in dotted notation, with quotes around parts that need them."""
    return ".".join(
        part if part.replace("-", "").replace("_", "").isalnum() else f'"{part}"' for part in key
    )


def value_text(item: Any) -> str:
    """Return a value as text for messages, as in TOML and JSON; `nothing` for a missing key."""
    if isinstance(item, str):
        return repr(item)
    if isinstance(item, Mapping):
        entries = (f"{dotted((key,))}: {value_text(each)}" for key, each in item.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(item, Sequence):
        return f"[{', '.join(map(value_text, item))}]"
    text = {ABSENT: "nothing", None: "null"}.get(item, str(item))
    return text.lower() if isinstance(item, bool) else text


def merge(edits: Sequence[Edit], later: Sequence[Edit]) -> tuple[Edit, ...]:
    """Merge both lists; a key in both gets the old value of `edits` and the new one of `later`."""
    result = {edit.key: edit for edit in edits}
    for edit in later:
        first = result.get(edit.key)
        old = edit.old if first is None else first.old
        result[edit.key] = Edit(
            key=edit.key, old=old, new=edit.new, required_keys=edit.required_keys
        )
    return tuple(result.values())


# --- one key ------------------------------------------------------------------------------------


def _merged(old: Any, want: DesiredKey) -> Any:
    if want.exact or not isinstance(want.new, Mapping) or not isinstance(old, Mapping):
        return want.new
    return overlaid(old, want.new)


def overlaid(old: Tree, new: Tree) -> dict[str, Any]:
    """Return `old` with `new` merged over it; keys with the value ABSENT in `new` are removed."""
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
    """Return whether a value contains a date or time, which the state file's JSON cannot store."""
    if isinstance(item, Mapping):
        return any(map(_has_dates, item.values()))
    return (
        any(map(_has_dates, item))
        if isinstance(item, (list, tuple))
        else isinstance(item, (date, time))
    )


def _change(form: Format, document: Any, key: Key, old: Any, new: Any) -> Any:
    """Return the document with a key's value changed from `old` to `new`; edit only differences."""
    if new is ABSENT:
        return form.drop(document, key)
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if isinstance(old, Mapping) or (isinstance(new, Mapping) and old is not ABSENT):
            document = form.drop(document, key)
        return form.put(document, key, new)
    gone = [name for name in old if name not in new]
    if len(gone) + sum(name not in old for name in new) > _MANY:
        # Each single edit scans the whole document, so rewriting the table is faster.
        return form.put(form.drop(document, key), key, new)
    for name in gone:
        document = form.drop(document, (*key, name))
    for name, item in new.items():
        below = old.get(name, ABSENT)
        if not same(below, item):
            document = _change(form, document, (*key, name), below, item)
    return document


def _assign(tree: dict[str, Any], key: Key, new: Any, *, path: str = "") -> None:
    """Set or remove a key of a tree in place. Raise ConfigError if a parent is not a table."""
    parent = tree
    for part in key[:-1]:
        if new is ABSENT and part not in parent:
            return
        parent = parent.setdefault(part, {})
        if not isinstance(parent, dict):
            raise ConfigError(
                path, f"{dotted(key)} cannot be set: one of its parents is not a table"
            )
    if new is ABSENT:
        parent.pop(key[-1], None)
    else:
        parent[key[-1]] = copy.deepcopy(new)


def _check_result(form: Format, path: str, after: bytes, expected: Tree) -> None:
    """Raise ConfigError if the edited bytes do not parse to the expected values."""
    actual = form.tree(after, path)
    if same(expected, actual):
        return
    wrong = [
        key
        for key, _, _ in differences(without_empty_tables(expected), without_empty_tables(actual))
    ]
    if wrong:
        raise ConfigError(
            path,
            f"it cannot be edited without changing {', '.join(map(dotted, wrong[:3]))} too",
            hint="please report this file: it is written in a way that the editor does not handle",
        )


def _reverted(tree: Tree, edit: Edit, current: Any) -> tuple[Any, list[str]]:
    """Return a key's value after the removal, and a message for each foreign change that stays."""
    if same(current, edit.old) or (current is ABSENT and edit.new is not ABSENT):
        return current, []
    name = dotted(edit.key)
    if same(current, edit.new):
        siblings = without_empty_tables(value(tree, edit.key[:-1])) if edit.required_keys else {}
        if edit.key[-1] in edit.required_keys and any(k != edit.key[-1] for k in siblings):
            return current, [f"{name} = {value_text(current)} (required by other keys)"]
        return edit.old, []
    if isinstance(current, list) and isinstance(edit.new, (list, tuple)):
        before = edit.old if isinstance(edit.old, (list, tuple)) else []
        return (_without_added(current, edit.new, before) or edit.old), []
    if not isinstance(current, Mapping) or not isinstance(edit.new, Mapping):
        return current, [f"{name} = {value_text(current)}"]
    return _reverted_table(edit, current, name)


def _without_added(
    current: Sequence[Any], written: Sequence[Any], before: Sequence[Any]
) -> list[Any]:
    """Return the items of `current` without those that are in `written` but not in `before`."""
    try:
        added = frozenset(written) - frozenset(before)
        return [item for item in current if item not in added]
    except TypeError:  # Tables are not hashable, so this takes a linear search per item.
        return [item for item in current if item in before or item not in written]


def _reverted_table(edit: Edit, current: Tree, name: str) -> tuple[Any, list[str]]:
    """Return the table without our leaves, and a message for each leaf that others added.

    If one of our leaves was changed since, the whole table stays.
    """
    written, present = dict(leaves(edit.new)), dict(leaves(current))
    if any(not same(present.get(key, ABSENT), item) for key, item in written.items()):
        return current, [f"{name} (edited since)"]
    foreign = [key for key in present if key not in written]
    rest = copy.deepcopy(dict(current))
    before = dict(leaves(edit.old)) if isinstance(edit.old, Mapping) else {}
    for key in written:
        if key in before:
            _assign(rest, key, before[key])
        elif key[-1] not in edit.required_keys:
            _assign(rest, key, ABSENT)
    return without_empty_tables(rest), [
        f"{name}.{dotted(key)} = {value_text(present[key])}" for key in foreign
    ]
