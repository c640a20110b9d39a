"""The laws of every edit, stated without the editing code: by plain parsers, values and bytes."""

from __future__ import annotations

import codecs
import copy
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import tomli

from runtimes import edits
from runtimes.edits import DesiredKey
from runtimes.errors import ConfigError
from runtimes.model import ABSENT, Edit, FileChange, Key, Ownership, fingerprint
from toolkit.state import codec, record

Read = Callable[[bytes], dict[str, Any]]
# Codecs are loaded on first use: that is no effect of what is tested.
for _codec in (
    "utf-8-sig",
    "utf-16",
    "utf-16-be",
    "utf-16-le",
    "utf-32",
    "utf-32-be",
    "utf-32-le",
):
    codecs.lookup(_codec)
for _module in ("heapq", "tomlkit"):  # so are these modules
    importlib.import_module(_module)
_BOM: Final = "\ufeff"
_MOST_SECONDS: Final = 4.0
_BUG: Final = "please report this file"
_REWRITE: Final = "write this inline table"


# --- reading --------------------------------------------------------------------------------------


def read_toml(data: bytes) -> dict[str, Any]:
    """Return what TOML 1.1 says. Raises ValueError, RecursionError."""
    return tomli.loads(data.decode().removeprefix(_BOM))


def read_json(data: bytes) -> dict[str, Any]:
    """Parse JSON; white space alone is an empty object. Raises ValueError, RecursionError."""
    text = data.decode().removeprefix(_BOM)
    content = json.loads(text, parse_float=_Number) if text.strip(" \t\r\n") else {}
    if not isinstance(content, dict):
        raise ValueError("no object")  # noqa: TRY004 - readers raise ValueError for whatever they cannot read
    return content


class _Number(float):
    """A number with a point or an exponent: 1.0 and 1e0 are one, and neither is the integer 1."""

    __slots__ = ()


# --- comparing ------------------------------------------------------------------------------------


def alike(one: Any, other: Any) -> bool:
    """Tell whether two values are one as a document means it: true is not 1, and nan is nan."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other)  # noqa: PLR0124 - nan
    return type(one) is type(other) and bool(one == other)


def solid(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree without empty tables: a header without keys says nothing."""
    cut = {name: solid(item) if isinstance(item, Mapping) else item for name, item in tree.items()}
    return {name: item for name, item in cut.items() if not isinstance(item, Mapping) or item}


def held(tree: Mapping[str, Any], key: Key) -> Any:
    """Return what a tree holds at a key, or ABSENT."""
    found: Any = tree
    for part in key:
        if not isinstance(found, Mapping) or part not in found:
            return ABSENT
        found = found[part]
    return found


def without(tree: Mapping[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    """Return a tree without some keys and all that is below them."""
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    for key in keys:
        holder = held(result, key[:-1])
        if isinstance(holder, dict):
            holder.pop(key[-1], None)
    return solid(result)


def fulfilled(tree: Mapping[str, Any], wants: Sequence[DesiredKey]) -> dict[str, Any]:
    """Return what a tree shall be once some wishes came true."""
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    for want in wants:
        holder = result
        if want.new is ABSENT and held(result, want.key) is ABSENT:
            continue
        for part in want.key[:-1]:
            holder = holder.setdefault(part, {})
        name = want.key[-1]
        if want.new is ABSENT:
            del holder[name]
        elif (
            want.exact
            or not isinstance(want.new, Mapping)
            or not isinstance(holder.get(name), Mapping)
        ):
            holder[name] = copy.deepcopy(want.new)
        else:
            holder[name] = overlaid(holder[name], want.new)
    return result


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return two trees as one, in which the second one wins key by key."""
    result = dict(below)
    for name, item in above.items():
        both = isinstance(item, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = overlaid(result[name], item) if both else item
    return result


# --- the laws -------------------------------------------------------------------------------------


def edit(
    form: edits.Format, read: Read, data: bytes, wants: Sequence[DesiredKey]
) -> FileChange | None:
    """Apply wishes, and check the change in every way if one is made."""
    path = wants[0].path if wants else "/etc/x"
    change: FileChange | None = None
    refusal: ConfigError | None = None
    with bounded():
        try:
            change = edits.apply(form, path, data, wants)
        except ConfigError as error:
            refusal = error
    if refusal is not None:
        assert _BUG not in refusal.hint or _has_arrays(read, data, wants), (
            f"cannot be edited: {refusal}"
        )
        return None
    before = read(data)
    if change is None:
        assert alike(solid(fulfilled(before, wants)), solid(before)), "a wish was not fulfilled"
        return None
    assert change.after is not None
    assert alike(solid(read(change.after)), solid(fulfilled(before, wants))), "other keys changed"
    with bounded():
        again = edits.apply(form, path, change.after, wants)
    assert again is None, f"the second time changes {again}"
    remembered(change.edits)
    taken_back(form, read, data, change)
    return change


def _has_arrays(read: Read, data: bytes, wants: Sequence[DesiredKey]) -> bool:
    """Tell whether arrays of tables are below a wanted key: their keys have no names."""
    found = [held(read(data), want.key) for want in wants]
    while found:
        item = found.pop()
        if isinstance(item, list) and any(isinstance(below, dict) for below in item):
            return True
        found += item.values() if isinstance(item, dict) else ()
    return False


def taken_back(form: edits.Format, read: Read, data: bytes, change: FileChange) -> None:
    """Check that a change can be reverted: byte for byte, or by content after others' edits."""
    assert change.after is not None
    owned = Ownership(
        path=change.path, original=data, written=(fingerprint(change.after),), edits=change.edits
    )
    assert edits.without(form, owned, change.after) == (data, ())
    try:
        with bounded():
            back, stayed = edits.reverse(form, change.path, change.after, change.edits)
    except ConfigError as error:
        assert error.hint.startswith(_REWRITE), error  # noqa: PT017 - the law holds without an error as well
        return
    assert stayed == ()
    assert alike(solid(read(back)), solid(read(data))), "the reversal gives something else"


def remembered(changed: Sequence[Edit]) -> None:
    """Check that edits survive the record: what stood in a file, and what was wanted there."""
    owned = record.Owned(
        path="/x",
        local="/x",
        original=None,
        mode=0,
        uid=0,
        gid=0,
        label=None,
        written=(),
        edits=tuple(changed),
    )
    written = json.dumps(codec.encoded(record.Record(owned=(owned,))))
    found = codec.decoded(json.loads(written)).owned[0].edits
    for was, now in zip(changed, found, strict=True):
        assert (was.key, was.required_keys) == (now.key, now.required_keys)
        assert alike(was.old, now.old), f"{was.old!r} comes back as {now.old!r}"
        assert alike(was.new, now.new), f"{was.new!r} comes back as {now.new!r}"


@contextmanager
def bounded() -> Iterator[None]:
    """Check that some work ends in bounded time and that nothing outside is touched on the way."""
    started = time.process_time()
    with GUARD():
        yield
    spent = time.process_time() - started
    assert spent < _MOST_SECONDS, f"{spent:.1f} s of work"


class _Guard:
    """What the one hook of this process looks at; a hook cannot be taken away again."""

    _EFFECTS: Final = ("open", "os.", "shutil.", "socket.", "subprocess.", "tempfile.", "pathlib.")

    def __init__(self) -> None:
        self._armed = False
        self._caught: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._armed and event.startswith(self._EFFECTS):
            self._caught.append(f"{event} {arguments!r}"[:300])

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._caught = []
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
        assert not self._caught, f"an effect: {self._caught[0]}"


GUARD: Final = _Guard()
