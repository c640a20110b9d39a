"""A change that makes the runtime unhealthy is rolled back: stand-ins; see test_unhealthy_nodes.

A stand-in is sick exactly while its config, as it read it when it started, holds a word.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import fake_node
from tests.support.fake_node import Daemon, Node
from tests.support.fake_runtime import runtime, say
from toolkit.runtime.client import cri

OURS: Final = ("nvidia", "nvidia-cdi", "nvidia-legacy")
WITH_US: Final = "nvidia"
WITHOUT_US: Final = r"(?s)\A(?!.*nvidia)"
ALWAYS: Final = ""
UPGRADED: Final = r"runtimes\.gpu\]"

# What a stand-in is like while it is sick, and the first words of what has to be said about it.
SICKNESSES: Final = (
    pytest.param(
        {"die": True}, "the runtime did not restart or reload in time: ", id="does not come back"
    ),
    pytest.param(
        {"cri_error": "no space left on device"},
        "the runtime did not apply the change: its CRI plugin failed: no space left on device",
        id="CRI failed",
    ),
    pytest.param(
        {"unimplemented": True},
        "the runtime did not apply the change: the runtime no longer serves CRI: Status on ",
        id="CRI is off",
    ),
    pytest.param(
        {"silent": True},
        "the runtime did not apply the change: Status on ",
        id="CRI is not answered",
    ),
    pytest.param(
        {"ready": False},
        "the runtime did not apply the change: the runtime is not ready: RuntimeReady is false",
        id="not ready",
    ),
    pytest.param(
        {"network": False},
        "the runtime did not apply the change: the network is no longer ready: NetworkReady is"
        " false",
        id="the network is gone",
    ),
    pytest.param(
        {"ignore": True},
        "the runtime did not apply the change: the runtime does not know the handler nvidia;",
        id="ignores the file",
    ),
    pytest.param(
        {"handlers": ["runc", "nvidia", "nvidia-legacy"]},
        "the runtime did not apply the change: the runtime does not know the handler nvidia-cdi",
        id="lacks one of our handlers",
    ),
    pytest.param(
        {"handlers": list(OURS)},
        "the runtime did not apply the change: the handler runc is missing; it existed before",
        id="lost another's handler",
    ),
    pytest.param(
        {"default": "runc"},
        "the runtime did not apply the change: the default handler is runc, not nvidia",
        id="another default",
    ),
    pytest.param(
        {"sandbox_image": "elsewhere/pause:1"},
        "the runtime did not apply the change: the sandbox image is elsewhere/pause:1, but was ",
        id="another sandbox image",
    ),
)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = fake_node.make_node(tmp_path / "node")
    node.pid_file.touch(mode=0o600)
    say(node)
    return node


def run(node: Node, *words: str, **options: str) -> subprocess.CompletedProcess[str]:
    manner = {"restart_budget": "0", "reload_timeout": "1.5", **options}
    return fake_node.cli(*(words or ("-n",)), *node.options(**manner), timeout=60)


def install(node: Node, **options: str) -> None:
    done = run(node, **{"reload_timeout": "10", **options})
    assert done.returncode == 0, done.stderr


def error(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that says what went wrong."""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def state(node: Node) -> dict[str, tuple[int, tuple[int, int], str]]:
    """Return mode, owner and content of everything but the record and what is for this boot."""
    seen = {name: fake_node.snapshot(node.root / name, node.state) for name in ("etc", "usr")}
    return {
        f"{place}/{name}": (trace.mode, trace.owner, trace.content)
        for place, found in seen.items()
        for name, trace in found.items()
    }


def touched(node: Node) -> dict[str, fake_node.Trace]:
    """Return everything about every file and link: what a write, even of the same, gives away."""
    found = fake_node.snapshot(node.root)
    return {name: trace for name, trace in found.items() if is_lasting(node.root / name)}


def is_lasting(path: Path) -> bool:
    return (path.is_symlink() or path.is_file()) and "run" not in path.parts[-2:-1]


def ask(node: Node) -> cri.Status:
    return cri.status(node.socket, timeout=5)


def handlers(node: Node) -> set[str]:
    return set(ask(node).handlers or ())


def default(node: Node) -> str:
    return str((ask(node).config or {})["containerd"]["defaultRuntimeName"])


# --- a change that makes the runtime sick --------------------------------------------------------


