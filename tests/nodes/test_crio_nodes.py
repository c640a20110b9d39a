"""CRI-O on a booted node: handlers in a drop-in, the hook of old, and what a SIGHUP does not do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import artifacts, containers, crio, nodes, real
from tests.support.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

PROGRAM = str(Path(sys.executable).parent / "nvidia-toolkit")
TOOLKIT = "/usr/local/nvidia/toolkit"
DROP_IN = "/etc/crio/crio.conf.d/99-nvidia.toml"
HOOKS = "/usr/share/containers/oci/hooks.d"
HOOK = f"{HOOKS}/oci-nvidia-hook.json"
RESTARTS = "/run/nvidia/toolkit/restarts.json"
HANDLERS = {
    "nvidia": f"{TOOLKIT}/nvidia-container-runtime",
    "nvidia-cdi": f"{TOOLKIT}/nvidia-container-runtime.cdi",
    "nvidia-legacy": f"{TOOLKIT}/nvidia-container-runtime.legacy",
}
MOUNTS = {
    "/etc/crio": "/etc/crio",
    "/run/crio": "/run/crio",
    HOOKS: HOOKS,
    "/usr/local/nvidia": "/usr/local/nvidia",
    "/run/nvidia": "/run/nvidia",
}


@pytest.fixture(scope="module", params=crio.SUITES)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    if reason := crio.why_not():
        pytest.skip(reason)
    with nodes.boot(request.param, units=()) as booted:
        crio.install(booted)
        crio.prepare_images(booted)
        crio.start(booted)
        nodes.path(booted, HOOKS).mkdir(parents=True, exist_ok=True)
        real.USED.add(f"crio {crio.VERSION} on a booted {booted.suite} node")
        yield booted


class Tool:
    """The program on a node, with the settings of a DaemonSet for CRI-O."""

    def __init__(self, node: Node, source: Path) -> None:
        self.node = node
        self.options = [
            "--runtime=crio",
            f"--toolkit-source-root={source}",
            "--socket=/run/crio/crio.sock",
        ]

    def __call__(self, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None) -> str:
        argv = [PROGRAM, *arguments, *self.options]
        done = containers.daemonset(self.node, argv, env=env, mounts=MOUNTS)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def tool(node: Node, source: Path) -> Iterator[Tool]:
    nodes.run(node, ["systemctl", "reset-failed", "crio"])
    nodes.path(node, RESTARTS).unlink(missing_ok=True)
    found = Tool(node, source)
    before = picture(node)
    yield found
    found("revert", "--force")
    assert picture(node) == before
    assert set(crio.handlers(node)).isdisjoint(HANDLERS)


def picture(node: Node) -> dict[str, tuple[str, bytes]]:
    return {
        str(path): (oct(path.lstat().st_mode), path.read_bytes() if path.is_file() else b"")
        for place in ("/etc/crio", HOOKS, "/usr/local/nvidia")
        for path in sorted(nodes.path(node, place).rglob("*"))
    }


def times(node: Node) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for place in ("/etc/crio", HOOKS, "/usr/local/nvidia")
        for path in nodes.path(node, place).rglob("*")
    }


def default(node: Node) -> str:
    return str(crio.config(node)["crio"]["runtime"]["default_runtime"])


def test_install_repeat_and_revert(node: Node, tool: Tool) -> None:
    before = crio.handlers(node)
    said = default(node)
    pid = nodes.main_pid(node, "crio")
    assert "crio.service to restart (unavailable for about 0.2 s)" in tool("plan")
    told = tool("run", "--no-daemon")
    assert "from which the toolkit's handlers inherit" not in told
    handlers = crio.handlers(node)
    assert {name: handlers[name]["runtime_path"] for name in HANDLERS} == HANDLERS
    assert default(node) == "nvidia"
    assert {name: handlers[name] for name in before} == before
    # Ours have what the handler that was the default has, but for the binary.
    for name in HANDLERS:
        ours = {"runtime_path": "", "runtime_type": "oci"}
        assert handlers[name] | ours == before[said] | ours
    written = tomllib.loads(nodes.path(node, DROP_IN).read_text(encoding="utf-8"))
    assert set(written["crio"]["runtime"]) == {"runtimes", "default_runtime"}
    assert set(written["crio"]["runtime"]["runtimes"]) == set(HANDLERS)
    assert not nodes.path(node, "/etc/crio/crio.conf").exists()
    installed = nodes.main_pid(node, "crio")
    assert installed not in {0, pid}
    still = times(node)
    assert "nothing to do" in tool("run", "--no-daemon")
    assert times(node) == still
    assert nodes.main_pid(node, "crio") == installed
    assert tool("status").startswith("in sync")


def test_pods_run_through_the_installed_wrapper_and_survive(node: Node, tool: Tool) -> None:
    if reason := crio.why_no_pods(node):
        pytest.skip(reason)
    survivor = crio.start_pod(node, handler="", argv=["sleep", "600"])
    ran = nodes.path(node, artifacts.RAN)
    try:
        tool("run", "--no-daemon")
        done = crio.run_pod(node, handler="nvidia-cdi", argv=["echo", "hello"])
        assert (done.exit_code, done.output.strip()) == (0, "hello")
        assert not ran.exists()
        nodes.run(node, ["mount", "-t", "tmpfs", "driver", "/sys/module"])
        try:
            nodes.path(node, "/sys/module/nvidia").mkdir()
            assert crio.run_pod(node, handler="", argv=["true"]).exit_code == 0
        finally:
            nodes.run(node, ["umount", "/sys/module"])
        assert "nvidia-container-runtime.real " in ran.read_text(encoding="utf-8")
        ran.unlink()
        assert crio.is_running(node, survivor)
    finally:
        crio.stop_pod(node, survivor)


def test_handler_stays_while_a_pod_has_it(node: Node, tool: Tool) -> None:
    if reason := crio.why_no_pods(node):
        pytest.skip(reason)
    tool("run", "--no-daemon")
    pod = crio.start_pod(node, handler="nvidia", argv=["sleep", "600"])
    try:
        assert "1 container still uses the toolkit's handlers" in tool("revert", code=4)
        assert set(HANDLERS) <= set(crio.handlers(node))
        assert default(node) == "runc"
    finally:
        # This is what hangs for ever where the handler is taken away under its pods.
        crio.stop_pod(node, pod)
    tool("revert")


def test_sighup_keeps_the_process_and_says_what_it_lacks(node: Node, tool: Tool) -> None:
    pid = nodes.main_pid(node, "crio")
    told = tool("run", "--no-daemon", "--restart-mode=signal")
    assert f"sending SIGHUP to PID {pid} " in told
    assert "uses the change for new pods only after a restart" in told
    assert nodes.main_pid(node, "crio") == pid
    assert default(node) == "nvidia"


def test_keys_go_into_crio_conf_where_no_drop_in_is_wanted(node: Node, tool: Tool) -> None:
    path = nodes.path(node, "/etc/crio/crio.conf")
    path.write_text('# mine\n[crio.image]\npause_command = "" # why\n', encoding="utf-8")
    crio.start(node)
    try:
        # The package's drop-in is read later and names a default: it would win.
        told = tool("run", "--no-daemon", "--drop-in-config=", code=3)
        assert "the default handler would be 'runc', not nvidia" in told
        tool("run", "--no-daemon", "--drop-in-config=", "--set-as-default=false")
        text = path.read_text(encoding="utf-8")
        assert text.startswith('# mine\n[crio.image]\npause_command = "" # why\n')
        assert set(crio.handlers(node)) >= set(HANDLERS)
        assert not nodes.path(node, DROP_IN).exists()
        tool("revert", "--drop-in-config=")
        assert (
            path.read_text(encoding="utf-8") == '# mine\n[crio.image]\npause_command = "" # why\n'
        )
    finally:
        path.unlink()
        crio.start(node)


def test_toml_1_1_of_others_is_read(node: Node, tool: Tool) -> None:
    path = nodes.path(node, "/etc/crio/crio.conf.d/20-newer.conf")
    path.write_bytes(
        b'[crio.runtime]\ndefault_env = ["A=\\x42"]\n[crio]\nx = {\n  y = 1, # why\n}\n'
    )
    try:
        tool("run", "--no-daemon")
        assert set(HANDLERS) <= set(crio.handlers(node))
        assert crio.config(node)["crio"]["runtime"]["default_env"] == ["A=B"]
        tool("revert")
    finally:
        path.unlink()


def test_broken_drop_in_of_others_is_named(node: Node, tool: Tool) -> None:
    broken = nodes.path(node, "/etc/crio/crio.conf.d/50-broken")
    broken.write_text("[crio\n", encoding="utf-8")
    try:
        before = picture(node)
        assert "/etc/crio/crio.conf.d/50-broken:1:6" in tool("run", "--no-daemon", code=3)
        assert picture(node) == before
    finally:
        broken.unlink()


def test_handlers_of_conmonrs_are_inherited_whole(node: Node, tool: Tool) -> None:
    """No conmon is on PATH: CRI-O would not start with handlers that name no monitor."""
    monitor = nodes.path(node, "/usr/bin/conmonrs")
    # CRI-O asks it for its version when it starts, and runs it for pods.
    monitor.write_text('#!/bin/sh\necho \'{"version": "0.7.2"}\'\n', encoding="utf-8")
    monitor.chmod(0o755)
    drop_in = nodes.path(node, "/etc/crio/crio.conf.d/20-pods.conf")
    drop_in.write_text(
        """\
