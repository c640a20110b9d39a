"""`status --live`: whether the agent runs and is healthy, by a file that it keeps, and quickly."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import fake_node, pods
from tests.support.fake_node import Daemon, Node, needs_root
from tests.support.pods import Pod, staying
from toolkit.log import LOGGER
from toolkit.state import liveness
from toolkit.state.liveness import AgentState, StateFile

needs_time_namespace: Final = pytest.mark.skipif(
    not os.path.exists("/proc/self/ns/time"), reason="the kernel has no time namespaces"
)
LATER: Final = ("unshare", "--time", "--fork", "--monotonic=90000", "--")
"""A prefix with which a program sees the monotonic clock of 25 hours later."""


def state_file(node: Node) -> Path:
    return node.pid_file.with_name("agent.json")


def problem(node: Node, prefix: tuple[str, ...] = (), **changed: str) -> str:
    """Ask as an exec probe does; return why the agent is not alive, as the pod's Event shows it."""
    done = fake_node.cli("status", "--live", *node.options(**changed), prefix=prefix)
    assert done.stdout == ""
    assert (done.returncode, bool(done.stderr)) in ((0, False), (8, True)), done
    return done.stderr.removeprefix("not alive: ").strip()


def inode(node: Node) -> int:
    return state_file(node).stat().st_ino


# --- a real agent ---------------------------------------------------------------------------------


def test_the_agent_is_alive_from_its_start_to_its_end(node: Node, running: Daemon) -> None:
    missing = f"no agent is running: {state_file(node)} not found"
    assert problem(node) == missing
    fake_node.done("run", "--no-daemon", *node.options())
    assert problem(node) == missing
    with staying(node.options()) as pod:
        pod.settled()
        assert problem(node) == ""
        status = state_file(node).stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o600, os.geteuid())
        assert pod.end() == 0
    assert problem(node) == missing
    assert not list(node.pid_file.parent.glob("*agent.json*"))
    assert running.signals() == ["SIGHUP"]


def test_the_file_is_written_only_when_a_sync_starts_or_ends(
    node: Node, running: Daemon, tmp_path: Path
) -> None:
    with staying(node.options(readiness_file=str(tmp_path / "r/ready.json"))) as pod:
        pod.settled()
        before, content = inode(node), json.loads(state_file(node).read_bytes())
        for _ in range(3):
            assert problem(node) == ""
            pod.state()
        assert inode(node) == before
        (node.config.parent / "conf.d").mkdir(exist_ok=True)
        pod.process.send_signal(signal.SIGHUP)
        pods.until(lambda: inode(node) != before, "a sync is not noted")
        pod.settled(rounds=2)
        after = json.loads(state_file(node).read_bytes())
    assert content["pid"] == after["pid"] == pod.pid
    assert content["is_syncing"] is after["is_syncing"] is False
    assert content["deadline"] < after["deadline"]
    assert running.signals() == ["SIGHUP"]


@needs_root
@needs_time_namespace
def test_a_sync_that_never_ends_is_not_alive_beyond_its_bound(node: Node, running: Daemon) -> None:
    # Ready, so that the only sync is the requested one.
    with staying(node.options(verify="status")) as pod:
        pod.settled()
        pod.process.send_signal(signal.SIGHUP)
        pods.until(lambda: bool(pod.syncs()), "no sync is started")
        [child] = pod.syncs()
        os.kill(child, signal.SIGSTOP)
        assert problem(node) == ""
        assert problem(node, LATER).startswith("a sync has been running for ")
        os.kill(child, signal.SIGCONT)
        pod.settled(rounds=2)
        assert problem(node) == ""
    assert running.signals() == ["SIGHUP"]


@needs_root
@needs_time_namespace
def test_an_agent_that_starts_no_sync_any_more_is_not_alive(node: Node, running: Daemon) -> None:
    """A stopped process looks like one that waits until it misses the time of its next sync."""
    with staying(node.options()) as pod:
        pod.settled()
        pod.process.send_signal(signal.SIGSTOP)
        assert problem(node) == ""
        assert problem(node, LATER).startswith(
            "a sync is due and has not been started; the last one ended "
        )
    assert running.signals() == ["SIGHUP"]


