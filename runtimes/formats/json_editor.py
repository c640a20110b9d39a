"""Editor for JSON files that changes only the requested keys and keeps all other bytes.

The scanner finds the position of every member, and an edit replaces the text there. The caller
checks the result with `tree`, whose values come from `json`. Numbers with a fraction or an exponent
are floats in a tree: they are compared by value, and a reverted edit restores the value but not
necessarily its spelling.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from runtimes.dataclass import dataclass, replace
from runtimes.formats.json_scanner import (
    BLANK,
    Document,
    Node,
    integer,
    parse,
    read,
    refuse,
    scan,
    tree,
)
from runtimes.lazy_pattern import lazy_pattern
from runtimes.model import Key, Tree

__all__ = ["drop", "parse", "put", "read", "tree"]

_SURROGATE: Final = lazy_pattern(r"[\ud800-\udfff]")
_BLANK_LINES: Final = lazy_pattern(r"\r?\n[ \t]*+(?=\r?\n)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """The formatting of an object's members; `unit` is None if they are all on one line."""

    indent: str = ""
    unit: str | None = None
    newline: str = "\n"
    separator: str = ", "
    colon: str = ": "
    comma: str = ", "
    pad: str = ""


_PLAIN: Final = _Style()


def put(document: Document, key: Key, new: Any) -> Document:
    """Set a key in place, or append it to its object; a mapping is merged into an existing object.

    Raise ConfigError if a parent of the key exists but is not an object.
    """
    if document.root is None:
        # The file contains only white space or `null`, so there is no style to follow.
        document = _splice(document, [(0, len(document.text), "{}" + document.newline)])
    trail = [node for node in (document.root,) if node]
    for depth, part in enumerate(key[:-1]):
        node = trail[-1].at(part)
        if node is None:
            break
        if node.members is None:
            why = f"{key[-1]} cannot be set: {'.'.join(key[: depth + 1])} is not an object"
            refuse(document.path, document.text, node.start, why)
        trail.append(node)
    for part in reversed(key[len(trail) - 1 :]):
        new = {part: new}
    return _splice(document, list(_merge(document, trail, new)))


def drop(document: Document, key: Key) -> Document:
    """Remove a key and everything below it; do nothing if it does not exist."""
    holder = document.root
    for part in key[:-1]:
        holder = holder.at(part) if holder else None
    doomed = holder.at(key[-1]) if holder else None
    if holder is None or doomed is None:
        return document
    members = holder.below
    index = members.index(doomed)
    if index:
        return _splice(document, [(members[index - 1].end, doomed.end, "")])
    if len(members) > 1:
        return _splice(document, [(doomed.key_start, members[1].key_start, "")])
    # Keep the white space that was inside the braces before `_insertion` added the first member.
    inside = document.text[doomed.end : holder.end - 1]
    if "\n" in inside:
        inside = _lead(document.text, holder).rpartition(document.newline)[0]
    return _splice(document, [(holder.start + 1, holder.end - 1, inside)])


# --- writing ------------------------------------------------------------------------------------


def _splice(document: Document, splices: Sequence[tuple[int, int, str]]) -> Document:
    """Replace spans that do not overlap, and scan the result once."""
    if not splices:
        return document
    parts: list[str] = []
    position = 0
    for start, end, new in sorted(splices):
        parts += [document.text[position:start], new]
        position = end
    text = "".join([*parts, document.text[position:]])
    return replace(document, text=text, root=scan(text, document.path))


def _merge(document: Document, trail: list[Node], wanted: Tree) -> Iterator[tuple[int, int, str]]:
    """Yield the splices that merge the wanted members into the last object of a trail."""
    holder = trail[-1]
    fresh: dict[str, Any] = {}
    stale: list[tuple[Node, Any]] = []
    for name, item in wanted.items():
        node = holder.at(name)
        if node is None:
            fresh[name] = item
        elif isinstance(item, Mapping) and node.members is not None:
            yield from _merge(document, [*trail, node], item)
        elif not _has_value(document.text[node.start : node.end], item):
            stale.append((node, item))
    if fresh or stale:
        style = _style(document, trail)
        flat = _flat(document, holder, style)
        for node, item in stale:
            yield node.start, node.end, _render(item, flat if _is_flat(item) else style)
        written = [
            _quote(name) + style.colon + _render(item, flat if _is_flat(item) else style)
            for name, item in fresh.items()
        ]
        if written:
            yield _insertion(document, holder, style, written)


def _has_value(text: str, item: Any) -> bool:
    """Return whether a JSON text has the value of an item, whatever its formatting."""
    current = json.loads(text, parse_int=integer)
    same_kind = isinstance(current, Mapping) == isinstance(item, Mapping)
    return same_kind and _render(current, _PLAIN) == _render(item, _PLAIN)


