"""A TOML file edited so that nothing but the asked keys changes.

The text is cut into statements and only those that are touched are written
anew, with tomlkit. A whole document is never sent through tomlkit: it does not
give back every real file byte for byte (image-builder's Azure config, seen
with 0.15.2), and tables that are declared out of order move when edited.
Whoever edits checks the result with `tomllib`, an independent parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tomlkit
from tomlkit.items import Array, InlineTable

from runtimes.errors import NotUnderstood
from runtimes.model import ABSENT, Key, Tree
from runtimes.tomlcut import Document, Statement, indent_of, parse, statements, tree

__all__ = ["append", "drop", "parse", "put", "render", "tree"]


def put(document: Document, key: Key, new: Any) -> Document:
    """Set a key; a mapping becomes a table and is merged into one that is there."""
    if isinstance(new, Mapping):
        return _put_table(document, key, new)
    exact = _exact(document, key)
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
    fragment = tomlkit.parse(document.text[statement.start : statement.end])
    array = _walk(fragment, key[len(statement.table) :])
    if not isinstance(array, Array):
        raise NotUnderstood(document.path, f"{'.'.join(key)} is not an array")
    array.append(item)
    return _splice(document, statement.start, statement.end, tomlkit.dumps(fragment))


def drop(document: Document, key: Key) -> Document:
    """Remove a key, a table with all that is below it, or nothing where it is absent."""
    while True:
        doomed = next((s for s in document.statements if not s.array and s.path[: len(key)] == key), None)
        if doomed is None:
            break
        start, end = _extent(document, doomed)
        document = _splice(document, start, end, "")
    holder = _inline_holder(document, key)
    return document if holder is None else _rewrite(document, holder, key, ABSENT)


def render(value_: Any) -> str:
    """Return a value as TOML text on one line."""
    return str(tomlkit.item(_plain(value_)).as_string())


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


def _section_end(document: Document, index: int) -> int:
    """Return the index of the last statement of the section that starts at `index`."""
    last = index
    for following in range(index + 1, len(document.statements)):
        if document.statements[following].header:
            break
        last = following
    return last


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


def _extent(document: Document, doomed: Statement) -> tuple[int, int]:
    """Return what goes with a statement: a header takes its section and one blank line above."""
    if not doomed.header:
        return doomed.start, doomed.end
    index = document.statements.index(doomed)
    start, end = doomed.start, document.statements[_section_end(document, index)].end
    above = document.text[:start]
    for blank in ("\r\n", "\n"):
        if above.endswith("\n" + blank) or above == blank:
            return start - len(blank), end
    return start, end


# --- writing ------------------------------------------------------------------------------------


def _splice(document: Document, start: int, end: int, text: str) -> Document:
    text = document.text[:start] + text + document.text[end:]
    return replace(document, text=text, statements=tuple(statements(text)))


def _insert(document: Document, position: int, lines: list[str]) -> Document:
    newline = document.newline
    block = "".join(line + newline for line in lines)
    before = document.text[:position]
    if before and not before.endswith("\n"):
        # The file does not end in a newline: ours comes first, and the file still has none after.
        block = newline + block.removesuffix(newline)
    return _splice(document, position, position, block)


def _rewrite(document: Document, statement: Statement, key: Key, new: Any) -> Document:
    """Write one statement anew with a key below it set, or removed where `new` is ABSENT."""
    text = document.text[statement.start : statement.end]
    fragment = tomlkit.parse(text)
    inside = key[len(statement.table) :]
    holder: Any = fragment
    for part in inside[:-1]:
        if part not in holder:
            if new is ABSENT:
                return document
            holder[part] = tomlkit.inline_table()
        holder = holder[part]
    if new is ABSENT:
        if inside[-1] not in holder:
            return document
        del holder[inside[-1]]
    else:
        holder[inside[-1]] = _inline(new)
    return _splice(document, statement.start, statement.end, tomlkit.dumps(fragment))


def _put_line(document: Document, key: Key, new: Any) -> Document:
    parent = key[:-1]
    index = _header(document, parent)
    if index is not None:
        last = document.statements[_section_end(document, index)]
        indent = indent_of(document, last) if not last.header else _key_indent(document, index)
        return _insert(document, last.end, [f"{indent}{_spell(key[-1:])} = {render(new)}"])
    dotted = _dotted(document, parent)
    if dotted is not None:
        line = f"{indent_of(document, dotted)}{_spell(key[len(dotted.table) :])} = {render(_inline(new))}"
        return _insert(document, dotted.end, [line])
    if not parent:
        return _put_top(document, f"{_spell(key)} = {render(new)}")
    return _new_section(document, parent, {key[-1]: new})


def _put_top(document: Document, line: str) -> Document:
    """Insert a line among the keys that stand before the first header."""
    last = None
    for statement in document.statements:
        if statement.header:
            break
        last = statement
    if last is not None:
        return _insert(document, last.end, [line])
    if not document.statements:
        return _insert(document, len(document.text), [line])
    first = document.statements[0].start
    # Comments right above the first header are about that header; a comment
    # that opens the file (a licence, `## template: jinja`) stays its first line.
    above = document.text[:first].splitlines(keepends=True)
    attached = 0
    for text in reversed(above):
        if not text.lstrip().startswith("#"):
            break
        attached += len(text)
    position = first - attached if attached < first else first
    return _insert(document, position, [line, ""])


def _put_table(document: Document, key: Key, new: Tree) -> Document:
    if _defines(document, key):
        for name, item in new.items():
            document = put(document, (*key, name), item)
        return document
    holder = _inline_holder(document, key)
    if holder is not None:
        return _rewrite(document, holder, key, new)
    dotted = _dotted(document, key[:-1])
    if dotted is not None:
        line = f"{indent_of(document, dotted)}{_spell(key[len(dotted.table) :])} = {render(_inline(new))}"
        return _insert(document, dotted.end, [line])
    return _new_section(document, key, new)


def _defines(document: Document, key: Key) -> bool:
    """Tell whether the document has a table at this key, however it is written."""
    if any(not s.array and s.path[: len(key)] == key for s in document.statements):
        return True
    holder = _inline_holder(document, key)
    if holder is None:
        return False
    fragment = tomlkit.parse(document.text[holder.start : holder.end])
    return _walk(fragment, key[len(holder.table) :]) is not None


def _new_section(document: Document, key: Key, new: Tree) -> Document:
    """Add `[key]` with its sub-tables where a reader would look for it."""
    first_child = next(
        (
            i
            for i, s in enumerate(document.statements)
            if s.header and len(s.path) > len(key) and s.path[: len(key)] == key
        ),
        None,
    )
    model = _model(document, key)
    if first_child is not None:
        child = document.statements[first_child]
        lines = _section(document, key, new, child)
        position = document.statements[first_child - 1].end if first_child else child.start
        separated = [*lines, ""] if position == child.start else ["", *lines]
        return _insert(document, position, separated)
    lines = _section(document, key, new, document.statements[model] if model is not None else None)
    position = len(document.text) if model is None else _branch_end(document, model, key)
    return _insert(document, position, ["", *lines] if document.text[:position].strip() else lines)


def _model(document: Document, key: Key) -> int | None:
    """Return the header that a new section shall look like and stand behind: a sibling, or an ancestor."""
    for length in range(len(key) - 1, 0, -1):
        near = [
            i
            for i, s in enumerate(document.statements)
            if s.header and not s.array and s.path[:length] == key[:length]
        ]
        siblings = [i for i in near if len(document.statements[i].path) == len(key)]
        if near:
            return siblings[-1] if siblings else near[0]
    return None


def _branch_end(document: Document, model: int, key: Key) -> int:
    """Return the end of the last section below the ancestor that a new section shares with its model."""
    shared = 0
    path = document.statements[model].path
    while shared < min(len(path), len(key)) and path[shared] == key[shared]:
        shared += 1
    last = max(i for i, s in enumerate(document.statements) if s.header and s.path[:shared] == key[:shared])
    return document.statements[_section_end(document, last)].end


def _section(document: Document, key: Key, new: Tree, model: Statement | None) -> list[str]:
    index = document.statements.index(model) if model is not None else None
    indent = indent_of(document, model) if model is not None else ""
    lead = _key_indent(document, index).removeprefix(indent) if index is not None else ""
    step = _child_step(document, index) if index is not None else ""
    raw = model.raw if model is not None else ()
    spelled: list[str] = []
    for depth, part in enumerate(key):
        same = model is not None and len(model.path) > depth and model.path[: depth + 1] == key[: depth + 1]
        spelled.append(raw[depth] if same else _spell((part,)))
    return _table_lines(".".join(spelled), new, indent, lead, step)


def _table_lines(name: str, new: Tree, indent: str, lead: str, step: str) -> list[str]:
    lines = [f"{indent}[{name}]"]
    tables: list[tuple[str, Tree]] = []
    for key, item in new.items():
        if isinstance(item, Mapping):
            tables.append((key, item))
        else:
            lines.append(f"{indent}{lead}{_spell((key,))} = {render(item)}")
    for key, table in tables:
        lines += ["", *_table_lines(f"{name}.{_spell((key,))}", table, indent + step, lead, step)]
    return lines


def _key_indent(document: Document, index: int) -> str:
    """Return the indent of the keys below a header, seen there or at the next header that has some."""
    order = [*range(index, len(document.statements)), *range(index - 1, -1, -1)]
    header = indent_of(document, document.statements[index])
    for position in order:
        if position + 1 >= len(document.statements) or not document.statements[position].header:
            continue
        following = document.statements[position + 1]
        if not following.header:
            own = indent_of(document, document.statements[position])
            return header + indent_of(document, following).removeprefix(own)
    return header


def _child_step(document: Document, index: int) -> str:
    """Return how much deeper a sub-table is indented, as a sibling's sub-table shows."""
    model = document.statements[index]
    headers = [s for s in document.statements if s.header]
    for child in headers:
        for parent in (model, *headers):
            if len(child.path) == len(parent.path) + 1 and child.path[:-1] == parent.path:
                return indent_of(document, child).removeprefix(indent_of(document, parent))
    return ""


def _walk(fragment: Any, key: Key) -> Any:
    for part in key:
        if not isinstance(fragment, Mapping) or part not in fragment:
            return None
        fragment = fragment[part]
    return fragment


def _spell(key: Key) -> str:
    return ".".join(
        part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else str(tomlkit.item(part).as_string()) for part in key
    )


def _inline(new: Any) -> Any:
    if not isinstance(new, Mapping):
        return _plain(new)
    table: InlineTable = tomlkit.inline_table()
    for name, item in new.items():
        table[name] = _inline(item)
    return table


def _plain(new: Any) -> Any:
    return list(new) if isinstance(new, tuple) else new
