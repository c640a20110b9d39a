"""CRI of real daemons: containerd 1.6, 1.7 and 2.1 on booted Debian nodes; dockerd has none."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import boot, containers, fake_node, nodes, real
from tests.support.nodes import Node
from toolkit.runtime.client import cri
from toolkit.runtime.client.cri import CriFailed

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

CONFIG = "/etc/containerd/config.toml"
# Two handlers that are runc, so that the second can run on any machine.
HANDLERS = """
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other.options]
      BinaryName = "/usr/sbin/runc"
"""


@pytest.fixture(scope="module", params=nodes.SUITES)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with boot.booted(request.param, "over CRI") as booted:
        configure(booted, HANDLERS)
        yield booted


def socket_of(node: Node, unit: str = "containerd") -> Path:
    return nodes.path(node, nodes.SOCKETS[unit])


def configure(node: Node, text: str) -> None:
    nodes.path(node, CONFIG).write_text(text, encoding="utf-8")
    # Tests restart more often than systemd finds healthy.
    nodes.run(node, ["systemctl", "reset-failed", "containerd"])
    nodes.run(node, ["systemctl", "restart", "containerd"])
    nodes.wait_for(node, lambda: is_initialized(node))


def is_initialized(node: Node) -> bool:
    try:
        cri.version(socket_of(node), timeout=10)
    except CriFailed as error:
        return error.code == "UNIMPLEMENTED"
    return True


def test_version(node: Node) -> None:
    wanted = nodes.run(node, ["containerd", "--version"]).stdout.split()[2].removeprefix("v")
    found = cri.version(socket_of(node), timeout=10)
    assert found.removeprefix("v").split("~")[0] == wanted.split("~")[0]


def test_status(node: Node) -> None:
    found = cri.status(socket_of(node), timeout=10)
    assert found.runtime_ready
    # No CNI plugin was set up.
    assert not found.network_ready
    (reason,) = found.reasons
    assert reason.startswith("NetworkReady is false: NetworkPluginNotReady: ")
    assert found.handlers == ("other", "runc")
    assert found.config is not None
    assert found.config["containerd"]["defaultRuntimeName"] == "runc"
    options = found.config["containerd"]["runtimes"]["other"]["options"]
    assert options["BinaryName"] == "/usr/sbin/runc"


@pytest.mark.parametrize("handler", ["", "other"])
def test_pod(node: Node, handler: str) -> None:
    if reason := containers.why_no_containers(node):
        pytest.skip(reason)
    containers.prepare_images(node)
    pod = containers.start_pod(node, handler=handler, argv=["sleep", "600"])
    try:
        (sandbox,) = cri.sandboxes(socket_of(node), timeout=10)
        assert (sandbox.id, sandbox.handler, sandbox.ready) == (pod.sandbox, handler, True)
        assert sandbox.name.startswith("test-")
        assert sandbox.namespace == "default"
        assert cri.containers(socket_of(node), timeout=10) == (
            cri.Container(id=pod.container, name="test", sandbox=pod.sandbox),
        )
        info = cri.sandbox_info(socket_of(node), pod.sandbox, timeout=10)
        assert info["runtimeType"] == "io.containerd.runc.v2"
        # containerd 2 says it in the list of sandboxes only.
        assert info.get("runtimeHandler", handler) == handler
        if handler == "other":
            assert info["runtimeOptions"] == {"binary_name": "/usr/sbin/runc"}
        cri.call(socket_of(node), "StopPodSandbox", containers.encode({1: pod.sandbox}), timeout=30)
        (sandbox,) = cri.sandboxes(socket_of(node), timeout=10)
        assert not sandbox.ready
    finally:
        containers.stop_pod(node, pod)
    assert cri.sandboxes(socket_of(node), timeout=10) == ()
    assert cri.containers(socket_of(node), timeout=10) == ()


def test_unknown_sandbox(node: Node) -> None:
    with pytest.raises(CriFailed) as caught:
        cri.sandbox_info(socket_of(node), "nothing", timeout=10)
    assert caught.value.code == "NOT_FOUND"


def test_unknown_method(node: Node) -> None:
    with pytest.raises(CriFailed) as caught:
        cri.call(socket_of(node), "Nonsense", b"", timeout=10)
    assert caught.value.code == "UNIMPLEMENTED"
    assert "unknown method Nonsense" in caught.value.detail


def test_request_that_is_no_message(node: Node) -> None:
    with pytest.raises(CriFailed, match=r"^Version on .* failed: INTERNAL: "):
        cri.call(socket_of(node), "Version", b"\xff", timeout=10)


def test_disabled_plugin(node: Node) -> None:
    configure(node, 'disabled_plugins = ["cri"]\n')
    try:
        with pytest.raises(CriFailed) as caught:
            cri.status(socket_of(node), timeout=10)
    finally:
        configure(node, HANDLERS)
    assert caught.value.code == "UNIMPLEMENTED"
    assert caught.value.detail == "unknown service runtime.v1.RuntimeService"
    assert "disabled_plugins" in caught.value.hint


def is_stopped(pid: int) -> bool:
    """Tell whether every thread stands still: on a busy machine one may answer yet."""
    texts = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat"))
    return all(text.rpartition(")")[2].split()[0] == "T" for text in texts)


@pytest.mark.timing
def test_stopped_daemon_does_not_hang(node: Node) -> None:
    pid = nodes.machine_pid(node, nodes.main_pid(node, "containerd"))
    os.kill(pid, signal.SIGSTOP)
    fake_node.wait_for(lambda: is_stopped(pid), "containerd does not stop")
    begun = time.monotonic()
    try:
        with pytest.raises(CriFailed, match=r" failed: no answer within 0\.5 s$"):
            cri.status(socket_of(node), timeout=0.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert time.monotonic() - begun < 5
    assert cri.status(socket_of(node), timeout=10).runtime_ready


def test_restart_is_waited_through_without_strange_errors(node: Node) -> None:
    """Ask all the time while containerd restarts: every failure is one of those that are known."""
    nodes.run(node, ["systemctl", "reset-failed", "containerd"])
    nodes.run(node, ["systemctl", "restart", "--no-block", "containerd"])
    told = set()
    until = time.monotonic() + 3
    while time.monotonic() < until:
        try:
            cri.version(socket_of(node), timeout=5)
        except CriFailed as error:
            told.add(str(error).split(" failed: ", 1)[1])
    assert told <= {
        "Connection refused",
        "No such file or directory",
        "UNKNOWN: server is not initialized yet",
        "UNIMPLEMENTED: unknown service runtime.v1.RuntimeService",
        "the server closed the connection before it answered",
    }
    nodes.wait_for(node, lambda: is_initialized(node))


@pytest.mark.parametrize("suite", nodes.SUITES)
def test_dockerd_speaks_no_cri(suite: str) -> None:
    with boot.booted(suite, units=("containerd", "docker")) as booted:
        version = nodes.run(booted, ["dockerd", "--version"]).stdout.split()[2].rstrip(",")
        real.USED.add(f"dockerd {version}, asked over CRI on a booted {suite} node")
        with pytest.raises(CriFailed) as caught:
            cri.version(socket_of(booted, "docker"), timeout=10)
    assert str(caught.value).endswith(" failed: the server speaks HTTP/1, not gRPC")
