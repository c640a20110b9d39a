"""The request to stop: nothing new begins, and running work is awaited only a while longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from tests.support import fake_node, pods
from tests.support.fake_node import Node
from tests.support.fake_runtime import runtime, say
from toolkit import deadline
from toolkit.artifacts import versions
from toolkit.deadline import GRACE, Cancellation, Deadline
from toolkit.errors import Interrupted, NotRolledBack, ReloadError, RolledBack, StepError
from toolkit.node import command
from toolkit.reconcile import rollback, transaction, uninstall
from toolkit.runtime import expectation, locate, observe, restart
from toolkit.settings.options import RestartMode

pytestmark = pytest.mark.usefixtures("no_fsync")

TERM: Final = 128 + signal.SIGTERM


def wish(wanted: Cancellation, number: signal.Signals = signal.SIGTERM) -> None:
    """Wish to stop, as a signal would."""
    wanted._note(number, None)


@contextmanager
def wished_after(seconds: float) -> Iterator[Cancellation]:
    """Yield a wish that comes true after a while."""
    wanted = Cancellation()
    timer = threading.Timer(seconds, wish, [wanted])
    timer.start()
    try:
        yield wanted
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def wished_when(condition: Callable[[], bool]) -> Iterator[Cancellation]:
    """Yield a wish that comes true once something has happened."""
    wanted, ended = Cancellation(), threading.Event()

    def watch() -> None:
        while not condition() and not ended.wait(0.005):
            continue
        wish(wanted)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield wanted
    finally:
        ended.set()
        thread.join()


# --- the wish -----------------------------------------------------------------------------------


def test_nobody_wishes_to_stop_at_first() -> None:
    assert not Cancellation().is_requested
    assert Cancellation().signal is None


ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Give back what the signals did before the test."""
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", ENDING[:-1], ids=lambda n: n.name)
def test_a_signal_is_a_wish_once_it_is_listened_to(number: signal.Signals) -> None:
    wanted = Cancellation()
    wanted.listen()
    begin = time.monotonic()
    os.kill(os.getpid(), number)
    assert wanted.is_requested
    assert wanted.signal is number
    assert begin <= wanted.since <= time.monotonic()


@pytest.mark.usefixtures("handlers")
def test_the_first_signal_is_the_one_that_counts() -> None:
    wanted = Cancellation()
    wanted.listen()
    os.kill(os.getpid(), signal.SIGINT)
    since = wanted.since
    time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (wanted.signal, wanted.since) == (signal.SIGINT, since)


def test_an_interrupted_run_ends_as_the_signal_says() -> None:
    assert (Interrupted(signal.SIGINT).exit_code, Interrupted(signal.SIGTERM).exit_code) == (
        130,
        143,
    )
    assert str(Interrupted(signal.SIGINT)) == "interrupted by SIGINT: nothing was changed"
    assert str(Interrupted(None)) == "interrupted by SIGTERM: nothing was changed"


# --- patience -----------------------------------------------------------------------------------


