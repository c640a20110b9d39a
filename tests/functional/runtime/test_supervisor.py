"""A runtime without a supervisor is not ended, or is started as it was; processes are real."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from runtimes.containerd import ADAPTER as containerd
from tests.support import fake_node, fake_runtime
from tests.support.fake_node import Daemon, Node
from toolkit.deadline import Deadline
from toolkit.errors import NotRolledBack, StepError
from toolkit.node import processes, procfs
from toolkit.node.host import Host
from toolkit.reconcile import transaction
from toolkit.runtime import locate, restart
from toolkit.runtime.supervision import launch
from toolkit.settings.options import RestartMode

NOTHING = "nothing is known to start it again: "
HERE = Host(root=Path("/"))
CHOICES = (
    "(use --restart-mode none and restart it yourself, or --restart-mode signal if something does"
    " start it)"
)


def unsupervised(node: Node) -> AbstractContextManager[Daemon]:
    """Run a containerd that ends at SIGHUP and that nothing starts again, until the block ends."""
    return fake_runtime.runtime(node, revives=False)


def newest(daemon: Daemon) -> int:
    return [pid for pid, word in daemon.lines() if word == "starts"][-1]


# --- auto -----------------------------------------------------------------------------------------


def test_auto_does_not_end_what_nothing_starts_again(node: Node) -> None:
    with unsupervised(node) as daemon:
        before = fake_node.content(node.root)
        options = node.options(restart_mode="auto")
        plan = fake_node.done("plan", *options)
        assert (
            f"# `run` would refuse: SIGHUP would end containerd (PID {daemon.pid}), and"
            in plan.stdout
        )
        assert "# `run` would refuse to make this change: 1 file to change" in plan.stdout
        result = fake_node.cli("run", "--no-daemon", *options)
        assert result.returncode == 4
        assert (
            f"error: SIGHUP would end containerd (PID {daemon.pid}), and {NOTHING}" in result.stderr
        )
        assert f"{CHOICES}: nothing was changed" in result.stderr
        assert (daemon.signals(), daemon.starts()) == ([], 1)
        node.pid_file.unlink()
        assert fake_node.content(node.root) == before


def test_the_files_are_changed_and_the_restart_left_to_the_user(node: Node) -> None:
    with unsupervised(node) as daemon:
        result = fake_node.done("run", "--no-daemon", *node.options(restart_mode="none"))
        assert "restart it to load the change" in result.stderr
        assert (daemon.signals(), daemon.starts()) == ([], 1)


def test_auto_ends_what_a_supervisor_starts_again(node: Node) -> None:
    with fake_runtime.runtime(node) as daemon:
        options = node.options(restart_mode="auto")
        plan = json.loads(fake_node.done("plan", "--output=json", *options).stdout)
        assert (
            plan["reload"]["how"]
            == f"SIGHUP to PID {daemon.pid}, which ends it: runsv (PID {os.getpid()}) starts it"
            " again"
        )
        result = fake_node.done("run", "--no-daemon", *options)
        assert NOTHING not in result.stderr
        assert (daemon.signals(), daemon.starts()) == (["SIGHUP"], 2)


def test_a_start_with_nothing_to_do_does_not_ask_who_starts_it_again(node: Node) -> None:
    with unsupervised(node) as daemon:
        fake_node.done(
            "run", "--no-daemon", *node.options(restart_mode="signal", reload_timeout="4")
        )
        result = fake_node.done("run", "--no-daemon", *node.options(restart_mode="auto"))
        assert result.stderr == fake_node.NOTHING_TO_DO
        assert daemon.signals() == ["SIGHUP"]


# --- signal ---------------------------------------------------------------------------------------


def test_what_stays_dead_after_a_signal_is_started_as_it_was(node: Node) -> None:
    with unsupervised(node) as daemon:
        first = daemon.pid
        was = launch.of(HERE, inspected(first))
        result = fake_node.done(
            "run", "--no-daemon", *node.options(restart_mode="signal", reload_timeout="4")
        )
        assert f"SIGHUP would end containerd (PID {first}), and {NOTHING}" in result.stderr
        assert "nothing started containerd again within 2 s; starting it as it was" in result.stderr
        second = newest(daemon)
        assert (daemon.signals(), daemon.starts()) == (["SIGHUP"], 2)
        now = launch.of(HERE, inspected(second))
        assert now is not None
        assert now == was
        # It belongs to init (or the nearest subreaper), not to the program, which has ended.
        assert procfs.parent(second) not in {0, first, os.getpid()}
        assert os.getsid(second) != os.getsid(0)
        assert fake_node.done("status", *node.options()).stdout == "in sync\nready\n"


def test_what_a_supervisor_starts_again_late_is_not_started_twice(node: Node) -> None:
    with fake_runtime.runtime(node, delay=1) as daemon, fake_node.named("python"):
        options = node.options(restart_mode="signal", reload_timeout="20")
        result = fake_node.done("run", "--no-daemon", *options)
        assert NOTHING in result.stderr
        assert "starting it as it was" not in result.stderr
        assert daemon.starts() == 2


def test_a_bad_change_to_what_nothing_starts_again_is_rolled_back(node: Node) -> None:
    fake_runtime.say(node, sick_if="runtimes.nvidia", sick={"die": True})
    with unsupervised(node) as daemon:
        config = node.config.read_bytes()
        options = node.options(restart_mode="signal", reload_timeout="4")
        result = fake_node.cli("run", "--no-daemon", *options)
        assert result.returncode == 6, result.stderr
        assert node.config.read_bytes() == config
        assert not node.drop_in.exists()
        assert processes.is_running(newest(daemon))
        assert daemon.starts() == 3
        assert fake_node.cli("status", *options).stdout.startswith("not in sync\n")


def test_a_change_without_effect_is_rolled_back_where_nothing_starts_it_again(node: Node) -> None:
    """It is ended a second time, while it runs with the change."""
    before = node.config.read_bytes()
    fake_runtime.say(node, sick_if="runtimes.nvidia", sick={"handlers": ["runc"]})
    with unsupervised(node) as daemon:
        result = fake_node.cli(
            "run", "--no-daemon", *node.options(restart_mode="signal", reload_timeout="4")
        )
        assert result.returncode == 6, result.stderr
        assert (daemon.signals(), daemon.starts()) == (["SIGHUP", "SIGHUP"], 3)
        assert processes.is_running(newest(daemon))
        assert not launch_file(node).exists()
        assert node.config.read_bytes() == before


def test_how_to_start_it_is_said_where_it_cannot_be_started(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StepError("it ran in namespaces that cannot be entered")

    monkeypatch.setattr(launch, "start", refuse)
    with unsupervised(node) as daemon:
        how = launch.of(HERE, inspected(daemon.pid))
        assert how is not None
        assert how.words().startswith(f"cd {node.socket.parent} && {daemon.argv[0]} -I -S ")
        with pytest.raises(NotRolledBack) as caught:
            transaction.converge(
                node.settings(restart_mode="signal", reload_timeout="2"), containerd
            )
        assert caught.value.exit_code == 7
        assert (
            "containerd ended and nothing started it again: start it yourself, with"
            f" `{how.words()}` (it ran in namespaces that cannot be entered)"
            in caught.value.message
        )


def test_a_rollback_does_not_end_it_either(node: Node) -> None:
    """A killed run had `--restart-mode signal`; the next one, without it, may not send it."""
    with unsupervised(node):
        target = locate.supervised(locate.target(node.settings(), containerd), containerd)
        chosen = restart.restart_method(target, containerd, RestartMode.AUTO, target.supervisor)
        with pytest.raises(StepError, match=NOTHING):
            restart.perform(target, containerd, chosen, Deadline(1))


def test_what_would_be_started_with_fewer_rights_is_not_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pod with few capabilities a containerd that it starts could run no container."""
    monkeypatch.setattr(
        procfs, "capabilities", lambda kind, *pid: 0 if kind == "CapBnd" else 1 << 21
    )
    with unsupervised(node) as daemon:
        settings = node.settings(restart_mode="signal", reload_timeout="4")
        with pytest.raises(StepError) as caught:
            transaction.converge(settings, containerd)
        assert caught.value.exit_code == 4
        lacking = (
            "because it has capabilities that this process lacks (the pod needs `privileged: true`;"
        )
        assert lacking in caught.value.message
        assert "nothing was changed" in caught.value.message
        assert daemon.signals() == []
        assert not node.drop_in.exists()


