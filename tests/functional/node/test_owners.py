"""Files and directories of this program that another user owns, may write to, or has replaced.

Each test is an attack: what the user left there must not be believed, run, kept or deleted.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import fake_node
from tests.support.fake_node import Node, needs_root
from toolkit.artifacts import versions
from toolkit.cdi import spec
from toolkit.errors import StepError
from toolkit.node import processes
from toolkit.node.host import Host
from toolkit.reconcile import cdi
from toolkit.runtime.supervision import launch
from toolkit.state.liveness import StateFile
from toolkit.state.record import Record
from toolkit.state.restart_budget import Budget

pytestmark = needs_root

_NOBODY: Final = 65534


def options(node: Node, **changed: str | None) -> list[str]:
    return node.options(
        restart_mode="none", pid_file=str(node.root / "run/toolkit/toolkit.pid"), **changed
    )


def run_dir(node: Node) -> Path:
    return node.root / "run/toolkit"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = fake_node.make_node(tmp_path / "node")
    fake_node.name_low_level(node)
    return node


@pytest.fixture
def installed(node: Node) -> Node:
    fake_node.done("run", "--no-daemon", *options(node))
    return node


def everything(node: Node) -> dict[str, Any]:
    """Return what is on a node, apart from the lock, which every command may create."""
    here = (run_dir(node).parent, run_dir(node), run_dir(node) / "toolkit.pid")
    return dict(fake_node.snapshot(node.root, *here))


def owned_by_a_user(path: Path) -> None:
    os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)


def for_everybody(path: Path) -> None:
    path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o002)


def for_a_user_s_group(path: Path) -> None:
    os.chown(path, 0, _NOBODY)
    path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o020)


Change = Callable[[Path], object]
CHANGES: Final = pytest.mark.parametrize(
    "change", [owned_by_a_user, for_everybody, for_a_user_s_group]
)


# --- directories --------------------------------------------------------------------------------


@CHANGES
@pytest.mark.parametrize(
    "which", ["usr/local", "usr/local/nvidia", "usr/local/nvidia/.nvidia-toolkit"]
)
def test_a_directory_that_others_control_is_refused_by_every_command(
    installed: Node, which: str, change: Change
) -> None:
    """Whoever may write there decides what the runtime runs and what a revert restores."""
    change(installed.root / which)
    before = everything(installed)
    for words in (["plan"], ["status"], ["run", "--no-daemon"], ["revert"], ["revert", "--force"]):
        done = fake_node.cli(*words, *options(installed))
        assert done.returncode in {3, 4}, (words, done.stdout, done.stderr)
        assert f"{installed.root / which}" in done.stderr
        assert "chown root:root" in done.stderr
        assert "Traceback" not in done.stderr
    assert everything(installed) == before


@CHANGES
def test_nothing_is_installed_below_a_directory_that_others_control(
    node: Node, change: Change
) -> None:
    (node.root / "usr/local").mkdir(parents=True)
    change(node.root / "usr/local")
    before = everything(node)
    done = fake_node.cli("run", "--no-daemon", *options(node))
    assert done.returncode in {3, 4}, done.stderr
    assert f"{node.root}/usr/local" in done.stderr
    assert everything(node) == before


@CHANGES
def test_a_pod_sees_the_parents_that_the_directory_has_on_the_node(
    node: Node, change: Change
) -> None:
    """The pod has the node's root, and only the directory, below directories of the image."""
    parent = node.root / "mnt"
    (parent / "nvidia").mkdir(parents=True)
    change(parent)
    (node.root / "bin").mkdir(exist_ok=True)
    (node.root / "bin/sh").write_bytes(b"")
    (node.root / "bin/sh").chmod(0o755)
    text = node.config.read_text(encoding="utf-8")
    node.config.write_text(text.replace(f"{node.root}/opt", "/opt"), encoding="utf-8")
    script = 'mount -t tmpfs pod /mnt\nmkdir /mnt/nvidia\nmount --bind "$1" /mnt/nvidia\nshift'
    prefix = fake_node.in_mounts(script, str(parent / "nvidia"))
    words = options(node, host_root=str(node.root), toolkit_install_dir="/mnt/nvidia")
    done = fake_node.cli("run", "--no-daemon", *words, prefix=prefix)
    assert done.returncode == 4, done.stderr
    assert "so nothing is installed in /mnt/nvidia" in done.stderr
    assert "/mnt " in done.stderr
    assert not list((parent / "nvidia").iterdir())
    os.chown(parent, 0, 0)
    parent.chmod(0o755)
    done = fake_node.cli("run", "--no-daemon", *words, prefix=prefix)
    assert " install: " in done.stderr  # it fails there: that is no shell for them


