"""Kills of installs and reverts on a booted node, random and worst-case: it works in the end."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import artifacts, boot, containers, nodes, real
from tests.support.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]

KILLS: Final = int(os.environ.get("NVIDIA_TOOLKIT_TEST_KILLS", "200"))
PROGRAM: Final = str(Path(sys.executable).parent / "nvidia-toolkit")
CONFIG: Final = "/etc/containerd/config.toml"
RUNC: Final = (
    b'\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\n'
    b'runtime_type = "io.containerd.runc.v2"\n'
)
KATA: Final = RUNC.replace(b"runtimes.runc", b"runtimes.kata")
LONGEST: Final = 0.8
"""For how many seconds a run may go on before it is killed; a whole one takes about that long."""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with boot.booted("trixie", f"under {KILLS} kills") as booted:
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


@pytest.fixture
def slow(node: Node) -> Iterator[None]:
    """Let containerd take seconds to start, so that there is time for a kill."""
    unit = nodes.path(node, "/run/systemd/system/containerd.service.d/slow.conf")
    unit.parent.mkdir(parents=True, exist_ok=True)
    for counted in nodes.path(node, "/run/nvidia").rglob("restarts.json"):
        counted.unlink()
    unit.write_text("[Service]\nExecStartPre=/bin/sleep 3\n", encoding="ascii")
    nodes.run(node, ["systemctl", "daemon-reload"])
    yield
    unit.unlink()
    nodes.run(node, ["systemctl", "daemon-reload"])
    nodes.run(node, ["systemctl", "reset-failed", "containerd"], check=False)
    nodes.run(node, ["systemctl", "restart", "containerd"])


def killed_while_it_restarts(node: Node, *words: str) -> None:
    """Kill a run after the runtime ended for it; leave the unit as after a refused start."""
    before = nodes.main_pid(node, "containerd")
    with containers.start_daemonset(node, [PROGRAM, *words]) as process:
        pid = containers.inner(process)
        nodes.wait_for(
            node,
            lambda: nodes.main_pid(node, "containerd") != before or process.poll() is not None,
        )
        assert process.poll() is None, process.communicate(timeout=60)
        os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
    nodes.run(node, ["systemctl", "stop", "containerd"])
    nodes.run(node, ["systemctl", "reset-failed", "containerd"], check=False)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("then", ["run", "revert"])
@pytest.mark.parametrize("killed", ["run", "revert"])
def test_a_runtime_that_a_killed_run_left_down_is_started(
    node: Node, tmp_path: Path, killed: str, then: str
) -> None:
    """systemd may refuse a start (StartLimitBurst); a kill before the retry must not leave that."""
    source = artifacts.make(tmp_path / "artifacts")
    settings = ["--runtime=containerd", f"--toolkit-source-root={source}", "--restart-budget=1"]
    words = {"run": ["run", "--no-daemon", *settings], "revert": ["revert", *settings]}
    config = nodes.path(node, CONFIG)
    old = config.read_bytes()
    if killed == "revert":
        done = containers.daemonset(node, [PROGRAM, *words["run"], "--restart-budget=0"])
        assert done.returncode == 0, done.stderr
    killed_while_it_restarts(node, *words[killed])
    assert not nodes.is_active(node, "containerd")
    done = containers.daemonset(node, [PROGRAM, *words[then]])
    assert done.returncode == 0, done.stderr
    assert nodes.answers(node)
    assert (b"nvidia" in config.read_bytes()) == (then == "run")
    done = containers.daemonset(node, [PROGRAM, *words["revert"]])
    assert done.returncode == 0, done.stderr
    assert config.read_bytes() == old


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("then", ["run", "revert"])
def test_a_node_that_was_upgraded_after_a_kill_is_no_dead_end(
    node: Node, tmp_path: Path, then: str
) -> None:
    """Another edit, such as a Kubernetes upgrade makes, is no harm done by the killed run."""
    source = artifacts.make(tmp_path / "artifacts")
    settings = ["--runtime=containerd", f"--toolkit-source-root={source}", "--restart-budget=0"]
    words = {"run": ["run", "--no-daemon", *settings], "revert": ["revert", *settings]}
    config = nodes.path(node, CONFIG)
    old = config.read_bytes()
    config.write_bytes(old + RUNC + KATA)
    nodes.run(node, ["systemctl", "restart", "containerd"])
    killed_while_it_restarts(node, *words["run"])
    with_us = config.read_bytes()
    assert KATA in with_us != old + RUNC + KATA
    config.write_bytes(with_us.replace(KATA, b""))
    nodes.run(node, ["systemctl", "start", "containerd"])
    done = containers.daemonset(node, [PROGRAM, *words[then]])
    assert done.returncode == 0, done.stderr
    done = containers.daemonset(node, [PROGRAM, *words["revert"]])
    assert done.returncode == 0, done.stderr
    # Only our keys were taken out of a file that somebody edited: a header of ours may stay, empty.
    left = tomllib.loads(config.read_text(encoding="utf-8"))
    assert b"nvidia" not in config.read_bytes()
    assert left == tomllib.loads((old + RUNC).decode())
    config.write_bytes(old)


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
        assert containers.is_whole(node), f"a program is missing after {number} kills"
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
