"""A change after which a real runtime is not well is taken back, and the node still runs pods.

The runtimes are containerd 1.6, 1.7 and 2.1, Docker 20.10, 26.1 and 28.5 and CRI-O 1.36 on booted
nodes; how they are made sick is in tests/support/sick.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support import artifacts, crio, nodes, real, sick
from tests.support.sick import LOST, OURS, SLOW, TOOLKIT, Bench, When

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

SUITES: Final = {"containerd": nodes.SUITES, "docker": nodes.SUITES, "crio": crio.SUITES}
ALL: Final = [(name, suite) for name, suites in SUITES.items() for suite in suites]
# One version of each runtime, where it is systemd that is put to the test, or time that is spent.
SOME: Final = [("containerd", "trixie"), ("docker", "forky"), ("crio", "trixie")]
VERSION: Final = {
    "containerd": "containerd --version",
    "docker": "dockerd --version",
    "crio": "crio --version",
}
# What a runtime may take that will never be well; the real ones are back after 0.2 s.
SHORT: Final = "--reload-timeout=8"
BY_UNIT: Final = "--restart-mode=systemd"
DAEMON_JSON: Final = "/etc/docker/daemon.json"


def label(value: object) -> str:
    return "-".join(value) if isinstance(value, tuple) else str(value)


def on(places: Sequence[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bench", places, indirect=True, ids=label)


class Rack:
    """Nodes that are booted where they are asked for first, and kept for the tests that follow."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.nodes: dict[tuple[str, str], tuple[Bench, contextlib.ExitStack]] = {}

    def bench(self, name: str, suite: str) -> Bench:
        if (name, suite) not in self.nodes:
            with contextlib.ExitStack() as booting:
                found = booting.enter_context(sick.bench(name, suite, self.source))
                version = nodes.run(found.node, VERSION[name].split()).stdout.splitlines()[0]
                real.USED.add(f"{version.removesuffix(',')}, made sick on a booted {suite} node")
                # It also makes what a runtime has after a container, and a fault then breaks.
                if reason := found.why_no_containers():
                    pytest.skip(f"this machine lets {name} on {suite} run no containers: {reason}")
                self.nodes[name, suite] = found, booting.pop_all()
        return self.nodes[name, suite][0]

    @contextlib.contextmanager
    def or_none(self, name: str, suite: str) -> Iterator[None]:
        """Keep the node only where the block finds nothing wrong with it."""
        try:
            yield
        except BaseException:
            self.nodes.pop((name, suite))[1].close()
            raise

    def close(self) -> None:
        while self.nodes:
            self.nodes.popitem()[1][1].close()


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    with contextlib.closing(Rack(artifacts.make(tmp_path_factory.mktemp("artifacts")))) as found:
        yield found


@pytest.fixture
def bench(request: pytest.FixtureRequest, rack: Rack) -> Iterator[Bench]:
    """Lend out a node that is well; see that the next test finds it as this one did."""
    name, suite = request.param
    if reason := crio.why_not() if name == "crio" else nodes.why_not():
        pytest.skip(reason)
    found = rack.bench(name, suite)
    with rack.or_none(name, suite):
        found.forget_starts()
        before, had = found.picture(), found.known()
    yield found
    with rack.or_none(name, suite):
        found.done("revert", "--force", BY_UNIT)
        assert found.picture() == before
        assert found.known() == had


def error(done: subprocess.CompletedProcess[str]) -> str:
    """Return what is said to have gone wrong; systemctl's part of it has several lines."""
    return f"\n{done.stderr}".partition("\nerror: ")[2].partition("\nhint: ")[0]


def assert_works(bench: Bench) -> None:
    """See that the unit is up and a container really runs, at once and with no help."""
    assert nodes.is_active(bench.node, bench.runtime.unit)
    assert bench.run_container() == "hello\n"


# --- (1) to (3): sick with our change ------------------------------------------------------------

FULL: Final = os.environ.get("FULL") == "1"
EACH: Final = [
    pytest.param((name, suite), fault, id=f"{name}-{suite}-{fault.name}")
    for name, suites in SUITES.items()
    for number, fault in enumerate(sick.FAULTS[name])
    for place, suite in enumerate(suites)
    # The first fault on every version, each other one on one of them: with FULL=1 on all.
    if FULL or number == 0 or number % len(suites) == place
]


