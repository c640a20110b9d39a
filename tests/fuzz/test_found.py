"""Every input that once did harm, as found or minimized: below `found/`, always replayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from runtimes import edits, globs
from runtimes.crio import ADAPTER as crio
from runtimes.edits import DesiredKey
from runtimes.errors import ConfigError
from runtimes.formats import json_editor, toml_editor
from runtimes.model import ABSENT, BinaryResult
from tests.fuzz import laws, nodes, pathological, seeds
from tests.fuzz.nodes import CONTAINERD, CRIO, DOCKER, Node
from tests.fuzz.strategies import PATH

pytestmark = pytest.mark.smoke

_FILES: Final = sorted(path for path in seeds.FOUND.iterdir() if path.suffix in {".toml", ".json"})
_DEEP: Final = BinaryResult(
    code=0,
    out='version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\nconf_dir = "/probe/root"\n',
    err="",
)


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_a_file_that_did_harm_does_none(path: Path) -> None:
    data = path.read_bytes()
    is_toml = path.suffix == ".toml"
    form, read = (toml_editor, laws.read_toml) if is_toml else (json_editor, laws.read_json)
    wants = [
        DesiredKey(path=PATH, key=("version",), new=3),
        DesiredKey(path=PATH, key=("imports",), new=ABSENT),
    ]
    laws.edit(form, read, data, wants)
    for of in (CONTAINERD, CRIO) if is_toml else (DOCKER,):
        nodes.check(of, Node(files={of.paths[0]: data}))
        nodes.check(of, Node(files={of.paths[0]: data}, drop_in=False, annotations=("a/*",)))
        nodes.check(of, Node(files={of.paths[0]: data}, answers={"merge": _DEEP}))


@pytest.mark.parametrize(
    ("text", "wants"),
    [
        ("version = 2\n", [DesiredKey(path=PATH, key=("version", "a", "b"), new=1)]),
        ("version = 2\n", [DesiredKey(path=PATH, key=("version", "a"), new=1)]),
        ("[[plugins]]\na = 1\n", [DesiredKey(path=PATH, key=("plugins", "a"), new=2)]),
        ("a = 1\n", [DesiredKey(path=PATH, key=("b",), new=None)]),
        ("a = 1\n", [DesiredKey(path=PATH, key=("b", "\ud800"), new="\ud800")]),
        ("a = 1979-05-27\n", [DesiredKey(path=PATH, key=("a",), new=1)]),
    ],
    ids=[
        "far through a value",
        "through a value",
        "through an array",
        "null",
        "half a pair",
        "a date that is lost",
    ],
)
def test_a_wish_that_cannot_come_true_is_refused_in_words(
    text: str, wants: Sequence[DesiredKey]
) -> None:
    with pytest.raises(ConfigError, match=r"not a table|cannot be|cannot encode|cannot store"):
        edits.apply(toml_editor, PATH, text.encode(), wants)


def test_an_array_of_tables_comes_back() -> None:
    text = b"[version]\r\nversion = [ { a = 1 }, { a = [ 2, { b = 3 } ] } ]\r\n"
    assert laws.edit(
        toml_editor, laws.read_toml, text, [DesiredKey(path=PATH, key=("version",), new=1)]
    )


def test_an_import_with_a_nul_is_refused() -> None:
    files = {CONTAINERD.paths[0]: b'imports = ["/a\\u0000"]\n'}
    with pytest.raises(ConfigError, match="NUL"):
        nodes.observe(CONTAINERD, Node(files=files), files)


_FOREIGN: Final = {
    "without a version": b'[plugins.cri.containerd]\ndefault_runtime_name = "runc"\n',
    "with imports that are none": b"version = 2\nimports = 0\n",
    "with further imports": b'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n',
    "empty": b"",
}


@pytest.mark.parametrize("drop_in", _FOREIGN.values(), ids=_FOREIGN)
@pytest.mark.parametrize(
    "root", [None, b"", seeds.V2, seeds.V3], ids=["no root", "empty root", "v2", "v3"]
)
def test_a_drop_in_of_somebody_else_that_nobody_imports_yet(
    root: bytes | None, drop_in: bytes
) -> None:
    files = {CONTAINERD.paths[1]: drop_in} | ({} if root is None else {CONTAINERD.paths[0]: root})
    nodes.check(CONTAINERD, Node(files=files, answers={"merge": _DEEP}))


def test_a_binary_that_knows_no_schema_version_is_not_believed() -> None:
    answers = {"default": BinaryResult(code=0, out="version = -7\n", err="")}
    nodes.check(CONTAINERD, Node(files={}, answers=answers))


_BINARY: Final = b'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options.BinaryName'
_NO_PATHS: Final = (
    (CRIO, b'[crio.runtime.runtimes.x]\nruntime_path = "a\\u0000b"\n'),
    (CRIO, b'[crio.runtime.runtimes."\\u0000"]\n'),
    (CRIO, b'[crio.runtime.runtimes.""]\n'),
    (CONTAINERD, b"version = 2\n" + _BINARY + b' = "\\u0000"\n'),
)


@pytest.mark.parametrize(("of", "data"), _NO_PATHS)
def test_a_binary_that_is_no_path_is_no_low_level_runtime(of: nodes.Dialect, data: bytes) -> None:
    nodes.check(of, Node(files={of.paths[0]: data}))


def test_a_hook_that_is_nested_too_deeply_is_not_ours() -> None:
    files = {CRIO.wish.hook: b"[" * 100_000}
    found = nodes.plan(CRIO, Node(files=files), files)
    assert found is not None
    assert CRIO.wish.hook not in {change.path for change in found.changes}


@pytest.mark.parametrize(
    "said", ["[" * 100_000, "a = " + "[" * 100_000, "crio = 1", "[crio]\nruntime = 1\n", "="]
)
def test_what_is_no_answer_of_crio(said: str) -> None:
    with pytest.raises(ValueError, match="CRI-O's answer cannot be read"):
        crio.running(None, said)
    answers = {"default": BinaryResult(code=0, out=said, err="")}
    assert nodes.plan(CRIO, Node(files={}, answers=answers), {}) is None


_PATTERNS: Final = {
    "stars": ("/a/" + "*" * 60 + "x", "/a/" + "y" * 60, False),
    "stars and letters": ("/a/*9*9*9*9*9*9*9*9*9*9*9*9*9*9*9*9*9x", "/a/" + "9" * 200, False),
    "a class in a class": ("/a/[[:alpha:]]*", "/a/[]b", True),
    "an open class": ("/a/*[b-", "/a/*[b-", True),
    "a range of nothing": ("/a/*[z-a]", "/a/bz", False),
    "half a range": ("/a/[a-]*", "/a/[a-]*", True),
    "too long": ("[" * 5000, "[" * 5000, True),
    "an escaped bracket": ("/a/[\\]]*", "/a/]b", True),
    "several directories": ("/*/b*.d/*.toml", "/a/bb.d/c.toml", True),
}


@pytest.mark.parametrize(("pattern", "path", "expected"), _PATTERNS.values(), ids=_PATTERNS)
def test_patterns_that_took_for_ever_or_warned(
    pattern: str,
    path: str,
    expected: bool,  # noqa: FBT001 - a column of the table
) -> None:
    with laws.bounded():
        assert globs.matches(pattern, path) is expected


def test_pathological_inputs_are_what_they_are_called() -> None:
    assert pathological.sized(pathological.TOML["dots"], 1000).startswith(b"a.a.a.a.")