def test_a_well_runtime_gets_what_was_asked_for(node: Node, cri_runtime: Daemon) -> None:
    before = state(node)
    install(node)
    assert handlers(node) == {"runc", *OURS}
    assert default(node) == "nvidia"
    assert run(node, "revert").returncode == 0
    assert state(node) == before
    assert handlers(node) == {"runc"}
    assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]


@pytest.mark.parametrize(("sick", "says"), SICKNESSES)
def test_a_first_install_is_taken_back(
    node: Node, cri_runtime: Daemon, sick: dict[str, Any], says: str
) -> None:
    before, first = state(node), cri_runtime.pid
    say(node, WITH_US, sick)
    done = run(node)
    assert done.returncode == 6, done.stderr
    assert error(done).startswith(says)
    # Nothing is left, not even of us.
    assert state(node) == before
    assert not node.install_dir.exists()
    # It runs anew, with what it had; one that was dead already is waited for, and not signalled.
    assert cri_runtime.pid != first
    assert handlers(node) == {"runc"}
    assert default(node) == "runc"
    assert cri_runtime.signals() == ["SIGHUP"] * (1 if sick.get("die") else 2)


@pytest.mark.parametrize(
    ("sick", "says"),
    [
        ({"die": True}, "did not restart or reload in time: "),
        ({"ready": False}, "the runtime is not ready: RuntimeReady is false"),
        ({"handlers": ["runc", *OURS]}, "the runtime does not know the handler gpu"),
    ],
    ids=["does not come back", "not ready", "ignores the file"],
)
def test_an_upgrade_is_taken_back(
    node: Node, cri_runtime: Daemon, sick: dict[str, Any], says: str
) -> None:
    install(node)
    before = state(node)
    fake_node.make_artifacts(node.source, release="2")
    say(node, UPGRADED, sick)
    done = run(node, runtime_class="gpu")
    assert done.returncode == 6, done.stderr
    assert says in error(done).partition(";")[0]
    assert state(node) == before
    assert (node.toolkit / "libnvidia-container.so.1.1").exists()
    assert not (node.toolkit / "libnvidia-container.so.1.2").exists()
    assert handlers(node) == {"runc", *OURS}
    assert default(node) == "nvidia"
    # What is remembered is as it was as well: the whole way back is still there.
    assert run(node, "revert").returncode == 0
    assert not node.install_dir.exists()
    assert node.config.read_bytes() == fake_node.KUBEADM


def test_a_revert_is_taken_back_where_the_runtime_is_sick_without_us(
    node: Node, cri_runtime: Daemon
) -> None:
    before = state(node)
    install(node)
    installed = state(node)
    say(node, WITHOUT_US, {"die": True})
    done = run(node, "revert")
    assert done.returncode == 6, done.stderr
    assert error(done).startswith("the runtime did not restart or reload in time: ")
    assert state(node) == installed
    assert handlers(node) == {"runc", *OURS}
    assert default(node) == "nvidia"
    assert run(node).returncode == 0
    say(node)
    assert run(node, "revert").returncode == 0
    assert state(node) == before


def test_what_was_taken_back_can_be_tried_again(node: Node, cri_runtime: Daemon) -> None:
    say(node, WITH_US, {"ready": False})
    assert run(node).returncode == 6
    assert run(node).returncode == 6
    say(node)
    install(node)
    assert default(node) == "nvidia"
    assert cri_runtime.signals() == ["SIGHUP"] * 5


def test_a_config_that_was_not_there_is_not_there_again(tmp_path: Path) -> None:
    node = fake_node.make_node(tmp_path / "node", None)
    say(node, WITH_US, {"ready": False})
    with runtime(node):
        before = state(node)
        assert run(node).returncode == 6
        assert not node.config.exists()
        assert state(node) == before


def test_owner_and_mode_come_back(node: Node, cri_runtime: Daemon) -> None:
    node.config.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(node.config, 0, 34)
    before = state(node)
    say(node, WITH_US, {"die": True})
    assert run(node).returncode == 6
    assert state(node) == before


def test_the_directory_of_another_installer_stands_again(node: Node, cri_runtime: Daemon) -> None:
    node.toolkit.mkdir(parents=True)
    (node.toolkit / "nvidia-ctk").write_bytes(b"theirs")
    before = state(node)
    say(node, WITH_US, {"ready": False})
    assert run(node).returncode == 6
    assert state(node) == before