def _insertion(
    document: Document, holder: Node, style: _Style, written: list[str]
) -> tuple[int, int, str]:
    """Return the splice that adds members at the end of an object."""
    text = style.separator.join(written)
    if holder.members:
        last = holder.below[-1].end
        return last, last, style.separator + text
    inside = document.text[holder.start + 1 : holder.end - 1]
    if style.unit is None:
        text = inside + text + inside
    else:
        # White space inside the braces stays before the new members, so that `drop` can restore it.
        outer = style.indent[: len(style.indent) - len(style.unit)]
        text = f"{inside}{style.newline}{style.indent}{text}{style.newline}{outer}"
    return holder.start + 1, holder.end - 1, text


def _render(value: Any, style: _Style) -> str:
    """Return a value as JSON text; an array and everything in it is written on one line."""
    line = replace(style, unit=None) if style.unit is not None else style
    if isinstance(value, (list, tuple)):
        return "[" + style.comma.join(_render(item, line) for item in value) + "]"
    if not isinstance(value, Mapping):
        return _quote(value)
    if not value:
        return "{}"
    inner = replace(style, indent=style.indent + (style.unit or ""))
    members = [_quote(name) + style.colon + _render(item, inner) for name, item in value.items()]
    if style.unit is None:
        return "{" + style.pad + style.comma.join(members) + style.pad + "}"
    start = style.newline + inner.indent
    return "{" + start + f",{start}".join(members) + style.newline + style.indent + "}"


def _quote(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # JSON can escape an unpaired surrogate, but UTF-8 cannot encode it.
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


# --- style --------------------------------------------------------------------------------------


def _style(document: Document, trail: list[Node]) -> _Style:
    """Return the style of the members of the last object of a trail, or for its first member."""
    holder, text = trail[-1], document.text
    near = _near(trail)
    colon = _colon(text, near)
    pad = next((lead for node in near if "\n" not in (lead := _lead(text, node))), "")
    comma = next((gap for node in near if "\n" not in (gap := _gap(text, node)) and gap), "")
    comma = comma or (", " if pad or colon.endswith(" ") else ",")
    line = _Style(newline=document.newline, separator=comma, colon=colon, comma=comma, pad=pad)
    if holder.members:
        lead = _lead(text, holder)
        gap = _gap(text, holder) or ("," + lead if "\n" in lead else comma)
        gap = _BLANK_LINES.sub("", gap)
        if "\n" not in gap:
            return replace(line, separator=gap)
        return replace(line, separator=gap, indent=_indent(gap, len(gap)), unit=_unit(text, near))
    inside = text[holder.start + 1 : holder.end - 1]
    parent = _style(document, trail[:-1]) if len(trail) > 1 else _Style(unit="")
    if "\n" not in inside and (inside or parent.unit is None):
        return replace(line, pad=inside or pad)
    unit = _unit(text, near)
    indent = parent.indent + unit
    return replace(line, separator=f",{document.newline}{indent}", indent=indent, unit=unit)


def _flat(document: Document, holder: Node, style: _Style) -> _Style:
    """Return the style for a flat object as a member: on one line if its last sibling is."""
    model = next((node for node in reversed(holder.below) if node.members), None)
    if model is None or "\n" in document.text[model.start : model.end]:
        return style
    return replace(style, unit=None, pad=_lead(document.text, model))


def _is_flat(item: Any) -> bool:
    """Return whether a value is an object that contains no objects."""
    return isinstance(item, Mapping) and not any(
        isinstance(below, Mapping) for below in item.values()
    )


def _near(trail: list[Node]) -> list[Node]:
    """Return the objects with members, nearest first, as samples of the style.

    For each object of the trail, its members come first, the last one foremost, then the object
    itself.
    """
    result = [below for node in reversed(trail) for below in (*reversed(node.below), node)]
    return [node for node in result if node.members]


def _lead(text: str, node: Node) -> str:
    """Return the white space between an object's brace and its first member."""
    return text[node.start + 1 : node.below[0].key_start]


def _gap(text: str, node: Node) -> str:
    """Return the text between the last two members of an object; empty if it has fewer than two."""
    last = node.below[-2:]
    return text[last[0].end : last[1].key_start] if len(last) > 1 else ""


def _colon(text: str, near: list[Node]) -> str:
    """Return the most common colon of the outermost object, with at most one space on each side."""
    spaces = Counter(
        (text[node.key_end] in BLANK, text[node.start - 1] in BLANK)
        for node in (near[-1].below if near else ())
    )
    before, after = spaces.most_common(1)[0][0] if spaces else (False, True)
    return f"{' ' * before}:{' ' * after}"


def _unit(text: str, near: list[Node]) -> str:
    """Return the indent of members relative to their object, taken from the nearest object."""
    for node in near:
        lead = _lead(text, node)
        inner, outer = _indent(lead, len(lead)), _indent(text, node.start)
        if "\n" in lead and inner.startswith(outer):
            return inner.removeprefix(outer)
    return "    "


def _indent(text: str, position: int) -> str:
    """Return the white space at the beginning of the line of a position."""
    start = text.rfind("\n", 0, position) + 1
    line = text[start:position]
    return line[: len(line) - len(line.lstrip(" \t"))]
