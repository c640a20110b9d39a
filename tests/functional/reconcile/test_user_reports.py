"""Failures that kill nodes elsewhere, not here, with no other test (docs/compatibility.md)."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support import fake_node
from tests.support.fake_node import Daemon, Node


def test_p07_a_pods_sigterm_reaches_what_its_shell_starts(tmp_path: Path) -> None:
    """The GPU Operator starts `/bin/sh -c /bin/entrypoint.sh`; dash would keep the signal."""
    assembled = (fake_node.CHECKOUT / "deploy/image/assemble.py").read_text(encoding="utf-8")
    assert '"sh": "bash"' in assembled
    script = tmp_path / "entrypoint.sh"
    fake_node.write_program(script, "#!/bin/sh\nexec sleep 60\n")
    with fake_node.started(["/bin/bash", "-c", str(script)]) as pod:
        words = Path(f"/proc/{pod.pid}/cmdline")
        fake_node.wait_for(lambda: words.read_bytes() == b"sleep\x0060\x00", "it stays the parent")
        assert fake_node.ended(pod, signal.SIGTERM)[0] == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
@pytest.mark.parametrize("late", [0.0, 0.2], ids=["at once", "a moment later"])
def test_p11_a_pod_that_its_own_restart_kills_finds_nothing_to_do(
    node: Node, running: Daemon, number: signal.Signals, late: float
) -> None:
    """kubelet kills pods whose sandbox a restarted containerd lost: the installer's own as well."""
    for is_first in (True, False, False, False):
        heard = len(running.signals())
        with fake_node.started(fake_node.program(*node.options())) as pod:
            # The first one restarts the runtime, if on a busy machine after a while.
            deadline = time.monotonic() + (30 if is_first else 3)
            while len(running.signals()) == heard and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(late)
            fake_node.ended(pod, number)
    assert running.signals() == ["SIGHUP"]
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()
    assert fake_node.done("-n", *node.options()).stderr == fake_node.NOTHING_TO_DO


def test_p11_restarts_are_counted_whatever_becomes_of_the_pods(node: Node, running: Daemon) -> None:
    """Something rewrites the file each time: after three restarts in ten minutes it reports."""
    original = node.config.read_bytes()
    for _ in range(3):
        fake_node.done("-n", *node.options())
        node.config.write_bytes(original)
    done = fake_node.cli("-n", *node.options())
    assert done.returncode == 4
    assert (
        "the runtime was restarted 3 times within 600 s, and --restart-budget is 3" in done.stderr
    )
    assert done.stderr.splitlines()[0].endswith(": nothing was changed")
    assert "hint: find out what changes so often" in done.stderr
    assert node.config.read_bytes() == original
    assert len(running.signals()) == 3
    fake_node.done("-n", *node.options(restart_budget="0"))
    assert len(running.signals()) == 4


def test_p18_a_readiness_record_is_true_only_for_what_it_names(node: Node, running: Daemon) -> None:
    """A file that outlives its pod must not make others start without what it announces."""
    ready = node.pid_file.with_name("ready.json")
    fake_node.done("-n", *node.options())
    assert fake_node.done("status", *node.options()).stdout.startswith("in sync\nready\n")
    record = json.loads(ready.read_bytes())
    for fact, other in {
        "boot": "another",
        "pid": 1,
        "started": 1,
        "tool": "0",
        "effective": "x",
    }.items():
        ready.write_text(json.dumps({**record, fact: other}), encoding="utf-8")
        shown = fake_node.done("status", *node.options()).stdout
        assert shown == f"in sync\nnot ready: {ready} is out of date: {fact} changed\n"
    fake_node.done("-n", *node.options())
    assert json.loads(ready.read_bytes()) == record
    assert running.signals() == ["SIGHUP"]


def test_p44_removing_what_is_gone_already_is_no_failure(node: Node, running: Daemon) -> None:
    """Elsewhere a second cleanup fails at an absent file, before it restarts the runtime."""
    fake_node.done("-n", *node.options())
    node.config.unlink()
    fake_node.done("revert", *node.options())
    fake_node.done("revert", *node.options())
    assert not node.install_dir.exists()
