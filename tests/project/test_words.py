"""Plain technical English: no private words in code, messages and documents; plain docstrings."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
CODE: Final = sorted(
    path for package in ("runtimes", "toolkit") for path in (ROOT / package).rglob("*.py")
)
DOCUMENTS: Final = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "deploy/helm/nvidia-toolkit/values.yaml")
    ),
]
PRIVATE: Final = (
    r"told",
    r"ours",
    r"anew",
    r"as wanted",
    r"shall",
    r"judg\w*",
    r"unwell",
    r"(?:is|are|was|be|not) well",
    r"(?:'s|own|its|last) word",
    r"of which",
    r"nobody who",
    r"ailments?",
    r"vouch\w*",
    r"ow(?:e|es|ed)",
    r"the story",
    r"house",
    r"rooms?",
    r"study",
    r"workshop",
    r"scenes?",
    r"strays?",
    r"debts?",
    r"in vain",
    r"way out",
    r"heard of",
    r"silent(?:ly)?",
)
"""Words that say less than the term of the field: see CONTRIBUTING.md for what to write instead."""
_PRIVATE: Final = re.compile(rf"\b(?:{'|'.join(PRIVATE)})\b", re.IGNORECASE)
NO_BEGINNING: Final = {
    "as", "at", "by", "everybody", "for", "from", "how", "if", "in", "it", "nobody", "of", "on",
    "one", "so", "somebody", "such", "tell", "that", "there", "this", "to", "what", "when", "where",
    "whether", "which", "who", "whose", "why", "with", "without",
}  # fmt: skip
"""A docstring begins with an imperative (`Return`) or a noun phrase (`The record`)."""


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield every comment and string of a module, with its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING}:
            for number, line in enumerate(token.string.split("\n")):
                yield token.start[0] + number, line


def private_words(lines: Iterator[tuple[int, str]]) -> list[str]:
    """Return the private words in some lines, each with its place."""
    return [
        f"{number}: {word[0]}: {line.strip()}"
        for number, line in lines
        for word in _PRIVATE.finditer(line)
    ]


def beginnings(source: str) -> list[str]:
    """Return the docstrings of a module that do not begin plainly."""
    tree = ast.parse(source)
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    found = []
    for node in nodes:
        text = ast.get_docstring(node) or ""
        first = re.match(r"[A-Za-z]+", text)
        if first is not None and first[0].lower() in NO_BEGINNING:
            found.append(f"{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}")
    return found


def outside_of_words(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a document without a section `Words`, which lists unwanted words."""
    is_list = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## "):
            is_list = line == "## Words"
        if not is_list:
            yield number, line


def complaints(path: Path) -> list[str]:
    """Return what is not plain in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [*private_words(texts(text)), *beginnings(text)]
    return private_words(outside_of_words(text))


@pytest.mark.parametrize(
    "path", [*CODE, *DOCUMENTS], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_it_is_plain_english(path: Path) -> None:
    assert complaints(path) == []


def test_a_private_word_and_a_riddle_are_found() -> None:
    source = '"""What the runtime owes."""\n# It is told.\nx = "as wanted"\n'
    assert [line.split(":")[1].strip() for line in private_words(texts(source))] == [
        "owes",
        "told",
        "as wanted",
    ]
    assert beginnings(source) == ["1: What the runtime owes."]


if __name__ == "__main__":
    import sys

    for name in sys.argv[1:]:
        for place in [Path(name)] if Path(name).is_file() else sorted(Path(name).rglob("*.py")):
            for line in complaints(place):
                sys.stdout.write(f"{place}:{line}\n")
