"""A TOML file edited so that nothing but the asked keys changes.

The text is cut into statements and only those that are touched are written
anew, with tomlkit. A whole document is never sent through tomlkit: it does not
give back every real file byte for byte (image-builder's Azure config, seen
with 0.15.2), and tables that are declared out of order move when edited.
Whoever edits checks the result with `tomllib`, an independent parser.
tomlkit is loaded by what writes: a node that is right is only read.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Final

from runtimes.errors import NotUnderstood
from runtimes.model import ABSENT, Key, Tree
from runtimes.tomlcut import Document, Statement, indent_of, parse, read, tree
from runtimes.tomlsection import insert, key_indent, new_section, plain, render, section_end, spell, splice

__all__ = ["append", "drop", "parse", "put", "read", "render", "tree"]

# Each one that goes costs tomlkit a look at all of them.
_MOST_SURPLUS: Final = 64


def put(document: Document, key: Key, new: Any) -> Document:
    """Set a key; a mapping becomes a table and is merged into one that is there.

    Raises NotUnderstood for what TOML cannot say, null for one.
    """
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415

    try:
        return _put(document, key, new)
    except TOMLKitError as error:
        raise NotUnderstood(document.path, f"{'.'.join(key)} cannot be written: {error}") from error


def _put(document: Document, key: Key, new: Any) -> Document:
    if isinstance(new, Mapping):
        return _put_table(document, key, new)
    exact = _exact(document, key)
    if exact is not None and isinstance(new, (list, tuple)):
        return _put_array(document, exact, key, list(new))
    if exact is not None:
        return _rewrite(document, exact, key, new)
    holder = _inline_holder(document, key)
    if holder is not None:
        return _rewrite(document, holder, key, new)
    return _put_line(document, key, new)


def append(document: Document, key: Key, item: Any) -> Document:
    """Add an item to an array that is there, keeping its layout and comments."""
    statement = _exact(document, key)
    if statement is None:
        return put(document, key, [item])
    import tomlkit  # noqa: PLC0415
    from tomlkit.items import Array  # noqa: PLC0415

    fragment = tomlkit.parse(document.text[statement.start : statement.end])
    array = _walk(fragment, key[len(statement.table) :])
    if not isinstance(array, Array):
        raise NotUnderstood(document.path, f"{'.'.join(key)} is not an array")
    array.append(item)
    return splice(document, statement.start, statement.end, tomlkit.dumps(fragment))


def drop(document: Document, key: Key) -> Document:
    """Remove a key, a table with all that is below it, or nothing where it is absent."""
    kept: list[str] = []
    position = 0
    for start, end in _extents(document, key):
        kept.append(document.text[position:start])
        position = end
    if position:
        rest = "".join(kept)
        if position == len(document.text) and not document.text.endswith("\n"):
            # The file has no newline at its end, and shall have none after.
            rest = rest.removesuffix("\r\n" if rest.endswith("\r\n") else "\n")
        document = splice(document, 0, position, rest)
    holder = _inline_holder(document, key)
    return document if holder is None else _rewrite(document, holder, key, ABSENT)


# --- finding ------------------------------------------------------------------------------------


def _exact(document: Document, key: Key) -> Statement | None:
    """Return the `key = value` statement of exactly this key."""
    return next((s for s in document.statements if not s.header and not s.array and s.path == key), None)


def _inline_holder(document: Document, key: Key) -> Statement | None:
    """Return the statement whose inline table is a parent of this key."""
    return next(
        (
            s
            for s in document.statements
            if not s.header and not s.array and len(s.path) < len(key) and key[: len(s.path)] == s.path
        ),
        None,
    )


def _header(document: Document, key: Key) -> int | None:
    for index, statement in enumerate(document.statements):
        if statement.header and not statement.array and statement.path == key:
            return index
    return None


def _dotted(document: Document, parent: Key) -> Statement | None:
    """Return the last `a.b.c = ...` statement that defines `parent` by its dots."""
    return next(
        (
            s
            for s in reversed(document.statements)
            if not s.header
            and not s.array
            and len(s.table) < len(parent) < len(s.path)
            and s.path[: len(parent)] == parent
        ),
        None,
    )


def _extents(document: Document, key: Key) -> Iterator[tuple[int, int]]:
    """Yield, in order, what goes with a key: a header takes its section and one blank line above."""
    text, position = document.text, 0
    for index, statement in enumerate(document.statements):
        if statement.array or statement.path[: len(key)] != key or statement.start < position:
            continue
        start, position = statement.start, statement.end
        if statement.header:
            position = document.statements[section_end(document, index)].end
            blank = next(
                (b for b in ("\r\n", "\n") if text.endswith(("\n" + b), 0, start) or text[:start] == b), ""
            )
            start -= len(blank)
        yield start, position


# --- writing ---


def _put_array(document: Document, statement: Statement, key: Key, new: list[Any]) -> Document:
    """Lead an array to another one item by item where that is all it takes: its lines have comments."""
    import tomlkit  # noqa: PLC0415
    from tomlkit.items import Array  # noqa: PLC0415

    text = document.text[statement.start : statement.end]
    fragment = tomlkit.parse(text)
    array = _walk(fragment, key[len(statement.table) :])
    old = array.unwrap() if isinstance(array, Array) else None
    if isinstance(array, Array) and old is not None and old == new[: len(old)]:
        for item in new[len(old) :]:
            array.append(item)
    elif isinstance(array, Array) and old is not None and (surplus := _surplus(old, new)) is not None:
        for position in reversed(surplus):
            del array[position]
    else:
        return _rewrite(document, statement, key, new)
    written = tomlkit.dumps(fragment)
    if value_in(written, key[len(statement.table) :]) != new:
        return _rewrite(document, statement, key, new)
    return splice(document, statement.start, statement.end, written)


def _surplus(old: list[Any], new: list[Any]) -> list[int] | None:
    """Return which items have to go for a list to become another one; None where that is not all."""
    surplus, kept = [], 0
    for position, item in enumerate(old):
        if kept < len(new) and item == new[kept]:
            kept += 1
        else:
            surplus.append(position)
    return surplus if kept == len(new) and len(surplus) <= _MOST_SURPLUS else None


def value_in(text: str, key: Key) -> Any:
    """Return what a piece of TOML says at a key, as `tomllib` reads it; None where it is not valid."""
    try:
        found: Any = tomllib.loads(text)
        for part in key:
            found = found[part]
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        return None
    return found


def _rewrite(document: Document, statement: Statement, key: Key, new: Any) -> Document:
    """Write one statement anew with a key below it set, or removed where `new` is ABSENT."""
    import tomlkit  # noqa: PLC0415

    text = document.text[statement.start : statement.end]
    fragment = tomlkit.parse(text)
    inside = key[len(statement.table) :]
    holder: Any = fragment
    for part in inside[:-1]:
        if not isinstance(holder, MutableMapping):
            return _through_a_value(document, key, new)
        if part not in holder:
            if new is ABSENT:
                return document
            holder[part] = tomlkit.inline_table()
        holder = holder[part]
    if not isinstance(holder, MutableMapping):
        return _through_a_value(document, key, new)
    if new is ABSENT:
        if inside[-1] not in holder:
            return document
        del holder[inside[-1]]
    else:
        holder[inside[-1]] = plain(new)
    return splice(document, statement.start, statement.end, tomlkit.dumps(fragment))


def _through_a_value(document: Document, key: Key, new: Any) -> Document:
    """Leave a key alone that cannot be there, since one of its parents is no table."""
    if new is ABSENT:
        return document
    raise NotUnderstood(document.path, f"{'.'.join(key)} cannot be set: one of its parents is not a table")


def _put_line(document: Document, key: Key, new: Any) -> Document:
    parent = key[:-1]
    index = _header(document, parent)
    if index is not None:
        last = document.statements[section_end(document, index)]
        indent = indent_of(document, last) if not last.header else key_indent(document, index)
        return insert(document, last.end, [f"{indent}{spell(key[-1:])} = {render(new)}"])
    dotted = _dotted(document, parent)
    if dotted is not None:
        line = f"{indent_of(document, dotted)}{spell(key[len(dotted.table) :])} = {render(plain(new))}"
        return insert(document, dotted.end, [line])
    if not parent:
        return _put_top(document, f"{spell(key)} = {render(new)}")
    return new_section(document, parent, {key[-1]: new})


def _put_top(document: Document, line: str) -> Document:
    """Insert a line among the keys that stand before the first header."""
    last = None
    for statement in document.statements:
        if statement.header:
            break
        last = statement
    if last is not None:
        return insert(document, last.end, [line])
    if not document.statements:
        return insert(document, len(document.text), [line])
    first = document.statements[0].start
    # Comments right above the first header are about that header; a comment
    # that opens the file (a licence, `## template: jinja`) stays its first line.
    # Only a newline ends a comment: `splitlines` knows more ends of lines than TOML.
    above = document.text[:first].split("\n")[:-1]
    attached = 0
    for text in reversed(above):
        if not text.lstrip().startswith("#"):
            break
        attached += len(text) + 1
    position = first - attached if attached < first else first
    return insert(document, position, [line, ""])


def _put_table(document: Document, key: Key, new: Tree) -> Document:
    if _defines(document, key):
        for name, item in new.items():
            document = _put(document, (*key, name), item)
        return document
    holder = _inline_holder(document, key)
    if holder is not None:
        return _rewrite(document, holder, key, new)
    dotted = _dotted(document, key[:-1])
    if dotted is not None:
        line = f"{indent_of(document, dotted)}{spell(key[len(dotted.table) :])} = {render(plain(new))}"
        return insert(document, dotted.end, [line])
    return new_section(document, key, new)


def _defines(document: Document, key: Key) -> bool:
    """Tell whether the document has a table at this key, however it is written."""
    if any(not s.array and s.path[: len(key)] == key for s in document.statements):
        return True
    holder = _inline_holder(document, key)
    if holder is None:
        return False
    import tomlkit  # noqa: PLC0415

    fragment = tomlkit.parse(document.text[holder.start : holder.end])
    return _walk(fragment, key[len(holder.table) :]) is not None


def _walk(fragment: Any, key: Key) -> Any:
    for part in key:
        if not isinstance(fragment, Mapping) or part not in fragment:
            return None
        fragment = fragment[part]
    return fragment
