"""Streams that are closed, full or gone, and texts not in UTF-8: one line, the right exit code."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support import fake_node
from tests.support.fake_node import Node
from toolkit.cli import commands, main

COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "run": ("run", "--no-daemon"),
    "run as JSON": ("run", "--no-daemon", "-o", "json"),
    "plan": ("plan",),
    "revert": ("revert",),
    "status": ("status",),
    "status as JSON": ("status", "-o", "json"),
    "detect": ("detect",),
    "diagnose": ("diagnose",),
    "--help": ("--help",),
    "run --help": ("run", "--help"),
    "--version": ("--version",),
    "wrong usage": ("plan", "--nonsense"),
}
BARE: Final = {"--help", "run --help", "--version"}
"""Commands that take no options of a node."""
SILENT: Final = {"run", "wrong usage"}
"""Commands that print nothing to stdout."""
NEITHER: Final = {"none at all", "both full"}
"""Situations with neither stdout nor stderr."""
LOST: Final = "error: the result cannot be written to stdout: No space left on device"


_WRITE: Final = ("1", "64")
"""The number of write(2) on amd64 and arm64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """How a program is started: redirections of a shell, variables, and one more word."""

    redirections: str = ""
    variables: Mapping[bytes, bytes] | None = None
    word: bytes = b""


SITUATIONS: Final = {
    "usual": Situation(),
    "no stdin": Situation(redirections="<&-"),
    "no stdout": Situation(redirections=">&-"),
    "no stderr": Situation(redirections="2>&-"),
    "no stdin, no stderr": Situation(redirections="<&- 2>&-"),
    "none at all": Situation(redirections="<&- >&- 2>&-"),
    "full stdout": Situation(redirections=">/dev/full"),
    "full stderr": Situation(redirections="2>/dev/full"),
    "both full": Situation(redirections=">/dev/full 2>/dev/full"),
    "nobody reads stdout": Situation(),
    "nobody reads stderr": Situation(),
    "ASCII": Situation(
        variables={
            b"LC_ALL": b"C", b"PYTHONUTF8": b"0", b"PYTHONCOERCECLOCALE": b"0",
            b"PYTHONIOENCODING": b"ascii",
        }
    ),
    "another variable": Situation(variables={b"OTHER": b"\xff"}),
    "a variable": Situation(variables={b"NVIDIA_RUNTIME_NAME": b"a\xff"}),
    "an option": Situation(word=b"--runtime-class=a\xff"),
}  # fmt: skip


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Return a node below a directory whose name is not ASCII."""
    node = fake_node.make_node(tmp_path / "nöde")
    fake_node.name_low_level(node)
    return node


@contextlib.contextmanager
def closed_pipe() -> Iterator[int]:
    """Yield the write end of a pipe that nobody reads."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        yield writes
    finally:
        os.close(writes)


def shell(situation: Situation, *words: str) -> list[str | bytes]:
    started: list[str | bytes] = [*fake_node.program(*words)]
    if situation.word:
        started.append(situation.word)
    return ["sh", "-c", f'exec "$@" {situation.redirections}', "sh", *started]


def environment(situation: Situation) -> dict[bytes, bytes]:
    usual = {os.fsencode(name): os.fsencode(value) for name, value in fake_node.ENVIRONMENT.items()}
    return {**usual, **(situation.variables or {})}


