"""Attacks by local users: a fake kubelet, a fake runtime, files and locks that others control.

The attackers are real processes of an ordinary user, in the machine's own PID namespace.
"""

from __future__ import annotations

import functools
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support import fake_node
from tests.support.fake_node import NOBODY, Node, needs_root
from toolkit.errors import Locked, StepError
from toolkit.kube import kubelet
from toolkit.node import command, lock, procfs, socket_peer, trust

pytestmark = needs_root

# A server that speaks first, as containerd's gRPC does, under whatever name it was started by.
_SERVER: Final = """
import socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("listens", flush=True)
while True:
    client, _ = server.accept()
    try:
        client.sendall(bytes(9))
        time.sleep(0.2)
    except OSError:
        pass
"""
_ALONE: Final = "TEST_HAS_A_PID_NAMESPACE"
_SLEEPER: Final = "import sys, time; print('ready', flush=True); time.sleep(600)"
_HOLDER: Final = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("holds", flush=True)
time.sleep(600)
"""


@dataclass(kw_only=True)
class Attacker:
    """An ordinary user with a directory of their own, who starts programs under any name."""

    home: Path
    stack: ExitStack
    python: str

    def start(self, name: str, script: str, *words: str, prefix: tuple[str, ...] = NOBODY) -> int:
        """Run a Python script as a process called `name` with these arguments; return its PID."""
        program = self.home / name
        if not program.exists():
            program.symlink_to(self.python)
        source = self.home / f"{name}.py"
        source.write_text(script)
        source.chmod(0o644)
        process = subprocess.Popen(
            [*prefix, str(program), "-I", "-S", str(source), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        assert process.stdout is not None
        self.stack.callback(process.stdout.close)
        assert process.stdout.readline()
        return process.pid


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in its own PID namespace: every other test would see a fake kubelet."""

    @functools.wraps(test)
    def run(*arguments: object, **fixtures: object) -> None:
        if _ALONE in os.environ:
            test(*arguments, **fixtures)
            return
        name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        environment = {
            key: text for key, text in os.environ.items() if not key.startswith("PYTEST_")
        }
        spaces = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
        done = subprocess.run(
            [*spaces, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name],
            env={**environment, _ALONE: "1"}, cwd=fake_node.CHECKOUT,
            capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout

    return run


def _python_for_all() -> str:
    """Return a Python that an ordinary user can run; that of the tests may lie in root's home."""
    for python in ("/usr/bin/python3", os.path.realpath(sys.executable)):
        with suppress(OSError):
            if (
                subprocess.run(
                    [*NOBODY, python, "-I", "-c", ""], check=False, capture_output=True
                ).returncode
                == 0
            ):
                return os.path.realpath(python)
    pytest.skip("no Python here can be run by an ordinary user: apt-get install python3")


@pytest.fixture
def attacker() -> Iterator[Attacker]:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attacker-")))
        os.chown(home, 65534, 65534)
        home.chmod(0o755)
        yield Attacker(home=home, stack=stack, python=_python_for_all())


def everything(node: Node, *more: str) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run every command that looks for the runtime by itself."""
    options = [
        word
        for word in node.options(runtime=None, socket=None, config_source=None, restart_mode="none")
        if not word.startswith(("--config=", "--drop-in"))
    ]
    commands = (["plan"], ["status"], ["detect"], ["diagnose"], ["run", "--no-daemon"], ["revert"])
    return {words[0]: fake_node.cli(*words, *options, *more, timeout=60) for words in commands}


# --- processes ----------------------------------------------------------------------------------


@alone
def test_a_user_s_kubelet_and_runtime_are_ignored_by_every_command(
    node: Node, attacker: Attacker
) -> None:
    """A process of nobody named kubelet names a socket where one named containerd answers."""
    socket = attacker.home / "c.sock"
    daemon = attacker.start("containerd", _SERVER, str(socket))
    fake = attacker.start("kubelet", _SLEEPER, f"--container-runtime-endpoint=unix://{socket}")
    kept = (node.pid_file, node.pid_file.parent)
    before = fake_node.snapshot(node.root, *kept)
    for name, done in everything(node).items():
        text = done.stdout + done.stderr
        assert f"PID {daemon})" not in text, (name, text)
        if name == "detect":
            assert f"kubelet (PID {fake}) is ignored: it runs as user ID 65534" in done.stdout
        if name in {"plan", "run"}:
            assert done.returncode == 2, (name, text)
            assert f"kubelet (PID {fake}) runs as user ID 65534" in done.stderr
    assert fake_node.snapshot(node.root, *kept) == before


def test_a_user_s_runtime_is_not_believed_on_a_socket_that_was_given(
    node: Node, attacker: Attacker
) -> None:
    """Whoever listens is known before anything is said, and the program is never run."""
    socket = attacker.home / "c.sock"
    pid = attacker.start("containerd", _SERVER, str(socket))
    with pytest.raises(socket_peer.Untrusted, match="with user ID 65534"):
        socket_peer.find(socket, frozenset({"containerd"}))
    done = fake_node.cli("run", "--no-daemon", *node.options(socket=str(socket)))
    assert done.returncode == 4
    assert f"PID {pid} listens on it, with user ID 65534" in done.stderr
    assert not node.drop_in.exists()


def test_a_root_s_listener_does_not_lend_its_name_to_a_user_s_process(attacker: Attacker) -> None:
    """The credentials of the answer count, too: a socket may be handed on."""
    socket = attacker.home / "c.sock"
    script = (
        "import os, socket, sys, time\n"
        "server = socket.socket(socket.AF_UNIX); server.bind(sys.argv[1]); server.listen()\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "print('listens', flush=True)\n"
        "while True:\n    client, _ = server.accept(); client.sendall(bytes(9)); time.sleep(0.2)\n"
    )
    attacker.start("containerd", script, str(socket), prefix=())
    with pytest.raises(socket_peer.Untrusted, match="runs as user ID 65534: it is not trusted"):
        socket_peer.find(socket, frozenset({"containerd"}))


@alone
def test_a_kubelet_that_root_runs_for_a_user_is_not_believed(attacker: Attacker) -> None:
    """The real user ID of a program with the set-user-ID bit is that of whoever started it."""
    script = (
        "import os, time; os.setresuid(65534, 0, 0); print('ready', flush=True); time.sleep(600)"
    )
    pid = attacker.start("kubelet", script, "--container-runtime-endpoint=/x", prefix=())
    assert trust.process_problem(pid) == "runs as user ID 65534"
    assert pid in {each.pid for each in kubelet.ignored(Path("/"))}
    assert pid not in {each.pid for each in kubelet.configs(Path("/"))}


@pytest.mark.parametrize("end", ["\r", "\v", "\f", "\x1c", "\x85"], ids=ascii)
def test_a_name_that_looks_like_lines_of_its_status_is_only_a_name(
    attacker: Attacker, end: str
) -> None:
    """The kernel escapes newlines and backslashes in a name, and no other line end."""
    script = (
        "import ctypes, sys, time\n"
        "ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    pid = attacker.start("named", script, f"{end}Uid:\t0\t0\t0\t0")
    assert trust.process_problem(pid) == "runs as user ID 65534"
    pid = attacker.start("named", script, f"{end}CapPrm:\tffff")
    assert procfs.capabilities("CapPrm", pid) == 0


def test_the_name_of_a_mount_point_is_not_taken_for_others(tmp_path: Path) -> None:
    """Users may mount file systems of their own in directories of any name (fusermount)."""
    place = tmp_path / "a\r\r\v\x85\u2028b c"
    place.mkdir()
    check = "from toolkit.node import mounts; print(*map(ascii, mounts.mount_points()), sep='\\n')"
    prefix = fake_node.in_mounts('mount -t tmpfs tmpfs "$1"\nshift', str(place))
    done = subprocess.run(
        [*prefix, sys.executable, "-c", check],
        cwd=fake_node.CHECKOUT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    points = done.stdout.splitlines()
    assert ascii(str(place)) in points
    assert all(each.startswith("'/") for each in points)


@alone
def test_root_of_another_user_namespace_is_not_believed(attacker: Attacker) -> None:
    """An ordinary user is user ID 0 in a namespace of their own (user_namespaces(7))."""
    prefix = ("unshare", "--user", "--map-root-user", "--")
    pid = attacker.start("kubelet", _SLEEPER, "--container-runtime-endpoint=/x", prefix=prefix)
    assert trust.process_problem(pid) == "runs in another user namespace"
    assert pid not in {each.pid for each in kubelet.configs(Path("/"))}


@alone
def test_a_root_of_a_container_with_the_machine_s_processes_is_not_the_kubelet(
    attacker: Attacker,
) -> None:
    """It is uid 0 in the same PID and user namespaces (hostPID), but has its own root directory."""
    script = (
        "set -e\nmkdir -p $1/root\nmount -t tmpfs c $1/root\nfor d in usr lib lib64 bin root opt;"
        " do [ -e /$d ] || continue; mkdir -p $1/root/$d; mount --rbind /$d $1/root/$d; done\nmkdir"
        " -p $1/root$1 $1/root/proc\nmount --bind $1 $1/root$1\nmount --rbind /proc"
        ' $1/root/proc\nroot=$1/root\nshift\nexec chroot $root "$@"'
    )
    prefix = ("unshare", "--mount", "--", "sh", "-c", script, "container", str(attacker.home))
    pid = attacker.start("kubelet", _SLEEPER, "--container-runtime-endpoint=/x", prefix=prefix)
    ignored = {each.pid: each.problem for each in kubelet.ignored(Path("/"))}
    assert ignored[pid] == "has a different root directory than the node"
    assert pid not in {each.pid for each in kubelet.configs(Path("/"))}


@alone
def test_the_node_s_own_kubelet_is_believed(attacker: Attacker) -> None:
    pid = attacker.start("kubelet", _SLEEPER, "--container-runtime-endpoint=/run/x.sock", prefix=())
    (said,) = [each for each in kubelet.configs(Path("/")) if each.pid == pid]
    assert said.endpoint == "/run/x.sock"


@pytest.mark.parametrize("kind", ["FIFO", "of a user", "for everybody", "a device"])
@alone
def test_a_kubelet_s_config_that_others_control_is_ignored(attacker: Attacker, kind: str) -> None:
    os.chown(attacker.home, 0, 0)
    config = attacker.home / "config.yaml"
    if kind == "FIFO":
        os.mkfifo(config)
    elif kind == "a device":
        os.mknod(config, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    else:
        config.write_text("containerRuntimeEndpoint: unix:///srv/evil.sock\n")
        config.chmod(0o666 if kind == "for everybody" else 0o600)
        os.chown(config, *((65534, 65534) if kind == "of a user" else (0, 0)))
    pid = attacker.start("kubelet", _SLEEPER, f"--config={config}", prefix=())
    (said,) = [each for each in kubelet.configs(Path("/")) if each.pid == pid]
    assert said.endpoint == ""


@alone
def test_a_kubelet_s_config_in_a_user_s_directory_is_ignored(attacker: Attacker) -> None:
    """A link there may lead to any file of root's, now or later."""
    real = attacker.home / "real"
    real.mkdir(mode=0o700)
    (real / "config.yaml").write_text("containerRuntimeEndpoint: unix:///srv/evil.sock\n")
    link = attacker.home / "config.yaml"
    link.symlink_to(real / "config.yaml")
    pid = attacker.start("kubelet", _SLEEPER, f"--config={link}", prefix=())
    (said,) = [each for each in kubelet.configs(Path("/")) if each.pid == pid]
    assert said.endpoint == ""


# --- programs -----------------------------------------------------------------------------------


def program(path: Path) -> Path:
    fake_node.write_program(path, "#!/bin/sh\necho ran\n")
    return path


def test_a_trusted_program_is_run(tmp_path: Path) -> None:
    assert command.run([str(program(tmp_path / "tool"))]).out == "ran\n"
    assert command.run(["/bin/true"]).ok


@pytest.mark.parametrize(
    "kind", ["owner", "mode", "group", "directory's owner", "directory's mode", "link"]
)
def test_a_program_that_others_control_is_never_run(tmp_path: Path, kind: str) -> None:
    """The file, every directory above it and every link on the way have to be root's alone."""
    directory = tmp_path / "bin"
    directory.mkdir()
    tool = program(directory / "tool")
    named = tool
    match kind:
        case "owner":
            os.chown(tool, 65534, 65534)
        case "mode":
            tool.chmod(0o757)
        case "group":
            tool.chmod(0o775)
            os.chown(tool, 0, 65534)
        case "directory's owner":
            os.chown(directory, 65534, 65534)
        case "directory's mode":
            directory.chmod(0o777)
        case _:
            named = tmp_path / "public" / "tool"
            named.parent.mkdir()
            os.chown(named.parent, 65534, 65534)
            named.symlink_to(tool)
    with pytest.raises(StepError, match="is not run: ") as caught:
        command.run([str(named)])
    assert "chown root:root" in caught.value.hint


def test_debian_s_usr_local_is_trusted_though_an_empty_group_may_write_there(
    tmp_path: Path,
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nstaff:x:50:\nwheel:x:60:ann\nann:x:1000:\n")
    tool = program(tmp_path / "tool")
    for group, trusted in ((50, True), (60, False), (1000, False)):
        os.chown(tool, 0, group)
        tool.chmod(0o775)
        try:
            os.close(trust.open_program("/tool", tmp_path).fd)
        except trust.Distrusted:
            assert not trusted, group
        else:
            assert trusted, group


def test_a_program_that_is_named_without_its_path_is_looked_at_too(
    tmp_path: Path, attacker: Attacker
) -> None:
    """`systemctl` is searched for below the node's root."""
    directory = tmp_path / "usr/local/sbin"
    directory.mkdir(parents=True)
    os.chown(program(directory / "systemctl"), 65534, 65534)
    with pytest.raises(
        StepError, match="is not run: /usr/local/sbin/systemctl belongs to user ID 65534"
    ):
        command.run(["systemctl", "daemon-reload"], root=tmp_path)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda node: os.chown(node.config, 65534, 65534),
            "etc/containerd/config.toml: it belongs to",
        ),
        (
            lambda node: node.config.chmod(0o666),
            "etc/containerd/config.toml: every user may write to it",
        ),
        (
            lambda node: node.config.parent.chmod(0o777),
            "etc/containerd: every user may write to it",
        ),
        (lambda node: os.chown(node.config.parent, 65534, 0), "etc/containerd: it belongs to"),
    ],
    ids=["owner", "mode", "directory's mode", "directory's owner"],
)
def test_a_configuration_that_others_control_is_planned_and_not_edited(
    node: Node, change: object, why: str
) -> None:
    assert callable(change)
    change(node)
    before = fake_node.snapshot(node.root)
    options = node.options(restart_mode="none")
    planned = fake_node.cli("plan", *options)
    assert planned.returncode == 0, planned.stderr
    assert f"{node.root}/{why}" in planned.stdout
    assert planned.stdout.startswith(f"# `run` would refuse: {node.root}/{why}")
    assert ", so it is not edited (files that a root daemon reads" in planned.stdout
    done = fake_node.cli("run", "--no-daemon", *options)
    assert done.returncode == 4, done.stderr
    assert f"{node.root}/{why}" in done.stderr
    assert "chown root:root" in done.stderr
    changed = {
        name for name, trace in fake_node.snapshot(node.root).items() if before.get(name) != trace
    }
    assert not {name for name in changed if name.startswith("etc/")}


