"""A process gets an argv, a fixed environment and a bounded time; both of its streams are kept."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_node
from toolkit.errors import StepError
from toolkit.log import LOGGER
from toolkit.node import command


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *words]


def test_both_streams_and_the_status_are_kept() -> None:
    result = command.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert result == command.Result(
        argv=("sh", "-c", "echo out; echo err >&2; exit 3"), code=3, out="out\n", err="err"
    )
    assert not result.ok


def test_success_is_ok() -> None:
    assert command.run(["true"]).ok


def test_a_process_ended_by_a_signal_is_not_ok() -> None:
    assert command.run(["sh", "-c", "kill -TERM $$"]).code == -signal.SIGTERM


@pytest.mark.parametrize("word", ["a b", "", "$HOME", "*", "'\"", "a\nb", ";true", "-n", "ä"])
def test_no_shell_reads_the_words(word: str) -> None:
    code = "import sys; sys.stdout.write(sys.argv[1])"
    assert command.run(python(code, word)).out == word


def test_stdin_is_empty() -> None:
    assert command.run(["cat"], timeout=5).out == ""


def test_the_environment_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_OF_A_TEST", "1")
    monkeypatch.setenv("PATH", "/nowhere")
    result = command.run(["env"])
    assert sorted(result.out.splitlines()) == ["HOME=/", "LC_ALL=C", f"PATH={command.SEARCH_PATH}"]


def test_the_environment_can_be_added_to() -> None:
    assert "EXTRA=1\n" in command.run(["env"], environment={"EXTRA": "1"}).out


def test_only_the_end_of_a_long_stderr_is_kept() -> None:
    result = command.run(python("import sys; sys.stderr.write('x' * 100000 + 'the end\\n')"))
    assert result.err.endswith("xthe end")
    assert len(result.err) <= 2000


def test_a_long_stdout_is_kept_whole() -> None:
    assert len(command.run(python("print('x' * 1000000)")).out) == 1_000_001


def test_output_that_is_no_text_is_no_obstacle() -> None:
    assert command.run(["printf", r"a\377b"]).out == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["/nowhere/containerd", "config"], "`/nowhere/containerd config` cannot be started: "),
        (["/"], "`/` cannot be started: "),
    ],
    ids=["missing", "directory"],
)
def test_what_cannot_be_started_is_named(argv: list[str], why: str) -> None:
    with pytest.raises(StepError) as caught:
        command.run(argv)
    assert str(caught.value).startswith(why)


@pytest.mark.timing
def test_what_takes_too_long_is_killed(tmp_path: Path) -> None:
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    begin = time.monotonic()
    with pytest.raises(StepError) as caught:
        command.run(python(code, str(tmp_path / "pid")), timeout=0.5)
    assert time.monotonic() - begin < 2
    assert str(caught.value).endswith("` did not end within 0.5 s and was killed")
    pid = int((tmp_path / "pid").read_text(encoding="utf-8"))
    assert not Path(f"/proc/{pid}").exists()


def test_what_it_started_is_killed_with_it(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(StepError):
        command.run(["sh", "-c", script], timeout=0.5)
    with _killed_at_last(tmp_path / "pid") as pid:
        fake_node.wait_for(lambda: _is_gone(pid), "a child outlived its time", timeout=1)


# One that waits for a dead disk or mount ignores SIGKILL too; waiting for it would hang as well.
@pytest.mark.timing
def test_what_cannot_be_killed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "KILL_SECONDS", 0.3)
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    told: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", lambda text, *words: told.append(text % words))
    children: list[subprocess.Popen[bytes]] = []
    real = command.communicate

    def communicate(child: subprocess.Popen[bytes], timeout: Any) -> tuple[bytes, bytes]:
        children.append(child)
        return real(child, timeout)

    monkeypatch.setattr(command, "communicate", communicate)
    begin = time.monotonic()
    try:
        with pytest.raises(StepError, match="did not end"):
            command.run(["sleep", "60"], timeout=0.2)
        assert time.monotonic() - begin < 5
        assert told == [
            f"PID {children[0].pid} waits for the kernel (a disk, a mount) and cannot be killed"
        ]
    finally:
        for child in children:
            child.kill()
            child.wait()


@contextmanager
def _killed_at_last(path: Path) -> Iterator[int]:
    pid = int(path.read_text(encoding="utf-8"))
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_gone(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
            == "Z"
        )
    except FileNotFoundError:
        return True


# --- staged -------------------------------------------------------------------------------------


def test_a_child_reads_what_is_staged() -> None:
    contents = [b"one\n", b"", b"\x00\xff" * 100_000]
    code = (
        "import sys; sys.stdout.write(','.join(str(len(open(p, 'rb').read())) for p in"
        " sys.argv[1:]))"
    )
    with command.staged_files(contents) as (fds, paths):
        result = command.run(python(code, *paths), pass_fds=fds)
        again = command.run(["cat", paths[0]], pass_fds=fds)
    assert result.out == "4,0,200000"
    assert again.out == "one\n", "the second reader does not start at the beginning"


def test_a_child_that_is_not_given_it_sees_nothing() -> None:
    with command.staged_files([b"secret"]) as (_, paths):
        assert not command.run(["cat", paths[0]]).ok


@pytest.mark.parametrize("fails", [True, False], ids=["after a failure", "after success"])
def test_nothing_staged_stays_open(*, fails: bool) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with suppress(ZeroDivisionError), command.staged_files([b"a", b"b"]) as (fds, _):
        assert set(map(str, fds)) <= set(os.listdir("/proc/self/fd"))
        if fails:
            raise ZeroDivisionError
    assert set(os.listdir("/proc/self/fd")) == before


# --- another root -------------------------------------------------------------------------------


@fake_node.needs_root
@fake_node.needs_program("busybox", package="busybox-static")  # it needs no library in the new root
def test_a_root_is_entered(tmp_path: Path) -> None:
    root = tmp_path / "host"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/os-release").write_text("ID=node\n", encoding="utf-8")
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    shown = command.run(["/bin/busybox", "cat", "/etc/os-release"], root=root)
    if shown.code != 0 and "cannot be started" in shown.err:
        pytest.skip("busybox is not static here: apt-get install busybox-static")
    assert shown.out == "ID=node\n", shown.err
    assert command.run(["/bin/busybox", "pwd"], root=root).out == "/\n"
    assert command.run(["/bin/busybox", "ls", "/"], root=root).out == "bin\netc\n"


@fake_node.needs_root
def test_a_root_without_the_program_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"^`/bin/sh` cannot be started: "):
        command.run(["/bin/sh"], root=tmp_path)


def test_the_root_of_this_machine_needs_no_change_of_root() -> None:
    assert command.run(["pwd"], root=Path("/")).out == f"{Path.cwd()}\n"


def test_a_command_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[logging.LogRecord] = []
    logger = logging.getLogger("of a test")
    logger.setLevel("DEBUG")
    logger.addFilter(lambda record: not records.append(record))  # type: ignore[func-returns-value]
    monkeypatch.setattr("toolkit.node.command.LOGGER", logger)
    command.run(["sh", "-c", "echo no such unit >&2; exit 4"])
    command.run(["true"])
    failed, worked = records
    assert failed.getMessage() == "`sh -c echo no such unit >&2; exit 4` ended with 4: no such unit"
    assert (failed.levelname, worked.levelname) == ("INFO", "DEBUG")
    assert vars(failed)["facts"] == {
        "argv": ["sh", "-c", "echo no such unit >&2; exit 4"],
        "code": 4,
        "stderr": "no such unit",
    }


@fake_node.needs_root
def test_a_root_that_may_not_be_entered_is_told_with_the_way_out(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from toolkit.node import command\n"
        "try: command.run(['/bin/true'], root=Path(sys.argv[1]))\n"
        "except command.NotStarted: print('the program is said to be bad')\n"
        "except command.StepError as error: print(error.message, error.hint, sep='|')\n"
    )
    dropped = ["setpriv", "--bounding-set=-sys_chroot", sys.executable, "-c", script]
    shown = subprocess.run([*dropped, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (
        shown.stdout.strip()
        == f"`/bin/true` cannot be started: the node's root {tmp_path} cannot be entered"
        "|the pod needs `privileged: true`, or the capability SYS_CHROOT"
    )
