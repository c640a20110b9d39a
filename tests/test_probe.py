"""`status --quiet`: whether the node counts as ready, by the readiness record alone, and quickly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.model import Effective, fingerprint
from tests import workshop
from toolkit import owner, probe, readiness


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Return a record that is true, of this process as the runtime."""
    config = tmp_path / "config.toml"
    config.write_bytes(b"version = 2\n")
    files = {str(config): fingerprint(b"version = 2\n"), str(tmp_path / "none.toml"): fingerprint(None)}
    has = Effective(handlers=frozenset({"runc"}), default="runc")
    path = tmp_path / "ready.json"
    readiness.write(path, readiness.facts("containerd", owner.inspect(os.getpid()), has, "cafe", files))
    return path


def changed(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **facts}), encoding="utf-8")


def test_a_true_record_is_ready(record: Path) -> None:
    assert probe.unready(record) == ""


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"boot": "another"}, "it is the record of another boot"),
        ({"tool": "0.0.0"}, "it is the record of version 0.0.0"),
        ({"started": 1}, f"the runtime's process, PID {os.getpid()}, is another one now"),
        ({"pid": 1 << 22}, f"the runtime's process, PID {1 << 22}, is another one now"),
        ({"format": 1}, "is no readiness record of format 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_record_of_something_else_is_not(record: Path, facts: dict[str, Any], why: str) -> None:
    changed(record, **facts)
    assert probe.unready(record).endswith(why)


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
def test_a_file_that_is_not_as_it_was_is_named(record: Path, change: Callable[[Path], object]) -> None:
    change(record.parent)
    assert probe.unready(record).startswith(f"changed since: {record.parent}")


def test_a_runtime_that_is_left_alone_needs_no_process(record: Path) -> None:
    changed(record, pid=None, started=None, configuration={})
    assert probe.unready(record) == ""


@given(st.binary(max_size=40) | st.sampled_from([b"[]", b"null", b'{"format": 2}', b"[" * 100000]))
def test_anything_else_is_no_record(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("r") / "ready.json"
    path.write_bytes(content)
    assert probe.unready(path)


def test_no_record_is_named(tmp_path: Path) -> None:
    assert probe.unready(tmp_path / "ready.json") == f"{tmp_path}/ready.json: No such file or directory"


def test_the_command_says_nothing_and_ends_as_it_is(record: Path, tmp_path: Path) -> None:
    quiet = workshop.cli("status", "--quiet", f"--readiness-file={record}")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    quiet = workshop.cli("status", "-q", f"--readiness-file={tmp_path}/none")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (2, "", "")


def test_the_command_imports_nothing_that_it_does_not_use(record: Path) -> None:
    """Below 150 ms for the whole command: half of the program would take twice that."""
    words = ["status", "--quiet", f"--readiness-file={record}"]
    script = (
        "import sys; from toolkit import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*sorted(name for name in sys.modules if name.partition('.')[0] in"
        " ('tomlkit', 'h2', 'subprocess', 'runtimes', 'ssl', 'prometheus_client')))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    took = []
    for _ in range(5):
        began = time.process_time_ns(), os.times().children_user + os.times().children_system
        assert workshop.cli(*words).returncode == 0
        took.append(os.times().children_user + os.times().children_system - began[1])
    assert min(took) < 0.15
