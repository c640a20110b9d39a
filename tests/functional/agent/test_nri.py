"""The agent as an NRI plugin, beside a runtime that is played by tests/support/fake_nri.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import fake_node, fake_nri, fake_runtime, pods
from tests.support.fake_node import Daemon, Node
from tests.support.fake_nri import Process
from tests.support.pods import staying

KEY: Final = "nvidia.cdi.k8s.io"
MANAGEMENT: Final = "management.nvidia.com/gpu=all"
GPU: Final = "nvidia.com/gpu=0"
NO_PLUGIN: Final = "the NRI plugin is not registered with the runtime"
PEER: Final = 14.2 * 1024 * 1024
"""What the upstream installer's idle process takes of memory with its NRI plugin."""


def nri_socket(node: Node) -> Path:
    return node.root / "run/nri.sock"


def options(node: Node, **more: str | None) -> list[str]:
    """Return the options of the GPU Operator's container: no socket and no file of the runtime."""
    nri = {
        "enable_nri_plugin": "true",
        "nri_namespace": "gpu-operator",
        "nri_socket": str(nri_socket(node)),
    }
    files = {"config": None, "drop_in_config": None, "socket": None, "config_source": None}
    return node.options(**{**files, **nri, **more})


@pytest.fixture
def runtime(node: Node, tmp_path: Path) -> Iterator[Process]:
    with fake_nri.process(nri_socket(node), tmp_path / "nri") as process:
        fake_node.wait_for(nri_socket(node).exists, "it does not listen")
        yield process


def ready(node: Node) -> bool:
    """Ask as an exec probe does."""
    return fake_node.cli("status", "--quiet", *options(node)).returncode == 0


def record(node: Node) -> Path:
    return node.pid_file.with_name("ready.json")


def test_it_is_ready_only_while_it_is_registered(node: Node, runtime: Process) -> None:
    before = fake_node.snapshot(node.config.parent)
    with staying(options(node)) as pod:
        assert not ready(node)
        assert fake_node.done("status", *options(node)).stdout.startswith(
            f"in sync\nnot ready: {NO_PLUGIN}\n"
        )
        assert runtime.do("register")["name"] == "nvidia-toolkit"
        pod.says("the NRI plugin 10-nvidia-toolkit is registered with containerd v2.1.9")
        pods.until(lambda: ready(node), "it does not become ready")
        assert fake_node.done("status", *options(node)).stdout.startswith("in sync\nready\n")
        assert runtime.do("create", "gpu-operator", {KEY: MANAGEMENT}) == [MANAGEMENT]
        assert runtime.do("create", "default", {KEY: MANAGEMENT}) == []
        pod.says(
            "asks for management.nvidia.com/gpu=all, but its namespace is not among gpu-operator"
        )
        runtime.do("drop")
        pod.says("the runtime closed the connection; containers get no device now")
        # A sync that began while the plugin was registered may write the record once more.
        pods.until(lambda: not record(node).exists() and not ready(node), "the record stays")
        runtime.do("register")
        pods.until(lambda: ready(node), "it does not become ready again")
        assert pod.state()["nri"]["connections_lost"] == 1
    assert fake_node.snapshot(node.config.parent) == before
    assert (node.toolkit / "nvidia-container-runtime").exists()


def test_a_revert_without_the_runtime_removes_everything(node: Node, runtime: Process) -> None:
    with staying(options(node, on_exit="revert")) as pod:
        runtime.do("register")
        pods.until(lambda: ready(node), "it does not become ready")
        assert pod.end() == 0
    assert not node.install_dir.exists()
    assert not record(node).exists()
    with staying(options(node)) as pod:
        pod.end()
    fake_node.done("revert", *options(node))
    assert not node.install_dir.exists()


def test_a_plugin_that_was_killed_is_not_ready(node: Node, runtime: Process) -> None:
    with staying(options(node)) as pod:
        runtime.do("register")
        pods.until(lambda: ready(node), "it does not become ready")
        pod.end(signal.SIGKILL)
        assert record(node).exists()
        assert not ready(node)
        assert NO_PLUGIN in fake_node.done("status", *options(node)).stdout
    with staying(options(node)) as pod:
        asks = fake_nri.pod("default", "away", {KEY: GPU})
        runtime.do("register", [asks], [fake_nri.container("away", "c")])
        pod.says("the container c of default/away asks for nvidia.com/gpu=0, but started without")
        pods.until(lambda: ready(node), "it does not become ready")


