"""What `plan` says of a run: whatever a run refuses is refused by the plan, and only that."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from tests.support import fake_node
from tests.support.fake_node import KUBEADM, Daemon, Node
from tests.support.fake_runtime import runtime, say
from toolkit.deadline import Cancellation
from toolkit.errors import ToolkitError
from toolkit.node import procfs
from toolkit.reconcile import describe, preflight, transaction
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import make_plan
from toolkit.state import restart_budget

pytestmark = pytest.mark.usefixtures("no_fsync")

ROOT_ONLY: Final = "run this command as root to check whether `run` would be refused"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for an unhealthy runtime to become healthy."""
    monkeypatch.setattr(preflight, "SOON", 0.1)
    monkeypatch.setattr(transaction, "SOON", 0.1)


def forecast(node: Node, **options: str) -> preflight.Forecast:
    context = Context(settings=node.settings(**options), adapter=containerd, stop=Cancellation())
    return preflight.forecast(context, make_plan(context), patience=0.1)


def agreed(node: Node, **options: str) -> list[str]:
    """Return why a plan is refused, once a run was refused for the same reasons and code."""
    before = fake_node.snapshot(node.root, node.pid_file, node.socket)
    blocked = forecast(node, **options).blocked
    assert fake_node.snapshot(node.root, node.pid_file, node.socket) == before
    with pytest.raises(ToolkitError) as caught:
        transaction.converge(node.settings(**options), containerd)
    said = caught.value.message.removesuffix(": nothing was changed")
    assert [each.problem for each in blocked if each.code == caught.value.exit_code] == [said]
    return [said]


# --- the same as a run --------------------------------------------------------------------------


def no_source(node: Node) -> None:
    node.source.rename(node.root / "elsewhere")


def half_a_source(node: Node) -> None:
    (node.source / "usr/bin/nvidia-ctk").unlink()


def no_low_level_runtime(node: Node) -> None:
    text = KUBEADM.replace(
        b"SystemdCgroup = true", b'BinaryName = "/no/runc"\n        SystemdCgroup = true'
    )
    node.config.write_bytes(text)


def used_up(node: Node) -> None:
    now = restart_budget.uptime() - 1
    notes = {"format": 1, "boot": procfs.boot_id(), "restarts": [now] * 3}
    node.pid_file.with_name("restarts.json").write_text(json.dumps(notes), encoding="utf-8")


def no_directory(node: Node) -> None:
    node.install_dir.parent.mkdir(parents=True)
    node.install_dir.touch()


def unhealthy(node: Node) -> None:
    say(node, ready=False)


@fake_node.needs_root
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_source, "is no directory"),
        (half_a_source, "lacks usr/bin/nvidia-ctk"),
        (no_low_level_runtime, "the low-level runtime /no/runc, which"),
        (used_up, "and --restart-budget is 3"),
        (no_directory, "is no directory"),
        (unhealthy, "the runtime is already unhealthy: "),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_a_run_refuses_the_plan_refuses_for_the_same_reason(
    node: Node, cri_runtime: Daemon, spoil: Any, said: str
) -> None:
    spoil(node)
    (why,) = agreed(node)
    assert said in why
    assert cri_runtime.signals() == []


def test_without_a_runtime_both_refuse(node: Node) -> None:
    (why,) = agreed(node)
    assert why.startswith(f"the socket {node.socket} does not exist")
    assert forecast(node, restart_mode="none").blocked == ()


def test_all_of_it_is_said_at_once(node: Node) -> None:
    no_source(node)
    no_low_level_runtime(node)
    found = forecast(node).blocked
    assert [each.code for each in found] == [2, 4, 4]
    assert all(each.hint for each in found)


@fake_node.needs_root
@pytest.mark.usefixtures("cri_runtime")
def test_a_node_that_is_in_sync_and_whose_run_would_fail_is_refused(node: Node) -> None:
    transaction.converge(node.settings(), containerd)
    assert forecast(node).blocked == ()
    say(node, ready=False)
    (found,) = forecast(node).blocked
    assert found.problem.startswith("the runtime is unhealthy: ")
    with pytest.raises(ToolkitError):
        transaction.converge(node.settings(), containerd)
    say(node)
    no_source(node)
    (found,) = forecast(node).blocked
    assert (found.code, "is no directory" in found.problem) == (2, True)
    with pytest.raises(ToolkitError, match="is no directory"):
        transaction.converge(node.settings(), containerd)