@needs_root
@needs_time_namespace
def test_an_agent_that_ignores_drift_has_no_sync_to_miss(node: Node, running: Daemon) -> None:
    with staying(node.options(on_drift="ignore")) as pod:
        pod.settled()
        assert problem(node, LATER) == ""
    assert running.signals() == ["SIGHUP"]


def test_syncs_that_cannot_be_started_are_not_alive_after_the_third(
    node: Node, running: Daemon
) -> None:
    with staying(node.options(check_interval="0.5")) as pod:
        before = resource.prlimit(pod.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pod.pid, resource.RLIMIT_NOFILE, (64, before[1]))
        pod.says("a sync cannot be started")
        assert problem(node) == ""
        pods.until(lambda: problem(node) != "", "it counts as alive for ever", timeout=40)
        assert problem(node).startswith("a sync cannot be started: ")
        assert problem(node).endswith(" times)")
        resource.prlimit(pod.pid, resource.RLIMIT_NOFILE, before)
        pods.until(lambda: problem(node) == "", "it does not become alive", timeout=90)
    assert running.signals() == ["SIGHUP"]


def test_a_killed_agent_is_not_alive_though_its_file_stays(node: Node, running: Daemon) -> None:
    def is_gone(pod: Pod) -> str:
        return f"PID {pod.pid} is no longer the agent"

    with staying(node.options()) as pod:
        pod.end(signal.SIGKILL)
        assert problem(node) == is_gone(pod)
        content = json.loads(state_file(node).read_bytes())
        # Its PID is given to another process, which started at another time.
        content |= {"pid": os.getpid()}
        state_file(node).write_text(json.dumps(content), encoding="utf-8")
        assert problem(node) == f"PID {os.getpid()} is no longer the agent"
    with staying(node.options()) as pod:
        pod.settled()
        assert problem(node) == ""
        pod.end(signal.SIGKILL)
    fake_node.done("revert", *node.options())
    assert not state_file(node).exists()
    assert running.signals() == ["SIGHUP"] * 2


def test_settings_that_became_invalid_do_not_end_a_healthy_agent(
    node: Node, running: Daemon, tmp_path: Path
) -> None:
    file = tmp_path / "settings"
    file.write_text("TOOLKIT_CHECK_INTERVAL=300\n", encoding="utf-8")
    with staying(node.options(env_file=str(file))):
        for text in ("TOOLKIT_CHECK_INTERVAL=often\n", "'\n"):
            file.write_text(text, encoding="utf-8")
            ran = fake_node.cli("status", "--quiet", *node.options(env_file=str(file)))
            assert ran.returncode == 2
            assert problem(node, env_file=str(file)) == ""
    assert running.signals() == ["SIGHUP"]


def test_the_probe_of_life_loads_no_more_than_that_of_readiness(
    node: Node, running: Daemon
) -> None:
    def loaded(option: str) -> set[str]:
        script = (
            "import sys; from toolkit.cli import main\n"
            "try: main.main(sys.argv[1:])\nexcept SystemExit: pass\nprint(*sys.modules)"
        )
        argv = [sys.executable, "-c", script, "status", option, *node.options()]
        environment = fake_node.ENVIRONMENT
        return set(
            subprocess.run(
                argv, env=environment, capture_output=True, text=True, check=True
            ).stdout.split()
        )

    live, quiet = loaded("--live"), loaded("--quiet")
    assert "toolkit.state.liveness" in live
    assert "hashlib" not in live
    assert len(live) <= len(quiet)
    assert running.signals() == []


