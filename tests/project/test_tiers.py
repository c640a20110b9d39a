"""The tiers keep their promises: only marked tests measure time; `unit` starts no program."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import conftest
from tests.support.availability import Unavailable

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tests").rglob("test_*.py"))
CLOCKS = {"monotonic", "perf_counter", "process_time", "time"}
STARTS = {"cli", "done", "started", "on_terminal", "daemon"}
"""What of tests/support/fake_node.py starts a program."""
PREPARED = frozenset({"binaries", "cluster", "crio", "images", "promtool"})
"""Modules of tests/support for what is downloaded or built first."""
SHARED = ("benchmarks", "tests/faults", "tests/support", "tools")
"""Directories with modules that run without pytest."""
EVERYWHERE = frozenset(
    {"bash", "cp", "ls", "mkfifo", "mount", "nsenter", "sh", "umount", "unshare"}
)
"""Programs of packages that Debian calls essential, and mount: the bare machine has no more."""


def upper_bounds(source: str) -> list[str]:
    """Return the tests and helpers with an upper bound on time that are not marked `timing`."""
    found = []
    for function in ast.parse(source).body:
        nodes = (
            [function, *ast.walk(function)] if isinstance(function, ast.ClassDef) else [function]
        )
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
        found += [each.name for each in functions if not _is_marked(each) and _bounds(each)]
    return found


def _is_marked(function: ast.FunctionDef) -> bool:
    return any("timing" in ast.unparse(decorator) for decorator in function.decorator_list)


def _bounds(function: ast.FunctionDef) -> bool:
    names = set(_measured(function))
    for check in ast.walk(function):
        if not isinstance(check, ast.Assert):
            continue
        for node in ast.walk(check.test):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                below = (side for side, op in zip(sides, node.ops, strict=False) if _is_less(op))
                above = (
                    side for side, op in zip(sides[1:], node.ops, strict=False) if _is_greater(op)
                )
                if any(_is_time(side, names) for side in (*below, *above)):
                    return True
    return False


def _is_less(op: ast.cmpop) -> bool:
    return isinstance(op, ast.Lt | ast.LtE)


def _is_greater(op: ast.cmpop) -> bool:
    return isinstance(op, ast.Gt | ast.GtE)


def _measured(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the names that hold a difference of two moments."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and _is_time(node.value, set()):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _is_time(side: ast.expr, names: set[str]) -> bool:
    for node in ast.walk(side):
        if isinstance(node, ast.Name) and node.id in names | {"took", "elapsed"}:
            return True
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and _asks_a_clock(node):
            return True
    return False


def _asks_a_clock(node: ast.AST) -> bool:
    return any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in CLOCKS
        and ast.unparse(call.func.value) == "time"
        for call in ast.walk(node)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_time_is_bounded_in_marked_tests_only(path: Path) -> None:
    """A busy machine is no failure: count calls, or let the test time out."""
    assert upper_bounds(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "check",
    [
        "assert time.monotonic() - began < 5",
        "assert 0.3 <= time.perf_counter() - began < 5",
        "assert 5 > time.monotonic() - began",
        "took = time.monotonic() - began; assert took < 2",
        "spent = time.process_time() - began; assert spent <= 2, 'slow'",
    ],
)
def test_a_bound_is_found_where_it_is_not_marked(check: str) -> None:
    text = f"def test_x():\n    began = time.monotonic()\n    {check}\n"
    assert upper_bounds(text) == ["test_x"]
    assert upper_bounds(f"@pytest.mark.timing\n{text}") == []


@pytest.mark.parametrize(
    "check",
    [
        "assert time.monotonic() - began > 5",
        "assert count < 5",
        "assert time.monotonic() < deadline",
    ],
)
def test_what_is_no_bound_is_not_found(check: str) -> None:
    assert upper_bounds(f"def test_x():\n    began = time.monotonic()\n    {check}\n") == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests/functional").rglob("test_*.py")), ids=lambda path: path.name
)
def test_a_functional_test_needs_nothing_that_is_built(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "tests.support"
        for alias in node.names
    }
    assert not imported & PREPARED


@pytest.mark.parametrize(
    "path",
    [
        *sorted((ROOT / "tests/functional").rglob("*.py")),
        *sorted((ROOT / "tests/support").glob("fake_*.py")),
    ],
    ids=lambda path: path.name,
)
def test_a_functional_test_starts_what_every_machine_has(path: Path) -> None:
    """Any other program needs `needs_program`, so that the final table names its package."""
    source = path.read_text(encoding="utf-8")
    assert {
        name for name in started(source) if f'needs_program("{name}"' not in source
    } <= EVERYWHERE


def test_a_program_that_is_started_is_found() -> None:
    assert started('subprocess.run(["chattr", "+i", name], check=True)') == {"chattr"}
    assert started('subprocess.Popen((sys.executable, "-c"))') == set()


def started(source: str) -> set[str]:
    """Return the programs that a test starts by their names."""
    calls = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args
    ]
    commands = [call.args[0] for call in calls if ast.unparse(call.func).startswith("subprocess.")]
    first = [
        word.elts[0] for word in commands if isinstance(word, ast.List | ast.Tuple) and word.elts
    ]
    return {str(word.value) for word in first if isinstance(word, ast.Constant)}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests/unit").glob("test_*.py")), ids=lambda path: path.name
)
def test_a_unit_test_starts_no_program_and_measures_no_time(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules, imported = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module == "tests.support.fake_node":
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module == "tests.support":
            modules |= {alias.name for alias in node.names}
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not modules & {"subprocess", "multiprocessing", *PREPARED}
    assert "pytest.mark.timing" not in path.read_text(encoding="utf-8")
    assert not calls & ({f"fake_node.{name}" for name in STARTS} | (imported & STARTS))


def test_a_test_that_ends_with_what_is_not_to_be_had_is_skipped_where_that_was_raised() -> None:
    def lacking() -> None:
        raise Unavailable("helm is not built")

    call = pytest.CallInfo.from_call(lacking, "setup")
    conftest.skip_unavailable(call)
    assert call.excinfo is not None
    assert call.excinfo.type is pytest.skip.Exception
    assert str(call.excinfo.value) == "helm is not built"
    assert call.excinfo.traceback[-1].name == "lacking"


def test_a_test_that_fails_is_not_skipped() -> None:
    def failing() -> None:
        raise LookupError

    call = pytest.CallInfo.from_call(failing, "call")
    conftest.skip_unavailable(call)
    assert call.excinfo is not None
    assert call.excinfo.type is LookupError


@pytest.mark.parametrize(
    "path",
    [path for name in SHARED for path in sorted((ROOT / name).rglob("*.py")) if path not in FILES],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_only_a_test_knows_what_a_skip_is(path: Path) -> None:
    """What benchmarks and tools use as well says what is not to be had by an error of its own."""
    assert "pytest.skip" not in path.read_text(encoding="utf-8"), "raise Unavailable"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_test_replaces_what_is_private(path: Path) -> None:
    """What a test replaces is public, so that a change inside a module breaks no test."""
    assert patched(path.read_text(encoding="utf-8")) == []


def test_a_replaced_private_name_is_found() -> None:
    assert patched('patch.setattr(files, "_lease", lambda *_: False)') == ["files._lease"]
    assert patched('monkeypatch.setattr("toolkit.node.files._lease", None)') == [
        "toolkit.node.files._lease"
    ]


def patched(source: str) -> list[str]:
    """Return the private names that a test replaces."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".setattr"):
            words = [
                str(word.value) if isinstance(word, ast.Constant) else ast.unparse(word)
                for word in node.args[:2]
            ]
            name = ".".join(words) if isinstance(node.args[0], ast.Name) else words[0]
            last = name.rpartition(".")[2]
            # A name like __getattr__ belongs to the language.
            if last.startswith("_") and not last.endswith("__"):
                found.append(name)
    return found