def test_a_daemonset_ends_with_the_code_as_well(node: Node, cri_runtime: Daemon) -> None:
    before = state(node)
    say(node, WITH_US, {"ready": False})
    options = node.options(restart_budget="0", reload_timeout="1.5")
    assert fake_node.cli(*options, timeout=60).returncode == 6
    assert state(node) == before


# --- slow, and in trouble of its own -------------------------------------------------------------


def test_a_slow_runtime_is_waited_for(node: Node, cri_runtime: Daemon) -> None:
    say(node, WITH_US, {"delay": 3})
    began = time.monotonic()
    install(node)
    assert time.monotonic() - began >= 3
    assert default(node) == "nvidia"
    assert cri_runtime.signals() == ["SIGHUP"]


def test_cri_that_comes_late_is_waited_for(node: Node, cri_runtime: Daemon) -> None:
    say(node, WITH_US, {"cri_error": "not yet"})
    options = node.options(restart_budget="0", reload_timeout="10")
    with fake_node.started(fake_node.program("-n", *options)) as program:
        fake_node.wait_for(lambda: cri_runtime.signals() == ["SIGHUP"], "the runtime is not told")
        time.sleep(0.7)
        say(node)
        code, _, err = fake_node.ended(program)
    assert code == 0, err
    assert default(node) == "nvidia"
    assert cri_runtime.signals() == ["SIGHUP"]