def test_the_metrics_count_what_was_asked(node: Node, runtime: Process) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with staying(options(node, metrics_address=f":{port}")) as pod:
        runtime.do("register")
        pod.says("is registered with")
        for namespace, value in (("a", GPU), ("a", MANAGEMENT), ("a", ""), ("a", GPU)):
            runtime.do("create", namespace, {KEY: value})
        runtime.do("ask", "CreateContainer", b"\x0b")
        pods.until(lambda: pods.page(port, "/readyz")[0] == 200, "it does not become ready")
        found = pods.metrics(port)
        counted = {
            result: found[f'nvidia_toolkit_nri_requests_total{{result="{result}"}}']
            for result in ("injected", "refused", "unasked", "unanswered")
        }
        assert counted == {"injected": 2, "refused": 1, "unasked": 1, "unanswered": 1}
        assert found["nvidia_toolkit_nri_registered"] == 1
        runtime.do("drop")
        pod.says("closed the connection")
        assert pods.page(port, "/readyz") == (503, f"not ready: {NO_PLUGIN}\n")
        assert pods.metrics(port)["nvidia_toolkit_nri_registered"] == 0


def test_it_answers_while_a_sync_runs_and_while_it_stops(node: Node, runtime: Process) -> None:
    with staying(options(node)) as pod:
        runtime.do("register")
        for _ in range(20):
            os.kill(pod.pid, signal.SIGHUP)
            assert runtime.do("create", "default", {KEY: GPU}) == [GPU]
        assert pod.end() in (0, 143)


def test_it_takes_no_more_memory_than_the_peer(node: Node, runtime: Process) -> None:
    with staying(options(node)) as pod:
        asks = [fake_nri.pod("default", f"p{n}", {KEY: GPU}) for n in range(200)]
        runtime.do("register", asks, [fake_nri.container(f"p{n}", "c") for n in range(200)])
        for _ in range(100):
            runtime.do("create", "default", {KEY: GPU})
        pod.settled()
        assert pod.memory() < PEER


def test_another_program_on_the_socket_is_not_answered(node: Node, tmp_path: Path) -> None:
    with fake_nri.process(nri_socket(node), tmp_path / "nri", name="python3") as other:
        fake_node.wait_for(nri_socket(node).exists, "it does not listen")
        with staying(options(node)) as pod:
            with pytest.raises(fake_nri.ThrownOutError):
                other.do("register")
            said = pod.says(f"is not registered: {nri_socket(node)}: is answered by PID")
            assert said.endswith(
                "which does not look like containerd or crio (name the runtime's own socket with"
                " --nri-socket); containers get no device now"
            )
            assert not ready(node)


def test_a_run_without_agent_configures_the_runtime_and_says_so(
    node: Node, running: Daemon
) -> None:
    done = fake_node.cli("-n", *node.options(enable_nri_plugin="true"))
    assert done.returncode == 0, done.stderr
    assert "--enable-nri-plugin has no effect with --no-daemon" in done.stderr
    assert running.signals() == ["SIGHUP"]


def test_it_needs_a_namespace(node: Node) -> None:
    done = fake_node.cli("run", *options(node, nri_namespace=None))
    assert done.returncode == 2
    assert "--enable-nri-plugin: requires --nri-namespace (NRI_NAMESPACE)" in done.stderr
    assert not node.install_dir.exists()


def test_the_record_names_the_agent(node: Node, runtime: Process) -> None:
    with staying(options(node)) as pod:
        runtime.do("register")
        pods.until(lambda: ready(node), "it does not become ready")
        assert json.loads(record(node).read_bytes())["plugin"][0] == pod.pid


# --- what the other commands say ------------------------------------------------------------------


def test_a_missing_socket_is_named_before_anything_is_changed(node: Node) -> None:
    done = fake_node.cli("run", *options(node))
    assert done.returncode == 4
    assert (
        f"NRI is not known to be on: its socket {nri_socket(node)} does not exist: nothing"
        in done.stderr
    )
    assert "name the socket with --nri-socket" in done.stderr
    assert not node.install_dir.exists()


@pytest.mark.parametrize(
    ("has_nri", "text"),
    [(True, "NRI is off in this containerd: its socket"), (False, "this containerd has no NRI")],
)
def test_it_says_whether_the_runtime_has_nri(node: Node, text: str, *, has_nri: bool) -> None:
    fake_runtime.say(node, has_nri=has_nri)
    given = options(node, socket=str(node.socket))
    with fake_runtime.runtime(node):
        assert text in fake_node.done("plan", *given).stdout
        refused = fake_node.cli("run", *given)
        assert (refused.returncode, text in refused.stderr) == (4, True)
        detected = json.loads(fake_node.done("detect", "-o", "json", *given).stdout)
    states = {each["socket"]: each["nri"] for each in detected["runtimes"]}
    assert states[str(node.socket)] == ("off" if has_nri else "none")