def test_links_and_directories_of_root_s_are_accepted(node: Node) -> None:
    """On ostree /usr/local is a link to /var/usrlocal."""
    (node.root / "var/usrlocal").mkdir(parents=True)
    (node.root / "usr").mkdir()
    (node.root / "usr/local").symlink_to("../var/usrlocal")
    fake_node.done("run", "--no-daemon", *options(node))
    assert (node.root / "var/usrlocal/nvidia/toolkit/nvidia-ctk").exists()
    fake_node.done("revert", *options(node))
    assert not list((node.root / "var/usrlocal").iterdir())


@pytest.mark.parametrize("kind", ["a user's directory", "a user's link", "for everybody"])
def test_a_run_directory_that_others_control_is_not_written_to(node: Node, kind: str) -> None:
    elsewhere = node.root / "elsewhere"
    elsewhere.mkdir()
    if kind == "a user's link":
        run_dir(node).symlink_to(elsewhere)
    else:
        run_dir(node).mkdir()
    (for_everybody if kind == "for everybody" else owned_by_a_user)(run_dir(node))
    before = fake_node.snapshot(node.root)
    for words in (["run", "--no-daemon"], ["revert"]):
        done = fake_node.cli(*words, *options(node))
        assert done.returncode == 4, done.stderr
        assert f"{run_dir(node)}" in done.stderr
        assert "chown root:root" in done.stderr
    assert fake_node.snapshot(node.root) == before


def test_the_lock_does_not_overwrite_a_file_that_it_is_a_hard_link_to(node: Node) -> None:
    """In a sticky directory a user can create a name for a private file of root's."""
    run_dir(node).mkdir()
    run_dir(node).chmod(0o1777)
    victim = node.root / "authorized_keys"
    victim.write_text("a key\n")
    victim.chmod(0o600)
    os.link(victim, run_dir(node) / "toolkit.pid")
    fake_node.cli("run", "--no-daemon", *options(node))
    assert victim.read_text() == "a key\n"
    assert victim.stat().st_nlink == 1


_PARTS: Final = (
    "nvidia-ctk.real",
    "nvidia-container-runtime",
    ".",
    "..",
    ".config/nvidia-container-runtime",
)

# --- the toolkit's files ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "change"),
    [
        *((which, change) for which in _PARTS for change in (owned_by_a_user, for_everybody)),
        *((which, for_a_user_s_group) for which in _PARTS),
        ("libnvidia-container.so.1", owned_by_a_user),  # a link, which has no mode
    ],
)
def test_a_file_of_the_toolkit_that_others_control_is_replaced(
    installed: Node, which: str, change: Change
) -> None:
    path = Path(os.path.normpath(installed.toolkit.resolve() / which))
    change(path)
    inode = path.lstat().st_ino
    status = json.loads(fake_node.done("status", "-o", "json", *options(installed)).stdout)
    assert status["toolkit"]["in_sync"] is False
    assert fake_node.cli("plan", "--exit-code", *options(installed)).returncode == 8
    fake_node.done("run", "--no-daemon", *options(installed))
    status = json.loads(fake_node.done("status", "-o", "json", *options(installed)).stdout)
    assert status["toolkit"]["in_sync"] is True
    for each in (
        installed.toolkit.resolve().parent,
        *installed.toolkit.resolve().parent.rglob("*"),
    ):
        assert each.lstat().st_uid == 0, each
        assert each.is_symlink() or not each.stat().st_mode & 0o022, each
    # Whoever had it open for writing must not have the new file.
    assert which == ".." or path.lstat().st_ino != inode