# --- a run that is killed in between --------------------------------------------------------------


def killed_after_the_signal(node: Node, daemon: Daemon, *words: str) -> launch.Launch:
    """Kill a run that ended the runtime and waits for it; return how the runtime was started."""
    was = launch.of(HERE, inspected(newest(daemon)))
    assert was is not None
    signals = len(daemon.signals())
    options = node.options(restart_mode="signal", reload_timeout="60")
    argv = [sys.executable, "-m", "toolkit", *(words or ("run", "--no-daemon")), *options]
    with subprocess.Popen(argv, env=fake_node.ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        fake_node.wait_for(lambda: len(daemon.signals()) > signals, "no signal was sent")
        fake_node.wait_for(lambda: not processes.is_running(newest(daemon)), "it did not end")
        process.kill()
    return was


def launch_file(node: Node) -> Path:
    return node.pid_file.with_name("launch.json")


def is_up_as_it_was(node: Node, daemon: Daemon, was: launch.Launch) -> bool:
    assert not launch_file(node).exists()
    return launch.of(HERE, inspected(newest(daemon))) == was


@pytest.mark.parametrize("mode", ["signal", "auto"])
def test_the_next_run_starts_what_a_killed_run_has_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
    with unsupervised(node) as daemon:
        was = killed_after_the_signal(node, daemon)
        assert "HTTPS_PROXY=http://user:secret@proxy" in was.environment
        status = launch_file(node).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())
        options = node.options(restart_mode=mode, reload_timeout="4")
        plan = fake_node.done("plan", *options).stdout
        assert plan.endswith("# the runtime to start\n")
        reload = json.loads(fake_node.done("plan", "--output=json", *options).stdout)["reload"]
        assert reload["reason"].endswith("has to be started (a run was killed while restarting it)")
        assert reload["how"] == "start it as it was started before a killed run ended it"
        assert daemon.starts() == 1
        result = fake_node.done("run", "--no-daemon", *options)
        assert "nothing started containerd again within 2 s; starting it as it was" in result.stderr
        assert (daemon.signals(), daemon.starts()) == (["SIGHUP"], 2)
        assert is_up_as_it_was(node, daemon, was)
        assert fake_node.done("status", *options).stdout == "in sync\nready\n"
        assert "secret" not in result.stderr + plan