def test_plan_and_status_say_that_nri_is_on(node: Node, runtime: Process) -> None:
    text = f"NRI is on: {nri_socket(node)}"
    planned = fake_node.done("plan", *options(node)).stdout
    assert f"# {text}\n" in planned
    assert "# the runtime is not configured (--enable-nri-plugin)\n" in planned
    assert json.loads(fake_node.done("plan", "-o", "json", *options(node)).stdout)["nri"] == {
        "state": "on",
        "text": text,
    }
    with staying(options(node)):
        runtime.do("register")
        pods.until(lambda: ready(node), "it does not become ready")
        assert fake_node.done("status", *options(node)).stdout == f"in sync\nready\n  {text}\n"


# --- in the place of handlers ---------------------------------------------------------------------


def at_runtime(node: Node, **more: str) -> list[str]:
    """Return the options of a container that has the runtime's files and socket as well."""
    nri = {
        "enable_nri_plugin": "true",
        "nri_namespace": "gpu-operator",
        "nri_socket": str(nri_socket(node)),
    }
    return node.options(**nri, **more)


def test_the_handlers_of_an_earlier_run_are_removed_byte_for_byte(
    node: Node, runtime: Process
) -> None:
    before = fake_node.content(node.config.parent)
    with fake_runtime.runtime(node) as containerd:
        fake_node.done("run", "--no-daemon", *node.options())
        assert fake_node.content(node.config.parent) != before
        assert "has handlers of an earlier run" in fake_node.done("plan", *at_runtime(node)).stdout
        with staying(at_runtime(node)) as pod:
            runtime.do("register")
            pods.until(lambda: ready(node), "it does not become ready")
            assert fake_node.content(node.config.parent) == before
            assert (
                "removed the toolkit's handlers: the NRI plugin adds the devices" in pod.messages()
            )
            assert node.toolkit.is_symlink()
            pod.settled()
        assert containerd.signals() == ["SIGHUP"] * 2
        assert "earlier run" not in fake_node.done("plan", *at_runtime(node)).stdout
        with staying(at_runtime(node)) as pod:
            runtime.do("register")
            pods.until(lambda: ready(node), "it does not become ready")
        assert containerd.signals() == ["SIGHUP"] * 2
        fake_node.done("revert", *at_runtime(node))
    assert not node.install_dir.exists()
    assert fake_node.content(node.config.parent) == before


def test_handlers_that_a_pod_uses_stay_until_it_is_gone(node: Node, runtime: Process) -> None:
    before = fake_node.content(node.config.parent)
    with fake_runtime.runtime(node):
        fake_node.done("run", "--no-daemon", *node.options())
        fake_runtime.add_pod(node, "training", "nvidia")
        with staying(at_runtime(node)) as pod:
            runtime.do("register")
            pods.until(lambda: ready(node), "it does not become ready")
            said = pod.says("the handlers stay beside the NRI plugin")
            assert "1 container still uses the toolkit's handlers: default/training" in said
            assert b"nvidia-container-runtime" in node.config.read_bytes()
            assert b'default_runtime_name = "nvidia"' not in node.config.read_bytes()
            fake_runtime.remove_pod(node, "training")
            os.kill(pod.pid, signal.SIGHUP)
            pods.until(
                lambda: fake_node.content(node.config.parent) == before,
                "the handlers are not removed",
            )


def test_files_that_are_not_mounted_are_left_alone(node: Node, runtime: Process) -> None:
    with fake_runtime.runtime(node):
        fake_node.done("run", "--no-daemon", *node.options())
        after = node.config.read_bytes()
        away = node.config.parent.rename(node.config.parent.with_name("elsewhere"))
        with staying(options(node)) as pod:
            pod.says("the handlers stay beside the NRI plugin")
            runtime.do("register")
            pods.until(lambda: ready(node), "it does not become ready")
        assert (away / node.config.name).read_bytes() == after


def test_hostile_bytes_do_not_end_the_agent(node: Node, runtime: Process) -> None:
    junk = [
        b"\xff" * 70000,
        fake_nri.frame(1, 2, 1, b""),
        fake_nri.frame(2, 9, 2, b""),
        fake_nri.call(1, "Synchronize", b"\x0b" * 9),
    ]
    with staying(options(node)) as pod:
        for data in junk:
            runtime.do("accept")
            with contextlib.suppress(fake_nri.ThrownOutError):
                runtime.do("send", data)
        runtime.do("register")
        pods.until(lambda: ready(node), "it does not become ready")
        assert runtime.do("create", "default", {KEY: GPU}) == [GPU]
        assert pod.state()["nri"]["connections_lost"] == len(junk)
