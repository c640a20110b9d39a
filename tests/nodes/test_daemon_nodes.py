"""The process that stays, on booted nodes with real containerds under systemd."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support import binaries, boot, containers, nodes, pods, real
from tests.support.nodes import Node
from tests.support.pods import Pod

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

PROGRAM: Final = str(Path(sys.executable).parent / "nvidia-toolkit")
CONFIG: Final = "/etc/containerd/config.toml"
READY: Final = "/run/nvidia/toolkit/ready.json"
STOPS: Final = 100
REPAIRED: Final = 2
STARTED: Final = 1
TRIES: Final = 3
"""Of the seconds above the best of some tries is meant, on a machine that does nothing else."""
USUAL: Final = 0.2
"""Seconds that `--version` takes on such a machine, with the making of its container."""
LONGEST: Final = 0.9
"""For how many seconds a run may go on before it is stopped; a whole one takes about that long."""


@pytest.fixture(scope="module", params=nodes.SUITES)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with boot.booted(request.param, "watched by the daemon") as booted:
        yield booted


@pytest.fixture(scope="module")
def trixie() -> Iterator[Node]:
    with boot.booted("trixie") as booted:
        yield booted


@pytest.fixture(autouse=True)
def _budget_of_its_own(request: pytest.FixtureRequest) -> None:
    """Let no test pay for the restarts of one that failed."""
    forget_restarts(
        request.getfixturevalue("trixie" if "trixie" in request.fixturenames else "node")
    )


@contextmanager
def staying(node: Node, source: Path, *options: str, **environment: str) -> Iterator[Pod]:
    """Run the program as a DaemonSet's pod would, until it stays."""
    argv = [PROGRAM, "--runtime=containerd", f"--toolkit-source-root={source}", *options]
    with containers.start_daemonset(node, argv, env=environment) as process:
        pod = Pod(process)
        listener = threading.Thread(target=pod.listen, daemon=True)
        listener.start()
        try:
            pod.says("set up; watching", timeout=60)
            yield pod
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(60)
            listener.join(5)


def command(node: Node, source: Path, *words: str) -> str:
    argv = [PROGRAM, *words, "--runtime=containerd", f"--toolkit-source-root={source}"]
    done = containers.daemonset(node, argv)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def is_ready(node: Node, source: Path) -> bool:
    argv = [
        PROGRAM,
        "status",
        "--quiet",
        "--runtime=containerd",
        f"--toolkit-source-root={source}",
    ]
    return containers.daemonset(node, argv).returncode == 0


def overwrite(node: Node, data: bytes) -> None:
    """Write the config as another tool of the node does: aside, then renamed."""
    path = nodes.path(node, CONFIG)
    aside = path.with_name("aside")
    aside.write_bytes(data)
    aside.rename(path)


def slowness(node: Node) -> float:
    """Return how many times slower than an idle machine this one is at the moment."""
    took = []
    for _ in range(TRIES):
        began = time.monotonic()
        assert containers.daemonset(node, [PROGRAM, "--version"]).returncode == 0
        took.append(time.monotonic() - began)
    return max(1.0, min(took) / USUAL)


def restarts(node: Node) -> int:
    shown = nodes.run(
        node,
        ["journalctl", "--unit=containerd", "--output=cat", "--grep=^Started", "--quiet"],
        check=False,
    )
    return len(shown.stdout.splitlines())


def forget_restarts(node: Node) -> None:
    nodes.run(node, ["rm", "-f", "/run/nvidia/toolkit/restarts.json"])
    nodes.run(node, ["systemctl", "reset-failed", "containerd"], check=False)


def is_at_rest(pod: Pod) -> bool:
    time.sleep(0.5)
    state = pod.state()
    is_refused = "--restart-budget" in state["message"] or state["code"] in (6, 7)
    # What it says while its first round goes on is from before the fight.
    return sum(state["counts"]["outcomes"].values()) > 0 and (state["ready"] or is_refused)