def done(name: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run the program in a situation."""
    situation = SITUATIONS[name]
    with closed_pipe() as nobody:
        return subprocess.run(
            shell(situation, *words),
            env=environment(situation),
            stdin=subprocess.DEVNULL,
            stdout=nobody if name == "nobody reads stdout" else subprocess.PIPE,
            stderr=nobody if name == "nobody reads stderr" else subprocess.PIPE,
            timeout=60,
            check=False,
        )


def expected(name: str, situation: str) -> int:
    """Return the exit code of a command in a situation."""
    if name == "wrong usage" or situation in {"a variable", "an option"}:
        return 2
    return 4 if situation in {"full stdout", "both full"} and name not in SILENT else 0


def applies(name: str, situation: str) -> bool:
    """Return whether a command has the option, or reads the variable, of a situation."""
    return name not in BARE or situation not in {"an option", "a variable"}


@pytest.mark.parametrize(
    ("name", "situation"),
    [
        (name, situation)
        for name in COMMANDS
        for situation in SITUATIONS
        if applies(name, situation)
    ],
)
def test_a_command_in_a_situation(node: Node, name: str, situation: str) -> None:
    options = [] if name in BARE else node.options(restart_mode="none")
    if name == "revert":
        fake_node.done("run", "--no-daemon", *options)
    ended = done(situation, *COMMANDS[name], *options)
    stdout, stderr = (ended.stdout or b"").decode(), (ended.stderr or b"").decode()
    assert ended.returncode == expected(name, situation), stderr
    assert "Traceback" not in stderr
    assert "this is a bug" not in stderr + stdout
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    is_heard = "stderr" not in situation and situation not in NEITHER
    assert len(errors) == int(bool(ended.returncode) and is_heard), stderr
    if situation == "full stdout" and name not in SILENT:
        assert errors == [LOST]
    if errors and situation in {"a variable", "an option"} and name != "wrong usage":
        assert errors[0].endswith(r"=a\xff: is not valid UTF-8")
    if "stdout" not in situation and situation not in NEITHER and not ended.returncode:
        assert bool(stdout) == (name not in SILENT)
    # A stream that is closed gives its number to the next file: the log was written to the lock.
    assert not node.pid_file.exists() or node.pid_file.read_bytes() == b""


def test_without_streams_the_same_is_installed(node: Node, tmp_path: Path) -> None:
    other = fake_node.make_node(tmp_path / "öther")
    fake_node.name_low_level(other)
    for each, situation in ((node, "usual"), (other, "none at all")):
        assert done(situation, "run", "-n", *each.options(restart_mode="none")).returncode == 0
    installed = sizes(node), sizes(other)
    assert len(installed[0]) > 10
    assert installed[0] == installed[1]


def sizes(node: Node) -> dict[str, int]:
    """Return the files of a node, with their sizes; both without what depends on its name."""
    name = node.root.name.encode()
    found = {}
    for path in node.root.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.suffix != ".json":
            place = re.sub("[0-9a-f]{16,}", "DIGEST", str(path.relative_to(node.root)))
            found[place] = len(path.read_bytes().replace(name, b""))
    return found


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_a_path_is_written_as_it_is_in_any_locale(node: Node, locale: str) -> None:
    """A path decoded by another encoding than the files' would name another file in them."""
    variables = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = fake_node.done(
        "plan",
        "-o",
        "json",
        "--diff=full",
        *node.options(restart_mode="none"),
        environment=variables,
    )
    changed = "".join(each["diff"] for each in json.loads(done.stdout)["changes"])
    assert f'"{node.toolkit}/nvidia-container-runtime"' in changed


def test_an_epipe_of_the_node_is_not_taken_for_that_of_stdout(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(commands, "make_plan", fail)
    with pytest.raises(SystemExit) as caught:
        main.main(["plan", *node.options(restart_mode="none")])
    assert caught.value.code == 4
    assert capsys.readouterr().err.startswith("error: the node: Broken pipe\nhint: ")


@pytest.mark.parametrize(
    "name",
    [
        "no stdin",
        "no stdout",
        "no stderr",
        "none at all",
        "both full",
        "ASCII",
        "nobody reads stderr",
    ],
)
def test_an_agent_in_a_situation(node: Node, tmp_path: Path, name: str) -> None:
    situation = SITUATIONS[name]
    with fake_node.daemon(node.socket, home=tmp_path / "d"), closed_pipe() as nobody:
        agent = subprocess.Popen(
            shell(situation, "run", *node.options()),
            env=environment(situation),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=nobody if name == "nobody reads stderr" else subprocess.PIPE,
        )
        try:
            fake_node.wait_for(lambda: watches(agent.pid), "the agent does not watch", timeout=30)
            for fd in range(3):
                opened = os.readlink(f"/proc/{agent.pid}/fd/{fd}")
                assert opened.startswith(("/dev/null", "/dev/full", "pipe:")), opened
            gone = node.toolkit / "nvidia-ctk"
            gone.unlink()
            fake_node.wait_for(gone.exists, "drift is not repaired", timeout=30)
            agent.send_signal(signal.SIGTERM)
            _, stderr = agent.communicate(timeout=60)
        finally:
            agent.kill()
            agent.communicate()
    assert agent.returncode == 0, stderr
    assert b"Traceback" not in (stderr or b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("words", "fault", "fd"),
    [
        (("plan",), "", 1),
        (("plan", "--diff=full"), "[broken", 2),
        (("run", "--no-daemon", "-o", "json"), "", 1),
    ],
    ids=["a result", "an error", "a result of a change"],
)
def test_a_signal_ends_a_program_whose_output_nobody_reads(
    node: Node, words: tuple[str, ...], fault: str, fd: int, number: signal.Signals
) -> None:
    with node.config.open("a", encoding="utf-8") as config:
        config.write(fault)
    unread, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(full, bytes(4096)):
            continue
    os.set_blocking(full, True)
    streams = {1: subprocess.DEVNULL, 2: subprocess.DEVNULL, fd: full}
    with subprocess.Popen(
        fake_node.program(*words, *node.options(restart_mode="none")),
        env=fake_node.ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=streams[1], stderr=streams[2],
    ) as program:  # fmt: skip
        try:
            state = Path(f"/proc/{program.pid}/syscall")
            waits = [[write, f"{fd:#x}"] for write in _WRITE]
            fake_node.wait_for(
                lambda: state.read_text(encoding="ascii").split()[:2] in waits, "no write"
            )
            program.send_signal(number)
            assert program.wait(20) == -number
        finally:
            program.kill()
            os.close(unread)
            os.close(full)


def watches(pid: int) -> bool:
    """Return whether a process is the agent and has an inotify descriptor."""
    with contextlib.suppress(OSError):
        links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        return "anon_inode:inotify" in links
    return False


def test_an_answer_that_cannot_be_written_is_no_answer(tmp_path: Path) -> None:
    """An exit code that is an answer, such as 9 of `detect`, stands only if it was written."""
    (tmp_path / "etc").mkdir()
    words = ["detect", f"--host-root={tmp_path}", f"--socket={tmp_path}/none"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            fake_node.program(*words),
            env=fake_node.ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=30, check=False,
        )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr == (
        "error: the result cannot be written to stdout: No space left on device\n"
        "hint: the command was carried out; write to another place\n"
    )
