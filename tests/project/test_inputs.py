"""Every call that reads, runs, replaces or removes a file is listed in docs/internals/trust.md.

A new one fails here until somebody has written down who may control the file, how that is checked,
and which test abuses it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
TABLE: Final = ROOT / "docs/internals/trust.md"
_FUNCTIONS: Final = {
    "open", "os.open", "os.unlink", "os.remove", "os.rmdir", "os.rename", "os.replace", "os.link",
    "os.symlink", "os.mkdir", "os.mknod", "os.chmod", "os.chown", "os.truncate", "os.execv",
    "os.execve", "os.execvp",
    "os.system", "os.popen", "files.read",
}  # fmt: skip
_METHODS: Final = {
    "open", "read_bytes", "read_text", "write_bytes", "write_text", "unlink", "rmdir", "rename",
    "touch", "mkdir", "symlink_to", "hardlink_to", "chmod", "rmtree", "copyfile", "copytree",
    "move", "Popen", "check_output",
}  # fmt: skip


def calls(source: str) -> Iterator[str]:
    """Yield the function of a module, without its class, in which each such call is."""
    for function, node in _within(ast.parse(source), "the module"):
        if not isinstance(node, ast.Call):
            continue
        is_method = isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS
        if is_method or ast.unparse(node.func) in _FUNCTIONS:
            yield function


def _within(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, ast.FunctionDef) and function == "the module"
        name = child.name if is_function and isinstance(child, ast.FunctionDef) else function
        yield name, child
        yield from _within(child, name)


def in_code() -> set[str]:
    paths = (ROOT / "toolkit").rglob("*.py")
    return {
        f"{path.relative_to(ROOT / 'toolkit')}:{function}"
        for path in paths
        for function in calls(path.read_text(encoding="utf-8"))
    }


def rows() -> list[list[str]]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| `")
    ]
    return [row for row in cells if ".py:" in row[0]]


def in_table() -> list[str]:
    return [site for row in rows() for site in _sites(row[0])]


def _sites(cell: str) -> Iterator[str]:
    """Yield `FILE:FUNCTION` for each function of a cell like `` `FILE:ONE`, `TWO` ``."""
    path = ""
    for name in re.findall(r"`([^`]+)`", cell):
        path = name.partition(":")[0] if ":" in name else path
        yield f"{path}:{name.rpartition(':')[2]}"


def test_every_call_is_in_the_table_once() -> None:
    known = in_table()
    assert len(known) == len(set(known))
    assert sorted(in_code() - set(known)) == [], f"not in {TABLE.name}"
    assert sorted(set(known) - in_code()) == [], f"in {TABLE.name}, but not in the code"


def test_every_row_says_who_may_control_it_and_how_that_is_checked() -> None:
    assert [row for row in rows() if len(row) != 4 or not all(row)] == []


def test_every_row_that_others_control_names_a_test() -> None:
    unproven = [row[0] for row in rows() if row[1] == "others" and "`tests/" not in row[3]]
    assert unproven == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(path):\n    return path.read_text()\n",
        "def f(path):\n    with open(path) as stream:\n        return stream\n",
        "class C:\n    def f(self):\n        os.unlink(self.path)\n",
        "def f(path):\n    def inner():\n        shutil.rmtree(path)\n    return inner\n",
        "def f(path):\n    return files.read(path)\n",
    ],
)
def test_such_a_call_is_found(source: str) -> None:
    assert list(calls(source)) == ["f"]
