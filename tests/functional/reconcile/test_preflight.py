"""Obstacles are found before anything is touched, all of them at once; nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from runtimes import registry
from runtimes.containerd import ADAPTER as containerd
from runtimes.docker import ADAPTER as docker
from runtimes.model import Effective, RuntimeName
from tests.support import fake_node, programs
from tests.support.fake_node import Daemon, Node
from tests.support.fake_runtime import runtime, say
from toolkit.artifacts import static_wrapper, versions, wrappers
from toolkit.artifacts.manifest import Entry, Version
from toolkit.deadline import Cancellation
from toolkit.errors import Interrupted, NodeConfigError, RolledBack, StepError
from toolkit.node import elf, files, procfs
from toolkit.reconcile import preflight, transaction, uninstall
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan, make_plan
from toolkit.runtime import health, in_use, restart
from toolkit.runtime.client import cri
from toolkit.state import restart_budget
from toolkit.state.record import Baseline

pytestmark = pytest.mark.usefixtures("no_fsync")

OURS: Final = frozenset({"nvidia", "nvidia-cdi", "nvidia-legacy"})
PROBES: Final = (".toolkit-probe", ".toolkit-probe-renamed")
NO_RUNC: Final = (
    "the low-level runtime runc, which the toolkit's handlers call, was not found on the node"
)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for a sick runtime to become well."""
    monkeypatch.setattr(preflight, "SOON", 0.1)


