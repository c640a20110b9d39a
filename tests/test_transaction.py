"""The whole way there and back with a stand-in for the runtime: nothing more than needed, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes import containerd
from tests import workshop
from tests.workshop import Daemon, Node
from toolkit import apply, begin, detect, files, journal, kernel, reload, removal, transaction, versions
from toolkit.artifacts import VERSIONS
from toolkit.debts import is_owed
from toolkit.errors import RolledBack, StepFailed
from toolkit.memory import Baseline, Job, Open
from toolkit.options import RestartMode

OTHERS_DEFAULT: Final = workshop.KUBEADM.replace(
    b'snapshotter = "overlayfs"\n', b'snapshotter = "overlayfs"\n    default_runtime_name = "runc" # theirs\n'
)


class Killed(BaseException):
    """Ends a transaction at a chosen place, as SIGKILL would: nothing may catch it."""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = workshop.make_node(tmp_path / "node")
    node.pid_file.touch()
    return node


@pytest.fixture
def running(node: Node) -> Iterator[Daemon]:
    """Run a containerd that dies of SIGHUP and is started again, as under systemd."""
    with workshop.daemon(node.socket, home=node.root.parent / "d") as daemon:
        yield daemon


def snapshot(node: Node) -> dict[str, workshop.Trace]:
    """Return everything but the socket, which its owner makes anew, and our own notes of this boot."""
    notes = (node.pid_file.with_name(name) for name in ("ready.json", "restarts.json"))
    seen = workshop.snapshot(node.root, node.pid_file, node.socket, *notes)
    return {name: trace for name, trace in seen.items() if name != "run"}


def before_us(node: Node) -> dict[str, Any]:
    """Return what a revert has to give back: content, mode and owner of everything."""
    return {name: (seen.mode, seen.owner, seen.content) for name, seen in snapshot(node).items()}


def install(node: Node, **options: str) -> str:
    return workshop.done("-n", *node.options(**options)).stderr


def revert(node: Node, **options: str) -> str:
    return workshop.done("revert", *node.options(**options)).stdout


def pending(node: Node) -> bool:
    return journal.load(node.install_dir).owed_since is not None


def killed_in(
    node: Node, monkeypatch: pytest.MonkeyPatch, room: Any, step: str, *, after: bool = False
) -> None:
    """Run a transaction that is killed when it comes to a step, or right after it."""
    real = getattr(room, step)

    def kill(*words: Any, **named: Any) -> None:
        if after:
            real(*words, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(room, step, kill)
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
        os.chown(node.config, 12, 34)
    before = workshop.trace(node.config)
    install(node)
    after = workshop.trace(node.config)
    assert (after.mode, after.owner) == (before.mode, before.owner)
    assert after.content != before.content


def test_a_second_run_changes_nothing_and_tells_nobody(node: Node, running: Daemon) -> None:
    install(node)
    before = snapshot(node)
    assert install(node) == "I transaction: nothing to do: the node is as wanted\n"
    assert snapshot(node) == before
    assert running.signals() == ["SIGHUP"]


def test_files_that_change_without_the_configuration_need_no_reload(node: Node, running: Daemon) -> None:
    install(node)
    workshop.make_artifacts(node.source, release="2")
    install(node)
    assert (node.toolkit / "libnvidia-container.so.1.2").exists()
    assert running.signals() == ["SIGHUP"]


# A wrapper may be under way in the version that was in use until now, whichever was written last.
def test_the_version_that_was_just_replaced_is_kept(node: Node, running: Daemon) -> None:
    used = []
    for release in ("1", "2", "1", "3"):
        shutil.rmtree(node.source)
        workshop.make_artifacts(node.source, release=release)
        install(node)
        used.append(os.readlink(node.toolkit).rpartition("/")[2])
    kept = {path.name for path in (node.install_dir / VERSIONS).iterdir()}
    assert kept == {used[0], used[3]}


def test_a_run_without_runtime_config_leaves_the_runtime_alone(node: Node, running: Daemon) -> None:
    before = workshop.trace(node.config)
    install(node, no_runtime_config="true")
    assert node.toolkit.is_symlink()
    assert workshop.trace(node.config) == before
    assert running.signals() == []


def test_mode_none_signals_nobody(node: Node, running: Daemon) -> None:
    told = install(node, restart_mode="none")
    assert "the runtime has not been told, as asked (restart mode none)" in told
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()
    revert(node, restart_mode="none")
    assert running.signals() == []


def test_mode_none_works_where_nobody_listens(node: Node) -> None:
    install(node, restart_mode="none")
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()


def test_a_socket_that_nobody_answers_changes_nothing(node: Node) -> None:
    with workshop.daemon(node.socket, home=node.root.parent / "d", speech="close") as daemon:
        before = snapshot(node)
        done = workshop.cli("-n", *node.options())
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr == (
            f"error: the socket {node.socket} cannot be used: the connection was closed without a word:"
            " nothing was changed\n"
            "hint: with --restart-mode none a runtime that does not answer is left to you\n"
        )
        assert snapshot(node) == before
        assert daemon.signals() == []


def test_another_programs_socket_changes_nothing(node: Node) -> None:
    with workshop.daemon(node.socket, home=node.root.parent / "d", name="postgres") as daemon:
        before = snapshot(node)
        assert workshop.cli("-n", *node.options()).returncode == 4
        assert snapshot(node) == before
        assert daemon.signals() == []


def test_a_runtime_that_does_not_come_back_gets_its_old_files_and_the_record_is_kept(node: Node) -> None:
    before = before_us(node)
    home = node.root.parent / "d"
    with workshop.daemon(node.socket, home=home, revives=False) as daemon:
        done = workshop.cli("-n", *node.options(reload_timeout="0.4"))
        assert done.returncode == 7
        assert "error: the runtime does not answer as it should: " in done.stderr
        assert "; taking that back failed: the runtime does not answer as it should: " in done.stderr
        assert f"everything is kept in {node.state.parent} ({node.config} was " in done.stderr
        assert daemon.signals() == ["SIGHUP"]
    assert node.config.read_bytes() == workshop.KUBEADM
    # Once the runtime can start, the next run goes on with the way back, and then begins anew.
    with workshop.daemon(node.socket, home=home):
        told = install(node)
        assert "taking the change back" in told
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


def test_what_mode_none_left_to_others_is_still_owed_in_another_mode(node: Node, running: Daemon) -> None:
    install(node, restart_mode="none")
    assert running.signals() == []
    install(node)
    assert running.signals() == ["SIGHUP"], "the runtime still runs with the old configuration"


def test_files_that_cannot_be_installed_leave_the_configuration_alone(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = before_us(node)

    def fail(*_: Any, **__: Any) -> None:
        raise StepFailed("no room")

    with monkeypatch.context() as patch:
        patch.setattr(versions, "install", fail)
        with pytest.raises(RolledBack, match=r"^no room; everything was taken back"):
            transaction.converge(node.settings(), containerd)
    assert running.signals() == []
    assert before_us(node) == before


# --- killed on the way --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "step", "after"),
    [
        (apply, "changes", False),
        (apply, "changes", True),
        (reload, "perform", False),
        (reload, "perform", True),
        (journal, "settled", False),
    ],
    ids=["before the write", "after the write", "before the reload", "after the reload", "before the end"],
)
def test_the_next_run_brings_a_killed_one_to_its_end(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch, room: Any, step: str, *, after: bool
) -> None:
    before = before_us(node)
    killed_in(node, monkeypatch, room, step, after=after)
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
    killed_in(node, monkeypatch, reload, "perform")
    assert running.signals() == []
    answer = json.loads(workshop.done("plan", "-o", "json", *node.options()).stdout)
    assert answer["in_sync"] is False
    assert answer["changes"] == []
    assert answer["reload"] == {
        "needed": True,
        "reason": "the configuration was changed, but the runtime has not taken it up",
        "how": f"SIGHUP to PID {running.pid}",
        "silent_s": None,
    }
    install(node)
    assert running.signals() == ["SIGHUP"]
    install(node)
    assert running.signals() == ["SIGHUP"]


def test_a_reload_that_is_owed_can_be_seen_in_the_state(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_in(node, monkeypatch, reload, "perform")
    shown = workshop.done("status", *node.options()).stdout
    assert shown == "not in sync\n  the runtime has not taken the configuration up yet\n"


def test_attributes_and_the_acl_are_kept_and_given_back(node: Node, running: Daemon) -> None:
    acl = bytes.fromhex(
        "02000000 01000600ffffffff 02000400e8030000 04000000ffffffff 10000400ffffffff 20000000ffffffff"
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
    killed_in(node, monkeypatch, reload, "perform")
    record = journal.load(node.install_dir)
    place = detect.scene(node.settings(), containerd)
    assert record.owed_by == (running.pid, kernel.ticks(running.pid))
    assert record.owed_since is not None
    moved = replace(record, owed_since=record.owed_since + jump)
    assert is_owed(place, moved, RestartMode.SIGNAL)
    assert not is_owed(place, replace(moved, owed_by=(running.pid, 1)), RestartMode.SIGNAL)


def test_nothing_is_owed_by_a_runtime_that_was_started_since(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = node.root.parent / "d"
    with workshop.daemon(node.socket, home=home):
        killed_in(node, monkeypatch, reload, "perform")
    long_ago = node.config.stat().st_mtime - 60
    os.utime(node.config, (long_ago, long_ago))
    time.sleep(0.1)
    with workshop.daemon(node.socket, home=home) as daemon:
        install(node)
        assert daemon.signals() == []


def test_a_runtime_that_lost_cri_by_our_change_is_not_called_right_on_the_next_run(
    node: Node, running: Daemon
) -> None:
    install(node)
    record = journal.load(node.install_dir)
    # As a run leaves it that gave up: the runtime was restarted, but CRI did not come back.
    opened = Open(
        job=Job.INSTALL,
        earlier=replace(record, owned=()),
        baseline=Baseline(speaks_cri=True),
        files=record.owned,
    )
    journal.save(node.install_dir, replace(record, owed_since=time.time() - 1000, open=opened))
    done = workshop.cli("-n", *node.options(reload_timeout="0.5"))
    assert done.returncode == 7, "it does not with the old files either"
    assert "the runtime did not take the change up: the runtime does not serve CRI any more: " in done.stderr
    assert "nothing to do" not in done.stderr


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
def test_a_killed_run_can_be_taken_back(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    before = before_us(node)
    killed_in(node, monkeypatch, apply, "changes", after=after)
    revert(node)
    assert before_us(node) == before


@pytest.mark.parametrize("step", ["begin", "changes", "perform", "settled", "remove", "forget"])
def test_a_killed_revert_can_be_done_again(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = before_us(node)
    install(node)
    room: Any = {
        "begin": begin, "changes": apply, "perform": reload, "settled": journal, "remove": versions,
        "forget": journal,
    }[step]  # fmt: skip

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(room, step, kill)
        with pytest.raises(Killed):
            removal.revert(node.settings(), containerd)
    revert(node)
    assert before_us(node) == before


# --- and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [workshop.KUBEADM, OTHERS_DEFAULT, b"", None], ids=["kubeadm", "default", "empty", "absent"]
)
def test_a_revert_gives_back_every_byte(tmp_path: Path, config: bytes | None) -> None:
    node = workshop.make_node(tmp_path / "node", config)
    if config is not None and os.geteuid() == 0:
        os.chown(node.config, 12, 34)
    with workshop.daemon(node.socket, home=tmp_path / "d") as daemon:
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
    assert node.config.read_bytes() == workshop.KUBEADM + tail


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
        line for line in told.splitlines() if line.startswith("stays, since it was edited by someone: ")
    ]
    assert str(node.config) in line
    assert "default_runtime_name" in line


def test_an_edit_between_two_of_our_writes_survives_the_revert(node: Node, running: Daemon) -> None:
    install(node)
    with node.config.open("ab") as stream:
        stream.write(b"\n# theirs\n")
    install(node, runtime_class="gpu")
    revert(node)
    assert node.config.read_bytes() == workshop.KUBEADM + b"\n# theirs\n"


def test_a_file_that_somebody_removed_stays_removed(node: Node, running: Daemon) -> None:
    install(node)
    node.config.unlink()
    revert(node)
    assert not node.config.exists()


def test_a_second_revert_has_nothing_to_do(node: Node, running: Daemon) -> None:
    install(node)
    revert(node)
    before = snapshot(node)
    assert revert(node) == "nothing to take back\n"
    assert snapshot(node) == before
    assert running.signals() == ["SIGHUP", "SIGHUP"]


def test_a_revert_where_nobody_listens_changes_nothing(node: Node) -> None:
    with workshop.daemon(node.socket, home=node.root.parent / "d"):
        install(node)
    before = snapshot(node)
    done = workshop.cli("revert", *node.options())
    assert done.returncode == 4
    assert done.stderr.startswith("error: nobody listens on ")
    assert done.stderr.splitlines()[0].endswith(": nothing was changed")
    assert done.stderr.splitlines()[1:] == [
        "hint: with --restart-mode none a runtime that does not answer is left to you"
    ]
    assert snapshot(node) == before


# Its containers live on while containerd is down, and need the binary that their shim was started with.
@pytest.mark.parametrize("mode", ["none", "signal"])
def test_a_revert_sees_the_containers_of_a_runtime_that_is_down(
    node: Node, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    with workshop.daemon(node.socket, home=node.root.parent / "d"):
        install(node, set_as_default="true")
    note = node.root / "run/task/k8s.io/0123456789abcdef/runtime"
    note.parent.mkdir(parents=True)
    note.write_text(f"{node.toolkit}/nvidia-container-runtime.cdi", encoding="utf-8")
    monkeypatch.setattr(containerd, "task_files", lambda *_: (f"{node.root}/run/task/*/*/runtime",))
    settings = node.settings(restart_mode=mode)
    with pytest.raises(StepFailed) as caught:
        removal.revert(settings, containerd)
    if mode == "none":
        why = "1 container still uses our handlers: 0123456789ab; the handlers and their files stay"
        assert str(caught.value) == why
        assert b"default_runtime_name" not in node.config.read_bytes()
    assert (node.toolkit / "nvidia-container-runtime.cdi").exists()
    assert b"nvidia-cdi" in node.config.read_bytes()
    note.unlink()
    removal.revert(node.settings(restart_mode="none"), containerd)
    assert node.config.read_bytes() == workshop.KUBEADM


def test_a_revert_that_the_runtime_does_not_take_up_keeps_the_record(node: Node) -> None:
    with workshop.daemon(node.socket, home=node.root.parent / "d") as daemon:
        install(node)
        daemon.revives = False
        assert workshop.cli("revert", *node.options(reload_timeout="0.4")).returncode == 7
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes(), "the node is as it was"
    with workshop.daemon(node.socket, home=node.root.parent / "d"):
        revert(node)
    assert not node.state.exists()


def test_the_directory_of_another_installer_comes_back(node: Node, running: Daemon) -> None:
    node.toolkit.mkdir(parents=True)
    (node.toolkit / "nvidia-ctk").write_bytes(b"theirs")
    before = before_us(node)
    install(node)
    workshop.make_artifacts(node.source, release="1")
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
    task = node.root.parent / "tasks/k8s.io/0123abc"
    task.mkdir(parents=True)
    (task / "runtime").write_text(f"{node.toolkit}/nvidia-container-runtime", encoding="utf-8")
    pattern = f"{node.root.parent}/tasks/*/*/runtime"
    monkeypatch.setattr(containerd, "task_files", lambda *_: (pattern,))
    for _ in range(2):
        with pytest.raises(StepFailed) as caught:
            removal.revert(node.settings(), containerd)
        assert str(caught.value) == (
            "1 container still uses our handlers: 0123abc; the handlers and their files stay"
        )
        assert "--even-if-in-use" in caught.value.hint
        assert b"default_runtime_name" not in node.config.read_bytes()
        assert b"runtimes.nvidia]" in node.config.read_bytes()
        assert (node.toolkit / "nvidia-container-runtime").exists()
        assert running.signals() == ["SIGHUP", "SIGHUP"]
    (task / "runtime").unlink()
    removal.revert(node.settings(), containerd)
    assert before_us(node) == before


def test_a_note_of_a_shim_that_is_no_text_is_of_no_container_of_ours(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = before_us(node)
    install(node)
    note = node.root.parent / "odd"
    note.write_bytes(b"\xff\xfe")
    monkeypatch.setattr(containerd, "task_files", lambda *_: (str(note),))
    removal.revert(node.settings(), containerd)
    assert before_us(node) == before


def test_containers_that_use_the_handlers_can_be_left_to_their_fate(
    node: Node, running: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = before_us(node)
    install(node)
    task = node.root.parent / "tasks/k8s.io/0123abc"
    task.mkdir(parents=True)
    (task / "runtime").write_text(f"{node.toolkit}/nvidia-container-runtime", encoding="utf-8")
    monkeypatch.setattr(containerd, "task_files", lambda *_: (f"{node.root.parent}/tasks/*/*/runtime",))
    removal.revert(node.settings(even_if_in_use="true"), containerd)
    assert before_us(node) == before


# --- staying ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_the_end_of_the_pod_changes_nothing(node: Node, running: Daemon, number: signal.Signals) -> None:
    with workshop.started(workshop.program(*node.options())) as pod:
        workshop.wait_for(
            lambda: node.state.exists() and not pending(node) and running.signals() == ["SIGHUP"],
            "the node is not set up",
        )
        before = snapshot(node)
        code, out, err = workshop.ended(pod, number)
    assert (code, out) == (0, "")
    told = [json.loads(line) for line in err.splitlines()]
    assert told[-2]["message"].startswith("set up; watching ")
    assert told[-1]["message"] == f"{number.name}: stopping, the node stays as it is"
    assert {line["phase"] for line in told[-2:]} == {"daemon"}
    assert snapshot(node) == before
    assert running.signals() == ["SIGHUP"]
    assert node.pid_file.read_bytes() == b""


def test_the_lock_is_held_while_the_pod_stays(node: Node, running: Daemon) -> None:
    with workshop.started(workshop.program(*node.options())) as pod:
        workshop.wait_for(lambda: node.state.exists() and not pending(node), "the node is not set up")
        assert node.pid_file.read_text(encoding="utf-8") == f"{pod.pid}\n"
        assert workshop.cli("-n", *node.options()).returncode == 5
        workshop.ended(pod, signal.SIGTERM)


def test_a_signal_during_the_set_up_lets_it_finish_and_is_told(node: Node) -> None:
    # The runtime takes half a second to come back; the signal comes before that.
    with (
        workshop.daemon(node.socket, home=node.root.parent / "d", delay=0.5) as daemon,
        workshop.started(workshop.program("-n", *node.options())) as run,
    ):
        workshop.wait_for(lambda: daemon.signals() == ["SIGHUP"], "the runtime is not told")
        code, _, _ = workshop.ended(run, signal.SIGTERM)
        assert code == 128 + signal.SIGTERM
    assert not pending(node)
    assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()