@pytest.mark.parametrize("pause", [0.02, 0.1, 0.2, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("sick", [None, {"die": True}], ids=["well", "sick"])
def test_restarts_by_others_in_between_leave_nothing_mixed(
    node: Node, cri_runtime: Daemon, pause: float, sick: dict[str, Any] | None
) -> None:
    before = state(node)
    say(node, WITH_US if sick else None, sick)
    disturb = threading.Thread(target=restart_often, args=(cri_runtime, pause))
    disturb.start()
    done = run(node, reload_timeout="2.5")
    disturb.join()
    assert done.returncode in ({4, 6} if sick else {0, 4, 6}), done.stderr
    fake_node.wait_for(lambda: answers(node), "the runtime does not come back")
    if done.returncode:
        # 4 is said before anything was touched, where the runtime happened to be away.
        assert "nothing was changed" in done.stderr or done.returncode == 6, done.stderr
        assert state(node) == before
        assert handlers(node) == {"runc"}
        return
    assert handlers(node) == {"runc", *OURS}
    assert default(node) == "nvidia"
    assert (node.toolkit / "nvidia-container-runtime").exists()
    assert "nothing to do" in run(node).stderr


def restart_often(daemon: Daemon, pause: float) -> None:
    """End the daemon three times, once by somebody's SIGHUP; it is started again each time."""
    for number in (signal.SIGKILL, signal.SIGHUP, signal.SIGKILL):
        time.sleep(pause)
        with daemon.lock:
            if daemon.process is not None:
                daemon.process.send_signal(number)


def answers(node: Node) -> bool:
    try:
        return ask(node).runtime_ready
    except cri.CriFailed:
        return False


# --- the way back fails as well ------------------------------------------------------------------


def assert_kept(node: Node, done: subprocess.CompletedProcess[str]) -> None:
    """Check that everything needed is there and named, and that the files are the old ones."""
    assert done.returncode == 7, done.stderr
    said = error(done)
    assert said.startswith("the runtime did not restart or reload in time: ")
    original = next((node.state.parent / "originals").iterdir())
    assert original.read_bytes() == fake_node.KUBEADM
    assert str(node.config) in said
    assert str(original) in said
    (hint,) = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
    assert "run the same command again" in hint
    assert node.config.read_bytes() == fake_node.KUBEADM
    assert node.state.exists()


def test_a_runtime_that_is_given_up_on_is_exit_7(node: Node, cri_runtime: Daemon) -> None:
    before = state(node)
    # As systemd does after StartLimitBurst= starts in a row.
    cri_runtime.limit = 2
    say(node, WITH_US, {"die": True})
    done = run(node)
    assert cri_runtime.signals() == ["SIGHUP"]
    assert cri_runtime.starts() == 1 + 2
    assert_kept(node, done)
    # Nobody did anything: the next run cannot do more, and keeps everything just so.
    assert_kept(node, run(node))
    # Once it is started, the same command first completes the rollback, then does its own work.
    say(node)
    with runtime(node):
        install(node)
        assert default(node) == "nvidia"
        assert run(node, "revert").returncode == 0
        assert state(node) == before


def test_a_runtime_that_nobody_starts_again_is_exit_7_without_any_fault_of_ours(
    node: Node, cri_runtime: Daemon
) -> None:
    before = state(node)
    cri_runtime.revives = False
    assert_kept(node, run(node))
    assert cri_runtime.signals() == ["SIGHUP"]
    with runtime(node):
        assert run(node, "revert").returncode == 0
        assert state(node) == before
        assert not node.install_dir.exists()


def test_a_runtime_that_is_sick_with_the_old_files_too_is_exit_7(
    node: Node, cri_runtime: Daemon
) -> None:
    # It was healthy, but not after the next restart, whoever does it and with any files.
    say(node, WITH_US, {"ready": False})
    options = node.options(restart_budget="0", reload_timeout="1.5")
    with fake_node.started(fake_node.program("-n", *options)) as program:
        fake_node.wait_for(lambda: cri_runtime.signals() == ["SIGHUP"], "the runtime is not told")
        say(node, ALWAYS, {"ready": False})
        code, _, err = fake_node.ended(program)
    assert code == 7, err
    assert node.config.read_bytes() == fake_node.KUBEADM
    assert node.state.exists()
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    first, _, second = line.partition("rollback failed: ")
    assert "RuntimeReady is false" in first
    assert "RuntimeReady is false" in second


# --- sick before ---------------------------------------------------------------------------------

BEFORE: Final = (
    pytest.param({"ready": False}, "RuntimeReady is false", id="not ready"),
    pytest.param(
        {"cri_error": "no space left"}, "its CRI plugin failed: no space left", id="CRI failed"
    ),
    pytest.param({"silent": True}, "no answer within", id="CRI is not answered"),
)


@pytest.mark.parametrize(("sick", "says"), BEFORE)
@pytest.mark.timeout(60)
def test_a_runtime_that_is_sick_before_is_left_alone(
    node: Node, sick: dict[str, Any], says: str
) -> None:
    say(node, ALWAYS, sick)
    with runtime(node) as cri_runtime:
        before, pid, rest = state(node), cri_runtime.pid, touched(node)
        done = run(node)
        assert done.returncode == 4, done.stderr
        assert says in error(done)
        assert "already" in error(done)
        assert "nothing was changed" in error(done)
        assert "--ignore-unhealthy" in done.stderr
        assert touched(node) == rest
        assert state(node) == before
        assert cri_runtime.signals() == []
        assert cri_runtime.pid == pid


def test_repair_goes_on_and_mends_what_our_change_mends(node: Node) -> None:
    say(node, WITHOUT_US, {"ready": False})
    with runtime(node) as cri_runtime:
        install(node, ignore_unhealthy="true")
        assert handlers(node) == {"runc", *OURS}
        assert cri_runtime.signals() == ["SIGHUP"]


def test_repair_that_does_not_help_is_taken_back(node: Node) -> None:
    say(node, ALWAYS, {"ready": False})
    with runtime(node) as cri_runtime:
        before = state(node)
        done = run(node, ignore_unhealthy="true")
        assert done.returncode == 6, done.stderr
        assert "RuntimeReady is false" in error(done)
        assert state(node) == before
        assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]


@pytest.mark.parametrize(
    "manner", [{"network": False}, {"unimplemented": True}], ids=["no network", "CRI is off"]
)
def test_what_a_runtime_never_had_is_not_asked_of_it(node: Node, manner: dict[str, Any]) -> None:
    say(node, **manner)
    with runtime(node) as cri_runtime:
        install(node)
        assert cri_runtime.signals() == ["SIGHUP"]
        assert run(node, "revert").returncode == 0


def test_a_sick_runtime_that_is_as_wanted_is_not_touched(node: Node) -> None:
    with runtime(node):
        install(node)
    say(node, ALWAYS, {"ready": False})
    with runtime(node) as cri_runtime:
        rest, signals = touched(node), cri_runtime.signals()
        done = run(node)
        assert done.returncode == 4, done.stderr
        assert "RuntimeReady is false" in error(done)
        assert touched(node) == rest
        assert cri_runtime.signals() == signals