@pytest.fixture
def runc(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run the runtime with one directory on its PATH, whose runc is the only one; return that."""
    monkeypatch.setitem(fake_node.ENVIRONMENT, "PATH", "/nonexistent")
    monkeypatch.setattr(preflight, "SEARCH_PATH", "/nonexistent")
    with runtime(node):
        yield node.root.parent / "d/bin/runc"


def spent(node: Node, times: int) -> None:
    """Let the runtime have been restarted some times just now."""
    notes = {
        "format": 1,
        "boot": procfs.boot_id(),
        "restarts": [restart_budget.uptime() - 1] * times,
    }
    node.pid_file.with_name("restarts.json").write_text(json.dumps(notes), encoding="utf-8")


def seen(node: Node, **options: str) -> tuple[Context, Plan]:
    context = Context(settings=node.settings(**options), adapter=containerd, stop=Cancellation())
    return context, make_plan(context)


def look(node: Node, **options: str) -> Baseline:
    return preflight.check(*seen(node, **options))


def findings(node: Node, **options: str) -> list[str]:
    """Return what is told to be in the way; see that it is told in one line and touches nothing."""
    before = files_of(node)
    with pytest.raises(StepError) as caught:
        look(node, **options)
    assert files_of(node) == before
    assert left(node) == []
    assert caught.value.exit_code == 4
    told = str(caught.value)
    assert "\n" not in told
    assert told.endswith(": nothing was changed")
    return told.removesuffix(": nothing was changed").split("; ")


def files_of(node: Node) -> dict[str, fake_node.Trace]:
    """Return everything about every file and link, and the mode of every directory."""
    found = fake_node.snapshot(node.root, node.pid_file, node.socket)
    return {
        name: trace._replace(mtime=0) if (node.root / name).is_dir() else trace
        for name, trace in found.items()
    }


def left(node: Node) -> list[Path]:
    return [path for name in PROBES for path in node.root.rglob(name)]


def refused(node: Node, prefix: Sequence[str], **options: str) -> str:
    """Run the program where something is mounted, and return why it changed nothing."""
    before = files_of(node)
    done = fake_node.cli("-n", *node.options(**options), prefix=prefix)
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.endswith(": nothing was changed")
    assert files_of(node) == before
    return line.removeprefix("error: ").removesuffix(": nothing was changed")


# --- nothing in the way -------------------------------------------------------------------------


def test_how_the_runtime_is_now_is_what_it_is_held_against_later(
    node: Node, cri_runtime: Daemon
) -> None:
    found = look(node)
    assert (len(found.identity), found.boot) == (64, procfs.boot_id())
    assert replace(found, identity="", boot="") == Baseline(
        has=Effective(
            handlers=frozenset({"runc"}),
            default="runc",
            sandbox_image="registry.k8s.io/pause:3.9",
            systemd_cgroup=frozenset({"runc"}),
        ),
        files=Effective(),  # nobody was asked what the files make
        was_healthy=True,
        supports_cri=True,
        has_network=True,
    )


def test_what_the_runtime_lacks_now_is_remembered_as_lacking(
    node: Node, cri_runtime: Daemon
) -> None:
    say(node, network=False)
    assert look(node).has_network is False
    say(node, unimplemented=True)
    found = look(node)
    assert (found.was_healthy, found.supports_cri, found.has_network) == (True, False, False)
    assert found.has == Effective()


def test_to_look_touches_no_file_and_leaves_nothing_behind(node: Node, cri_runtime: Daemon) -> None:
    before = files_of(node)
    look(node)
    assert files_of(node) == before
    assert left(node) == []
    assert cri_runtime.signals() == []


def test_nothing_is_made_in_a_directory_of_the_runtime(node: Node, cri_runtime: Daemon) -> None:
    node.drop_in.parent.mkdir()
    before = [fake_node.trace(place) for place in (node.config.parent, node.drop_in.parent)]
    look(node)
    assert [fake_node.trace(place) for place in (node.config.parent, node.drop_in.parent)] == before


def test_probes_of_a_killed_run_are_swept_by_the_next(node: Node, cri_runtime: Daemon) -> None:
    node.install_dir.mkdir(parents=True)
    for name in PROBES:
        (node.install_dir / name).touch()
    transaction.converge(node.settings(), containerd)
    assert left(node) == []


def test_probes_are_swept_from_where_they_were_made(tmp_path: Path) -> None:
    (tmp_path / PROBES[0]).touch()
    (tmp_path / "other").touch()
    preflight.sweep(tmp_path / "usr/local/nvidia")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    preflight.sweep(tmp_path)


# --- the file system ----------------------------------------------------------------------------


def mounted(place: Path, options: str) -> tuple[str, ...]:
    """Return a prefix under which a directory is a small file system with the same content."""
    script = (
        'mkdir "$2"\ncp -a "$1/." "$2"\n'
        f'mount -t tmpfs -o {options} tmpfs "$1"\ncp -a "$2/." "$1"\nrm -r "$2"\nshift 2'
    )
    return fake_node.in_mounts(script, str(place), f"{place}.copy")


def refused_where(node: Node, prefix: Sequence[str]) -> str:
    """Run the runtime and the program where something is mounted; return why it was refused."""
    with runtime(node, prefix=prefix) as cri_runtime:
        return refused(node, fake_node.beside(cri_runtime))


@fake_node.needs_root
def test_a_disk_that_is_too_small_for_the_toolkit_is_told_with_what_is_needed(node: Node) -> None:
    node.install_dir.mkdir(parents=True)
    _, found = seen(node)
    assert found.version is not None
    needed = versions.room_needed(found.version, node.install_dir) + (1 << 20)
    needed += len(fake_node.KUBEADM) + (64 << 10)  # what leads back lies there as well
    said = refused_where(node, mounted(node.install_dir, "size=512k"))
    assert (
        said == f"{node.install_dir} has 512 KiB of free space, and {needed >> 10} KiB are needed"
    )


@fake_node.needs_root
def test_a_disk_that_is_too_small_for_the_configuration_is_told(node: Node) -> None:
    said = refused_where(node, mounted(node.config.parent, "size=40k"))
    assert said.startswith(f"{node.config.parent} has ")
    assert said.endswith(" KiB are needed")


@pytest.mark.parametrize("lacks", [0, 1])
def test_one_disk_has_to_have_room_for_everything_that_will_lie_on_it(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, lacks: int
) -> None:
    context, found = seen(node)
    (change,) = found.config_plan.changes
    assert found.version is not None
    assert change.after is not None
    toolkit = versions.room_needed(found.version, node.install_dir) + (1 << 20)
    room = toolkit + len(change.after) + len(fake_node.KUBEADM) + 2 * (64 << 10) - lacks
    disk = SimpleNamespace(f_bavail=room, f_frsize=1, f_files=0, f_flag=0)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    if lacks:
        with pytest.raises(StepError, match=rf"^{node.config.parent} has \d+ KiB of free space, "):
            preflight.check(context, found)
    else:
        assert preflight.check(context, found).was_healthy


@fake_node.needs_root
def test_a_disk_without_inodes_is_told(node: Node) -> None:
    node.install_dir.mkdir(parents=True)
    said = refused_where(node, mounted(node.install_dir, "size=64m,nr_inodes=1"))
    assert said.startswith(f"{node.install_dir} has no inodes left")


@fake_node.needs_root
def test_a_disk_on_which_no_program_runs_is_told(node: Node) -> None:
    node.install_dir.mkdir(parents=True)
    said = refused_where(node, mounted(node.install_dir, "size=64m,noexec"))
    assert said == f"no program can be run in {node.install_dir}: its file system is mounted noexec"


@fake_node.needs_root
def test_a_disk_that_is_read_only_is_told(node: Node, cri_runtime: Daemon) -> None:
    node.install_dir.mkdir(parents=True)
    said = refused(node, fake_node.read_only(node.install_dir))
    assert said == f"{node.install_dir} is on a read-only file system"
    said = refused(node, fake_node.read_only(node.config.parent))
    assert said == f"{node.config} is on a read-only file system"


def generated(node: Node, kind: str) -> tuple[Path, str, str]:
    """Make a root config that only its generator changes; return its path, mounts and reason."""
    store = node.root / "nix/store/0b1c-config.toml"
    store.parent.mkdir(parents=True)
    if kind == "immutable":
        return node.config, "", "cannot be replaced: it has the attribute i or a (lsattr)"
    why = "is on a read-only file system"
    if kind == "link":
        node.config.rename(store)
        node.config.symlink_to(store)
        script = 'mount --bind "$1" "$1"\nmount -o remount,ro,bind "$1"\n'
        return store.parent, script, f"(a link to {store}) {why}"
    if kind == "ConfigMap":
        data = node.config.parent / "..2026_11_29"
        data.mkdir()
        node.config.rename(data / "config.toml")
        (node.config.parent / "..data").symlink_to(data.name)
        node.config.symlink_to("..data/config.toml")
        why = f"(a link to {node.config.parent / '..data/config.toml'}) {why}"
    return node.config.parent, 'mount --bind "$1" "$1"\nmount -o remount,ro,bind "$1"\n', why


@fake_node.needs_root
@pytest.mark.parametrize("kind", ["file", "link", "ConfigMap", "immutable"])
@pytest.mark.parametrize("id_", ["nixos", "debian"])
def test_a_config_that_is_generated_is_named_with_the_way_of_that_system(
    node: Node, cri_runtime: Daemon, kind: str, id_: str
) -> None:
    """Nothing is changed, and `plan` and `diagnose` do not advise a run that cannot work."""
    release = node.root / "os-release"
    release.write_text(f'NAME="X"\nID={id_}\n', encoding="utf-8")
    place, script, why = generated(node, kind)
    script += 'mount --bind "$2" "$(realpath /etc/os-release)"\nshift\nshift\n'
    prefix = fake_node.in_mounts(script, str(place), str(release))
    before = files_of(node)
    hint = (
        "virtualisation.containerd.settings"
        if id_ == "nixos"
        else "add the handlers where this file is"
    )
    with fake_node.immutable(node.config) if kind == "immutable" else nullcontext():
        done = fake_node.cli("-n", *node.options(), prefix=prefix)
        planned = fake_node.cli("plan", *node.options(), prefix=prefix)
        found = fake_node.cli("diagnose", *node.options(), prefix=prefix)
    assert done.returncode == 4
    assert f"error: {node.config} {why}: nothing was changed\n" in done.stderr
    assert "hint: " in done.stderr
    assert hint in done.stderr
    assert "--no-runtime-config" in done.stderr
    assert planned.stdout.startswith(f"# `run` would refuse: {node.config} {why} (")
    assert planned.stdout.splitlines()[-1].startswith("# `run` would refuse to make this change: ")
    assert hint in planned.stdout.splitlines()[0]
    assert f"`run` would refuse: {node.config} {why}" in found.stdout
    assert hint in found.stdout
    assert "run `nvidia-toolkit run`; " not in found.stdout
    assert files_of(node) == before
    assert cri_runtime.signals() == []


@fake_node.needs_root
@pytest.mark.parametrize(
    ("id_", "restart_method"),
    [
        ("flatcar", "use --toolkit-install-dir=/opt/nvidia"),
        ("cos", "--toolkit-install-dir=/home/kubernetes/bin/nvidia"),
        ("rhcos", "use --toolkit-install-dir=/usr/local/nvidia, which is writable"),
        ("talos", "install the system extension nvidia-container-toolkit instead"),
        ("bottlerocket", "use an image of an nvidia variant"),
        ("debian", "or choose another --toolkit-install-dir"),
    ],
)
def test_p10_where_nothing_can_be_written_the_way_of_that_system_is_told(
    node: Node, cri_runtime: Daemon, id_: str, restart_method: str
) -> None:
    """P10: found before anything is touched, with a hint; elsewhere half of it is done."""
    node.install_dir.mkdir(parents=True)
    release = node.root / "os-release"
    release.write_text(f'NAME="X"\nID={id_}\n', encoding="utf-8")
    before = files_of(node)
    script = (
        'mount --bind "$1" "$1"\nmount -o remount,ro,bind "$1"\n'
        'mount --bind "$2" "$(realpath /etc/os-release)"\nshift\nshift\n'
    )
    prefix = fake_node.in_mounts(script, str(node.install_dir), str(release))
    done = fake_node.cli("-n", *node.options(), prefix=prefix)
    assert done.returncode == 4
    assert f"{node.install_dir} is on a read-only file system: nothing was changed" in done.stderr
    assert restart_method in done.stderr
    assert "hint: " in done.stderr
    assert files_of(node) == before
    assert cri_runtime.signals() == []


@fake_node.needs_root
@pytest.mark.parametrize("name", ["node", "a node\twith\\odd ä", "linked"])
def test_a_config_that_is_mounted_by_itself_is_told(tmp_path: Path, name: str) -> None:
    node = fake_node.make_node(tmp_path / name)
    say(node)
    real = node.config
    if name == "linked":
        real = node.root / "etc/real.toml"
        node.config.rename(real)
        node.config.symlink_to("../real.toml")
    with runtime(node):
        prefix = fake_node.in_mounts('mount --bind "$1" "$1"\nshift', str(real))
        said = refused(node, prefix)
    assert os.path.realpath(said.partition(" is a mount point")[0]) == str(real)
    assert said.endswith(" is a mount point and cannot be replaced: mount its directory instead")


@fake_node.needs_root
def test_a_directory_that_is_mounted_is_no_obstacle(node: Node, cri_runtime: Daemon) -> None:
    prefix = fake_node.in_mounts('mount --bind "$1" "$1"\nshift', str(node.config.parent))
    done = fake_node.cli("-n", *node.options(), prefix=prefix)
    assert done.returncode == 0, done.stderr


def test_a_file_where_a_directory_should_be_is_told(node: Node, cri_runtime: Daemon) -> None:
    node.install_dir.parent.mkdir(parents=True)
    node.install_dir.touch()
    assert findings(node) == [f"{node.install_dir} is no directory"]


def test_a_file_system_that_cannot_be_looked_at_is_told(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def statvfs(path: Any) -> os.statvfs_result:
        if path == node.config.parent:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert findings(node)[0] == f"{node.config.parent} cannot be examined: Input/output error"


# --- the probe ----------------------------------------------------------------------------------


def probe_is(monkeypatch: pytest.MonkeyPatch, program: bytes | None) -> None:
    monkeypatch.setattr(elf, "minimal", lambda: program)


def test_a_probe_that_fails_is_told(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_is(monkeypatch, b"#!/bin/sh\nexit 3\n")
    assert findings(node) == [
        f"no program can be run in {node.root}: the probe program exited with 3"
    ]


def test_a_probe_that_cannot_be_started_is_told(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_is(monkeypatch, b"no program at all")
    (said,) = findings(node)
    assert said.startswith(
        f"no program can be run in {node.root}: `{node.root}/{PROBES[1]}` cannot be started: "
    )


def test_a_probe_is_where_the_toolkit_will_lie(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = node.root.parent / "here"
    node.install_dir.mkdir(parents=True)
    probe_is(monkeypatch, f'#!/bin/sh\necho "$0" > {here}\n'.encode())
    look(node)
    assert here.read_text(encoding="utf-8") == f"{node.install_dir}/{PROBES[1]}\n"


def test_where_there_is_no_program_for_this_machine_none_is_run(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_is(monkeypatch, None)
    assert look(node).was_healthy


def test_the_smallest_program_runs(node: Node, tmp_path: Path) -> None:
    program = elf.minimal()
    if program is None:
        pytest.skip("there is none for this machine")
    path = tmp_path / "probe"
    path.write_bytes(program)
    path.chmod(0o755)
    assert subprocess.run([str(path)], check=False).returncode == 0


def test_a_file_system_that_cannot_rename_is_told(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def rename(old: Any, new: Any, **named: Any) -> None:
        if str(new).endswith(PROBES[1]):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(old, new, **named)

    monkeypatch.setattr(os, "rename", rename)
    assert findings(node) == [
        f"files in {node.root} cannot be written and renamed: Operation not permitted"
    ]


def test_a_file_system_that_cannot_be_written_is_told(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def open_(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).endswith(PROBES[0]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", open_)
    assert findings(node) == [
        f"files in {node.root} cannot be written and renamed: Input/output error"
    ]


def test_a_version_that_is_there_already_needs_no_probe(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction.converge(node.settings(), containerd)
    probe_is(monkeypatch, b"#!/bin/sh\nexit 3\n")
    look(node, runtime_class="gpu")


# --- the low-level runtime ----------------------------------------------------------------------


def test_the_low_level_runtime_is_looked_for_on_the_daemon_s_own_path(
    node: Node, runc: Path
) -> None:
    assert look(node).was_healthy
    runc.chmod(0o644)
    assert findings(node) == [NO_RUNC]
    runc.unlink()
    assert findings(node) == [NO_RUNC]


def test_the_low_level_runtime_is_looked_for_where_programs_usually_are_as_well(
    node: Node, runc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runc.rename(node.root / "runc")
    monkeypatch.setattr(preflight, "SEARCH_PATH", str(node.root))
    assert look(node).was_healthy


def test_the_low_level_runtime_of_the_default_handler_is_the_one_that_counts(
    node: Node, cri_runtime: Daemon
) -> None:
    own = node.root / "opt/own-runc"
    cgroup = b"SystemdCgroup = true"
    text = fake_node.KUBEADM.replace(cgroup, f'BinaryName = "{own}"\n        '.encode() + cgroup)
    assert text != fake_node.KUBEADM
    node.config.write_bytes(text)
    assert findings(node) == [
        f"the low-level runtime {own}, which the toolkit's handlers call, was not found on the node"
    ]
    own.parent.mkdir()
    fake_node.write_program(own, "#!/bin/sh\n")
    assert look(node).was_healthy


NO_SHELL: Final = "the node has no /bin/sh, which the toolkit's wrappers need"


@pytest.mark.parametrize("is_static", [False, True], ids=["scripts", "static programs"])
def test_scripts_need_a_shell_on_the_node_and_programs_do_not(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch, *, is_static: bool
) -> None:
    del cri_runtime
    monkeypatch.setattr(wrappers, "SHELL", "/nonexistent/sh")
    template = programs.wrapper() if is_static else None
    monkeypatch.setattr(static_wrapper, "template", lambda: template)
    blocked = preflight.forecast(*seen(node)).blocked
    told = [(each.problem, each.hint) for each in blocked if "/nonexistent/sh" in each.problem]
    assert told == (
        []
        if is_static
        else [
            (
                NO_SHELL.replace("/bin/sh", "/nonexistent/sh"),
                (
                    "use the image or a package of this program: they have static wrappers for"
                    " x86_64 and aarch64"
                ),
            )
        ]
    )


def test_files_that_change_without_the_configuration_need_no_low_level_runtime(
    node: Node, runc: Path
) -> None:
    transaction.converge(node.settings(), containerd)
    runc.unlink()
    fake_node.make_artifacts(node.source, release="2")
    transaction.converge(node.settings(), containerd)
    assert (node.toolkit / "libnvidia-container.so.1.2").exists()


# --- the runtime --------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("manner", "why"),
    [
        (
            {"ready": False},
            "the runtime is not ready: RuntimeReady is false: ContainerdNotReady: as the test",
        ),
        ({"cri_error": "no space left"}, "its CRI plugin failed: no space left"),
    ],
    ids=["not ready", "CRI failed"],
)
def test_a_sick_runtime_is_left_alone_but_for_repair(
    node: Node, cri_runtime: Daemon, manner: dict[str, Any], why: str
) -> None:
    say(node, **manner)
    (said,) = findings(node)
    assert said.startswith(f"the runtime is already unhealthy: {why}")
    assert said.endswith(" (use --ignore-unhealthy to continue anyway)")
    assert cri_runtime.signals() == []
    found = look(node, ignore_unhealthy="true")
    assert found.was_healthy is False


def test_a_runtime_that_is_only_slow_to_become_well_is_waited_for(
    node: Node, cri_runtime: Daemon
) -> None:
    say(node, ready=False)
    asked = 0
    real: Callable[..., Any] = health.query

    def once(*words: Any, **named: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 3:
            say(node)
        return real(*words, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.runtime.health.query", once)
        assert look(node).was_healthy
    assert asked >= 3


@pytest.mark.usefixtures("hasty")
def test_new_files_are_not_installed_beside_a_sick_runtime(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "SOON", 0.1)
    transaction.converge(node.settings(), containerd)
    say(node, ready=False)
    fake_node.make_artifacts(node.source, release="2")
    node.pid_file.with_name("ready.json").unlink()  # it goes with the runtime's health
    (said,) = findings(node)
    assert said.startswith("the runtime is already unhealthy: the runtime is not ready: ")
    # With --ignore-unhealthy it is tried, but what the runtime does not call well is no success.
    link = os.readlink(node.toolkit)
    with pytest.raises(RolledBack, match="RuntimeReady is false"):
        transaction.converge(node.settings(ignore_unhealthy="true"), containerd)
    assert os.readlink(node.toolkit) == link
    assert cri_runtime.signals() == ["SIGHUP"]


def test_new_files_are_not_installed_beside_a_runtime_that_is_down(node: Node) -> None:
    with runtime(node):
        transaction.converge(node.settings(), containerd)
    fake_node.make_artifacts(node.source, release="2")
    (said,) = findings(node)
    assert said.startswith(f"no process listens on {node.socket}: ")
    transaction.converge(node.settings(restart_mode="none"), containerd)
    assert (node.toolkit / "libnvidia-container.so.1.2").exists()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "options", [{"restart_mode": "none"}, {"no_runtime_config": "true"}], ids=str
)
def test_a_sick_runtime_is_no_obstacle_where_it_is_left_to_others(
    node: Node, cri_runtime: Daemon, options: dict[str, str]
) -> None:
    transaction.converge(node.settings(), containerd)
    say(node, ready=False)
    fake_node.make_artifacts(node.source, release="2")
    transaction.converge(node.settings(**options), containerd)
    assert (node.toolkit / "libnvidia-container.so.1.2").exists()
    assert cri_runtime.signals() == ["SIGHUP"]


def test_a_runtime_that_lacks_what_its_files_say_is_told_with_new_files(
    node: Node, cri_runtime: Daemon
) -> None:
    transaction.converge(node.settings(), containerd)
    say(node, handlers=["runc"])
    fake_node.make_artifacts(node.source, release="2")
    real: Callable[..., float] = restart.perform

    def perform(*words: Any) -> float:
        say(node)
        return real(*words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restart, "perform", perform)
        transaction.converge(node.settings(), containerd)
    assert (node.toolkit / "libnvidia-container.so.1.2").exists()
    assert cri_runtime.signals() == ["SIGHUP", "SIGHUP"]


def test_a_budget_that_is_used_up_is_told(node: Node, cri_runtime: Daemon) -> None:
    spent(node, 3)
    (said,) = findings(node)
    assert said.startswith(
        "the runtime was restarted 3 times within 600 s, and --restart-budget is 3: next restart"
        " allowed in "
    )
    assert cri_runtime.signals() == []
    assert look(node, restart_budget="4").was_healthy
    assert look(node, restart_budget="0").was_healthy
    assert look(node, restart_window="0.5").was_healthy


def test_a_restart_that_could_not_be_counted_is_told(node: Node, cri_runtime: Daemon) -> None:
    notes = node.pid_file.with_name("restarts.json")
    notes.mkdir()
    assert findings(node) == [f"{notes}, the file that counts restarts, is a directory"]
    assert cri_runtime.signals() == []
    assert look(node, restart_budget="0").was_healthy
    assert look(node, restart_mode="none").was_healthy


@fake_node.needs_root
def test_a_full_disk_on_which_a_restart_could_not_be_counted_is_told(
    node: Node, cri_runtime: Daemon
) -> None:
    elsewhere = node.root.parent / "notes"
    elsewhere.mkdir()
    # There is room for the lock, and for nothing more.
    script = (
        'mount -t tmpfs -o size=8k tmpfs "$1"\n'
        'echo 1 > "$1/toolkit.pid"\nhead -c 4096 /dev/zero > "$1/full"\nshift'
    )
    said = refused(
        node, fake_node.in_mounts(script, str(elsewhere)), pid_file=str(elsewhere / "toolkit.pid")
    )
    assert said == f"{elsewhere} has 0 KiB of free space, and 4 KiB are needed"
    assert cri_runtime.signals() == []


def test_a_budget_that_is_used_up_is_no_obstacle_where_nothing_is_restarted(
    node: Node, cri_runtime: Daemon
) -> None:
    transaction.converge(node.settings(), containerd)
    spent(node, 3)
    assert transaction.converge(node.settings(), containerd).is_noop
    fake_node.make_artifacts(node.source, release="2")
    transaction.converge(node.settings(), containerd)
    transaction.converge(node.settings(runtime_class="gpu", restart_mode="none"), containerd)
    assert cri_runtime.signals() == ["SIGHUP"]


@pytest.mark.usefixtures("hasty")
def test_a_revert_is_kept_neither_by_the_budget_nor_by_a_missing_low_level_runtime(
    node: Node, runc: Path
) -> None:
    transaction.converge(node.settings(), containerd)
    spent(node, 3)
    runc.unlink()
    uninstall.revert(node.settings(), containerd)
    assert node.config.read_bytes() == fake_node.KUBEADM
    assert not node.install_dir.exists()


@pytest.mark.usefixtures("hasty")
def test_a_revert_is_not_kept_by_a_sick_runtime(node: Node, cri_runtime: Daemon) -> None:
    transaction.converge(node.settings(), containerd)
    say(node, ready=False)
    # It does not become well by that either, but there is nothing to go back to.
    with pytest.raises(StepError) as caught:
        uninstall.revert(node.settings(reload_timeout="0.3"), containerd)
    assert not isinstance(caught.value, RolledBack)
    assert node.config.read_bytes() == fake_node.KUBEADM


def test_a_runtime_that_nobody_finds_is_told_with_the_way_out(node: Node) -> None:
    with pytest.raises(StepError) as caught:
        look(node)
    assert f"the socket {node.socket} does not exist" in str(caught.value)
    assert (
        caught.value.hint
        == "with --restart-mode none the files are changed and the restart is left to you"
    )
    found = look(node, restart_mode="none")
    assert replace(found, identity="", boot="") == Baseline(was_healthy=False)


@pytest.mark.parametrize("runtimes", ["null", "[]", "5"])
def test_a_revert_of_a_file_whose_effect_is_not_understood_is_exit_3(
    tmp_path: Path, runtimes: str
) -> None:
    node = fake_node.make_node(tmp_path / "node", None)
    file = node.root / "etc/daemon.json"
    settings = node.settings(runtime="docker", config=str(file), restart_mode="none")
    transaction.converge(settings, docker)
    assert b'"default-runtime": "nvidia"' in file.read_bytes()
    file.write_text(f'{{"default-runtime": "nvidia", "runtimes": {runtimes}}}', encoding="utf-8")
    with suppress(NodeConfigError):
        uninstall.revert(settings, docker)


# --- labels -------------------------------------------------------------------------------------


@pytest.fixture
def enforcing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let SELinux be in force, with a label on every file."""
    switch = tmp_path / "enforce"
    switch.write_text("1", encoding="ascii")
    monkeypatch.setattr(preflight, "SELINUX", switch)
    monkeypatch.setattr(files, "label", lambda _: b"system_u:object_r:container_config_t:s0\0")
    return switch


@pytest.mark.parametrize("answer", ["no", "yes", "not in force"])
def test_a_label_that_cannot_be_set_is_told(
    node: Node, cri_runtime: Daemon, enforcing: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def setxattr(*_: Any, **__: Any) -> None:
        if answer != "yes":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "setxattr", setxattr)
    if answer == "not in force":
        enforcing.write_text("0", encoding="ascii")
    if answer != "no":
        assert look(node).was_healthy
        return
    (said,) = findings(node)
    assert said.startswith("the SELinux label system_u:object_r:container_config_t:s0")
    assert said.endswith(f"Invalid argument): {node.config}")


# --- several at once ----------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
def test_everything_that_is_in_the_way_is_told_at_once(
    node: Node, runc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_is(monkeypatch, b"#!/bin/sh\nexit 3\n")
    runc.unlink()
    say(node, ready=False)
    spent(node, 5)
    said = findings(node)
    assert len(said) == 4
    assert said[0] == f"no program can be run in {node.root}: the probe program exited with 3"
    assert said[1] == NO_RUNC
    assert said[2].startswith("the runtime was restarted 5 times within 600 s, ")
    assert said[3].startswith("the runtime is already unhealthy: ")


def test_an_obstacle_is_told_beside_the_others(node: Node) -> None:
    node.install_dir.parent.mkdir(parents=True)
    node.install_dir.touch()
    said = findings(node)
    assert said[0] == f"{node.install_dir} is no directory"
    assert said[1].startswith(f"the socket {node.socket} does not exist")


@fake_node.needs_root
def test_two_file_systems_in_the_way_are_told_in_one_line(node: Node, cri_runtime: Daemon) -> None:
    node.install_dir.mkdir(parents=True)
    script = (
        'for d in "$1" "$2"; do mount --bind "$d" "$d"; mount -o remount,bind,ro "$d";'
        " done\nshift 2"
    )
    prefix = fake_node.in_mounts(script, str(node.install_dir), str(node.config.parent))
    said = refused(node, prefix)
    assert said == "; ".join(
        f"{place} is on a read-only file system" for place in (node.config, node.install_dir)
    )


# --- a handler that would go --------------------------------------------------------------------


def test_an_install_with_another_runtime_class_takes_no_handler_from_under_a_pod(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that got it as the default misses nothing: it is the same program by another name."""
    transaction.converge(node.settings(), containerd)
    before = fake_node.snapshot(node.root, node.socket, node.pid_file)
    pods = pods_are(monkeypatch, training="nvidia", cdi="nvidia-cdi", inference="")
    note = node.root.parent / "0123abc/runtime"
    note.parent.mkdir()
    note.write_text(f"{node.toolkit}/nvidia-container-runtime", encoding="utf-8")
    adapter = replace(containerd, task_files=lambda *_: (str(note),))
    with pytest.raises(StepError) as caught:
        transaction.converge(node.settings(runtime_class="gpu"), adapter)
    assert (
        str(caught.value)
        == "1 container still uses nvidia, which would be removed: default/training (stop them"
        " first): nothing was changed"
    )
    assert fake_node.snapshot(node.root, node.socket, node.pid_file) == before
    pods.pop(0)
    transaction.converge(node.settings(runtime_class="gpu"), adapter)
    assert {"gpu", "nvidia-cdi"} <= set(cri.status(node.socket, timeout=5).handlers or ())


def test_of_a_runtime_that_is_down_what_its_shims_noted_keeps_a_handler(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = node.settings(runtime_class="gpu", restart_mode="none")
    transaction.converge(node.settings(restart_mode="none"), containerd)
    note = node.root.parent / "0123abc/runtime"
    note.parent.mkdir()
    note.write_text(f"{node.toolkit}/nvidia-container-runtime", encoding="utf-8")
    adapter = replace(containerd, task_files=lambda *_: (str(note),))
    with pytest.raises(
        StepError, match=r"^1 container still uses nvidia, which would be removed: 0123abc "
    ):
        transaction.converge(settings, adapter)
    note.unlink()
    transaction.converge(settings, adapter)


def test_nobody_is_asked_who_uses_a_handler_where_none_goes(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction.converge(node.settings(), containerd)
    monkeypatch.setattr(in_use, "using", lambda *_, **__: pytest.fail("it was asked"))
    transaction.converge(node.settings(), containerd)
    transaction.converge(node.settings(set_as_default="false"), containerd)
    fake_node.make_artifacts(node.source, release="2")
    transaction.converge(node.settings(), containerd)


def test_a_stop_while_it_is_asked_is_no_failure(
    node: Node, cri_runtime: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction.converge(node.settings(), containerd)
    stop = Cancellation()

    def using(*_: object, **__: object) -> tuple[str, ...]:
        stop._note(signal.SIGTERM, None)
        raise StepError("it was not answered within 1 s")

    monkeypatch.setattr(in_use, "using", using)
    with pytest.raises(Interrupted):
        transaction.converge(node.settings(runtime_class="gpu"), containerd, stop)


@pytest.mark.parametrize("name", ["docker", "crio"])
def test_the_other_dialects_lose_no_handler_either(
    node: Node, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    adapter = registry.ADAPTERS[RuntimeName(name)]
    assert adapter is not None
    options = {"runtime": name, "restart_mode": "none", "drop_in_config": ""}
    options |= {"hooks_dir": f"{node.root}/hooks"} if name == "crio" else {}
    node.config.unlink()
    transaction.converge(node.settings(**options), adapter)
    asked: list[frozenset[str]] = []

    def using(place: Any, *_: object, **__: object) -> tuple[str, ...]:
        asked.append(place.desired.names)
        return ("default/training", "default/inference")

    monkeypatch.setattr(in_use, "using", using)
    whole = {"config_mode": "hook"} if name == "crio" else {"runtime_class": "gpu"}
    with pytest.raises(StepError, match=r"^2 containers still use nvidia"):
        transaction.converge(node.settings(**options, **whole), adapter)
    assert asked == [OURS if name == "crio" else frozenset({"nvidia"})], (
        "in hook mode all of them would go"
    )


def pods_are(monkeypatch: pytest.MonkeyPatch, **handlers: str) -> list[cri.Sandbox]:
    """Let the runtime list pods by name, each with its handler."""
    pods = [
        cri.Sandbox(id=name, name=name, namespace="default", handler=handler, ready=True)
        for name, handler in handlers.items()
    ]
    monkeypatch.setattr(cri, "sandboxes", lambda *_, **__: list(pods))
    monkeypatch.setattr(cri, "sandbox_info", lambda *_, **__: {})
    return pods


# --- how much room is needed --------------------------------------------------------------------


def test_only_what_is_not_there_already_needs_room(tmp_path: Path) -> None:
    there = tmp_path / "toolkit"
    there.mkdir()
    source = tmp_path / "source"
    source.write_bytes(b"x" * 5000)
    version = Version(
        digest="1",
        entries=(
            Entry(name="file", mode=0o644, content=source),
            Entry(name="bytes", mode=0o644, content=b"y" * 300),
            Entry(name="link", mode=0o777, content="file"),
        ),
        differing=(),
    )
    assert versions.room_needed(version, tmp_path) == 5000 + 300 + len("file")
    (there / "file").write_bytes(b"x" * 5000)
    (there / "file").chmod(0o644)
    (there / "link").symlink_to("file")
    assert versions.room_needed(version, tmp_path) == 300
    (there / "file").chmod(0o600)
    assert versions.room_needed(version, tmp_path) == 5300
    nothing = replace(version, entries=())
    assert versions.room_needed(nothing, tmp_path) == 0
