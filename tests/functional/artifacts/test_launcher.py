"""The launcher of the image: its yes is always that of Python, and all else is Python's to say."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from deploy.programs import build
from runtimes.model import Effective, fingerprint
from tests.support import fake_node, nodes, programs
from toolkit import __version__
from toolkit.node import processes, procfs
from toolkit.settings.options import SETTINGS
from toolkit.state import liveness, readiness_probe, readiness_record

pytestmark = fake_node.needs_root  # only what is root's is believed, as in the pod

YES: Final = 0
PYTHON: Final = 77
"""The exit status of what stands for Python here."""
_CONTENTS: Final = (b"", b"version = 2\n", b"x" * 55, b"y" * 56, b"z" * 64, b"\0\xff" * 40_000)


class Command:
    """The launcher as the image has it, and what stands for Python, which prints its words."""

    def __init__(self, home: Path, program: bytes, prefix: tuple[str, ...] = ()) -> None:
        self.home, self.prefix = home, prefix
        self.run_dir = home / "run"
        self.run_dir.mkdir()
        python = home / "python"
        fake_node.write_program(python, "#!/bin/sh\nprintf '%s|' \"$@\"\nexit 77\n")
        content = build.launcher(program, python, home / "script.py")
        self.path = home / "nvidia-toolkit"
        self.path.write_bytes(content)
        self.path.chmod(0o755)

    def __call__(self, *words: str, **environment: str) -> int:
        done = self.run(*words, **environment)
        assert (done.stdout == "") is (done.returncode == YES)
        assert done.stderr == ""
        return done.returncode

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        pid_file = {"TOOLKIT_PID_FILE": f"{self.run_dir}/toolkit.pid"}
        return subprocess.run(
            [*self.prefix, str(self.path), *words],
            env={"PATH": "/usr/bin:/bin", **pid_file, **environment},
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip


@pytest.fixture
def home() -> Iterator[Path]:
    """Return a directory below directories that are root's, without a link."""
    path = Path("/run") / f"nvidia-toolkit-test-{os.getpid()}-{time.monotonic_ns()}"
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def command(home: Path) -> Command:
    return Command(home, programs.program("launcher"))


@pytest.fixture
def record(command: Command) -> Path:
    """Return a record that is true, of this process as the runtime, with files of many sizes."""
    return true_record(command)


def true_record(command: Command) -> Path:
    files = {str(command.home / "none.toml"): fingerprint(None)}
    for number, content in enumerate(_CONTENTS):
        path = command.home / f"config {number}.toml"
        path.write_bytes(content)
        files[str(path)] = fingerprint(content)
    has = Effective(handlers=frozenset({"runc", "nvidia"}), default="runc")
    facts = readiness_record.facts(
        "containerd", processes.inspect(os.getpid()), has, "cafe", files, ["/none", "/proc"]
    )
    path = command.run_dir / "ready.json"
    me = [os.getpid(), procfs.start_time(os.getpid())]
    facts |= {"verified": {"nvidia": "started"}, "plugin": me}
    readiness_record.write(path, facts)
    return path


def changed(path: Path, **facts: Any) -> None:
    content = {**json.loads(path.read_bytes()), **facts}
    path.write_text(json.dumps(content), encoding="utf-8")


# --- readiness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("status", "--quiet"), ("status", "-q")], ids=" ".join)
def test_a_node_that_is_ready_needs_no_python(
    command: Command, record: Path, words: tuple[str, ...]
) -> None:
    assert readiness_probe.unready(record) == ""
    assert command(*words) == YES
    elsewhere = record.rename(command.home / "elsewhere.json")
    assert command(*words) == PYTHON
    assert command(*words, TOOLKIT_READINESS_FILE=str(elsewhere)) == YES


