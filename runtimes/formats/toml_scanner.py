"""Scanner that finds the position of every statement in a TOML text.

It reads only text that a parser has accepted, so it does not check the syntax again.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

from runtimes.dataclass import dataclass, replace
from runtimes.errors import ConfigError
from runtimes.lazy_pattern import lazy_pattern
from runtimes.model import Key

_BARE: Final = lazy_pattern(r"[\w-]+")
_TUPLE: Final = lazy_pattern(r"\(['\"].*\)")
_HINT: Final = "repair the file, even if the runtime accepts it as it is"
_NOT_UTF8: Final = (
    "save the file as UTF-8, even if the runtime accepts it as it is (containerd 1.x does)"
)
IN_1_0: Final = (
    r"write inline tables on one line without a comma at the end, and no \x or \e in strings"
)
"""What to change in TOML 1.1 for a program that reads TOML 1.0."""
_BOM: Final = "\ufeff"
# Quantifiers are possessive wherever a match could backtrack: a hostile file must cost neither
# exponential time nor memory for backtracking. CPython before 3.11.5 (Debian 12 has 3.11.2) misses
# matches of possessive groups that contain alternatives, assertions, or repetitions other than at
# their end (python/cpython issues 100061 and 106052); tests/project/test_patterns.py forbids those.
# Therefore a string is plain characters, then any number of escapes with plain characters after
# each.
_QUOTED: Final = r'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"' + r"|'[^'\n]*+'"
_BLANK: Final = lazy_pattern(r"[ \t\r]*+(?:#[^\n]*+)?(?:\n|$)")
_KEY_PART: Final = lazy_pattern(rf"[ \t]*({_QUOTED}|[A-Za-z0-9_-]+)[ \t]*")
_SIMPLE_VALUE: Final = lazy_pattern(
    r"[ \t]*+(?:\"[^\"\\\n]*+(?:\\.[^\"\\\n]*+)*+\"(?!\")|'[^'\n]*+'(?!')|[^\"'\[{#\n]*+)"
    r"[ \t\r]*+(?:#[^\n]*+)?(?:\n|$)"
)
# What nearly all lines are: taken in one step.
_SIMPLE_LINE: Final = lazy_pattern(rf"[ \t]*([A-Za-z0-9_-]+)[ \t]*={_SIMPLE_VALUE.pattern}")
_VALUE_TOKEN: Final = lazy_pattern(
    r'"""[^"\\]*+(?:(?:\\.|"(?!""))[^"\\]*+)*"{3,5}'
    r"|'''[^']*+(?:'(?!'')[^']*+)*'{3,5}"
    rf"|{_QUOTED}|#[^\n]*|[\[\]{{}}]|\n|[^\"'#\[\]{{}}\n]+",
    re.DOTALL,
)
LARGEST: Final = 1 << 20
"""The size limit in bytes.

The largest known file has 16 thousand bytes. Parsing a million bytes of tables takes 200 MB of
memory.
"""
_LARGE: Final = 2048
"""Characters from which on a text is parsed only once, which costs the memory of its values."""
_DEEPEST: Final = 100
_TOO_DEEP: Final = "it is nested too deeply to be a configuration"
_LONG_KEY: Final = lazy_pattern(
    rf"(?:^|[\[{{,])[ \t]*+(?:(?:{_QUOTED}|[A-Za-z0-9_-]++)[ \t]*+\.[ \t]*+){{{_DEEPEST}}}",
    re.MULTILINE,
)


class Statement(NamedTuple):  # A large file has tens of thousands, and a tuple is made fastest.
    """A header, or a key with its value; `start` and `end` are the offsets of its whole lines.

    `path` is the full key, including that of the table. `raw` are its parts as spelled in the text.
    `array` is set for a `[[...]]` header and everything below it, which no key can address.
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
    """A TOML text with its statements, its newline and its byte order mark."""

    path: str
    text: str
    statements: tuple[Statement, ...]
    newline: str
    bom: str

    def encode(self) -> bytes:
        """Return the bytes of the document. Raise ConfigError if UTF-8 cannot encode its text."""
        try:
            return (self.bom + self.text).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                self.path, "a new value contains an unpaired surrogate, which UTF-8 cannot encode"
            ) from error


def parse(data: bytes, path: str) -> Document:
    """Return a file's bytes as a document.

    Raise ConfigError with line and column if they are not valid TOML.
    """
    return read(data, path)[0]


def read(data: bytes, path: str) -> tuple[Document, dict[str, Any]]:
    """Return the results of `parse` and `tree` from one pass over the bytes.

    Raise ConfigError with line and column if they are not valid TOML.
    """
    content = tree(data, path)
    text = data.decode()
    bom = _BOM if text.startswith(_BOM) else ""
    text = text.removeprefix(_BOM)
    newline = "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"
    return Document(path, text, tuple(statements(text)), newline, bom), content


def loads(text: str) -> dict[str, Any]:
    """Return a text in TOML 1.1 as plain values. Raise ValueError if it is not valid.

    Python before 3.15 reads TOML 1.0. What it refuses is read by tomli, which most starts do not
    load.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        import tomli  # noqa: PLC0415

        return tomli.loads(text)