class Clock:
    """A clock that a test sets; to sleep is to move it on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(deadline, "time", clock)
    return clock


def test_patience_runs_out(clock: Clock) -> None:
    deadline = Deadline(10)
    assert (deadline.left, deadline.is_over) == (10, False)
    clock.now += 9.5
    assert (deadline.left, deadline.is_over) == (0.5, False)
    clock.now += 0.5
    assert (deadline.left, deadline.is_over) == (0, True)
    clock.now += 100
    assert (deadline.left, deadline.is_over) == (0, True)


def test_without_a_wish_nothing_is_cut_short(clock: Clock) -> None:
    assert Deadline(1000, Cancellation()).left == 1000


def test_a_wish_moves_the_end_to_a_few_seconds_after_it(clock: Clock) -> None:
    wanted = Cancellation()
    deadline = Deadline(60, wanted)
    clock.now += 5
    wish(wanted)
    assert deadline.left == GRACE
    clock.now += GRACE - 1
    assert (deadline.left, deadline.is_over) == (1, False)
    clock.now += 1
    assert (deadline.left, deadline.is_over) == (0, True)


def test_a_wish_never_moves_the_end_further_away(clock: Clock) -> None:
    wanted = Cancellation()
    deadline = Deadline(10, wanted)
    clock.now += 10 - GRACE / 2
    wish(wanted)
    assert deadline.left == GRACE / 2


def test_patience_that_begins_after_the_wish_has_what_is_left_of_the_grace(clock: Clock) -> None:
    wanted = Cancellation()
    wish(wanted)
    clock.now += GRACE - 3
    assert Deadline(60, wanted).left == 3
    clock.now += 3
    assert Deadline(60, wanted).is_over
    assert Deadline(60).left == 60


def test_a_second_signal_gives_no_more_time(clock: Clock) -> None:
    wanted = Cancellation()
    deadline = Deadline(60, wanted)
    wish(wanted)
    clock.now += GRACE - 1
    wish(wanted, signal.SIGINT)
    assert deadline.left == 1


def test_a_pause_is_never_longer_than_what_is_left(clock: Clock) -> None:
    wanted = Cancellation()
    deadline = Deadline(10, wanted)
    deadline.pause(4)
    deadline.pause(100)
    deadline.pause(1)
    assert clock.slept == [4, 6, 0]
    deadline = Deadline(60, wanted)
    wish(wanted)
    deadline.pause(30)
    assert clock.slept[3:] == [GRACE]


def test_the_grace_and_the_way_back_are_well_below_what_a_pod_is_given() -> None:
    assert 2 * GRACE <= 20


# --- a process that is waited for as long as there is patience ----------------------------------


@pytest.mark.timing
def test_a_process_is_ended_when_patience_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "GRACE", 0.2)
    with wished_after(0.3) as wanted:
        until = Deadline(60, wanted)
        begin = time.monotonic()
        with pytest.raises(
            StepError, match=r"^`sleep 30` did not end within 0\.[4-9] s and was killed$"
        ):
            command.run(["sleep", "30"], timeout=lambda: until.left)
        assert 0.4 < time.monotonic() - begin < 5


def test_what_ends_in_time_is_kept_whole_however_often_the_time_is_asked_for() -> None:
    asked: list[float] = []

    def left() -> float:
        asked.append(5)
        return 5

    script = "echo one; sleep 0.6; echo two; echo three >&2; exit 3"
    result = command.run(["sh", "-c", script], timeout=left)
    assert (result.code, result.out, result.err) == (3, "one\ntwo\n", "three")
    assert len(asked) >= 2


@pytest.mark.timing
def test_without_any_patience_a_process_is_ended_at_once() -> None:
    begin = time.monotonic()
    with pytest.raises(StepError, match=r"did not end within "):
        command.run(["sleep", "30"], timeout=lambda: 0.0)
    assert time.monotonic() - begin < 5


# --- before anything was done -------------------------------------------------------------------


def files_of(node: Node) -> dict[str, fake_node.Trace]:
    """Return everything about every file, but for the lock."""
    found = fake_node.snapshot(node.root, node.pid_file, node.socket)
    return {name: trace for name, trace in found.items() if not (node.root / name).is_dir()}


def tree_of(node: Node) -> dict[str, tuple[int, str]]:
    return {**fake_node.content(node.root / "etc"), **fake_node.content(node.install_dir)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_while_the_plan_is_made_ends_it_with_nothing_touched(
    node: Node, number: signal.Signals
) -> None:
    asked, go = node.root.parent / "asked", node.root.parent / "go"
    slow = node.root.parent / "containerd"
    script = f"#!/bin/sh\ntouch {asked}\nuntil [ -e {go} ]; do sleep 0.05; done\nexit 1\n"
    fake_node.write_program(slow, script)
    options = node.options(
        executable_path=str(slow), config_source="command,file", log_format="text"
    )
    with runtime(node) as running:
        before = files_of(node)
        # It stays where nobody asks it to stop, so -n is not what ends it.
        with fake_node.started(fake_node.program(*options)) as pod:
            fake_node.wait_for(asked.exists, "nobody asks the binary")
            pod.send_signal(number)
            go.touch()
            code, out, err = fake_node.ended(pod)
        assert (code, out) == (128 + number, "")
        assert err.splitlines()[-1] == f"error: interrupted by {number.name}: nothing was changed"
        assert files_of(node) == before
        assert running.signals() == []


def test_a_wish_before_the_change_leaves_everything(node: Node) -> None:
    wanted = Cancellation()
    wish(wanted)
    with runtime(node) as running:
        before = files_of(node)
        with pytest.raises(Interrupted) as caught:
            transaction.converge(node.settings(), containerd, wanted)
        assert caught.value.exit_code == TERM
        assert files_of(node) == before
        assert running.signals() == []


def test_a_wish_before_a_revert_leaves_everything(node: Node) -> None:
    with runtime(node) as running:
        transaction.converge(node.settings(), containerd)
        before = files_of(node)
        wanted = Cancellation()
        wish(wanted)
        with pytest.raises(Interrupted):
            uninstall.revert(node.settings(), containerd, wanted)
        assert files_of(node) == before
        assert running.signals() == ["SIGHUP"]


def test_what_is_in_the_way_is_said_rather_than_the_wish(node: Node) -> None:
    wanted = Cancellation()
    wish(wanted)
    with pytest.raises(StepError, match=r" does not exist "):
        transaction.converge(node.settings(), containerd, wanted)


def test_a_wish_when_nothing_is_to_do_is_no_failure(node: Node) -> None:
    with runtime(node):
        transaction.converge(node.settings(), containerd)
        wanted = Cancellation()
        wish(wanted)
        assert transaction.converge(node.settings(), containerd, wanted).is_noop


# --- under way ----------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Let the grace be short."""
    grace = 0.8
    for room in (deadline, rollback):
        monkeypatch.setattr(room, "GRACE", grace)
    return grace


