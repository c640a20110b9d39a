"""Files, configuration, reload: three switches that work alone, and all of their combinations."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Final

import pytest

from tests.support import fake_node
from tests.support.fake_node import KUBEADM, NOTHING_TO_DO, Daemon, Node

NOT_TOLD: Final = (
    "in sync\nnot ready: the runtime is unhealthy or has not loaded the configuration\n"
)
READY: Final = "in sync\nready\n"
NO_INSTALL: Final = {"no_install": "true", "toolkit_source_root": None}


def own_toolkit(node: Node, *names: str) -> Path:
    """Give the node a toolkit of its own, as its packages bring it."""
    directory = node.root / "usr/bin"
    directory.mkdir(parents=True, exist_ok=True)
    for name in names or fake_node.PROGRAMS:
        fake_node.write_program(directory / name, "#!/bin/sh\n")
    return directory


def files_only(node: Node) -> list[str]:
    """Return options for files alone; that nothing could judge a change is of no concern then."""
    return node.options(no_runtime_config="true", config_source="command")


def runtime_only(node: Node, **more: str) -> list[str]:
    return node.options(toolkit_bin_dir=str(node.root / "usr/bin"), **NO_INSTALL, **more)


# --- each alone ---------------------------------------------------------------------------------


def test_files_only(node: Node) -> None:
    """No daemon runs here: none is asked, none is needed."""
    before = fake_node.snapshot(node.config.parent)
    assert not fake_node.done("-n", *files_only(node)).stdout
    assert (node.toolkit / "nvidia-container-runtime").exists()
    assert fake_node.snapshot(node.config.parent) == before
    assert fake_node.done("status", *files_only(node)).stdout.startswith(READY)
    assert fake_node.done("-n", *files_only(node)).stderr == NOTHING_TO_DO
    fake_node.done("revert", *files_only(node))
    assert not node.install_dir.exists()
    assert fake_node.snapshot(node.config.parent) == before


@fake_node.needs_root
def test_files_only_writes_nothing_where_nothing_can_be_written(node: Node) -> None:
    workshop_prefix = fake_node.read_only(node.config.parent)
    done = fake_node.cli("-n", *files_only(node), prefix=workshop_prefix)
    assert done.returncode == 0, done.stderr


def test_files_only_is_not_told_of_what_an_earlier_run_left_untold(
    node: Node, running: Daemon
) -> None:
    fake_node.done("-n", *node.options(restart_mode="none"))
    fake_node.done("-n", *files_only(node))
    assert running.signals() == []


def test_the_runtime_only(node: Node, running: Daemon) -> None:
    directory = own_toolkit(node)
    fake_node.done("-n", *runtime_only(node))
    written = node.config.read_text(encoding="utf-8")
    for program in fake_node.PROGRAMS[:3]:
        assert f'"{directory / program}"' in written
    assert not node.toolkit.exists()
    assert running.signals() == ["SIGHUP"]
    assert fake_node.done("status", *runtime_only(node)).stdout.startswith(READY)
    assert fake_node.done("-n", *runtime_only(node)).stderr == NOTHING_TO_DO
    assert (
        "using the node's own toolkit (--no-install)"
        in fake_node.done("plan", *runtime_only(node)).stdout
    )
    fake_node.done("revert", *runtime_only(node))
    assert node.config.read_bytes() == KUBEADM
    assert running.signals() == ["SIGHUP", "SIGHUP"]
    assert not node.install_dir.exists()
    assert sorted(path.name for path in directory.iterdir()) == sorted(fake_node.PROGRAMS)


def test_the_runtime_only_with_what_another_installer_put_below_the_install_directory(
    node: Node, running: Daemon
) -> None:
    node.toolkit.mkdir(parents=True)
    for program in fake_node.PROGRAMS:
        fake_node.write_program(node.toolkit / program, "#!/bin/sh\n")
    before = fake_node.snapshot(node.toolkit)
    options = node.options(**NO_INSTALL)
    fake_node.done("-n", *options)
    assert f'"{node.toolkit}/nvidia-container-runtime"' in node.config.read_text(encoding="utf-8")
    assert running.signals() == ["SIGHUP"]
    fake_node.done("revert", *options)
    assert fake_node.snapshot(node.toolkit) == before
    assert node.config.read_bytes() == KUBEADM


def test_no_reload(node: Node, running: Daemon) -> None:
    options = node.options(restart_mode="none")
    fake_node.done("-n", *options)
    assert (node.toolkit / "nvidia-container-runtime").exists()
    assert b'"nvidia"' in node.config.read_bytes()
    assert running.signals() == []
    assert fake_node.done("status", *options).stdout == NOT_TOLD
    assert fake_node.cli("status", "--quiet", *options).returncode == 8
    # The running daemon never read it, so nothing of ours can be in use.
    fake_node.done("revert", *options)
    assert node.config.read_bytes() == KUBEADM
    assert running.signals() == []


def test_a_default_handler_whose_program_the_node_lacks_is_refused(
    node: Node, running: Daemon
) -> None:
    own_toolkit(node, "nvidia-container-runtime")
    refused = fake_node.cli("-n", *runtime_only(node, runtime_class="nvidia-cdi"))
    assert refused.returncode == 2, refused.stderr
    assert (
        "nvidia-container-runtime.cdi, which the default handler runs, was not found"
        in refused.stderr
    )
    assert node.config.read_bytes() == KUBEADM
    assert running.signals() == []


# --- and together -------------------------------------------------------------------------------


def test_files_only_without_a_reload_is_files_only(node: Node, running: Daemon) -> None:
    before = fake_node.snapshot(node.config.parent)
    options = node.options(no_runtime_config="true", restart_mode="none")
    fake_node.done("-n", *options)
    assert fake_node.done("status", *options).stdout.startswith(READY)
    fake_node.done("revert", *options)
    assert fake_node.snapshot(node.config.parent) == before
    assert running.signals() == []


def test_the_configuration_alone(node: Node, running: Daemon) -> None:
    own_toolkit(node)
    options = runtime_only(node, restart_mode="none")
    fake_node.done("-n", *options)
    assert b'"nvidia"' in node.config.read_bytes()
    assert not node.toolkit.exists()
    assert fake_node.done("status", *options).stdout == NOT_TOLD
    # A daemon that was started by somebody else has read it.
    os.kill(running.pid, signal.SIGKILL)
    fake_node.wait_for(lambda: running.starts() == 2, "it does not start again")
    time.sleep(0.1)
    fake_node.done("-n", *options)
    assert fake_node.done("status", *options).stdout.startswith(READY)
    # Taken back without a reload too: what its handlers run stays, so it need not be told.
    fake_node.done("revert", *options)
    assert node.config.read_bytes() == KUBEADM
    assert running.signals() == []
    assert not node.install_dir.exists()


@pytest.mark.parametrize("more", [{}, {"restart_mode": "none"}], ids=["with a reload", "without"])
@pytest.mark.parametrize("command", ["run", "plan", "status"])
def test_neither_files_nor_configuration_is_refused(
    node: Node, command: str, more: dict[str, str]
) -> None:
    before = fake_node.snapshot(node.root)
    options = node.options(no_install="true", no_runtime_config="true", **more)
    done = fake_node.cli(command, *options)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: --no-install and --no-runtime-config: cannot be combined, nothing would be done;"
    )
    assert fake_node.snapshot(node.root) == before


# --- a node that lacks what the handlers would run ------------------------------------------------


@pytest.mark.parametrize(
    "there", [(), ("nvidia-container-runtime.cdi",)], ids=["nothing", "only cdi"]
)
def test_a_toolkit_that_is_not_there_is_refused(
    node: Node, running: Daemon, there: tuple[str, ...]
) -> None:
    directory = own_toolkit(node, *there) if there else node.root / "usr/bin"
    ignored = (node.pid_file.parent, node.pid_file, node.socket)  # the lock is held all the same
    before = fake_node.snapshot(node.root, *ignored)
    done = fake_node.cli("-n", *runtime_only(node))
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: {directory}/nvidia-container-runtime, which the handlers run, was not found on the"
        " node\nhint: install it there, name its directory with --toolkit-bin-dir"
    )
    assert fake_node.snapshot(node.root, *ignored) == before
    status = fake_node.done("status", *runtime_only(node)).stdout
    assert status.startswith("not in sync\n")
    assert "was not found on the node" in status
    assert running.signals() == []


def test_what_is_gone_does_not_keep_the_configuration_from_being_taken_back(
    node: Node, running: Daemon
) -> None:
    directory = own_toolkit(node)
    fake_node.done("-n", *runtime_only(node))
    for path in directory.iterdir():
        path.unlink()
    assert not fake_node.done("status", *runtime_only(node)).stdout.startswith("in sync")
    shown = fake_node.done("plan", *runtime_only(node)).stdout
    last = shown.splitlines()[-1]
    assert last.startswith("# `run` would refuse to make this change: ")
    assert last.endswith("the node's own toolkit was not found")
    fake_node.done("revert", *runtime_only(node))
    assert node.config.read_bytes() == KUBEADM


def test_a_diagnosis_does_not_miss_what_was_not_to_be_installed(
    node: Node, running: Daemon
) -> None:
    own_toolkit(node)
    fake_node.done("-n", *runtime_only(node))
    found = json.loads(fake_node.done("diagnose", "--output=json", *runtime_only(node)).stdout)
    assert not [each for each in found["findings"] if "toolkit" in json.dumps(each)]


def test_the_hook_of_the_node_s_own_toolkit_goes_with_its_mode(node: Node) -> None:
    """CRI-O with both would run it twice."""
    directory = own_toolkit(node)
    hooks = node.root / "hooks"
    hooks.mkdir()
    more = {
        "runtime": "crio",
        "config": str(node.root / "etc/crio.conf"),
        "drop_in_config": str(node.root / "etc/crio.conf.d/99-nvidia.toml"),
        "hooks_dir": str(hooks),
        "restart_mode": "none",
    }
    (node.root / "etc/crio.conf.d").mkdir()
    fake_node.done("-n", *runtime_only(node, **more, config_mode="hook"))
    (hook,) = hooks.iterdir()
    assert f"{directory}/nvidia-container-runtime-hook" in hook.read_text(encoding="utf-8")
    fake_node.done("-n", *runtime_only(node, **more))
    assert not list(hooks.iterdir())


def test_a_program_that_is_no_program_is_refused(node: Node, running: Daemon) -> None:
    (own_toolkit(node) / "nvidia-container-runtime").chmod(0o644)
    assert fake_node.cli("-n", *runtime_only(node)).returncode == 2
    assert node.config.read_bytes() == KUBEADM


def test_handlers_are_those_that_the_node_has_programs_for(node: Node, running: Daemon) -> None:
    """Debian's packages bring `.cdi` and `.legacy` apart from the rest."""
    directory = own_toolkit(node, "nvidia-container-runtime")
    shown = fake_node.done("plan", *runtime_only(node)).stdout
    for handler in ("cdi", "legacy"):
        path = f"{directory}/nvidia-container-runtime.{handler}"
        assert (
            f"# {path} not found on the node: the handler nvidia-{handler} is not added\n" in shown
        )
    fake_node.done("-n", *runtime_only(node))
    written = node.config.read_text(encoding="utf-8")
    assert f'"{directory}/nvidia-container-runtime"' in written
    assert "nvidia-cdi" not in written
    assert fake_node.done("status", *runtime_only(node)).stdout.startswith(READY)
    # They come with their programs, and nothing is left of them either.
    own_toolkit(node)
    fake_node.done("-n", *runtime_only(node))
    assert "nvidia-cdi" in node.config.read_text(encoding="utf-8")
    fake_node.done("revert", *runtime_only(node))
    assert node.config.read_bytes() == KUBEADM