@fake_node.needs_root
@pytest.mark.usefixtures("cri_runtime")
def test_a_restart_of_a_runtime_that_has_not_loaded_its_files_is_planned(node: Node) -> None:
    transaction.converge(node.settings(), containerd)
    say(node, handlers=["runc"])
    found = forecast(node)
    assert (found.blocked, found.plan.reload_needed, found.plan.is_noop) == ((), True, False)
    assert "to change" not in describe.summary(found.plan)


@fake_node.needs_root
def test_what_the_handlers_inherit_is_warned_of(node: Node, cri_runtime: Daemon) -> None:
    """A broken handler of the node is no obstacle if the default stays, but no pod starts."""
    spec = b'runtime_type = "io.containerd.runc.v2"'
    text = KUBEADM.replace(spec, spec + b'\n      base_runtime_spec = "/no/such.json"')
    assert text != KUBEADM
    node.config.write_bytes(text)
    found = forecast(node, set_as_default="false")
    (warning,) = found.warnings
    assert "names /no/such.json, which is not a file on the node: no pod starts" in warning
    assert warning in list(describe.forecast_notes(found))
    assert found.blocked == ()


def test_another_runtime_on_the_socket_is_all_that_is_said(node: Node, tmp_path: Path) -> None:
    with fake_node.daemon(node.socket, home=tmp_path / "d", name="dockerd"):
        (found,) = forecast(node).blocked
    assert (found.code, "is answered by docker" in found.problem) == (2, True)
    assert found.hint.startswith("set --runtime=docker")


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "not refused"])
def test_the_reasons_come_first_and_have_an_exit_code(node: Node, *, refused: bool) -> None:
    fake_node.name_low_level(node)
    with nullcontext() if refused else runtime(node):
        shown = fake_node.cli("plan", *node.options())
        coded = fake_node.cli("plan", "--exit-code", "-o", "json", *node.options())
        status = fake_node.cli("status", "--exit-code", *node.options())
    assert (shown.returncode, shown.stderr) == (0, "")
    first, last = shown.stdout.splitlines()[0], shown.stdout.splitlines()[-1]
    plan = json.loads(coded.stdout)
    assert first.startswith("# `run` would refuse: the socket ") == refused
    assert last.startswith("# `run` would refuse to make this change: 1 file to change, ") == (
        refused
    )
    assert (coded.returncode, status.returncode) == ((9, 9) if refused else (8, 8))
    assert [each["code"] for each in plan["blocked"]] == ([4] if refused else [])
    assert ("  `run` would refuse: the socket " in status.stdout) == refused
    for each in plan["blocked"]:
        assert each.keys() == {"problem", "hint", "code"}
        assert each["problem"] in first


@fake_node.needs_root
def test_an_ordinary_user_s_own_permissions_refuse_nothing(tmp_path: Path) -> None:
    words = [
        "--runtime=containerd",
        f"--config={fake_node.CHECKOUT}/examples/containerd/config.toml",
        "--socket=/nonexistent/containerd.sock",
        "--toolkit-install-dir=/usr/local/nvidia-of-a-test",
        f"--toolkit-source-root={fake_node.make_node(tmp_path / 'node').source}",
        "--pid-file=/run/nvidia-of-a-test/toolkit.pid",
        "--restart-mode=none",
    ]
    if fake_node.cli("--version", prefix=fake_node.NOBODY).returncode != 0:
        pytest.skip("an ordinary user cannot run this Python or read this checkout")
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    done = fake_node.cli("plan", *words, prefix=fake_node.NOBODY)
    assert done.returncode == 0, done.stderr
    assert "writable" not in done.stdout
    assert "unhealthy" not in done.stdout


def test_root_is_not_told_to_be_root(node: Node, cri_runtime: Daemon) -> None:
    assert os.geteuid() != 0 or ROOT_ONLY not in list(describe.forecast_notes(forecast(node)))


@fake_node.needs_root
@pytest.mark.parametrize("place", ["install_dir", "config"])
def test_read_only_places_refuse_a_plan(node: Node, cri_runtime: Daemon, place: str) -> None:
    node.install_dir.mkdir(parents=True)
    directory = node.install_dir if place == "install_dir" else node.config.parent
    done = fake_node.cli("plan", *node.options(), prefix=fake_node.read_only(directory))
    assert done.returncode == 0, done.stderr
    assert "is on a read-only file system (" in done.stdout.splitlines()[0]