def needs_1_1(data: bytes) -> bool:
    """Return whether valid TOML is invalid in 1.0, as far as this Python knows (3.15 does not)."""
    return not _parsed(data.decode().removeprefix(_BOM))[1]


def refuse_1_1(files: Iterable[tuple[str, bytes | None]]) -> None:
    """Raise ConfigError if a file is in TOML 1.1, for which a binary is needed that loads it."""
    for path, data in files:
        if data is not None and needs_1_1(data):
            why = "it is TOML 1.1, and there is no binary that tells whether the runtime reads that"
            raise ConfigError(path, why, hint=IN_1_0)


def tree(data: bytes, path: str) -> dict[str, Any]:
    """Return a file's content as plain values.

    Raise ConfigError with line and column if it is not valid TOML.
    """
    if len(data) > LARGEST:
        raise ConfigError(path, f"it has {len(data)} bytes, too many for a configuration file")
    try:
        text = data.decode().removeprefix(_BOM)
        result = _parsed(text)[0]
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        why = f"it is not UTF-8 text (byte 0x{data[error.start]:02x})"
        raise ConfigError(path, why, line=line, column=column, hint=_NOT_UTF8) from error
    except RecursionError as error:
        raise ConfigError(path, _TOO_DEEP, hint=_HINT) from error
    except ValueError as error:
        raise _not_toml(path, error) from error
    if result is None:
        raise ConfigError(path, _TOO_DEEP, hint=_HINT)
    own: dict[str, Any] = _copied(result)
    return own


def _parsed(text: str) -> tuple[dict[str, Any] | None, bool]:
    """Return a text as plain values, and whether it is TOML 1.0. Raise ValueError if invalid.

    The values are None if they are nested too deeply. They must not be changed: a large text is
    parsed once, although it is read for several questions.
    """
    return _parse(text) if len(text) < _LARGE else _parse_once(text)


def _parse(text: str) -> tuple[dict[str, Any] | None, bool]:
    # Checked first, because tomllib needs quadratic time and memory for a key with many parts.
    if _has_long_key(text):
        return None, True
    try:
        result, is_1_0 = tomllib.loads(text), True
    except tomllib.TOMLDecodeError:
        result, is_1_0 = loads(text), False
    return None if _is_deep(result) else result, is_1_0


# A file as it is, and as it will be.
_parse_once = lru_cache(maxsize=2)(_parse)


def _has_long_key(text: str) -> bool:
    """Return whether a key has so many parts that it is nested too deeply."""
    # A key is in one line, and lines with so many dots are rare: the expression is slow.
    return any(line.count(".") >= _DEEPEST for line in text.split("\n")) and (
        _LONG_KEY.search(text) is not None
    )


def _copied(value: Any) -> Any:
    """Return a value whose tables and arrays are the caller's own."""
    kind = type(value)
    if kind is dict:
        return {
            key: item if type(item) is str else _copied(item)  # as most are
            for key, item in value.items()
        }
    return [_copied(item) for item in value] if kind is list else value


def _is_deep(tree: dict[str, Any]) -> bool:
    """Return whether a tree is nested too deeply for the recursive functions that walk it."""
    level: list[Any] = [tree]
    for _ in range(_DEEPEST):
        if not level:
            return False
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


def _not_toml(path: str, error: ValueError) -> ConfigError:
    """Return the error for a text that `loads` refused."""
    from tomli import TOMLDecodeError  # noqa: PLC0415

    if not isinstance(error, TOMLDecodeError):  # Python refuses to convert more than 4300 digits.
        return ConfigError(path, "a number in it has too many digits", hint=_HINT)
    said = _TUPLE.sub(_dotted, error.msg)
    why = f"it is not valid TOML: {said[:1].lower()}{said[1:]}"
    return ConfigError(path, why, line=error.lineno, column=error.colno, hint=_HINT)


