"""Editor for TOML files that changes only the requested keys and keeps all other bytes.

The scanner splits the text into statements, and only the affected statements are rewritten, with
tomlkit. A whole document never passes through tomlkit: some real files do not survive that byte for
byte (image-builder's Azure config, seen with 0.15.2), and editing moves tables that are declared
out of order. The caller checks the result with an independent parser. tomlkit is imported only
where something is written, because most runs only read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from itertools import islice
from typing import Any, Final

from runtimes.errors import ConfigError
from runtimes.formats.toml_layout import (
    insert,
    key_indent,
    new_section,
    plain,
    render,
    section_end,
    spell,
    splice,
)
from runtimes.formats.toml_scanner import (
    IN_1_0,
    Document,
    Statement,
    indent_of,
    loads,
    needs_1_1,
    parse,
    read,
    refuse_1_1,
    tree,
)
from runtimes.lazy_pattern import lazy_pattern
from runtimes.model import ABSENT, Key, Tree, without_empty_tables

__all__ = [
    "IN_1_0",
    "drop",
    "needs_1_1",
    "parse",
    "put",
    "read",
    "refuse_1_1",
    "render",
    "text_of",
    "tree",
]

_STRAY_COMMA: Final = lazy_pattern(r"[{,]\s*,|,(?=\s*\})")
_MOST_COMMAS: Final = 64
"""How many are tried: the statement is parsed each time."""

# tomlkit scans the whole array for each item that is removed.
_MOST_SURPLUS: Final = 64


def put(document: Document, key: Key, new: Any) -> Document:
    """Set a key; a mapping becomes a table and is merged into an existing one.

    Raise ConfigError for a value that TOML cannot express, such as null.
    """
    try:
        return _put(document, key, new)
    except Exception as error:
        from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415

        if not isinstance(error, TOMLKitError):
            raise
        raise ConfigError(document.path, f"{'.'.join(key)} cannot be written: {error}") from error


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


def drop(document: Document, key: Key) -> Document:
    """Remove a key, or a table and everything below it; do nothing if it does not exist."""
    remaining: list[str] = []
    position = 0
    for start, end in _extents(document, key):
        remaining.append(document.text[position:start])
        position = end
    if position:
        rest = "".join(remaining)
        if position == len(document.text) and not document.text.endswith("\n"):
            # The file has no newline at its end, so the result must have none either.
            rest = rest.removesuffix("\r\n" if rest.endswith("\r\n") else "\n")
        document = splice(document, 0, position, rest)
    holder = _inline_holder(document, key)
    return document if holder is None else _rewrite(document, holder, key, ABSENT)


def text_of(document: Document, key: Key) -> str:
    """Return the lines of the `key = value` statement of a key; empty if there is none."""
    found = _exact(document, key)
    return document.text[found.start : found.end] if found else ""


# --- finding ------------------------------------------------------------------------------------


def _exact(document: Document, key: Key) -> Statement | None:
    """Return the `key = value` statement of exactly this key; None if there is none."""
    return next(
        (s for s in document.statements if not s.header and not s.array and s.path == key), None
    )


def _inline_holder(document: Document, key: Key) -> Statement | None:
    """Return the statement whose value, an inline table, contains this key, or None."""
    return next(
        (
            s
            for s in document.statements
            if not s.header
            and not s.array
            and len(s.path) < len(key)
            and key[: len(s.path)] == s.path
        ),
        None,
    )


def _header(document: Document, key: Key) -> int | None:
    """Return the index of the header `[key]`; None if there is none."""
    for index, statement in enumerate(document.statements):
        if statement.header and not statement.array and statement.path == key:
            return index
    return None


def _dotted(document: Document, parent: Key) -> Statement | None:
    """Return the last statement that defines the table `parent` by a dotted key (`a.b.c = ...`)."""
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
    """Yield, in order, the spans to remove with a key: statements, or sections and a blank line."""
    text, position = document.text, 0
    for index, statement in enumerate(document.statements):
        if statement.array or statement.path[: len(key)] != key or statement.start < position:
            continue
        start, position = statement.start, statement.end
        if statement.header:
            position = document.statements[section_end(document, index)].end
            blank = next(
                (
                    b
                    for b in ("\r\n", "\n")
                    if text.endswith(("\n" + b), 0, start) or text[:start] == b
                ),
                "",
            )
            start -= len(blank)
        yield start, position


# --- writing ------------------------------------------------------------------------------------


def _put_array(document: Document, statement: Statement, key: Key, new: list[Any]) -> Document:
    """Change an array by adding or removing items, keeping comments; else rewrite the statement."""
    from tomlkit.items import Array  # noqa: PLC0415

    fragment = _fragment(document, statement)
    array = _walk(fragment, key[len(statement.table) :])
    old = array.unwrap() if isinstance(array, Array) else None
    if isinstance(array, Array) and old is not None and old == new[: len(old)]:
        for item in new[len(old) :]:
            array.append(item)
    elif (
        isinstance(array, Array) and old is not None and (surplus := _surplus(old, new)) is not None
    ):
        for position in reversed(surplus):
            del array[position]
    else:
        return _rewrite(document, statement, key, new)
    written = _dumped(document, statement, fragment)
    if written is None or value_in(written, key[len(statement.table) :]) != new:
        return _rewrite(document, statement, key, new)
    return splice(document, statement.start, statement.end, written)


def _surplus(old: list[Any], new: list[Any]) -> list[int] | None:
    """Return the positions whose removal turns one list into another; None if insufficient."""
    surplus, matched = [], 0
    for position, item in enumerate(old):
        if matched < len(new) and item == new[matched]:
            matched += 1
        else:
            surplus.append(position)
    return surplus if matched == len(new) and len(surplus) <= _MOST_SURPLUS else None


def value_in(text: str, key: Key) -> Any:
    """Return a key's value in a piece of TOML; None if the TOML is invalid or lacks the key."""
    try:
        result: Any = loads(text)
        for part in key:
            result = result[part]
    except (ValueError, KeyError, TypeError):
        return None
    return result


