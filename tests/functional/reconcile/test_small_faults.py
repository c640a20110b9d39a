"""Faults of the node that are found before the change, or named as what they are."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from runtimes.containerd import ADAPTER as containerd
from runtimes.formats import toml_editor
from runtimes.model import FileChange
from tests.support import fake_node
from tests.support.fake_node import Daemon, Node, needs_root
from toolkit.deadline import Cancellation
from toolkit.node.host import Host
from toolkit.reconcile import apply
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import make_plan

_QUIET = "restart_mode"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = fake_node.make_node(tmp_path / "node")
    fake_node.name_low_level(node)
    return node


# --- attributes ---------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("which", ["config's directory", "install directory", "run directory"])
def test_an_immutable_directory_is_found_before_the_change(
    node: Node, which: str, running: Daemon
) -> None:
    """Root may write there as far as its mode tells."""
    directory = {
        "config's directory": node.config.parent,
        "install directory": node.install_dir,
        "run directory": node.root / "run/counts",
    }[which]
    directory.mkdir(parents=True, exist_ok=True)
    options = node.options(pid_file=str(node.root / "run/counts/toolkit.pid"))
    (node.root / "run/counts").mkdir(exist_ok=True)
    (node.root / "run/counts/toolkit.pid").touch(mode=0o600)
    before = fake_node.content(node.root)
    with fake_node.immutable(directory):
        done = fake_node.cli("run", "--no-daemon", *options)
    assert done.returncode == 4, done.stderr
    assert str(directory) in done.stderr
    assert "has the attribute i or a" in done.stderr
    assert "nothing was changed" in done.stderr
    assert fake_node.content(node.root) == before
    assert running.signals() == []


@needs_root
def test_a_drop_in_is_not_planned_for_an_immutable_directory(tmp_path: Path) -> None:
    """The file does not exist yet, so it has no attribute itself."""
    change = FileChange(path=str(tmp_path / "99-nvidia.toml"), before=None, after=b"version = 3\n")
    host = Host(root=Path("/"))
    assert apply.unwritable(host, [change]) == []
    with fake_node.immutable(tmp_path):
        (problem,) = apply.unwritable(host, [change])
    assert (
        problem
        == f"{tmp_path} has the attribute i or a (lsattr): remove it with `chattr -ia {tmp_path}`"
    )


@needs_root
@pytest.mark.parametrize(
    "which", [".toolkit-versions", "toolkit/nvidia-ctk.real", ".nvidia-toolkit/state.json"]
)
def test_an_immutable_file_is_found_before_a_revert(
    node: Node, which: str, running: Daemon
) -> None:
    """The configuration must not be taken back if the files then stay."""
    fake_node.done("run", "--no-daemon", *node.options())
    before, signals = fake_node.content(node.root), running.signals()
    with fake_node.immutable((node.install_dir / which).resolve()):
        done = fake_node.cli("revert", *node.options())
    assert done.returncode == 4, done.stderr
    assert "has the attribute i or a" in done.stderr
    assert fake_node.content(node.root) == before
    assert running.signals() == signals
    fake_node.done("revert", *node.options())
    assert not node.install_dir.exists()


# --- the runtime's binary -----------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("how", ["itself", "behind a shell"])
def test_a_binary_that_is_killed_has_not_refused_the_configuration(
    node: Node, number: signal.Signals, how: str
) -> None:
    """The kernel kills it if the pod's memory is used up."""
    end = f"kill -{number.value} $$" if how == "itself" else f"sh -c 'kill -{number.value} $$'"
    program = node.root / "opt/bin/containerd"
    fake_node.write_program(program, f"#!/bin/sh\n[ $1 = --version ] || {end}\n")
    before = node.config.read_bytes()
    options = node.options(
        restart_mode="none", config_source="command", executable_path=str(program)
    )
    done = fake_node.cli("run", "--no-daemon", *options)
    assert done.returncode == 4, done.stderr
    assert f"was ended by {number.name}" in done.stderr
    assert "does not load" not in done.stderr
    assert node.config.read_bytes() == before
    assert not node.install_dir.exists()


