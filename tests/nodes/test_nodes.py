"""The nodes that other tests stand on are real ones, fresh each time, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.support import containers, nodes
from tests.support.nodes import Node

pytest_plugins = ["tests.support.node_fixtures"]
pytestmark = pytest.mark.node

_VERSIONS = {"bookworm": "1.6.", "trixie": "1.7.", "forky": "2."}
_HOLDER = """
import os, signal, sys, time
from tests.support import nodes
with nodes.boot("trixie") as node:
    print(node.pid, flush=True)
    time.sleep(60)
"""


def _left_behind(owner: int) -> list[str]:
    name = f"node-{owner}-*"
    groups = [str(each) for each in Path("/sys/fs/cgroup").glob(f"**/{name}")]
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [
        *groups,
        *map(str, Path(tempfile.gettempdir()).glob(name)),
        *(line for line in mounts if f"/node-{owner}-" in line),
    ]


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


def test_node_is_a_booted_debian(node: Node) -> None:
    version = nodes.run(node, ("containerd", "--version")).stdout.split()[2].lstrip("v")
    if node.suite != "forky":
        assert version.startswith(_VERSIONS[node.suite])
    assert (node.root / "proc/1/comm").read_text(encoding="utf-8") == "systemd\n"
    assert nodes.answers(node)
    assert nodes.is_active(node, "containerd")
    assert nodes.run(node, ("hostname",)).stdout == f"{node.suite}\n"
    failed = nodes.run(node, ("systemctl", "--failed", "--no-legend", "--plain")).stdout
    assert failed == ""


def test_mount_namespace_of_the_node_has_the_node_as_its_root(node: Node) -> None:
    entered = subprocess.run(
        ("nsenter", f"--target={node.pid}", "--mount", "cat", "/etc/hostname"),
        capture_output=True, text=True, check=True, timeout=10,
    )  # fmt: skip
    assert entered.stdout == f"{node.suite}\n"


@pytest.mark.parametrize("suite", ["trixie"])
def test_what_a_test_writes_stays_in_its_node(node: Node, suite: str) -> None:
    nodes.path(node, "/etc/containerd/config.toml").write_text("spoilt", encoding="utf-8")
    kept = nodes.image(suite) / "etc/containerd/config.toml"
    assert kept.read_text(encoding="utf-8") != "spoilt"
    with nodes.boot(suite) as other:
        fresh = nodes.path(other, "/etc/containerd/config.toml")
        assert fresh.read_bytes() == kept.read_bytes()


def test_hangup_ends_containerd_and_systemd_brings_it_back(pod_node: Node) -> None:
    node = pod_node
    pod = containers.start_pod(node, handler="", argv=["sleep", "600"])
    before = nodes.main_pid(node, "containerd")
    os.kill(nodes.machine_pid(node, before), signal.SIGHUP)
    nodes.wait_for(node, lambda: not nodes.answers(node))
    nodes.wait_for(node, lambda: nodes.answers(node) and nodes.is_active(node, "containerd"))
    assert nodes.main_pid(node, "containerd") not in {0, before}
    nodes.wait_for(node, lambda: containers.is_running(node, pod))
    containers.stop_pod(node, pod)


def test_pod_runs_through_the_handler_that_was_asked_for(pod_node: Node) -> None:
    argv = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    for handler in ("", "runc"):
        done = containers.run_pod(pod_node, handler=handler, argv=argv)
        assert done.exit_code == 3
        assert sorted(done.output.splitlines()) == ["err", "out"]
    with pytest.raises(nodes.NodeError, match=r'no runtime for "other" is configured'):
        containers.run_pod(pod_node, handler="other", argv=["true"])


def test_container_runs_without_cri(pod_node: Node) -> None:
    done = containers.ctr_run(pod_node, ["sh", "-c", "echo out; exit 3"])
    assert (done.returncode, done.stdout) == (3, "out\n")
    done = containers.ctr_run(pod_node, ["true"], runc_binary="/nowhere/runc")
    assert "/nowhere/runc" in done.stderr


def test_daemonset_sees_the_node(node: Node) -> None:
    def sh(script: str, *, host_pid: bool = True) -> str:
        return containers.daemonset(node, ["sh", "-c", script], host_pid=host_pid).stdout

    assert sh("cat /proc/1/comm") == "systemd\n"
    assert sh("cat /proc/1/comm", host_pid=False) == "sh\n"
    assert sh("cat /host/etc/hostname") == f"{node.suite}\n"
    assert sh("touch /host/etc/new || echo refused") == "refused\n"
    assert sh("pwd") == f"{containers.CHECKOUT}\n"
    assert sh("echo ours > /etc/containerd/new; cat /host/etc/containerd/new") == "ours\n"
    assert nodes.path(node, "/etc/containerd/new").read_text(encoding="utf-8") == "ours\n"
    assert not Path("/etc/containerd/new").exists()
    assert sh("nsenter --target 1 --mount systemctl is-active containerd") == "active\n"


@pytest.mark.parametrize("suite", ["trixie"])
def test_daemonset_sees_what_the_node_mounts_later(node: Node) -> None:
    started = containers.start_daemonset(
        node, ["sh", "-c", "until mountpoint -q /host/srv; do sleep 0.05; done; echo seen"]
    )
    containers.inner(started)
    nodes.run(node, ("mount", "-t", "tmpfs", "later", "/srv"))
    out, _ = started.communicate(timeout=10)
    assert out == "seen\n"


@pytest.mark.parametrize("suite", ["trixie"])
def test_daemonset_runs_the_checkout_and_leaves_it_alone(node: Node, tmp_path: Path) -> None:
    script = "import pathlib, sys, toolkit; pathlib.Path('new').touch(); print(toolkit.__file__)"
    if containers.CHECKOUT.is_relative_to(tempfile.gettempdir()):
        # The tests' own directory is shared.
        script = script.replace("pathlib.Path('new').touch()", "0")
    done = containers.daemonset(node, [sys.executable, "-c", script])
    assert (done.stdout, done.stderr) == (f"{containers.CHECKOUT}/toolkit/__init__.py\n", "")
    assert not (containers.CHECKOUT / "new").exists()
    shared = tmp_path / "shared"
    containers.daemonset(node, ["sh", "-c", 'echo "$WORD" > "$PLACE"'],
                         env={"WORD": "kept", "PLACE": str(shared)})  # fmt: skip
    assert shared.read_text(encoding="utf-8") == "kept\n"


@pytest.mark.parametrize("suite", ["trixie"])
@pytest.mark.parametrize("host_pid", [True, False])
def test_daemonset_gets_its_signals(node: Node, *, host_pid: bool) -> None:
    script = "trap 'echo ended; exit 3' TERM; echo up; while :; do sleep 0.05; done"
    with containers.start_daemonset(node, ["sh", "-c", script], host_pid=host_pid) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.communicate(timeout=10)[0] == "ended\n"
        assert process.returncode == 3
    with containers.start_daemonset(node, ["sleep", "60"], host_pid=host_pid) as process:
        os.kill(containers.inner(process), signal.SIGKILL)
        assert process.wait(timeout=10) == -signal.SIGKILL


@pytest.mark.parametrize("suite", ["trixie"])
def test_docker_can_be_asked_for(node_machine: None, suite: str) -> None:
    with nodes.boot(suite, units=("containerd", "docker")) as node:
        assert nodes.is_active(node, "docker")
        assert (
            nodes.run(node, ("docker", "info", "--format", "{{.DefaultRuntime}}")).stdout
            == "runc\n"
        )


def test_failed_test_leaves_nothing_behind(node_machine: None) -> None:
    def fail() -> None:
        with nodes.boot("trixie") as node:
            pids.append(node.pid)
            raise KeyboardInterrupt

    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert _gone(pids[0])
    assert _left_behind(os.getpid()) == []


def test_killed_tests_leave_no_node_running(node_machine: None) -> None:
    with subprocess.Popen(
        (sys.executable, "-c", _HOLDER), cwd=containers.CHECKOUT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        node = int(holder.stdout.readline())
        holder.kill()
    assert _gone(node)
    # The next node tidies up what the killed process could not.
    with nodes.boot("trixie"):
        assert _left_behind(holder.pid) == []


def test_machine_that_cannot_boot_nodes_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "nodes need" in (nodes.why_not() or "")
