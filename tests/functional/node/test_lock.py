"""One writer per node: the loser names the holder and harms nothing; never two winners."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.support import fake_node
from toolkit.errors import Locked, StepError
from toolkit.node import lock

_HOLDER: Final = """
import sys, time
from pathlib import Path
from toolkit.node import lock
with lock.held(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(60)
"""
# Holds the lock by turns; a file that only a sole holder can make proves that there is one only.
_RIVAL: Final = """
import os, sys, time
from pathlib import Path
from toolkit.node import lock
from toolkit.errors import Locked
path, proof = Path(sys.argv[1]), sys.argv[2]
won = 0
deadline = time.monotonic() + 30
while won < 2 and time.monotonic() < deadline:
    try:
        with lock.held(path):
            os.close(os.open(proof, os.O_CREAT | os.O_EXCL))
            assert path.read_text() == f"{os.getpid()}\\n"
            time.sleep(0.001)
            os.unlink(proof)
            won += 1
    except Locked:
        time.sleep(0.001)
print(won)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "toolkit.pid"


def test_the_holder_is_named_while_it_holds(path: Path) -> None:
    with lock.held(path):
        assert path.read_text(encoding="utf-8") == f"{os.getpid()}\n"
    assert path.read_bytes() == b""


def test_the_lock_is_free_again_after_a_failure(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock.held(path):
        raise ZeroDivisionError
    with lock.held(path):
        assert path.read_text(encoding="utf-8") == f"{os.getpid()}\n"


def test_the_second_is_told_who_the_first_is_and_truncates_nothing(path: Path) -> None:
    with fake_node.started([sys.executable, "-c", _HOLDER, str(path)]) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        before = fake_node.trace(path)
        with pytest.raises(Locked) as caught, lock.held(path):
            pytest.fail("there are two holders")
        assert str(caught.value) == f"another instance (PID {holder.pid}) holds {path}"
        assert caught.value.hint == "wait for it to end, or end it; nothing was changed"
        assert caught.value.exit_code == 5
        assert fake_node.trace(path) == before


def test_a_killed_holder_holds_nothing(path: Path) -> None:
    with fake_node.started([sys.executable, "-c", _HOLDER, str(path)]) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        with lock.held(path):
            assert path.read_text(encoding="utf-8") == f"{os.getpid()}\n"


def test_a_child_process_does_not_inherit_the_lock(path: Path) -> None:
    with lock.held(path):
        shown = subprocess.run(
            ["ls", "-l", "/proc/self/fd"],
            capture_output=True,
            text=True,
            check=True,
            close_fds=False,
        )
    assert str(path) not in shown.stdout


def test_the_file_is_never_deleted_so_that_all_compete_for_one(path: Path) -> None:
    with lock.held(path):
        inode = path.stat().st_ino
    with lock.held(path):
        assert path.stat().st_ino == inode


def test_of_twenty_rivals_one_holds_at_a_time(path: Path) -> None:
    proof = path.parent.parent / "proof"
    with ExitStack() as stack:
        rivals = [
            stack.enter_context(
                fake_node.started([sys.executable, "-c", _RIVAL, str(path), str(proof)])
            )
            for _ in range(20)
        ]
        ends = [fake_node.ended(rival) for rival in rivals]
    assert [(code, out) for code, out, _ in ends] == [(0, "2\n")] * 20, [
        err for _, _, err in ends if err
    ]


def test_a_file_that_was_replaced_between_open_and_lock_is_not_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    path.touch()
    real, locked = fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        locked.append(fd)
        if len(locked) == 1:
            other = path.with_name("other")
            other.touch(mode=0o600)
            other.rename(path)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held(path):
        assert len(locked) == 2
        with pytest.raises(BlockingIOError), path.open("rb") as stream:
            real(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_that_was_deleted_between_open_and_lock_is_not_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, locked = fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        locked.append(fd)
        if len(locked) == 1:
            path.unlink()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held(path):
        assert path.read_text(encoding="utf-8") == f"{os.getpid()}\n"


def test_a_link_is_not_followed(path: Path) -> None:
    victim = path.parent.parent / "victim"
    victim.write_text("precious", encoding="utf-8")
    path.parent.mkdir()
    path.symlink_to(victim)
    with pytest.raises(StepError) as caught, lock.held(path):
        pytest.fail("a link was locked")
    assert (
        str(caught.value) == f"the lock {path} cannot be opened: Too many levels of symbolic links"
    )
    assert victim.read_text(encoding="utf-8") == "precious"


def test_a_directory_in_its_place_is_named(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StepError) as caught, lock.held(path):
        pytest.fail("a directory was locked")
    assert str(caught.value) == f"the lock {path} cannot be opened: Is a directory"


@pytest.mark.timeout(5)
def test_a_pipe_in_its_place_is_named(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(StepError) as caught, lock.held(path):
        pytest.fail("a pipe was locked")
    assert str(path) in str(caught.value)
