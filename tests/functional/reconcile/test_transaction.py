"""The whole way there and back with a stand-in runtime: nothing superfluous, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from tests.support import fake_node
from tests.support.fake_node import Daemon, Node
from toolkit.artifacts import versions
from toolkit.errors import RolledBack, StepError
from toolkit.kube import kubelet
from toolkit.node import files, procfs
from toolkit.reconcile import apply, transaction, uninstall
from toolkit.runtime import locate, restart
from toolkit.runtime.pending_reload import is_pending
from toolkit.settings.layout import VERSIONS
from toolkit.settings.options import RestartMode
from toolkit.state import journal
from toolkit.state.record import Baseline, Operation, PendingReload, Transaction

OTHERS_DEFAULT: Final = fake_node.KUBEADM.replace(
    b'snapshotter = "overlayfs"\n',
    b'snapshotter = "overlayfs"\n    default_runtime_name = "runc" # theirs\n',
)


class Killed(BaseException):
    """Ends a transaction at a chosen place, as SIGKILL would: nothing may catch it."""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = fake_node.make_node(tmp_path / "node")
    node.pid_file.touch(mode=0o600)
    return node


def snapshot(node: Node) -> dict[str, fake_node.Trace]:
    """Return everything but the socket, which its owner recreates, and our notes of this boot."""
    notes = (node.pid_file.with_name(name) for name in ("ready.json", "restarts.json"))
    seen = fake_node.snapshot(node.root, node.pid_file, node.socket, *notes)
    return {name: trace for name, trace in seen.items() if name != "run"}


def before_us(node: Node) -> dict[str, Any]:
    """Return what a revert has to give back: content, mode and owner of everything."""
    return {name: (seen.mode, seen.owner, seen.content) for name, seen in snapshot(node).items()}


def install(node: Node, **options: str) -> str:
    return fake_node.done("-n", *node.options(**options)).stderr


def revert(node: Node, **options: str) -> str:
    return fake_node.done("revert", *node.options(**options)).stdout


def pending(node: Node) -> bool:
    return journal.load(node.install_dir).pending_reload is not None


def killed_in(
    node: Node, monkeypatch: pytest.MonkeyPatch, module: Any, step: str, *, after: bool = False
) -> None:
    """Run a transaction that is killed when it comes to a step, or right after it."""
    real = getattr(module, step)

    def kill(*words: Any, **named: Any) -> None:
        if after:
            real(*words, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, step, kill)
        with pytest.raises(Killed):
            transaction.converge(node.settings(), containerd)


# --- there --------------------------------------------------------------------------------------


def test_an_install_writes_reloads_once_and_remembers(node: Node, running: Daemon) -> None:
    first = running.pid
    told = install(node)
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()
    assert (node.toolkit / "nvidia-container-runtime").exists()
    assert running.signals() == ["SIGHUP"]
    assert running.pid != first
    assert not pending(node)
    assert f"sending SIGHUP to PID {first}" in told
    assert f"PID {running.pid} answers on {node.socket}" in told


def test_the_file_keeps_its_owner_and_mode(node: Node, running: Daemon) -> None:
    node.config.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(node.config, 0, 34)
    before = fake_node.trace(node.config)
    install(node)
    after = fake_node.trace(node.config)
    assert (after.mode, after.owner) == (before.mode, before.owner)
    assert after.content != before.content


def test_a_second_run_changes_nothing_and_tells_nobody(node: Node, running: Daemon) -> None:
    install(node)
    before = snapshot(node)
    assert install(node) == "I health: nothing to do: the node is in sync\n"
    assert snapshot(node) == before
    assert running.signals() == ["SIGHUP"]


def test_files_that_change_without_the_configuration_need_no_reload(
    node: Node, running: Daemon
) -> None:
    install(node)
    fake_node.make_artifacts(node.source, release="2")
    install(node)
    assert (node.toolkit / "libnvidia-container.so.1.2").exists()
    assert running.signals() == ["SIGHUP"]


# A wrapper may be under way in the version that was in use until now, whichever was written last.
def test_the_version_that_was_just_replaced_is_kept(node: Node, running: Daemon) -> None:
    used = []
    for release in ("1", "2", "1", "3"):
        shutil.rmtree(node.source)
        fake_node.make_artifacts(node.source, release=release)
        install(node)
        used.append(os.readlink(node.toolkit).rpartition("/")[2])
    kept = {path.name for path in (node.install_dir / VERSIONS).iterdir()}
    assert kept == {used[0], used[3]}


def test_a_run_without_runtime_config_leaves_the_runtime_alone(node: Node, running: Daemon) -> None:
    before = fake_node.trace(node.config)
    install(node, no_runtime_config="true")
    assert node.toolkit.is_symlink()
    assert fake_node.trace(node.config) == before
    assert running.signals() == []


def test_mode_none_signals_nobody(node: Node, running: Daemon) -> None:
    told = install(node, restart_mode="none")
    assert (
        "the runtime was not restarted (--restart-mode none): restart it to load the change" in told
    )
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()
    revert(node, restart_mode="none")
    assert running.signals() == []


def test_mode_none_works_where_nobody_listens(node: Node) -> None:
    fake_node.name_low_level(node)
    install(node, restart_mode="none")
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()


def test_a_socket_that_nobody_answers_changes_nothing(node: Node) -> None:
    fake_node.name_low_level(node)
    with fake_node.daemon(node.socket, home=node.root.parent / "d", speech="close") as daemon:
        before = snapshot(node)
        done = fake_node.cli("-n", *node.options())
        assert (done.returncode, done.stdout) == (4, "")
        assert (
            done.stderr
            == f"error: the socket {node.socket} cannot be used: the server closed the connection"
            " without an answer: nothing was changed\n"
            "hint: with --restart-mode none the files are changed and the restart is left to you\n"
        )
        assert snapshot(node) == before
        assert daemon.signals() == []


def test_another_programs_socket_changes_nothing(node: Node) -> None:
    with fake_node.daemon(node.socket, home=node.root.parent / "d", name="postgres") as daemon:
        before = snapshot(node)
        assert fake_node.cli("-n", *node.options()).returncode == 4
        assert snapshot(node) == before
        assert daemon.signals() == []


def test_a_runtime_that_does_not_come_back_gets_its_old_files_and_the_record_is_kept(
    node: Node,
) -> None:
    before = before_us(node)
    home = node.root.parent / "d"
    # It has a supervisor, which gives up.
    with (
        fake_node.daemon(node.socket, home=home, revives=False) as daemon,
        fake_node.named("runsv"),
    ):
        done = fake_node.cli("-n", *node.options(reload_timeout="0.4"))
        assert done.returncode == 7
        assert "error: the runtime did not restart or reload in time: " in done.stderr
        assert "; rollback failed: the runtime did not restart or reload in time: " in done.stderr
        assert (
            f"everything needed is kept in {node.state.parent} ({node.config} was saved as "
            in done.stderr
        )
        assert daemon.signals() == ["SIGHUP"]
    assert node.config.read_bytes() == fake_node.KUBEADM
    # Once the runtime can start, the next run goes on with the way back, and then begins anew.
    with fake_node.daemon(node.socket, home=home):
        told = install(node)
        assert "rolling back the change" in told
        assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()
        revert(node)
    assert before_us(node) == before


def test_a_config_that_is_a_link_stays_one(node: Node, running: Daemon) -> None:
    real = node.root / "etc/real.toml"
    node.config.rename(real)
    node.config.symlink_to("../real.toml")
    before = before_us(node)
    install(node)
    assert node.config.is_symlink()
    assert b'default_runtime_name = "nvidia"' in real.read_bytes()
    revert(node)
    assert before_us(node) == before


@pytest.mark.parametrize("linked", [False, True], ids=["plain", "linked"])
def test_what_a_killed_run_left_is_swept_even_where_nothing_is_to_do(
    node: Node, running: Daemon, *, linked: bool
) -> None:
    if linked:
        (node.root / "etc/real").mkdir()
        node.config.rename(node.root / "etc/real/real.toml")
        node.config.symlink_to("../real/real.toml")
    install(node)
    real = node.config.resolve()
    leftover = real.with_name(f".{real.name}.nvidia-toolkit-new")
    leftover.write_bytes(b"half")
    install(node)
    assert not leftover.exists()
    assert running.signals() == ["SIGHUP"]


def test_a_revert_without_a_restart_leaves_no_temporary_file_of_a_killed_run(
    node: Node, running: Daemon
) -> None:
    install(node, restart_mode="none")
    leftover = node.pid_file.with_name(".restarts.json.nvidia-toolkit-new")
    leftover.write_bytes(b"half")
    fake_node.done("revert", *node.options(restart_mode="none"))
    assert running.signals() == []
    assert not leftover.exists()


def test_what_mode_none_left_to_others_is_still_owed_in_another_mode(
    node: Node, running: Daemon
) -> None:
    install(node, restart_mode="none")
    assert running.signals() == []
    install(node)
    assert running.signals() == ["SIGHUP"], "the runtime still runs with the old configuration"


def test_files_that_cannot_be_installed_leave_the_configuration_alone(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = before_us(node)

    def fail(*_: Any, **__: Any) -> None:
        raise StepError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(versions, "install", fail)
        with pytest.raises(RolledBack, match=r"^no room; the change was rolled back"):
            transaction.converge(node.settings(), containerd)
    assert running.signals() == []
    assert before_us(node) == before


# --- killed on the way --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "step", "after"),
    [
        (apply, "changes", False),
        (apply, "changes", True),
        (restart, "perform", False),
        (restart, "perform", True),
        (journal, "close_transaction", False),
    ],
    ids=[
        "before the write",
        "after the write",
        "before the reload",
        "after the reload",
        "before the end",
    ],
)
def test_the_next_run_brings_a_killed_one_to_its_end(
    node: Node,
    running: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    step: str,
    *,
    after: bool,
) -> None:
    before = before_us(node)
    killed_in(node, monkeypatch, module, step, after=after)
    assert pending(node)
    install(node)
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()
    assert not pending(node)
    assert 1 <= len(running.signals()) <= 2
    told = len(running.signals())
    install(node)
    assert len(running.signals()) == told
    revert(node)
    assert before_us(node) == before


def test_a_reload_that_is_owed_is_done_once(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_in(node, monkeypatch, restart, "perform")
    assert running.signals() == []
    answer = json.loads(fake_node.done("plan", "-o", "json", *node.options()).stdout)
    assert answer["in_sync"] is False
    assert answer["changes"] == []
    assert answer["reload"] == {
        "needed": True,
        "reason": "the configuration was changed, but the runtime has not loaded it",
        "how": (
            f"SIGHUP to PID {running.pid}, which ends it: runsv (PID {os.getpid()}) starts it again"
        ),
        "unavailable_s": None,
    }
    install(node)
    assert running.signals() == ["SIGHUP"]
    install(node)
    assert running.signals() == ["SIGHUP"]


def test_a_reload_that_is_owed_can_be_seen_in_the_state(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_in(node, monkeypatch, restart, "perform")
    shown = fake_node.done("status", *node.options()).stdout
    assert shown == "not in sync\n  the runtime has not loaded the configuration yet\n"


def test_attributes_and_the_acl_are_kept_and_given_back(node: Node, running: Daemon) -> None:
    acl = bytes.fromhex(
        "02000000 01000600ffffffff 02000400e8030000 04000000ffffffff 10000400ffffffff"
        " 20000000ffffffff"
    )
    try:
        os.setxattr(node.config, "user.owner", b"ops")
        os.setxattr(node.config, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"no attributes here: {error}")
    seen = files.read(node.config)
    assert seen is not None
    install(node)
    ours = files.read(node.config)
    assert ours is not None
    assert ours.data != seen.data
    assert replace(ours, data=seen.data) == seen
    os.removexattr(node.config, "user.owner")
    revert(node)
    assert files.read(node.config) == seen


@pytest.mark.parametrize("jump", [-86400, 86400])
def test_what_is_owed_by_a_process_is_owed_by_it_whatever_the_clock_says(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    killed_in(node, monkeypatch, restart, "perform")
    record = journal.load(node.install_dir)
    place = locate.target(node.settings(), containerd)
    pending = record.pending_reload
    assert pending is not None
    assert pending.process == (running.pid, procfs.start_time(running.pid))
    moved = replace(pending, since=pending.since + jump)
    assert is_pending(place, replace(record, pending_reload=moved), RestartMode.SIGNAL)
    other = replace(record, pending_reload=replace(moved, process=(running.pid, 1)))
    assert not is_pending(place, other, RestartMode.SIGNAL)


def test_nothing_is_owed_by_a_runtime_that_was_started_since(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = node.root.parent / "d"
    with fake_node.daemon(node.socket, home=home):
        killed_in(node, monkeypatch, restart, "perform")
    long_ago = node.config.stat().st_mtime - 60
    os.utime(node.config, (long_ago, long_ago))
    time.sleep(0.1)
    with fake_node.daemon(node.socket, home=home) as daemon:
        install(node)
        assert daemon.signals() == []


def test_a_runtime_that_lost_cri_by_our_change_is_not_called_right_on_the_next_run(
    node: Node, running: Daemon
) -> None:
    install(node)
    record = journal.load(node.install_dir)
    # As a run leaves it that gave up: the runtime was restarted, but CRI did not come back.
    opened = Transaction(
        operation=Operation.INSTALL,
        previous=replace(record, owned=()),
        baseline=Baseline(supports_cri=True),
        files=record.owned,
    )
    journal.save(
        node.install_dir,
        replace(record, pending_reload=PendingReload(since=time.time() - 1000), open=opened),
    )
    done = fake_node.cli("-n", *node.options(reload_timeout="0.5"))
    assert done.returncode == 7, "it does not with the old files either"
    assert "the runtime did not apply the change: the runtime no longer serves CRI: " in done.stderr
    assert "nothing to do" not in done.stderr


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
def test_a_killed_run_can_be_taken_back(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    before = before_us(node)
    killed_in(node, monkeypatch, apply, "changes", after=after)
    revert(node)
    assert before_us(node) == before


@pytest.mark.parametrize(
    "step", ["begin", "changes", "perform", "close_transaction", "remove", "forget"]
)
def test_a_killed_revert_can_be_done_again(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = before_us(node)
    install(node)
    module: Any = {
        "begin": transaction, "changes": apply, "perform": restart, "close_transaction": journal,
        "remove": versions, "forget": journal,
    }[step]  # fmt: skip

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, step, kill)
        with pytest.raises(Killed):
            uninstall.revert(node.settings(), containerd)
    revert(node)
    assert before_us(node) == before


# --- and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [fake_node.KUBEADM, OTHERS_DEFAULT, b"", None],
    ids=["kubeadm", "default", "empty", "absent"],
)
def test_a_revert_gives_back_every_byte(tmp_path: Path, config: bytes | None) -> None:
    node = fake_node.make_node(tmp_path / "node", config)
    if config is not None and os.geteuid() == 0:
        os.chown(node.config, 0, 34)
    with fake_node.daemon(node.socket, home=tmp_path / "d") as daemon:
        before = before_us(node)
        install(node)
        assert before_us(node) != before
        assert revert(node).splitlines()[-1] == "reverted"
        assert before_us(node) == before
        assert daemon.signals() == ["SIGHUP", "SIGHUP"]


def test_the_default_from_before_comes_back(node: Node, running: Daemon) -> None:
    node.config.write_bytes(OTHERS_DEFAULT)
    install(node)
    assert b'default_runtime_name = "nvidia" # theirs' in node.config.read_bytes()
    revert(node)
    assert node.config.read_bytes() == OTHERS_DEFAULT


def test_after_two_upgrades_the_oldest_original_comes_back(node: Node, running: Daemon) -> None:
    before = before_us(node)
    install(node)
    install(node, runtime_class="gpu")
    install(node, set_as_default="false")
    revert(node)
    assert before_us(node) == before


def test_what_somebody_added_since_stays(node: Node, running: Daemon) -> None:
    install(node)
    with node.config.open("ab") as stream:
        stream.write(b'\n[debug] # theirs\nlevel = "debug"\n')
    revert(node)
    tail = b'\n[debug] # theirs\nlevel = "debug"\n'
    assert node.config.read_bytes() == fake_node.KUBEADM + tail


def test_what_somebody_changed_of_ours_stays_and_is_named(node: Node, running: Daemon) -> None:
    install(node)
    edited = node.config.read_bytes().replace(
        b'default_runtime_name = "nvidia"', b'default_runtime_name = "kata"'
    )
    node.config.write_bytes(edited)
    told = revert(node)
    assert b'default_runtime_name = "kata"' in node.config.read_bytes()
    assert b"nvidia" not in node.config.read_bytes()
    (line,) = [
        line for line in told.splitlines() if line.startswith("kept, because it was modified: ")
    ]
    assert str(node.config) in line
    assert "default_runtime_name" in line


def test_an_edit_between_two_of_our_writes_survives_the_revert(node: Node, running: Daemon) -> None:
    install(node)
    with node.config.open("ab") as stream:
        stream.write(b"\n# theirs\n")
    install(node, runtime_class="gpu")
    revert(node)
    assert node.config.read_bytes() == fake_node.KUBEADM + b"\n# theirs\n"


def test_a_file_that_somebody_removed_stays_removed(node: Node, running: Daemon) -> None:
    install(node)
    node.config.unlink()
    revert(node)
    assert not node.config.exists()


def test_a_second_revert_has_nothing_to_do(node: Node, running: Daemon) -> None:
    install(node)
    revert(node)
    before = snapshot(node)
    assert revert(node) == "nothing to revert\n"
    assert snapshot(node) == before
    assert running.signals() == ["SIGHUP", "SIGHUP"]


def test_a_revert_where_nobody_listens_changes_nothing(node: Node) -> None:
    with fake_node.daemon(node.socket, home=node.root.parent / "d"):
        install(node)
    before = snapshot(node)
    done = fake_node.cli("revert", *node.options())
    assert done.returncode == 4
    assert done.stderr.startswith("error: no process listens on ")
    assert done.stderr.splitlines()[0].endswith(": nothing was changed")
    assert done.stderr.splitlines()[1:] == [
        "hint: with --restart-mode none the files are changed and the restart is left to you"
    ]
    assert snapshot(node) == before


# Its containers live on while containerd is down, and need the binary that started their shim.
@pytest.mark.parametrize("mode", ["none", "signal"])
def test_a_revert_sees_the_containers_of_a_runtime_that_is_down(
    node: Node, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    with fake_node.daemon(node.socket, home=node.root.parent / "d"):
        install(node, set_as_default="true")
    note = node.root / "run/task/k8s.io/0123456789abcdef/runtime"
    note.parent.mkdir(parents=True)
    note.write_text(f"{node.toolkit}/nvidia-container-runtime.cdi", encoding="utf-8")
    adapter = replace(containerd, task_files=lambda *_: (f"{node.root}/run/task/*/*/runtime",))
    settings = node.settings(restart_mode=mode)
    with pytest.raises(StepError) as caught:
        uninstall.revert(settings, adapter)
    if mode == "none":
        why = (
            "1 container still uses the toolkit's handlers: 0123456789ab;"
            " the handlers and their files are kept"
        )
        assert str(caught.value) == why
        assert b"default_runtime_name" not in node.config.read_bytes()
    assert (node.toolkit / "nvidia-container-runtime.cdi").exists()
    assert b"nvidia-cdi" in node.config.read_bytes()
    note.unlink()
    uninstall.revert(node.settings(restart_mode="none"), adapter)
    assert node.config.read_bytes() == fake_node.KUBEADM


def test_a_revert_that_the_runtime_does_not_take_up_keeps_the_record(node: Node) -> None:
    with fake_node.daemon(node.socket, home=node.root.parent / "d") as daemon:
        install(node)
        daemon.revives = False
        assert fake_node.cli("revert", *node.options(reload_timeout="0.4")).returncode == 7
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes(), "the node is as it was"
    with fake_node.daemon(node.socket, home=node.root.parent / "d"):
        revert(node)
    assert not node.state.exists()


def test_the_directory_of_another_installer_comes_back(node: Node, running: Daemon) -> None:
    node.toolkit.mkdir(parents=True)
    (node.toolkit / "nvidia-ctk").write_bytes(b"theirs")
    before = before_us(node)
    install(node)
    fake_node.make_artifacts(node.source, release="1")
    revert(node)
    assert before_us(node) == before


def test_a_directory_that_somebody_uses_stays(node: Node, running: Daemon) -> None:
    install(node)
    (node.install_dir / "mine").touch()
    revert(node)
    assert [path.name for path in node.install_dir.iterdir()] == ["mine"]


def test_containers_that_use_the_handlers_keep_them_but_new_ones_do_not_get_them(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = before_us(node)
    install(node)
    context = node.root.parent / "tasks/k8s.io/0123abc"
    context.mkdir(parents=True)
    (context / "runtime").write_text(f"{node.toolkit}/nvidia-container-runtime", encoding="utf-8")
    pattern = f"{node.root.parent}/tasks/*/*/runtime"
    adapter = replace(containerd, task_files=lambda *_: (pattern,))
    for _ in range(2):
        with pytest.raises(StepError) as caught:
            uninstall.revert(node.settings(), adapter)
        assert (
            str(caught.value)
            == "1 container still uses the toolkit's handlers: 0123abc; the handlers and their"
            " files are kept"
        )
        assert "--force" in caught.value.hint
        assert b"default_runtime_name" not in node.config.read_bytes()
        assert b"runtimes.nvidia]" in node.config.read_bytes()
        assert (node.toolkit / "nvidia-container-runtime").exists()
        assert running.signals() == ["SIGHUP", "SIGHUP"]
    (context / "runtime").unlink()
    uninstall.revert(node.settings(), adapter)
    assert before_us(node) == before


def test_a_note_of_a_shim_that_is_no_text_is_of_no_container_of_ours(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = before_us(node)
    install(node)
    note = node.root.parent / "odd"
    note.write_bytes(b"\xff\xfe")
    adapter = replace(containerd, task_files=lambda *_: (str(note),))
    uninstall.revert(node.settings(), adapter)
    assert before_us(node) == before


def test_containers_that_use_the_handlers_can_be_left_to_their_fate(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = before_us(node)
    install(node)
    context = node.root.parent / "tasks/k8s.io/0123abc"
    context.mkdir(parents=True)
    (context / "runtime").write_text(f"{node.toolkit}/nvidia-container-runtime", encoding="utf-8")
    adapter = replace(containerd, task_files=lambda *_: (f"{node.root.parent}/tasks/*/*/runtime",))
    uninstall.revert(node.settings(force="true"), adapter)
    assert before_us(node) == before


# --- staying ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_the_end_of_the_pod_changes_nothing(
    node: Node, running: Daemon, number: signal.Signals
) -> None:
    with fake_node.started(fake_node.program(*node.options())) as pod:
        fake_node.wait_for(
            lambda: node.state.exists() and not pending(node) and running.signals() == ["SIGHUP"],
            "the node is not set up",
        )
        before = snapshot(node)
        code, out, err = fake_node.ended(pod, number)
    assert (code, out) == (0, "")
    told = [json.loads(line) for line in err.splitlines()]
    assert told[-2]["message"].startswith("set up; watching ")
    assert told[-1]["message"] == f"{number.name}: stopping, the node stays as it is"
    assert {line["phase"] for line in told[-2:]} == {"daemon"}
    assert snapshot(node) == before
    assert running.signals() == ["SIGHUP"]
    assert node.pid_file.read_bytes() == b""


def test_the_lock_is_held_while_the_pod_stays(node: Node, running: Daemon) -> None:
    with fake_node.started(fake_node.program(*node.options())) as pod:
        fake_node.wait_for(
            lambda: node.state.exists() and not pending(node), "the node is not set up"
        )
        assert node.pid_file.read_text(encoding="utf-8") == f"{pod.pid}\n"
        assert fake_node.cli("-n", *node.options()).returncode == 5
        fake_node.ended(pod, signal.SIGTERM)


def test_a_signal_during_the_set_up_lets_it_finish_and_is_told(node: Node) -> None:
    # The runtime takes half a second to come back; the signal comes before that.
    with (
        fake_node.daemon(node.socket, home=node.root.parent / "d", delay=0.5) as daemon,
        fake_node.started(fake_node.program("-n", *node.options())) as run,
    ):
        fake_node.wait_for(lambda: daemon.signals() == ["SIGHUP"], "the runtime is not told")
        code, _, _ = fake_node.ended(run, signal.SIGTERM)
        assert code == 128 + signal.SIGTERM
    assert not pending(node)
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()


SANDBOX: Final = b"""\
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "kata"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
runtime_type = "io.containerd.kata.v2"
"""


@pytest.mark.parametrize("driver", ["systemd", "cgroupfs", None])
def test_pods_that_are_isolated_no_more_are_told_and_the_cgroup_driver_is_no_guess(
    node: Node,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    driver: str | None,
) -> None:
    monkeypatch.setattr(kubelet, "cgroup_driver", lambda _root: driver)
    node.config.write_bytes(SANDBOX)
    said = "pods without a RuntimeClass are no longer isolated (--set-as-default=false keeps kata)"
    with fake_node.daemon(node.socket, home=node.root.parent / "d"):
        if driver is None:
            with pytest.raises(
                StepError, match="no handler of runc shows the cgroup driver"
            ) as caught:
                transaction.converge(node.settings(), containerd)
            assert "RUNTIME_CONFIG_OVERRIDE" in caught.value.hint
            assert node.config.read_bytes() == SANDBOX
            return
        plan = transaction.converge(node.settings(), containerd)
    assert any(
        said in record.message and record.levelname == "WARNING" for record in caplog.records
    )
    assert any(said in note for note in plan.config_plan.notes)
    tree = tomllib.loads(node.config.read_text(encoding="utf-8"))
    handler = tree["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["nvidia"]
    assert handler["options"]["SystemdCgroup"] is (driver == "systemd")
