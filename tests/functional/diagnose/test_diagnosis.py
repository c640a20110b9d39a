"""One full report: each section against a fake node, what is wrong; nothing secret or changed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes import registry
from runtimes.adapter import Adapter
from runtimes.containerd import ADAPTER as containerd
from runtimes.crio import ADAPTER as crio
from runtimes.docker import ADAPTER as docker
from runtimes.model import RuntimeName
from tests.support import fake_node
from tests.support.fake_node import Node
from toolkit.deadline import Cancellation
from toolkit.diagnose import collect, findings, sections, text
from toolkit.node import command, lock
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import make_plan
from toolkit.runtime import locate, observe
from toolkit.settings.resolve import resolve
from toolkit.state import journal, restart_budget
from toolkit.state.readiness_probe import UNVERIFIED
from toolkit.state.record import Baseline, Operation, Record, Transaction

pytestmark = pytest.mark.usefixtures("no_fsync")

SECTIONS: Final = [
    "findings", "format", "tool", "node", "runtimes", "configuration", "state", "copies",
    "dangling", "driver", "cdi",
]  # fmt: skip
AUTH: Final = b"""
[plugins."io.containerd.grpc.v1.cri".registry.configs."reg.example".auth]
  username = "robot"
  password = "hunter2hunter2"
  auth = "cm9ib3Q6aHVudGVyMg=="