def test_a_directory_is_for_no_install_only(node: Node) -> None:
    done = fake_node.cli("plan", *node.options(toolkit_bin_dir="/usr/bin"))
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: --toolkit-bin-dir=/usr/bin: requires --no-install;"
        " without it the toolkit is installed below the install directory\n"
    )


def test_an_option_of_the_toolkit_s_own_is_refused_where_the_toolkit_is_the_node_s(
    node: Node,
) -> None:
    done = fake_node.cli("plan", *runtime_only(node, **{"nvidia_container_runtime.mode": "cdi"}))
    assert done.returncode == 2
    assert (
        "--nvidia-container-runtime.mode: cannot be used with --no-install, which leaves the"
        " toolkit's files" in done.stderr
    )


def test_from_files_of_ours_to_the_node_s_own_and_back(node: Node, running: Daemon) -> None:
    """What was installed stays until it is taken back: containers may still run through it."""
    fake_node.done("-n", *node.options())
    own_toolkit(node)
    fake_node.done("-n", *runtime_only(node))
    assert f'"{node.root}/usr/bin/nvidia-container-runtime"' in node.config.read_text(
        encoding="utf-8"
    )
    assert node.toolkit.exists()
    fake_node.done("revert", *runtime_only(node))
    assert node.config.read_bytes() == KUBEADM
    assert not node.install_dir.exists()