_IMPATIENT: Final = """
from toolkit import deadline
from toolkit.cli import main
from toolkit.reconcile import rollback
deadline.GRACE = rollback.GRACE = 0.7
main.main()
"""


@pytest.mark.timing
@pytest.mark.parametrize("stays", [False, True], ids=["-n", "as a daemon"])
def test_a_signal_while_the_runtime_is_away_for_long_is_answered_soon_and_never_with_success(
    node: Node, *, stays: bool
) -> None:
    options = node.options(reload_timeout="60", restart_budget="0", log_format="text")
    words = [*options, *([] if stays else ["-n"])]
    with runtime(node, delay=60) as running:
        before = node.config.read_bytes()
        with fake_node.started([sys.executable, "-c", _IMPATIENT, *words]) as run:
            fake_node.wait_for(lambda: running.signals() == ["SIGHUP"], "the runtime is not told")
            begin = time.monotonic()
            code, out, err = fake_node.ended(run, signal.SIGTERM)
        assert time.monotonic() - begin < 8
        assert (code, out) == (7, "")
        said = next(line for line in err.splitlines() if line.startswith("error: "))
        assert said.startswith(
            "error: interrupted by SIGTERM: the runtime did not restart or reload in time: "
        )
        assert "; rollback failed: " in said
        assert node.config.read_bytes() == before
        assert node.state.exists()


def test_what_a_signal_cut_short_is_gone_on_with_by_the_next_run(
    node: Node, impatient: float
) -> None:
    before = tree_of(node)
    with (
        runtime(node, delay=60) as running,
        wished_when(lambda: bool(running.signals())) as wanted,
        pytest.raises(NotRolledBack),
    ):
        transaction.converge(node.settings(reload_timeout="60"), containerd, wanted)
    with runtime(node):
        transaction.converge(node.settings(restart_budget="0"), containerd)
        assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()
        uninstall.revert(node.settings(), containerd)
    assert tree_of(node) == before


