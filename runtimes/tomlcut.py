"""A TOML text cut into its statements: which line says what, and where it ends.

It reads only what `tomllib` has accepted already, so it need not doubt.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from runtimes.errors import NotUnderstood
from runtimes.model import Key

_HINT: Final = "repair the file, or start the runtime once by hand to see what it says about it"
_BOM: Final = "\ufeff"
_QUOTED: Final = r'"(?:[^"\\\n]|\\.)*"' + r"|'[^'\n]*'"
_BLANK: Final = re.compile(r"[ \t\r]*(?:#[^\n]*)?(?:\n|$)")
_KEY_PART: Final = re.compile(rf"[ \t]*({_QUOTED}|[A-Za-z0-9_-]+)[ \t]*")
_SIMPLE_VALUE: Final = re.compile(
    r"[ \t]*(?:\"(?:[^\"\\\n]|\\.)*\"(?!\")|'[^'\n]*'(?!')|[^\"'\[{#\n]*)[ \t\r]*(?:#[^\n]*)?(?:\n|$)"
)
_VALUE_TOKEN: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    rf"|{_QUOTED}|#[^\n]*|[\[\]{{}}]|\n|[^\"'#\[\]{{}}\n]+",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A header or a key with its value: where it stands (whole lines) and what it names.

    `path` is the whole key, the table's included. `raw` are its parts as they
    are spelled. `array` is set from a `[[...]]` header on, whose keys cannot be
    addressed by name.
    """

    start: int
    end: int
    path: Key
    raw: Key
    table: Key
    header: bool
    array: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A TOML text, its statements and its line end."""

    path: str
    text: str
    statements: tuple[Statement, ...]
    newline: str
    bom: str

    def encode(self) -> bytes:
        """Return the bytes of the document."""
        return (self.bom + self.text).encode()


def parse(data: bytes, path: str) -> Document:
    """Cut a file's bytes into a document.

    Raises NotUnderstood with line and column where it is no valid TOML.
    """
    tree(data, path)
    text = data.decode()
    bom = _BOM if text.startswith(_BOM) else ""
    text = text.removeprefix(_BOM)
    newline = "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"
    return Document(path, text, tuple(statements(text)), newline, bom)


def tree(data: bytes, path: str) -> dict[str, Any]:
    """Return a file's content as plain values, read by `tomllib`.

    Raises NotUnderstood with line and column where it is no valid TOML.
    """
    try:
        return tomllib.loads(data.decode().removeprefix(_BOM))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        why = f"it is not UTF-8 text (byte 0x{data[error.start]:02x})"
        raise NotUnderstood(path, why, line=line, column=column, hint=_HINT) from error
    except RecursionError as error:
        raise NotUnderstood(path, "it is nested too deeply to be a configuration") from error
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(data.decode().removeprefix(_BOM), path, str(error)) from error


def indent_of(document: Document, statement: Statement) -> str:
    """Return the white space before a statement."""
    return document.text[statement.start : _skip(document.text, statement.start)]


def _not_toml(text: str, path: str, message: str) -> NotUnderstood:
    found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if found:
        line, column = int(found[1]), int(found[2])
    else:  # "(at end of document)"
        line = text.count("\n") + 1
        column = len(text) - (text.rfind("\n") + 1) + 1
    why = re.sub(r" \(at [^)]*\)$", "", message)
    return NotUnderstood(
        path,
        f"it is not valid TOML: {why[:1].lower() + why[1:]}",
        line=line,
        column=column,
        hint=_HINT,
    )


def statements(text: str) -> Iterator[Statement]:
    """Yield the statements of a text, in order."""
    table: Key = ()
    raw_table: Key = ()
    arrays: set[Key] = set()
    array = False
    position = 0
    while position < len(text):
        blank = _BLANK.match(text, position)
        if blank and blank.end() > position:
            position = blank.end()
            continue
        start = position
        position = _skip(text, position)
        if text[position] == "[":
            array_header = text.startswith("[[", position)
            parts, raw, _ = _key(text, position + (2 if array_header else 1))
            end = text.find("\n", position) + 1 or len(text)
            if array_header:
                arrays.add(parts)
            array = any(parts[:depth] in arrays for depth in range(1, len(parts) + 1))
            table, raw_table = parts, raw
            yield Statement(start, end, table, raw_table, table, header=True, array=array)
        else:
            parts, raw, position = _key(text, position)
            end = _value_end(text, position + 1)
            yield Statement(start, end, table + parts, raw_table + raw, table, header=False, array=array)
        position = end


def _skip(text: str, position: int) -> int:
    while text[position] in " \t":
        position += 1
    return position


def _key(text: str, position: int) -> tuple[Key, Key, int]:
    parts: list[str] = []
    raw: list[str] = []
    while found := _KEY_PART.match(text, position):
        spelled = found[1]
        raw.append(spelled)
        if spelled[0] == '"' and "\\" in spelled:
            parts.append(next(iter(tomllib.loads(f"{spelled}=0"))))
        else:
            parts.append(spelled[1:-1] if spelled[0] in "\"'" else spelled)
        position = found.end()
        if text[position : position + 1] != ".":
            break
        position += 1
    return tuple(parts), tuple(raw), position


def _value_end(text: str, position: int) -> int:
    simple = _SIMPLE_VALUE.match(text, position)
    if simple:
        return simple.end()
    depth = 0
    for found in _VALUE_TOKEN.finditer(text, position):
        match found[0]:
            case "[" | "{":
                depth += 1
            case "]" | "}":
                depth -= 1
            case "\n" if depth == 0:
                return found.end()
    return len(text)
