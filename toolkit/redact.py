"""Redaction of secrets with `***`: by place in parsed values, by name and by form in other text.

In doubt a value is hidden: a missing word in a bug report is harmless, a leaked password is not.
Text that is redacted twice may lose a little more, but shows nothing again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Final

from runtimes.lazy_pattern import lazy_pattern

MASK: Final = "***"

# --- what is a secret -----------------------------------------------------------------------------

_PLACES: Final = frozenset(
    {"auth", "auths", "env", "environment", "header", "headers", "proxies", "tls"}
)
"""Names of tables below which every value is hidden."""
_NAME: Final = lazy_pattern(
    r"passw|passphrase|token|secret|credential|cookie|signature|authorization|username|jwt|bearer"
    r"|apikey|accesskey|privatekey|(?:auth|auths|pass|pw|pwd|psk|sig|keys?|(?:key|cert|authority|auth)data)$"
)
"""Names of secrets, in lower case and without punctuation."""
_SHOWN: Final = lazy_pattern(r"(?:file|path|dir|mode)s?$")
"""Names whose values are shown although they match `_NAME`: the path of a key is no secret."""

# Quantifiers are possessive or bounded, so that a hostile text costs linear time. See
# runtimes/formats/toml_scanner.py for where CPython matches possessive groups correctly.
_STRING: Final = lazy_pattern(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+\\?(?:"|\Z)' + r"|'[^'\\]*+(?:\\.[^'\\]*+)*+\\?(?:'|\Z)", re.DOTALL
)
_PEM: Final = lazy_pattern(r"(-----BEGIN [A-Z ]{0,64}-----).*?(?:(?=-----END)|\Z)", re.DOTALL)
_FORMS: Final = (
    (_PEM, rf"\1{MASK}"),
    # The login of a URL, also without a scheme, as curl accepts it for a proxy. `@sha256:` is a
    # digest.
    (lazy_pattern(r"(://)(?:[^\s\"'<>`/@]{0,512}@)+(?!sha\d+:)"), rf"\1{MASK}@"),
    (lazy_pattern(r"(://)[^\s\"'<>`/@:]{0,512}:[^\s\"'<>`@]{0,512}@(?!sha\d+:)"), rf"\1{MASK}@"),
    (
        lazy_pattern(r"(?<![\w.+:/-])[\w.+-]++:[^\s\"'<>`@/][^\s\"'<>`@]{0,512}@(?!sha\d+:)"),
        f"{MASK}@",
    ),
    (lazy_pattern(r"\b(Bearer|Basic)(\s+)[\w+/=.~-]{6,}", re.IGNORECASE), rf"\1\2{MASK}"),
    # JSON web tokens, and keys of NVIDIA's registry, GitHub, GitLab, Hugging Face and AWS.
    (lazy_pattern(r"\beyJ[\w-]{8,}+\.[\w-]*+(?:\.[\w-]*+)?"), MASK),
    (lazy_pattern(r"\b(?:nvapi-|gh[a-z]_|github_pat_|glpat-|hf_|AKIA|ASIA)[\w-]{16,}+"), MASK),
)
_PART: Final = r"""(?:"(?:[^"\\\n]|\\.){0,256}"|'[^'\n]{0,256}'|(?<![\w-])[\w-]++)"""
_PARTS: Final = lazy_pattern(_PART)
_ITEM: Final = lazy_pattern(
    r"^[-+ \t]*+\[{1,2}(?P<table>[^\n]*?)\]{1,2}[ \t]*+(?:\#[^\n]*+)?$"
    rf"|(?P<key>{_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{0,16}})"
    r"""(?P<sign>\\*+["']?[ \t]*+[=:]++[ \t]*+|[ ]would[ ]change[ ]from[ ])""",
    re.MULTILINE,
)
_LINE_START: Final = lazy_pattern(r"[-+#;\s]*+(?:export\s+|set\s+)?\Z")
_SHOWN_VALUE: Final = lazy_pattern(r"(?:true|false|null|none)(?=[\s,;}\])\"']|\Z)", re.IGNORECASE)
_QUOTED: Final = lazy_pattern(
    r'"{3}.*?(?:"{3}|\Z)'
    r"|'{3}.*?(?:'{3}|\Z)"
    rf"|{_STRING.pattern}"
    r"|(\\+[\"']).*?(?:\1|\Z)",
    re.DOTALL,
)
_BRACKET: Final = lazy_pattern(rf"{_STRING.pattern}|[\[\]{{}}]", re.DOTALL)
_JSON_SCALAR: Final = lazy_pattern(r"[^\s,}\]]*+")
_OF_QUERY: Final = lazy_pattern(r"[^\s\"'<>`&#]*+")
_SHELL_WORD: Final = lazy_pattern(
    r"""(?:[^\s"'`\\]|\\.|"[^"\\\n]*(?:\\.[^"\\\n]*)*"?|'[^'\n]*'?)*""", re.DOTALL
)
_LINE: Final = lazy_pattern(r"[^\n]*+")
_LONG_LINE: Final = lazy_pattern(r"[^\n\\]*+(?:\\.[^\n\\]*+)*+\\?", re.DOTALL)
_FLAG: Final = lazy_pattern(
    rf"(?<![\w-])(--?[\w.-]++)(\s++)(?!\s)({_SHELL_WORD.pattern})", re.DOTALL
)

