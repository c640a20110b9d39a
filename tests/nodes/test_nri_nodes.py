"""The NRI plugin in the GPU Operator's container, beside real runtimes that have NRI switched on.

The driver is made up (`tests/support/driver.py`); what makes the management specification is real,
and so is the runtime that adds its devices to a container.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.nodes.test_gpu_operator_nodes import DRIVER_READY, READY, Pod
from tests.support import (
    artifacts,
    boot,
    containers,
    crio,
    driver,
    gpu_operator,
    nodes,
    pods,
    real,
)
from tests.support.nodes import Node, NodeError

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

KEY: Final = "nvidia.cdi.k8s.io"
MANAGEMENT: Final = "management.nvidia.com/gpu=all"
GPU: Final = "nvidia.com/gpu=0"
OPERATOR: Final = "gpu-operator"
PEER: Final = 14.2 * 1024 * 1024
LOOK: Final = ("sh", "-c", 'echo "$GPUS"; ls /dev')
MANY: Final = ",".join([GPU, GPU, *(f"nvidia.com/gpu={number}" for number in range(600))])
"""One device twice, which the runtime would refuse, and so many that the answer is in pieces."""
BY_HAND: Final = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [
        {
            "name": name,
            "containerEdits": {
                "env": [f"GPUS=gpu {name}"],
                "deviceNodes": [
                    {"path": f"/dev/made-up{name}", "type": "c", "major": 1, "minor": 3}
                ],
            },
        }
        for name in map(str, range(600))
    ],
}


class Plugin:
    """The operator's container on a node, as it runs."""

    def __init__(self, node: Node, home: Path, runtime: str = "containerd") -> None:
        home.mkdir()
        self.node = node
        self.pod = Pod(node, gpu_operator.render(runtime, cdi=True, nri=True), home)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = self.pod.start()
        self.pod.settle(self.process)

    def says(self, words: str, times: int = 1) -> None:
        nodes.wait_for(self.node, lambda: self.pod.log().count(words) >= times)

    def is_ready(self) -> bool:
        return nodes.path(self.node, READY).exists()

    def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            Path(f"/proc/{self.pid}/cmdline").read_bytes()
            subprocess.run(["kill", "-KILL", str(self.pid)], check=True)
        self.process.wait(30)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return containers.inner(self.process)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with boot.booted("forky", "with the NRI plugin") as booted:
        if reason := containers.why_no_containers(booted):
            pytest.skip(reason)
        containers.prepare_images(booted)
        artifacts.make_real(
            nodes.path(booted, "/srv/artifacts/deb"), ("nvidia-ctk", "nvidia-cdi-hook")
        )
        for name in (gpu_operator.VALIDATIONS, driver.ROOT, "/run/cdi"):
            nodes.path(booted, name).mkdir(parents=True, exist_ok=True)
        nodes.path(booted, DRIVER_READY).write_text(gpu_operator.DRIVER_READY, encoding="utf-8")
        nodes.path(booted, "/run/cdi/by-hand.json").write_text(
            json.dumps(BY_HAND), encoding="utf-8"
        )
        with driver.on_node(booted):
            yield booted


@pytest.fixture
def plugin(node: Node, tmp_path: Path) -> Iterator[Plugin]:
    plugin = Plugin(node, tmp_path / "pod")
    plugin.start()
    try:
        plugin.says("is registered with containerd")
        nodes.wait_for(node, plugin.is_ready)
        yield plugin
    finally:
        plugin.end()


def look(node: Node, namespace: str, annotations: Mapping[str, str]) -> set[str]:
    """Return what a container of a pod says that it has."""
    done = containers.run_pod(
        node, handler="", argv=LOOK, namespace=namespace, annotations=annotations
    )
    assert done.exit_code == 0, done.output
    return set(done.output.splitlines())


def test_each_container_gets_what_it_may_have(node: Node, plugin: Plugin) -> None:
    before = nodes.main_pid(node, "containerd")
    files = {
        path: path.read_bytes() for path in nodes.path(node, "/etc/containerd").rglob("*.toml")
    }
    gpus = {"nvidia0", "nvidiactl", "nvidia-uvm"}
    assert gpus <= look(node, OPERATOR, {KEY: MANAGEMENT})
    assert not gpus & look(node, "default", {KEY: MANAGEMENT})
    plugin.says(
        "asks for management.nvidia.com/gpu=all, but its namespace is not among gpu-operator"
    )
    assert {"gpu 0", "made-up0"} <= look(node, "default", {KEY: GPU})
    assert {"made-up0", "made-up1"} <= look(
        node, "default", {f"{KEY}/pod": f" {GPU}, nvidia.com/gpu=1 "}
    )
    assert "made-up0" in look(
        node, "default", {f"{KEY}/container.test": GPU, KEY: "nvidia.com/gpu=1"}
    )
    assert not {"made-up0", "made-up1"} & look(node, "default", {})
    with pytest.raises(NodeError, match="unresolvable CDI devices"):
        look(node, "default", {KEY: "nvidia.com/gpu=none"})
    assert {"made-up0", "made-up599"} <= look(node, "default", {KEY: MANY})
    assert nodes.main_pid(node, "containerd") == before
    assert {
        path: path.read_bytes() for path in nodes.path(node, "/etc/containerd").rglob("*.toml")
    } == files
    assert pods.memory(plugin.pid) < PEER


def test_after_a_restart_of_the_runtime_it_is_registered_again(node: Node, plugin: Plugin) -> None:
    nodes.run(node, ["systemctl", "stop", "containerd"])
    plugin.says("containers get no device now")
    nodes.wait_for(node, lambda: not plugin.is_ready())
    nodes.run(node, ["systemctl", "start", "containerd"])
    plugin.says("again, after")
    nodes.wait_for(node, plugin.is_ready)
    assert "made-up0" in look(node, "default", {KEY: GPU})