def _rewrite(document: Document, statement: Statement, key: Key, new: Any) -> Document:
    """Rewrite one statement with a key in its value set, or removed if `new` is ABSENT."""
    import tomlkit  # noqa: PLC0415

    fragment = _fragment(document, statement)
    inside = key[len(statement.table) :]
    holder: Any = fragment
    for part in inside[:-1]:
        if not isinstance(holder, MutableMapping):
            return _parent_is_no_table(document, key, new)
        if part not in holder:
            if new is ABSENT:
                return document
            holder[part] = tomlkit.inline_table()
        holder = holder[part]
    if not isinstance(holder, MutableMapping):
        return _parent_is_no_table(document, key, new)
    if new is ABSENT:
        if inside[-1] not in holder:
            return document
        del holder[inside[-1]]
    else:
        holder[inside[-1]] = plain(new)
    return _spliced(document, statement, fragment)


def _spliced(document: Document, statement: Statement, fragment: Any) -> Document:
    """Replace one statement of the document. Raise ConfigError if tomlkit broke its syntax."""
    written = _dumped(document, statement, fragment)
    if written is None:
        raise _not_editable(document, statement)
    return splice(document, statement.start, statement.end, written)


def _dumped(document: Document, statement: Statement, fragment: Any) -> str | None:
    """Return a changed statement as text, in TOML 1.0 if it was; None if that is not possible.

    tomlkit 0.15.2 may leave a comma behind when dotted keys of an inline table are removed. At the
    end of the table that is TOML 1.1, with which a runtime that reads 1.0 does not start.
    """
    import tomlkit  # noqa: PLC0415

    text = tomlkit.dumps(fragment)
    is_1_1 = needs_1_1(document.text[statement.start : statement.end].encode())
    if _is_valid(text, is_1_1=is_1_1):
        return text
    # tomlkit keeps the empty tables of dotted keys.
    wanted = without_empty_tables(fragment.unwrap())
    for found in islice(_STRAY_COMMA.finditer(text), _MOST_COMMAS):
        fixed = text[: found.end() - 1] + text[found.end() :]
        # A comma within a string may look the same.
        if _is_valid(fixed, is_1_1=is_1_1) and without_empty_tables(loads(fixed)) == wanted:
            return fixed
    return None