_HEX: Final = lazy_pattern(r"\\(?:x|U000000)([0-9A-Fa-f]{2})")


def is_secret(name: str) -> bool:
    """Return whether the value of a key, an option or a variable is a secret."""
    if "\\" in name:
        with suppress(ValueError):
            # Of the escapes of TOML, JSON lacks those of a code point by two or by eight digits.
            spelled = _HEX.sub(lambda found: f"\\u00{found[1]}", name)
            name += str(json.loads(spelled if spelled.startswith('"') else f'"{spelled}"'))
    plain = re.sub(r"[\W_]", "", name).lower()
    return _NAME.search(plain) is not None and _SHOWN.search(plain) is None


def _is_hidden(path: Sequence[str]) -> bool:
    """Return whether a place in a document is hidden: a secret, or below a table of `_PLACES`."""
    return (
        any(is_secret(part) or part.lower() in _PLACES for part in path)
        or ("registry", "configs") in pairwise(path)
    )  # fmt: skip


# --- parsed values --------------------------------------------------------------------------------


def value(item: Any, path: Sequence[str] = ()) -> Any:
    """Return a JSON value with secrets masked; `path` are the keys above it."""
    if item is None or isinstance(item, bool) or item in ("", [], {}, ()):
        return item
    if _is_hidden(path):
        return MASK
    if isinstance(item, str):
        return text(item)
    if isinstance(item, Mapping):
        # The keys above were checked already, except that `registry` says what `configs` is.
        return {text(str(key)): value(below, (*path[-1:], str(key))) for key, below in item.items()}
    if isinstance(item, Sequence) and not isinstance(item, bytes):
        is_words = all(isinstance(each, str) for each in item)
        return argv(item) if is_words else [value(each) for each in item]
    return item


def argv(words: Sequence[str]) -> list[str]:
    """Return a command line with the values of secret options and variables masked."""
    masked: list[str] = []
    hide = False
    for word in words:
        name, equals, given = word.partition("=")
        secret = is_secret(name) and " " not in name
        if hide:
            masked.append(MASK)
        elif secret and equals and not _SHOWN_VALUE.fullmatch(given):
            masked.append(f"{name}={MASK}")
        else:
            masked.append(text(word))
        hide = secret and name.startswith("-") and not equals and not hide
    return masked


# --- text -----------------------------------------------------------------------------------------


def text(said: str) -> str:
    """Mask secrets in text: a log, a command line, variables, a unit file, YAML, TOML, JSON."""
    for form, mask in _FORMS:
        said = form.sub(mask, said)
    return _FLAG.sub(lambda m: f"{m[1]}{m[2]}{MASK}" if is_secret(m[1]) else m[0], _named(said))


def _named(said: str) -> str:
    """Mask the values of secret keys, and all values of a TOML table with a hidden header."""
    done: list[str] = []
    position, before, line, is_hidden_table = 0, 0, 0, False
    while item := _ITEM.search(said, position):
        end = item.end()
        # From the key before this one only: there may be many in a line.
        line = max(line, said.rfind("\n", before, item.start()) + 1)
        before = item.start()
        done.append(said[position:end])
        if item["table"] is not None:
            is_hidden_table = _is_hidden(_names(item["table"]))
        elif span := _value(said, item, line, is_hidden_table=is_hidden_table):
            mask, end = span
            done.append(mask)
        position = end
    return "".join([*done, said[position:]])


