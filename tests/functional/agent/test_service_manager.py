"""The agent and the service manager that started it: real processes and a real socket."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functional.agent.test_daemon import driver_module
from tests.support import fake_node
from tests.support.fake_node import KUBEADM, Daemon, Node, needs_root
from tests.support.pods import staying
from tests.support.service_manager import Manager


class Log(Manager):
    """A service manager, and all lines that it received."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.lines: list[str] = []

    def has(self, line: str, times: int = 1) -> bool:
        self.lines += [each for datagram in self.received() for each in datagram]
        return self.lines.count(line) >= times


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "notify")
    yield made
    made.close()


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, without that of its children."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@needs_root
def test_readiness_is_sent_when_the_record_is_there_and_not_before(
    node: Node, running: Daemon, manager: Log, tmp_path: Path
) -> None:
    module, record = tmp_path / "module", node.pid_file.with_name("ready.json")
    options = node.options(readiness_requires_driver="true", check_interval="3600")
    with staying(options, prefix=driver_module(module), NOTIFY_SOCKET=manager.address) as pod:
        why = "the NVIDIA driver is not loaded (--readiness-requires-driver)"
        pod.until(lambda: manager.has(f"STATUS=not ready: {why}"), "no status")
        assert manager.lines[0] == "STATUS=setting up this node"
        assert not record.exists()
        # What ends a reload would end the start.
        pod.process.send_signal(signal.SIGHUP)
        pod.says("SIGHUP: reloading the settings and syncing now")
        pod.settled(rounds=2)
        assert not manager.has("READY=1")
        assert "RELOADING=1" not in manager.lines
        module.mkdir()
        pod.until(lambda: manager.has("READY=1"), "it does not become ready", timeout=40)
        assert record.exists()
        assert manager.lines[-1].startswith("STATUS=ready: containerd"), manager.lines
        module.rmdir()
        pod.until(lambda: manager.has(f"STATUS=not ready: {why}", 2), "no status", timeout=40)
    assert running.signals() == ["SIGHUP"]
    assert manager.lines.count("READY=1") == 1


def test_a_reload_and_a_stop_are_announced_and_the_watchdog_is_served(
    node: Node, running: Daemon, manager: Log
) -> None:
    variables = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
    with staying(node.options(grace_period="50"), **variables) as pod:
        pod.until(lambda: manager.has("READY=1"), "it is not ready")
        pod.until(lambda: manager.has("WATCHDOG=1", 3), "no keep-alives")
        node.config.write_bytes(KUBEADM)
        pod.process.send_signal(signal.SIGHUP)
        pod.until(lambda: manager.has("READY=1", 2), "the reload does not end")
        assert node.config.read_bytes() != KUBEADM
        reload = manager.lines.index("RELOADING=1")
        assert manager.lines[reload + 1].startswith("MONOTONIC_USEC=")
        assert manager.lines[reload + 2] == "STATUS=reading the settings again"
        # The keep-alives end with the agent's health: a process that hangs sends none.
        pod.process.send_signal(signal.SIGSTOP)
        manager.has("")
        before = manager.lines.count("WATCHDOG=1")
        with pytest.raises(AssertionError):
            fake_node.wait_for(lambda: manager.has("WATCHDOG=1", before + 1), "none", timeout=1)
        pod.process.send_signal(signal.SIGCONT)
        assert pod.end() == 0
        assert manager.has("STOPPING=1")
    stop = manager.lines.index("STOPPING=1")
    assert manager.lines[stop + 1 :] == [
        "EXTEND_TIMEOUT_USEC=50000000",
        "STATUS=SIGTERM: stopping",
    ]


def test_a_stop_is_announced_although_the_service_manager_is_busy_when_it_begins(
    node: Node, running: Daemon, manager: Log
) -> None:
    options = node.options(on_exit="revert", grace_period="50")
    with staying(options, NOTIFY_SOCKET=manager.address) as pod:
        pod.until(lambda: manager.has("READY=1"), "it is not ready")
        assert running.process is not None
        running.process.send_signal(signal.SIGSTOP)  # so that the revert waits
        manager.crowd()
        pod.process.send_signal(signal.SIGTERM)
        pod.says("the service manager cannot be notified")
        before = cpu_seconds(pod.process.pid)
        assert not manager.has("STOPPING=1")
        pod.until(lambda: manager.has("STOPPING=1"), "it is not sent again", timeout=10)
        assert cpu_seconds(pod.process.pid) - before < 0.5  # it waits for the next attempt
        running.process.send_signal(signal.SIGCONT)
        assert pod.process.wait(30) == 0


def test_a_start_that_fails_leaves_its_error_as_the_status(node: Node, manager: Log) -> None:
    node.config.write_text("[[", encoding="utf-8")
    variables = {"NOTIFY_SOCKET": manager.address}
    done = fake_node.cli("run", *node.options(), environment=variables)
    assert done.returncode == 3
    manager.has("")
    assert manager.lines[0] == "STATUS=setting up this node"
    [last] = manager.lines[1:]
    assert last.startswith("STATUS=failed: ")
    assert last.removeprefix("STATUS=failed: ")[:60] in done.stderr
