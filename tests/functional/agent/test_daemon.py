"""The agent: it repairs drift, costs nothing in between, and harms nothing when it stops."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.support import fake_node, pods
from tests.support.fake_node import KUBEADM, Daemon, Node, needs_root, needs_sysctl
from tests.support.kubernetes import (
    DAEMONSET,
    GONE,
    POD,
    Api,
    Certificates,
    Speech,
    daemonset,
    owner,
    pod,
    serving,
    status_of,
)
from tests.support.pods import staying
from toolkit.agent import child, daemon, report
from toolkit.errors import Locked
from toolkit.node import lock

PEER: Final = 12.2 * 1024 * 1024
"""What the upstream installer's idle process takes of memory (docs/operations.md)."""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def overwrite(path: Path, data: bytes) -> None:
    """Write a file as another tool does: aside, then renamed."""
    aside = path.with_name("aside")
    aside.write_bytes(data)
    aside.rename(path)


def ready(node: Node) -> int:
    """Ask as an exec probe does."""
    done = fake_node.cli("status", "--quiet", *node.options())
    assert (done.stdout, done.stderr) == ("", "")
    return done.returncode


def traces(node: Node) -> dict[str, fake_node.Trace]:
    """Return the node's files but for the notes of this boot."""
    seen = fake_node.snapshot(
        node.root, node.pid_file, node.socket, node.pid_file.with_name("ready.json")
    )
    return {name: trace for name, trace in seen.items() if not name.startswith("run")}


# --- drift --------------------------------------------------------------------------------------


@pytest.mark.timing
def test_an_overwritten_config_is_repaired_at_once_with_one_restart(
    node: Node, running: Daemon, port: int
) -> None:
    with staying(node.options(metrics_address=f":{port}")) as pod:
        good = node.config.read_bytes()
        before = pods.metrics(port)
        overwrite(node.config, KUBEADM)
        began = time.monotonic()
        pods.until(lambda: node.config.read_bytes() == good, "the config is not repaired")
        pods.until(lambda: ready(node) == 0, "it does not become ready")
        took = time.monotonic() - began
        state = pod.settled(rounds=3)
        after = pods.metrics(port)
    assert took < 2
    assert running.signals() == ["SIGHUP"] * 2
    assert state["outcome"] == "in sync"
    added = {name: after[name] - before.get(name, 0) for name in after}
    assert added["nvidia_toolkit_repairs_total"] == 1
    assert added["nvidia_toolkit_restarts_total"] == 1
    assert added["nvidia_toolkit_rollbacks_total"] == 0
    assert added["nvidia_toolkit_restart_budget_remaining"] == -1
    assert after["nvidia_toolkit_last_sync_exit_code"] == 0
    assert after["nvidia_toolkit_in_sync"] == after["nvidia_toolkit_ready"] == 1
    assert after["nvidia_toolkit_last_restart_unavailable_seconds"] > 0
    told = pod.says("the node is not in sync")
    assert "+++ " in told
    assert "+plugins" in told
    assert "runtimes.nvidia.runtime_type" in told