def test_a_run_with_fewer_rights_does_not_start_what_a_killed_run_has_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unsupervised(node) as daemon:
        was = killed_after_the_signal(node, daemon)
        with monkeypatch.context() as patch:
            saved = json.loads(launch_file(node).read_text(encoding="utf-8"))
            saved["launch"]["capabilities"] = 1 << 21
            launch_file(node).write_text(json.dumps(saved), encoding="utf-8")
            patch.setattr(procfs, "capabilities", lambda *_: 0)
            with pytest.raises(
                StepError, match="containerd was ended by a killed run: it cannot be started"
            ):
                transaction.converge(
                    node.settings(restart_mode="signal", reload_timeout="4"), containerd
                )
        assert daemon.starts() == 1
        fake_node.done(
            "run", "--no-daemon", *node.options(restart_mode="signal", reload_timeout="4")
        )
        assert daemon.starts() == 2
        assert is_up_as_it_was(node, daemon, was)


def test_a_revert_starts_what_a_killed_revert_has_ended(node: Node) -> None:
    with unsupervised(node) as daemon:
        before = node.config.read_bytes()
        options = node.options(restart_mode="signal", reload_timeout="4")
        fake_node.done("run", "--no-daemon", *options)
        was = killed_after_the_signal(node, daemon, "revert")
        fake_node.done("revert", *options)
        assert daemon.signals() == ["SIGHUP", "SIGHUP"]
        assert is_up_as_it_was(node, daemon, was)
        assert node.config.read_bytes() == before


def test_a_rollback_that_was_killed_starts_it_with_the_old_files(node: Node) -> None:
    before = node.config.read_bytes()
    fake_runtime.say(node, sick_if="runtimes.nvidia", sick={"handlers": ["runc"]})
    with unsupervised(node) as daemon:
        options = node.options(restart_mode="signal", reload_timeout="4")
        argv = [sys.executable, "-m", "toolkit", "run", "--no-daemon", *options]
        with subprocess.Popen(
            argv, env=fake_node.ENVIRONMENT, stderr=subprocess.DEVNULL
        ) as process:
            fake_node.wait_for(lambda: len(daemon.signals()) == 2, "it was not rolled back")
            fake_node.wait_for(lambda: not processes.is_running(newest(daemon)), "it did not end")
            process.kill()
        assert launch_file(node).exists()
        assert daemon.starts() == 2
        result = fake_node.cli("run", "--no-daemon", *options)
        assert "starting it as it was" in result.stderr
        assert processes.is_running(newest(daemon))
        assert not launch_file(node).exists()
        assert fake_node.cli("status", *options).stdout.startswith("not in sync\n")
        assert node.config.read_bytes() == before