@pytest.mark.timing
def test_a_runtime_that_never_becomes_well_is_given_up_on_soon_after_the_wish(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (deadline, rollback):
        monkeypatch.setattr(room, "GRACE", 1.5)
    before = tree_of(node)
    say(node, "nvidia", {"unimplemented": True})
    with runtime(node) as running, wished_when(lambda: bool(running.signals())) as wanted:
        begin = time.monotonic()
        with pytest.raises(RolledBack) as caught:
            transaction.converge(node.settings(reload_timeout="60"), containerd, wanted)
        assert time.monotonic() - begin < 8
        assert str(caught.value).startswith(
            "interrupted by SIGTERM: the runtime did not apply the change: "
        )
        assert str(caught.value).endswith(
            "; the change was rolled back and the node is in its previous state"
        )
        assert caught.value.exit_code == 6
        assert tree_of(node) == before


@pytest.mark.parametrize("number", ENDING, ids=lambda n: n.name)
def test_no_signal_ends_a_change_in_the_middle(node: Node, number: signal.Signals) -> None:
    """A broken connection sends SIGHUP; that, SIGQUIT and SIGUSR1 end a process by default."""
    with runtime(node, delay=0.5) as running:
        with fake_node.started(fake_node.program("-n", *node.options(reload_timeout="60"))) as run:
            fake_node.wait_for(lambda: running.signals() == ["SIGHUP"], "the runtime is not told")
            code, _, err = fake_node.ended(run, number)
        assert code == (0 if number is signal.SIGUSR1 else 128 + number), err
        assert "nothing to do" in fake_node.done("-n", *node.options()).stderr


def test_signals_of_the_first_round_are_kept_for_the_process_that_stays(node: Node) -> None:
    with runtime(node, delay=0.5) as running:
        words = fake_node.program(*node.options(reload_timeout="60", log_format="json"))
        with fake_node.started(words) as process:
            fake_node.wait_for(lambda: running.signals() == ["SIGHUP"], "the runtime is not told")
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGUSR1)
            pod = pods.Pod(process)
            threading.Thread(target=pod.listen, daemon=True).start()
            pod.says("SIGHUP: reloading the settings and syncing now")
            pod.says("state: ")
            assert pod.end() == 0


def test_a_signal_that_is_ignored_stays_so(node: Node) -> None:
    """nohup(1) sets that."""
    with runtime(node, delay=0.5) as running:
        words = ["nohup", *fake_node.program("-n", *node.options(reload_timeout="60"))]
        with fake_node.started(words) as run:
            fake_node.wait_for(lambda: running.signals() == ["SIGHUP"], "the runtime is not told")
            code, _, err = fake_node.ended(run, signal.SIGHUP)
        assert code == 0, err


def test_a_change_that_is_done_within_the_grace_is_kept(node: Node) -> None:
    with runtime(node, delay=0.5) as running:
        with fake_node.started(fake_node.program("-n", *node.options(reload_timeout="60"))) as run:
            fake_node.wait_for(lambda: running.signals() == ["SIGHUP"], "the runtime is not told")
            code, _, err = fake_node.ended(run, signal.SIGTERM)
        assert code == TERM, err
        assert b'default_runtime_name = "nvidia"' in node.config.read_bytes()
        assert "nothing to do" in fake_node.done("-n", *node.options()).stderr