def _names(key: str) -> list[str]:
    return [part.strip("\"'") for part in _PARTS.findall(key)]


def _value(
    said: str, item: re.Match[str], line: int, *, is_hidden_table: bool
) -> tuple[str, int] | None:
    """Return the mask of the value of a key and where the value ends; None if it is shown.

    `line` is where the line of the key begins.
    """
    names, position, has_colon = _names(item["key"]), item.end(), "=" not in item["sign"]
    is_hidden = _is_hidden(names) or (is_hidden_table and not has_colon)
    # `Environment=` of a unit file contains variables with names of their own.
    if not is_hidden or _SHOWN_VALUE.match(said, position) or item[0] == "Environment=":
        return None
    if "change" in item["sign"]:  # from one value to another
        return MASK, _matched(_LINE, said, position)
    start, name, is_bare = item.start(), names[-1].lower(), item["key"][-1] not in "\"'"
    # Not every word before a colon is a key: "env: 'x': No such file", "tls: bad certificate".
    is_word = is_bare and has_colon and name in _PLACES
    if not is_word and (quoted := _QUOTED.match(said, position)):
        mask, end = (quoted[1] or '"').join(["", MASK, ""]), quoted.end()
    elif said[position : position + 1] in ("[", "{"):
        mask, end = f'"{MASK}"', _balanced(said, position)
    elif not is_bare and (end := _matched(_JSON_SCALAR, said, position)) > position:
        return f'"{MASK}"', end
    else:
        end = (
            _after_colon(said, line, start, position, name)
            if has_colon
            else _after_equals(said, line, start, position)
        )
        return (MASK, end) if end > position else None
    # NAME="a"b is one word for a shell.
    return mask, _matched(_SHELL_WORD, said, end) if is_bare and item["sign"] == "=" else end


def _after_colon(said: str, line: int, start: int, position: int, name: str) -> int:
    """Return where the plain value of `key: value` ends: with the line or the YAML block below."""
    if _LINE_START.match(said, line, start):
        end = _matched(_LINE, said, position)
        below = _block_end(said, end, start - line)
        return position if name in _PLACES and below == end else below
    is_word = said[start - 1] == "/" or name in {"key", "keys", *_PLACES}
    if is_word:
        return position
    # Not to the end of the line if the string ends earlier: there may be many in a line.
    limit = _end_of_string(said, start, len(said))
    found = _LINE.match(said, position, limit)
    return found.end() if found else min(position, limit)


def _after_equals(said: str, line: int, start: int, position: int) -> int:
    """Return where the plain value of `key=value` ends: with the line, the string or the word."""
    if _LINE_START.match(said, line, start):
        return _matched(_LONG_LINE, said, position)
    word = _OF_QUERY if said[start - 1] in "?&" else _SHELL_WORD
    return max(position, _end_of_string(said, start, _matched(word, said, position)))


def _end_of_string(said: str, start: int, otherwise: int) -> int:
    """Return the end of the string that begins right before a key, as in `"NAME=a b"`."""
    string = _STRING.match(said, start - 1) if start else None
    return string.end() - (said[string.end() - 1] == string[0][0]) if string else otherwise


def _matched(pattern: re.Pattern[str], said: str, position: int) -> int:
    """Return where a pattern that matches everywhere ends."""
    found = pattern.match(said, position)
    return found.end() if found else position


def _balanced(said: str, position: int) -> int:
    """Return the position behind the bracket that closes the one at a position."""
    depth = 0
    for found in _BRACKET.finditer(said, position):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return found.end()
    return len(said)


def _block_end(said: str, end: int, column: int) -> int:
    """Return the end of the following lines that are indented deeper than a key of YAML."""
    last = end
    while end < len(said):
        start, end = end + 1, _matched(_LINE, said, end + 1)
        body = said[start:end].lstrip(" \t")
        indent = end - start - len(body)
        if body.strip():
            if indent < column or (indent == column and not body.startswith("- ")):
                break
            last = end
    return last