# --- a process that stays -------------------------------------------------------------------------


def test_drift_of_files_only(node: Node) -> None:
    with fake_node.started(fake_node.program(*files_only(node), "--check-interval=0.3")) as pod:
        ready = node.pid_file.with_name("ready.json")
        fake_node.wait_for(ready.exists, "it does not become ready")
        node.config.write_bytes(b"version = 2\n")
        (node.toolkit / "nvidia-ctk").resolve().write_bytes(b"another")
        program = node.source / "usr/bin/nvidia-ctk"
        wrapped = node.toolkit / "nvidia-ctk.real"
        fake_node.wait_for(
            lambda: (
                wrapped.read_bytes() == program.read_bytes()
                and b"another" not in (node.toolkit / "nvidia-ctk").read_bytes()
            ),
            "the file is not brought back",
        )
        assert node.config.read_bytes() == b"version = 2\n"
        fake_node.ended(pod, signal.SIGTERM)


def test_drift_of_the_runtime_only(node: Node, running: Daemon) -> None:
    directory = own_toolkit(node)
    with fake_node.started(fake_node.program(*runtime_only(node), "--check-interval=0.3")) as pod:
        ready = node.pid_file.with_name("ready.json")
        fake_node.wait_for(ready.exists, "it does not become ready")
        node.config.write_bytes(KUBEADM)
        fake_node.wait_for(
            lambda: b'"nvidia"' in node.config.read_bytes(), "it is not brought back"
        )
        fake_node.wait_for(ready.exists, "it does not become ready again")
        # A program that goes is no work of ours: it is told, and the node does not count as ready.
        written = node.config.read_bytes()
        (directory / "nvidia-container-runtime").rename(directory / "away")
        fake_node.wait_for(lambda: not ready.exists(), "it still counts as ready")
        assert node.config.read_bytes() == written
        (directory / "away").rename(directory / "nvidia-container-runtime")
        fake_node.wait_for(ready.exists, "it does not become ready again")
        _, _, told = fake_node.ended(pod, signal.SIGTERM)
    assert "which the handlers run, was not found on the node" in told
    assert running.signals() == ["SIGHUP", "SIGHUP"]


