"""Regular expressions mean the same on every Python that is allowed.

CPython before 3.11.5, and Debian 12 has 3.11.2, matches some possessive groups wrongly. Where the
body of such a group fails after it has begun, it goes on from where the body failed and not from
where it began, if an alternative, an assertion or a repetition had noted that place (python/cpython
issue 100061); and it takes a body that needs a second way for one that matches (issue 106052).
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from runtimes import globs
from runtimes.formats import json_scanner, toml_scanner
from toolkit import redact

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path for package in ("runtimes", "toolkit") for path in (ROOT / package).rglob("*.py")
)
PARSER = importlib.import_module("re._parser")  # the way `re` itself reads an expression
SINGLE = {"LITERAL", "NOT_LITERAL", "ANY", "IN"}

Items = Sequence[tuple[Any, Any]]


def wrong_groups(expression: re.Pattern[str] | re.Pattern[bytes] | str) -> int:
    """Return how many possessive groups an expression has that not every Python matches rightly."""
    flags, text = (
        (0, expression) if isinstance(expression, str) else (expression.flags, expression.pattern)
    )
    if isinstance(text, bytes):
        text, flags = text.decode("latin-1"), flags & ~re.ASCII
    return sum(not is_right(body) for body in possessive(PARSER.parse(text, flags)))


def possessive(items: Any) -> Iterator[Items]:
    """Yield the bodies of all possessive repetitions of an expression that was parsed."""
    if isinstance(items, (list, tuple, PARSER.SubPattern)):
        for item in items:
            if isinstance(item, tuple) and str(item[0]) == "POSSESSIVE_REPEAT":
                yield list(item[1][2])
            yield from possessive(item)


def is_right(body: Items) -> bool:
    """Tell whether a possessive repetition of something is right everywhere.

    It is where the body is single characters, with no more than a possessive repetition of one at
    its end, which cannot fail: nothing in it has a second way or notes a place before it fails.
    """
    *most, last = body
    return all(str(name) in SINGLE for name, _ in most) and (
        str(last[0]) in SINGLE
        or (
            bool(most)
            and str(last[0]) == "POSSESSIVE_REPEAT"
            and last[1][0] == 0
            and [str(name) in SINGLE for name, _ in last[1][2]] == [True]
        )
    )


def written(source: str) -> Iterator[str]:
    """Yield the expressions that a module hands to functions of `re` as one text each."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="re"), attr=name),
                args=[ast.Constant(value=str(text)), *_],
            ) if name != "escape":
                yield text


def module(path: Path) -> str:
    """Return the name of the module in a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# To import it runs the program.
@pytest.mark.parametrize("name", [module(path) for path in FILES if path.name != "__main__.py"])
def test_what_a_module_compiles_means_the_same_everywhere(name: str) -> None:
    found = vars(importlib.import_module(name)).items()
    compiled = {key: each for key, each in found if isinstance(each, re.Pattern)}
    assert {key: each.pattern for key, each in compiled.items() if wrong_groups(each)} == {}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_what_is_written_in_a_call_means_the_same_everywhere(path: Path) -> None:
    texts = list(written(path.read_text(encoding="utf-8")))
    assert [text for text in texts if wrong_groups(text)] == []


def test_what_a_pattern_of_paths_becomes_means_the_same_everywhere() -> None:
    assert wrong_groups(globs.expression("/a/*b?[^c]*[d-e]*\\f*.toml")) == 0


def test_the_expressions_that_need_it_are_among_them() -> None:
    seen = (toml_scanner._VALUE_TOKEN, json_scanner._TOKEN, redact._STRING)
    assert [len(list(possessive(PARSER.parse(each.pattern)))) > 0 for each in seen] == [True] * 3


@pytest.mark.parametrize(
    "text",
    ["(?:a|bc)*+", "(a)++", "(?:ab?)?+", "(?:ab?c){0,9}+", '(?:[^"]|"(?!"))*+', "(?>a){3}+",
     "(?:a[bc]*+d)*+", "x|(?:y(?:a*b)*+z)"],
)  # fmt: skip
def test_one_that_is_wrong_somewhere_is_found(text: str) -> None:
    assert wrong_groups(text) == wrong_groups(re.compile(text)) > 0


@pytest.mark.parametrize(
    "text", ["(?:a|bc)*", "[ab]*+", r"\)*+", "a{1,2}+", r"(?:\\.)*+", r"(?:\\.[^\"]*+)*+"]
)
def test_one_that_is_right_everywhere_is_not(text: str) -> None:
    assert wrong_groups(text) == wrong_groups(re.compile(text)) == 0
