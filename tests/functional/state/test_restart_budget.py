"""Restarts are counted: only those of this boot within the window; a damaged count is empty."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from tests.support import fake_node
from toolkit.deadline import Cancellation
from toolkit.errors import StepError
from toolkit.node import procfs
from toolkit.reconcile import transaction
from toolkit.reconcile.context import Context
from toolkit.runtime import restart
from toolkit.state import restart_budget
from toolkit.state.restart_budget import Budget

NOW: Final = 5000.0
WINDOW: Final = 600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run/restarts.json"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, NOW)


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the node have run for so many seconds."""
    monkeypatch.setattr(restart_budget, "uptime", lambda: seconds)


def counted(path: Path, most: int = 3, window: float = WINDOW) -> Budget:
    return Budget(path=path, most=most, window=window)


def noted(path: Path, *times: Any, **other: Any) -> Path:
    """Write what earlier runs noted, of this boot where nothing else is said."""
    content = {"format": 1, "boot": procfs.boot_id(), "restarts": list(times), **other}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def times(path: Path) -> list[float]:
    return [float(moment) for moment in json.loads(path.read_bytes())["restarts"]]


# --- what counts --------------------------------------------------------------------------------


def test_without_a_note_there_was_no_restart(path: Path) -> None:
    assert counted(path, most=1).restart_refusal() == ""
    assert not path.parent.exists(), "to ask is not to write"


def test_the_last_one_allowed_is_allowed_and_the_next_is_not(path: Path) -> None:
    noted(path, NOW - 30, NOW - 20)
    assert counted(path).restart_refusal() == ""
    noted(path, NOW - 30, NOW - 20, NOW - 10)
    assert (
        counted(path).restart_refusal()
        == "the runtime was restarted 3 times within 600 s, and --restart-budget is 3:"
        " next restart allowed in 570 s"
    )


def test_the_wait_is_until_enough_of_them_are_out_of_the_window(path: Path) -> None:
    noted(path, NOW - 500, NOW - 400, NOW - 300, NOW - 200)
    assert (
        counted(path, most=2).restart_refusal()
        == "the runtime was restarted 4 times within 600 s, and --restart-budget is 2:"
        " next restart allowed in 300 s"
    )


def test_the_order_of_the_notes_does_not_matter(path: Path) -> None:
    noted(path, NOW - 10, NOW - 300, NOW - 20)
    assert counted(path, most=2).restart_refusal().endswith(": next restart allowed in 580 s")


def test_a_window_that_is_no_whole_number_is_said_as_it_was_given(path: Path) -> None:
    noted(path, NOW - 0.25)
    assert (
        counted(path, most=1, window=1.5).restart_refusal()
        == "the runtime was restarted 1 times within 1.5 s, and --restart-budget is 1:"
        " next restart allowed in 1 s"
    )


def test_after_the_wait_that_was_told_it_may_be_restarted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted(path, NOW - 500, NOW - 400, NOW - 300)
    words = counted(path).restart_refusal()
    wait = float(words.rpartition("allowed in ")[2].removesuffix(" s"))
    at(monkeypatch, NOW + wait - 1)
    assert counted(path).restart_refusal() != ""
    at(monkeypatch, NOW + wait)
    assert counted(path).restart_refusal() == ""


def test_restarts_before_the_window_do_not_count(path: Path) -> None:
    noted(path, NOW - 10_000, NOW - WINDOW - 1, NOW - WINDOW, NOW - WINDOW + 1)
    assert counted(path, most=2).restart_refusal() == ""
    assert counted(path, most=1).restart_refusal() != ""


@pytest.mark.parametrize("boot", ["", "a0b1c2d3-0000-0000-0000-000000000000", None, 5, ["x"]])
def test_restarts_of_another_boot_do_not_count(path: Path, boot: Any) -> None:
    noted(path, NOW - 3, NOW - 2, NOW - 1, boot=boot)
    assert counted(path, most=1).restart_refusal() == ""


def test_times_that_are_still_to_come_do_not_count(path: Path) -> None:
    noted(path, NOW + 1, NOW + 1e9, float("inf"), float("nan"))
    assert counted(path, most=1).restart_refusal() == ""