def traces(node: Node) -> Mapping[str, tuple[int, int]]:
    """Return inode and time of everything that a start could write to."""
    found = {}
    for top in ("/etc/containerd", "/usr/local/nvidia", "/run/nvidia"):
        for path in (nodes.path(node, top), *nodes.path(node, top).rglob("*")):
            seen = path.lstat()
            found[str(path)] = (seen.st_ino, seen.st_mtime_ns)
    # Each start takes the lock, which names who holds it. While it runs, the agent's own state is a
    # file in that directory, which is in memory.
    own = ("/run/nvidia/toolkit", "/run/nvidia/toolkit/toolkit.pid")
    return {path: trace for path, trace in found.items() if not path.endswith(own)}


@pytest.mark.timing
def test_an_overwritten_config_is_repaired_and_ready_again(node: Node, source: Path) -> None:
    old = nodes.path(node, CONFIG).read_bytes()
    with staying(node, source, "--metrics-address=:9100") as pod:
        good = nodes.path(node, CONFIG).read_bytes()
        assert good != old
        pod.settled(rounds=1)
        inner = containers.inner(pod.process)
        before, started = pods.metrics(9100, pid=inner), restarts(node)
        took: list[float] = []
        most = REPAIRED * slowness(node)
        while not took or (len(took) < TRIES and took[-1] >= most):
            forget_restarts(node)
            pid = nodes.main_pid(node, "containerd")
            overwrite(node, old)
            began = time.monotonic()
            pods.until(
                lambda: nodes.path(node, CONFIG).read_bytes() == good, "the config is not repaired"
            )
            pods.until(lambda: nodes.path(node, READY).exists(), "it does not become ready again")
            took.append(time.monotonic() - began)
            assert nodes.main_pid(node, "containerd") != pid
            # One that was repaired is looked at once more.
            pod.settled(rounds=1 + 2 * len(took))
        after = pods.metrics(9100, pid=inner)
        assert restarts(node) - started == len(took)
        assert is_ready(node, source)
        assert pod.end() == 0
    real.USED.add(f"drift on a booted {node.suite} node: ready again after {min(took):.2f} s")
    assert min(took) < most
    assert after["nvidia_toolkit_repairs_total"] == len(took)
    assert after["nvidia_toolkit_restarts_total"] - before["nvidia_toolkit_restarts_total"] == len(
        took
    )
    assert after["nvidia_toolkit_in_sync"] == after["nvidia_toolkit_ready"] == 1
    forget_restarts(node)
    command(node, source, "revert")
    assert nodes.path(node, CONFIG).read_bytes() == old
    forget_restarts(node)


def test_a_tool_that_overwrites_fifty_times_cannot_take_the_node_down(
    node: Node, source: Path
) -> None:
    old = nodes.path(node, CONFIG).read_bytes()
    with staying(node, source) as pod:
        started = restarts(node)
        for _ in range(50):
            overwrite(node, old)
            time.sleep(0.1)
        # Whatever it has done: one more is refused, or nothing is left to do, or what was
        # overwritten before the runtime read it was taken back, and the next try waits for longer
        # than anybody does here.
        pod.until(lambda: is_at_rest(pod), "it comes to no end", timeout=60)
        assert nodes.is_active(node, "containerd")
        assert nodes.answers(node)
        made = restarts(node) - started
        # The first of three was that of the set-up; a rollback may cost one more.
        assert 1 <= made <= 3
        real.USED.add(f"50 overwrites on a booted {node.suite} node: {made} restarts")
        # The window of the budget is over: what is still wrong is put right.
        forget_restarts(node)
        pod.process.send_signal(signal.SIGHUP)
        pods.until(
            lambda: nodes.path(node, CONFIG).read_bytes() != old, "the config is not repaired"
        )
        pods.until(lambda: is_ready(node, source), "it does not become ready again")
        assert pod.end() == 0
    forget_restarts(node)
    command(node, source, "revert")
    assert nodes.path(node, CONFIG).read_bytes() == old
    forget_restarts(node)


