"""What the node's binary says of itself is cached for this boot and for exactly that file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runtimes.model import BinaryQuery, BinaryResult
from tests.support import fake_node
from toolkit.errors import StepError
from toolkit.node import files, procfs
from toolkit.state.binary_cache import AnswerCache

LASTING = BinaryQuery(name="default", argv=("config", "default"), is_lasting=True)
SAID = BinaryResult(code=0, out="version = 3\n", err="a warning")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "bin/containerd"
    path.parent.mkdir()
    path.write_bytes(Path("/bin/true").read_bytes())
    return path


@pytest.fixture
def notes(tmp_path: Path, program: Path) -> Path:
    """Return a file that holds one answer of the program."""
    path = tmp_path / "run/answers.json"
    first = AnswerCache(path=path, binary=program)
    assert first.get(LASTING) is None
    assert first.put(LASTING, SAID) is SAID
    first.keep()
    return path


def recalled(notes: Path, program: Path, question: BinaryQuery = LASTING) -> BinaryResult | None:
    return AnswerCache(path=notes, binary=program).get(question)


def test_an_answer_is_remembered(notes: Path, program: Path) -> None:
    assert recalled(notes, program) == SAID
    assert notes.stat().st_mode & 0o777 == 0o600


def replaced(program: Path) -> None:
    new = program.with_name("new")
    new.write_bytes(program.read_bytes())
    new.chmod(0o755)
    seen = program.stat()
    os.utime(new, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    new.replace(program)


@pytest.mark.parametrize(
    "change",
    [
        lambda program: os.utime(program, ns=(1, 1)),
        lambda program: program.write_bytes(program.read_bytes() + b"\0"),
        replaced,
        lambda program: program.chmod(0o700),
        lambda program: program.unlink(),
    ],
    ids=["times", "size", "another file", "status", "gone"],
)
def test_another_file_is_asked_anew(
    notes: Path, program: Path, change: Callable[[Path], object]
) -> None:
    change(program)
    assert recalled(notes, program) is None


def test_the_same_program_by_another_name_is_asked_anew(notes: Path, program: Path) -> None:
    other = program.with_name("k3s")
    os.link(program, other)
    os.link(program, program.with_name("unused"))
    assert recalled(notes, other) is None


@pytest.mark.parametrize(
    "question",
    [
        replace(LASTING, is_lasting=False),
        replace(LASTING, argv=("config", "dump")),
        replace(LASTING, files=(b"version = 3\n",)),
    ],
    ids=["of a configuration", "other words", "another staged file"],
)
def test_another_question_is_asked(notes: Path, program: Path, question: BinaryQuery) -> None:
    assert recalled(notes, program, question) is None


def test_what_is_of_a_configuration_is_not_remembered(tmp_path: Path, program: Path) -> None:
    answers = AnswerCache(path=tmp_path / "answers.json", binary=program)
    answers.put(replace(LASTING, is_lasting=False), SAID)
    answers.put(replace(LASTING, argv=("config",)), replace(SAID, code=1))
    answers.keep()
    assert not (tmp_path / "answers.json").exists()


def test_a_script_may_run_another_program_next_time(tmp_path: Path) -> None:
    script = tmp_path / "containerd"
    script.write_text("#!/bin/sh\nexec /opt/containerd/bin/containerd\n", encoding="ascii")
    answers = AnswerCache(path=tmp_path / "answers.json", binary=script)
    answers.put(LASTING, SAID)
    assert answers.get(LASTING) is None
    answers.keep()
    assert not (tmp_path / "answers.json").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("boot", "another"), ("tool", "0.0.0"), ("format", 2), ("answers", [1]), ("answers", None)],
)
def test_a_note_of_another_boot_or_kind_counts_for_nothing(
    notes: Path, program: Path, key: str, value: object
) -> None:
    content = json.loads(notes.read_bytes())
    assert content["boot"] == procfs.boot_id()
    notes.write_text(json.dumps({**content, key: value}), encoding="utf-8")
    assert recalled(notes, program) is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"7", b"\xff", b'{"answers": {}}', b"[" * 100_000]
)
def test_a_damaged_note_counts_for_nothing(notes: Path, program: Path, data: bytes) -> None:
    notes.write_bytes(data)
    assert recalled(notes, program) is None
    again = AnswerCache(path=notes, binary=program)
    again.put(LASTING, SAID)
    again.keep()
    assert recalled(notes, program) == SAID


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_note_that_others_can_write_counts_for_nothing(
    notes: Path, program: Path, mode: int
) -> None:
    notes.chmod(mode)
    assert recalled(notes, program) is None


@fake_node.needs_root
def test_a_note_of_somebody_else_counts_for_nothing(notes: Path, program: Path) -> None:
    os.chown(notes, 1000, 1000)
    assert recalled(notes, program) is None


def test_a_directory_in_its_place_harms_nothing(tmp_path: Path, program: Path) -> None:
    path = tmp_path / "answers.json"
    path.mkdir()
    answers = AnswerCache(path=path, binary=program)
    answers.put(LASTING, SAID)
    answers.keep()
    assert list(path.iterdir()) == []


def test_a_full_disk_is_no_failure(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StepError("no room")

    monkeypatch.setattr(files, "put", full)
    answers = AnswerCache(path=tmp_path / "answers.json", binary=program)
    answers.put(LASTING, SAID)
    answers.keep()
    assert answers.get(LASTING) == SAID
