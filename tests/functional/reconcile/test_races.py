"""Events during an open transaction: the node is upgraded, the clock set, options change."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.functional.reconcile.test_rollback import (
    OURS,
    Killed,
    converge,
    fails_after,
    killed_in,
    killed_on_the_way_back,
    revert,
    start_anew,
    stuck,
)
from tests.support import fake_node
from tests.support.fake_node import Daemon, Node
from tests.support.fake_runtime import runtime, say
from toolkit.errors import NotRolledBack, ToolkitError
from toolkit.node import files, processes, procfs
from toolkit.reconcile import apply, rollback, transaction
from toolkit.runtime import expectation, restart
from toolkit.runtime.client import cri
from toolkit.settings.layout import VERSIONS
from toolkit.settings.options import RestartMode
from toolkit.state import journal

pytestmark = pytest.mark.usefixtures("no_fsync")

UNIT: Final = restart.RestartMethod(
    mode=RestartMode.SYSTEMD, unit="containerd.service", replaces=True
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expectation, "SETTLING", 0.2)


def killed(
    monkeypatch: pytest.MonkeyPatch, room: Any, step: str, run: Any, *, after: bool = False
) -> None:
    with monkeypatch.context() as patch:
        killed_in(patch, room, step, after=after)
        with pytest.raises(Killed):
            run()


def new_pause_image(node: Node) -> None:
    """Edit what is nobody's but the node's own, as an upgrade of Kubernetes does."""
    new = re.sub(rb"pause:3\.\d+", b"pause:3.99", node.config.read_bytes())
    assert b"pause:3.99" in new
    node.config.write_bytes(new)


@pytest.mark.parametrize("job", [converge, revert])
def test_a_node_that_was_upgraded_after_a_killed_run_is_no_dead_end(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, job: Any
) -> None:
    if job is revert:
        converge(node)
    killed(monkeypatch, apply, "changes", lambda: job(node), after=True)
    new_pause_image(node)
    start_anew(cri_runtime)
    with suppress(NotRolledBack):  # once may be too much to ask for
        job(node)
    with suppress(NotRolledBack):
        job(node)
    job(node)
    assert journal.load(node.install_dir).open is None


def test_a_node_that_was_upgraded_while_the_way_back_was_stuck_is_no_dead_end(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck(node, monkeypatch, cri_runtime)
    new_pause_image(node)
    with runtime(node):
        revert(node)
    assert not node.install_dir.exists()


def test_a_handler_that_somebody_took_away_after_a_kill_is_not_missed_for_ever(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    cri_section = b'[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]\n'
    kata = b"\n" + cri_section + b'runtime_type = "io.containerd.kata.v2"\n'
    node.config.write_bytes(fake_node.KUBEADM + kata)
    start_anew(cri_runtime)
    killed(monkeypatch, apply, "changes", lambda: converge(node), after=True)
    node.config.write_bytes(node.config.read_bytes().replace(kata, b""))
    start_anew(cri_runtime)
    with suppress(ToolkitError):
        converge(node)  # once may be too much to ask for
    converge(node)


def test_a_network_that_is_not_up_after_a_reboot_takes_no_good_change_back(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power fails right before the commit; at boot the CNI plugin comes later than we do."""
    killed(monkeypatch, transaction, "commit", lambda: converge(node))
    say(node, "", {"network": False})
    start_anew(cri_runtime)
    told = len(cri_runtime.signals())
    monkeypatch.setattr(procfs, "boot_id", lambda: "another boot")
    converge(node)
    assert len(cri_runtime.signals()) == told


