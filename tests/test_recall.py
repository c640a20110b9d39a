"""What the node's binary said of itself is remembered for this boot, of that very file and nothing else."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtimes import containerd
from runtimes.model import Answer, Question
from tests import binaries, workshop
from toolkit import detect, files, kernel, process, removal, transaction
from toolkit.errors import StepFailed
from toolkit.recall import Recall
from toolkit.stop import Stop
from toolkit.view import Task, view

LASTING = Question(name="default", argv=("config", "default"), is_lasting=True)
SAID = Answer(code=0, out="version = 3\n", err="a warning")


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
    first = Recall(path=path, binary=program)
    assert first.said(LASTING) is None
    assert first.learned(LASTING, SAID) is SAID
    first.keep()
    return path


def recalled(notes: Path, program: Path, question: Question = LASTING) -> Answer | None:
    return Recall(path=notes, binary=program).said(question)


def test_an_answer_is_remembered(notes: Path, program: Path) -> None:
    assert recalled(notes, program) == SAID
    assert notes.stat().st_mode & 0o777 == 0o644


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
def test_another_file_is_asked_anew(notes: Path, program: Path, change: Callable[[Path], object]) -> None:
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
def test_another_question_is_asked(notes: Path, program: Path, question: Question) -> None:
    assert recalled(notes, program, question) is None


def test_what_is_of_a_configuration_is_not_remembered(tmp_path: Path, program: Path) -> None:
    recall = Recall(path=tmp_path / "answers.json", binary=program)
    recall.learned(replace(LASTING, is_lasting=False), SAID)
    recall.learned(replace(LASTING, argv=("config",)), replace(SAID, code=1))
    recall.keep()
    assert not (tmp_path / "answers.json").exists()


def test_a_script_may_run_another_program_next_time(tmp_path: Path) -> None:
    script = tmp_path / "containerd"
    script.write_text("#!/bin/sh\nexec /opt/containerd/bin/containerd\n", encoding="ascii")
    recall = Recall(path=tmp_path / "answers.json", binary=script)
    recall.learned(LASTING, SAID)
    assert recall.said(LASTING) is None
    recall.keep()
    assert not (tmp_path / "answers.json").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("boot", "another"), ("tool", "0.0.0"), ("format", 2), ("answers", [1]), ("answers", None)],
)
def test_a_note_of_another_boot_or_kind_counts_for_nothing(
    notes: Path, program: Path, key: str, value: object
) -> None:
    content = json.loads(notes.read_bytes())
    assert content["boot"] == kernel.boot_id()
    notes.write_text(json.dumps({**content, key: value}), encoding="utf-8")
    assert recalled(notes, program) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"\xff", b'{"answers": {}}', b"[" * 100_000])
def test_a_damaged_note_counts_for_nothing(notes: Path, program: Path, data: bytes) -> None:
    notes.write_bytes(data)
    assert recalled(notes, program) is None
    again = Recall(path=notes, binary=program)
    again.learned(LASTING, SAID)
    again.keep()
    assert recalled(notes, program) == SAID


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_note_that_others_can_write_counts_for_nothing(notes: Path, program: Path, mode: int) -> None:
    notes.chmod(mode)
    assert recalled(notes, program) is None


@workshop.needs_root
def test_a_note_of_somebody_else_counts_for_nothing(notes: Path, program: Path) -> None:
    os.chown(notes, 1000, 1000)
    assert recalled(notes, program) is None


def test_a_directory_in_its_place_harms_nothing(tmp_path: Path, program: Path) -> None:
    path = tmp_path / "answers.json"
    path.mkdir()
    recall = Recall(path=path, binary=program)
    recall.learned(LASTING, SAID)
    recall.keep()
    assert list(path.iterdir()) == []


def test_a_full_disk_is_no_failure(tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise StepFailed("no room")

    monkeypatch.setattr(files, "put", full)
    recall = Recall(path=tmp_path / "answers.json", binary=program)
    recall.learned(LASTING, SAID)
    recall.keep()
    assert recall.said(LASTING) == SAID


# --- with a real containerd ---------------------------------------------------------------------


@pytest.fixture
def judge() -> str:
    """Return a real containerd that runs in this root."""
    return binaries.find("2.2").path


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    asked: Counter[str] = Counter()
    run = process.run

    def noted(argv: Any, **more: Any) -> process.Result:
        asked[" ".join(word for word in argv[1:] if not word.startswith("/"))] += 1
        return run(argv, **more)

    monkeypatch.setattr(process, "run", noted)
    return asked


@pytest.mark.binary
def test_a_later_run_asks_only_about_the_configuration(
    tmp_path: Path, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = workshop.make_node(tmp_path / "node")
    settings = node.settings(executable_path=judge, config_source="command", restart_mode="none")
    asked = counted(monkeypatch)
    transaction.converge(settings, containerd)
    assert asked["config default"] == 1
    asked.clear()
    first = view(Task(settings=settings, adapter=containerd, stop=Stop()))
    assert asked == {"--config config dump": 1}
    notes = node.pid_file.with_name("answers.json")
    assert notes.exists()
    notes.unlink()
    assert view(Task(settings=settings, adapter=containerd, stop=Stop())).seen == first.seen
    assert not notes.exists(), "to look writes nothing"
    transaction.converge(settings, containerd)
    assert notes.exists()
    removal.revert(settings, containerd)
    assert not notes.exists()
    assert detect.scene(settings, containerd).recall.said(LASTING) is None
