"""The layout: small folders, packages that introduce themselves, no import cycle.

The functional tests are in folders that have the names of the product's packages.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import grimp
import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
MOST: Final = 14
"""Modules in one folder: as many as a reader takes in at a glance."""
FOLDERS: Final = sorted(
    {path.parent for package in ("runtimes", "toolkit") for path in (ROOT / package).rglob("*.py")}
)
SUBJECTS: Final = sorted({path.parent for path in (ROOT / "tests/functional").glob("*/*.py")})


def cycle(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules of an import cycle, the first one also last; empty if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        modules: list[str] = error.args[1]
        return modules
    return []


@pytest.mark.parametrize(
    "folder", [*FOLDERS, *SUBJECTS], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_a_folder_is_small(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= MOST


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_package_says_what_it_may_import_and_where_to_start(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert "\nMay import" in text
    starts = [
        line
        for line in text.replace(", then\n", ", then ").splitlines()
        if "tart reading at" in line
    ]
    assert starts
    named = [word.strip("(),.") for word in starts[0].split() if word.strip("(),.").endswith(".py")]
    assert named
    for name in named:
        assert (folder / name).is_file(), f"{name} does not exist"


@pytest.mark.parametrize("folder", SUBJECTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functional_tests_are_found_by_the_package_that_they_test(folder: Path) -> None:
    assert ROOT / "toolkit" / folder.name in FOLDERS
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert text.endswith(".")
    assert "\n" not in text


def test_every_functional_test_is_in_such_a_folder() -> None:
    assert list((ROOT / "tests/functional").glob("test_*.py")) == []
    assert {path.parent for path in (ROOT / "tests/functional").rglob("test_*.py")} == {*SUBJECTS}


def test_no_modules_import_each_other() -> None:
    graph = grimp.build_graph("runtimes", "toolkit", include_external_packages=False)
    assert (
        cycle({each: graph.find_modules_directly_imported_by(each) for each in graph.modules}) == []
    )


def test_a_cycle_is_found() -> None:
    assert set(cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert cycle({"a": {"b"}, "b": set()}) == []