# --- the file -------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the file of a healthy agent, which is this process."""
    path = tmp_path / "run/agent.json"
    path.parent.mkdir(mode=0o755)
    StateFile().publish(path, began=None, deadline=float("inf"))
    assert liveness.unhealthy(path) == ""
    return path


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"boot": "another"}, "the state of the agent is from another boot"),
        ({"started": 1}, f"PID {os.getpid()} is no longer the agent"),
        ({"pid": 1 << 22}, f"PID {1 << 22} is no longer the agent"),
        ({"deadline": 1.0, "since": 0.0}, "a sync is due and has not been started"),
        ({"format": 2}, "is not the state of an agent in format 1"),
        ({"deadline": "soon"}, "is not the state of an agent"),
        ({"of a later version": 1}, "is not the state of an agent"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_state_of_something_else_is_not_alive(
    path: Path, change: dict[str, Any], why: str
) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}), encoding="utf-8")
    assert why in liveness.unhealthy(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda path: path.unlink(), "no agent is running: "),
        (lambda path: path.write_bytes(b"{"), "is not the state of an agent"),
        (lambda path: path.write_bytes(b"[]"), "is not the state of an agent"),
        (lambda path: path.write_bytes(b"{}"), "is not the state of an agent"),
        (lambda path: path.write_bytes(b"[" * 60_000), "is not the state of an agent"),
        (lambda path: path.write_bytes(path.read_bytes().ljust(1 << 17)), "it is larger than"),
        (lambda path: path.chmod(0o666), "every user may write to"),
        (lambda path: path.parent.chmod(0o777), "every user may write to"),
        (
            lambda path: (path.unlink(), subprocess.run(["mkfifo", "-m", "600", path], check=True)),
            "it is not a regular file",
        ),
        (lambda path: (path.unlink(), path.mkdir()), "it is not a regular file"),
    ],
    ids=[
        "gone",
        "torn",
        "list",
        "empty",
        "deep",
        "large",
        "writable",
        "its directory",
        "FIFO",
        "directory",
    ],
)
def test_a_file_that_is_not_the_agent_s_is_not_alive(
    path: Path, change: Callable[[Path], object], why: str
) -> None:
    change(path)
    assert why in liveness.unhealthy(path)


def test_a_state_that_cannot_be_written_is_logged_once_and_the_old_one_expires(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", lambda text, *words: told.append(text % words))
    file = StateFile()
    file.publish(path, began=None, deadline=time.monotonic() + 100)
    before = path.read_bytes()
    path.parent.chmod(0o777)
    for _ in range(2):
        file.publish(path, began=None, deadline=time.monotonic() + 1000)
    assert path.read_bytes() == before
    assert (
        AgentState(**json.loads(before)).problem(time.monotonic() + 200).startswith("a sync is due")
    )
    assert [line.partition(": ")[0] for line in told] == ["the liveness probe may fail"]
    path.parent.chmod(0o755)
    file.publish(path, began=1.0, deadline=2.0)
    assert json.loads(path.read_bytes()) == file.state._asdict()
    assert file.problem() == liveness.unhealthy(path)


def test_the_state_is_not_written_to_what_others_put_in_its_place(
    path: Path, tmp_path: Path
) -> None:
    """In a directory like /tmp, others may put a file or a link under a name that they expect."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    path.parent.chmod(0o1777)
    path.unlink()
    for make in (os.symlink, os.link):
        for name in (path, path.with_name(".agent.json.new")):
            make(precious, name)
            StateFile().publish(path, began=None, deadline=float("inf"))
            assert precious.read_bytes() == b"precious"
            assert not path.is_symlink()
            assert liveness.unhealthy(path) == ""
            assert os.listdir(path.parent) == ["agent.json"]
            path.unlink()


def test_another_path_takes_the_file_with_it(path: Path, tmp_path: Path) -> None:
    file = StateFile()
    file.publish(path, began=None, deadline=float("inf"))
    file.publish(tmp_path / "agent.json", began=None, deadline=float("inf"))
    assert not path.exists()
    assert liveness.unhealthy(tmp_path / "agent.json") == ""
