"""A node is ready once each handler started a container: what that finds, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from tests.support import fake_node, fake_runtime
from tests.support.fake_node import Daemon, Node
from tests.support.fake_runtime import calls, pods, say, started_pods
from toolkit.agent import sync
from toolkit.deadline import Cancellation
from toolkit.reconcile.context import Context

OURS: Final = ["nvidia", "nvidia-cdi", "nvidia-legacy"]
STARTED: Final = dict.fromkeys(OURS, "started")
BROKEN: Final = "failed to create containerd task: OCI runtime create failed: exec format error"
UNKNOWN_SNAPSHOTTER: Final = (
    "failed to create containerd container: snapshotter nydus was not found"
)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = fake_node.make_node(tmp_path / "node")
    say(made)
    return made


@pytest.fixture
def daemon(node: Node) -> Iterator[Daemon]:
    with fake_runtime.runtime(node) as found:
        yield found


pytestmark = pytest.mark.usefixtures("daemon")


def run(node: Node, *, code: int = 0, **options: str) -> str:
    done = fake_node.cli("run", "--no-daemon", *node.options(**options))
    assert done.returncode == code, done.stderr
    return done.stderr


def status(node: Node, **options: str) -> dict[str, Any]:
    found = json.loads(fake_node.done("status", "--output=json", *node.options(**options)).stdout)
    assert isinstance(found, dict)
    return found


def record(node: Node) -> dict[str, Any]:
    found = json.loads(node.settings().readiness.read_bytes())
    assert isinstance(found, dict)
    return found


def not_verified(why: str) -> dict[str, str]:
    return dict.fromkeys(OURS, f"not verified: {why}")


# --- what is started, and when ------------------------------------------------------------------


def test_an_install_starts_a_container_through_each_handler_and_leaves_none(node: Node) -> None:
    told = run(node)
    assert "a container was started through each handler in " in told
    assert " s: nvidia, nvidia-cdi, nvidia-legacy" in told
    assert (started_pods(node), pods(node)) == (OURS, [])
    assert record(node)["verified"] == STARTED
    assert status(node)["verified"] == STARTED
    assert fake_node.done("status", *node.options()).stdout == "in sync\nready\n"


def test_a_start_with_nothing_to_do_starts_nothing_again(node: Node) -> None:
    run(node)
    before = fake_node.trace(node.settings().readiness)
    run(node)
    assert started_pods(node) == OURS
    assert fake_node.trace(node.settings().readiness) == before


def test_another_process_of_the_runtime_is_verified_again(node: Node, daemon: Daemon) -> None:
    run(node)
    pid = daemon.pid
    os.kill(pid, signal.SIGKILL)
    fake_node.wait_for(
        lambda: daemon.lines()[-1] not in {(pid, "listens")} and daemon.lines()[-1][1] == "listens",
        "no runtime",
    )
    run(node)
    assert started_pods(node) == OURS * 2
    assert len(daemon.signals()) == 1


def test_a_new_toolkit_is_verified_though_the_runtime_is_not_restarted(
    node: Node, daemon: Daemon
) -> None:
    run(node)
    fake_node.make_artifacts(node.source, release="2")
    run(node)
    assert (daemon.signals(), started_pods(node)) == (["SIGHUP"], OURS * 2)
    fake_node.make_artifacts(node.source, release="3")
    say(node, no_pods={"nvidia-legacy": BROKEN})
    installed = (node.toolkit / "nvidia-ctk").read_bytes()
    assert "; the change was rolled back and the node is in its previous state" in run(node, code=6)
    assert (node.toolkit / "nvidia-ctk").read_bytes() == installed


def test_with_status_nothing_is_started_and_the_record_says_so(node: Node) -> None:
    run(node, verify="status")
    assert started_pods(node) == []
    by_status = dict.fromkeys(OURS, "status")
    assert (record(node)["verified"], status(node)["verified"]) == (by_status, by_status)
    shown = fake_node.done("status", *node.options()).stdout
    assert (
        shown == "in sync\nready\n  nvidia: status\n  nvidia-cdi: status\n  nvidia-legacy: status\n"
    )
    # What is known by status alone is not enough once more is asked for; the other way round it is.
    run(node)
    assert (record(node)["verified"], started_pods(node)) == (STARTED, OURS)
    run(node, verify="status")
    assert record(node)["verified"] == STARTED


def test_with_mode_none_nothing_is_started_before_the_runtime_has_it(
    node: Node, daemon: Daemon
) -> None:
    run(node, restart_mode="none")
    assert started_pods(node) == []
    pid = daemon.pid
    os.kill(pid, signal.SIGHUP)
    fake_node.wait_for(
        lambda: daemon.starts() == 2 and daemon.lines()[-1][1] == "listens", "no runtime"
    )
    run(node, restart_mode="none")
    assert (started_pods(node), record(node)["verified"]) == (OURS, STARTED)


def test_a_revert_starts_nothing(node: Node) -> None:
    run(node)
    fake_node.done("revert", *node.options())
    assert started_pods(node) == OURS


def test_the_agent_reports_it_and_verifies_after_a_restart(node: Node, daemon: Daemon) -> None:
    context = Context(
        settings=node.settings(metrics_address="127.0.0.1:0"),
        adapter=containerd,
        stop=Cancellation(),
    )
    first = sync.first(context)
    assert first["verified"] == STARTED
    assert 'nvidia_toolkit_handler_verified{handler="nvidia-cdi"} 1.0' in first["metrics"]
    say(node, image=False)
    os.kill(daemon.pid, signal.SIGKILL)
    fake_node.wait_for(
        lambda: daemon.starts() == 3 and daemon.lines()[-1][1] == "listens", "no runtime"
    )
    later = sync.later(context, "converge", first)
    assert later["ready"]
    assert later["verified"] == not_verified("sandbox image not found: registry.k8s.io/pause:3.9")
    assert 'nvidia_toolkit_handler_verified{handler="nvidia-cdi"} 0.0' in later["metrics"]


# --- what is not the handler's fault ------------------------------------------------------------


def test_a_missing_image_is_told_and_nothing_is_rolled_back(node: Node, daemon: Daemon) -> None:
    say(node, image=False)
    why = "sandbox image not found: registry.k8s.io/pause:3.9"
    told = run(node)
    words = (
        f"not verified: no container was started through nvidia, nvidia-cdi, nvidia-legacy: {why}"
    )
    assert words in told
    assert (started_pods(node), record(node)["verified"]) == ([], not_verified(why))
    assert status(node)["ready"] is True
    shown = fake_node.done("status", *node.options()).stdout
    assert shown.startswith(f"in sync\nready\n  nvidia: not verified: {why}\n")
    # It is tried again at the next start, and told once.
    before = fake_node.trace(node.settings().readiness)
    assert words not in run(node)
    assert fake_node.trace(node.settings().readiness) == before
    say(node)
    run(node)
    assert (started_pods(node), record(node)["verified"]) == (OURS, STARTED)
    assert daemon.signals() == ["SIGHUP"]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            "mkdir /var/lib/x: no space left on device",
            "disk full: mkdir /var/lib/x: no space left on device",
        ),
        ("cni plugin not initialized", "network not ready: cni plugin not initialized"),
    ],
)
def test_a_reason_of_the_node(node: Node, error: str, why: str) -> None:
    say(node, no_pods={"": error})
    run(node)
    assert record(node)["verified"] == not_verified(why)
    assert started_pods(node) == ["nvidia"]


def test_where_no_handler_starts_anything_ours_are_not_at_fault(node: Node) -> None:
    say(node, no_pods={"": BROKEN})
    run(node)
    no_pod = "no pod starts through the handler"
    why = (
        f"{no_pod} nvidia: {BROKEN}, and through the handler runc none starts either: {no_pod}"
        f" runc: {BROKEN}"
    )
    assert record(node)["verified"] == not_verified(why)
    assert started_pods(node) == ["nvidia", "runc"]


def test_the_first_handlers_count_where_a_later_one_cannot_be_tried(node: Node) -> None:
    say(node, no_pods={"nvidia-cdi": "no space left on device"})
    run(node)
    why = "not verified: disk full: no space left on device"
    assert record(node)["verified"] == {
        "nvidia": "started",
        "nvidia-cdi": why,
        "nvidia-legacy": why,
    }


def test_a_runtime_without_cri(node: Node) -> None:
    say(node, unimplemented=True)
    run(node)
    assert record(node)["verified"] == not_verified("the runtime does not serve CRI")


def with_handler(
    node: Node, daemon: Daemon, name: str, kind: str, *, default: bool = False
) -> None:
    """Add a handler to the configuration that the runtime has loaded; optionally as default."""
    text = node.config.read_text(encoding="utf-8")
    section = '[plugins."io.containerd.grpc.v1.cri".containerd'
    text += f'\n    {section}.runtimes.{name}]\n      runtime_type = "{kind}"\n'
    if default:
        text = text.replace('snapshotter = "overlayfs"', f'default_runtime_name = "{name}"')
    node.config.write_text(text, encoding="utf-8")
    os.kill(daemon.pid, signal.SIGHUP)
    fake_node.wait_for(
        lambda: daemon.starts() == 2 and daemon.lines()[-1][1] == "listens", "no runtime"
    )


def test_the_handler_that_ours_inherit_from_decides(node: Node, daemon: Daemon) -> None:
    """What is wrong with runc is wrong with a copy of it, whatever starts through crun."""
    with_handler(node, daemon, "crun", "io.containerd.runc.v2")
    say(node, no_pods={"": BROKEN, "crun": None})
    run(node)
    no_pod = "no pod starts through the handler"
    assert record(node)["verified"] == not_verified(
        f"{no_pod} nvidia: {BROKEN}, and through the handler runc none starts either: {no_pod}"
        f" runc: {BROKEN}"
    )
    assert started_pods(node) == ["nvidia", "runc"]


def test_a_default_that_works_is_not_replaced_by_one_that_does_not(
    node: Node, daemon: Daemon
) -> None:
    """Pods without a RuntimeClass used kata before; runc, which ours inherit from, is broken."""
    with_handler(node, daemon, "kata", "io.containerd.kata.v2", default=True)
    before = node.config.read_bytes()
    say(node, no_pods={"": BROKEN, "kata": None})
    assert "(through the handler kata one starts); the change was rolled back" in run(node, code=6)
    assert node.config.read_bytes() == before
    # Where it stays the default, nothing is lost.
    say(node, no_pods={"": BROKEN, "kata": None})
    run(node, set_as_default="false")
    assert set(record(node)["verified"]) == set(OURS)
    assert record(node)["verified"]["nvidia"].startswith("not verified: no pod starts through")


# --- what is its fault --------------------------------------------------------------------------


def test_a_handler_that_starts_nothing_is_rolled_back(node: Node) -> None:
    before = node.config.read_bytes()
    say(node, no_pods={"nvidia-cdi": BROKEN})
    told = run(node, code=6)
    assert (
        f"no pod starts through the handler nvidia-cdi: {BROKEN} (through the handler runc one"
        " starts); the change was rolled back and the node is in its previous state" in told
    )
    assert node.config.read_bytes() == before
    # It was tried twice, and compared in between.
    assert started_pods(node) == ["nvidia", "nvidia-cdi", "runc", "nvidia-cdi"]
    assert pods(node) == []


def test_a_wrong_option_is_the_handlers_fault_though_no_other_starts_anything(node: Node) -> None:
    before = node.config.read_bytes()
    say(node, no_pods={"": "disk I/O error", "nvidia": UNKNOWN_SNAPSHOTTER})
    assert UNKNOWN_SNAPSHOTTER in run(node, code=6)
    assert node.config.read_bytes() == before


@pytest.mark.timing
def test_a_handler_that_hangs(node: Node) -> None:
    say(node, "nvidia-cdi", {"slow_pods": 60})
    told = run(node, reload_timeout="3")
    # Nothing starts within the time, through whichever handler.
    assert (
        "not verified: no container was started through nvidia, nvidia-cdi, nvidia-legacy: " in told
    )
    assert "none starts either: no pod starts through the handler runc: not started within " in told


def test_a_handler_that_starts_nothing_any_more_makes_the_node_not_ready(
    node: Node, daemon: Daemon
) -> None:
    run(node)
    say(node, no_pods={"nvidia": BROKEN})
    os.kill(daemon.pid, signal.SIGKILL)
    fake_node.wait_for(
        lambda: daemon.starts() == 3 and daemon.lines()[-1][1] == "listens", "no runtime"
    )
    told = run(node, code=4)
    assert f"no pod starts through the handler nvidia: {BROKEN}" in told
    assert "; no file was changed" in told
    assert not node.settings().readiness.exists()
    assert status(node)["ready"] is False
    say(node)
    run(node)
    assert record(node)["verified"] == STARTED


# --- what a killed run leaves -------------------------------------------------------------------


@pytest.fixture
def killed(node: Node) -> Node:
    """Return a node on which a run was killed while it started a container."""
    say(node, slow_pods=20)
    argv = [sys.executable, "-m", "toolkit", "run", "--no-daemon", *node.options()]
    with subprocess.Popen(argv, env=fake_node.ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        fake_node.wait_for(lambda: pods(node) == ["nvidia"], "no pod was started")
        process.kill()
    say(node)
    assert pods(node) == ["nvidia"]
    return node


def test_the_next_run_removes_it(killed: Node) -> None:
    run(killed)
    assert (pods(killed), record(killed)["verified"]) == ([], STARTED)


def test_a_run_that_starts_none_removes_it_as_well(killed: Node) -> None:
    run(killed, verify="status")
    assert pods(killed) == []


def test_a_revert_removes_it_and_is_not_refused(killed: Node) -> None:
    fake_node.done("revert", *killed.options())
    assert (pods(killed), killed.config.read_bytes()) == ([], fake_node.KUBEADM)


def test_a_revert_removes_it_though_the_runtime_did_not_answer_at_first(killed: Node) -> None:
    call = calls(killed) + 1
    say(killed, at={"call": call, "method": "ListPodSandbox", "do": "refuse"})
    fake_node.done("revert", *killed.options())
    assert (pods(killed), killed.config.read_bytes()) == ([], fake_node.KUBEADM)


def test_a_change_of_names_removes_it(killed: Node) -> None:
    run(killed, runtime_class="gpu")
    assert pods(killed) == []
    assert set(record(killed)["verified"]) == {"gpu", "nvidia-cdi", "nvidia-legacy"}
