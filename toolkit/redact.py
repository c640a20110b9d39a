"""Redaction of secrets with `***`: in JSON values, command lines, URLs, files and diffs.

In doubt a value is hidden: a missing word in a bug report is harmless, a leaked password is not.
Redaction is idempotent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

MASK: Final = "***"

_SECRET: Final = re.compile(
    r"auth|token|passw|passphrase|(?<![a-z])(?:pass|pwd)(?![a-z])|secret|credential|user-?_?name"
    r"|(?:api|access|private)[-_]?key|cookie",
    re.IGNORECASE,
)
# Possessive quantifiers, as in runtimes/formats/toml_scanner.py, and upper bounds limit backtracking.
_PART: Final = r"""(?:"(?:[^"\\\n]|\\.){0,256}"|'[^'\n]{0,256}+'|(?<![\w-])[\w-]++)"""
_KEY: Final = re.compile(rf"""({_PART}(?:\s*+\.\s*+{_PART}){{0,16}})(\\*+["']?+\s*+[=:]+\s*+)""")
_HEADER: Final = re.compile(r"^[-+ ]?\s*+\[{1,2}+([^=\]]*+)\]{1,2}+\s*+(?:#.*)?$")
_FLAG: Final = re.compile(r"""(?<![\w-])(--?[\w.-]++)(\s++)("(?:[^"\\]|\\.){0,999}"|'[^']{0,999}+'|\S++)""")
_STRING: Final = re.compile(r""""[^"\\]*+(?:\\.[^"\\]*+)*+"|'[^'\\]*+(?:\\.[^'\\]*+)*+'""")
_WORD: Final = re.compile(r"""[^\s"'<>`]++""")
_DIGEST: Final = ("sha256:", "sha512:")
_HTTP: Final = re.compile(r"\b(Bearer|Basic)(\s+)[\w+/=.~-]{6,}", re.IGNORECASE)
_PEM: Final = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:(?=-----END)|\Z)", re.DOTALL)
_OPEN: Final = {"[": 1, "{": 1, "]": -1, "}": -1}


def is_secret(key: str) -> bool:
    """Return whether the value of a key is a secret."""
    if "\\" in key:
        with suppress(ValueError):
            key += str(json.loads(key if key.startswith('"') else f'"{key}"'))
    return _SECRET.search(key) is not None


def value(result: Any) -> Any:
    """Return a JSON value with secrets masked, which are recognized by key, by option, or by form."""
    if isinstance(result, str):
        return text(result)
    if isinstance(result, Mapping):
        return {
            text(str(key)): MASK if item is not None and is_secret(str(key)) else value(item)
            for key, item in result.items()
        }
    if isinstance(result, Sequence) and not isinstance(result, bytes):
        is_words = all(isinstance(item, str) for item in result)
        return argv(result) if is_words else [value(item) for item in result]
    return result


def argv(words: Sequence[str]) -> list[str]:
    """Return a command line with the values of secret options masked."""
    masked: list[str] = []
    hide = False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = name.startswith("-") and is_secret(name)
        if hide:
            masked.append(MASK)
        elif secret and equals:
            masked.append(f"{name}={MASK}")
        else:
            masked.append(text(word))
        hide = secret and not equals and not hide
    return masked


def data(content: bytes | None) -> bytes | None:
    """Return the content of a file with secrets masked."""
    return None if content is None else text(content.decode(errors="replace")).encode()


def text(name: str) -> str:
    """Return text with secrets masked: TOML, JSON, environment variables, HTTP headers, or a diff of such."""
    name = _PEM.sub(rf"\1{MASK}", name)
    lines = _lines(name)
    return "".join(_loose(line) for line in lines)


def _loose(line: str) -> str:
    """Mask secrets that have no key: logins in URLs and headers, and the values of secret options."""
    if "@" in line:
        line = _WORD.sub(lambda m: _without_login(m[0]), line)
    line = _HTTP.sub(rf"\1\2{MASK}", line)
    return _FLAG.sub(lambda m: f"{m[1]}{m[2]}{MASK}" if is_secret(m[1]) else m[0], line)


