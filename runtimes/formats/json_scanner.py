"""Scanner that finds the position of every value in a JSON text.

It reads only text that `json` has accepted, so it does not check the syntax again. In addition it
refuses what Go's decoder refuses but `json` accepts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from runtimes.dataclass import dataclass
from runtimes.errors import ConfigError
from runtimes.lazy_pattern import lazy_pattern

_BOM: Final = b"\xef\xbb\xbf"
BLANK: Final = " \t\r\n"
LARGEST: Final = 4 << 20
"""The size limit in bytes. The largest known file has about a thousand."""
_DEEPEST: Final = 100
_HINT: Final = "repair the file; start the runtime by hand to see its own error message"
# A string is plain characters, then escapes with plain characters after each. See toml_scanner for
# where possessive quantifiers are allowed. A text that is not valid JSON may end within a string.
_STRING: Final = r'("[^"\\]*+(?:\\.[^"\\]*+)*+\\?(?:"|\Z))'
_TOKEN: Final = lazy_pattern(_STRING + r'([ \t\r\n]*:)?|[{}\[\]]|[^ \t\r\n,:"{}\[\]]+', re.DOTALL)
_BRACKET: Final = lazy_pattern(_STRING + r"|[{}\[\]]", re.DOTALL)
_NO_KEY: Final = (-1, -1)


@dataclass(frozen=True, slots=True)
class Node:
    """The position of a value and of its key, if it has one, and its members if it is an object.

    Positions are offsets into the text; `key_start` and `key_end` are -1 for a value without a key.
    """

    start: int
    end: int
    key_start: int
    key_end: int
    members: Mapping[str, Node] | None

    @property
    def below(self) -> list[Node]:
        """Return the members in order; empty if the value is not an object."""
        return list(self.members.values()) if self.members else []

    def at(self, name: str) -> Node | None:
        """Return the member with a name; None if there is none."""
        return self.members.get(name) if self.members else None


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON text and its values' positions; an empty file has no `root` and counts as `{}`."""

    path: str
    text: str
    root: Node | None
    newline: str
    bom: bytes

    def encode(self) -> bytes:
        """Return the bytes of the document."""
        return self.bom + self.text.encode()


def parse(data: bytes, path: str) -> Document:
    """Return a file's bytes as a document.

    Raise ConfigError with line and column if they are not a JSON object.
    """
    return read(data, path)[0]


def tree(data: bytes, path: str) -> dict[str, Any]:
    """Return a file's content as plain values, by `json`; an empty file and `null` are no keys.

    Raise ConfigError with line and column if it is not a JSON object.
    """
    return read(data, path)[1]


def read(data: bytes, path: str) -> tuple[Document, dict[str, Any]]:
    """Return the results of `parse` and `tree` from one pass over the bytes.

    Raise ConfigError with line and column if they are not a JSON object.
    """
    if len(data) > LARGEST:
        raise ConfigError(path, f"it has {len(data)} bytes, too many for a configuration file")
    bom = _BOM if data.startswith(_BOM) else b""
    data = data.removeprefix(_BOM)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8 text (byte 0x{data[error.start]:02x})"
        line, column = _place(data[: error.start].decode(), error.start)
        raise ConfigError(path, why, line=line, column=column, hint=_HINT) from error
    newline = "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"
    if not text.strip(BLANK):
        return Document(path, text, None, newline, bom), {}
    _bound(text, path)
    try:
        content = json.loads(text, parse_int=integer)
    except json.JSONDecodeError as error:
        why, position = _fault(text, error)
        line, column = _place(text, position)
        raise ConfigError(
            path, f"it is not valid JSON: {why}", line=line, column=column, hint=_HINT
        ) from error
    if content is None:
        # Go's decoder accepts it as an object without members.
        return Document(path, text, None, newline, bom), {}
    root = scan(text, path)
    if not isinstance(content, dict):
        refuse(path, text, root.start, "it is not a JSON object")
    return Document(path, text, root, newline, bom), content


