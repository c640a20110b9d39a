"""In the peer's place: this program in the container that the GPU Operator makes for upstream's.

Variables, mounts and entry point are the operator's own (tests/support/gpu_operator.py).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.support import (
    artifacts,
    boot,
    containers,
    crio,
    driver,
    gpu_operator,
    nodes,
    real,
)
from tests.support.gpu_operator import Rendered
from tests.support.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

TOOLKIT = "/usr/local/nvidia/toolkit"
READY = "/run/nvidia/toolkit/ready.json"
DRIVER_READY = f"{gpu_operator.VALIDATIONS}/driver-ready"
HOOK = "/usr/share/containers/oci/hooks.d/oci-nvidia-hook.json"
HANDLERS = {
    "nvidia": f"{TOOLKIT}/nvidia-container-runtime",
    "nvidia-cdi": f"{TOOLKIT}/nvidia-container-runtime.cdi",
    "nvidia-legacy": f"{TOOLKIT}/nvidia-container-runtime.legacy",
}
DAEMON_JSON = '{\n\t"log-opts": {"max-size": "10m"},\n\t"mtu":  1400\n}\n'
# What is ours to write to: each runtime's files, and what the operator mounts besides.
OURS = (
    "/usr/local/nvidia",
    "/run/nvidia",
    "/run/cdi",
    "/etc/containerd",
    "/etc/docker",
    "/etc/crio",
)
# CRI-O's table of mounted layers, which every pod changes, those of the verification too.
RUNTIMES_OWN = ("/run/containers/storage/",)
SPECIFICATION = "/run/cdi/management.nvidia.com-gpu.yaml"
EARLIER = '{"cdiVersion": "0.5.0", "kind": "management.nvidia.com/gpu", "devices": []}\n'
WRITTEN = ("/etc", "/usr/local/nvidia", "/run/cdi", driver.ROOT)
WATCHED = ("/etc", "/usr/local", "/usr/share", "/opt", "/root", "/srv", "/run/containers")
# /bin/sh in the image (Dockerfile): unlike dash, it becomes what it starts, so SIGTERM arrives.
SHELL = "/bin/bash"
CASES = (
    ("bookworm", "containerd"),
    ("forky", "containerd"),
    ("forky", "docker"),
    ("forky", "crio"),
)


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with boot.booted(request.param, units=("containerd", "docker")) as booted:
        # The image has its artifacts; here the node lends a directory for that. Its handlers are
        # stand-ins, which tell that they ran; what makes the specification is real.
        artifacts.make_real(
            nodes.path(booted, "/srv/artifacts/deb"), ("nvidia-ctk", "nvidia-cdi-hook")
        )
        nodes.path(booted, gpu_operator.VALIDATIONS).mkdir(parents=True)
        nodes.path(booted, driver.ROOT).mkdir()
        nodes.path(booted, "/etc/docker").mkdir(exist_ok=True)
        nodes.path(booted, "/etc/docker/daemon.json").write_text(DAEMON_JSON, encoding="utf-8")
        real.USED.add(
            f"containerd and dockerd on a booted {booted.suite} node, as the GPU Operator mounts it"
        )
        yield booted


class Pod:
    """The operator's container on a node; what it writes goes to a log."""

    def __init__(self, node: Node, rendered: Rendered, home: Path) -> None:
        self.node, self.home = node, home
        self.mounts = {**rendered.followed, "/artifacts": "/srv/artifacts"}
        # The entry point's pauses are for upstream's sake; the text is run as it is.
        (home / "bin").mkdir()
        (home / "bin/sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.1\n", encoding="utf-8")
        (home / "bin/sleep").chmod(0o755)
        (home / "entrypoint.sh").write_text(gpu_operator.ENTRYPOINT, encoding="utf-8")
        (home / "entrypoint.sh").chmod(0o700)
        path = f"{home / 'bin'}:{Path(sys.executable).parent}:{nodes.PATH}"
        self.env = {**rendered.env, "PATH": path}

    def start(self) -> subprocess.Popen[str]:
        with open(self.home / "log", "w", encoding="utf-8") as log:
            argv = [SHELL, "-c", str(self.home / "entrypoint.sh")]
            return containers.start_daemonset(
                self.node, argv, env=self.env, mounts=self.mounts, log=log
            )

    def log(self) -> str:
        return (self.home / "log").read_text(encoding="utf-8")

    def settle(self, process: subprocess.Popen[str]) -> str:
        """Wait until the program stays, with the node ready; return its log."""
        stays = '"phase": "daemon"'
        nodes.wait_for(
            self.node, lambda: stays in self.log() or process.poll() is not None, timeout=60
        )
        assert process.poll() is None, self.log()
        return self.log()

    def end(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, self.log()

    def run(self, *words: str) -> str:
        """Run another command in the container, as `kubectl exec` does."""
        done = containers.daemonset(
            self.node, ["nvidia-toolkit", *words], env=self.env, mounts=self.mounts
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, code: int, *words: str) -> str:
        """Run another command that is refused; return why."""
        done = containers.daemonset(
            self.node, ["nvidia-toolkit", *words], env=self.env, mounts=self.mounts
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr


def picture(node: Node, places: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """Return inode, time of change and mode of everything below some directories."""
    return {
        str(path.relative_to(node.root)): (
            path.lstat().st_ino,
            path.lstat().st_ctime_ns,
            path.lstat().st_mode,
        )
        for place in places
        for path in nodes.path(node, place).rglob("*")
    }


def content(node: Node) -> dict[str, bytes]:
    return {
        str(path.relative_to(node.root)): path.read_bytes() if path.is_file() else b""
        for place in (
            "/etc/containerd",
            "/etc/docker",
            "/etc/crio",
            "/usr/local/nvidia",
            "/run/cdi",
        )
        for path in sorted(nodes.path(node, place).rglob("*"))
        if path.name != "key.json"
    }


def handlers(node: Node, runtime: str) -> tuple[dict[str, str], str]:
    """Return the handlers with their binaries and the default, as the running daemon has them."""
    if runtime == "docker":
        found = json.loads(nodes.run(node, ["docker", "info", "--format", "{{json .}}"]).stdout)
        return {name: each["path"] for name, each in found["Runtimes"].items()}, found[
            "DefaultRuntime"
        ]
    if runtime == "crio":
        said = crio.config(node)["crio"]["runtime"]
        return {name: each["runtime_path"] for name, each in said["runtimes"].items()}, said[
            "default_runtime"
        ]
    section = _cri(node)["containerd"]
    options = {name: each.get("options") or {} for name, each in section["runtimes"].items()}
    return {name: each.get("BinaryName", "") for name, each in options.items()}, section[
        "default_runtime_name"
    ]


def _cri(node: Node) -> dict[str, Any]:
    plugins = tomllib.loads(nodes.run(node, ["containerd", "config", "dump"]).stdout)["plugins"]
    found: dict[str, Any] = (
        plugins.get("io.containerd.cri.v1.runtime") or plugins["io.containerd.grpc.v1.cri"]
    )
    return found


@pytest.fixture
def runtime(request: pytest.FixtureRequest, node: Node) -> str:
    name = str(request.param)
    if name == "crio":
        if reason := crio.why_not():
            pytest.skip(reason)
        if not nodes.is_active(node, "crio"):
            crio.install(node)
            crio.prepare_images(node)
            crio.start(node)
            real.USED.add(
                f"crio {crio.VERSION} on a booted {node.suite} node, as the GPU Operator mounts it"
            )
    nodes.run(node, ["systemctl", "reset-failed", name])
    for left in ("/run/nvidia/toolkit/restarts.json", DRIVER_READY):
        nodes.path(node, left).unlink(missing_ok=True)
    return name


@pytest.mark.parametrize(("node", "runtime"), CASES, indirect=True)
@pytest.mark.parametrize("cdi", [False, True], ids=["without CDI", "with CDI"])
def test_the_operators_container(node: Node, runtime: str, tmp_path: Path, *, cdi: bool) -> None:
    with driver.on_node(node) if cdi else nullcontext():
        goes_up_and_comes_back(node, runtime, tmp_path, cdi=cdi)


def goes_up_and_comes_back(node: Node, runtime: str, home: Path, *, cdi: bool) -> None:
    pod = Pod(node, gpu_operator.render(runtime, cdi=cdi), home)
    process = pod.start()
    nodes.wait_for(node, lambda: "waiting for the driver" in pod.log())
    if cdi and runtime != "containerd":
        nodes.path(node, SPECIFICATION).write_text(EARLIER, encoding="utf-8")  # upstream's file
    before = content(node)
    elsewhere, told = picture(node, WATCHED), handlers(node, runtime)
    others = {unit: nodes.main_pid(node, unit) for _, unit in CASES if unit != runtime}
    nodes.path(node, DRIVER_READY).write_text(gpu_operator.DRIVER_READY, encoding="utf-8")
    try:
        pod.settle(process)
        installed = content(node)
        assert_told(node, runtime, told, cdi=cdi)
        assert_written(node, runtime, with_hook=runtime == "crio" and not cdi)
        assert_configured(node, cdi=cdi)
        assert nodes.path(node, SPECIFICATION).exists() is cdi
        assert pod.run("status").startswith("in sync\nready\n")
        assert nodes.path(node, READY).exists()
        assert changed(node, elsewhere) <= {HOOK.lstrip("/")}
        assert {unit: nodes.main_pid(node, unit) for unit in others} == others
    finally:
        pod.end(process)
    assert content(node) == installed, (
        "SIGTERM takes nothing away: nobody says that the DaemonSet is gone"
    )
    again(node, runtime, pod)
    pod.run("revert")
    assert content(node) == before
    assert handlers(node, runtime) == told
    assert not nodes.path(node, READY).exists()
    nodes.path(node, SPECIFICATION).unlink(missing_ok=True)


def assert_told(node: Node, runtime: str, told: tuple[dict[str, str], str], *, cdi: bool) -> None:
    """Check what the daemon says of its handlers, or, if it has a hook instead, the hook."""
    known, default = handlers(node, runtime)
    if runtime == "crio" and not cdi:
        assert (known, default) == told
        hook = json.loads(nodes.path(node, HOOK).read_bytes())
        assert hook["hook"]["path"] == f"{TOOLKIT}/nvidia-container-runtime-hook"
    else:
        assert {name: known[name] for name in HANDLERS} == HANDLERS
        assert default == (told[1] if cdi else "nvidia")
        assert {name: known[name] for name in told[0]} == told[0]


def assert_configured(node: Node, *, cdi: bool) -> None:
    """See the toolkit's own configuration, and with CDI the specification."""
    config = tomllib.loads(
        nodes.path(node, f"{TOOLKIT}/.config/nvidia-container-runtime/config.toml").read_text(
            "utf-8"
        )
    )
    section = config["nvidia-container-runtime"]
    assert section["mode"] == ("cdi" if cdi else "auto")
    assert section["modes"]["cdi"]["default-kind"] == "management.nvidia.com/gpu"
    assert config["nvidia-container-cli"]["root"] == driver.ROOT
    if cdi:
        assert_specified(node)


def assert_specified(node: Node) -> None:
    """See that the specification names the driver and the hook as the node has them."""
    tree = json.loads(nodes.path(node, SPECIFICATION).read_bytes())
    assert tree["kind"] == "management.nvidia.com/gpu"
    [device] = tree["devices"]
    devices = {each["path"]: each["hostPath"] for each in device["containerEdits"]["deviceNodes"]}
    assert devices == {
        f"/dev/{name}": f"{driver.ROOT}/dev/{name}" for name in (*driver.CONTROL, "nvidia0")
    }
    edits = tree["containerEdits"]
    mounts = {each["containerPath"]: each["hostPath"] for each in edits["mounts"]}
    # toolkit 1.20.2 marks each specification with it.
    assert mounts.pop("/var/run/nvidia-container-devices/void") == "/dev/null"
    library = f"/usr/lib/x86_64-linux-gnu/libcuda.so.{driver.VERSION}"
    assert {"/usr/bin/nvidia-smi", library} <= mounts.keys()
    assert all(path == f"{driver.ROOT}{inside}" for inside, path in mounts.items())
    assert {hook["path"] for hook in edits["hooks"]} == {f"{TOOLKIT}/nvidia-cdi-hook"}
    for path in (*devices.values(), *mounts.values(), f"{TOOLKIT}/nvidia-cdi-hook"):
        assert nodes.path(node, path).exists(), path


def assert_written(node: Node, runtime: str, *, with_hook: bool) -> None:
    """See that the files are those that the node reads, and name each other as the node does."""
    text = {
        name: data.decode() for name, data in content(node).items() if not name.startswith("usr/")
    }
    assert not any("/runtime/" in each for each in text.values())
    drop_in = gpu_operator._DROP_INS.get(runtime, "").lstrip("/")
    if runtime == "docker":
        assert (
            json.loads(text["etc/docker/daemon.json"])["runtimes"]["nvidia"]["path"]
            == HANDLERS["nvidia"]
        )
    elif runtime == "crio":
        assert (drop_in in text) != with_hook
        assert "etc/crio/config.toml" not in text
    elif node.suite == "bookworm":
        # containerd 1.6 would forget runc for a drop-in that has our handlers alone.
        assert HANDLERS["nvidia"] in text["etc/containerd/config.toml"]
        assert drop_in not in text
    else:
        assert HANDLERS["nvidia"] in text[drop_in]
        assert (
            "/etc/containerd/conf.d/*.toml"
            in tomllib.loads(text["etc/containerd/config.toml"])["imports"]
        )


def changed(node: Node, before: dict[str, tuple[int, int, int]]) -> set[str]:
    """Return what else changed than what is ours to write to."""
    after = picture(node, WATCHED)
    paths = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    return {
        path
        for path in paths
        if not f"/{path}".startswith(OURS + RUNTIMES_OWN) and not (node.root / path).is_dir()
    }


def again(node: Node, runtime: str, pod: Pod) -> None:
    """Start the pod a second time: nothing is written and nobody is told."""
    still, pid = picture(node, WRITTEN), nodes.main_pid(node, runtime)
    process = pod.start()
    try:
        assert "nothing to do: the node is in sync" in pod.settle(process)
    finally:
        pod.end(process)
    assert picture(node, WRITTEN) == still
    assert nodes.main_pid(node, runtime) == pid


# --- what people set in toolkit.env ---------------------------------------------------------------


@pytest.fixture
def plain(node: Node) -> Iterator[Node]:
    """A node that is afterwards as it was."""
    nodes.path(node, "/etc/containerd/conf.d").mkdir(exist_ok=True)  # as kubelet does for the mount
    before, told = content(node), handlers(node, "containerd")
    nodes.run(node, ["systemctl", "reset-failed", "containerd"])
    nodes.path(node, "/run/nvidia/toolkit/restarts.json").unlink(missing_ok=True)
    yield node
    assert content(node) == before
    assert handlers(node, "containerd") == told


FORKY = pytest.mark.parametrize("node", ["forky"], indirect=True)


@FORKY
def test_a_source_and_an_override(plain: Node, tmp_path: Path) -> None:
    """A source file is then seen below /host; the node's own containerd checks the override."""
    env = {
        "RUNTIME_CONFIG_SOURCE": "file=/etc/containerd/config.toml",
        "RUNTIME_CONFIG_OVERRIDE": '{"options": {"SystemdCgroup": false}}',
    }
    pod = Pod(plain, gpu_operator.render("containerd", cdi=False, env=env), tmp_path)
    pod.run("run", "--no-daemon")
    try:
        runtimes = _cri(plain)["containerd"]["runtimes"]
        assert runtimes["nvidia"]["options"]["SystemdCgroup"] is False
        wrong = '--runtime-config-override={"SystemdCgroup": true}'
        refused = pod.refused(3, "run", "--no-daemon", "--config-source=command", wrong)
        assert "would have no SystemdCgroup = true (--runtime-config-override)" in refused
    finally:
        pod.run("revert")


@FORKY
def test_a_driver_that_is_not_there_yet(plain: Node, tmp_path: Path) -> None:
    """A killed driver pod leaves `driver-ready` behind: ours still starts, and waits."""
    nodes.path(plain, DRIVER_READY).write_text(gpu_operator.DRIVER_READY, encoding="utf-8")
    env = {"TOOLKIT_CHECK_INTERVAL": "1"}  # what is mounted or loaded makes no event
    pod = Pod(plain, gpu_operator.render("containerd", cdi=True, env=env), tmp_path)
    ready = nodes.path(plain, READY)
    process = pod.start()
    try:
        assert "no CDI specification yet: the driver is not loaded" in pod.settle(process)
        waits = "not ready: the CDI specification is not generated yet: the driver is not loaded"
        assert pod.run("status") == f"in sync\n{waits}\n"
        assert handlers(plain, "containerd")[0].keys() >= HANDLERS.keys()
        assert not ready.exists()
        assert not nodes.path(plain, SPECIFICATION).exists()
        with driver.on_node(plain):
            nodes.wait_for(plain, ready.exists)
            assert_specified(plain)
        nodes.wait_for(plain, lambda: not ready.exists())
    finally:
        pod.end(process)
        pod.run("revert")
        nodes.path(plain, DRIVER_READY).unlink()
    assert not nodes.path(plain, SPECIFICATION).exists()


@FORKY
def test_a_driver_of_the_node_itself(plain: Node, tmp_path: Path) -> None:
    """Only `driver-ready` names its root: a command in the pod must source it first."""
    nodes.path(plain, DRIVER_READY).write_text(gpu_operator.HOST_DRIVER_READY, encoding="utf-8")
    pod = Pod(plain, gpu_operator.render("containerd", cdi=False), tmp_path)
    process = pod.start()
    try:
        pod.settle(process)
        argv = ["sh", "-c", f"set -a; . {DRIVER_READY}; exec nvidia-toolkit status"]
        done = containers.daemonset(plain, argv, env=pod.env, mounts=pod.mounts)
        assert done.stdout.startswith("in sync\nready\n")
        assert "not in sync" in pod.run("status")
    finally:
        pod.end(process)
        pod.run("revert")
        nodes.path(plain, DRIVER_READY).unlink()


@FORKY
def test_another_install_directory(plain: Node, tmp_path: Path) -> None:
    pod = Pod(
        plain, gpu_operator.render("containerd", cdi=False, install_dir="/opt/nvidia"), tmp_path
    )
    pod.run("-n")
    assert (
        handlers(plain, "containerd")[0]["nvidia"] == "/opt/nvidia/toolkit/nvidia-container-runtime"
    )
    assert nodes.path(plain, "/opt/nvidia/toolkit/nvidia-container-runtime").exists()
    pod.run("revert")
    assert not list(nodes.path(plain, "/opt/nvidia").iterdir())


@FORKY
def test_a_node_that_ships_the_toolkit(plain: Node, tmp_path: Path) -> None:
    """No file is copied: the handlers name what the node's packages put into /usr/bin."""
    ran = nodes.path(plain, artifacts.RAN)
    env = {"NO_INSTALL": "true", "TOOLKIT_BIN_DIR": "/usr/bin"}
    pod = Pod(plain, gpu_operator.render("containerd", cdi=False, env=env), tmp_path)
    assert (
        "/usr/bin/nvidia-container-runtime, which the handlers run, was not found"
        in pod.refused(2, "-n")
    )
    program = nodes.path(plain, "/usr/bin/nvidia-container-runtime")
    program.write_bytes(
        nodes.path(plain, "/srv/artifacts/deb/usr/bin/nvidia-container-runtime").read_bytes()
    )
    program.chmod(0o755)
    try:
        pod.run("-n")
        known, default = handlers(plain, "containerd")
        assert known["nvidia"] == "/usr/bin/nvidia-container-runtime"
        assert not known.keys() & {"nvidia-cdi", "nvidia-legacy"}
        assert default == "nvidia"
        assert not nodes.path(plain, TOOLKIT).exists()
        assert pod.run("status").startswith("in sync\nready\n")
        if containers.why_no_containers(plain) is None:
            containers.prepare_images(plain)
            assert containers.run_pod(plain, handler="nvidia", argv=["true"]).exit_code == 0
            assert "nvidia-container-runtime" in ran.read_text(encoding="utf-8")
        pod.run("revert")
    finally:
        program.unlink()


@FORKY
@pytest.mark.parametrize(
    ("env", "code", "says"),
    [
        ({"CONTAINERD_SOCKET": "/run/containerd/other.sock"}, 4, "other.sock"),
        (
            {"CONTAINERD_CONFIG": "/etc/other/config.toml"},
            4,
            "config.toml is not the file that containerd reads",
        ),
        (
            {"RUNTIME_CONFIG_SOURCE": "file=/etc/other.toml"},
            2,
            "handlers come from the file that the runtime reads",
        ),
        (
            {"CONTAINERD_SET_AS_DEFAULT": "maybe"},
            2,
            "CONTAINERD_SET_AS_DEFAULT=maybe: must be true or false",
        ),
        ({"RUNTIME_RESTART_MODE": "gently"}, 2, "RUNTIME_RESTART_MODE=gently: must be one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_changes_nothing(
    plain: Node, tmp_path: Path, env: dict[str, str], code: int, says: str
) -> None:
    pid = nodes.main_pid(plain, "containerd")
    pod = Pod(plain, gpu_operator.render("containerd", cdi=False, env=env), tmp_path)
    assert says in pod.refused(code, "-n")
    assert nodes.main_pid(plain, "containerd") == pid
