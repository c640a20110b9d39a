"""Ready states only what the runtime itself reported; a record of anything else is ignored."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.adapter import SighupEffect
from runtimes.containerd import ADAPTER as containerd
from runtimes.model import Effective
from tests.support import fake_node
from tests.support.fake_node import Daemon, Node
from tests.support.fake_runtime import runtime, say
from toolkit import __version__
from toolkit.cli import output
from toolkit.deadline import Cancellation
from toolkit.errors import ReloadError, RolledBack, StepError
from toolkit.node import processes, procfs
from toolkit.node.processes import RuntimeProcess
from toolkit.reconcile import apply, preflight, readiness, transaction, uninstall, verify
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import make_plan
from toolkit.reconcile.preflight import Forecast
from toolkit.runtime import expectation, restart
from toolkit.state import journal, readiness_record, restart_budget
from toolkit.state.readiness_probe import UNVERIFIED

pytestmark = pytest.mark.usefixtures("no_fsync")

HAS: Final = Effective(
    handlers=frozenset({"runc", "nvidia"}),
    default="nvidia",
    sandbox_image="pause:1",
    systemd_cgroup=frozenset(),
)
FILES: Final = {
    "/etc/containerd/config.toml": "0" * 64,
    "/etc/containerd/conf.d/99.toml": "absent",
}
OURS: Final = ("nvidia", "nvidia-cdi", "nvidia-legacy")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run/ready.json"


def me() -> RuntimeProcess:
    found = processes.inspect(os.getpid())
    assert found is not None
    return found


def facts(**changed: Any) -> dict[str, Any]:
    """Return what a record says of this process as the runtime."""
    return {**readiness_record.facts("containerd", me(), HAS, "cafe", FILES), **changed}


# --- what a record says -------------------------------------------------------------------------


def test_a_record_says_what_it_is_true_for() -> None:
    with open("/proc/self/stat", encoding="utf-8") as stream:
        started = int(stream.read().rpartition(")")[2].split()[19])
    effective = hashlib.sha256(b'[["nvidia", "runc"], "nvidia", "pause:1"]').hexdigest()
    assert readiness_record.facts("containerd", me(), HAS, "cafe", FILES) == {
        "format": 2,
        "tool": __version__,
        "boot": procfs.boot_id(),
        "runtime": "containerd",
        "pid": os.getpid(),
        "started": started,
        "handlers": ["nvidia", "runc"],
        "default": "nvidia",
        "effective": effective,
        "toolkit": "cafe",
        "configuration": FILES,
        "driver": None,
    }


def test_what_is_not_told_is_null() -> None:
    said = readiness_record.facts("docker", None, Effective(), None, {})
    unknown = ("pid", "started", "handlers", "default", "toolkit")
    assert [said[name] for name in unknown] == [None] * len(unknown)


def test_a_record_is_readable_by_all_and_made_with_its_directory(path: Path) -> None:
    before = os.umask(0o077)
    try:
        readiness_record.write(path, facts())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert json.loads(path.read_bytes()) == facts()
    assert path.read_bytes().endswith(b"}\n")


def test_a_true_record_is_not_written_again(path: Path) -> None:
    readiness_record.write(path, facts())
    before, directory = fake_node.trace(path), fake_node.trace(path.parent)
    readiness_record.write(path, facts())
    assert fake_node.trace(path) == before
    assert fake_node.trace(path.parent) == directory


def test_a_record_that_says_more_is_as_true(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps(facts(**{"of a later version": 1})), encoding="utf-8")
    assert readiness_record.mismatch(path, facts()) == ""


# --- what a record is not true for --------------------------------------------------------------

CHANGES: Final[dict[str, Any]] = {
    "format": 1,
    "tool": "0.0.1",
    "boot": "another",
    "runtime": "crio",
    "pid": 1,
    "started": 5,
    "handlers": ["nvidia"],
    "default": "runc",
    "effective": "beef",
    "toolkit": "beef",
    "configuration": {},
}


@pytest.mark.parametrize(("name", "other"), CHANGES.items(), ids=CHANGES)
def test_a_record_of_something_else_counts_as_none_and_is_replaced(
    path: Path, name: str, other: Any
) -> None:
    readiness_record.write(path, facts(**{name: other}))
    assert readiness_record.mismatch(path, facts()) == f"{path} is out of date: {name} changed"
    readiness_record.write(path, facts())
    assert json.loads(path.read_bytes()) == facts()


@pytest.mark.parametrize("name", CHANGES)
def test_a_record_that_does_not_say_everything_counts_as_none(path: Path, name: str) -> None:
    path.parent.mkdir()
    said = {key: value for key, value in facts().items() if key != name}
    path.write_text(json.dumps(said), encoding="utf-8")
    assert readiness_record.mismatch(path, facts()) == f"{path} is out of date: {name} changed"


def test_everything_that_differs_is_named(path: Path) -> None:
    readiness_record.write(path, facts(boot="another", pid=1, toolkit=None))
    assert (
        readiness_record.mismatch(path, facts())
        == f"{path} is out of date: boot, pid, toolkit changed"
    )


@pytest.mark.parametrize(
    "other",
    [
        Effective(
            handlers=frozenset({"runc", "nvidia", "kata"}),
            default="nvidia",
            sandbox_image="pause:1",
        ),
        Effective(handlers=frozenset({"nvidia"}), default="nvidia", sandbox_image="pause:1"),
        Effective(handlers=None, default="nvidia", sandbox_image="pause:1"),
        Effective(handlers=HAS.handlers, default="runc", sandbox_image="pause:1"),
        Effective(handlers=HAS.handlers, default="nvidia", sandbox_image="pause:2"),
    ],
    ids=["one more", "one less", "not told", "another default", "another sandbox image"],
)
def test_a_runtime_that_has_something_else_is_another_one(path: Path, other: Effective) -> None:
    readiness_record.write(path, facts())
    assert "effective" in readiness_record.mismatch(
        path, readiness_record.facts("containerd", me(), other, "cafe", FILES)
    )


def test_a_process_with_the_pid_of_before_is_told_by_its_start(path: Path) -> None:
    said = facts()
    readiness_record.write(path, {**said, "started": said["started"] - 1})
    assert readiness_record.mismatch(path, facts()) == f"{path} is out of date: started changed"


# --- a record that cannot be read ---------------------------------------------------------------


def test_no_record_is_none(path: Path) -> None:
    assert readiness_record.mismatch(path, facts()) == f"{UNVERIFIED}: {path} not found"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "cannot be read: "),
        ('{"format": 1', "cannot be read: "),
        ("\udcff", "cannot be read: "),
        ("[" * 100_000, "cannot be read: "),
        ("[]", "is not a readiness record"),
        ("5", "is not a readiness record"),
        ('"ready"', "is not a readiness record"),
        ("true", "is not a readiness record"),
        ("null", "is not a readiness record"),
        ("{}", f"is out of date: {', '.join(CHANGES)} changed"),
    ],
    ids=[
        "empty",
        "cut off",
        "no UTF-8",
        "too deep",
        "list",
        "number",
        "text",
        "true",
        "null",
        "no keys",
    ],
)
def test_a_damaged_record_counts_as_none_and_is_replaced(path: Path, text: str, why: str) -> None:
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert readiness_record.mismatch(path, facts()).startswith(f"{path} {why}")
    readiness_record.write(path, facts())
    assert readiness_record.mismatch(path, facts()) == ""


@pytest.mark.timeout(5)
def test_a_pipe_in_its_place_counts_as_none_and_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    assert readiness_record.mismatch(path, facts()).startswith(f"{path} cannot be read: ")
    readiness_record.write(path, facts())
    assert readiness_record.mismatch(path, facts()) == ""


def test_a_directory_in_its_place_is_a_failed_step(path: Path) -> None:
    path.mkdir(parents=True)
    assert (
        readiness_record.mismatch(path, facts())
        == f"{path} cannot be read: it is not a regular file"
    )
    with pytest.raises(StepError):
        readiness_record.write(path, facts())
    with pytest.raises(StepError):
        readiness_record.remove(path)


def test_a_record_is_removed_and_one_that_is_not_there_is_removed_already(path: Path) -> None:
    readiness_record.write(path, facts())
    readiness_record.remove(path)
    assert not path.exists()
    readiness_record.remove(path)


# --- in a run -----------------------------------------------------------------------------------


def record(node: Node) -> Path:
    return node.pid_file.with_name("ready.json")


def converge(node: Node, **options: str) -> None:
    transaction.converge(node.settings(restart_budget="0", **options), containerd)


def status(node: Node, **options: str) -> str:
    """Return what `status` would say, without the time that a process takes to start."""
    context = Context(settings=node.settings(**options), adapter=containerd, stop=Cancellation())
    found = make_plan(context)
    return output.status_text(Forecast(plan=found), readiness.unready(context, found), {})


def start_anew(daemon: Daemon) -> None:
    """Kill the runtime, and wait until whatever supervises it has started it again."""
    first = daemon.pid
    os.kill(first, signal.SIGKILL)
    fake_node.wait_for(
        lambda: daemon.pid != first and (daemon.pid, "listens") in daemon.lines(),
        "it does not come back",
    )


def test_a_run_writes_the_record_beside_the_pid_file_and_status_says_so(
    node: Node, cri_runtime: Daemon
) -> None:
    fake_node.done("-n", *node.options())
    said = json.loads(record(node).read_bytes())
    assert said["pid"] == cri_runtime.pid
    assert said["started"] == procfs.start_time(cri_runtime.pid)
    assert said["handlers"] == [*OURS, "runc"]
    assert said["default"] == "nvidia"
    assert said["toolkit"] == os.readlink(node.toolkit).rpartition("/")[2]
    assert fake_node.done("status", *node.options()).stdout == "in sync\nready\n"
    answer = json.loads(fake_node.done("status", "-o", "json", *node.options()).stdout)
    assert (answer["in_sync"], answer["ready"], answer["unready"]) == (True, True, "")


def test_a_run_that_has_nothing_to_do_leaves_a_true_record_alone(
    node: Node, cri_runtime: Daemon
) -> None:
    converge(node)
    before = fake_node.trace(record(node))
    converge(node)
    assert fake_node.trace(record(node)) == before


@pytest.mark.parametrize(
    "damage", ["", "{", '{"boot": "another"}'], ids=["gone", "damaged", "another boot"]
)
def test_a_run_that_has_nothing_else_to_do_writes_a_record_that_is_not_true(
    node: Node, cri_runtime: Daemon, damage: str
) -> None:
    converge(node)
    record(node).write_text(damage, encoding="utf-8")
    if not damage:
        record(node).unlink()
    converge(node)
    assert json.loads(record(node).read_bytes())["pid"] == cri_runtime.pid
    assert cri_runtime.signals() == ["SIGHUP"]


def test_a_runtime_that_was_started_anew_is_not_ready_until_the_next_run_which_restarts_nothing(
    node: Node, cri_runtime: Daemon
) -> None:
    converge(node)
    first = cri_runtime.pid
    start_anew(cri_runtime)
    assert (
        status(node) == f"in sync\nnot ready: {record(node)} is out of date: pid, started changed\n"
    )
    converge(node)
    assert json.loads(record(node).read_bytes())["pid"] == cri_runtime.pid != first
    assert status(node) == "in sync\nready\n"
    assert cri_runtime.signals() == ["SIGHUP"]


def test_a_dead_runtime_is_not_ready(node: Node) -> None:
    with runtime(node):
        converge(node)
    assert (
        status(node)
        == "in sync\nnot ready: the runtime is unhealthy or has not loaded the configuration\n"
    )


def test_a_runtime_that_is_not_well_is_not_ready(node: Node, cri_runtime: Daemon) -> None:
    converge(node)
    say(node, ready=False)
    assert (
        status(node)
        == "in sync\nnot ready: the runtime is unhealthy or has not loaded the configuration\n"
    )


def test_a_run_that_finds_the_runtime_unwell_removes_the_record(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "SOON", 0.3)
    monkeypatch.setattr(expectation, "SETTLING", 0.3)
    converge(node)
    say(node, handlers=["runc"])
    with pytest.raises(StepError, match=r"; no file was changed$"):
        converge(node)
    assert not record(node).exists()


def test_a_change_that_is_refused_since_the_runtime_is_not_well_removes_the_record(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "SOON", 0.3)
    converge(node)
    say(node, ready=False)
    with pytest.raises(
        StepError, match=r"^the runtime is already unhealthy: .*: nothing was changed$"
    ):
        converge(node, runtime_class="gpu")
    assert not record(node).exists()


def test_a_runtime_that_is_not_well_is_not_blamed_on_a_change_where_there_was_none(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "SOON", 0.3)
    converge(node)
    say(node, ready=False)
    with pytest.raises(
        ReloadError, match=r"^the runtime is not in the expected state: the runtime is not ready: "
    ):
        converge(node)


# What was said before is not the word of a process that was started since.
def test_a_runtime_that_is_started_anew_while_it_is_asked_is_not_vouched_for(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verify.runtime_state

    def word(*words: Any) -> Any:
        said = real(*words)
        start_anew(cri_runtime)
        return said

    monkeypatch.setattr(verify, "runtime_state", word)
    converge(node)
    assert not record(node).exists()
    monkeypatch.setattr(verify, "runtime_state", real)
    converge(node)
    assert json.loads(record(node).read_bytes())["pid"] == cri_runtime.pid


def test_the_handlers_in_the_record_are_those_of_the_process_in_it(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = transaction.commit

    def commit(*words: Any) -> Any:
        say(node, handlers=["runc"])
        start_anew(cri_runtime)
        return real(*words)

    monkeypatch.setattr(transaction, "commit", commit)
    converge(node)
    assert not record(node).exists()


# What was owed is not owed any more once it is done, whatever was seen before.
def test_what_a_killed_run_owed_is_vouched_for_by_the_next_one(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restart, "perform", killed)
        with pytest.raises(KeyboardInterrupt):
            converge(node)
    assert not record(node).exists()
    converge(node)
    assert json.loads(record(node).read_bytes())["pid"] == cri_runtime.pid


def test_a_runtime_without_cri_is_ready_by_its_judged_configuration(
    node: Node, cri_runtime: Daemon
) -> None:
    say(node, unimplemented=True)
    converge(node)
    assert json.loads(record(node).read_bytes())["handlers"] is None
    assert status(node) == "in sync\nready\n"


def test_a_node_that_is_not_as_wanted_is_not_ready(node: Node, cri_runtime: Daemon) -> None:
    converge(node)
    context = Context(
        settings=node.settings(runtime_class="gpu"), adapter=containerd, stop=Cancellation()
    )
    assert readiness.unready(context, make_plan(context)) == "the node is not in sync"
    assert status(node, runtime_class="gpu").startswith("not in sync\n")


def test_another_toolkit_is_another_record(node: Node, cri_runtime: Daemon) -> None:
    converge(node)
    first = json.loads(record(node).read_bytes())
    fake_node.make_artifacts(node.source, release="2")
    converge(node)
    second = json.loads(record(node).read_bytes())
    assert {name for name in first if first[name] != second[name]} == {"toolkit"}


@pytest.mark.parametrize(
    "module", [journal, apply], ids=["the first byte is remembered", "a file changes"]
)
def test_the_record_is_gone_before(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    converge(node)
    assert record(node).exists()
    step = "save" if module is journal else "changes"
    real, seen = getattr(module, step), []

    def watched(*words: Any, **named: Any) -> Any:
        seen.append(record(node).exists())
        return real(*words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, watched)
        converge(node, runtime_class="gpu")
    assert seen
    assert not any(seen)
    assert record(node).exists()


def test_what_was_taken_back_is_not_ready(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectation, "SETTLING", 0.3)
    converge(node)
    say(node, handlers=["runc", *OURS])
    with pytest.raises(RolledBack):
        converge(node, runtime_class="gpu")
    assert not record(node).exists()


def test_a_change_that_is_refused_leaves_the_record_alone(node: Node, cri_runtime: Daemon) -> None:
    converge(node)
    before = fake_node.trace(record(node))
    notes = {"format": 1, "boot": procfs.boot_id(), "restarts": [restart_budget.uptime()] * 3}
    node.pid_file.with_name("restarts.json").write_text(json.dumps(notes), encoding="utf-8")
    with pytest.raises(StepError, match=r"--restart-budget is 3.*: nothing was changed$"):
        transaction.converge(node.settings(runtime_class="gpu"), containerd)
    assert fake_node.trace(record(node)) == before


def test_a_revert_removes_the_record(node: Node, cri_runtime: Daemon) -> None:
    converge(node)
    uninstall.revert(node.settings(), containerd)
    assert not record(node).exists()


def test_a_revert_of_nothing_removes_a_record_that_stood_alone(
    node: Node, cri_runtime: Daemon
) -> None:
    readiness_record.write(record(node), facts())
    uninstall.revert(node.settings(), containerd)
    assert not record(node).exists()


def test_a_run_without_runtime_config_is_ready_whatever_the_runtime_is(node: Node) -> None:
    converge(node, no_runtime_config="true")
    said = json.loads(record(node).read_bytes())
    assert (said["pid"], said["handlers"]) == (None, None)
    assert said["toolkit"] == os.readlink(node.toolkit).rpartition("/")[2]


def test_a_record_that_cannot_be_written_is_told_and_does_not_undo_what_is_done(
    node: Node,
    cri_runtime: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise StepError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(readiness_record, "write", full)
        converge(node)
    assert "no room; the node is in sync, but is not reported as ready" in caplog.messages
    assert not record(node).exists()
    converge(node)
    assert json.loads(record(node).read_bytes())["pid"] == cri_runtime.pid
    assert cri_runtime.signals() == ["SIGHUP"]


# --- left to others -----------------------------------------------------------------------------


def test_with_mode_none_it_is_written_only_once_the_runtime_has_it(
    node: Node, cri_runtime: Daemon
) -> None:
    converge(node, restart_mode="none")
    assert not record(node).exists()
    said = status(node, restart_mode="none")
    assert (
        said == "in sync\nnot ready: the runtime is unhealthy or has not loaded the configuration\n"
    )
    converge(node, restart_mode="none")
    assert not record(node).exists()
    start_anew(cri_runtime)
    converge(node, restart_mode="none")
    assert json.loads(record(node).read_bytes())["pid"] == cri_runtime.pid
    assert status(node, restart_mode="none") == "in sync\nready\n"
    assert cri_runtime.signals() == []


def test_with_mode_none_it_is_not_written_where_nobody_answers(node: Node) -> None:
    converge(node, restart_mode="none")
    assert not record(node).exists()


# It names no handlers, so that none is missed.
def test_with_mode_none_a_runtime_without_cri_that_was_not_told_is_not_ready(node: Node) -> None:
    with fake_node.daemon(node.socket, home=node.root.parent / "d"):
        converge(node, restart_mode="none")
        assert not record(node).exists()


# CRI-O says after a SIGHUP that it has the handlers, but new pods do not get them.
def test_a_runtime_that_forgets_what_it_read_on_sighup_is_not_ready_until_it_is_started_anew(
    node: Node,
) -> None:
    forgetful = replace(containerd, on_hangup=SighupEffect.NEEDS_RESTART)
    with runtime(node, on_hup="stay"):
        say(node, handlers=["runc", *OURS], default="nvidia")
        transaction.converge(node.settings(), forgetful)
        assert journal.load(node.install_dir).pending_reload is not None
        assert not record(node).exists()


# --- elsewhere ----------------------------------------------------------------------------------


def test_the_record_can_lie_elsewhere(node: Node, cri_runtime: Daemon) -> None:
    elsewhere = node.root.parent / "shared/deep/nvidia-ready"
    converge(node, readiness_file=str(elsewhere))
    assert not record(node).exists()
    assert json.loads(elsewhere.read_bytes())["pid"] == cri_runtime.pid
    assert status(node, readiness_file=str(elsewhere)) == "in sync\nready\n"
    assert status(node) == f"in sync\nnot ready: {UNVERIFIED}: {record(node)} not found\n"
    uninstall.revert(node.settings(readiness_file=str(elsewhere)), containerd)
    assert not elsewhere.exists()


def test_a_directory_where_the_record_should_be_keeps_everything_as_it_is(
    node: Node, cri_runtime: Daemon
) -> None:
    record(node).mkdir()
    before = fake_node.snapshot(node.root / "etc")
    with pytest.raises(StepError, match=r"ready\.json cannot be removed: "):
        converge(node)
    assert fake_node.snapshot(node.root / "etc") == before
    assert not node.install_dir.exists()
    assert cri_runtime.signals() == []