def test_a_runtime_that_a_killed_way_back_left_down_is_started_beyond_the_budget(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd refused the restart, and the kill came before the second."""
    monkeypatch.setattr(restart, "start_stopped", lambda *_, **__: UNIT)
    with runtime(node), monkeypatch.context() as patch:
        fails_after(patch)
        killed_in(patch, rollback, "_reload_runtime", after=False)
        with pytest.raises(Killed):
            converge(node)
    with ExitStack() as stack:
        monkeypatch.setattr(restart, "restart_unit", lambda *_: stack.enter_context(runtime(node)))
        revert(node, restart_mode="auto", restart_budget="1")
        assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}


@pytest.mark.parametrize("between", [{"no_runtime_config": "true"}, {"restart_mode": "none"}])
def test_a_runtime_that_a_killed_run_left_down_is_started_whatever_ran_between(
    node: Node, monkeypatch: pytest.MonkeyPatch, between: dict[str, str]
) -> None:
    """A pod with other options and toolkit commits, and so forgets who stopped the runtime."""

    def start_stopped(*_: object, even_if_stopped: bool) -> restart.RestartMethod | None:
        return UNIT if even_if_stopped else None

    monkeypatch.setattr(restart, "start_stopped", start_stopped)
    with runtime(node):
        killed(monkeypatch, restart, "perform", lambda: converge(node, restart_mode="auto"))
    fake_node.make_artifacts(node.source, release="2")
    converge(node, **{"restart_mode": "auto", **between})
    with ExitStack() as stack:
        monkeypatch.setattr(restart, "restart_unit", lambda *_: stack.enter_context(runtime(node)))
        converge(node, restart_mode="auto")
        assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc", *OURS}


def test_a_version_from_before_that_somebody_removed_is_no_dead_end(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    shutil.rmtree(node.install_dir / VERSIONS)
    fake_node.make_artifacts(node.source, release="2")
    with monkeypatch.context() as patch:
        fails_after(patch)
        with pytest.raises(ToolkitError):
            converge(node, runtime_class="gpu")
    converge(node)  # the hint says: run the same command again
    assert (node.toolkit / "nvidia-container-runtime").exists()


def test_a_clock_that_is_set_forward_does_not_hide_that_the_way_back_is_owed(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board without a battery gets its time after we were killed on the way back."""
    killed_on_the_way_back(node, monkeypatch)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    revert(node)
    assert set(cri.status(node.socket, timeout=5).handlers or ()) == {"runc"}


def test_a_runtime_that_read_a_killed_write_is_not_restarted_an_hour_later_either(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, apply, "changes", lambda: converge(node), after=True)
    time.sleep(0.1)
    start_anew(cri_runtime)
    clock, age = time.time, processes.age
    monkeypatch.setattr(time, "time", lambda: clock() + 3700)  # both go on for as long
    monkeypatch.setattr(processes, "age", lambda found: age(found) + 3700)
    converge(node)
    assert cri_runtime.signals() == []


def test_a_change_that_failed_is_not_made_again_of_the_same_files_window_after_window(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pod crash-loops: two restarts for each window of the budget, for ever."""
    say(node, "nvidia-cdi", {"handlers": list(OURS)})
    told = []
    for _ in range(8):
        with pytest.raises(ToolkitError) as caught:
            converge(node, restart_budget="3", restart_window="0.5", reload_timeout="1")
        told.append(str(caught.value))
        time.sleep(0.6)
    # Twice at once, and then after 1, 2 and 4 seconds.
    assert len(cri_runtime.signals()) <= 8
    assert any("this change was rolled back" in words for words in told)


def test_the_documented_way_out_of_a_runtime_that_is_gone_leads_out_of_a_stuck_way_back(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/troubleshooting.md: `revert --runtime X --restart-mode none` if X no longer runs."""
    stuck(node, monkeypatch, cri_runtime)
    revert(node, restart_mode="none")
    assert not node.install_dir.exists()


def test_a_killed_revert_can_be_forced_whatever_became_of_the_node(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge(node)
    killed(monkeypatch, apply, "changes", lambda: revert(node), after=True)
    new_pause_image(node)
    start_anew(cri_runtime)
    with suppress(ToolkitError):
        revert(node)
    revert(node, force="true")
    assert not node.install_dir.exists()


# --- a file that another program writes ---------------------------------------------------------


def test_a_file_that_is_being_written_in_place_is_not_taken_for_empty(
    node: Node, cri_runtime: Daemon
) -> None:
    """A shell's `>` empties the file first; later writes must not go to an unlinked file."""
    admins = node.root / "admins.toml"
    admins.write_bytes(fake_node.KUBEADM)
    script = f'exec 3> "{node.config}"; echo open; read line; exec cat "{admins}" >&3'
    with subprocess.Popen(
        ("sh", "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "open\n"
        assert node.config.read_bytes() == b""
        done = fake_node.cli("-n", *node.options())
        assert done.returncode == 4, done.stderr
        said = f"{node.config} is open for writing by PID {shell.pid} (sh); it was not changed"
        assert said in done.stderr
        assert cri_runtime.signals() == []
        shell.communicate("go\n", timeout=20)
    assert node.config.read_bytes() == fake_node.KUBEADM
    fake_node.done("-n", *node.options())
    assert b'"nvidia"' in node.config.read_bytes()
    fake_node.done("revert", *node.options())
    assert node.config.read_bytes() == fake_node.KUBEADM


def exchanged_once(real: Callable[[Path, Path, int], bool]) -> Callable[[Path, Path, int], bool]:
    """Return a function that renames once, and ends the run the second time."""
    calls: list[Path] = []

    def rename(source: Path, destination: Path, flags: int) -> bool:
        calls.append(source)
        if len(calls) > 1:
            raise Killed
        return real(source, destination, flags)

    return rename


THEIRS: Final = fake_node.KUBEADM.replace(b"pause:3.9", b"pause:3.99")


def killed_after_an_exchange(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a run after the exchange, before it looked at what came back: the content THEIRS."""

    def kill(swap: Path, *_: Any) -> None:
        swap.write_bytes(THEIRS)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files, "check_moved", kill)
        patch.setattr(files, "rename", exchanged_once(files.rename))
        # With the lease, a writer waits for as long as the kernel lets it (45 s).
        patch.setattr(files, "take_lease", lambda *_: False)
        with pytest.raises(Killed):
            converge(node)
    assert b"pause:3.99" not in node.config.read_bytes()


def kept(node: Node) -> Path:
    """Return the only file beside the configuration."""
    (found,) = (path for path in node.config.parent.iterdir() if path != node.config)
    return found


def test_unknown_content_is_kept_where_the_record_is_lost(
    node: Node,
    cri_runtime: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    killed_after_an_exchange(node, monkeypatch)
    shutil.rmtree(node.state.parent)
    with suppress(ToolkitError):
        converge(node, reload_timeout="2")
    found = kept(node)
    assert found.read_bytes() == THEIRS
    line = f"{found} holds what was at {node.config} and is not known: compare them, then remove it"
    assert caplog.messages.count(line) == 1
    # It is named once, and no later write replaces it.
    start_anew(cri_runtime)
    with suppress(ToolkitError):
        converge(node, reload_timeout="2")
    revert(node)
    assert (kept(node), found.read_bytes()) == (found, THEIRS)
    assert caplog.messages.count(line) == 1


def test_unknown_content_does_not_replace_what_was_written_after_the_kill(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after_an_exchange(node, monkeypatch)
    newer = node.config.read_bytes() + b"# newer\n"
    node.config.write_bytes(newer)
    with suppress(ToolkitError):
        converge(node, reload_timeout="2")
    assert b"# newer\n" in node.config.read_bytes()
    assert kept(node).read_bytes() == THEIRS


def test_what_somebody_wrote_at_the_moment_of_a_kill_is_put_back(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after_an_exchange(node, monkeypatch)
    with suppress(ToolkitError):
        converge(node)
    assert b"pause:3.99" in node.config.read_bytes()
    start_anew(cri_runtime)
    converge(node)
    assert b"pause:3.99" in node.config.read_bytes()
    revert(node)
    assert node.config.read_bytes() == THEIRS
    assert [path.name for path in node.config.parent.iterdir()] == [node.config.name]