def test_zero_is_no_limit(path: Path) -> None:
    noted(path, *(NOW - 1 for _ in range(1000)))
    assert counted(path, most=0).restart_refusal() == ""


# --- a note that cannot be read -----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\udcff",
        "null",
        "5",
        '"restarts"',
        "[]",
        "{}",
        '{"restarts": [1]}',
        '{"boot": "x"}',
        '{"boot": "x", "restarts": null}',
        '{"boot": "x", "restarts": 5}',
        '{"boot": "x", "restarts": ["soon"]}',
        '{"boot": "x", "restarts": [null]}',
        '{"boot": "x", "restarts": [[1]]}',
        "[" * 100_000,
        # Too large for a float: an OverflowError, no ValueError.
        '{"boot": "x", "restarts": [1' + "0" * 400 + "]}",
    ],
    ids=[
        "empty", "no JSON", "no UTF-8", "null", "a number", "a text", "a list", "no keys",
        "no boot", "no restarts", "restarts are null", "restarts are a number", "a text for a time",
        "null for a time", "a list for a time", "too deep", "a huge time",
    ],
)  # fmt: skip
def test_a_damaged_note_counts_as_none_and_is_told(
    path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with caplog.at_level(logging.WARNING):
        assert counted(path, most=1).restart_refusal() == ""
    (said,) = caplog.messages
    assert said.startswith(f"{path} cannot be read, so earlier restarts are not counted: ")
    counted(path).spend()
    assert times(path) == [NOW]
    assert counted(path, most=1).restart_refusal() != ""


@pytest.mark.timeout(5)
def test_a_pipe_in_its_place_counts_as_none_and_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    assert counted(path, most=1).restart_refusal() == ""
    counted(path).spend()
    assert times(path) == [NOW]


# --- spending -----------------------------------------------------------------------------------


def test_a_restart_is_noted_with_the_boot_that_it_belongs_to(path: Path) -> None:
    counted(path).spend()
    noted = {"vain": "", "failed": "", "times": 0, "at": 0.0}
    content = json.loads(path.read_bytes())
    assert content == {"format": 1, "boot": procfs.boot_id(), "restarts": [NOW], **noted}
    assert path.read_bytes().endswith(b"}\n")


def test_a_change_that_failed_again_waits_twice_as_long_each_time_up_to_a_day(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment, waits = NOW, []
    for _ in range(12):
        at(monkeypatch, moment)
        counted(path).note_failed("a change")
        said = counted(path).retry_refusal("a change")
        waits.append(
            float(match[1]) if (match := re.search(r"next attempt in (\d+) s", said)) else 0.0
        )
        assert counted(path).retry_refusal("another change") == ""
        moment += waits[-1]
        at(monkeypatch, moment)
        assert counted(path).retry_refusal("a change") == ""
    window = counted(path).window
    assert waits[:4] == [0, 2 * window, 4 * window, 8 * window]
    assert waits[-1] == 86_400
    counted(path).spend()
    assert counted(path, most=0).retry_refusal("a change") == ""
    counted(path).note_failed("another change")
    assert counted(path).retry_refusal("another change") == ""


def test_restarts_add_up_until_the_budget_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for turn in range(3):
        at(monkeypatch, NOW + turn)
        assert counted(path).restart_refusal() == ""
        counted(path).spend()
    assert times(path) == [NOW, NOW + 1, NOW + 2]
    assert counted(path).restart_refusal() != ""


def test_what_does_not_count_any_more_is_not_kept(path: Path) -> None:
    noted(path, NOW - WINDOW - 1, NOW + 5, NOW - 1)
    counted(path).spend()
    assert times(path) == [NOW - 1, NOW]


def test_the_notes_of_another_boot_are_not_kept(path: Path) -> None:
    noted(path, NOW - 1, boot="another")
    counted(path).spend()
    assert times(path) == [NOW]
    assert json.loads(path.read_bytes())["boot"] == procfs.boot_id()


def test_the_restarts_are_noted_where_there_is_no_limit_as_well(path: Path) -> None:
    counted(path, most=0).spend()
    assert times(path) == [NOW]


# Rounded to the nearest, it would lie in the future for some milliseconds.
def test_a_restart_counts_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, NOW + 0.006)
    counted(path).spend()
    assert counted(path, most=1).restart_refusal() != ""


def test_a_boot_is_told_from_others_by_the_kernel_s_own_word() -> None:
    said = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    assert f"{procfs.boot_id()}\n" == said
    assert len(procfs.boot_id()) == 36


def test_the_clock_goes_on_while_the_node_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    assert restart_budget.uptime() == pytest.approx(uptime, abs=1)


@fake_node.needs_root
def test_a_full_disk_is_a_failed_step(tmp_path: Path) -> None:
    said = _spend_elsewhere(
        fake_node.in_mounts('mount -t tmpfs -o nr_inodes=1 tmpfs "$1"\nshift', str(tmp_path)),
        tmp_path / "restarts.json",
    )
    assert said == f"4 {tmp_path}/restarts.json cannot be written: No space left on device\n"


@fake_node.needs_root
def test_a_directory_that_cannot_be_written_is_a_failed_step(tmp_path: Path) -> None:
    said = _spend_elsewhere(fake_node.read_only(tmp_path), tmp_path / "restarts.json")
    assert said == f"4 {tmp_path}/restarts.json cannot be written: Read-only file system\n"
    said = _spend_elsewhere(fake_node.read_only(tmp_path), tmp_path / "new/restarts.json")
    assert said == f"4 the directory {tmp_path}/new cannot be made: Read-only file system\n"


_SPEND: Final = """
import sys
from collections.abc import Callable
from pathlib import Path
from toolkit import errors
from toolkit.state.restart_budget import Budget
try:
    Budget(path=Path(sys.argv[1]), most=3, window=600).spend()
except errors.StepError as error:
    print(error.exit_code, error)
"""


def _spend_elsewhere(prefix: tuple[str, ...], path: Path) -> str:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _SPEND, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_file_in_the_way_of_the_directory_is_a_failed_step(path: Path) -> None:
    path.parent.touch()
    with pytest.raises(StepError):
        counted(path).spend()


def test_what_did_not_help_is_remembered_until_the_next_restart(path: Path) -> None:
    assert not counted(path).was_ineffective("these files")
    counted(path).spend()
    counted(path).record_ineffective_restart("these files")
    assert counted(path).was_ineffective("these files")
    assert not counted(path).was_ineffective("others")
    assert times(path) == [NOW]
    counted(path).spend()
    assert not counted(path).was_ineffective("these files")


def test_what_did_not_help_in_another_boot_counts_for_nothing(path: Path) -> None:
    noted(path, boot="another", vain="these files")
    assert not counted(path).was_ineffective("these files")


# --- in a run -----------------------------------------------------------------------------------


def test_the_notes_lie_beside_the_pid_file_as_the_options_say(tmp_path: Path) -> None:
    node = fake_node.make_node(tmp_path / "node")
    settings = node.settings(restart_budget="7", restart_window="12.5")
    found = Context(settings=settings, adapter=containerd, stop=Cancellation()).budget
    assert found == Budget(path=node.root / "run/restarts.json", most=7, window=12.5)
    default = Context(settings=node.settings(), adapter=containerd, stop=Cancellation()).budget
    assert (default.most, default.window) == (3, 600)


def test_a_run_notes_one_restart_before_it_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    node = fake_node.make_node(tmp_path / "node")
    notes = node.pid_file.with_name("restarts.json")
    seen: list[bool] = []
    real: Callable[..., float] = restart.perform

    def perform(*words: Any) -> float:
        seen.append(notes.exists())
        return real(*words)

    monkeypatch.setattr(restart, "perform", perform)
    with fake_node.daemon(node.socket, home=tmp_path / "d"):
        transaction.converge(node.settings(), containerd)
        assert seen == [True]
        assert len(times(notes)) == 1
        transaction.converge(node.settings(), containerd)
        assert len(times(notes)) == 1, "a run that does nothing restarts nothing"
