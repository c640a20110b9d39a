"""The cost of a start, counted: writes, signals, processes, queries, restarts, imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from tests.faults import calls
from tests.support import artifacts, fake_node
from tests.support.fake_node import Daemon, Node
from toolkit.agent import counters, sync
from toolkit.artifacts import manifest
from toolkit.deadline import Cancellation
from toolkit.node import processes, socket_peer
from toolkit.reconcile.context import Context
from toolkit.runtime.client import grpc

needs_strace = fake_node.needs_program("strace", package="strace")

_UNUSED: Final = (
    "click.", "gettext.", "platform.", "uuid.", "tomlkit.", "tomli.", "ssl.", "http.client.",
    "email.", "h2.", "subprocess.", "shutil.", "tempfile.", "tarfile.",
    "difflib.", "ctypes.", "prometheus_client.", "toolkit.agent.", "toolkit.cli.parser.",
    "toolkit.settings.env_file.", "runtimes.crio.", "runtimes.docker.",
    "runtimes.formats.json_editor.", "toolkit.kube.apiserver.", "toolkit.kube.daemonset.",
    "toolkit.diagnose.collect.", "toolkit.runtime.client.http.", "toolkit.redact.",
    "toolkit.reconcile.uninstall.", "toolkit.reconcile.describe.",
    "toolkit.runtime.smoke_test.",
)  # fmt: skip
# Of Python's own modules those that a start imports, itself or by hpack.
_LIBRARY: Final = (
    "base64", "bisect", "collections", "contextlib", "copy",
    "datetime", "encodings.ascii", "enum", "errno", "fcntl", "functools", "hashlib",
    "itertools", "json", "logging", "math", "operator", "os", "pathlib",
    "pwd", "re", "select", "shlex", "signal", "socket", "stat", "string", "struct",
    "threading", "time", "tomllib", "traceback", "types", "typing",
    "weakref",
)  # fmt: skip
_CALL: Final = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = fake_node.make_node(tmp_path / "node")
    (tmp_path / "cri.json").write_text(json.dumps({"config": str(node.config)}), encoding="utf-8")
    return node


@pytest.fixture
def running(node: Node, tmp_path: Path) -> Iterator[Daemon]:
    with fake_node.daemon(
        node.socket, home=tmp_path / "d", cri=str(tmp_path / "cri.json")
    ) as daemon:
        yield daemon


@pytest.fixture
def right(node: Node, running: Daemon) -> Node:
    """Return a node on which there is nothing to do."""
    fake_node.done("run", "--no-daemon", *node.options())
    return node


def test_an_install_restarts_the_runtime_once_and_a_change_once_more(
    node: Node, running: Daemon
) -> None:
    fake_node.done("run", "--no-daemon", *node.options())
    assert (running.signals(), running.starts()) == (["SIGHUP"], 2)
    fake_node.done("run", "--no-daemon", *node.options())
    assert (running.signals(), running.starts()) == (["SIGHUP"], 2)
    node.config.write_bytes(fake_node.KUBEADM)
    fake_node.done("run", "--no-daemon", *node.options())
    assert (running.signals(), running.starts()) == (["SIGHUP"] * 2, 3)


@needs_strace
def test_a_start_on_a_node_that_is_right_changes_nothing_and_starts_nothing(
    right: Node, tmp_path: Path
) -> None:
    log = tmp_path / "strace"
    names = ",".join([*calls.COUNTED, "execve", "clone", "clone3", "fork", "vfork"])
    prefix = ("strace", "-f", "-qq", "-y", "-o", str(log), "-e", f"trace={names}")
    before = fake_node.snapshot(right.root, right.pid_file)
    assert fake_node.cli("run", "--no-daemon", *right.options(), prefix=prefix).returncode == 0
    assert fake_node.snapshot(right.root, right.pid_file) == before
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
    call, find = grpc.unary, socket_peer.find

    def unary(path: Path, method: str, request: bytes, **more: Any) -> bytes:
        asked[method.rpartition("/")[2]] += 1
        return call(path, method, request, **more)

    def found(*given: Any, **more: Any) -> processes.RuntimeProcess:
        asked["who it is"] += 1
        return find(*given, **more)

    monkeypatch.setattr(grpc, "unary", unary)
    monkeypatch.setattr(socket_peer, "find", found)
    context = Context(settings=right.settings(), adapter=containerd, stop=Cancellation())
    first = sync.first(context)
    assert (first["outcome"], first["ready"]) == (counters.IN_SYNC, True)
    # What it says is asked for between two looks at who says it.
    assert asked == {"who it is": 2, "Status": 1, "Version": 1}
    asked.clear()
    later = sync.later(context, "check", first)
    assert (later["outcome"], later["ready"]) == (counters.IN_SYNC, True)
    assert asked == {"who it is": 2, "Status": 1, "Version": 1}


def test_a_start_on_a_node_that_is_right_loads_only_what_it_uses(right: Node) -> None:
    found = _loaded(["run", "--no-daemon", *right.options()])
    assert {name for name in found if f"{name}.".startswith(_UNUSED)} == set()
    # What these load in turn, and into how many modules each is split, differs between versions of
    # Python: so it is asked of this one. With it comes what Python loads at every start in this
    # environment.
    library = _python(f"import sys, {', '.join(_LIBRARY)}\nprint(*sys.modules)")
    rest = set(found).difference(library)
    assert {name for name in rest if name.partition(".")[0] in sys.stdlib_module_names} == set()
    # Modules of the program (a dozen are its packages, which hold a line of text), of hpack and of
    # hyperframe: the same with every Python.
    assert len(rest) < 124


def test_the_agent_loads_only_what_it_uses_while_it_waits() -> None:
    """A class that is generated, or the settings, cost every node a megabyte or two."""
    found = _python("import sys, toolkit.agent.daemon\nprint(*sys.modules)")
    unused = (
        "dataclasses",
        "inspect",
        "hashlib",
        "datetime",
        "toolkit.settings",
        "toolkit.reconcile",
        "runtimes",
    )
    # Some versions of Python load one of them for `logging`.
    library = _python("import sys, ctypes, json, logging, select, threading\nprint(*sys.modules)")
    assert {name for name in set(found).difference(library) if name.startswith(unused)} == set()


def _loaded(words: list[str], environment: Mapping[str, str] = fake_node.ENVIRONMENT) -> list[str]:
    """Run the program and return the modules that it has at its end."""
    script = (
        "import sys; from toolkit.cli import main\n"
        "try: main.main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*sys.modules)"
    )
    return _python(script, words, environment)


def _python(
    script: str,
    words: list[str] | None = None,
    environment: Mapping[str, str] = fake_node.ENVIRONMENT,
) -> list[str]:
    """Run a script with the Python of the tests and return the words that it prints."""
    argv = [sys.executable, "-c", script, *(words or ())]
    return subprocess.run(
        argv, env=environment, capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.parametrize("is_listed", [False, True])
def test_the_toolkit_s_files_are_hashed_once_where_they_are_installed_and_never_again(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch, *, is_listed: bool
) -> None:
    """Those of the source, to name a version; or the copies, if the source names their hashes."""
    if is_listed:
        artifacts.list_hashes(node.source)
    hashed: Counter[str] = Counter()
    digest = manifest.sha256

    def counted(fd: int) -> str:
        hashed[os.readlink(f"/proc/self/fd/{fd}").removeprefix(f"{node.source}/")] += 1
        return digest(fd)

    monkeypatch.setattr(manifest, "sha256", counted)
    context = Context(settings=node.settings(), adapter=containerd, stop=Cancellation())
    first = sync.first(context)
    assert (first["outcome"], first["ready"]) == (counters.CHANGED, True)
    assert set(hashed.values()) == {1}
    assert len(hashed) == len(fake_node.PROGRAMS) + len(fake_node.LIBRARIES)
    assert ("usr/bin/nvidia-ctk" in hashed) is not is_listed
    hashed.clear()
    assert sync.later(context, "check", first)["outcome"] == counters.IN_SYNC
    assert sync.first(context)["outcome"] == counters.IN_SYNC
    assert hashed == {}