def test_a_run_that_is_killed_before_the_signal_leaves_a_runtime_that_is_not_started_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with unsupervised(node) as daemon:
        with monkeypatch.context() as patch:
            patch.setattr(processes, "send", kill)
            with pytest.raises(KeyboardInterrupt):
                transaction.converge(node.settings(restart_mode="signal"), containerd)
        assert launch_file(node).exists()
        assert locate.target(node.settings(), containerd).supervisor is None
        # What wrote the temporary file of it may be killed as well.
        left = launch_file(node).with_name(".launch.json.nvidia-toolkit-new")
        left.write_bytes(launch_file(node).read_bytes())
        fake_node.done("run", "--no-daemon", *node.options(restart_mode="none"))
        assert (daemon.signals(), daemon.starts()) == ([], 1)
        assert not launch_file(node).exists()
        assert not left.exists()


def test_one_that_is_started_meanwhile_is_not_started_twice(node: Node) -> None:
    with unsupervised(node) as daemon:
        was = killed_after_the_signal(node, daemon)
        launch.start(HERE, was)
        fake_node.wait_for(lambda: daemon.lines()[-1][1] == "listens", "it does not run")
        result = fake_node.done("run", "--no-daemon", *node.options(restart_mode="signal"))
        assert "starting it as it was" not in result.stderr
        assert (daemon.signals(), daemon.starts()) == (["SIGHUP"], 2)
        assert is_up_as_it_was(node, daemon, was)


def test_a_file_of_another_boot_or_process_or_mode_starts_nothing(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    with unsupervised(node) as daemon:
        killed_after_the_signal(node, daemon)
    path = launch_file(node)
    found = locate.target(node.settings(), containerd).supervisor
    assert found is not None
    assert found.was_ended
    content = json.loads(path.read_bytes())
    me = inspected(os.getpid())
    for changed in (
        {"boot_id": "another"},
        {"process": [me.pid, me.start_ticks]},
        {"launch": {"argv": ["/bin/sh"]}},
        {"process": None},
    ):
        path.write_text(json.dumps(content | changed), encoding="utf-8")
        assert locate.target(node.settings(), containerd).supervisor is None, changed
    path.write_text(json.dumps(content), encoding="utf-8")
    assert locate.target(node.settings(), containerd).supervisor == found
    caplog.clear()
    path.chmod(0o644)
    assert locate.target(node.settings(), containerd).supervisor is None
    assert caplog.messages == [
        f"{path} is ignored: it is not a file that only root can read and write"
    ]


def test_without_the_file_it_is_not_ended(node: Node) -> None:
    """A run that could not start it again, if it was killed, does not send the signal."""
    with unsupervised(node) as daemon:
        launch_file(node).mkdir(parents=True)
        before = node.config.read_bytes()
        result = fake_node.cli("run", "--no-daemon", *node.options(restart_mode="signal"))
        assert result.returncode == 6, result.stderr
        assert f"{launch_file(node)} cannot be written: Is a directory" in result.stderr
        assert (daemon.signals(), node.config.read_bytes()) == ([], before)


# --- how it was started ---------------------------------------------------------------------------


def test_a_process_that_is_gone_says_nothing() -> None:
    gone = processes.RuntimeProcess(
        pid=4_000_000, start_ticks=1, executable="/bin/containerd", argv=(), unit=None
    )
    assert launch.of(HERE, gone) is None


def test_output_goes_to_the_file_that_it_went_to(tmp_path: Path) -> None:
    log, script = tmp_path / "log", tmp_path / "daemon"
    fake_node.write_program(
        script, '#!/bin/sh\necho "$$ $1 $GREETING $PWD"\nexec 3<&-\nwhile :; do sleep 1; done\n'
    )
    with log.open("w") as stream:
        first = subprocess.Popen(
            [script, "one"],
            cwd=tmp_path,
            env={"GREETING": "hello", "PATH": os.defpath},
            stdout=stream,
        )
    try:
        fake_node.wait_for(lambda: log.read_text().endswith("\n"), "it does not run")
        found = launch.of(HERE, inspected(first.pid))
    finally:
        first.kill()
        first.wait()
    assert found is not None
    launch.start(HERE, found)
    fake_node.wait_for(lambda: log.read_text().count("\n") == 2, "it was not started again")
    (pid, *one), (again, *other) = (line.split() for line in log.read_text().splitlines())
    os.kill(int(again), signal.SIGKILL)
    assert pid != again
    assert one == other == ["one", "hello", str(tmp_path)]


def inspected(pid: int) -> processes.RuntimeProcess:
    found = processes.inspect(pid)
    assert found is not None
    return found
