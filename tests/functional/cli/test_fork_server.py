"""A run that is forked off a server says, returns and does what an executed one does."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import fake_node, fork_server
from tests.support.fake_node import ENVIRONMENT, Node


def executed(*words: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toolkit", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (("--version",), {}),
        (("run", "--help"), {}),
        (("--nothing",), {}),
        (("plan", "-o", "json", "--runtime=nothing"), {}),
        (("detect",), {"RUNTIME": "nothing"}),
        (("completion", "bash"), {}),
        (("run", "--config=\udcff\u00e4"), {}),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode(),
)
def test_it_ends_and_says_the_same(words: tuple[str, ...], variables: dict[str, str]) -> None:
    environment = {**ENVIRONMENT, **variables}
    server = fork_server.server(ENVIRONMENT)
    forked = server.run(words, environment=environment, timeout=30)
    done = executed(*words, environment=environment)
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        done.returncode,
        done.stdout,
        done.stderr,
    )


def test_it_leaves_the_same_node(tmp_path: Path) -> None:
    trees = []
    for name, run in (("forked", fake_node.cli), ("executed", executed)):
        node = fake_node.make_node(tmp_path / name / "node")
        fake_node.name_low_level(node)
        options = node.options(restart_mode="none")
        done = run("run", "--no-daemon", *options, environment=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        found = fake_node.content(node.install_dir)
        trees.append(
            sorted((re.sub("[0-9a-f]{16,}", "", path), mode) for path, (mode, _) in found.items())
        )
    assert trees[0] == trees[1]


def test_one_run_knows_nothing_of_another(node: Node) -> None:
    server = fork_server.server(ENVIRONMENT)
    wrong = {**ENVIRONMENT, "CONTAINERD_RUNTIME_CLASS": "no name"}
    first = server.run(["plan", *node.options()], environment=wrong, timeout=30)
    second = server.run(["plan", *node.options()], environment=ENVIRONMENT, timeout=30)
    assert (first.returncode, first.stdout) == (2, "")
    assert "no name" in first.stderr
    assert second.returncode == 0
    assert second.stderr == ""


def test_one_that_takes_too_long_is_killed(node: Node) -> None:
    slow = node.root / "containerd"
    fake_node.write_program(slow, "#!/bin/sh\nexec sleep 30\n")
    options = node.options(executable_path=str(slow), config_source="command")
    with pytest.raises(subprocess.TimeoutExpired):
        fork_server.server(ENVIRONMENT).run(
            ["plan", *options], environment=ENVIRONMENT, timeout=0.5
        )


def test_what_python_reads_at_its_start_needs_a_start() -> None:
    base = {"LC_ALL": "C.UTF-8", "PATH": "/bin"}
    assert fork_server.is_possible({**base, "PATH": "/sbin", "RUNTIME": "docker"}, base)
    assert not fork_server.is_possible({**base, "LC_ALL": "C"}, base)
    assert not fork_server.is_possible({**base, "PYTHONUTF8": "0"}, base)