def _without_login(word: str) -> str:
    """Mask the login of a URL, also without a scheme, as Docker and curl accept it for a proxy."""
    if "@" not in word:
        return word
    scheme, mark, rest = word.partition("://")
    if not mark:
        before, _, host = word.rpartition("@")
        colon = before.find(":")
        if colon < 0 or host.startswith(_DIGEST):
            return word
        begin = max(before.rfind(sign, 0, colon) for sign in "=(,[{") + 1
        return f"{before[:begin]}{MASK}@{host}"
    if ":" in rest.partition("/")[0] and "@" in rest:
        return f"{scheme}://{MASK}@{rest.rpartition('@')[2]}"
    return "://".join([scheme, *(_without_user(part) for part in rest.split("://"))])


def _without_user(rest: str) -> str:
    """Mask the user before the host of a URL; the path may contain an `@` as well."""
    location, slash, path = rest.partition("/")
    if ":" in location and "@" in path:
        return f"{MASK}@{path.rpartition('@')[2]}"
    return f"{MASK}@{location.rpartition('@')[2]}{slash}{path}" if "@" in location else rest


def _lines(name: str) -> Iterator[str]:
    """Yield the lines of a text with the values of secret keys masked; a value may span many lines."""
    table, until = False, ""
    # Not splitlines(), which also splits at characters that do not end a line in JSON and TOML.
    for whole in re.split(r"(?<=\n)", name):
        line = whole.rstrip("\r\n")
        end = whole[len(line) :]
        if line.startswith("@@"):
            until = ""
        if until:
            line, until = _going_on(line, until)
        elif header := _HEADER.match(line):
            table = is_secret(header[1])
        else:
            line, until = _keyed(line, 0, hide_all=table)
        yield line + end


def _keyed(line: str, start: int, *, hide_all: bool) -> tuple[str, str]:
    """Return a line with the values of secret keys masked, and the end mark of a value that continues."""
    done = []
    position = start
    while match := _KEY.search(line, position):
        done.append(line[position : match.end()])
        position = match.end()
        is_path = ":" in match[2] and line[match.start() - 1 : match.start()] == "/"
        if (is_secret(match[1]) and not is_path) or (hide_all and "=" in match[2]):
            shown, position, until = _value(line, position, may_wait=":" in match[2])
            done.append(shown)
            if until:
                return "".join(done), until
    return line[:start] + "".join(done) + line[position:], ""


def _value(line: str, position: int, *, may_wait: bool) -> tuple[str, int, str]:
    """Return the mask of a value, its end in the line, and its end mark if it continues on the next line."""
    rest = line[position:]
    for mark in ('"""', "'''"):
        if rest.startswith(mark):
            close = line.find(mark, position + 3)
            if close < 0:
                return f'"{MASK}"', len(line), mark
            return f'"{MASK}"', close + 3, ""
    if string := _STRING.match(line, position):
        return f'"{MASK}"', string.end(), ""
    if rest[:1] in ("[", "{"):
        close, depth = _balance(line, position, 0)
        return f'"{MASK}"', close, str(depth) if depth else ""
    if not rest:
        # In JSON the value may follow on the next line.
        return "", len(line), "value" if may_wait else ""
    return MASK, len(line), ""


def _going_on(line: str, until: str) -> tuple[str, str]:
    """Mask the rest of a value that began on an earlier line."""
    indent = re.match(r"[-+ ]?\s*", line)
    at = indent.end() if indent else 0
    if until == "value":
        if at == len(line):
            return line, until
        shown, position, until = _value(line, at, may_wait=False)
        after, later = _keyed(line, position, hide_all=False)
        return line[:at] + shown + after[position:], until or later
    if until.isdecimal():
        end, depth = _balance(line, at, int(until))
        return line[:at] + MASK + line[end:], str(depth) if depth else ""
    end = line.find(until)
    return (line[:at] + MASK + (line[end + 3 :] if end >= 0 else "")), ("" if end >= 0 else until)


def _balance(line: str, position: int, depth: int) -> tuple[int, int]:
    """Return the position behind the closing bracket, and the number of brackets that are still open."""
    while position < len(line):
        if string := _STRING.match(line, position):
            position = string.end()
            continue
        if line[position] in "\"'":
            return len(line), depth  # an unterminated string: hide the rest of the line
        depth += _OPEN.get(line[position], 0)
        position += 1
        if depth <= 0:
            return position, 0
    return position, depth