def _fault(text: str, error: json.JSONDecodeError) -> tuple[str, int]:
    """Return the error message and position, identical for all versions of Python.

    Since Python 3.13, `json` reports a trailing comma as such and at its position. Earlier versions
    report the bracket after it and do not mention the comma.
    """
    before = text[: error.pos].rstrip(BLANK)
    if before.endswith(","):
        for expected, bracket, kind in (("property name", "}", "object"), ("value", "]", "array")):
            if error.msg.startswith(f"Expecting {expected}") and text.startswith(
                bracket, error.pos
            ):
                return f"illegal trailing comma before end of {kind}", len(before) - 1
    why = re.sub(r"(?: starting)? at$", "", error.msg)
    return why[:1].lower() + why[1:], error.pos


def _bound(text: str, path: str) -> None:
    """Raise ConfigError if a text is nested so deeply that `json` exceeds the recursion limit."""
    depth = 0
    for result in _BRACKET.finditer(text):
        if result[0] in "{[":
            depth += 1
            if depth > _DEEPEST:
                refuse(path, text, result.start(), "it is nested too deeply to be a configuration")
        elif result[0] in "}]":
            depth -= 1


def scan(text: str, path: str) -> Node:
    """Return the top-level value of a valid JSON text.

    Raise ConfigError for duplicate keys and for numbers that Go refuses.
    """
    # Each frame is an open object or array: its start, its name, the span of its key, and its
    # members if it is an object.
    frames: list[tuple[int, str, tuple[int, int], dict[str, Node] | None]] = []
    name, key = "", _NO_KEY
    node = Node(0, 0, *_NO_KEY, None)
    for result in _TOKEN.finditer(text):
        members = frames[-1][3] if frames else None
        start, item, below = result.start(), result[0], None
        if result[2] and members is not None:
            name, key = _name(result[1]), result.span(1)
            if name in members:
                refuse(
                    path,
                    text,
                    start,
                    f"it is ambiguous: the key {result[1]} occurs twice in one object",
                )
            continue
        if item in "{[":
            frames.append((start, name, key, {} if result[0] == "{" else None))
            key = _NO_KEY
            continue
        if item in "}]":
            start, name, key, below = frames.pop()
            members = frames[-1][3] if frames else None
        else:
            _check_number(path, text, item, start)
        node = Node(start, result.end(), *key, below)
        if members is not None:
            members[name] = node
        key = _NO_KEY
    return node


def _check_number(path: str, text: str, item: str, start: int) -> None:
    """Raise ConfigError for a number that `json` accepts and Go does not."""
    if item in ("NaN", "Infinity", "-Infinity"):
        refuse(path, text, start, f"it is not valid JSON: {item} is not a JSON number")
    if item[0] in "-0123456789" and abs(float(item)) == float("inf"):
        shown = item if len(item) < 30 else f"{item[:20]}..."
        refuse(
            path,
            text,
            start,
            f"it is not valid JSON for the runtime: the number {shown} is too large",
        )


def integer(digits: str) -> int | float:
    """Return an integer, or a float if the number has 400 digits or more."""
    # Python refuses to convert more than 4300 digits to an integer. A number of this length becomes
    # an infinite float, which `scan` refuses later.
    return int(digits) if len(digits) < 400 else float(digits)


def _name(token: str) -> str:
    """Return the value of a string token."""
    return str(json.loads(token)) if "\\" in token else token[1:-1]


def _place(text: str, position: int) -> tuple[int, int]:
    """Return the line and column of a position, counted from 1."""
    start = text.rfind("\n", 0, position) + 1
    return text.count("\n", 0, position) + 1, min(position, len(text)) - start + 1


def refuse(path: str, text: str, position: int, why: str) -> NoReturn:
    """Raise ConfigError with the line and column of a position."""
    line, column = _place(text, position)
    raise ConfigError(path, why, line=line, column=column, hint=_HINT)