@pytest.mark.parametrize("change", [owned_by_a_user, for_everybody])
def test_the_next_version_is_not_linked_to_a_file_that_others_control(
    installed: Node, change: Change
) -> None:
    """An unchanged program is shared with the version before."""
    old = installed.toolkit.resolve() / "nvidia-cdi-hook"
    change(old)
    program = installed.source / "usr/bin/nvidia-ctk"
    program.write_text(program.read_text() + "# newer\n")
    fake_node.done("run", "--no-daemon", *options(installed))
    new = installed.toolkit.resolve() / "nvidia-cdi-hook"
    assert new.parent != old.parent
    assert (new.stat().st_uid, stat.S_IMODE(new.stat().st_mode)) == (0, 0o755)
    assert not old.exists() or new.stat().st_ino != old.stat().st_ino


@pytest.mark.parametrize("change", [owned_by_a_user, for_everybody])
@pytest.mark.parametrize("which", ["", "nvidia-ctk"])
def test_a_rollback_does_not_return_to_a_version_that_others_control(
    tmp_path: Path, which: str, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two"):
        (tmp_path / ".toolkit-versions" / name).mkdir(parents=True)
        fake_node.write_program(tmp_path / ".toolkit-versions" / name / "nvidia-ctk", "#!/bin/sh\n")
    (tmp_path / "toolkit").symlink_to(".toolkit-versions/two")
    change(tmp_path / ".toolkit-versions/one" / which)
    assert versions.switch_back(tmp_path, "one", "two", None) != "one"
    assert os.readlink(tmp_path / "toolkit") == ".toolkit-versions/two"
    (said,) = caplog.messages
    assert "is controlled by other users" in said


def test_a_file_that_a_user_added_to_the_toolkit_is_removed(installed: Node) -> None:
    """The wrappers put the directory on the search path for libraries."""
    added = installed.toolkit.resolve() / "libseccomp.so.2"
    added.write_bytes(b"evil")
    owned_by_a_user(added)
    fake_node.done("run", "--no-daemon", *options(installed))
    assert not added.exists()


def test_the_settings_of_a_configuration_that_others_control_are_not_kept(installed: Node) -> None:
    """Keys that an administrator adds to the toolkit's own configuration are kept."""
    (config,) = installed.toolkit.resolve().rglob("config.toml")
    text = config.read_text()
    config.write_text(
        text.replace("[nvidia-container-cli]", '[nvidia-container-cli]\nproof = "/evil"')
    )
    assert "proof" in config.read_text()
    owned_by_a_user(config)
    fake_node.done("run", "--no-daemon", *options(installed))
    (config,) = installed.toolkit.resolve().rglob("config.toml")
    assert config.read_text() == text


def test_a_node_s_own_toolkit_that_others_control_is_not_used(node: Node) -> None:
    directory = node.root / "opt/toolkit"
    directory.mkdir(parents=True)
    for name in fake_node.PROGRAMS:
        fake_node.write_program(directory / name, "#!/bin/sh\n")
    words = options(node, toolkit_bin_dir=str(directory), toolkit_source_root=None)
    words.append("--no-install")
    owned_by_a_user(directory / "nvidia-container-runtime")
    done = fake_node.cli("run", "--no-daemon", *words)
    assert done.returncode == 2, done.stderr
    assert "nvidia-container-runtime belongs to user ID 65534" in done.stderr
    os.chown(directory / "nvidia-container-runtime", 0, 0)
    fake_node.done("run", "--no-daemon", *words)


# --- state files --------------------------------------------------------------------------------


def a_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)


def a_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero never ends


def a_user_s_link(path: Path) -> None:
    """The link leads to a copy that belongs to root."""
    real = path.with_name("copy")
    path.rename(real)
    path.symlink_to(real)
    owned_by_a_user(path)


def huge(path: Path) -> None:
    os.truncate(path, 65 << 20)


