"""The supervisor of a real containerd, and what a restart affects: booted Debian, real systemd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support import boot, containers, nodes, real
from tests.support.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

PROGRAM: Final = str(Path(sys.executable).parent / "nvidia-toolkit")
UNITS: Final = "/run/systemd/system"
KINDS: Final = {
    "requires": "Requires=containerd.service",
    "binds-to": "BindsTo=containerd.service\nAfter=containerd.service",
    "part-of": "PartOf=containerd.service",
    "requisite": "Requisite=containerd.service\nAfter=containerd.service",
    "stops-with": "StopPropagatedFrom=containerd.service",
    "behind": "Requires=requires.service\nAfter=requires.service",
}
NAMES: Final = sorted(f"{kind}.service" for kind in KINDS)
NOTHING: Final = "nothing is known to start it again"
CHOICES: Final = (
    "(use --restart-mode none and restart it yourself, or --restart-mode signal if something does"
    " start it)"
)
AGENT: Final = """#!/bin/sh
# A node agent that starts containerd once and has other things to do.
if [ ! -e /run/agent-was-here ]; then
    touch /run/agent-was-here
    cd /run
    /usr/bin/containerd >/run/agent.log 2>&1 &
fi
exec sleep infinity
"""
WITHOUT_US: Final = "/bin/sh -c '! grep -rqs nvidia /etc/containerd'"
"""What fails as long as our change is in the configuration."""
CONFIG: Final = "/etc/containerd/config.toml"
HANDLER: Final = "nvidia-container-runtime"
LAUNCH: Final = "/run/nvidia/toolkit/launch.json"
NO_SYSTEMD: Final = {**containers.DEFAULT_MOUNTS, "/host/run/systemd": "/etc/containerd"}


@pytest.fixture(params=["trixie"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """Boot a node of its own for each test, which changes its units."""
    with boot.booted(request.param) as booted:
        version = nodes.run(booted, ["systemctl", "--version"]).stdout.split()[1]
        real.USED.add(f"systemd {version} on a booted {booted.suite} node")
        yield booted


every_suite = pytest.mark.parametrize("node", nodes.SUITES, indirect=True)


class Tool:
    """The program on a node, as its DaemonSet runs it."""

    def __init__(self, node: Node, source: Path) -> None:
        self.node = node
        self.options = [
            "--runtime=containerd",
            f"--toolkit-source-root={source}",
            "--reload-timeout=20",
        ]

    def __call__(
        self,
        *arguments: str,
        code: int = 0,
        mounts: Mapping[str, str] = containers.DEFAULT_MOUNTS,
        capabilities: Collection[str] | None = None,
    ) -> str:
        argv = [PROGRAM, arguments[0], *self.options, *arguments[1:]]
        done = containers.daemonset(self.node, argv, mounts=mounts, capabilities=capabilities)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def tool(node: Node, source: Path) -> Tool:
    return Tool(node, source)


def write_unit(node: Node, name: str, text: str) -> None:
    path = nodes.path(node, f"{UNITS}/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def set_containerd(node: Node, *lines: str) -> None:
    """Set lines of the section [Service] of containerd's unit, from its next start on."""
    write_unit(node, "containerd.service.d/test.conf", "\n".join(["[Service]", *lines, ""]))
    nodes.run(node, ["systemctl", "daemon-reload"])


def depending(node: Node) -> dict[str, int]:
    """Start a unit with each kind of dependency; return the PIDs."""
    for kind, lines in KINDS.items():
        write_unit(
            node,
            f"{kind}.service",
            f"[Unit]\n{lines}\n[Service]\nExecStart=/usr/bin/sleep infinity\n",
        )
    nodes.run(node, ["systemctl", "daemon-reload"])
    nodes.run(node, ["systemctl", "start", *NAMES])
    return pids(node)


def pids(node: Node) -> dict[str, int]:
    return {name: nodes.main_pid(node, name) for name in NAMES if nodes.is_active(node, name)}


def containerds(node: Node) -> list[int]:
    """Return the PIDs of each containerd that runs, as the node counts."""
    stats = nodes.path(node, "/proc").glob("[0-9]*/stat")
    names = {int(each.parent.name): each.read_text(encoding="utf-8").split()[1:3] for each in stats}
    return [pid for pid, (name, state) in names.items() if name == "(containerd)" and state != "Z"]