def test_drift_without_a_reload(node: Node, running: Daemon) -> None:
    options = node.options(restart_mode="none", check_interval="0.3")
    with fake_node.started(fake_node.program(*options)) as pod:
        fake_node.wait_for(lambda: b'"nvidia"' in node.config.read_bytes(), "it is not written")
        node.config.write_bytes(KUBEADM)
        fake_node.wait_for(
            lambda: b'"nvidia"' in node.config.read_bytes(), "it is not brought back"
        )
        fake_node.ended(pod, signal.SIGTERM)
    assert running.signals() == []


# --- the name of the main handler ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["runc", "crun", "kata"])
def test_a_name_that_another_handler_has_is_refused(node: Node, name: str) -> None:
    """With the name `runc`, the other handlers would no longer inherit SystemdCgroup."""
    kata = b'[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]\n'
    node.config.write_bytes(KUBEADM + b"\n" + kata + b'runtime_type = "io.containerd.kata.v2"\n')
    before = fake_node.snapshot(node.root, node.pid_file.parent)
    for command in ("plan", "run"):
        words = ["-n"] if command == "run" else []
        options = node.options(restart_mode="none", runtime_class=name)
        done = fake_node.cli(command, *words, *options)
        assert done.returncode == 2, done.stderr
        assert done.stderr == (
            f"error: --runtime-class={name}: the node has a handler {name} already, which is not"
            " the toolkit's\n"
            "hint: choose another name, such as nvidia; --set-as-default makes it the default for"
            " pods that name no handler\n"
        )
    assert fake_node.snapshot(node.root, node.pid_file, node.pid_file.parent) == before


def test_a_name_that_is_the_toolkit_s_own_stays(node: Node) -> None:
    fake_node.name_low_level(node)
    before = node.config.read_bytes()
    options = node.options(restart_mode="none", runtime_class="gpu")
    fake_node.done("-n", *options)
    assert fake_node.done("plan", *options).stdout.endswith("nothing to do: the node is in sync\n")
    fake_node.done("revert", *options)
    assert node.config.read_bytes() == before


@pytest.mark.parametrize("name", ["nvidia", "gpu"])
def test_a_handler_of_another_installer_of_the_toolkit_is_replaced(node: Node, name: str) -> None:
    path = f'[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]\n'
    table = path + f'runtime_type = "io.containerd.runc.v2"\n{path[:-2]}.options]\n'
    table += 'BinaryName = "/usr/bin/nvidia-container-runtime"\n'
    node.config.write_bytes(KUBEADM + b"\n" + table.encode())
    options = node.options(restart_mode="none", runtime_class=name)
    assert "/toolkit/nvidia-container-runtime" in fake_node.done("plan", *options).stdout