KINDS: Final = pytest.mark.parametrize(
    "kind", [owned_by_a_user, for_everybody, a_fifo, a_device, a_user_s_link, huge]
)


@KINDS
def test_a_record_that_others_control_is_not_believed(installed: Node, kind: Change) -> None:
    """It names files and what to write there."""
    kind(installed.state)
    before = everything(installed)
    for words in (["plan"], ["run", "--no-daemon"], ["revert"], ["revert", "--force"]):
        done = fake_node.cli(*words, *options(installed), timeout=20)
        assert done.returncode == 3, (words, done.stderr)
        assert str(installed.state) in done.stderr
        assert done.stderr.count("\n") <= 4
        assert "Traceback" not in done.stderr
    assert everything(installed) == before


def test_the_refusal_of_a_record_says_the_way_out_and_that_works(installed: Node) -> None:
    owned_by_a_user(installed.state)
    done = fake_node.cli("revert", *options(installed))
    assert "belongs to user ID 65534" in done.stderr
    assert "chown root:root" in done.stderr
    os.chown(installed.state, 0, 0)
    fake_node.done("revert", *options(installed))
    assert not installed.install_dir.exists()


def forged(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("kind", [owned_by_a_user, for_everybody, a_user_s_link])
@pytest.mark.parametrize("command", ["revert", "run"])
def test_a_forged_list_of_directories_removes_none(node: Node, command: str, kind: Change) -> None:
    """A killed run leaves it if there is no record yet; a revert removes what it names."""
    victim = node.root / "victim"
    victim.mkdir()
    note = run_dir(node) / "directories.json"
    forged(note, [str(victim)])
    kind(note)
    words = ["run", "--no-daemon"] if command == "run" else [command]
    done = fake_node.done(*words, *options(node))
    assert victim.is_dir()
    assert f"{note} is ignored, since it is not trusted" in done.stderr
    fake_node.done("revert", *options(node))
    assert victim.is_dir()


@pytest.mark.parametrize("named", ["{root}/etc/../victim", "victim"])
def test_a_list_of_directories_removes_only_absolute_paths_without_dots(
    node: Node, named: str
) -> None:
    victim = node.root / "victim"
    victim.mkdir()
    forged(run_dir(node) / "directories.json", [named.format(root=node.root)])
    prefix = ("env", f"--chdir={node.root}")
    environment = {"PYTHONPATH": str(fake_node.CHECKOUT)}
    done = fake_node.cli("revert", *options(node), prefix=prefix, environment=environment)
    assert done.returncode == 0, done.stderr
    assert victim.is_dir()


def test_a_list_of_directories_of_root_s_is_removed(node: Node) -> None:
    (node.root / "empty").mkdir()
    forged(run_dir(node) / "directories.json", [str(node.root / "empty")])
    fake_node.done("revert", *options(node))
    assert not (node.root / "empty").exists()


@KINDS
def test_a_count_of_restarts_that_others_control_is_not_believed(
    installed: Node, kind: Change
) -> None:
    """A user must not block updates by a forged count, nor a command by an endless file."""
    path = run_dir(installed) / "restarts.json"
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    forged(path, {"format": 1, "boot": boot, "restarts": [now] * 60})
    kind(path)
    assert Budget(path=path, most=1, window=3600).restart_refusal() == ""


@KINDS
def test_a_state_of_the_agent_that_others_control_is_not_believed(
    installed: Node, kind: Change
) -> None:
    """A user must not be able to keep a dead agent alive, nor to hang its probe."""
    path = run_dir(installed) / "agent.json"
    forged(path, StateFile().state._asdict())
    argv = ("status", "--live", f"--pid-file={path.parent / 'toolkit.pid'}")
    assert fake_node.cli(*argv).returncode == 0
    kind(path)
    done = fake_node.cli(*argv, timeout=20)
    assert done.returncode == 8, done.stderr
    assert done.stderr.startswith("not alive: ")


@KINDS
def test_a_readiness_record_that_others_control_is_not_believed(
    installed: Node, kind: Change
) -> None:
    path = run_dir(installed) / "ready.json"
    if not path.exists():
        forged(path, {})
    path.chmod(0o644)
    kind(path)
    done = fake_node.cli("status", "--quiet", f"--readiness-file={path}", timeout=20)
    assert done.returncode not in {0, 124}, done.stdout
    assert "Traceback" not in done.stderr
    done = fake_node.cli("status", *options(installed), timeout=20)
    assert done.returncode == 0, done.stderr


@KINDS
def test_an_original_that_others_control_is_not_restored(installed: Node, kind: Change) -> None:
    """It is named by its hash, so only content counts; an endless file does not stop a revert."""
    (original,) = (installed.state.parent / "originals").iterdir()
    kind(original)
    installed_config = installed.config.read_bytes()
    done = fake_node.cli("revert", *options(installed), timeout=20)
    assert "Traceback" not in done.stderr
    assert done.returncode in {0, 3, 4}
    if done.returncode:
        assert str(original) in done.stderr
        assert installed.config.read_bytes() == installed_config


# --- other files --------------------------------------------------------------------------------


@CHANGES
def test_a_directory_that_others_control_gets_no_specification(
    tmp_path: Path, change: Change
) -> None:
    """A CDI specification names what the runtime mounts into a container, and runs as root."""
    directory = tmp_path / "cdi"
    directory.mkdir()
    change(directory)
    path = directory / "management.yaml"
    specification = spec.Specification(path=str(path), local=path, made_of="inputs")
    with pytest.raises(StepError, match=str(directory)) as caught:
        cdi._put(tmp_path / "toolkit", Record(), specification, b"cdiVersion: 0.5.0\n")
    assert "--cdi-output-dir" in caught.value.hint
    assert not path.exists()
    assert not (tmp_path / "toolkit").exists()


def test_a_runtime_s_output_does_not_go_to_what_a_user_linked_to_its_log(tmp_path: Path) -> None:
    directory, victim, pids = tmp_path / "logs", tmp_path / "victim", tmp_path / "pids"
    directory.mkdir()
    victim.touch()
    log, script = directory / "log", tmp_path / "daemon"
    fake_node.write_program(script, f"#!/bin/sh\necho output\necho $$ >>{pids}\nexec sleep 600\n")
    with log.open("w") as stream:
        first = subprocess.Popen([script], cwd=tmp_path, stdout=stream)
    try:
        fake_node.wait_for(lambda: pids.exists() and pids.read_text() != "", "it does not run")
        process = processes.inspect(first.pid)
        assert process is not None
        found = launch.of(Host(root=Path("/")), process)
    finally:
        first.kill()
        first.wait()
    assert found is not None
    assert found.output == str(log)
    log.unlink()
    log.symlink_to(victim)
    owned_by_a_user(directory)
    # The interpreter's own path is that of the process.
    launch.start(Host(root=Path("/")), replace(found, executable=str(script), argv=(str(script),)))
    fake_node.wait_for(lambda: pids.read_text().count("\n") == 2, "it was not started again")
    os.kill(int(pids.read_text().split()[1]), signal.SIGKILL)
    assert victim.read_bytes() == b""


def test_in_a_pod_the_members_of_a_group_are_those_of_the_node(node: Node) -> None:
    """The image knows no group of the node, so each would seem to have no member."""
    root = node.root / "node"
    (root / "etc").mkdir(parents=True)
    (root / "etc/group").write_text(
        "root:x:0:\nops:x:4321:alice\nempty:x:4322:\n", encoding="utf-8"
    )
    (root / "etc/passwd").write_text(
        "root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n", encoding="utf-8"
    )
    place = node.root / "run-of-node"
    place.mkdir()
    place.chmod(0o775)
    options = node.options(host_root=str(root), pid_file=str(place / "toolkit.pid"))
    os.chown(place, 0, 4321)
    refused = fake_node.cli("run", "-n", *options)
    assert "group ID 4321 may write to" in refused.stderr
    assert refused.returncode == 4
    os.chown(place, 0, 4322)
    assert "group ID" not in fake_node.cli("run", "-n", *options).stderr