def environment(node: Node, pid: int) -> list[bytes]:
    """Return the variables of a process, without those that a shell sets for itself."""
    found = nodes.path(node, f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return sorted(each for each in found if not each.startswith((b"PWD=", b"OLDPWD=")))


def problems(tool: Tool) -> list[str]:
    """Return the problems that `diagnose` finds."""
    return [each["problem"] for each in json.loads(tool("diagnose", "--output=json"))["findings"]]


def is_installed(node: Node) -> bool:
    return any(
        HANDLER in path.read_text(encoding="utf-8")
        for path in nodes.path(node, "/etc/containerd").rglob("*.toml")
    )


# --- who starts it again --------------------------------------------------------------------------


def test_a_unit_with_restart_no_is_restarted_by_systemd_itself(node: Node, tool: Tool) -> None:
    set_containerd(node, "Restart=no")
    pid = nodes.main_pid(node, "containerd")
    assert "containerd.service to restart (unavailable for about 0.1 s)" in tool("plan")
    tool("run", "--no-daemon")
    assert nodes.main_pid(node, "containerd") not in {0, pid}
    assert is_installed(node)


def test_a_signal_to_a_unit_with_restart_no_is_followed_by_a_start(node: Node, tool: Tool) -> None:
    set_containerd(node, "Restart=no")
    pid = nodes.main_pid(node, "containerd")
    assert f"SIGHUP to PID {pid}, which ends it: {NOTHING}" in tool(
        "plan", "--restart-mode=signal", "--output=json"
    )
    said = tool("run", "--no-daemon", "--restart-mode=signal")
    assert (
        f"SIGHUP would end containerd (PID {pid}), and {NOTHING}: containerd.service has Restart=no"
        in said
    )
    assert nodes.main_pid(node, "containerd") not in {0, pid}
    assert is_installed(node)


def test_a_pod_that_does_not_see_systemd_ends_nothing(node: Node, tool: Tool) -> None:
    pid = nodes.main_pid(node, "containerd")
    before = nodes.path(node, CONFIG).exists() and nodes.path(node, CONFIG).read_bytes()
    said = tool("run", "--no-daemon", code=4, mounts=NO_SYSTEMD)
    assert f"SIGHUP would end containerd (PID {pid}), and {NOTHING}: " in said
    assert f"{CHOICES}: nothing was changed" in said
    assert nodes.main_pid(node, "containerd") == pid
    assert before == (nodes.path(node, CONFIG).exists() and nodes.path(node, CONFIG).read_bytes())
    assert not is_installed(node)


def started_by_agent(node: Node) -> int:
    """Stop containerd.service and let a node agent start a containerd instead; return its PID."""
    nodes.run(node, ["systemctl", "disable", "--now", "containerd"])
    script = nodes.path(node, "/opt/agent.sh")
    script.parent.mkdir(exist_ok=True)
    script.write_text(AGENT, encoding="utf-8")
    script.chmod(0o755)
    write_unit(node, "node-agent.service", "[Service]\nExecStart=/opt/agent.sh\nRestart=always\n")
    nodes.run(node, ["systemctl", "daemon-reload"])
    nodes.run(node, ["systemctl", "start", "node-agent"])
    nodes.wait_for(node, lambda: nodes.answers(node))
    (pid,) = containerds(node)
    return pid


def test_the_unit_of_a_node_agent_is_not_restarted_for_its_containerd(
    node: Node, tool: Tool
) -> None:
    pid = started_by_agent(node)
    agent = nodes.main_pid(node, "node-agent")
    plan = tool("plan")
    assert (
        f"SIGHUP would end containerd (PID {pid}), and {NOTHING}: PID {pid} was started in" in plan
    )
    assert f"node-agent.service, but is not its service: the main process is PID {agent}" in plan
    assert "node-agent.service to restart" not in plan
    for mode in ("auto", "systemd"):
        said = tool("run", "--no-daemon", f"--restart-mode={mode}", code=4)
        assert f"PID {pid} was started in node-agent.service, but is not its service" in said
    assert containerds(node) == [pid]
    assert nodes.main_pid(node, "node-agent") == agent
    assert not is_installed(node)
    found = problems(tool)
    assert any(
        each.startswith("nothing is known to start containerd again if it ends") for each in found
    )


def killed_after_the_signal(node: Node, tool: Tool) -> None:
    """Kill a run that has ended the runtime and waits for it."""
    options = [*tool.options, "--restart-mode=signal", "--reload-timeout=120"]
    with containers.start_daemonset(node, [PROGRAM, "run", "--no-daemon", *options]) as process:
        nodes.wait_for(node, lambda: not containerds(node))
        os.kill(containers.inner(process), signal.SIGKILL)
        process.communicate(timeout=20)
    assert not nodes.answers(node)
    saved = nodes.path(node, LAUNCH).stat()
    assert (stat.S_IMODE(saved.st_mode), saved.st_uid) == (0o600, 0)


@pytest.mark.parametrize(
    "killed", [False, True], ids=["in one run", "by the run after a killed one"]
)
def test_the_containerd_of_a_node_agent_is_started_as_it_was(
    node: Node, tool: Tool, *, killed: bool
) -> None:
    pid = started_by_agent(node)
    agent = nodes.main_pid(node, "node-agent")
    group = nodes.path(node, f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
    variables = environment(node, pid)
    if killed:
        killed_after_the_signal(node, tool)
    said = tool("run", "--no-daemon", f"--restart-mode={'auto' if killed else 'signal'}")
    assert not nodes.path(node, LAUNCH).exists()
    assert "nothing started containerd again within 10 s; starting it as it was" in said
    (new,) = containerds(node)
    assert new != pid
    assert is_installed(node)
    proc = nodes.path(node, f"/proc/{new}")
    assert (proc / "cgroup").read_text(encoding="utf-8") == group
    assert environment(node, new) == variables
    for name in ("mnt", "net", "ipc", "uts", "pid"):
        assert (proc / "ns" / name).readlink() == nodes.path(node, f"/proc/1/ns/{name}").readlink()
    assert nodes.run(node, ["readlink", f"/proc/{new}/fd/1"]).stdout == "/run/agent.log\n"
    assert nodes.run(node, ["readlink", f"/proc/{new}/cwd"]).stdout == "/run\n"
    assert nodes.main_pid(node, "node-agent") == agent
    assert tool("status").startswith("in sync\nready\n")


def test_a_pod_with_few_capabilities_does_not_end_what_only_it_could_start(
    node: Node, tool: Tool
) -> None:
    pid = started_by_agent(node)
    few = containers.FEW
    said = tool("run", "--no-daemon", "--restart-mode=signal", code=4, capabilities=few)
    assert (
        "it cannot be started from here, because it has capabilities that this process lacks"
        in said
    )
    assert (
        "(the pod needs `privileged: true`; or use --restart-mode none and restart it yourself)"
        in said
    )
    assert containerds(node) == [pid]
    assert not is_installed(node)
    tool("run", "--no-daemon", "--restart-mode=none", capabilities=few)
    assert is_installed(node)


@pytest.mark.skipif(
    shutil.which("unshare") is None, reason="needs unshare: apt-get install util-linux"
)
def test_a_containerd_in_namespaces_of_its_own_is_left_to_the_user(node: Node, tool: Tool) -> None:
    nodes.run(node, ["systemctl", "disable", "--now", "containerd"])
    nodes.run(
        node,
        ["systemd-run", "--unit=elsewhere", "--service-type=oneshot", "--remain-after-exit", "sh",
         "-c", "cd /root; unshare --uts /usr/bin/containerd >/dev/null 2>&1 &"],
    )  # fmt: skip
    nodes.run(node, ["systemctl", "kill", "--signal=CONT", "elsewhere"], check=False)
    nodes.wait_for(node, lambda: nodes.answers(node))
    said = tool("run", "--no-daemon", "--restart-mode=signal", "--reload-timeout=6", code=7)
    assert "start it yourself, with `cd /root && /usr/bin/containerd`" in said
    assert "it ran in namespaces that cannot be entered" in said


# --- what hangs on the unit -----------------------------------------------------------------------


@every_suite
def test_units_that_depend_on_the_runtime_are_named_and_keep_running(
    node: Node, tool: Tool
) -> None:
    before, pid = depending(node), nodes.main_pid(node, "containerd")
    assert sorted(before) == NAMES
    plan = tool("plan")
    units = ", ".join(NAMES)
    alone = "containerd.service is restarted alone: the units that depend on it keep running"
    assert f"# {alone}: {units}\n" in plan
    assert "containerd.service to restart (unavailable for about 0.1 s)" in plan
    said = tool("run", "--no-daemon")
    assert (
        f"restarting containerd.service alone: the units that depend on it keep running: {units}\n"
        in said
    )
    assert nodes.main_pid(node, "containerd") not in {0, pid}
    assert pids(node) == before
    assert f"a restart of containerd.service also restarts or stops {units}" in problems(tool)
    tool("revert")
    assert pids(node) == before


def test_after_a_rollback_each_unit_that_ran_runs_again(node: Node, tool: Tool) -> None:
    """containerd does not start with the change, and systemd stops what is bound to it."""
    depending(node)
    set_containerd(node, f"ExecStartPre={WITHOUT_US}")
    said = tool("run", "--no-daemon", code=6)
    assert "binds-to.service" in said
    assert "stopped with the runtime; starting it again" in said
    nodes.wait_for(node, lambda: sorted(pids(node)) == NAMES)
    assert nodes.is_active(node, "containerd")
    assert not is_installed(node)


def test_a_unit_that_does_not_come_back_fails_the_change(node: Node, tool: Tool) -> None:
    depending(node)
    nodes.run(node, ["systemctl", "stop", "stops-with", "binds-to"])
    write_unit(
        node,
        "binds-to.service",
        f"[Unit]\n{KINDS['binds-to']}\n[Service]\nExecStartPre={WITHOUT_US}\n"
        "ExecStart=/usr/bin/sleep infinity\n",
    )
    nodes.run(node, ["systemctl", "daemon-reload"])
    nodes.run(node, ["systemctl", "start", "binds-to"])
    said = tool("run", "--no-daemon", "--restart-mode=signal", "--reload-timeout=12", code=6)
    assert "binds-to.service ran before the runtime was restarted, and is failed now" in said
    assert nodes.is_active(node, "binds-to")
    assert not is_installed(node)


def test_a_signal_takes_the_units_along_and_they_run_again(node: Node, tool: Tool) -> None:
    before = depending(node)
    plan = tool("plan", "--restart-mode=signal")
    units = ", ".join(NAMES)
    assert (
        "# systemd restarts or stops the units that depend on containerd.service as well:"
        f" {units}\n" in plan
    )
    assert "unavailable for" not in plan
    said = tool("run", "--no-daemon", "--restart-mode=signal")
    assert (
        f"systemd restarts or stops the units that depend on containerd.service: {units}\n" in said
    )
    after = pids(node)
    assert sorted(after) == NAMES
    assert after["binds-to.service"] != before["binds-to.service"]


def test_units_that_do_not_run_are_not_mentioned(node: Node, tool: Tool) -> None:
    depending(node)
    nodes.run(node, ["systemctl", "stop", *NAMES])
    assert "depend" not in tool("plan")


@pytest.mark.parametrize("node", ["forky"], indirect=True)
def test_containers_of_docker_survive_or_the_signal_is_refused(node: Node, tool: Tool) -> None:
    container = docker_container(node)
    plan = tool("plan")
    assert "the units that depend on it keep running: docker.service\n" in plan
    tool("run", "--no-daemon")
    assert is_up(node, container)
    tool("revert")
    assert is_up(node, container)
    pid = nodes.main_pid(node, "containerd")
    said = tool("run", "--no-daemon", "--restart-mode=signal", code=4)
    assert "SIGHUP also restarts docker.service, which ends its 1 running container(s)" in said
    assert "(use --restart-mode auto, which restarts the runtime's unit alone, or --force)" in said
    assert (nodes.main_pid(node, "containerd"), is_up(node, container)) == (pid, True)
    assert not is_installed(node)
    tool("run", "--no-daemon", "--restart-mode=signal", "--force", "--reload-timeout=90")
    assert is_installed(node)
    assert nodes.is_active(node, "docker")


def docker_container(node: Node) -> str:
    """Let docker.service require containerd.service, and run a container; return its name."""
    write_unit(node, "docker.service.d/test.conf", "[Unit]\nRequires=containerd.service\n")
    nodes.run(node, ["systemctl", "daemon-reload"])
    nodes.run(node, ["systemctl", "start", "docker"])
    busybox = nodes.path(node, "/usr/bin/busybox").read_bytes()
    nodes.path(node, "/run/image.tar").write_bytes(containers.image_archive(busybox, ["test:1"]))
    nodes.run(node, ["docker", "load", "--input", "/run/image.tar"])
    done = nodes.run(
        node,
        [
            "docker",
            "run",
            "--detach",
            "--network=none",
            "--name=survivor",
            "test:1",
            "sleep",
            "600",
        ],
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"this machine lets Docker run no containers: {done.stderr.strip()}")
    return "survivor"


def is_up(node: Node, container: str) -> bool:
    shown = nodes.run(node, ["docker", "inspect", "--format={{.State.Running}}", container]).stdout
    return shown.strip() == "true"