"""
HOOK: Final = (
    '{"version": "1.0.0", "hook": {"path": "/usr/bin/nvidia-container-runtime-hook"}, "when": {}}'
)


def context(node: Node, adapter: Adapter = containerd, **changed: str) -> Context:
    """Return what a pod that sees the node below its root asks for."""
    settings = node.settings(**{"host_root": str(node.root), **changed})
    return Context(settings=settings, adapter=adapter, stop=Cancellation())


def collected(node: Node, **changed: str) -> dict[str, Any]:
    """Return the diagnosis, and expect JSON, a text, and nothing to have changed."""
    before = fake_node.snapshot(node.root)
    found = collect.collect(context(node, containerd, **changed))
    assert fake_node.snapshot(node.root) == before
    assert json.loads(json.dumps(found)) == found
    assert list(found) == SECTIONS
    assert text.text(found).startswith("findings\n")
    assert "a bug" not in json.dumps(found)
    return found


def said(found: dict[str, Any]) -> str:
    return "\n".join(f"{each['problem']} -> {each['hint']}" for each in found["findings"])


def write(node: Node, path: str, content: str | bytes, mode: int = 0o644) -> Path:
    place = node.root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    place.chmod(mode)
    return place


@contextmanager
def running(node: Node) -> Iterator[fake_node.Daemon]:
    home = node.root.parent / "d"
    home.with_name("cri.json").write_text(
        json.dumps({"config": str(node.config)}), encoding="utf-8"
    )
    with fake_node.daemon(node.socket, home=home, cri=str(home.with_name("cri.json"))) as daemon:
        yield daemon


# --- the node, before anything ------------------------------------------------------------------


def test_nothing_there_at_all(tmp_path: Path) -> None:
    node = Node(root=tmp_path / "node")
    (node.root / "etc").mkdir(parents=True)
    found = collected(node)
    assert [each["sockets"] for each in found["runtimes"]] == [[], [], []]
    assert found["dangling"] == {"handlers": [], "hooks": [], "link": "", "unseen": []}
    assert found["copies"] == {"installed": None, "version": None, "files": []}
    assert found["state"]["record"]["sequence"] == 0
    assert "none of its sockets exists" in said(found)


def test_no_root_of_the_node(node: Node) -> None:
    found = collect.collect(context(node, host_root=str(node.root / "gone")))
    assert found["configuration"] == {
        "unavailable": f"--host-root={node.root / 'gone'}: no such directory"
    }
    assert list(found) == SECTIONS


def test_a_root_of_the_node_that_is_not_mounted(node: Node) -> None:
    (node.root / "host").mkdir()
    found = collect.collect(context(node, host_root=str(node.root / "host")))
    assert f"--host-root={node.root / 'host'} is empty" in found["configuration"]["unavailable"]


def test_the_tool_says_what_it_was_given(node: Node) -> None:
    tool = collected(node, runtime_class="gpu")["tool"]
    assert {"name": "runtime_class", "value": "gpu", "by": "--runtime-class"} in tool["given"]
    assert "verify" not in [each["name"] for each in tool["given"]]
    assert tool["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(tool["pid_namespace"]) == {"id", "is_first", "pid_1"}


def test_the_node_is_what_its_files_say(node: Node) -> None:
    write(node, "/usr/lib/os-release", 'NAME="x"\nPRETTY_NAME="Some Linux 12 (word)"\n')
    (node.root / "etc/os-release").symlink_to("/usr/lib/os-release")
    write(node, "/sys/fs/selinux/enforce", "0")
    write(node, "/sys/fs/cgroup/cgroup.controllers", "cpu\n")
    write(node, "/sys/module/apparmor/parameters/enabled", "Y\n")
    write(node, "/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so", "")
    write(node, "/proc/uptime", "4711.5 9.0\n")
    write(node, "/proc/sys/kernel/random/boot_id", "b00t\n")
    assert collected(node)["node"] == {
        "root": str(node.root),
        "kernel": os.uname().release,
        "architecture": os.uname().machine,
        "os": "Some Linux 12 (word)",
        "cgroup": "v2",
        "selinux": "permissive",
        "apparmor": "on",
        "systemd": "257",
        "boot": "b00t",
        "uptime_s": 4711,
    }


@pytest.mark.parametrize(
    ("path", "version"), [("unified/cgroup.controllers", "hybrid"), ("memory/tasks", "v1")]
)
def test_older_control_groups(
    node: Node, monkeypatch: pytest.MonkeyPatch, path: str, version: str
) -> None:
    write(node, f"/sys/fs/cgroup/{path}", "")
    monkeypatch.setattr(
        "toolkit.node.system.local_paths", lambda host, name: iter([host.below(name)])
    )
    assert collected(node)["node"]["cgroup"] == version


# --- runtimes -----------------------------------------------------------------------------------


def test_a_running_runtime_is_named_with_its_config(node: Node) -> None:
    with running(node) as daemon:
        found = collected(node)
    runtime = found["runtimes"][0]
    (socket,) = runtime["sockets"]
    assert (runtime["name"], runtime["configured"], socket["is_runtime"]) == (
        "containerd",
        True,
        True,
    )
    assert socket["path"] == "/run/c.sock"
    assert socket["owner"]["pid"] == daemon.pid
    assert socket["owner"]["argv"][0].endswith("/containerd")
    assert socket["owner"]["config"] == {
        "path": "/etc/containerd/config.toml",
        "by": "default",
        "exists": True,
    }
    assert found["configuration"]["running"]["healthy"] is True


def test_a_socket_of_somebody_else_is_a_finding(node: Node) -> None:
    home = node.root.parent / "d"
    with fake_node.daemon(node.socket, home=home, name="somebody") as daemon:
        found = collected(node)
    (socket,) = found["runtimes"][0]["sockets"]
    assert (socket["is_runtime"], socket["owner"]["pid"]) == (False, daemon.pid)
    assert "does not look like containerd" in said(found)


def test_the_version_is_asked_for_and_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(argv: list[str], **how: Any) -> command.Result:
        asked.append((argv, how))
        return command.Result(argv=tuple(argv), code=0, out="dockerd 26.1\nmore\n", err="")

    write(node, "/usr/bin/dockerd", "", 0o755)
    monkeypatch.setattr(command, "run", run)
    assert collected(node)["runtimes"][2]["binary"] == {
        "path": "/usr/bin/dockerd",
        "version": "dockerd 26.1",
        "problem": "",
    }
    assert asked == [(["/usr/bin/dockerd", "--version"], {"root": node.root, "timeout": 5.0})]


# --- the configuration --------------------------------------------------------------------------


def test_files_that_matter(node: Node) -> None:
    real = write(node, "/etc/real/config.toml", fake_node.KUBEADM)
    node.config.unlink()
    node.config.symlink_to("/etc/real/config.toml")
    config, drop_in = collected(node)["configuration"]["files"][:2]
    assert (config["path"], config["link"]) == (
        "/etc/containerd/config.toml",
        "/etc/real/config.toml",
    )
    assert (config["size"], config["mode"]) == (len(fake_node.KUBEADM), "0644")
    assert config["modified"].endswith("Z")
    assert (config["owned"], config["as_written"], config["mounted_by_itself"]) == (
        False,
        None,
        False,
    )
    assert (drop_in["path"], drop_in["exists"]) == ("/etc/containerd/conf.d/99-nvidia.toml", False)
    assert real.exists()


def test_the_plan_and_its_diff(node: Node) -> None:
    plan = collected(node)["configuration"]["plan"]
    assert plan["in_sync"] is False
    assert 'default_runtime_name = "nvidia"' in plan["changes"][0]["diff"]
    assert plan["reload"] == "the configuration changes"


def test_a_file_that_cannot_be_understood_is_said_in_its_place(node: Node) -> None:
    node.config.write_text("version = [\n", encoding="utf-8")
    found = collected(node)
    configuration = found["configuration"]
    assert "/etc/containerd/config.toml" in configuration["plan"]["problem"]
    assert "unavailable" in configuration["effective"]
    assert configuration["files"][0]["size"] == 12
    assert "cannot plan the change" in said(found)
    assert found["dangling"]["unseen"]


def test_no_secret_of_the_registry_is_shown(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    # Right before and after the place of the change, so that a diff with context would show it.
    node.config.write_bytes(b"version = 2\n" + AUTH)
    found = collected(node)
    assert "default_runtime_name" in found["configuration"]["plan"]["changes"][0]["diff"]
    for secret in ("hunter2", "robot", "cm9ib3Q6"):
        assert secret not in json.dumps(found)
        assert secret not in text.text(found)


def test_no_secret_of_the_command_line_is_shown(node: Node) -> None:
    override = '{"registry": {"auth": "hunter2hunter2"}}'
    found = collected(node, runtime_config_override=override)
    assert "hunter2" not in json.dumps(found)
    assert "runtime_config_override" in json.dumps(found)


def test_an_installed_node_has_little_to_tell(node: Node) -> None:
    with running(node):
        fake_node.done("-n", *node.options())
        found = collect.collect(context(node, host_root="/"))
    configuration, state = found["configuration"], found["state"]
    assert configuration["plan"]["in_sync"] is True
    assert (configuration["files"][0]["owned"], configuration["files"][0]["as_written"]) == (
        True,
        True,
    )
    assert configuration["effective"]["programs"]["nvidia"] == [
        f"{node.toolkit}/nvidia-container-runtime"
    ]
    assert "nvidia" in configuration["running"]["handlers"]
    assert state["record"]["owned"] == [str(node.config)]
    assert state["record"]["open"] is None
    assert (state["readiness"]["ready"], state["readiness"]["why"]) == (True, "")
    assert json.loads(state["readiness"]["record"])["runtime"] == "containerd"
    assert found["copies"]["installed"].startswith(".toolkit-versions/")
    assert all(
        "driver" in each["problem"] for each in found["findings"] if "second" not in each["problem"]
    )


def test_a_file_that_somebody_edited_since(node: Node) -> None:
    with running(node):
        fake_node.done("-n", *node.options())
        node.config.write_bytes(node.config.read_bytes() + b"# by hand\n")
        found = collect.collect(context(node, host_root="/"))
    assert found["configuration"]["files"][0]["as_written"] is False
    assert f"{node.config} was modified after it was written" in said(found)


def test_not_ready_is_said(node: Node) -> None:
    with running(node):
        fake_node.done("-n", *node.options())
        node.pid_file.with_name("ready.json").unlink()
        found = collect.collect(context(node, host_root="/"))
    assert f"{UNVERIFIED}: {node.pid_file.with_name('ready.json')} not found" in said(found)


# --- the state ----------------------------------------------------------------------------------


def test_a_transaction_that_nobody_works_on(node: Node) -> None:
    opened = Transaction(
        operation=Operation.INSTALL,
        previous=Record(),
        baseline=Baseline(),
        notified=True,
        failure="it died",
    )
    journal.save(
        node.install_dir, Record(runtime="containerd", unit="containerd.service", open=opened)
    )
    found = collected(node)
    assert found["state"]["record"]["open"] == {
        "operation": "install", "notified": True, "failure": "it died", "files": [],
    }  # fmt: skip
    assert said(found).startswith("a transaction (install) is incomplete and failed: it died")


def test_a_damaged_record(node: Node) -> None:
    write(node, "/usr/local/nvidia/.nvidia-toolkit/state.json", "{")
    found = collected(node)
    assert "is damaged" in found["state"]["record"]["unavailable"]
    assert "the state file cannot be read" in said(found)


def test_restarts_and_the_lock(node: Node) -> None:
    spent = restart_budget.Budget(path=node.pid_file.with_name("restarts.json"), most=1, window=600)
    spent.spend()
    with lock.held(node.pid_file):
        found = collected(node, restart_budget="1")
    state = found["state"]
    assert state["lock"]["pid"] == str(os.getpid())
    assert state["lock"]["held"] in {True, None}
    assert (state["restarts"]["budget"], len(state["restarts"]["ago_s"])) == (1, 1)
    assert "the runtime was restarted 1 times within 600 s" in said(found)
    assert collected(node)["state"]["lock"] == {
        "path": str(node.pid_file),
        "pid": None,
        "held": False,
    }


def test_looking_does_not_lock(node: Node) -> None:
    node.pid_file.touch(mode=0o600)
    with open(node.pid_file, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert collected(node)["state"]["lock"]["held"] in {True, None}


# --- copies and what leads nowhere --------------------------------------------------------------


def test_every_copy_is_listed(node: Node) -> None:
    write(node, "/usr/bin/nvidia-container-runtime", fake_node.elf(62), 0o755)
    write(node, "/usr/bin/nvidia-ctk", "#!/bin/sh\n", 0o755)
    write(node, "/usr/bin/nvidia-smi", "", 0o755)
    write(node, "/usr/lib64/libnvidia-container.so.1.17.4", "x")
    (node.root / "usr/lib64/libnvidia-container.so.1").symlink_to("libnvidia-container.so.1.17.4")
    write(node, "/usr/local/nvidia/toolkit/nvidia-ctk", "#!/bin/sh\n", 0o755)
    journal.save(node.install_dir, Record(runtime="containerd", toolkit_digest="cafe"))
    found = collected(node)
    listed = {
        each["path"]: (each["kind"], each["owned"], each["version"])
        for each in found["copies"]["files"]
    }
    assert listed == {
        "/usr/bin/nvidia-container-runtime": ("ELF", False, None),
        "/usr/bin/nvidia-ctk": ("script", False, None),
        "/usr/lib64/libnvidia-container.so.1": ("link", False, "1.17.4"),
        "/usr/lib64/libnvidia-container.so.1.17.4": ("other", False, "1.17.4"),
        "/usr/local/nvidia/toolkit/nvidia-ctk": ("script", True, None),
    }
    assert "the node has a second toolkit: /usr/bin/nvidia-container-runtime" in said(found)


def test_our_own_version_is_asked_for(node: Node) -> None:
    with running(node):
        fake_node.done("-n", *node.options())
        found = collect.collect(context(node, host_root="/"))
    assert found["copies"]["version"] == f"{node.toolkit}/nvidia-ctk.real\0--version\0"


BINARY: Final = 'plugins."io.containerd.grpc.v1.cri".containerd'


def test_a_handler_that_leads_nowhere(node: Node) -> None:
    write(node, "/usr/bin/there", "#!/bin/sh\n", 0o755)
    write(node, "/usr/bin/plain", "#!/bin/sh\n", 0o644)
    handlers = {
        "good": "/usr/bin/there",
        "gone": "/usr/bin/gone",
        "plain": "/usr/bin/plain",
        "bare": "nope",
    }
    tables = "".join(
        f'[{BINARY}.runtimes.{name}]\nruntime_type = "io.containerd.runc.v2"\n'
        f'[{BINARY}.runtimes.{name}.options]\nBinaryName = "{path}"\n'
        for name, path in handlers.items()
    )
    node.config.write_text(f"version = 2\n{tables}", encoding="utf-8")
    found = collected(node)
    assert [
        (each["handler"], each["problem"].split(" /")[0]) for each in found["dangling"]["handlers"]
    ] == [
        ("bare", "is not on the search path"),
        ("gone", "does not exist"),
        ("plain", "is not executable"),
    ]
    assert "the handler gone of containerd runs /usr/bin/gone, which does not exist" in said(found)


def test_a_handler_of_another_runtime_that_leads_nowhere(node: Node) -> None:
    write(
        node,
        "/etc/docker/daemon.json",
        '{"runtimes": {"nvidia": {"path": "/usr/bin/gone", "args": []}}}',
    )
    write(
        node,
        "/etc/crio/crio.conf",
        '[crio.runtime.runtimes.crun]\nruntime_path = "/usr/bin/crun"\n',
    )
    found = collected(node)
    assert [(each["runtime"], each["handler"]) for each in found["dangling"]["handlers"]] == [
        ("crio", "crun"),
        ("docker", "nvidia"),
    ]


def test_a_hook_that_leads_nowhere(node: Node) -> None:
    directory = "/usr/share/containers/oci/hooks.d"
    write(node, f"{directory}/oci-nvidia-hook.json", HOOK)
    write(node, f"{directory}/broken.json", "{")
    write(
        node,
        "/etc/containers/oci/hooks.d/good.json",
        HOOK.replace("nvidia-container-runtime-hook", "ok"),
    )
    write(node, "/usr/bin/ok", "#!/bin/sh\n", 0o755)
    found = collected(node)
    assert [(each["file"], each["program"]) for each in found["dangling"]["hooks"]] == [
        (f"{directory}/broken.json", None),
        (f"{directory}/oci-nvidia-hook.json", "/usr/bin/nvidia-container-runtime-hook"),
    ]
    assert "runs /usr/bin/nvidia-container-runtime-hook, which does not exist" in said(found)


def test_our_link_that_leads_nowhere(node: Node) -> None:
    node.install_dir.mkdir(parents=True)
    node.toolkit.symlink_to(".toolkit-versions/gone")
    found = collected(node)
    assert found["dangling"]["link"] == ".toolkit-versions/gone"
    assert "the toolkit's link points to .toolkit-versions/gone, which does not exist" in said(
        found
    )


# --- the driver ---------------------------------------------------------------------------------


def test_the_driver(node: Node) -> None:
    write(node, "/proc/driver/nvidia/version", "NVRM version: NVIDIA 570.1\nGCC version: x\n")
    write(
        node,
        "/proc/modules",
        "nvidia_uvm 1 0 - Live 0x0\nnvidia 1 1 nvidia_uvm, Live 0x0\next4 1 0 -\n",
    )
    write(node, "/run/nvidia/driver/usr/bin/nvidia-smi", "", 0o755)
    found = collected(node, driver_root_ctr_path="/nonexistent")
    driver = found["driver"]
    assert driver["version"] == "NVRM version: NVIDIA 570.1"
    assert driver["modules"] == ["nvidia", "nvidia_uvm"]
    assert (driver["root"]["exists"], driver["root"]["nvidia_smi"]) == (
        True,
        "/usr/bin/nvidia-smi",
    )
    assert "/run/nvidia/driver has no libnvidia-ml.so.1" in said(found)


@pytest.mark.parametrize("sign", ["/sys/module/nvgpu", "/dev/dxg"])
def test_a_tegra_and_wsl2_have_a_driver_without_the_module(node: Node, sign: str) -> None:
    write(node, "/proc/modules", "ext4 1 0 -\n")
    write(node, sign, "")
    found = collected(node, driver_root_ctr_path="/nonexistent")
    assert found["driver"]["loaded"] == sign
    assert "the driver is not loaded" not in said(found)
    assert f"the driver of this node ({sign}) is part of it" in said(found)
    assert "set --driver-root=/" in said(found)
    assert "is part of it" not in said(collected(node, driver_root="/", driver_root_ctr_path=""))


@fake_node.needs_root
def test_links_of_device_nodes_that_are_missing(node: Node) -> None:
    dev = node.root / "dev"
    (dev / "char").mkdir(parents=True)
    try:
        os.mknod(dev / "nvidia0", 0o666 | 0o020000, os.makedev(195, 0))
        os.mknod(dev / "nvidiactl", 0o666 | 0o020000, os.makedev(195, 255))
    except PermissionError:
        pytest.skip("no device nodes can be made here")
    (dev / "char/195:255").symlink_to("../nvidiactl")
    found = collected(node)
    assert found["driver"]["missing_links"] == ["/dev/char/195:0"]
    assert [each["link"] for each in found["driver"]["devices"]] == [False, True]
    assert "/dev/char/195:0 missing" in said(found)


# --- whoever looks, whatever is there -----------------------------------------------------------


@pytest.mark.parametrize("hidden", ["config", "socket", "state"])
def test_an_ordinary_user_is_told_what_cannot_be_seen(node: Node, hidden: str) -> None:
    journal.save(node.install_dir, Record(runtime="containerd"))
    place = {"config": node.config, "socket": node.socket.parent, "state": node.state.parent}[
        hidden
    ]
    place.chmod(0)
    script = (
        "import sys, json; from pathlib import Path; from tests.functional.diagnose"
        " import test_diagnosis as t; from toolkit.diagnose import collect;"
        " n = t.Node(root=Path(sys.argv[1])); print(json.dumps(collect.collect(t.context(n))))"
    )
    done = subprocess.run(
        [*fake_node.ORDINARY, sys.executable, "-c", script, str(node.root)],
        capture_output=True, text=True, check=False, cwd=fake_node.CHECKOUT,
    )  # fmt: skip
    place.chmod(0o755)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == SECTIONS
    assert "a bug" not in done.stdout
    assert "Permission denied" in done.stdout


@pytest.mark.timeout(20)
def test_pipes_in_place_of_files_hold_nobody_up(node: Node) -> None:
    node.config.unlink()
    (node.root / "usr/share/containers/oci/hooks.d").mkdir(parents=True)
    (node.root / "usr/bin").mkdir(parents=True)
    for path in (
        "etc/os-release",
        "usr/share/containers/oci/hooks.d/x.json",
        "usr/bin/nvidia-ctk",
    ):
        os.mkfifo(node.root / path)
    os.mkfifo(node.config)
    found = collected(node)
    assert found["node"]["os"] is None
    assert "is not a regular file" in found["dangling"]["hooks"][0]["problem"]
    assert "is not a regular file" in found["configuration"]["files"][0]["problem"]


def test_an_answer_of_a_damaged_part_does_not_hide_the_others(node: Node) -> None:
    found = collected(node)
    for section in ("node", "configuration", "state", "copies", "dangling", "driver"):
        for lost in ({"unavailable": "x"}, None):
            assert isinstance(findings.findings({**found, section: lost}), list)
            for part in found[section]:
                without = {**found, section: {**found[section], part: lost}}
                assert isinstance(findings.findings(without), list)
    assert isinstance(findings.findings({**found, "runtimes": [{"unavailable": "x"}]}), list)


@pytest.mark.parametrize("name", registry.ADAPTERS)
def test_every_runtime_can_be_the_configured_one(node: Node, name: RuntimeName) -> None:
    rows = {
        "runtime": str(name),
        "host_root": str(node.root),
        "config": str(node.root / "etc/x"),
        "pid_file": str(node.pid_file),
    }
    settings = resolve({**rows, "toolkit_install_dir": str(node.install_dir)}, {})
    found = collect.collect(
        Context(settings=settings, adapter=registry.ADAPTERS[name], stop=Cancellation())
    )
    assert [each["name"] for each in found["runtimes"] if each["configured"]] == [name]
    assert "a bug" not in json.dumps(found)


def test_a_section_that_fails_costs_no_other(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr("toolkit.node.system.node", fail)
    monkeypatch.setattr("toolkit.discovery.endpoints.runtime", fail)
    monkeypatch.setattr("toolkit.diagnose.collect.make_plan", fail)
    found = collect.collect(context(node))
    assert found["node"]["unavailable"] == "this is a bug in nvidia-toolkit: ZeroDivisionError('x')"
    assert found["driver"]["modules"] is not None
    assert "ZeroDivisionError" in text.text(found)
    # What is wrong is told of all the rest.
    assert [each["problem"].partition(":")[0] for each in found["findings"]][:1] == [
        "cannot plan the change"
    ]


def test_what_a_terminal_would_act_on_is_spelled_out() -> None:
    shown = text.text({"findings": [], "tool": {"argv": ["a\x1b[31m", "\udcff", "b c"]}})
    assert "\\x1b[31m" in shown
    assert "\\udcff" in shown
    assert "'b c'" in shown
    shown.encode()


def test_the_default_handler_comes_first() -> None:
    dangling = [
        {
            "runtime": "containerd",
            "handler": name,
            "program": f"/{name}",
            "problem": "does not exist",
        }
        for name in ("a", "main")
    ]
    found = findings.findings(
        {
            "tool": {"runtime": "containerd"},
            "configuration": {"effective": {"default": "main"}},
            "dangling": {"handlers": dangling},
        }
    )
    assert found[0]["problem"].startswith("the default handler main of containerd runs /main")


@pytest.mark.parametrize(
    ("adapter", "path", "text", "named"),
    [
        (
            docker,
            "/etc/docker/daemon.json",
            '{"runtimes": {"a": {"path": "/a"}, "b": {"runtimeType": "x"}}}',
            {"a": ("/a",)},
        ),
        (
            crio,
            "/etc/crio/crio.conf",
            '[crio.runtime.runtimes]\na = {runtime_path = "/a"}\nb = {}\n',
            {"a": ("/a",), "b": ("b",)},
        ),
        (
            containerd,
            "/etc/containerd/config.toml",
            (
                '[plugins.cri.containerd.runtimes]\na = {runtime_path = "/s", options = {binaryName'
                ' = "/a"}}\n'
            ),
            {"a": ("/s", "/a")},
        ),
    ],
    ids=["docker", "crio", "containerd"],
)
def test_programs_of_handlers(
    node: Node, adapter: Adapter, path: str, text: str, named: dict[str, tuple[str, ...]]
) -> None:
    config = write(node, path, text)
    rows = {"runtime": str(adapter.name), "host_root": str(node.root), "config": str(config)}
    place = locate.target(resolve({**rows, "config_source": "file"}, {}), adapter)
    assert adapter.programs(place.desired, observe.observe(place, adapter, ())) == named


def test_the_document_names_every_key(node: Node) -> None:
    text = (fake_node.CHECKOUT / "docs/output.md").read_text(encoding="utf-8")
    section = text.partition("`diagnose`")[2]
    documented = set(re.findall(r"`([a-z_0-9]+)`", section))
    found = collected(node)
    for name, content in found.items():
        assert name in documented
        keys = (
            content
            if isinstance(content, dict)
            else content[0]
            if isinstance(content, list)
            else {}
        )
        assert set(keys) - documented == set(), name


def test_only_changed_keys_are_shown(node: Node) -> None:
    before = b'tokens = [\n  "hunter2hunter2",\n  "a", "b", "c", "d",\n  "last secret"\n]\nx = 1\n'
    wish = context(node)
    found = make_plan(wish)
    change = replace(found.config_plan.changes[0], before=before, after=before + b"y = 2\n")
    found = replace(found, config_plan=replace(found.config_plan, changes=(change,)))
    shown = sections.plan(wish, found)
    assert shown["changes"][0]["diff"].splitlines()[2:] == ["+y = 2"]


def test_where_no_runtime_can_be_selected_that_is_first_and_no_other_is_reported(
    tmp_path: Path,
) -> None:
    """docker was named as the configured runtime, with handlers that do not exist."""
    (tmp_path / "etc").mkdir()
    words = ["diagnose", f"--host-root={tmp_path}", f"--socket={tmp_path}/none"]
    report = json.loads(fake_node.done(*words, "-o", "json").stdout)
    problem = f"--socket={tmp_path}/none: no container runtime answers there"
    assert report["findings"][0]["problem"] == problem
    assert report["findings"][0]["hint"]
    assert report["tool"]["runtime"] is None
    assert report["configuration"]["unavailable"] == problem
    assert not any(each["configured"] for each in report["runtimes"])
    text = json.dumps(report["findings"])
    assert "is the configured runtime" not in text
    assert text.count("no container runtime answers there") == 1
    assert "`run` would refuse" not in text
