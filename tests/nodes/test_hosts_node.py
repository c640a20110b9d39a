"""A host without Kubernetes: the unit under a real systemd, with a real dockerd and containerd.

The program is installed on the node itself, with its own Python, and not run as a container.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support import artifacts, boot, hosts, images, nodes, real
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
    if reason := images.why_not():
        pytest.skip(reason)
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


@pytest.mark.smoke
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