@pytest.mark.parametrize(
    "facts",
    [
        {"boot": "another"}, {"boot": None}, {"tool": "0.0.0"}, {"tool": f"{__version__}1"},
        {"started": 1}, {"started": None}, {"pid": 1 << 22}, {"pid": None}, {"pid": "1"},
        {"format": 1}, {"format": "2"}, {"format": None}, {"driver": ["/none"]}, {"driver": []},
        {"plugin": [1 << 22, 5]}, {"plugin": [1, 10**17]}, {"plugin": []}, {"plugin": 1},
        {"configuration": {"/none/at all": "0" * 64}}, {"configuration": {"/proc": "0" * 64}},
        {"configuration": {"/proc/self/status": "absent"}}, {"configuration": {"/none": ""}},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_does_not_apply_is_left_to_python(
    command: Command, record: Path, facts: dict[str, Any]
) -> None:
    changed(record, **facts)
    assert command("status", "--quiet") == PYTHON


@pytest.mark.parametrize(
    "facts",
    [
        {"plugin": None}, {"driver": None}, {"pid": None, "started": None}, {"configuration": {}},
        {"handlers": None, "default": "", "verified": None}, {"new": [{"a": [1.5, True, {}]}, []]},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_record_may_lack_is_not_asked_for(
    command: Command, record: Path, facts: dict[str, Any]
) -> None:
    changed(record, **facts)
    assert readiness_probe.unready(record) == ""
    assert command("status", "--quiet") == YES


@pytest.mark.parametrize("number", range(len(_CONTENTS)))
def test_a_file_that_changed_is_found(command: Command, record: Path, number: int) -> None:
    path = command.home / f"config {number}.toml"
    path.write_bytes(_CONTENTS[number] + b" ")
    assert command("status", "--quiet") == PYTHON
    path.write_bytes(_CONTENTS[number])
    assert command("status", "--quiet") == YES
    path.unlink()
    assert command("status", "--quiet") == PYTHON


def _others_group(path: Path) -> None:
    path.chmod(0o775)
    os.chown(path, 0, 65534)


def _given_away(path: Path) -> None:
    os.chown(path, 65534, 0)


def _linked(path: Path) -> None:
    path.rename(path.with_name("x"))
    path.symlink_to("x")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _edited(edit: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(edit(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.chmod(0o666),
        lambda path: path.chmod(0o620),
        _given_away,
        lambda path: path.parent.chmod(0o777),
        lambda path: _given_away(path.parent),
        lambda path: _others_group(path.parent),
        _linked,
        lambda path: (path.unlink(), path.mkdir()),
        _fifo,
        lambda path: path.unlink(),
        _edited(lambda content: content + b"\0{"),
        _edited(lambda content: content + b"}"),
        _edited(lambda content: content + b" " * 65536),
        _edited(lambda content: b"[" * 60000),
        _edited(lambda content: content.replace(b'"boot"', b'"b\\u006fot"')),
        _edited(lambda content: content.replace(b"{", b'{"tool": "0",', 1)),
        _edited(lambda content: b"\xef\xbb\xbf" + content),
    ],
    ids=[
        "all may write", "a group may write", "another owner", "all may replace it",
        "another's directory", "a group may replace it", "a link", "a directory", "a pipe", "gone",
        "a zero and more", "more", "too large", "too deep", "an escape", "a key twice", "a mark",
    ],
)  # fmt: skip
def test_a_record_that_is_not_as_usual_is_left_to_python(
    command: Command, record: Path, change: Callable[[Path], object]
) -> None:
    change(record)
    assert command("status", "--quiet") == PYTHON


def test_a_sticky_directory_is_as_good_as_for_python(command: Command, record: Path) -> None:
    record.parent.chmod(0o1777)
    assert readiness_probe.unready(record) == ""
    assert command("status", "--quiet") == YES


_VALUES: Final = some.recursive(
    some.one_of(
        some.none(), some.booleans(), some.integers(-5, 1 << 70), some.floats(), some.text(),
        some.sampled_from(["absent", "null", __version__, procfs.boot_id(), "\\", "/proc", 2]),
    ),
    lambda inner: some.one_of(
        some.lists(inner, max_size=3), some.dictionaries(some.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)  # fmt: skip
_KEYS: Final = some.one_of(
    some.sampled_from([
        "format", "tool", "boot", "pid", "started", "plugin", "driver", "configuration", "handlers",
    ]),
    some.text(max_size=5),
)  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[Command]:
    path = Path("/run") / f"nvidia-toolkit-test-{os.getpid()}-shared"
    path.mkdir(mode=0o755)
    yield Command(path, programs.program("launcher"))
    shutil.rmtree(path)


@settings(max_examples=150, deadline=None)
@given(
    facts=some.dictionaries(_KEYS, _VALUES, max_size=2),
    cut=some.tuples(some.integers(0, 2000), some.integers(0, 3), some.binary(max_size=3)),
    is_cut=some.booleans(),
)
def test_its_yes_is_that_of_python(
    shared: Command, facts: dict[str, Any], cut: tuple[int, int, bytes], *, is_cut: bool
) -> None:
    record = true_record(shared)
    changed(record, **facts)
    if is_cut:
        content, (at, left_out, added) = record.read_bytes(), cut
        record.write_bytes(content[:at] + added + content[at + left_out :])
    if shared("status", "--quiet") == YES:
        assert readiness_probe.unready(record) == ""


# --- liveness -----------------------------------------------------------------------------------


@pytest.fixture
def state(command: Command) -> Path:
    path = command.run_dir / "agent.json"
    now = time.monotonic()
    liveness.StateFile().publish(path, began=now, deadline=now + 60.25)
    return path


def test_an_agent_that_is_alive_needs_no_python(command: Command, state: Path) -> None:
    assert liveness.unhealthy(state) == ""
    assert command("status", "--live") == YES
    assert command("status", "--live", PID_FILE="/x/toolkit.pid", TOOLKIT_PID_FILE="") == PYTHON
    changed(state, deadline=None)
    assert command("status", "--live") == YES


@pytest.mark.parametrize(
    "facts",
    [
        {"deadline": 0.5}, {"deadline": -1}, {"deadline": 1e300}, {"failed_starts": 3},
        {"boot": "x"}, {"started": 1}, {"pid": 1 << 22}, {"format": 2}, {"more": 1},
        {"failed_starts": "0"},
    ],
    ids=str,
)  # fmt: skip
def test_an_agent_that_is_not_is_left_to_python(
    command: Command, state: Path, facts: dict[str, Any]
) -> None:
    changed(state, **facts)
    assert command("status", "--live") == PYTHON


@pytest.mark.parametrize("name", liveness.AgentState._fields)
def test_a_state_without_a_field_is_left_to_python(
    command: Command, state: Path, name: str
) -> None:
    content = json.loads(state.read_bytes())
    del content[name]
    state.write_text(json.dumps(content), encoding="utf-8")
    assert command("status", "--live") == PYTHON


def test_a_process_that_only_waits_to_be_reaped_is_not_the_agent(
    command: Command, state: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        fake_node.wait_for(lambda: procfs.start_time(process.pid) is None, "it does not end")
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii")
        changed(state, pid=process.pid, started=int(stat.rpartition(")")[2].split()[19]))
        assert command("status", "--live") == PYTHON


@settings(max_examples=150, deadline=None)
@given(
    facts=some.dictionaries(
        some.sampled_from([*liveness.AgentState._fields, "x"]), _VALUES, max_size=2
    )
)
def test_its_word_that_the_agent_lives_is_that_of_python(
    shared: Command, facts: dict[str, Any]
) -> None:
    path = shared.run_dir / "agent.json"
    now = time.monotonic()
    liveness.StateFile().publish(path, began=now, deadline=now + 60)
    changed(path, **facts)
    if shared("status", "--live") == YES:
        assert liveness.unhealthy(path) == ""


# --- all else -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        (), ("run",), ("status",), ("status", "--quiet", ""), ("status", "--quiet", "--debug"),
        ("--quiet", "status"), ("status", "--readiness-file=/x", "--quiet"), ("a b", "", "*"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_all_else_is_started_with_python(
    command: Command, record: Path, words: tuple[str, ...]
) -> None:
    done = command.run(*words)
    assert done.returncode == PYTHON
    assert done.stdout == "".join(
        f"{word}|" for word in ("-IB", f"{command.home}/script.py", *words)
    )


@pytest.mark.usefixtures("record", "state")
def test_settings_that_only_python_knows_are_left_to_it(command: Command) -> None:
    for words in (("status", "--quiet"), ("status", "--live")):
        assert command(*words) == YES
        assert command(*words, TOOLKIT_ENV_FILE="/x") == PYTHON
        assert command(*words, TOOLKIT_ENV_FILE="") == YES
        assert command(*words, TOOLKIT_PID_FILE=f"{command.run_dir}/other.pid") == PYTHON
        assert command(*words, TOOLKIT_PID_FILE=f"{command.run_dir}/../run/toolkit.pid") == PYTHON
        assert command(*words, TOOLKIT_PID_FILE="toolkit.pid") == PYTHON


@pytest.mark.usefixtures("record", "state")
def test_another_user_than_root_is_left_to_python(command: Command) -> None:
    command.prefix = ("setpriv", "--reuid=65534", "--clear-groups")
    assert command("status", "--live") == PYTHON


def test_it_knows_the_variables_of_the_settings(command: Command) -> None:
    texts = command.path.read_bytes().split(b"\0")
    for name, letter in (("env_file", "E"), ("readiness_file", "F"), ("pid_file", "I")):
        [row] = [row for row in SETTINGS if row.name == name]
        assert row.variables
        assert all(f"{letter}{variable}".encode() in texts for variable in row.variables)


@fake_node.needs_program("qemu-aarch64-static", package="qemu-user-static")
@pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine runs it itself")
def test_that_for_arm64_says_the_same(home: Path) -> None:
    try:
        program = (programs.built("x86_64", "aarch64") / "launcher-aarch64").read_bytes()
    except nodes.NodeError as error:
        pytest.skip(f"the compiler cannot be fetched: {error}")
    command = Command(home, program, ("qemu-aarch64-static",))
    record, state = true_record(command), command.run_dir / "agent.json"
    now = time.monotonic()
    liveness.StateFile().publish(state, began=now, deadline=now + 60)
    assert (command("status", "--quiet"), command("status", "--live")) == (YES, YES)
    changed(record, configuration={str(command.home / "config 5.toml"): "0" * 64})
    changed(state, started=1)
    assert (command("status", "--quiet"), command("status", "--live")) == (PYTHON, PYTHON)
