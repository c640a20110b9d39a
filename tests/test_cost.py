"""What a start may cost, counted and not timed: writes, signals, processes, questions, restarts, imports."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes import containerd
from tests import workshop
from tests.faults import calls
from tests.workshop import Daemon, Node
from toolkit import owner, rounds, rpc, standing
from toolkit.stop import Stop
from toolkit.view import Task

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace counts the system calls")

_UNUSED: Final = (
    "tomlkit", "ssl", "http.client", "email", "tempfile", "tarfile", "difflib", "ctypes", "prometheus_client",
    "runtimes.crio", "runtimes.docker", "runtimes.jsondoc", "toolkit.apiserver", "toolkit.cluster",
    "toolkit.diagnosis", "toolkit.http", "toolkit.masking", "toolkit.removal", "toolkit.report",
    "toolkit.sandbox",
)  # fmt: skip
_CALL: Final = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = workshop.make_node(tmp_path / "node")
    (tmp_path / "cri.json").write_text(json.dumps({"config": str(node.config)}), encoding="utf-8")
    return node


@pytest.fixture
def running(node: Node, tmp_path: Path) -> Iterator[Daemon]:
    with workshop.daemon(node.socket, home=tmp_path / "d", cri=str(tmp_path / "cri.json")) as daemon:
        yield daemon


@pytest.fixture
def right(node: Node, running: Daemon) -> Node:
    """Return a node on which there is nothing to do."""
    workshop.done("run", "--no-daemon", *node.options())
    return node


def test_an_install_restarts_the_runtime_once_and_a_change_once_more(node: Node, running: Daemon) -> None:
    workshop.done("run", "--no-daemon", *node.options())
    assert (running.signals(), running.starts()) == (["SIGHUP"], 2)
    workshop.done("run", "--no-daemon", *node.options())
    assert (running.signals(), running.starts()) == (["SIGHUP"], 2)
    node.config.write_bytes(workshop.KUBEADM)
    workshop.done("run", "--no-daemon", *node.options())
    assert (running.signals(), running.starts()) == (["SIGHUP"] * 2, 3)


@needs_strace
def test_a_start_on_a_node_that_is_right_changes_nothing_and_starts_nothing(
    right: Node, tmp_path: Path
) -> None:
    log = tmp_path / "strace"
    names = ",".join([*calls.COUNTED, "execve", "clone", "clone3", "fork", "vfork"])
    prefix = ("strace", "-f", "-qq", "-y", "-o", str(log), "-e", f"trace={names}")
    before = workshop.snapshot(right.root, right.pid_file)
    assert workshop.cli("run", "--no-daemon", *right.options(), prefix=prefix).returncode == 0
    assert workshop.snapshot(right.root, right.pid_file) == before
    done = []
    for line in log.read_text(encoding="utf-8").splitlines():
        call = _CALL.match(line)
        if call is not None and int(call[3]) >= 0:
            done.append((call[1], call[2]))
    # The lock names who holds it.
    rest = [(name, about) for name, about in done if str(right.pid_file) not in about]
    assert Counter(name for name, _ in rest) == {"execve": 1, "write": 1}
    assert [about[:2] for name, about in rest if name == "write"] == ["2<"]


def test_a_start_on_a_node_that_is_right_asks_each_question_once(
    right: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()
    call, find = rpc.unary, owner.find

    def unary(path: Path, method: str, request: bytes, **more: Any) -> bytes:
        asked[method.rpartition("/")[2]] += 1
        return call(path, method, request, **more)

    def found(*given: Any, **more: Any) -> owner.Owner:
        asked["who it is"] += 1
        return find(*given, **more)

    monkeypatch.setattr(rpc, "unary", unary)
    monkeypatch.setattr(owner, "find", found)
    task = Task(settings=right.settings(), adapter=containerd, stop=Stop())
    first = rounds.first(task)
    assert (first["outcome"], first["ready"]) == (standing.IN_SYNC, True)
    # What it says is asked for between two looks at who says it.
    assert asked == {"who it is": 2, "Status": 1, "Version": 1}
    asked.clear()
    later = rounds.later(task, rounds.CHECK, first)
    assert (later["outcome"], later["ready"]) == (standing.IN_SYNC, True)
    assert asked == {"who it is": 2, "Status": 1, "Version": 1}


def test_a_start_on_a_node_that_is_right_loads_only_what_it_uses(right: Node) -> None:
    found = _loaded(["run", "--no-daemon", *right.options()])
    assert {name for name in found if name.startswith(_UNUSED)} == set()
    # 324 before what no start needs was put aside; a few are of the way Python was installed.
    assert len(found) < 265


def _loaded(words: list[str], environment: Mapping[str, str] = workshop.ENVIRONMENT) -> list[str]:
    """Run the program and return the modules that it has at its end."""
    script = (
        "import sys; from toolkit import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_toolkit_s_files_are_hashed_once_where_they_are_installed_and_never_again(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: Counter[str] = Counter()
    digest = hashlib.file_digest

    def counted(stream: Any, name: str) -> Any:
        hashed[Path(stream.name).name] += 1
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    task = Task(settings=node.settings(), adapter=containerd, stop=Stop())
    first = rounds.first(task)
    assert (first["outcome"], first["ready"]) == (standing.CHANGED, True)
    assert set(hashed.values()) == {1}
    assert "nvidia-ctk" in hashed
    hashed.clear()
    assert rounds.later(task, rounds.CHECK, first)["outcome"] == standing.IN_SYNC
    assert rounds.first(task)["outcome"] == standing.IN_SYNC
    assert hashed == {}