def _is_valid(text: str, *, is_1_1: bool) -> bool:
    try:
        return not needs_1_1(text.encode()) or is_1_1
    except ValueError:
        return False


def _fragment(document: Document, statement: Statement) -> Any:
    """Return a statement as a tomlkit document. Raise ConfigError if tomlkit does not read it."""
    import tomlkit  # noqa: PLC0415
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415

    try:
        return tomlkit.parse(document.text[statement.start : statement.end])
    except TOMLKitError as error:
        raise _not_editable(document, statement) from error


def _not_editable(document: Document, statement: Statement) -> ConfigError:
    """Return the error for a value that tomlkit cannot edit (0.15.2: comma in a comment inside)."""
    return ConfigError(
        document.path,
        f"nvidia-toolkit cannot edit the value of {'.'.join(statement.path)} as it is written",
        line=document.text.count("\n", 0, statement.start) + 1,
        hint="write this inline table on one line without comments, or as a table with a header",
    )


def _parent_is_no_table(document: Document, key: Key, new: Any) -> Document:
    """Return the document unchanged if the key was to be removed; otherwise raise ConfigError."""
    if new is ABSENT:
        return document
    raise ConfigError(
        document.path, f"{'.'.join(key)} cannot be set: one of its parents is not a table"
    )


def _put_line(document: Document, key: Key, new: Any) -> Document:
    """Add a new key: to its section, after its dotted siblings, at the top, or in a new section."""
    parent = key[:-1]
    index = _header(document, parent)
    if index is not None:
        last = document.statements[section_end(document, index)]
        indent = indent_of(document, last) if not last.header else key_indent(document, index)
        return insert(document, last.end, [f"{indent}{spell(key[-1:])} = {render(new)}"])
    dotted = _dotted(document, parent)
    if dotted is not None:
        line = (
            f"{indent_of(document, dotted)}{spell(key[len(dotted.table) :])} = {render(plain(new))}"
        )
        return insert(document, dotted.end, [line])
    if not parent:
        return _put_top(document, f"{spell(key)} = {render(new)}")
    return new_section(document, parent, {key[-1]: new})


def _put_top(document: Document, line: str) -> Document:
    """Insert a line after the keys that precede the first header."""
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
    # Comments directly above the first header belong to that header, but a comment at the top of
    # the file (a licence, `## template: jinja`) must stay the first line. The text is split at
    # newlines only, because `splitlines` also splits at characters that do not end a line in TOML.
    above = document.text[:first].split("\n")[:-1]
    attached = 0
    for text in reversed(above):
        if not text.lstrip().startswith("#"):
            break
        attached += len(text) + 1
    position = first - attached if attached < first else first
    return insert(document, position, [line, ""])


def _put_table(document: Document, key: Key, new: Tree) -> Document:
    """Merge a mapping into the table at a key, or add the table."""
    if _defines(document, key):
        for name, item in new.items():
            document = _put(document, (*key, name), item)
        return document
    holder = _inline_holder(document, key)
    if holder is not None:
        return _rewrite(document, holder, key, new)
    dotted = _dotted(document, key[:-1])
    if dotted is not None:
        line = (
            f"{indent_of(document, dotted)}{spell(key[len(dotted.table) :])} = {render(plain(new))}"
        )
        return insert(document, dotted.end, [line])
    return new_section(document, key, new)


def _defines(document: Document, key: Key) -> bool:
    """Return whether the document defines a table at a key, by a header, dotted keys or inline."""
    if any(not s.array and s.path[: len(key)] == key for s in document.statements):
        return True
    holder = _inline_holder(document, key)
    if holder is None:
        return False
    return _walk(_fragment(document, holder), key[len(holder.table) :]) is not None


def _walk(fragment: Any, key: Key) -> Any:
    """Return the tomlkit item at a key; None if there is none."""
    for part in key:
        if not isinstance(fragment, Mapping) or part not in fragment:
            return None
        fragment = fragment[part]
    return fragment