# --- the node's root ----------------------------------------------------------------------------


def test_a_host_root_that_is_empty_is_named(node: Node) -> None:
    root = node.root / "host"
    root.mkdir()
    for words in (["run", "--no-daemon"], ["plan"], ["revert"]):
        done = fake_node.cli(
            *words, *node.options(host_root=str(root), runtime=None, restart_mode="none")
        )
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert f"--host-root={root} is empty" in done.stderr
        assert "mount the node's / there" in done.stderr


# --- files alone --------------------------------------------------------------------------------


def broken(path: Path) -> None:
    path.write_text("not [ toml\n", encoding="utf-8")


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [broken, a_directory, Path.unlink])
@pytest.mark.parametrize("given", ["true", None])
def test_a_revert_of_files_alone_does_not_need_the_runtime_s_configuration(
    node: Node, given: str | None, spoil: object
) -> None:
    fake_node.done("run", "--no-daemon", *node.options(no_runtime_config="true"))
    assert callable(spoil)
    spoil(node.config)
    done = fake_node.cli("revert", *node.options(no_runtime_config=given, restart_mode="none"))
    assert done.returncode == 0, done.stderr
    assert not node.install_dir.exists()


def test_files_that_a_broken_configuration_names_are_kept(node: Node) -> None:
    """Somebody configured the handlers by hand: without the files no container would start."""
    fake_node.done("run", "--no-daemon", *node.options(no_runtime_config="true"))
    node.config.write_text(
        f'not [ toml "{node.toolkit}/nvidia-container-runtime"\n', encoding="utf-8"
    )
    done = fake_node.cli("revert", *node.options(restart_mode="none"))
    assert done.returncode == 3, done.stderr
    assert (node.toolkit / "nvidia-container-runtime").exists()


# --- the entry point ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_entry_point_ends_while_it_waits_for_the_driver(
    tmp_path: Path, number: signal.Signals
) -> None:
    """It does not wait for its `sleep`, which here takes longer than the test may."""
    note = tmp_path / "sleeps"
    fake_node.write_program(
        tmp_path / "sleep", f"#!/bin/sh\necho $$ >{note}\nexec /bin/sleep 600\n"
    )
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "WAIT_FOR_DRIVER": "1",
        "DRIVER_READY_FILE": str(tmp_path / "none"),
    }
    program = fake_node.CHECKOUT / "entrypoint.sh"
    with subprocess.Popen([program], env=environment, stderr=subprocess.DEVNULL) as process:
        fake_node.wait_for(
            lambda: note.exists() and note.read_text().endswith("\n"), "it does not wait"
        )
        process.send_signal(number)
        try:
            assert process.wait(60) == 143
        finally:
            process.kill()
            os.kill(int(note.read_text()), signal.SIGKILL)


# --- imports ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a list", "a glob", "a chain"])
def test_each_imported_file_is_parsed_a_few_times_however_many_there_are(
    node: Node, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, parsed, tree = 150, 0, toml_editor.tree
    directory = node.config.parent / "more"
    directory.mkdir()
    paths = [directory / f"{number:04}.toml" for number in range(count)]
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        imports = f'imports = ["{following}"]\n' if how == "a chain" and following else ""
        path.write_text(f"version = 2\n{imports}", encoding="utf-8")
    named = {"a list": paths, "a glob": [directory / "*.toml"], "a chain": paths[:1]}[how]
    text = node.config.read_text(encoding="utf-8")
    node.config.write_text(f"imports = {[str(path) for path in named]}\n{text}", encoding="utf-8")

    def counted(data: bytes, path: str) -> object:
        nonlocal parsed
        parsed += 1
        return tree(data, path)

    monkeypatch.setattr(toml_editor, "tree", counted)
    make_plan(
        Context(
            settings=node.settings(restart_mode="none"), adapter=containerd, stop=Cancellation()
        )
    )
    assert count <= parsed < 8 * count
