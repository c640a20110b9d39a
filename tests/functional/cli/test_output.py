"""The shape of `-o json` is the documented one: each printed key has its row, and the reverse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import documents, fake_node

TEXT = documents.OUTPUT.read_text(encoding="utf-8")
OF_ONE = {
    "status": {"ready", "unready", "verified"},
    "run": {"outcome", "seconds"},
    "plan": set[str](),
}
"""Keys that only one command has."""


@pytest.fixture
def node(tmp_path: Path) -> fake_node.Node:
    node = fake_node.make_node(tmp_path / "node")
    fake_node.name_low_level(node)
    return node


def documented() -> set[str]:
    """Return the keys of the first table; `.key` stands below the name before it."""
    table = TEXT[TEXT.index("| key |") : TEXT.index("\n\n", TEXT.index("| key |"))]
    found: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        last = ""
        for name in re.findall(r"`([^`]+)`", row):
            last = last.rpartition(".")[0] + name if name.startswith(".") else name
            found.add(last)
    return found


MADE = frozenset({"notes", "blocked"})
"""Lists that may be empty here; the table has them as `NAME[]`."""


def as_documented(answer: dict[str, Any]) -> set[str]:
    lists = {name for name, item in answer.items() if isinstance(item, list) and name in MADE}
    empty = {name for name, item in answer.items() if item == {}}
    return {f"{key}[]" if key in lists else key for key in documents.keys(answer)} | empty


@pytest.mark.parametrize("command", OF_ONE)
def test_every_key_has_its_row_and_every_row_its_key(node: fake_node.Node, command: str) -> None:
    words = ["run", "--no-daemon"] if command == "run" else [command]
    done = fake_node.done(*words, "-o", "json", *node.options(restart_mode="none"))
    others = set().union(*(own for name, own in OF_ONE.items() if name != command))
    assert as_documented(json.loads(done.stdout)) == documented() - others


def test_the_keys_of_a_failure_are_documented(node: fake_node.Node) -> None:
    node.config.write_bytes(b"version = \n")
    answer = json.loads(fake_node.cli("plan", "-o", "json", *node.options()).stdout)
    [paragraph] = [part for part in TEXT.split("\n\n") if part.startswith("Where a command fails")]
    named = {name.removesuffix("[]") for name in re.findall(r"`(\w+(?:\[\])?)`", paragraph)}
    assert {"error", *answer["error"]} <= named
    assert answer.keys() == {"error"}


def test_the_keys_of_a_revert_are_documented(node: fake_node.Node) -> None:
    quiet = node.options(restart_mode="none")
    fake_node.done("run", "--no-daemon", *quiet)
    answer = json.loads(fake_node.done("revert", "-o", "json", *quiet).stdout)
    [paragraph] = [part for part in TEXT.split("\n\n") if part.startswith("`revert`:")]
    assert {f"{name}[]" for name in answer} <= set(re.findall(r"`(\w+\[\])`", paragraph))