@pytest.mark.parametrize(("bench", "fault"), EACH, indirect=["bench"])
def test_a_change_that_makes_it_sick_is_taken_back(bench: Bench, fault: sick.Fault) -> None:
    before, had = bench.picture(), bench.known()
    for attempt in range(3):
        with bench.sick(fault):
            done = bench.run("run", "--no-daemon", SHORT, *fault.options)
            # A daemon that is frozen once it is up may answer before that, on a busy machine.
            is_late = fault.after_start and done.returncode == 0 and attempt < 2
            if not is_late:
                assert done.returncode == (4 if fault.is_stale else 6), done.stderr
                if fault.is_stale:
                    assert sick.UNSEEN in error(done)
                else:
                    # One that is frozen between two questions does not answer the second.
                    is_between = fault.after_start and "no answer within" in error(done)
                    assert is_between or error(done).startswith(fault.says)
                assert bench.picture() == before
                assert bench.known() == had
                assert_works(bench)
        if not is_late:
            break
        bench.restart()
        bench.done("revert", *fault.options)
    # Once the node is mended, the same change is made.
    bench.done("run", "--no-daemon", *fault.options)
    assert bench.known()[0] == had[0] | OURS
    assert_works(bench)


@on(ALL)
def test_a_revert_after_which_it_does_not_come_back_is_taken_back(bench: Bench) -> None:
    fault = sick.fault(bench.runtime.name, "does not come back")
    bench.done("run", "--no-daemon")
    before, had = bench.picture(), bench.known()
    assert had[0] >= OURS
    with bench.sick(fault, When.WITHOUT_US):
        done = bench.run("revert", SHORT, *fault.options)
        assert done.returncode == 6, done.stderr
        assert error(done).startswith(fault.says)
        assert bench.picture() == before
        assert bench.known() == had
        assert_works(bench)


@on([place for place in ALL if place[0] == "docker"])
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "dies"])
def test_docker_that_does_not_survive_the_reload(bench: Bench, number: signal.Signals) -> None:
    before, had = bench.picture(), bench.known()
    pid = nodes.machine_pid(bench.node, bench.pid())
    # As long as our change is in its file, it does not start either; systemd gives up on it soon.
    with (
        bench.sick(sick.fault("docker", "does not come back")),
        bench.upon_change(DAEMON_JSON, lambda: os.kill(pid, number)),
    ):
        done = bench.run("run", "--no-daemon", "--reload-timeout=15")
        assert done.returncode == 6, done.stderr
        assert "/runtime/sock-dir/docker.sock" in error(done).partition(";")[0]
        assert bench.picture() == before
        assert bench.known() == had
        assert_works(bench)


# --- (4): slow -----------------------------------------------------------------------------------


@on(SOME)
def test_one_that_takes_20_s_is_waited_for(bench: Bench) -> None:
    with bench.sick(SLOW):
        began = time.monotonic()
        bench.done("run", "--no-daemon", *SLOW.options)
        assert time.monotonic() - began >= 20
        handlers, default, _ = bench.known()
        assert handlers >= OURS
        assert default == "nvidia"


# --- (5): restarted by others --------------------------------------------------------------------


@on(SOME)
@pytest.mark.parametrize(
    ("is_sick", "pause"),
    [(False, 0.0), (False, 0.4), (False, 0.8), (True, 0.4)],
    ids=["well, at once", "well, often", "well, seldom", "sick, often"],
)
def test_restarts_by_others_in_between_leave_nothing_mixed(
    bench: Bench, pause: float, *, is_sick: bool
) -> None:
    before, had = bench.picture(), bench.known()
    fault = sick.fault(bench.runtime.name, "does not come back")
    with bench.sick(fault) if is_sick else contextlib.nullcontext():
        others = threading.Thread(target=restart_often, args=(bench, pause))
        others.start()
        done = bench.run(
            "run", "--no-daemon", "--reload-timeout=20", *(fault.options if is_sick else ())
        )
        others.join()
        assert done.returncode in ({4, 6} if is_sick else {0, 4, 6}), done.stderr
        nodes.wait_for(bench.node, bench.is_well)
        if done.returncode:
            assert done.returncode == 6 or "nothing was changed" in done.stderr, done.stderr
            assert bench.picture() == before
            assert bench.known()[:2] == had[:2]
        else:
            assert bench.known()[:2] == (had[0] | OURS, "nvidia")
            assert nodes.path(bench.node, f"{TOOLKIT}/toolkit/nvidia-container-runtime").exists()
        assert_works(bench)
    nodes.wait_for(bench.node, lambda: bench.known()[2])


def restart_often(bench: Bench, pause: float) -> None:
    """Restart the unit as others would: a package upgrade, or a person who is in a hurry."""
    for _ in range(3):
        time.sleep(pause)
        bench.sh(
            f"systemctl reset-failed {bench.runtime.unit}; systemctl restart {bench.runtime.unit}",
            check=False,
        )


