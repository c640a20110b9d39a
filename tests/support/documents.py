"""What the documents say that can be run or checked: blocks of code by class, and code in the text.

CONTRIBUTING.md says what becomes of each class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENTS: Final = (
    *(
        ROOT / f"{name}.md"
        for name in ("README", "CHANGELOG", "CODE_OF_CONDUCT", "CONTRIBUTING", "SECURITY")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
)
OUTPUT: Final = ROOT / "docs/output.md"
"""Where each key of `-o json` has its row."""
SHELL: Final = (
    "desk", "node", "host", "host podman", "host unit", "make", "image", "cluster", "fleet",
    "operator",
)  # fmt: skip
CLASSES: Final = (*(f"sh {name}" for name in SHELL), "python", "toml", "json", "yaml", "text")
_FENCE: Final = re.compile(r"^(\s*)(`{3,}|~{3,})(.*)$")
_SPAN: Final = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: its document, its first line, the text after the fence, its content."""

    document: Path
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        """Say where it is."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Return its commands, one each, without those that are only a comment."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(document: Path) -> Iterator[Block]:
    """Yield every fenced block of a document. Raises ValueError where one does not end."""
    begun: tuple[int, str, str] | None = None
    held: list[str] = []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if begun is None and fence:
            begun, held = (number, fence[2], fence[3].strip()), []
        elif begun is not None and fence and fence[2].startswith(begun[1]) and not fence[3].strip():
            yield Block(
                document=document, line=begun[0], kind=begun[2], text="\n".join(held) + "\n"
            )
            begun = None
        elif begun is not None:
            held.append(line)
    if begun is not None:
        raise ValueError(f"{document}:{begun[0]}: the block does not end")


def of_kind(kind: str) -> list[Block]:
    """Return the blocks of a class in all documents."""
    return [block for document in DOCUMENTS for block in blocks(document) if block.kind == kind]


def spans(document: Path) -> list[str]:
    """Return the code in a document's running text, on one line each."""
    text = document.read_text(encoding="utf-8")
    for block in blocks(document):
        text = text.replace(block.text, "", 1)
    text = re.sub(r"^\s*(`{3,}|~{3,}).*$", "", text, flags=re.MULTILINE)
    return [" ".join(span.split()) for span in _SPAN.findall(text)]


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of all that an answer holds; `[]` stands for every item of a list."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from keys(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from keys(value[0], f"{path}[]")
    else:
        yield path