def _dotted(key: re.Match[str]) -> str:
    """Return a key in dotted notation; tomli writes it as a tuple of Python."""
    import ast  # noqa: PLC0415  # Only needed for a broken file.

    try:
        parts = [str(part) for part in ast.literal_eval(key[0])]
    except (SyntaxError, ValueError):
        return key[0]
    return ".".join(part if _BARE.fullmatch(part) else f'"{part}"' for part in parts)


def replace_span(document: Document, start: int, end: int, new: str) -> Document:
    """Return a document with a span of its text replaced, scanning only the statements around it.

    After the span, statements from the next header on do not depend on the text before them. Arrays
    of tables are the exception: if there may be one, the whole text is scanned.
    """
    old = document.statements
    text = document.text[:start] + new + document.text[end:]
    unchanged = bisect_right(old, start, key=lambda s: s.end)
    if unchanged and document.text[old[unchanged - 1].end - 1] != "\n":
        unchanged -= 1  # The last line has no newline, so the new text continues it.
    rest = next(
        (i for i in range(unchanged, len(old)) if old[i].header and old[i].start >= end), len(old)
    )
    before = old[unchanged - 1] if unchanged else None
    touched = document.text[
        before.end if before else 0 : old[rest].start if rest < len(old) else None
    ]
    if "[[" in touched or "[[" in new or any(s.array for s in old):
        return replace(document, text=text, statements=tuple(statements(text)))
    offset = len(new) - (end - start)
    until = old[rest].start + offset if rest < len(old) else len(text)
    rescanned = list(statements(text, before, until))
    if rescanned and rescanned[-1].end > until:  # The new text extends into the statement after it.
        return replace(document, text=text, statements=tuple(statements(text)))
    shifted = (
        Statement(s.start + offset, s.end + offset, s.path, s.raw, s.table, s.header, s.array)
        for s in (old[rest:] if offset else ())
    )
    following = shifted if offset else old[rest:]
    return replace(document, text=text, statements=(*old[:unchanged], *rescanned, *following))


def statements(
    text: str, after: Statement | None = None, until: int | None = None
) -> Iterator[Statement]:
    """Yield the statements of a text, in order.

    Scanning starts after the statement `after`, which must not follow an array of tables, and stops
    at the offset `until`.
    """
    table: Key = after.table if after else ()
    raw_table: Key = after.raw[: len(table)] if after else ()
    arrays: set[Key] = set()
    array = False
    position = after.end if after else 0
    until = len(text) if until is None else until
    while position < until:
        if simple := _SIMPLE_LINE.match(text, position):
            name, end = (simple[1],), simple.end()
            yield Statement(position, end, table + name, raw_table + name, table, False, array)  # noqa: FBT003
            position = end
            continue
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
            yield Statement(
                start, end, table + parts, raw_table + raw, table, header=False, array=array
            )
        position = end


def _skip(text: str, position: int) -> int:
    """Return the position of the next character that is neither a space nor a tab."""
    while text[position] in " \t":
        position += 1
    return position


def _key(text: str, position: int) -> tuple[Key, Key, int]:
    """Return the parts of the key at a position, their spelling, and the position after the key."""
    parts: list[str] = []
    raw: list[str] = []
    while result := _KEY_PART.match(text, position):
        spelled = result[1]
        raw.append(spelled)
        if spelled[0] == '"' and "\\" in spelled:
            parts.append(next(iter(loads(f"{spelled}=0"))))
        else:
            parts.append(spelled[1:-1] if spelled[0] in "\"'" else spelled)
        position = result.end()
        if text[position : position + 1] != ".":
            break
        position += 1
    return tuple(parts), tuple(raw), position


def _value_end(text: str, position: int) -> int:
    """Return the end of the line on which the value at a position ends."""
    simple = _SIMPLE_VALUE.match(text, position)
    if simple:
        return simple.end()
    depth = 0
    for result in _VALUE_TOKEN.finditer(text, position):
        match result[0]:
            case "[" | "{":
                depth += 1
            case "]" | "}":
                depth -= 1
            case "\n" if depth == 0:
                return result.end()
    return len(text)
