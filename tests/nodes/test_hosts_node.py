"""A host without Kubernetes: the unit under a real systemd, with a real dockerd and containerd.

The program is installed on the node itself, with its own Python, and not run as a container.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support import (
    artifacts,
    binaries,
    boot,
    containers,
    documents,
    driver,
    fake_node,
    hosts,
    nodes,
    real,
    versions,
)
from tests.support.documents import ROOT
from tests.support.hosts import UNIT
from tests.support.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

CONFIG: Final = "/etc/docker/daemon.json"
CONTAINERD: Final = "/etc/containerd/config.toml"
READY: Final = "/run/nvidia/toolkit/ready.json"
SOURCE: Final = "/opt/nvidia-container-toolkit"
HANDLERS: Final = {"nvidia", "nvidia-cdi", "nvidia-legacy"}
ORIGINAL: Final = '{\n\t"mtu":  1400\n}\n'


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    with boot.booted(hosts.SUITE, units=("containerd", "docker")) as node:
        hosts.install(node)
        artifacts.make(nodes.path(node, SOURCE))
        nodes.path(node, "/etc/docker").mkdir(exist_ok=True)
        real.USED.add(f"the unit under systemd on a booted {node.suite} node")
        yield node


@pytest.fixture(autouse=True)
def _as_it_was(host: Node) -> Iterator[None]:
    """Give each test a host that nothing was installed on, and take everything back after it."""
    docker, containerd = nodes.path(host, CONFIG), nodes.path(host, CONTAINERD)
    docker.write_text(ORIGINAL, encoding="utf-8")
    before = containerd.read_bytes()
    setting(host, RUNTIME="docker")
    yield
    nodes.run(host, ["systemctl", "stop", UNIT])
    nodes.run(host, ["systemctl", "reset-failed"])
    nodes.run(host, ["rm", "-f", "/run/nvidia/toolkit/restarts.json"])
    nodes.run(host, ["nvidia-toolkit", "revert", "--force"])
    assert docker.read_text(encoding="utf-8") == ORIGINAL
    assert containerd.read_bytes() == before
    assert not nodes.path(host, "/usr/local/nvidia").exists()


def setting(node: Node, **variables: str) -> None:
    """Write the settings file of the unit."""
    given = {"TOOLKIT_SOURCE_ROOT": SOURCE, "NVIDIA_DRIVER_ROOT": "/", **variables}
    text = "".join(f"{name}={value}\n" for name, value in given.items())
    aside = nodes.path(node, f"{hosts.SETTINGS}.new")
    aside.write_text(text, encoding="utf-8")
    aside.rename(nodes.path(node, hosts.SETTINGS))


def shown(node: Node, name: str) -> str:
    """Return a property of the unit."""
    return nodes.run(node, ["systemctl", "show", f"--property={name}", "--value", UNIT]).stdout[:-1]


def known(node: Node) -> tuple[set[str], str]:
    """Return the handlers and the default that the running dockerd has."""
    found = json.loads(nodes.run(node, ["docker", "info", "--format", "{{json .}}"]).stdout)
    return set(found["Runtimes"]) & HANDLERS, found["DefaultRuntime"]


def journal(node: Node) -> str:
    return nodes.run(node, ["journalctl", f"--unit={UNIT}", "--output=cat"]).stdout


def test_start_drift_reload_stop_and_revert(host: Node) -> None:
    nodes.run(host, ["systemctl", "start", UNIT])
    assert nodes.path(host, READY).exists()
    assert known(host) == (HANDLERS, "nvidia")
    version = json.loads(
        nodes.run(host, ["docker", "version", "--format", "{{json .Server.Version}}"]).stdout
    )
    status = nodes.run(host, ["systemctl", "status", "--no-pager", UNIT]).stdout
    handlers = ", ".join(sorted(HANDLERS))
    assert f'Status: "ready: docker {version} with the handlers {handlers}"' in status

    config = nodes.path(host, CONFIG)
    good = config.read_bytes()
    config.write_text(ORIGINAL, encoding="utf-8")
    nodes.wait_for(host, lambda: config.read_bytes() == good)
    nodes.wait_for(host, nodes.path(host, READY).exists)

    pid = nodes.main_pid(host, UNIT)
    setting(host, RUNTIME="dokker")
    refused = nodes.run(host, ["systemctl", "reload", UNIT], check=False)
    assert refused.returncode != 0
    assert "RUNTIME=dokker: must be one of auto, docker, containerd, crio" in journal(host)
    setting(host, RUNTIME="docker", NVIDIA_RUNTIME_SET_AS_DEFAULT="false")
    # It returns when the settings are in effect.
    nodes.run(host, ["systemctl", "reload", UNIT])
    assert known(host) == (HANDLERS, "runc")
    nodes.wait_for(host, nodes.path(host, READY).exists)
    assert (nodes.main_pid(host, UNIT), shown(host, "ActiveState")) == (pid, "active")

    nodes.run(host, ["systemctl", "stop", UNIT])
    assert (shown(host, "Result"), shown(host, "ExecMainStatus")) == ("success", "0")
    assert known(host) == (HANDLERS, "runc")
    nodes.run(host, ["nvidia-toolkit", "revert"])
    assert known(host) == (set(), "runc")
    assert config.read_text(encoding="utf-8") == ORIGINAL


def test_a_boot_starts_it_after_the_runtimes(host: Node) -> None:
    nodes.run(host, ["systemctl", "enable", "--now", UNIT])
    try:
        before = known(host)
        pid = nodes.main_pid(host, UNIT)
        nodes.path(host, CONFIG).write_text(ORIGINAL, encoding="utf-8")
        # All but the kernel starts again: services end, and their start jobs are ordered.
        nodes.run(host, ["systemctl", "soft-reboot"], check=False)
        nodes.wait_for(host, lambda: nodes.path(host, READY).exists() and is_up(host, pid), 60)
        assert known(host) == before
        assert shown(host, "NRestarts") == "0"
    finally:
        nodes.run(host, ["systemctl", "disable", UNIT])


def is_up(node: Node, before: int) -> bool:
    """Return whether the unit is active with another process than before."""
    done = nodes.run(node, ["systemctl", "is-active", UNIT], check=False)
    return done.stdout == "active\n" and nodes.main_pid(node, UNIT) != before


def test_a_revert_on_stop_may_restart_containerd(host: Node) -> None:
    """systemd would not, if the unit had After=containerd.service."""
    before = nodes.path(host, CONTAINERD).read_bytes()
    setting(host, RUNTIME="containerd", TOOLKIT_ON_EXIT="revert")
    nodes.run(host, ["systemctl", "start", UNIT])
    changed, pid = nodes.path(host, CONTAINERD).read_bytes(), nodes.main_pid(host, "containerd")
    assert b"nvidia" in changed
    nodes.run(host, ["systemctl", "stop", UNIT])
    assert (shown(host, "Result"), shown(host, "ExecMainStatus")) == ("success", "0")
    assert nodes.path(host, CONTAINERD).read_bytes() == before
    assert nodes.main_pid(host, "containerd") != pid
    # The program's own view has /usr/local as a mount, which must not keep this directory.
    assert not nodes.path(host, "/usr/local/nvidia").exists()


def test_an_agent_that_hangs_is_replaced(host: Node) -> None:
    drop_in = nodes.path(host, f"/run/systemd/system/{UNIT}.service.d/test.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nWatchdogSec=2\nRestartSec=0\n", encoding="utf-8")
    nodes.run(host, ["systemctl", "daemon-reload"])
    try:
        nodes.run(host, ["systemctl", "start", UNIT])
        pid = nodes.main_pid(host, UNIT)
        time.sleep(3)
        assert nodes.main_pid(host, UNIT) == pid
        os.kill(nodes.machine_pid(host, pid), signal.SIGSTOP)
        nodes.wait_for(host, lambda: is_up(host, pid), 60)
        assert "Watchdog timeout" in journal(host)
        assert known(host) == (HANDLERS, "nvidia")
    finally:
        drop_in.unlink()
        nodes.run(host, ["systemctl", "daemon-reload"])


def test_an_agent_that_a_stop_ended_is_no_failure_and_one_that_the_watchdog_ended_is(
    host: Node,
) -> None:
    """Both end with 143 during a sync; a shell in place of the agent always does."""
    drop_in = nodes.path(host, f"/run/systemd/system/{UNIT}.service.d/test.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    script = "trap 'exit 143' TERM; systemd-notify --ready; while :; do sleep 0.1; done"
    drop_in.write_text(
        "[Service]\nWatchdogSec=2\nRestartSec=0\nNotifyAccess=all\nExecStart=\n"
        f'ExecStart=/bin/sh -c "{script}"\n',
        encoding="utf-8",
    )
    nodes.run(host, ["systemctl", "daemon-reload"])
    try:
        nodes.run(host, ["systemctl", "start", UNIT])
        pid = nodes.main_pid(host, UNIT)
        nodes.wait_for(host, lambda: is_up(host, pid), 30)
        assert shown(host, "NRestarts") == "1"
        nodes.run(host, ["systemctl", "stop", UNIT])
        assert (shown(host, "ActiveState"), shown(host, "Result")) == ("inactive", "success")
    finally:
        drop_in.unlink()
        nodes.run(host, ["systemctl", "daemon-reload"])


def test_a_start_that_fails_says_why_in_the_status(host: Node) -> None:
    nodes.path(host, CONFIG).write_text("{", encoding="utf-8")
    try:
        failed = nodes.run(host, ["systemctl", "start", UNIT], check=False)
        assert failed.returncode != 0
        assert shown(host, "StatusText").startswith(f"failed: {CONFIG}:1:2: it is not valid JSON")
        assert shown(host, "SubState") == "auto-restart"
    finally:
        nodes.run(host, ["systemctl", "stop", UNIT])
        nodes.path(host, CONFIG).write_text(ORIGINAL, encoding="utf-8")


def test_systemd_knows_every_line_of_the_unit(host: Node) -> None:
    files = [f"/usr/lib/systemd/system/{path.name}" for path in hosts.UNITS]
    # The manual page comes with the package, which is not installed here.
    said = nodes.run(host, ["systemd-analyze", "verify", "--man=no", *files])
    assert said.stdout + said.stderr == ""


# --- the documents ------------------------------------------------------------------------------

PACKAGE: Final = (
    "nvidia-container-runtime", "nvidia-container-runtime-hook", "nvidia-ctk", "nvidia-cdi-hook",
)  # fmt: skip
"""What the package nvidia-container-toolkit holds; `.cdi` and `.legacy` have another one."""
OWN_CONFIG: Final = "/etc/nvidia-container-runtime"
GPU: Final = "a made-up GPU\n"
# A specification in /etc/cdi of a mount namespace, without a trace of it in the machine's /etc.
_ETC: Final = """
mount -t tmpfs fake /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work fake /etc
mkdir -p /etc/cdi
cp "$1" /etc/cdi/nvidia.yaml
shift
"""


def specification(program: str) -> str:
    """Return a specification of a device that mounts a program as nvidia-smi."""
    mount = {"hostPath": program, "containerPath": "/bin/nvidia-smi", "options": ["ro", "bind"]}
    device = {"name": "all", "containerEdits": {"mounts": [mount]}}
    return json.dumps({"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [device]})


def write_program(path: Path) -> None:
    path.write_text(f"#!/bin/sh\necho '{GPU.strip()}'\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def gpu(host: Node) -> Iterator[None]:
    """Make up a driver, a device, and the image `ubuntu`.

    There is no library to ask for devices, so the toolkit is configured for a written specification
    where it is not installed by the program.
    """
    own, made = nodes.path(host, OWN_CONFIG), nodes.path(host, "/run/cdi")
    for directory in (own, made, nodes.path(host, driver.ROOT)):
        directory.mkdir(parents=True, exist_ok=True)
    (own / "config.toml").write_text('[nvidia-container-runtime]\nmode = "cdi"\n', encoding="utf-8")
    (made / "by-hand.json").write_text(specification("/run/nvidia-smi"), encoding="utf-8")
    write_program(nodes.path(host, "/run/nvidia-smi"))
    nodes.path(host, "/run/image.tar").write_bytes(image(host))
    nodes.run(host, ["docker", "load", "--input", "/run/image.tar"])
    with driver.on_node(host):
        yield
    shutil.rmtree(own)
    shutil.rmtree(made)
    nodes.run(host, ["rm", "-rf", "/opt/nvidia-container-toolkit/artifacts"])


def image(node: Node) -> bytes:
    busybox = nodes.path(node, "/usr/bin/busybox").read_bytes()
    return containers.image_archive(busybox, ["docker.io/library/ubuntu:latest"])


@pytest.mark.usefixtures("gpu")
def test_the_commands_for_a_host_work_from_top_to_bottom(host: Node, tmp_path: Path) -> None:
    ran = 0
    for block in documents.of_kind("sh host"):
        for command in block.commands:
            said = on_host(host, command, tmp_path)
            if command.startswith("docker run"):
                assert (command, said) == (command, GPU)
                ran += 1
    assert ran == 5
    assert known(host) == (set(), "runc")
    real.USED.add("`docker run --gpus all` with the real toolkit in CDI mode, without a GPU")


def on_host(node: Node, line: str, scratch: Path) -> str:
    """Run a line on the host; what a registry would send comes from elsewhere."""
    words = shlex.split(line, comments=True)
    match words:
        case ["apt-get", "install", "--yes", "nvidia-container-toolkit"]:
            give(node, "/usr/bin", PACKAGE)
        case ["apt-get", "purge", "--yes", "nvidia-container-toolkit"]:
            nodes.run(node, ["rm", *(f"/usr/bin/{name}" for name in PACKAGE)])
        case ["GOBIN=/usr/local/bin", "CGO_ENABLED=1", "go", "install", module]:
            name, _, version = module.partition("/cmd/...@")
            assert (name, version) == (binaries.TOOLKIT_MODULE, versions.TOOLKIT)
            give(node, "/usr/local/bin", binaries.TOOLKIT_PROGRAMS)
        case ["skopeo", "copy", source, target]:
            require("skopeo")
            assert source == f"docker://nvcr.io/nvidia/k8s/container-toolkit:{versions.TOOLKIT}"
            archive = scratch / "toolkit.tar"
            archive.write_bytes(toolkit_image(scratch / "files"))
            # skopeo would resolve the link that leads into the node.
            fetched = scratch / "fetched"
            subprocess.run(
                ["skopeo", "copy", "--quiet", f"docker-archive:{archive}", f"dir:{fetched}"],
                check=True, capture_output=True, timeout=60,
            )  # fmt: skip
            shutil.copytree(fetched, nodes.path(node, target.removeprefix("dir:")))
        case ["docker", "run", *rest]:
            nodes.run(node, ["docker", "image", "inspect", "ubuntu"])
            return nodes.run(node, ["docker", "run", "--network=none", *rest]).stdout
        case _:
            if words[:3] == ["systemctl", "restart", "docker"]:
                nodes.run(node, ["systemctl", "reset-failed", "docker"])
            mode = {"NVIDIA_CONTAINER_RUNTIME_MODE": "cdi"}
            return nodes.run(node, ["bash", "-eu", "-o", "pipefail", "-c", line], env=mode).stdout
    return ""


def require(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: apt-get install {program}")


def give(node: Node, directory: str, programs: Sequence[str]) -> None:
    for name in programs:
        shutil.copy(binaries.toolkit(name), nodes.path(node, f"{directory}/{name}"))


def toolkit_image(files: Path) -> bytes:
    """Return an archive of an image with the toolkit's files where NVIDIA's image has them."""
    artifacts.make_real(files / "artifacts/deb")
    layer, whole = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.add(files / "artifacts", "artifacts")
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {"architecture": "amd64", "os": "linux", "config": {}}
    config["rootfs"] = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    index = [{"Config": "config.json", "RepoTags": ["toolkit:1"], "Layers": ["layer.tar"]}]
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, data in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(index).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return whole.getvalue()


def test_the_commands_for_the_unit_work_from_top_to_bottom(host: Node) -> None:
    for block in documents.of_kind("sh host unit"):
        for command in block.commands:
            nodes.run(host, ["bash", "-eu", "-o", "pipefail", "-c", command])
    assert known(host) == (set(), "runc")
    assert shown(host, "ActiveState") == "inactive"
    text = (ROOT / "docs/systemd.md").read_text(encoding="utf-8")
    version = nodes.run(host, ["docker", "version", "--format", "{{.Server.Version}}"]).stdout
    assert f'"ready: docker {version.strip()} with the handlers ' in text


def test_podman_gives_a_container_what_the_specification_says(host: Node, tmp_path: Path) -> None:
    """The real podman of this machine; a specification stands in for what nvidia-ctk generates."""
    require("podman")
    [block] = documents.of_kind("sh host podman")
    generate, run = (shlex.split(command) for command in block.commands)
    assert generate == ["nvidia-ctk", "cdi", "generate", "--output=/etc/cdi/nvidia.yaml"]
    assert run[:3] == ["podman", "run", "--rm"]
    write_program(tmp_path / "nvidia-smi")
    text = specification(str(tmp_path / "nvidia-smi"))
    (tmp_path / "nvidia.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "image.tar").write_bytes(image(host))
    # Its store goes with the mount namespace. The machine may allow no higher limits than these.
    podman = "podman --root=/mnt/root --runroot=/mnt/run --storage-driver=vfs"
    limits = "--network=none --ulimit=nofile=1024:1024 --ulimit=nproc=1000:1000"
    script = (
        f"{podman} load --quiet --input={tmp_path}/image.tar >&2\n"
        f"{podman} --cgroup-manager=cgroupfs run {limits} {shlex.join(run[2:])}"
    )
    done = subprocess.run(
        [*fake_node.in_mounts(_ETC, str(tmp_path / "nvidia.yaml")), "sh", "-ec", script],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == GPU
    real.USED.add("podman with a CDI specification")