[crio.runtime]
default_runtime = "pods"
[crio.runtime.runtimes.pods]
runtime_path = "/usr/libexec/crio/runc"
runtime_type = "pod"
runtime_root = "/run/pods"
monitor_path = "/usr/bin/conmonrs"
monitor_cgroup = "system.slice"
monitor_env = ["PATH=/usr/sbin:/usr/bin"]
container_min_memory = "12MiB"
allowed_annotations = ["io.containers.trace-syscall", "io.kubernetes.cri-o.Devices"]
""",
        encoding="utf-8",
    )
    try:
        crio.start(node)
        base = crio.handlers(node)["pods"]
        assert base["runtime_type"] == "pod"
        # No pod starts through the stand-in, not by fault of the handlers that inherit it.
        told = tool("run", "--no-daemon")
        assert (
            "not verified: no container was started through nvidia, nvidia-cdi, nvidia-legacy: "
            in told
        )
        assert ", and through the handler pods none starts either: " in told
        found = crio.handlers(node)
        for name, path in HANDLERS.items():
            assert found[name] == {**base, "runtime_path": path}
        assert default(node) == "nvidia"
        assert "nothing to do" in tool("run", "--no-daemon")
        tool("revert")
    finally:
        drop_in.unlink()
        monitor.unlink()
        crio.start(node)


def test_directory_of_the_daemon_is_followed(node: Node, tool: Tool) -> None:
    override = nodes.path(node, "/etc/systemd/system/crio.service.d/directory.conf")
    override.parent.mkdir(exist_ok=True)
    own = nodes.path(node, "/etc/crio/own.d")
    shutil.copytree(nodes.path(node, "/etc/crio/crio.conf.d"), own)
    start = "/usr/local/bin/crio --config-dir /etc/crio/own.d"
    override.write_text(f"[Service]\nExecStart=\nExecStart={start}\n", encoding="utf-8")
    nodes.run(node, ["systemctl", "daemon-reload"])
    crio.start(node)
    try:
        tool("run", "--no-daemon")
        assert (own / "99-nvidia.toml").exists()
        assert not nodes.path(node, DROP_IN).exists()
        assert default(node) == "nvidia"
        tool("revert")
        assert not (own / "99-nvidia.toml").exists()
    finally:
        shutil.rmtree(own)
        override.unlink()
        nodes.run(node, ["systemctl", "daemon-reload"])
        crio.start(node)


def test_a_default_handler_on_the_command_line_is_refused(node: Node, tool: Tool) -> None:
    override = nodes.path(node, "/etc/systemd/system/crio.service.d/flag.conf")
    override.parent.mkdir(exist_ok=True)
    start = "/usr/local/bin/crio --default-runtime runc"
    override.write_text(f"[Service]\nExecStart=\nExecStart={start}\n", encoding="utf-8")
    nodes.run(node, ["systemctl", "daemon-reload"])
    crio.start(node)
    try:
        before = picture(node)
        assert "crio runs with --default-runtime, which takes precedence" in tool(
            "run", "--no-daemon", code=4
        )
        assert picture(node) == before
        tool("run", "--no-daemon", "--set-as-default=false")
        assert (default(node), set(HANDLERS) <= set(crio.handlers(node))) == ("runc", True)
        tool("revert")
    finally:
        override.unlink()
        nodes.run(node, ["systemctl", "daemon-reload"])
        crio.start(node)


def test_hook_mode(node: Node, tool: Tool) -> None:
    tool("run", "--no-daemon")
    assert nodes.path(node, DROP_IN).exists()
    # Both at once would run the hook twice: the asked one stays.
    tool("run", "--no-daemon", env={"CRIO_CONFIG_MODE": "hook"})
    assert not nodes.path(node, DROP_IN).exists()
    assert set(crio.handlers(node)).isdisjoint(HANDLERS)
    hook = json.loads(nodes.path(node, HOOK).read_text(encoding="utf-8"))
    assert hook["hook"]["path"] == f"{TOOLKIT}/nvidia-container-runtime-hook"
    assert hook["hook"]["env"][0].startswith(f"PATH={TOOLKIT}:")
    assert (hook["version"], hook["stages"], hook["when"]["always"]) == (
        "1.0.0",
        ["prestart"],
        True,
    )
    still = times(node)
    assert "nothing to do" in tool("run", "--no-daemon", env={"CRIO_CONFIG_MODE": "hook"})
    assert times(node) == still
    # Back in config mode the hook of ours goes.
    told = tool("run", "--no-daemon")
    assert not nodes.path(node, HOOK).exists()
    assert default(node) == "nvidia"
    assert "removed" in told


def test_foreign_hooks_stay_and_a_stale_one_of_the_toolkit_goes(node: Node, tool: Tool) -> None:
    foreign = nodes.path(node, f"{HOOKS}/10-mine.json")
    foreign.write_text(
        '{"version": "1.0.0", "hook": {"path": "/usr/bin/true"}, "when": {}, "stages": []}'
    )
    stale = nodes.path(node, HOOK)
    program = "/old/toolkit/nvidia-container-toolkit"
    text = json.dumps({"version": "1.0.0", "hook": {"path": program}, "when": {}, "stages": []})
    stale.write_text(text)
    try:
        tool("run", "--no-daemon")
        assert foreign.exists()
        assert not stale.exists()
        tool("revert")
        assert stale.read_text() == text
    finally:
        foreign.unlink()
        stale.unlink()


def test_hook_is_one_that_podman_reads(node: Node, tool: Tool) -> None:
    podman = shutil.which("podman")
    if podman is None:
        pytest.skip("podman is not installed: apt-get install podman")
    tool("run", "--no-daemon", env={"CRIO_CONFIG_MODE": "hook"})
    # Only podman's reading is wanted: whether it can run the container here does not matter.
    with tempfile.TemporaryDirectory(prefix="podman-") as place:
        hooks, rootfs = Path(place, "hooks"), Path(place, "rootfs")
        hooks.mkdir()
        # podman passes over a hook whose program is not there: here it lies elsewhere.
        text = nodes.path(node, HOOK).read_text(encoding="utf-8").replace(TOOLKIT, place)
        (hooks / "oci-nvidia-hook.json").write_text(text, encoding="utf-8")
        program = Path(place, "nvidia-container-runtime-hook")
        program.write_text("#!/bin/sh\n", encoding="utf-8")
        program.chmod(0o755)
        (rootfs / "bin").mkdir(parents=True)
        shutil.copy(nodes.path(node, "/usr/bin/busybox"), rootfs / "bin/true")
        done = subprocess.run(
            [podman, f"--root={place}/r", f"--runroot={place}/run", "--storage-driver=vfs",
             "--cgroup-manager=cgroupfs", f"--hooks-dir={hooks}", "--log-level=debug",
             "run", "--rm", "--network=none", "--log-driver=none", "--rootfs", f"{rootfs}",
             "/bin/true"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert f"added hook {hooks}/oci-nvidia-hook.json" in done.stderr, done.stderr
    assert "hook oci-nvidia-hook.json matched; adding to stages [prestart]" in done.stderr