@pytest.mark.timing
def test_ten_starts_on_a_node_that_is_right_write_nothing_and_restart_nothing(
    node: Node, source: Path
) -> None:
    with staying(node, source) as pod:
        pod.end()
    before, pid = traces(node), nodes.main_pid(node, "containerd")
    took, most = [], STARTED * slowness(node)
    for _ in range(10):
        began = time.monotonic()
        with staying(node, source) as pod:
            took.append(time.monotonic() - began)
            assert pod.state()["ready"]
            pod.end()
    assert traces(node) == before
    assert nodes.main_pid(node, "containerd") == pid
    real.USED.add(
        f"ten starts on a booted {node.suite} node: ready after {min(took):.2f} to"
        f" {max(took):.2f} s"
    )
    assert min(took) < most
    forget_restarts(node)
    command(node, source, "revert")
    forget_restarts(node)


def test_stopping_at_a_hundred_random_moments_leaves_no_half(trixie: Node, source: Path) -> None:
    config = nodes.path(trixie, CONFIG)
    old = config.read_bytes()
    settings = ["--runtime=containerd", f"--toolkit-source-root={source}", "--restart-budget=0"]
    command(trixie, source, "run", "--no-daemon")
    new = config.read_bytes()
    dice = random.Random(5)  # noqa: S311  # moments, not secrets
    codes: Counter[int] = Counter()
    for number in range(STOPS):
        if dice.random() < 0.5:
            nodes.run(trixie, ["systemctl", "reset-failed", "containerd"], check=False)
            containers.daemonset(trixie, [PROGRAM, "revert", *settings])
            assert config.read_bytes() == old
        with containers.start_daemonset(trixie, [PROGRAM, "run", *settings]) as process:
            containers.inner(process)
            time.sleep(dice.uniform(0, LONGEST))
            process.terminate()
            _, err = process.communicate(timeout=60)
        codes[process.returncode] += 1
        assert process.returncode in (0, 6, 143, -signal.SIGTERM), err
        assert config.read_bytes() in (old, new), f"a half after {number} stops"
        assert containers.is_whole(trixie), f"a program is missing after {number} stops"
    nodes.run(trixie, ["systemctl", "reset-failed", "containerd"], check=False)
    command(trixie, source, "run", "--no-daemon", "--restart-budget=0")
    pid = nodes.main_pid(trixie, "containerd")
    assert "nothing to do" in command(trixie, source, "run", "--no-daemon", "--restart-budget=0")
    assert nodes.main_pid(trixie, "containerd") == pid
    command(trixie, source, "revert", "--restart-budget=0")
    assert config.read_bytes() == old
    real.USED.add(
        f"stops at random moments on a booted node, by exit code: {dict(codes)}, 0 halves"
    )


def test_a_newer_runtime_under_us_is_planned_for_anew(trixie: Node, source: Path) -> None:
    newer = binaries.find("2.3")
    program = nodes.path(trixie, "/usr/bin/containerd")
    kept = program.with_name("containerd.kept")
    forget_restarts(trixie)
    with staying(trixie, source) as pod:
        pod.settled(rounds=1)
        try:
            program.rename(kept)
            shutil.copy(newer.path, program)
            nodes.run(trixie, ["systemctl", "restart", "containerd"])
            pod.says("the runtime's process ended")
            pods.until(
                lambda: is_ready(trixie, source),
                "it does not become ready with the newer one",
                timeout=30,
            )
            state = pod.settled()
            assert state["ready"], state
            assert state["versions"]["runtime_version"].lstrip("v").startswith("2.3")
        finally:
            kept.rename(program)
            nodes.run(trixie, ["systemctl", "restart", "containerd"])
        pods.until(
            lambda: is_ready(trixie, source),
            "it does not become ready with the older one",
            timeout=30,
        )
        assert pod.end() == 0
    forget_restarts(trixie)
    command(trixie, source, "revert")