def test_containers_that_were_created_while_it_was_away_are_named(
    node: Node, plugin: Plugin, tmp_path: Path
) -> None:
    sleep = ("sleep", "1000")
    good = containers.start_pod(node, handler="", argv=sleep, annotations={KEY: GPU})
    plugin.kill()
    pods_away = [
        containers.start_pod(node, handler="", argv=sleep, annotations={KEY: GPU}),
        containers.start_pod(node, handler="", argv=sleep),
    ]
    after = Plugin(node, tmp_path / "after")
    try:
        after.start()
        after.says(
            "asks for nvidia.com/gpu=0, but started without, while the plugin was not connected"
        )
        after.says("is registered with containerd")
        nodes.wait_for(node, after.is_ready)
        assert after.pod.log().count("but started without") == 1, after.pod.log()
        assert "made-up0" in look(node, "default", {KEY: GPU})
    finally:
        after.end()
        for pod in (good, *pods_away):
            containers.stop_pod(node, pod)


def test_the_handlers_are_removed_once_no_pod_uses_them(node: Node, tmp_path: Path) -> None:
    nodes.path(node, "/etc/containerd/conf.d").mkdir(exist_ok=True)  # as kubelet does for the mount
    nodes.path(node, "/run/nvidia/toolkit/restarts.json").unlink(missing_ok=True)
    nodes.run(node, ["systemctl", "reset-failed", "containerd"])
    before = configuration(node)
    (tmp_path / "handlers").mkdir()
    handlers = Pod(node, gpu_operator.render("containerd", cdi=True), tmp_path / "handlers")
    handlers.run("run", "--no-daemon")
    assert configuration(node) != before
    using = containers.start_pod(node, handler="nvidia-cdi", argv=("sleep", "1000"))
    plugin = Plugin(node, tmp_path / "plugin")
    plugin.pod.env = {**handlers.env, **plugin.pod.env}
    plugin.pod.mounts = {**handlers.mounts, **plugin.pod.mounts}
    try:
        plugin.start()
        plugin.says(
            "the handlers stay beside the NRI plugin: 1 container still uses the toolkit's handlers"
        )
        nodes.wait_for(node, plugin.is_ready)
        assert {"gpu 0", "made-up0"} <= look(node, "default", {KEY: GPU})
        containers.stop_pod(node, using)
        subprocess.run(["kill", "-HUP", str(plugin.pid)], check=True)
        plugin.says("removed the toolkit's handlers")
        assert configuration(node) == before
        plugin.says("again, after")
        nodes.wait_for(node, plugin.is_ready)
        assert {"gpu 0", "made-up0"} <= look(node, "default", {KEY: GPU})
    finally:
        plugin.end()
    handlers.run("revert")
    assert configuration(node) == before


def configuration(node: Node) -> dict[str, bytes]:
    """Return containerd's files."""
    found = nodes.path(node, "/etc/containerd").rglob("*")
    return {str(path): path.read_bytes() for path in sorted(found) if path.is_file()}


# --- CRI-O ----------------------------------------------------------------------------------------


def test_cri_o_has_it_on_as_well(node: Node, tmp_path: Path) -> None:
    if reason := crio.why_not():
        pytest.skip(reason)
    nodes.run(node, ["systemctl", "stop", "containerd"])  # both have the same NRI socket
    crio.install(node)
    crio.prepare_images(node)
    crio.start(node)
    real.USED.add(f"crio {crio.VERSION} with the NRI plugin on a booted {node.suite} node")
    plugin = Plugin(node, tmp_path / "pod", "crio")
    good = away = None
    try:
        plugin.start()
        plugin.says("is registered with cri-o")
        nodes.wait_for(node, plugin.is_ready)

        def look_at(namespace: str, annotations: Mapping[str, str]) -> set[str]:
            done = crio.run_pod(
                node, handler="", argv=LOOK, namespace=namespace, annotations=annotations
            )
            return set(done.output.splitlines())

        assert {"nvidia0", "nvidiactl"} <= look_at(OPERATOR, {KEY: MANAGEMENT})
        assert "nvidia0" not in look_at("default", {KEY: MANAGEMENT})
        assert {"gpu 0", "made-up0"} <= look_at("default", {KEY: f" {GPU} , {GPU}"})
        assert {"made-up0", "made-up599"} <= look_at("default", {KEY: MANY})
        assert "made-up0" not in look_at("default", {})
        with pytest.raises(NodeError, match="unresolvable CDI devices"):
            look_at("default", {KEY: "nvidia.com/gpu=none"})
        asks = {"annotations": {KEY: GPU}}
        good = crio.start_pod(node, handler="", argv=("sleep", "1000"), **asks)
        plugin.kill()
        away = crio.start_pod(node, handler="", argv=("sleep", "1000"), **asks)
        plugin.start()
        plugin.says("but started without, while the plugin was not connected")
        nodes.wait_for(node, plugin.is_ready)
        assert plugin.pod.log().count("but started without") == 1, plugin.pod.log()
        crio.start(node)
        plugin.says("again, after")
        nodes.wait_for(node, plugin.is_ready)
        assert "made-up0" in look_at("default", {KEY: GPU})
    finally:
        plugin.end()
        for pod in filter(None, (good, away)):
            crio.stop_pod(node, pod)
        crio.stop(node)
        nodes.run(node, ["systemctl", "start", "containerd"])
