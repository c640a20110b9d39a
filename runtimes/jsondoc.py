"""A JSON file edited so that nothing but the asked keys changes.

A scanner finds where every member of every object stands, and an edit splices
the text there; all other bytes are never written anew. The scanner reads only
what `json` has accepted already, so it need not doubt that; it adds what Go
refuses and `json` does not. Whoever edits checks the result with `tree`, whose
values come from `json`. Numbers that are no integers are floats in a tree: they
are compared by value, and one that was overwritten comes back by value.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from runtimes.jsoncut import BLANK, Document, Node, integer, parse, read, refuse, scan, tree
from runtimes.model import Key, Tree

__all__ = ["drop", "parse", "put", "read", "tree"]

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_BLANK_LINES: Final = re.compile(r"\r?\n[ \t]*+(?=\r?\n)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """How members are written in an object; `unit` is None where they share a line."""

    indent: str = ""
    unit: str | None = None
    newline: str = "\n"
    separator: str = ", "
    colon: str = ": "
    comma: str = ", "
    pad: str = ""


_PLAIN: Final = _Style()


def put(document: Document, key: Key, new: Any) -> Document:
    """Set a key where it stands or at the end of its object; a mapping is merged into an object.

    Raises NotUnderstood where a parent is there but is no object.
    """
    if document.root is None:
        # Nothing stands there but white space, which says nothing about a style.
        document = _splice(document, [(0, len(document.text), "{}" + document.newline)])
    trail = [node for node in (document.root,) if node]
    for depth, part in enumerate(key[:-1]):
        node = trail[-1].at(part)
        if node is None:
            break
        if node.members is None:
            why = f"it is not clear where to put {key[-1]}: {'.'.join(key[: depth + 1])} is not an object"
            refuse(document.path, document.text, node.start, why)
        trail.append(node)
    for part in reversed(key[len(trail) - 1 :]):
        new = {part: new}
    return _splice(document, list(_merge(document, trail, new)))


def drop(document: Document, key: Key) -> Document:
    """Remove a key with all that is below it, or nothing where it is absent."""
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
    # What stays inside the braces is what `_insertion` found there.
    left = document.text[doomed.end : holder.end - 1]
    if "\n" in left:
        left = _lead(document.text, holder).rpartition(document.newline)[0]
    return _splice(document, [(holder.start + 1, holder.end - 1, left)])


# --- reading ------------------------------------------------------------------------------------


# --- writing ------------------------------------------------------------------------------------


def _splice(document: Document, splices: Sequence[tuple[int, int, str]]) -> Document:
    """Replace spans that do not overlap, and find the members once anew."""
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
    """Yield the splices that bring what is wanted into the last object of a trail."""
    holder = trail[-1]
    fresh: dict[str, Any] = {}
    stale: list[tuple[Node, Any]] = []
    for name, item in wanted.items():
        node = holder.at(name)
        if node is None:
            fresh[name] = item
        elif isinstance(item, Mapping) and node.members is not None:
            yield from _merge(document, [*trail, node], item)
        elif not _says(document.text[node.start : node.end], item):
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


def _says(text: str, item: Any) -> bool:
    """Tell whether a value's text means an item already, however it is spelled."""
    there = json.loads(text, parse_int=integer)
    alike = isinstance(there, Mapping) == isinstance(item, Mapping)
    return alike and _render(there, _PLAIN) == _render(item, _PLAIN)


def _insertion(document: Document, holder: Node, style: _Style, written: list[str]) -> tuple[int, int, str]:
    """Return the splice that adds members at the end of an object."""
    text = style.separator.join(written)
    if holder.members:
        last = holder.below[-1].end
        return last, last, style.separator + text
    inside = document.text[holder.start + 1 : holder.end - 1]
    if style.unit is None:
        text = inside + text + inside
    else:
        # White space inside the braces stays above, so that `drop` can give it back.
        outer = style.indent[: len(style.indent) - len(style.unit)]
        text = f"{inside}{style.newline}{style.indent}{text}{style.newline}{outer}"
    return holder.start + 1, holder.end - 1, text


def _render(value: Any, style: _Style) -> str:
    """Return a value as JSON text; arrays stay on one line with all that is in them."""
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
    # Half a surrogate pair can be escaped in JSON but not be encoded.
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


# --- style --------------------------------------------------------------------------------------


def _style(document: Document, trail: list[Node]) -> _Style:
    """Return how members of the last object of a trail are written, or would be."""
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
    """Return the style for a member that is a flat object: on one line where its last sibling is."""
    model = next((node for node in reversed(holder.below) if node.members), None)
    if model is None or "\n" in document.text[model.start : model.end]:
        return style
    return replace(style, unit=None, pad=_lead(document.text, model))


def _is_flat(item: Any) -> bool:
    return isinstance(item, Mapping) and not any(isinstance(below, Mapping) for below in item.values())


def _near(trail: list[Node]) -> list[Node]:
    """Return the objects that show a style, nearest first: each one's last members, then itself."""
    found = [below for node in reversed(trail) for below in (*reversed(node.below), node)]
    return [node for node in found if node.members]


def _lead(text: str, node: Node) -> str:
    """Return the white space between an object's brace and its first member."""
    return text[node.start + 1 : node.below[0].key_start]


def _gap(text: str, node: Node) -> str:
    """Return what separates the last two members of an object, or nothing."""
    last = node.below[-2:]
    return text[last[0].end : last[1].key_start] if len(last) > 1 else ""


def _colon(text: str, near: list[Node]) -> str:
    """Return the most common colon of the outermost object, without what aligns values in columns."""
    seen = Counter(
        (text[node.key_end] in BLANK, text[node.start - 1] in BLANK)
        for node in (near[-1].below if near else ())
    )
    before, after = seen.most_common(1)[0][0] if seen else (False, True)
    return f"{' ' * before}:{' ' * after}"


def _unit(text: str, near: list[Node]) -> str:
    """Return how much deeper members stand than their object, as the nearest object shows."""
    for node in near:
        lead = _lead(text, node)
        inner, outer = _indent(lead, len(lead)), _indent(text, node.start)
        if "\n" in lead and inner.startswith(outer):
            return inner.removeprefix(outer)
    return "    "


def _indent(text: str, position: int) -> str:
    """Return the white space that starts the line of a position."""
    start = text.rfind("\n", 0, position) + 1
    line = text[start:position]
    return line[: len(line) - len(line.lstrip(" \t"))]
