"""A TOML text cut into its statements: which line says what, and where it ends.

It reads only what `tomllib` has accepted already, so it need not doubt.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from runtimes.errors import NotUnderstood
from runtimes.model import Key

_HINT: Final = "repair the file, or start the runtime once by hand to see what it says about it"
_BOM: Final = "\ufeff"
# Possessive wherever more than one way leads to the same end: a hostile file must not cost all of them.
_QUOTED: Final = r'"(?:[^"\\\n]|\\.)*+"' + r"|'[^'\n]*+'"
_BLANK: Final = re.compile(r"[ \t\r]*+(?:#[^\n]*+)?(?:\n|$)")
_KEY_PART: Final = re.compile(rf"[ \t]*({_QUOTED}|[A-Za-z0-9_-]+)[ \t]*")
_SIMPLE_VALUE: Final = re.compile(
    r"[ \t]*+(?:\"(?:[^\"\\\n]|\\.)*+\"(?!\")|'[^'\n]*+'(?!')|[^\"'\[{#\n]*+)[ \t\r]*+(?:#[^\n]*+)?(?:\n|$)"
)
_VALUE_TOKEN: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+"{3,5}'
    r"|'''(?:[^']|'(?!''))*+'{3,5}"
    rf"|{_QUOTED}|#[^\n]*|[\[\]{{}}]|\n|[^\"'#\[\]{{}}\n]+",
    re.DOTALL,
)
LARGEST: Final = 1 << 20
"""In bytes. The largest known file has 16 thousand; one of a million that is all tables takes 200 million."""
_DEEPEST: Final = 100
_TOO_DEEP: Final = "it is nested too deeply to be a configuration"
_LONG_KEY: Final = re.compile(
    rf"(?:^|[\[{{,])[ \t]*+(?:(?:{_QUOTED}|[A-Za-z0-9_-]++)[ \t]*+\.[ \t]*+){{{_DEEPEST}}}", re.MULTILINE
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
        """Return the bytes of the document. Raises NotUnderstood where it was given what UTF-8 cannot say."""
        try:
            return (self.bom + self.text).encode()
        except UnicodeEncodeError as error:
            raise NotUnderstood(self.path, "half a surrogate pair cannot be written to it") from error


def parse(data: bytes, path: str) -> Document:
    """Cut a file's bytes into a document.

    Raises NotUnderstood with line and column where it is no valid TOML.
    """
    return read(data, path)[0]


def read(data: bytes, path: str) -> tuple[Document, dict[str, Any]]:
    """Return a file's bytes as a document and, as `tree` does, as plain values, looked through once.

    Raises NotUnderstood with line and column where it is no valid TOML.
    """
    content = tree(data, path)
    text = data.decode()
    bom = _BOM if text.startswith(_BOM) else ""
    text = text.removeprefix(_BOM)
    newline = "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"
    return Document(path, text, tuple(statements(text)), newline, bom), content


def tree(data: bytes, path: str) -> dict[str, Any]:
    """Return a file's content as plain values, read by `tomllib`.

    Raises NotUnderstood with line and column where it is no valid TOML.
    """
    if len(data) > LARGEST:
        raise NotUnderstood(path, f"it has {len(data)} bytes, too many for a configuration")
    try:
        text = data.decode().removeprefix(_BOM)
        # Tested before: tomllib takes a time and a memory for such a key that grow with its square.
        found = None if _LONG_KEY.search(text) else tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        why = f"it is not UTF-8 text (byte 0x{data[error.start]:02x})"
        raise NotUnderstood(path, why, line=line, column=column, hint=_HINT) from error
    except RecursionError as error:
        raise NotUnderstood(path, _TOO_DEEP, hint=_HINT) from error
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(data.decode().removeprefix(_BOM), path, str(error)) from error
    except ValueError as error:  # Python converts no more than 4300 digits
        raise NotUnderstood(path, "a number in it has too many digits", hint=_HINT) from error
    if found is None or _is_deep(found):
        raise NotUnderstood(path, _TOO_DEEP, hint=_HINT)
    return found


def _is_deep(tree: dict[str, Any]) -> bool:
    """Tell whether a tree is deeper than whoever walks it by recursion can go."""
    level: list[Any] = [tree]
    for _ in range(_DEEPEST):
        level = [
            below
            for item in level
            for below in (item.values() if isinstance(item, dict) else item)
            if isinstance(below, (dict, list))
        ]
    return bool(level)


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


def respliced(document: Document, start: int, end: int, new: str) -> Document:
    """Return a document with a span of its text replaced; only what is near that is cut anew.

    Behind the span, from the first header on, nothing depends on what is before,
    but for arrays of tables: where one may be concerned, all of it is cut.
    """
    old = document.statements
    text = document.text[:start] + new + document.text[end:]
    kept = bisect_right(old, start, key=lambda s: s.end)
    if kept and document.text[old[kept - 1].end - 1] != "\n":
        kept -= 1  # the last line has no end, so what follows belongs to it
    rest = next((i for i in range(kept, len(old)) if old[i].header and old[i].start >= end), len(old))
    before = old[kept - 1] if kept else None
    touched = document.text[before.end if before else 0 : old[rest].start if rest < len(old) else None]
    if "[[" in touched or "[[" in new or any(s.array for s in old):
        return replace(document, text=text, statements=tuple(statements(text)))
    moved = len(new) - (end - start)
    until = old[rest].start + moved if rest < len(old) else len(text)
    anew = list(statements(text, before, until))
    if anew and anew[-1].end > until:  # the new text reaches into what was behind it
        return replace(document, text=text, statements=tuple(statements(text)))
    shifted = (
        Statement(s.start + moved, s.end + moved, s.path, s.raw, s.table, s.header, s.array)
        for s in (old[rest:] if moved else ())
    )
    return replace(document, text=text, statements=(*old[:kept], *anew, *(shifted if moved else old[rest:])))


def statements(text: str, after: Statement | None = None, until: int | None = None) -> Iterator[Statement]:
    """Yield the statements of a text, in order.

    `after` is one that is known already, with no array of tables before it, and
    `until` where to stop.
    """
    table: Key = after.table if after else ()
    raw_table: Key = after.raw[: len(table)] if after else ()
    arrays: set[Key] = set()
    array = False
    position = after.end if after else 0
    until = len(text) if until is None else until
    while position < until:
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