@pytest.mark.parametrize("kind", ["absent", "a link", "a link to a file of root's"])
def test_a_drop_in_directory_of_a_user_is_not_written_to(
    node: Node, tmp_path: Path, kind: str
) -> None:
    """The user would choose which file root creates or edits."""
    node.config.write_text(f'version = 3\nimports = ["{node.drop_in.parent}/*.toml"]\n')
    node.drop_in.parent.mkdir()
    os.chown(node.drop_in.parent, 65534, 65534)
    victim = tmp_path / "victim.toml"
    if kind != "absent":
        node.drop_in.symlink_to(victim)
    if kind == "a link to a file of root's":
        victim.write_text("version = 3\n")
    before = fake_node.content(tmp_path)
    done = fake_node.cli("run", "--no-daemon", *node.options(restart_mode="none"))
    assert done.returncode == 4, done.stderr
    assert f"{node.drop_in.parent}: it belongs to user ID 65534" in done.stderr
    after = fake_node.content(tmp_path)
    assert {
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    } <= {
        "node/run/toolkit.pid",
        "node/usr",
        "node/usr/local",
        "node/usr/local/nvidia",
    }


@pytest.mark.parametrize("whose", ["a user's", "root's"])
def test_the_entry_point_takes_over_settings_of_root_s_alone(
    attacker: Attacker, whose: str
) -> None:
    """What it waits for is evaluated by a shell of root's."""
    ready = attacker.home / "run" / "driver-ready"
    ready.parent.mkdir()
    ready.write_text(f"PROOF=$(id -u >{attacker.home}/ran)\n")
    if whose == "a user's":
        os.chown(ready, 65534, 65534)
    os.chown(attacker.home, 0, 0)
    fake_node.write_program(
        attacker.home / "nvidia-toolkit", f"#!{sys.executable}\nprint('started')\n"
    )
    done = subprocess.run(
        [fake_node.CHECKOUT / "entrypoint.sh"],
        env={
            "PATH": f"{attacker.home}:/usr/bin:/bin",
            "WAIT_FOR_DRIVER": "1",
            "DRIVER_READY_FILE": str(ready),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (attacker.home / "ran").exists() is (whose == "root's"), done.stderr
    assert done.returncode == (0 if whose == "root's" else 1)
    if whose == "a user's":
        assert "is not trusted" in done.stderr


def test_an_environment_file_in_a_user_s_directory_is_refused(
    node: Node, attacker: Attacker
) -> None:
    """The user could put a link there to whatever root's file holds a line of their choice."""
    path = attacker.home / "env"
    path.write_text("RUNTIME=docker\n")
    done = fake_node.cli("plan", f"--env-file={path}", *node.options())
    assert (done.returncode, f"{attacker.home}: it belongs to user ID 65534" in done.stderr) == (
        2,
        True,
    )


def test_a_read_only_volume_may_be_for_everybody(tmp_path: Path, node: Node) -> None:
    """The directory of a ConfigMap has mode 0777, and the pod sees it read-only."""
    volume = tmp_path / "volume"
    (volume / "..data").mkdir(parents=True)
    (volume / "..data/env").write_text("TOOLKIT_RUNTIME=containerd\n")
    (volume / "env").symlink_to("..data/env")
    volume.chmod(0o777)
    (volume / "..data").chmod(0o777)
    words = ("plan", f"--env-file={volume}/env", *node.options())
    assert "every user may write to it" in fake_node.cli(*words).stderr
    assert fake_node.cli(*words, prefix=fake_node.read_only(volume)).returncode == 0


def test_an_environment_file_that_is_a_fifo_or_a_user_s_is_refused(
    node: Node, attacker: Attacker
) -> None:
    fifo, foreign = attacker.home / "fifo", attacker.home / "env"
    os.mkfifo(fifo)
    foreign.write_text("RUNTIME=docker\n")
    os.chown(foreign, 65534, 65534)
    os.chown(attacker.home, 0, 0)
    for path, why in (
        (fifo, "it is not a regular file"),
        (foreign, "it belongs to user ID 65534"),
    ):
        done = fake_node.cli("plan", f"--env-file={path}", *node.options())
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr


# --- the lock -----------------------------------------------------------------------------------


def test_a_user_cannot_open_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "toolkit.pid"
    with lock.held(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_user_who_holds_an_older_version_s_lock_stops_nobody(attacker: Attacker) -> None:
    """It was 0644, and flock(2) takes a descriptor that may only read."""
    path = attacker.home / "run/toolkit.pid"
    os.chown(attacker.home, 0, 0)
    path.parent.mkdir()
    path.touch(mode=0o644)
    attacker.start("holder", _HOLDER, str(path))
    with lock.held(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().strip() == str(os.getpid())


def test_a_user_s_lock_whose_taker_has_ended_stops_nobody(attacker: Attacker) -> None:
    """In another PID namespace than the first, /proc/locks shows no such lock."""
    path = attacker.home / "run/toolkit.pid"
    os.chown(attacker.home, 0, 0)
    path.parent.mkdir()
    path.touch(mode=0o644)
    forks = _HOLDER.replace("print(", "\nif os.fork(): os._exit(0)\nprint(")
    script = f"{forks}"
    program = (
        "import subprocess, sys, time; from pathlib import Path; from toolkit.node import lock\n"
        "held = subprocess.Popen([*sys.argv[2:], sys.argv[1]], stdout=subprocess.PIPE, text=True)\n"
        "held.stdout.readline()\n"
        "with lock.held(Path(sys.argv[1])): print('held')\n"
    )
    source = attacker.home / "holder.py"
    source.write_text(script)
    spaces = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
    done = subprocess.run(
        [
            *spaces,
            sys.executable,
            "-c",
            program,
            path,
            *NOBODY,
            attacker.python,
            "-I",
            "-S",
            source,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "held\n", done.stderr


def test_a_user_who_has_an_older_version_s_lock_open_cannot_hold_it_later(
    attacker: Attacker,
) -> None:
    path = attacker.home / "run/toolkit.pid"
    os.chown(attacker.home, 0, 0)
    path.parent.mkdir()
    path.touch(mode=0o644)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with lock.held(path):
            assert os.fstat(descriptor).st_ino != path.stat().st_ino
    finally:
        os.close(descriptor)


def test_another_instance_of_root_still_holds_it(tmp_path: Path, attacker: Attacker) -> None:
    path = tmp_path / "toolkit.pid"
    path.touch(mode=0o644)
    attacker.start("holder", _HOLDER, str(path), prefix=())
    with pytest.raises(Locked), lock.held(path):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
