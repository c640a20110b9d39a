"""Docker 20.10, 26.1 and 28.5 on booted nodes, socket-activated as their packages ship them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import artifacts, boot, containers, nodes, real
from tests.support.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

PROGRAM = str(Path(sys.executable).parent / "nvidia-toolkit")
CONFIG = "/etc/docker/daemon.json"
TOOLKIT = "/usr/local/nvidia/toolkit"
START = "/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock"
HANDLERS = {"nvidia", "nvidia-cdi", "nvidia-legacy"}
# As the GPU Operator mounts it: the socket's directory under another name.
MOUNTS = {
    "/etc/docker": "/etc/docker",
    "/runtime/sock-dir": "/run",
    "/usr/local/nvidia": "/usr/local/nvidia",
    "/run/nvidia": "/run/nvidia",
}
ORIGINAL = (
    '{\n\t"log-opts": {"max-size": "10m"},\n\t"features": {"buildkit": true},\n\t"mtu":  1400,\n'
    '\t"labels": ["a=\\u00e9"]}'
)


@pytest.fixture(scope="module", params=nodes.SUITES)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with boot.booted(request.param, units=("containerd", "docker")) as booted:
        nodes.path(booted, "/etc/docker").mkdir(exist_ok=True)
        real.USED.add(f"dockerd {info(booted)['ServerVersion']} on a booted {booted.suite} node")
        yield booted


class Tool:
    """The program on a node, with the settings of a DaemonSet for Docker."""

    def __init__(self, node: Node, source: Path) -> None:
        self.node = node
        self.options = [
            "--runtime=docker",
            f"--toolkit-source-root={source}",
            "--socket=/runtime/sock-dir/docker.sock",
        ]

    def __call__(self, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None) -> str:
        argv = [PROGRAM, *arguments, *self.options]
        done = containers.daemonset(self.node, argv, env=env, mounts=MOUNTS)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def tool(node: Node, source: Path) -> Iterator[Tool]:
    """A tool on a node whose daemon and files are afterwards what they were before."""
    found = Tool(node, source)
    path = nodes.path(node, CONFIG)
    path.write_text(ORIGINAL, encoding="utf-8")
    before, daemon = picture(node), known(node)
    yield found
    found("revert", "--force")
    assert picture(node) == before
    # What the *running* daemon has must be gone as well: dockerd keeps what a file leaves out.
    assert known(node)[0].isdisjoint(HANDLERS)
    assert known(node)[1] == daemon[1]


def info(node: Node) -> dict[str, Any]:
    found = json.loads(nodes.run(node, ["docker", "info", "--format", "{{json .}}"]).stdout)
    assert isinstance(found, dict)
    return found


def known(node: Node) -> tuple[set[str], str]:
    """Return the handlers and the default that the running daemon has."""
    found = info(node)
    return set(found["Runtimes"]), found["DefaultRuntime"]


def picture(node: Node) -> dict[str, tuple[str, bytes]]:
    return {
        str(path): (oct(path.lstat().st_mode), path.read_bytes() if path.is_file() else b"")
        for place in ("/etc/docker", "/usr/local/nvidia", "/etc/containerd")
        for path in sorted(nodes.path(node, place).rglob("*"))
        if path.name != "key.json"
    }


def times(node: Node) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for place in ("/etc/docker", "/usr/local/nvidia")
        for path in nodes.path(node, place).rglob("*")
    }


def load_image(node: Node) -> None:
    archive = nodes.path(node, "/run/image.tar")
    busybox = nodes.path(node, "/usr/bin/busybox").read_bytes()
    archive.write_bytes(containers.image_archive(busybox, ["test:1"]))
    nodes.run(node, ["docker", "load", "--input", "/run/image.tar"])
    archive.unlink()


@pytest.mark.smoke
def test_install_repeat_and_revert(node: Node, tool: Tool) -> None:
    pid = nodes.main_pid(node, "docker")
    containerd = nodes.main_pid(node, "containerd")
    tool("run", "--no-daemon")
    handlers, default = known(node)
    assert handlers >= HANDLERS
    assert default == "nvidia"
    assert nodes.main_pid(node, "docker") == pid
    changed = json.loads(nodes.path(node, CONFIG).read_text(encoding="utf-8"))
    assert changed["runtimes"]["nvidia"]["path"] == f"{TOOLKIT}/nvidia-container-runtime"
    # Everything else is there as it was spelled.
    text = nodes.path(node, CONFIG).read_text(encoding="utf-8")
    for kept in (
        '"mtu":  1400,',
        '["a=\\u00e9"]',
        '{"buildkit": true}',
        '\t"log-opts": {"max-size": "10m"}',
    ):
        assert kept in text
    still = times(node)
    told = tool("run", "--no-daemon")
    assert "nothing to do" in told
    assert "SIGHUP" not in told
    assert times(node) == still
    assert (nodes.main_pid(node, "docker"), nodes.main_pid(node, "containerd")) == (
        pid,
        containerd,
    )


def test_absent_file_is_made_and_goes_again(node: Node, tool: Tool) -> None:
    path = nodes.path(node, CONFIG)
    path.unlink()
    try:
        tool("run", "--no-daemon")
        assert known(node)[1] == "nvidia"
        tool("revert")
        assert not path.exists()
        assert known(node)[0].isdisjoint(HANDLERS)
    finally:
        path.write_text(ORIGINAL, encoding="utf-8")


def test_features_stay_beside_cdi(node: Node, tool: Tool) -> None:
    tool("run", "--no-daemon", "--enable-cdi-in-runtime")
    changed = json.loads(nodes.path(node, CONFIG).read_text(encoding="utf-8"))
    assert changed["features"] == {"buildkit": True, "cdi": True}


def test_default_is_taken_away_live(node: Node, tool: Tool) -> None:
    tool("run", "--no-daemon")
    assert known(node)[1] == "nvidia"
    tool("run", "--no-daemon", env={"DOCKER_SET_AS_DEFAULT": "false"})
    handlers, default = known(node)
    assert handlers >= HANDLERS
    assert default == "runc"
    assert "default-runtime" not in json.loads(nodes.path(node, CONFIG).read_text(encoding="utf-8"))


def test_containers_run_through_the_wrapper_and_survive(node: Node, tool: Tool) -> None:
    load_image(node)
    start = ["docker", "run", "--detach", "--network=none", "test:1", "sleep", "600"]
    began = nodes.run(node, start, check=False)
    if began.returncode != 0:
        pytest.skip(
            f"this machine lets docker on {node.suite} run no containers: {began.stderr.strip()}"
        )
    survivor = began.stdout.strip()
    ran = nodes.path(node, artifacts.RAN)
    try:
        tool("run", "--no-daemon")
        once = [
            "docker",
            "run",
            "--rm",
            "--network=none",
            "--runtime=nvidia-cdi",
            "test:1",
            "echo",
            "hello",
        ]
        # Without the driver the wrapper passes it on to runc without a word.
        assert nodes.run(node, once).stdout == "hello\n"
        assert not ran.exists()
        nodes.run(node, ["mount", "-t", "tmpfs", "driver", "/sys/module"])
        try:
            nodes.path(node, "/sys/module/nvidia").mkdir()
            assert nodes.run(node, once).stdout == "hello\n"
        finally:
            nodes.run(node, ["umount", "/sys/module"])
        calls = ran.read_text(encoding="utf-8").splitlines()
        ran.unlink()
        assert any(line.startswith("nvidia-container-runtime.cdi.real ") for line in calls)
        shown = nodes.run(node, ["docker", "inspect", "--format={{.State.Running}}", survivor])
        assert shown.stdout == "true\n"
        # A container through a handler of ours keeps the handlers, and loses the default.
        held = nodes.run(
            node,
            [
                "docker",
                "run",
                "--detach",
                "--network=none",
                "--name=held",
                "test:1",
                "sleep",
                "600",
            ],
        ).stdout.strip()
        told = tool("revert", code=4)
        assert "1 container still uses the toolkit's handlers: held" in told
        handlers, default = known(node)
        assert handlers >= HANDLERS
        assert default == "runc"
        nodes.run(node, ["docker", "rm", "--force", held])
        tool("revert")
        assert (
            nodes.run(node, ["docker", "inspect", "--format={{.State.Running}}", survivor]).stdout
            == "true\n"
        )
    finally:
        nodes.run(node, ["docker", "rm", "--force", survivor])


@pytest.mark.parametrize("flag", ["--default-runtime=runc", "--add-runtime=mine=/usr/bin/runc"])
def test_option_that_is_a_flag_as_well_is_refused(node: Node, tool: Tool, flag: str) -> None:
    override = nodes.path(node, "/etc/systemd/system/docker.service.d/flag.conf")
    override.parent.mkdir(exist_ok=True)
    start = f"[Service]\nExecStart=\nExecStart={START} {flag}\n"
    override.write_text(start, encoding="utf-8")
    restart(node)
    try:
        before = picture(node)
        told = tool("run", "--no-daemon", code=4)
        assert f"dockerd runs with {flag.split('=', maxsplit=1)[0]}" in told
        assert picture(node) == before
    finally:
        override.unlink()
        restart(node)


def test_a_file_that_clashes_with_a_flag_as_it_is_is_refused(node: Node, tool: Tool) -> None:
    """None of our keys: dockerd would not start again, and 20.10 says so only on a reload."""
    override = nodes.path(node, "/etc/systemd/system/docker.service.d/flag.conf")
    override.parent.mkdir(exist_ok=True)
    start = f"[Service]\nExecStart=\nExecStart={START} --default-shm-size=1G\n"
    override.write_text(start, encoding="utf-8")
    restart(node)
    config = nodes.path(node, CONFIG)
    try:
        config.write_text('{"mtu": 1400, "default-shm-size": "1G"}\n', encoding="utf-8")
        before, pid = picture(node), nodes.main_pid(node, "docker")
        told = tool("run", "--no-daemon", code=3)
        assert (
            "daemon.json: as it is, it keeps dockerd from starting: the running dockerd has options"
            " of it as flags as well: `default-shm-size` (also --default-shm-size)" in told
        )
        assert "please report" not in told
        assert (picture(node), nodes.main_pid(node, "docker")) == (before, pid)
        config.write_text('{"mtu": 1400}\n', encoding="utf-8")
        tool("run", "--no-daemon")
        assert known(node)[1] == "nvidia"
        tool("revert")
    finally:
        config.write_text(ORIGINAL, encoding="utf-8")
        override.unlink()
        restart(node)


@pytest.mark.parametrize(
    "text",
    [
        "null",
        '{"runtimes": null, "default-runtime": null, "features": null}',
    ],
)
def test_null_is_accepted_as_dockerd_does(node: Node, tool: Tool, text: str) -> None:
    config = nodes.path(node, CONFIG)
    config.write_text(text, encoding="utf-8")
    try:
        restart(node)
        tool("run", "--no-daemon", "--enable-cdi-in-runtime")
        assert known(node)[1] == "nvidia"
        assert tool("status", "--enable-cdi-in-runtime") == "in sync\nready\n"
        tool("revert")
        assert known(node)[1] == "runc"
        assert set(HANDLERS).isdisjoint(known(node)[0])
        assert config.read_text(encoding="utf-8") == text
        restart(node)
    finally:
        config.write_text(ORIGINAL, encoding="utf-8")
        restart(node)


def test_a_runtime_that_is_null_is_left_as_it_is_or_refused(node: Node, tool: Tool) -> None:
    """20.10 accepts it; 26.1 and 28.5 call it valid, but neither start with it nor load it."""
    config = nodes.path(node, CONFIG)
    text = '{"runtimes": {"mine": null}, "mtu": 1400}'
    config.write_text(text, encoding="utf-8")
    try:
        if node.suite == "bookworm":
            tool("run", "--no-daemon")
            assert known(node)[1] == "nvidia"
            tool("revert")
        else:
            refused = tool("run", "--no-daemon", code=3)
            assert "as it is, it keeps dockerd from starting: its runtime mine is null" in refused
        assert config.read_text(encoding="utf-8") == text
        assert set(HANDLERS).isdisjoint(known(node)[0])
    finally:
        config.write_text(ORIGINAL, encoding="utf-8")
        restart(node)


def test_config_file_of_the_daemon_is_followed(node: Node, tool: Tool) -> None:
    override = nodes.path(node, "/etc/systemd/system/docker.service.d/flag.conf")
    override.parent.mkdir(exist_ok=True)
    elsewhere = nodes.path(node, "/etc/docker/elsewhere.json")
    elsewhere.write_text('{"mtu": 1400}\n', encoding="utf-8")
    flag = "--config-file=/etc/docker/elsewhere.json"
    start = f"[Service]\nExecStart=\nExecStart={START} {flag}\n"
    override.write_text(start, encoding="utf-8")
    restart(node)
    try:
        tool("run", "--no-daemon")
        assert known(node)[1] == "nvidia"
        assert nodes.path(node, CONFIG).read_text(encoding="utf-8") == ORIGINAL
        tool("revert")
        assert elsewhere.read_text(encoding="utf-8") == '{"mtu": 1400}\n'
    finally:
        override.unlink()
        elsewhere.unlink()
        restart(node)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1,}', "it is not valid JSON"),
        ('["a"]', "it is not a JSON object"),
        ('{"runtimes": []}', "its `runtimes` is not an object but []"),
        ('{"a": 1, "a": 2}', "twice"),
        ("{} {}", "it is not valid JSON"),
    ],
    ids=["trailing comma", "a list", "list of runtimes", "twice", "two values"],
)
def test_broken_file_is_refused(node: Node, tool: Tool, text: str, says: str) -> None:
    path = nodes.path(node, CONFIG)
    path.write_text(text, encoding="utf-8")
    try:
        before = picture(node)
        told = tool("run", "--no-daemon", code=3)
        assert "/etc/docker/daemon.json" in told
        assert says in told
        assert picture(node) == before
    finally:
        path.write_text(ORIGINAL, encoding="utf-8")


def restart(node: Node) -> None:
    nodes.run(node, ["systemctl", "daemon-reload"])
    nodes.run(node, ["systemctl", "reset-failed", "docker", "docker.socket"])
    nodes.run(node, ["systemctl", "restart", "docker"])
