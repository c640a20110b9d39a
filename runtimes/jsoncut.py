"""A JSON text cut into its values: where every member of every object stands.

It reads only what `json` has accepted already, so it need not doubt that; it
adds what Go refuses and `json` does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from runtimes.errors import NotUnderstood

_BOM: Final = b"\xef\xbb\xbf"
BLANK: Final = " \t\r\n"
LARGEST: Final = 4 << 20
"""In bytes. The largest known file has a thousand."""
_DEEPEST: Final = 100
_HINT: Final = "repair the file, or start the runtime once by hand to see what it says about it"
_STRING: Final = r'("(?:[^"\\]++|\\.?)*+(?:"|\Z))'
_TOKEN: Final = re.compile(_STRING + r'([ \t\r\n]*:)?|[{}\[\]]|[^ \t\r\n,:"{}\[\]]+', re.DOTALL)
_BRACKET: Final = re.compile(_STRING + r"|[{}\[\]]", re.DOTALL)
_NO_KEY: Final = (-1, -1)


@dataclass(frozen=True, slots=True)
class Node:
    """A value: where it stands, where its key does if it has one, and its members if it is an object."""

    start: int
    end: int
    key_start: int
    key_end: int
    members: Mapping[str, Node] | None

    @property
    def below(self) -> list[Node]:
        """Return the members in order; none where it is no object."""
        return list(self.members.values()) if self.members else []

    def at(self, name: str) -> Node | None:
        """Return the member of a name, if there is one."""
        return self.members.get(name) if self.members else None


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON text and where its values stand; a file without a value has no root and counts as `{}`."""

    path: str
    text: str
    root: Node | None
    newline: str
    bom: bytes

    def encode(self) -> bytes:
        """Return the bytes of the document."""
        return self.bom + self.text.encode()


def parse(data: bytes, path: str) -> Document:
    """Find where the members stand in a file's bytes.

    Raises NotUnderstood with line and column where it is no JSON object.
    """
    return read(data, path)[0]


def tree(data: bytes, path: str) -> dict[str, Any]:
    """Return a file's content as plain values, read by `json`; an empty file is an empty object.

    Raises NotUnderstood with line and column where it is no JSON object.
    """
    return read(data, path)[1]


def read(data: bytes, path: str) -> tuple[Document, dict[str, Any]]:
    """Return a file's bytes as a document and, as `tree` does, as plain values, looked through once.

    Raises NotUnderstood with line and column where it is no JSON object.
    """
    if len(data) > LARGEST:
        raise NotUnderstood(path, f"it has {len(data)} bytes, too many for a configuration")
    bom = _BOM if data.startswith(_BOM) else b""
    data = data.removeprefix(_BOM)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8 text (byte 0x{data[error.start]:02x})"
        line, column = _place(data[: error.start].decode(), error.start)
        raise NotUnderstood(path, why, line=line, column=column, hint=_HINT) from error
    newline = "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"
    if not text.strip(BLANK):
        return Document(path, text, None, newline, bom), {}
    _bound(text, path)
    try:
        content = json.loads(text, parse_int=integer)
    except json.JSONDecodeError as error:
        why = re.sub(r"(?: starting)? at$", "", error.msg)
        why = f"it is not valid JSON: {why[:1].lower() + why[1:]}"
        raise NotUnderstood(path, why, line=error.lineno, column=error.colno, hint=_HINT) from error
    root = scan(text, path)
    if not isinstance(content, dict):
        refuse(path, text, root.start, "it is not a JSON object")
    return Document(path, text, root, newline, bom), content


def _bound(text: str, path: str) -> None:
    """Refuse a text before `json` would recurse too deeply into it."""
    depth = 0
    for found in _BRACKET.finditer(text):
        if found[0] in "{[":
            depth += 1
            if depth > _DEEPEST:
                refuse(path, text, found.start(), "it is nested too deeply to be a configuration")
        elif found[0] in "}]":
            depth -= 1


def scan(text: str, path: str) -> Node:
    """Return the top value of a valid text; refuse what Go refuses, and keys that could mean two values."""
    # An open object or array: where it starts, its name, its key's span, its members if it is an object.
    frames: list[tuple[int, str, tuple[int, int], dict[str, Node] | None]] = []
    name, key = "", _NO_KEY
    node = Node(0, 0, *_NO_KEY, None)
    for found in _TOKEN.finditer(text):
        members = frames[-1][3] if frames else None
        start, word, below = found.start(), found[0], None
        if found[2] and members is not None:
            name, key = _name(found[1]), found.span(1)
            if name in members:
                refuse(path, text, start, f"it is ambiguous: the key {found[1]} is twice in one object")
            continue
        if word in "{[":
            frames.append((start, name, key, {} if found[0] == "{" else None))
            key = _NO_KEY
            continue
        if word in "}]":
            start, name, key, below = frames.pop()
            members = frames[-1][3] if frames else None
        else:
            _doubt(path, text, word, start)
        node = Node(start, found.end(), *key, below)
        if members is not None:
            members[name] = node
        key = _NO_KEY
    return node


def _doubt(path: str, text: str, word: str, start: int) -> None:
    """Refuse the numbers that `json` takes and Go does not."""
    if word in ("NaN", "Infinity", "-Infinity"):
        refuse(path, text, start, f"it is not valid JSON: {word} is not a number of JSON")
    if word[0] in "-0123456789" and abs(float(word)) == float("inf"):
        shown = word if len(word) < 30 else f"{word[:20]}..."
        refuse(path, text, start, f"it is not valid JSON for the runtime: the number {shown} is too large")


def integer(digits: str) -> int | float:
    """Return an integer, or a float where Go would read one."""
    # Python converts no more than 4300 digits. One so long is infinite as a float, and refused later.
    return int(digits) if len(digits) < 400 else float(digits)


def _name(token: str) -> str:
    return str(json.loads(token)) if "\\" in token else token[1:-1]


def _place(text: str, position: int) -> tuple[int, int]:
    start = text.rfind("\n", 0, position) + 1
    return text.count("\n", 0, position) + 1, min(position, len(text)) - start + 1


def refuse(path: str, text: str, position: int, why: str) -> NoReturn:
    """Raise NotUnderstood for a place in a text."""
    line, column = _place(text, position)
    raise NotUnderstood(path, why, line=line, column=column, hint=_HINT)