def test_an_edit_between_the_first_sync_and_the_first_watch_is_repaired(
    node: Node, running: Daemon
) -> None:
    good = []

    def edit() -> None:
        """Edit when the first sync has ended: another program then replaces that process."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for process in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    if child.RESIDENT in process.cmdline():
                        good.append(node.config.read_bytes())
                        overwrite(node.config, KUBEADM)
                        return

    editor = threading.Thread(target=edit)
    editor.start()
    # Ready after the first sync, so that no other one follows by itself.
    with staying(node.options(verify="status")):
        editor.join()
        pods.until(lambda: node.config.read_bytes() == good[0], "the config is not repaired")
    assert good[0] != KUBEADM


def test_a_file_of_the_toolkit_that_goes_comes_back_without_a_restart(
    node: Node, running: Daemon
) -> None:
    with staying(node.options()) as pod:
        gone = node.toolkit / "nvidia-ctk"
        gone.unlink()
        pods.until(gone.exists, "it does not come back")
        pod.settled(rounds=2)
    assert running.signals() == ["SIGHUP"]


@pytest.mark.timing
def test_a_tool_that_fights_is_slowed_down_and_the_restarts_stay_within_the_budget(
    node: Node, running: Daemon
) -> None:
    with staying(node.options()) as pod:
        for _ in range(50):
            overwrite(node.config, KUBEADM)
            time.sleep(0.1)
        overwrite(node.config, KUBEADM)
        pod.says("--restart-budget", timeout=20)
        state = pod.state()
        assert running.process is not None
        assert running.process.poll() is None
    assert running.signals() == ["SIGHUP"] * 3
    assert state["counts"]["restarts"] == 3
    assert not state["ready"]
    assert sum("the node is not in sync" in message for message in pod.messages()) == 1
    assert len(pod.raw) < 60


def test_a_runtime_that_is_started_again_is_asked_again(node: Node, running: Daemon) -> None:
    with staying(node.options()) as pod:
        assert ready(node) == 0
        before = running.pid
        os.kill(before, signal.SIGKILL)
        pods.until(lambda: running.pid != before, "it is not started again")
        pod.says("the runtime's process ended")
        pods.until(lambda: ready(node) == 0, "it does not become ready again")
        record = json.loads(node.pid_file.with_name("ready.json").read_bytes())
    assert record["pid"] == running.pid
    assert running.signals() == ["SIGHUP"]


def test_only_reporting_touches_nothing(node: Node, running: Daemon, port: int) -> None:
    with staying(node.options(on_drift="report", metrics_address=f":{port}")) as pod:
        assert pods.page(port, "/readyz") == (200, "ready\n")
        good = node.config.read_bytes()
        overwrite(node.config, KUBEADM)
        pod.says("the node is not in sync")
        pods.until(lambda: pods.page(port, "/readyz")[0] == 503, "it still counts as ready")
        pod.settled(rounds=2)
        assert pods.metrics(port)["nvidia_toolkit_in_sync"] == 0
        assert ready(node) == 8
        assert node.config.read_bytes() == KUBEADM
        overwrite(node.config, good)
        pod.says("the node is in sync again")
        pods.until(lambda: ready(node) == 0, "it does not become ready again")
        assert pods.metrics(port)["nvidia_toolkit_in_sync"] == 1
    assert running.signals() == ["SIGHUP"]


def test_who_ignores_drift_does_not_look(node: Node, running: Daemon) -> None:
    with staying(node.options(on_drift="ignore", check_interval="0.2")) as pod:
        overwrite(node.config, KUBEADM)
        time.sleep(1)
        assert pod.state()["counts"]["outcomes"] == {
            "in sync": 0,
            "changed": 1,
            "drift": 0,
            "failed": 0,
        }
        assert node.config.read_bytes() == KUBEADM
        pod.process.send_signal(signal.SIGHUP)
        pods.until(lambda: node.config.read_bytes() != KUBEADM, "it does not converge when told")
    assert running.signals() == ["SIGHUP"] * 2


def test_a_sync_that_cannot_be_started_makes_the_node_unready(
    node: Node, running: Daemon, port: int
) -> None:
    """With too few descriptors no child starts: drift is not noticed, so ready would be a guess."""
    options = node.options(metrics_address=f":{port}", check_interval="0.5")
    with staying(options) as pod:
        assert pods.page(port, "/readyz") == (200, "ready\n")
        pid = pod.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, before[1]))
        overwrite(node.config, KUBEADM)
        pods.until(lambda: pods.page(port, "/readyz")[0] == 503, "it still counts as ready")
        assert pods.page(port, "/readyz")[1].startswith("not ready: a sync cannot be started: ")
        assert not node.pid_file.with_name("ready.json").exists()
        assert pods.page(port, "/healthz")[0] == 200
        pods.until(
            lambda: pods.page(port, "/healthz")[0] == 503,
            "it counts as healthy for ever",
            timeout=40,
        )
        assert node.config.read_bytes() == KUBEADM
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        pods.until(
            lambda: pods.page(port, "/readyz")[0] == 200, "it does not become ready", timeout=90
        )
        assert pods.page(port, "/healthz") == (200, "ok\n")
        assert b'"nvidia"' in node.config.read_bytes()


def test_what_no_event_tells_is_seen_by_looking(
    node: Node, running: Daemon, tmp_path: Path
) -> None:
    """A watch on one directory says nothing of the same file changed under another name of it."""
    with staying(node.options(check_interval="1", on_drift="report")) as pod:
        hidden = tmp_path / "same"
        os.link(node.config, hidden)
        hidden.write_bytes(KUBEADM)
        pod.says("the node is not in sync", timeout=10)
    assert running.signals() == ["SIGHUP"]


@needs_root
@needs_sysctl
@pytest.mark.parametrize("what", ["watches", "instances"])
def test_an_exhausted_inotify_is_named_tried_again_and_its_end_logged_once(
    node: Node, running: Daemon, what: str
) -> None:
    """Use the limits of a user namespace: the kernel enforces them and a test may set them."""
    setting = f"/proc/sys/user/max_inotify_{what}"
    limited = f'echo 0 > {setting}; exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "sh", "-c", limited, "sh")
    options = node.options(check_interval="0.5", no_runtime_config="true")
    with staying(options, prefix=prefix) as pod:
        pod.says("set up; watching 0 directories until SIGTERM")
        problem = pod.says("cannot watch ")
        assert (
            f"the limit of inotify {what} is reached (raise the sysctl fs.inotify.max_user_{what})"
            in problem
        )
        assert "; changes there are noticed only every" in problem
        program = node.toolkit / "nvidia-ctk.real"
        program.unlink()  # noticed by the periodic check
        pods.until(program.exists, "the file is not repaired")
        assert pod.state()["watched"] == 0
        raised = ["nsenter", f"--target={pod.pid}", "--user", "sh", "-c", f"echo 1000 > {setting}"]
        subprocess.run(raised, check=True)
        pod.says("directories are watched again")
        before = sum(pod.state()["counts"]["outcomes"].values())
        pods.until(
            lambda: sum(pod.state()["counts"]["outcomes"].values()) > before + 1,
            "there is no further sync",
        )
        state = pod.state()
        assert (state["unwatched"], state["watched"] > 3) == ([], True)
        assert sum("watched again" in message for message in pod.messages()) == 1
        assert sum("cannot watch" in message for message in pod.messages()) == 1
    assert running.signals() == []


def test_a_round_that_is_killed_is_told_and_done_again(
    node: Node, running: Daemon, port: int
) -> None:
    with staying(node.options(metrics_address=f":{port}")) as pod:
        running.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
        overwrite(node.config, KUBEADM)
        pods.until(lambda: bool(pod.syncs()), "no round is begun")
        [child] = pod.syncs()
        os.kill(child, signal.SIGKILL)
        running.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
        pod.says("the sync ended with signal 9")
        assert pods.page(port, "/metrics")[0] == 503
        pods.until(lambda: ready(node) == 0, "it does not become ready again", timeout=20)
    assert len(running.signals()) <= 3


def test_a_lock_that_somebody_removed_is_taken_anew_for_each_round(
    node: Node, running: Daemon
) -> None:
    with staying(node.options()) as pod:
        good = node.config.read_bytes()
        node.pid_file.unlink()
        overwrite(node.config, KUBEADM)
        pods.until(lambda: node.config.read_bytes() == good, "the config is not repaired")
        pods.until(lambda: ready(node) == 0, "it does not become ready")
        assert pod.process.poll() is None
    assert running.signals() == ["SIGHUP"] * 2


def test_a_failure_is_told_once_and_its_end_too(node: Node, running: Daemon) -> None:
    with staying(node.options()) as pod:
        good = node.config.read_bytes()
        overwrite(node.config, b"not = [toml\n")
        pods.until(lambda: pod.state()["code"] == 3, "the failure is not noticed")
        failures = pod.state()["counts"]["outcomes"]["failed"]
        pods.until(
            lambda: pod.state()["counts"]["outcomes"]["failed"] > failures, "it is not tried again"
        )
        assert len([line for line in pod.told if line["level"] == "error"]) == 1
        overwrite(node.config, good)
        pod.says("the node is in sync again", timeout=20)
    assert running.signals() == ["SIGHUP"]


def test_a_record_that_cannot_be_written_is_tried_again_by_itself(
    node: Node, running: Daemon
) -> None:
    """The node is right, but counts as ready only when that can be noted."""
    with staying(node.options(readiness_file="/proc/nowhere/ready.json")) as pod:
        state = pod.state()
        assert (state["code"], state["ready"]) == (0, False)
        pods.until(
            lambda: sum(pod.state()["counts"]["outcomes"].values()) > 2, "it is not tried again"
        )
    assert running.signals() == ["SIGHUP"]


# --- the driver ---------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(
    ("refuses", "effect"),
    [("false", "that start now get no GPU"), ("true", "that request GPUs are refused")],
)
def test_a_driver_that_goes_and_comes_is_logged_once_each(
    node: Node, running: Daemon, tmp_path: Path, port: int, refuses: str, effect: str
) -> None:
    module = tmp_path / "module"
    module.mkdir()
    options = node.options(check_interval="0.5", require_driver=refuses, metrics_address=f":{port}")
    with staying(options, prefix=driver_module(module)) as pod:
        assert pods.metrics(port)["nvidia_toolkit_driver_loaded"] == 1
        module.rmdir()
        gone = pod.says("the NVIDIA driver is not loaded any more")
        assert gone == f"the NVIDIA driver is not loaded any more: containers {effect}"
        pod.until(
            lambda: pods.metrics(port)["nvidia_toolkit_driver_loaded"] == 0, "the metric stays"
        )
        assert (ready_page(port), ready_in(node, pod)) == (True, 0)  # runtime and toolkit are ready
        module.mkdir()
        pod.says("the NVIDIA driver is loaded")
        pod.until(
            lambda: pods.metrics(port)["nvidia_toolkit_driver_loaded"] == 1, "the metric stays"
        )
        messages = [message for message in pod.messages() if "NVIDIA driver" in message]
    assert messages == [gone, "the NVIDIA driver is loaded"]
    assert running.signals() == ["SIGHUP"]


@needs_root
@pytest.mark.parametrize("on_drift", ["repair", "report", "ignore"])
def test_readiness_follows_the_driver_where_it_is_required(
    node: Node, running: Daemon, tmp_path: Path, port: int, on_drift: str
) -> None:
    """Probes see it at once: no sync is due, and nothing in /sys causes an event."""
    module = tmp_path / "module"
    record = node.pid_file.with_name("ready.json")
    options = node.options(
        readiness_requires_driver="true",
        metrics_address=f":{port}",
        on_drift=on_drift,
        check_interval="3600",
    )
    with staying(options, prefix=driver_module(module)) as pod:
        why = "the NVIDIA driver is not loaded (--readiness-requires-driver)"
        pod.says(f"not ready: {why}")
        assert (pods.page(port, "/readyz"), ready_in(node, pod)) == (
            (503, f"not ready: {why}\n"),
            8,
        )
        assert not record.exists()
        module.mkdir()
        pod.until(lambda: ready_page(port), "it does not become ready", timeout=40)
        assert ready_in(node, pod) == 0
        module.rmdir()
        assert ready_in(node, pod) == 8
        assert pods.page(port, "/readyz") == (503, f"not ready: {why}\n")
        pod.until(lambda: not record.exists(), "the record stays")
        text = fake_node.cli("status", *options, prefix=inside(pod)).stdout
        assert text == f"in sync\nnot ready: {why}\n"
        module.mkdir()
        pod.until(record.exists, "the record does not come back", timeout=40)
        assert ready_in(node, pod) == 0
        pod.until(lambda: ready_page(port), "the page does not become ready")
    assert running.signals() == ["SIGHUP"]


@needs_root
def test_a_driver_that_goes_is_noticed_without_a_probe(
    node: Node, running: Daemon, tmp_path: Path
) -> None:
    module = tmp_path / "module"
    module.mkdir()
    options = node.options(readiness_requires_driver="true", check_interval="3600")
    with staying(options, prefix=driver_module(module)) as pod:
        record = node.pid_file.with_name("ready.json")
        assert record.exists()
        module.rmdir()
        pod.until(lambda: not record.exists(), "the record stays", timeout=40)
    assert running.signals() == ["SIGHUP"]


@needs_root
def test_a_single_run_says_that_the_node_is_not_ready_without_the_driver(
    node: Node, running: Daemon, tmp_path: Path
) -> None:
    options = node.options(readiness_requires_driver="true")
    done = fake_node.cli("run", "--no-daemon", *options, prefix=driver_module(tmp_path / "module"))
    why = "not ready: the NVIDIA driver is not loaded (--readiness-requires-driver)"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, f"W commit: {why}")
    assert not node.pid_file.with_name("ready.json").exists()
    assert running.signals() == ["SIGHUP"]


def driver_module(module: Path) -> tuple[str, ...]:
    """Return a prefix to run a command where the driver is loaded while a directory exists."""
    script = 'mount -t tmpfs fake /sys/module\nln -s "$1" /sys/module/nvidia\nshift'
    return fake_node.in_mounts(script, str(module))


def inside(pod: pods.Pod) -> tuple[str, ...]:
    return ("nsenter", f"--target={pod.pid}", "--mount")


def ready_in(node: Node, pod: pods.Pod) -> int:
    """Ask as an exec probe does, which sees what the pod sees."""
    return fake_node.cli("status", "--quiet", *node.options(), prefix=inside(pod)).returncode


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda n: n.name
)
def test_stopping_changes_nothing(node: Node, running: Daemon, number: signal.Signals) -> None:
    with staying(node.options()) as pod:
        before = traces(node)
        assert pod.end(number) == 0
        assert pod.says(": stopping, ") == f"{number.name}: stopping, the node stays as it is"
    assert traces(node) == before
    assert running.signals() == ["SIGHUP"]
    assert node.pid_file.read_bytes() == b""


def test_reverting_on_exit_takes_everything_back(node: Node, running: Daemon) -> None:
    before = fake_node.content(node.root)
    with staying(node.options(on_exit="revert")) as pod:
        assert pod.end() == 0
        assert pod.says(": stopping, ") == "SIGTERM: stopping, the node was reverted"
    after = fake_node.content(node.root)
    assert {n: c for n, c in after.items() if not n.startswith("run/")} == {
        n: c for n, c in before.items() if not n.startswith("run/")
    }
    assert running.signals() == ["SIGHUP"] * 2


def test_a_second_signal_does_not_cut_the_way_back_short(node: Node, tmp_path: Path) -> None:
    with (
        fake_node.daemon(node.socket, home=tmp_path / "d", delay=0.5) as running,
        staying(node.options(on_exit="revert")) as pod,
    ):
        pod.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        pod.process.send_signal(signal.SIGTERM)
        pod.says("SIGTERM again: waiting for the running sync to finish")
        pod.process.send_signal(signal.SIGINT)
        assert pod.process.wait(30) == 0
        assert pod.says(": stopping, ") == "SIGTERM: stopping, the node was reverted"
        assert running.signals() == ["SIGHUP"] * 2
    assert node.config.read_bytes() == KUBEADM
    assert not node.toolkit.exists()


@pytest.mark.parametrize(
    ("code", "wanted"),
    [(0, 0), (143, 0), (4, 143), (6, 143), (7, 7)],
    ids=["done", "interrupted", "failed", "rolled back", "not rolled back"],
)
def test_a_sync_that_is_interrupted_before_a_change_is_no_failure(code: int, wanted: int) -> None:
    agent = daemon.Daemon.__new__(daemon.Daemon)
    agent.stopped_by, agent._worker, agent._is_cut = signal.SIGTERM, None, True
    agent.report = report.from_json({"code": code, "settings": {"on_exit": "keep"}})
    assert agent._leave() == wanted


def test_a_round_that_is_cut_short_is_no_reason_to_leave_the_node_as_it_is(
    node: Node, tmp_path: Path
) -> None:
    """It is uninstalled just while a repair is under way."""
    with (
        fake_node.daemon(node.socket, home=tmp_path / "d", delay=0.5) as running,
        staying(node.options(on_exit="revert", restart_budget="0")) as pod,
    ):
        overwrite(node.config, KUBEADM)
        pods.until(lambda: bool(pod.children()), "no round is begun")
        assert pod.end() == 0
        assert pod.says(": stopping, ") == "SIGTERM: stopping, the node was reverted"
        assert running.process is not None
    assert node.config.read_bytes() == KUBEADM
    assert not node.toolkit.exists()


@pytest.mark.timing
def test_a_way_back_that_takes_too_long_ends_within_the_grace_period(
    node: Node, running: Daemon
) -> None:
    with staying(node.options(on_exit="revert", grace_period="3")) as pod:
        running.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
        began = time.monotonic()
        code = pod.end()
        took = time.monotonic() - began
        running.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
    assert code == 4
    assert took < 3.5


def test_the_settings_are_read_again(
    node: Node, running: Daemon, tmp_path: Path, port: int
) -> None:
    variables = tmp_path / "settings/variables"
    variables.parent.mkdir()
    variables.write_text("CONTAINERD_RUNTIME_CLASS=nvidia\n", encoding="utf-8")
    with staying(node.options(env_file=str(variables), on_drift="ignore")) as pod:
        variables.write_text(
            f"CONTAINERD_RUNTIME_CLASS=gpu\nTOOLKIT_METRICS_ADDRESS=127.0.0.1:{port}\n",
            encoding="utf-8",
        )
        pod.process.send_signal(signal.SIGHUP)
        pod.says("SIGHUP: reloading the settings")
        pods.until(
            lambda: b"runtimes.gpu]" in node.config.read_bytes(), "the new name is not there"
        )
        pod.says("the runtime loaded the change", times=2)
        pod.state()
        pods.until(lambda: ready_page(port), "the new address does not answer")
        variables.write_text("CONTAINERD_RUNTIME_CLASS=no/name\n", encoding="utf-8")
        pod.process.send_signal(signal.SIGHUP)
        pod.says("must be a name without spaces")
        assert pod.process.poll() is None
    assert running.signals() == ["SIGHUP"] * 2


def ready_page(port: int) -> bool:
    try:
        return pods.page(port, "/readyz")[0] == 200
    except OSError:
        return False


def test_a_changed_file_of_settings_needs_no_signal(
    node: Node, running: Daemon, tmp_path: Path
) -> None:
    """A ConfigMap that is mounted changes by a link that is replaced."""
    mounted = tmp_path / "mounted"
    for version, name in (("1", "nvidia"), ("2", "gpu")):
        (mounted / version).mkdir(parents=True)
        (mounted / version / "settings").write_text(
            f"CONTAINERD_RUNTIME_CLASS={name}\n", encoding="utf-8"
        )
    (mounted / "..data").symlink_to("1")
    (mounted / "settings").symlink_to("..data/settings")
    with staying(node.options(env_file=str(mounted / "settings"))):
        (mounted / "..new").symlink_to("2")
        (mounted / "..new").rename(mounted / "..data")
        pods.until(
            lambda: b"runtimes.gpu]" in node.config.read_bytes(), "the new name is not there"
        )
        pods.until(lambda: len(running.signals()) == 2, "the runtime is not told")


def test_the_state_is_told(node: Node, running: Daemon) -> None:
    with staying(node.options()) as pod:
        state = pod.settled()
    assert running.signals() == ["SIGHUP"]
    assert (state["outcome"], state["ready"], state["pid"]) == ("changed", True, running.pid)
    assert state["settings"]["on_drift"] == "repair"


@needs_root
def test_the_first_process_of_a_container_reaps_what_it_did_not_start(
    node: Node, running: Daemon
) -> None:
    prefix = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
    options = node.options(no_runtime_config="true")
    with staying(options, prefix=prefix) as outer:
        [pid] = outer.children()
        for _ in range(3):
            orphan = "(sleep 0.1 &) ; exit 0"
            subprocess.run(["nsenter", f"--target={pid}", "--pid", "sh", "-c", orphan], check=True)
        pods.until(lambda: bool(pods.children(pid)), "there is no orphan")
        pods.until(lambda: not pods.children(pid), "orphans stay as zombies")
        os.kill(pid, signal.SIGTERM)
        assert outer.process.wait(20) == 0
    assert running.signals() == []


def test_stopping_at_any_moment_leaves_the_old_or_the_new(node: Node, running: Daemon) -> None:
    """Fifteen moments here; a hundred on a booted node (tests/nodes/test_daemon_nodes.py)."""
    dice = random.Random(5)  # noqa: S311  # moments, not secrets
    began = time.monotonic()
    fake_node.done("-n", *node.options())
    whole = time.monotonic() - began
    new = node.config.read_bytes()
    fake_node.done("revert", *node.options())
    codes = set()
    for _ in range(15):
        with fake_node.started(fake_node.program(*node.options(restart_budget="0"))) as process:
            time.sleep(dice.uniform(0, 2 * whole))
            code, _, err = fake_node.ended(process, signal.SIGTERM)
        codes.add(code)
        assert code in (0, -15, 143, 6), err
        assert node.config.read_bytes() in (KUBEADM, new)
        if dice.random() < 0.5:
            fake_node.done("revert", *node.options(restart_budget="0"))
            assert node.config.read_bytes() == KUBEADM
    assert 0 in codes
    heard = len(running.signals())
    fake_node.done("-n", *node.options(restart_budget="0"))
    assert fake_node.done("-n", *node.options()).stderr == fake_node.NOTHING_TO_DO
    assert len(running.signals()) <= heard + 1


# --- what it costs ------------------------------------------------------------------------------


def test_an_idle_process_takes_less_memory_than_the_peer_and_sleeps(
    node: Node, running: Daemon
) -> None:
    with staying(node.options()) as pod:
        pod.settled()
        assert pod.memory() < PEER
        before = pods.wakeups(pod.pid)
        time.sleep(2)
        assert pods.wakeups(pod.pid) == before
        assert pod.children() == []
        links = [
            os.readlink(f"/proc/{pod.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pod.pid}/fd")
        ]
        files = [
            link
            for link in links
            if link.startswith("/") and link not in ("/dev/null", str(node.pid_file))
        ]
        # libffi keeps its own file open, to map the trampolines of callbacks from it.
        files = [path for path in files if not os.path.basename(path).startswith("libffi.so")]
    assert files == []
    assert running.signals() == ["SIGHUP"]


@pytest.mark.timing
def test_starts_on_a_node_that_is_right_write_nothing(node: Node, running: Daemon) -> None:
    with staying(node.options()) as pod:
        pod.end()
    before = traces(node)
    for _ in range(10):
        began = time.monotonic()
        with staying(node.options()) as pod:
            took = time.monotonic() - began
            assert ready(node) == 0
            pod.end()
        assert took < 5  # a second on a machine that has nothing else to do: test_daemon_nodes.py
    assert traces(node) == before
    assert running.signals() == ["SIGHUP"]


# --- locked and staying -------------------------------------------------------------------------


def test_the_lock_stays_taken_from_the_first_process_to_the_last(
    node: Node, running: Daemon
) -> None:
    with staying(node.options()) as pod:
        assert node.pid_file.read_text(encoding="utf-8") == f"{pod.pid}\n"
        with pytest.raises(Locked, match=f"PID {pod.pid}"), lock.held(node.pid_file):
            raise AssertionError
        overwrite(node.config, KUBEADM)
        pod.settled(rounds=3)
        with pytest.raises(Locked, match=f"PID {pod.pid}"), lock.held(node.pid_file):
            raise AssertionError
        pod.end()
    with lock.held(node.pid_file):
        pass
    assert running.signals() == ["SIGHUP"] * 2


def test_who_cannot_set_the_node_up_does_not_stay(node: Node) -> None:
    ran = fake_node.cli(*node.options(toolkit_source_root="/no/such"))
    assert ran.returncode == 2
    last: dict[str, Any] = json.loads(ran.stderr.splitlines()[-1])
    assert last["level"] == "error"
    assert "/no/such" in last["message"]


# --- the pages ----------------------------------------------------------------------------------


def test_the_pages(node: Node, running: Daemon, port: int) -> None:
    with staying(node.options(metrics_address=f"127.0.0.1:{port}")):
        assert pods.page(port, "/healthz") == (200, "ok\n")
        assert pods.page(port, "/readyz") == (200, "ready\n")
        assert pods.page(port, "/readyz", "HEAD") == (200, "")
        assert pods.page(port, "/etc/passwd")[0] == 404
        assert pods.page(port, "/metrics", "POST")[0] == 405
        text = pods.page(port, "/metrics?x=y")[1]
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]  # all silent
        for client in clients:
            client.close()
        pods.until(lambda: ready_page(port), "who said nothing keeps others out")
    for name in (
        "in_sync",
        "ready",
        "syncs_total",
        "repairs_total",
        "restarts_total",
        "reloads_total",
    ):
        assert f"\nnvidia_toolkit_{name}" in text
    assert 'nvidia_toolkit_info{configuration="' in text
    assert running.signals() == ["SIGHUP"]


def test_an_address_in_use_is_told_and_no_reason_to_end(node: Node, running: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with staying(node.options(metrics_address=f"127.0.0.1:{port}")) as pod:
            pod.says(f"metrics cannot be served on 127.0.0.1:{port}: Address already in use")
            assert pod.end() == 0
    assert running.signals() == ["SIGHUP"]


# --- leaving for good ---------------------------------------------------------------------------


def with_account(account: Path) -> tuple[str, ...]:
    """Return a prefix to give one process alone a service account where kubelet mounts it."""
    script = (
        "mount -t tmpfs run /run\nmkdir -p /run/secrets/kubernetes.io\n"
        'cp -r "$1" /run/secrets/kubernetes.io/serviceaccount\nshift'
    )
    return fake_node.in_mounts(script, str(account))


def hang(_client: socket.socket) -> None:
    time.sleep(20)


def forbidden() -> tuple[int, object]:
    return 403, status_of(403, "Forbidden")


DELETED: Final = {"deletionTimestamp": "2026-11-24T12:00:00Z"}
FATES: Final[dict[str, tuple[Speech, bool]]] = {
    "there": (Api({DAEMONSET: (200, daemonset())}), False),
    "made anew": (Api({DAEMONSET: (200, daemonset(uid="another"))}), False),
    "being deleted": (Api({DAEMONSET: (200, daemonset(**DELETED))}), True),
    "gone": (Api({DAEMONSET: GONE}), True),
    "forbidden": (Api({DAEMONSET: forbidden()}), False),
    "hanging": (hang, False),
}


@pytest.mark.timing
@needs_root
@pytest.mark.parametrize(("api", "leaves"), FATES.values(), ids=FATES)
def test_only_a_pod_that_goes_for_good_takes_everything_back(
    node: Node,
    running: Daemon,
    account: Path,
    certificates: Certificates,
    api: Speech,
    *,
    leaves: bool,
) -> None:
    if isinstance(api, Api):
        api.answers = {POD: (200, pod(owner())), **api.answers}
    began = time.monotonic()
    with serving(api, certificates.good) as port:
        code, took = stopped(node, account, port)
    assert code == 0
    assert took < 10
    assert node.toolkit.exists() is not leaves
    assert (node.config.read_bytes() == KUBEADM) is leaves
    assert running.signals() == ["SIGHUP"] * (2 if leaves else 1)
    assert time.monotonic() - began < 30


def stopped(node: Node, account: Path, port: int, **options: str) -> tuple[int, float]:
    """Let a pod with an account stay and stop; return its exit code and how long that took."""
    api = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
    prefix = with_account(account)
    with staying(node.options(**options), prefix=prefix, POD_NAME="toolkit-x7k2p", **api) as stays:
        time.sleep(0.5 if options else 0)
        began = time.monotonic()
        code = stays.end()
        return code, time.monotonic() - began


@needs_root
def test_a_server_that_cannot_be_trusted_is_not_believed(
    node: Node, running: Daemon, account: Path, certificates: Certificates
) -> None:
    api = Api({POD: (200, pod(owner())), DAEMONSET: GONE})
    with serving(api, certificates.by_another) as port:
        code, _ = stopped(node, account, port)
    assert code == 0
    assert api.asked == []
    assert node.toolkit.exists()
    assert running.signals() == ["SIGHUP"]


@needs_root
@pytest.mark.timing
@pytest.mark.parametrize("name", ["toolkit", "mistaken"])
def test_a_daemonset_that_was_never_there_is_not_gone(
    node: Node, running: Daemon, account: Path, certificates: Certificates, name: str
) -> None:
    """A wrong name would look like an uninstallation whenever a node is drained."""
    missing = (404, status_of(404, "NotFound", "mistaken"))
    wrong = DAEMONSET.replace("toolkit", "mistaken")
    api = Api({POD: (200, pod(owner())), DAEMONSET: (200, daemonset()), wrong: missing})
    with serving(api, certificates.good) as port:
        code, _ = stopped(node, account, port, daemonset=name)
    assert code == 0
    assert node.toolkit.exists()
    assert running.signals() == ["SIGHUP"]
    asked = [path for path, _ in api.asked]
    assert asked == ([DAEMONSET] if name == "toolkit" else [wrong, POD, DAEMONSET])


@needs_root
def test_a_daemonset_that_the_pod_is_named_after_may_be_gone_when_that_starts(
    node: Node, running: Daemon, account: Path, certificates: Certificates
) -> None:
    """A container that is started again while its pod waits for SIGTERM cannot see its pod."""
    api = Api({POD: forbidden(), DAEMONSET: GONE})
    with serving(api, certificates.good) as port:
        code, _ = stopped(node, account, port, daemonset="toolkit")
    assert code == 0
    assert not node.toolkit.exists()
    assert node.config.read_bytes() == KUBEADM
    assert [path for path, _ in api.asked] == [DAEMONSET]
