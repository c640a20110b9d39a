"""`status --quiet`: whether the node is ready, by the readiness record alone, and quickly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.model import Effective, fingerprint
from tests.support import fake_node
from toolkit.node import processes
from toolkit.state import readiness_probe, readiness_record


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Return a record that is true, of this process as the runtime."""
    config = tmp_path / "config.toml"
    config.write_bytes(b"version = 2\n")
    files = {
        str(config): fingerprint(b"version = 2\n"),
        str(tmp_path / "none.toml"): fingerprint(None),
    }
    has = Effective(handlers=frozenset({"runc"}), default="runc")
    path = tmp_path / "ready.json"
    readiness_record.write(
        path,
        readiness_record.facts("containerd", processes.inspect(os.getpid()), has, "cafe", files),
    )
    return path


def changed(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **facts}), encoding="utf-8")


def test_a_true_record_is_ready(record: Path) -> None:
    assert readiness_probe.unready(record) == ""


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"boot": "another"}, "the readiness record is from another boot"),
        ({"tool": "0.0.0"}, "the readiness record was written by version 0.0.0"),
        ({"started": 1}, f"PID {os.getpid()} is no longer the runtime's process"),
        ({"pid": 1 << 22}, f"PID {1 << 22} is no longer the runtime's process"),
        ({"format": 1}, "is not a readiness record of format 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_record_of_something_else_is_not(record: Path, facts: dict[str, Any], why: str) -> None:
    changed(record, **facts)
    assert readiness_probe.unready(record).endswith(why)


@pytest.mark.parametrize(
    "change",
    [
        lambda home: (home / "config.toml").write_bytes(b"version = 3\n"),
        lambda home: (home / "config.toml").unlink(),
        lambda home: (home / "none.toml").touch(),
        lambda home: ((home / "config.toml").unlink(), (home / "config.toml").mkdir()),
        lambda home: subprocess.run(["mkfifo", "-m", "600", home / "none.toml"], check=True),
    ],
    ids=["changed", "gone", "new", "a directory", "a pipe"],
)
def test_a_file_that_is_not_as_it_was_is_named(
    record: Path, change: Callable[[Path], object]
) -> None:
    change(record.parent)
    assert readiness_probe.unready(record).startswith(
        f"changed since the readiness record was written: {record.parent}"
    )


def test_a_runtime_that_is_left_alone_needs_no_process(record: Path) -> None:
    changed(record, pid=None, started=None, configuration={})
    assert readiness_probe.unready(record) == ""


@given(st.binary(max_size=40) | st.sampled_from([b"[]", b"null", b'{"format": 2}', b"[" * 100000]))
def test_anything_else_is_no_record(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("r") / "ready.json"
    path.write_bytes(content)
    assert readiness_probe.unready(path)


def test_no_record_is_named(tmp_path: Path) -> None:
    assert (
        readiness_probe.unready(tmp_path / "ready.json")
        == f"{readiness_probe.UNVERIFIED}: {tmp_path}/ready.json not found"
    )


def test_the_command_says_nothing_and_ends_as_it_is(record: Path, tmp_path: Path) -> None:
    quiet = fake_node.cli("status", "--quiet", f"--readiness-file={record}")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    quiet = fake_node.cli("status", "-q", f"--readiness-file={tmp_path}/none")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (8, "", "")


def test_the_command_imports_nothing_that_it_does_not_use(record: Path) -> None:
    """The imported modules are nearly all of its time, and a node runs it every few seconds."""
    words = ["status", "--quiet", f"--readiness-file={record}"]
    script = (
        "import sys; bare = len(sys.modules)\nfrom toolkit.cli import main\ntry:"
        " main.main(sys.argv[1:])\nexcept SystemExit as end: assert not"
        " end.code\nprint(len(sys.modules) - bare, *sorted(name for name in sys.modules if"
        " name.partition('.')[0] in ('tomlkit', 'hpack', 'subprocess', 'runtimes', 'ssl',"
        " 'prometheus_client')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True
    )
    imported, *unwanted = done.stdout.split()
    assert unwanted == ["runtimes", "runtimes.dataclass", "runtimes.lazy_pattern"]
    # The `traceback` of Python 3.14 imports `dataclasses`, and that `inspect`.
    assert int(imported) < (80 if sys.version_info < (3, 14) else 100)