# --- (6): the start limit ------------------------------------------------------------------------

# One start an hour, and that one is the test's own.
LIMIT: Final = ("StartLimitIntervalSec=3600", "StartLimitBurst=1")
WELL: Final = sick.Fault(name="well", says="")


@on(SOME)
def test_a_start_limit_that_others_used_up_is_no_failure(bench: Bench) -> None:
    had = bench.known()
    with bench.sick(WELL, unit=LIMIT):
        bench.restart()
        told = bench.done("run", "--no-daemon", BY_UNIT)
        assert "did not start" in told
        assert bench.known()[:2] == (had[0] | OURS, "nvidia")
        assert_works(bench)


@on(SOME)
def test_a_start_limit_that_our_change_used_up_is_no_failure_of_the_way_back(bench: Bench) -> None:
    before, had = bench.picture(), bench.known()
    fault = sick.fault(bench.runtime.name, "does not come back")
    with bench.sick(fault, unit=LIMIT):
        bench.restart()
        done = bench.run("run", "--no-daemon", SHORT, BY_UNIT)
        assert done.returncode == 6, done.stderr
        assert error(done).startswith(fault.says)
        assert bench.picture() == before
        assert bench.known() == had
        assert_works(bench)


@on([place for place in SOME if place[0] == "containerd"])
def test_the_error_quotes_what_the_runtime_logged_when_it_did_not_start(bench: Bench) -> None:
    with bench.sick(sick.fault("containerd", "does not come back")):
        done = bench.run("run", "--no-daemon", SHORT, BY_UNIT)
        assert done.returncode == 6, done.stderr
        said = error(done)
        cause = said.partition("the log of containerd.service says: ")[2]
        assert "is a directory" in cause
        assert cause.endswith("; the change was rolled back and the node is in its previous state")


@on(SOME)
def test_one_that_never_starts_again_is_exit_7_and_everything_is_kept(bench: Bench) -> None:
    before, had = bench.picture(), bench.known()
    with bench.sick(LOST):
        done = bench.run("run", "--no-daemon", SHORT, BY_UNIT)
        assert done.returncode == 7, done.stderr
        said = error(done)
        assert said.startswith(f"`systemctl restart {bench.runtime.unit}` failed: ")
        assert "rollback failed: " in said
        assert f"everything needed is kept in {TOOLKIT}/.nvidia-toolkit" in said
        # The files are the old ones all the same; what was there before is named.
        now = bench.picture()
        assert {name: now.get(name) for name in before} == before
        assert nodes.path(bench.node, f"{TOOLKIT}/.nvidia-toolkit/state.json").exists()
        # Nothing is better by itself.
        assert bench.run("run", "--no-daemon", SHORT, BY_UNIT).returncode == 7
        # The node is mended, and the same command goes on: it rolls back, then changes again.
        bench.sh(f"rm {sick.NEVER_AGAIN}")
        bench.sh("sed -i 's/exit 1/true/' /run/sick/script")
        bench.done("run", "--no-daemon", BY_UNIT)
        assert bench.known()[:2] == (had[0] | OURS, "nvidia")


# --- (7): sick before ----------------------------------------------------------------------------


@on([place for place in ALL if place[0] == "containerd"])
def test_one_that_is_sick_before_is_left_alone(bench: Bench) -> None:
    fault = sick.fault("containerd", "CRI failed")
    with bench.sick(fault, When.WITHOUT_US):
        bench.sh("systemctl restart containerd")
        before, still, pid = bench.picture(), bench.times(), bench.pid()
        done = bench.run("run", "--no-daemon")
        assert done.returncode == 4, done.stderr
        said = error(done)
        assert "the runtime is already unhealthy: its CRI plugin failed: " in said
        assert "nothing was changed" in said
        assert (bench.picture(), bench.times(), bench.pid()) == (before, still, pid)
        # It is well with us, which nobody could know: so it was worth a repair.
        bench.done("run", "--no-daemon", "--ignore-unhealthy")
        assert bench.known()[1] == "nvidia"
        assert_works(bench)


@on(SOME)
def test_one_that_hangs_before_is_left_alone(bench: Bench) -> None:
    pid, number = nodes.machine_pid(bench.node, bench.pid()), bench.pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        before, still = bench.picture(), bench.times()
        done = bench.run("run", "--no-daemon")
        assert done.returncode == 4, done.stderr
        assert "was not answered within" in error(done)
        assert "nothing was changed" in error(done)
        assert (bench.picture(), bench.times(), bench.pid()) == (before, still, number)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert bench.pid() == number
