"""Placement and formatting of new TOML sections: next to related sections and in their style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtimes.formats.toml_scanner import Document, Statement, indent_of, replace_span
from runtimes.lazy_pattern import lazy_pattern
from runtimes.model import Key, Tree

# Printable ASCII that a basic string needs no escape for.
_PLAIN: Final = lazy_pattern(r"[ !#-\[\]-~]*+")
_BARE: Final = lazy_pattern(r"[A-Za-z0-9_-]+")


def render(value_: Any) -> str:
    """Return a value as TOML text on one line."""
    # Built by hand, because tomlkit needs quadratic time to build a list or a table.
    if isinstance(value_, Mapping):
        entries = (f"{spell((name,))} = {render(item)}" for name, item in value_.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value_, (list, tuple)):
        return f"[{', '.join(map(render, value_))}]"
    # Without tomlkit, whose import takes a tenth of a plan.
    if isinstance(value_, bool):
        return "true" if value_ else "false"
    if type(value_) is str and _PLAIN.fullmatch(value_):
        return f'"{value_}"'

    import tomlkit  # noqa: PLC0415

    return str(tomlkit.item(value_).as_string())


def new_section(document: Document, key: Key, new: Tree) -> Document:
    """Add the section `[key]` with its sub-tables before its first child, or after its siblings."""
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
        return insert(document, position, separated)
    lines = _section(document, key, new, document.statements[model] if model is not None else None)
    position = len(document.text) if model is None else _branch_end(document, model, key)
    return insert(document, position, ["", *lines] if document.text[:position] else lines)


def _model(document: Document, key: Key) -> int | None:
    """Return the index of the header whose style and place a new section follows.

    This is the last sibling, else the first section below the nearest ancestor; None if there is
    none.
    """
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
    """Return the last section's end below a new section's lowest common ancestor with its model."""
    shared = 0
    path = document.statements[model].path
    while shared < min(len(path), len(key)) and path[shared] == key[shared]:
        shared += 1
    last = max(
        i for i, s in enumerate(document.statements) if s.header and s.path[:shared] == key[:shared]
    )
    return document.statements[section_end(document, last)].end


def _section(document: Document, key: Key, new: Tree, model: Statement | None) -> list[str]:
    """Return the lines of a new section, with the indents and the key spelling of its model."""
    index = document.statements.index(model) if model is not None else None
    indent = indent_of(document, model) if model is not None else ""
    lead = key_indent(document, index).removeprefix(indent) if index is not None else ""
    step = _child_step(document, index) if index is not None else ""
    raw = model.raw if model is not None else ()
    spelled: list[str] = []
    for depth, part in enumerate(key):
        same = (
            model is not None
            and len(model.path) > depth
            and model.path[: depth + 1] == key[: depth + 1]
        )
        spelled.append(raw[depth] if same else spell((part,)))
    return _table_lines(".".join(spelled), new, indent, lead, step)


def _table_lines(name: str, new: Tree, indent: str, lead: str, step: str) -> list[str]:
    """Return the lines of a table and its sub-tables.

    `indent` precedes the header, `lead` is the additional indent of keys, and `step` that of each
    level of sub-tables.
    """
    lines = [f"{indent}[{name}]"]
    tables: list[tuple[str, Tree]] = []
    for key, item in new.items():
        if isinstance(item, Mapping):
            tables.append((key, item))
        else:
            lines.append(f"{indent}{lead}{spell((key,))} = {render(item)}")
    for key, table in tables:
        lines += ["", *_table_lines(f"{name}.{spell((key,))}", table, indent + step, lead, step)]
    return lines


def key_indent(document: Document, index: int) -> str:
    """Return the indent for keys below a header.

    It is taken from the first key below it or, if it has none, below another header: those after it
    first, then those before it.
    """
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
    """Return the additional indent of a sub-table, taken from the first table that has one."""
    model = document.statements[index]
    headers = {s.path: s for s in reversed(document.statements) if s.header}
    headers[model.path] = model
    for child in headers.values():
        parent = headers.get(child.path[:-1])
        if parent is not None:
            return indent_of(document, child).removeprefix(indent_of(document, parent))
    return ""


def spell(key: Key) -> str:
    """Return a key in TOML notation, with quotes around parts that need them."""
    return ".".join(part if _BARE.fullmatch(part) else render(part) for part in key)


def splice(document: Document, start: int, end: int, text: str) -> Document:
    """Return a document with a span of its text replaced."""
    return replace_span(document, start, end, text)


def insert(document: Document, position: int, lines: list[str]) -> Document:
    """Return a document with whole lines inserted at a position."""
    newline = document.newline
    block = "".join(line + newline for line in lines)
    before = document.text[:position]
    if before and not before.endswith("\n"):
        # The file does not end in a newline: add one before the new lines and none after them.
        block = newline + block.removesuffix(newline)
    return splice(document, position, position, block)


def section_end(document: Document, index: int) -> int:
    """Return the index of the last statement in the section whose header is at `index`."""
    last = index
    for following in range(index + 1, len(document.statements)):
        if document.statements[following].header:
            break
        last = following
    return last


def plain(new: Any) -> Any:
    """Return a value as a tomlkit item written on one line; scalars are returned unchanged."""
    import tomlkit  # noqa: PLC0415

    return tomlkit.value(render(new)) if isinstance(new, (Mapping, list, tuple)) else new