def test_a_failure_of_the_change_itself_is_not_blamed_on_the_signal(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Cancellation()

    def fail(*_: Any, **__: Any) -> None:
        wish(wanted)
        raise StepError("no room")

    monkeypatch.setattr(versions, "install", fail)
    with runtime(node), pytest.raises(RolledBack, match=r"^no room; the change was rolled back"):
        transaction.converge(node.settings(), containerd, wanted)


def _breaks(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
    """Let the runtime be told of the change, but nothing good be heard of it; then do something."""
    real: Callable[..., Any] = expectation.confirmed
    calls: list[int] = []

    def confirmed(*words: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            then()
            raise ReloadError("it broke")
        return real(*words, **named)

    monkeypatch.setattr(expectation, "confirmed", confirmed)


# Else it would wait for all of --reload-timeout, longer than a pod is given to end.
@pytest.mark.timing
def test_a_signal_on_the_way_back_is_heard_as_well(
    node: Node, impatient: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Cancellation()
    timer = threading.Timer(0.5, wish, [wanted])
    with runtime(node) as running:

        def away() -> None:
            running.delay = 60
            timer.start()

        _breaks(monkeypatch, away)
        begin = time.monotonic()
        with pytest.raises(NotRolledBack):
            transaction.converge(
                node.settings(reload_timeout="6", restart_budget="0"), containerd, wanted
            )
        assert time.monotonic() - begin < 5, "the signal did not cut the way back short"


# The reload and the runtime's word have one patience: the runtime uses up most of it for the first.
@pytest.mark.timing
def test_the_way_back_takes_no_longer_than_the_grace_in_all(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace = 2.5
    for room in (deadline, rollback):
        monkeypatch.setattr(room, "GRACE", grace)
    wanted = Cancellation()
    with runtime(node) as running:

        def slow_and_sick() -> None:
            running.delay = grace - 0.8
            say(node, "", {"ready": False})
            wish(wanted)

        _breaks(monkeypatch, slow_and_sick)
        with pytest.raises(NotRolledBack):
            transaction.converge(
                node.settings(reload_timeout="60", restart_budget="0"), containerd, wanted
            )
        assert time.monotonic() - wanted.since < grace + 1.2


# Each of these once used one timeout for its whole query, and the signal did not shorten it.
@pytest.mark.timing
def test_a_runtime_that_is_silent_after_its_restart_is_waited_for_only_as_long_as_the_grace(
    node: Node, impatient: float
) -> None:
    before = tree_of(node)
    say(node, "nvidia", {"silent": True})
    with runtime(node) as running, wished_when(lambda: running.starts() == 2) as wanted:
        with pytest.raises(RolledBack) as caught:
            transaction.converge(
                node.settings(reload_timeout="60", restart_budget="0"), containerd, wanted
            )
        assert time.monotonic() - wanted.since < 2 * impatient + 2
        assert str(caught.value).startswith(
            "interrupted by SIGTERM: the runtime did not apply the change: "
        )
        assert tree_of(node) == before


@pytest.mark.timing
def test_a_runtime_that_stays_silent_on_the_way_back_is_left_with_its_old_files(
    node: Node, impatient: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = node.config.read_bytes()
    real = restart.perform

    def perform(*words: Any) -> float:
        say(node, "", {"silent": True})
        return real(*words)

    monkeypatch.setattr(restart, "perform", perform)
    settings = node.settings(reload_timeout="60", restart_budget="0")
    with runtime(node) as running, wished_when(lambda: running.starts() == 2) as wanted:
        with pytest.raises(NotRolledBack):
            transaction.converge(settings, containerd, wanted)
        assert time.monotonic() - wanted.since < 2 * impatient + 3
        assert node.config.read_bytes() == before
        assert node.state.exists()


@pytest.mark.timing
def test_a_runtime_that_is_silent_before_the_change_is_not_waited_for_after_a_signal(
    node: Node, impatient: float
) -> None:
    say(node, "", {"silent": True})
    with runtime(node), wished_after(0.5) as wanted:
        before = files_of(node)
        with pytest.raises(Interrupted):
            transaction.converge(node.settings(), containerd, wanted)
        assert time.monotonic() - wanted.since < impatient + 1.5
        assert files_of(node) == before


@pytest.mark.timing
def test_a_revert_that_asks_in_vain_who_uses_a_handler_ends_with_the_grace(
    node: Node, impatient: float
) -> None:
    with runtime(node):
        transaction.converge(node.settings(), containerd)
        before = files_of(node)
        say(node, "", {"silent": True})
        with wished_after(0.5) as wanted, pytest.raises(Interrupted):
            uninstall.revert(node.settings(reload_timeout="60"), containerd, wanted)
        assert time.monotonic() - wanted.since < impatient + 1.5
        assert files_of(node) == before


@pytest.mark.timing
def test_a_binary_that_hangs_while_the_plan_is_made_is_ended_with_the_grace(
    node: Node, impatient: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "LEAST_SECONDS", 0.1)
    slow = node.root.parent / "containerd"
    fake_node.write_program(slow, "#!/bin/sh\nexec sleep 60\n")
    settings = node.settings(executable_path=str(slow), config_source="command")
    with runtime(node), wished_after(0.3) as wanted:
        before = files_of(node)
        with pytest.raises(Interrupted):
            transaction.converge(settings, containerd, wanted)
        assert time.monotonic() - wanted.since < impatient + 1.5
        assert files_of(node) == before


@pytest.mark.timing
@pytest.mark.parametrize("command", ["plan", "status"])
def test_what_only_looks_ends_with_the_signal(node: Node, command: str) -> None:
    asked, slow = node.root.parent / "asked", node.root.parent / "containerd"
    fake_node.write_program(slow, f"#!/bin/sh\necho $$ > {asked}\nexec sleep 60\n")
    options = node.options(executable_path=str(slow), config_source="command")
    with runtime(node), fake_node.started(fake_node.program(command, *options)) as look:
        fake_node.wait_for(
            lambda: asked.exists() and asked.read_text() != "", "nobody asks the binary"
        )
        begin = time.monotonic()
        code, out, err = fake_node.ended(look, signal.SIGTERM)
        assert time.monotonic() - begin < 3
    assert (code, out) == (TERM, "")
    assert err.splitlines()[-1] == "error: interrupted by SIGTERM: nothing was changed"
    with suppress(ProcessLookupError):  # the signal may come before its start was noted
        os.kill(int(asked.read_text()), signal.SIGKILL)


def test_what_is_owed_to_a_question_is_less_once_stopping_is_wished(clock: Clock) -> None:
    wanted = Cancellation()
    left = Deadline(60, wanted).at_least(1)
    assert left() == 60
    wish(wanted)
    assert left() == GRACE
    clock.now += GRACE
    assert left() <= 0
    begun_late = Deadline(60, wanted).at_least(1)
    assert begun_late() == 1
    clock.now += 1
    assert begun_late() <= 0


# --- waiting for the runtime --------------------------------------------------------------------


@pytest.mark.timing
def test_a_reload_is_waited_for_only_as_long_as_there_is_patience(
    node: Node, impatient: float
) -> None:
    with runtime(node, delay=60), wished_after(0.2) as wanted:
        place = locate.target(node.settings(), containerd)
        restart_method = restart.restart_method(place, containerd, RestartMode.SIGNAL, None)
        begin = time.monotonic()
        with pytest.raises(ReloadError, match=r"^the runtime did not restart or reload in time: "):
            restart.perform(place, containerd, restart_method, Deadline(60, wanted))
        assert time.monotonic() - begin < 5


def test_a_restart_by_systemd_is_ended_with_patience(tmp_path: Path, impatient: float) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    fake_node.write_program(path / "systemctl", "#!/bin/sh\nexec sleep 30\n")
    code = (
        "import sys, time\n"
        "from types import SimpleNamespace\n"
        "from toolkit import deadline\n"
        "from toolkit.node import command\n"
        "from toolkit.runtime import restart\n"
        "from toolkit.errors import StepError\n"
        f"command._ENVIRONMENT['PATH'] = {str(path)!r} + ':' + command.SEARCH_PATH\n"
        "from runtimes.model import ConfigDelivery\n"
        "desired = SimpleNamespace(delivery=ConfigDelivery())\n"
        "place = SimpleNamespace(host=SimpleNamespace(root=None), desired=desired)\n"
        "begin = time.monotonic()\n"
        "try:\n"
        "    restart.restart_unit(place, 'a.service', (), deadline.Deadline(0.5))\n"
        "except StepError as error:\n"
        "    print(error, time.monotonic() - begin < 5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("`systemctl restart a.service` did not end within 0.")
    assert done.stdout.endswith(" s and was killed True\n")
