"""200 kills at random moments of installs and reverts on a booted node: it works in the end."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import artifacts, containers, nodes, real
from tests.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]

KILLS: Final = int(os.environ.get("NVIDIA_TOOLKIT_TEST_KILLS", "200"))
PROGRAM: Final = str(Path(sys.executable).parent / "nvidia-toolkit")
CONFIG: Final = "/etc/containerd/config.toml"
TOOLKIT: Final = "/usr/local/nvidia/toolkit"
LONGEST: Final = 0.8
"""For how many seconds a run may go on before it is killed; a whole one takes about that long."""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    if reason := nodes.why_not():
        pytest.skip(reason)
    with nodes.boot("trixie") as booted:
        version = nodes.run(booted, ["containerd", "--version"]).stdout.split()[2]
        real.USED.add(f"containerd {version} under {KILLS} kills on a booted {booted.suite} node")
        yield booted


def killed_after(node: Node, seconds: float, *words: str) -> bool:
    """Run the program and kill it after so many seconds; tell whether it still ran."""
    with containers.start_daemonset(node, [PROGRAM, *words]) as process:
        pid = containers.inner(process)
        time.sleep(seconds)
        running = process.poll() is None
        if running:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                running = False
        process.communicate(timeout=60)
    return running


def complete(node: Node) -> bool:
    """Tell whether every program that the configuration names is there and can be run."""
    path = nodes.path(node, CONFIG)
    named = [line.split('"')[1] for line in path.read_text(encoding="utf-8").splitlines() if TOOLKIT in line]
    found = [nodes.run(node, ["test", "-x", binary], check=False).returncode == 0 for binary in named]
    loads = nodes.run(node, ["containerd", "config", "dump"], check=False).returncode == 0
    return loads and all(found)


def test_a_node_survives_kills_at_random_moments(node: Node, tmp_path: Path) -> None:
    if reason := containers.why_no_containers(node):
        pytest.skip(reason)
    containers.prepare_images(node)
    source = artifacts.make(tmp_path / "artifacts")
    settings = ["--runtime=containerd", f"--toolkit-source-root={source}", "--restart-budget=0"]
    config = nodes.path(node, CONFIG)
    old = config.read_bytes()
    done = containers.daemonset(node, [PROGRAM, "run", "--no-daemon", *settings])
    assert done.returncode == 0, done.stderr
    new = config.read_bytes()
    dice = random.Random(4)  # noqa: S311  # moments, not secrets
    counts: Counter[str] = Counter()
    while (number := counts["killed"]) < KILLS:
        words = ("revert",) if dice.random() < 0.5 else ("run", "--no-daemon")
        ended = killed_after(node, dice.uniform(0, LONGEST), *words, *settings)
        counts["killed" if ended else "ended before"] += 1
        assert config.read_bytes() in (old, new), f"torn after {number} kills"
        assert complete(node), f"a program is missing after {number} kills"
    done = containers.daemonset(node, [PROGRAM, "run", "--no-daemon", *settings])
    assert done.returncode == 0, done.stderr
    assert config.read_bytes() == new
    for handler in ("nvidia", "nvidia-cdi", ""):
        pod = containers.run_pod(node, handler=handler, argv=["echo", "alive"])
        assert (pod.exit_code, pod.output) == (0, "alive\n")
    done = containers.daemonset(node, [PROGRAM, "revert", *settings])
    assert done.returncode == 0, done.stderr
    assert config.read_bytes() == old
    assert not list(nodes.path(node, "/usr/local/nvidia").iterdir())
    assert containers.run_pod(node, handler="", argv=["true"]).exit_code == 0
    real.USED.add(f"kills on a booted node: {dict(counts)}, 0 torn")
