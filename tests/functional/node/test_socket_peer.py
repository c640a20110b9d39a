"""The peer of a socket is found by what it says; a signal reaches exactly that process or none."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from pyfakefs.fake_filesystem import FakeFilesystem

from tests.support import fake_daemon, fake_node
from toolkit.errors import StepError
from toolkit.node import processes, procfs, socket_peer

CONTAINERD: Final = frozenset({"containerd"})
RUNNING: Final = "is the runtime running? name its socket with --socket"
_FIND: Final = """
import sys
from pathlib import Path
from toolkit.node import socket_peer
try:
    print(socket_peer.find(Path(sys.argv[1]), frozenset({"containerd"}), timeout=2).pid)
except socket_peer.NoPeer as error:
    print(f"{error}\\n{error.hint}")
"""
# The first process of a PID namespace: it answers on the socket and has a child look for who does.
_INIT: Final = """
import socket, subprocess, sys, threading
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
def serve():
    client, _ = server.accept()
    client.sendall(b"hello")
    client.recv(1)
threading.Thread(target=serve, daemon=True).start()
print(subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]],\
 capture_output=True, text=True).stdout)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.sock"


# --- found --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speech", "first"),
    [("grpc", True), ("http", False)],
    ids=["speaks first", "must be spoken to"],
)
def test_the_daemon_is_found(path: Path, speech: str, *, first: bool) -> None:
    with fake_node.daemon(path, home=path.parent / "d", speech=speech) as daemon:
        found = socket_peer.find(path, CONTAINERD, server_speaks_first=first)
        assert found.pid == daemon.pid
        assert found.argv[0] == str(path.parent / "d/containerd")
        assert found.executable == os.path.realpath(f"/proc/{daemon.pid}/exe")
        assert found.start_ticks == procfs.start_time(daemon.pid)
        assert found.is_alive()
        assert daemon.signals() == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            b"/usr/bin/containerd\0--config\0/etc/c.toml\0",
            ("/usr/bin/containerd", "--config", "/etc/c.toml"),
        ),
        (b"dockerd\0--config-file=\0\0-D\0", ("dockerd", "--config-file=", "", "-D")),
        (b"crio: one text without an end", ("crio: one text without an end",)),
        (b"/usr/bin/\xff\0", ("/usr/bin/\udcff",)),
        (b"", ()),
    ],
)
def test_argv_is_what_the_kernel_says(
    monkeypatch: pytest.MonkeyPatch, said: bytes, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("builtins.open", lambda *_: io.BytesIO(said))
    assert procfs.argv(1) == words


def test_the_argv_of_a_process_that_runs_is_found() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()", "", "a b"], stdin=subprocess.PIPE
    ) as process:
        fake_node.wait_for(
            lambda: len(procfs.argv(process.pid)) == 5, "it did not become the program"
        )
        assert procfs.argv(process.pid) == (sys.executable, "-c", "input()", "", "a b")

    with pytest.raises(OSError, match=str(process.pid)):
        procfs.argv(process.pid)


def test_not_the_one_who_listened_is_found_but_the_one_who_answers(path: Path) -> None:
    with (
        fake_node.listening(path) as server,
        fake_node.daemon(path, home=path.parent / "d", fd=server.fileno()) as daemon,
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            listener: int = struct.unpack(
                "iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            )[0]
        assert listener == os.getpid(), "this is not how systemd hands a socket on"
        assert socket_peer.find(path, CONTAINERD).pid == daemon.pid


def test_a_link_to_the_directory_is_followed(path: Path) -> None:
    (path.parent / "run").mkdir()
    (path.parent / "var").symlink_to("run")
    with fake_node.daemon(path.parent / "run/c.sock", home=path.parent / "d") as daemon:
        assert socket_peer.find(path.parent / "var/c.sock", CONTAINERD).pid == daemon.pid


@pytest.mark.parametrize("length", [107, 108, 109, 250])
def test_a_path_may_be_longer_than_an_address(tmp_path: Path, length: int) -> None:
    missing = length - len(os.fsencode(tmp_path)) - len("//c.sock")
    if missing < 1:
        pytest.skip("the test's own directory is too long already")
    path = tmp_path / ("d" * missing) / "c.sock"
    assert len(os.fsencode(path)) == length
    path.parent.mkdir()
    with fake_node.daemon(path, home=tmp_path / "h") as daemon:
        assert socket_peer.find(path, CONTAINERD).pid == daemon.pid
        assert str(length) not in os.listdir("/proc/self/fd")


def test_a_long_path_that_is_missing_is_named_in_full(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 120) / "c.sock"
    with pytest.raises(socket_peer.NoPeer) as caught:
        socket_peer.find(path, CONTAINERD)
    assert str(caught.value) == f"the socket {path} does not exist"


def test_a_name_counts_where_the_executable_does_not(path: Path) -> None:
    with fake_node.daemon(path, home=path.parent / "d", name="dockerd") as daemon:
        assert socket_peer.find(path, frozenset({"containerd", "dockerd"})).pid == daemon.pid


def test_it_asks_for_credentials_before_it_connects(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server that speaks first may do so between the two, and then the PID reads 0.
    real, calls = socket.socket.connect, []

    def connect(client: socket.socket, address: str) -> None:
        calls.append(client.getsockopt(socket.SOL_SOCKET, 16))
        real(client, address)

    with fake_node.daemon(path, home=path.parent / "d"):
        monkeypatch.setattr(socket.socket, "connect", connect)
        socket_peer.find(path, CONTAINERD)
    assert calls == [1]


def test_it_is_found_every_time(path: Path) -> None:
    with fake_node.daemon(path, home=path.parent / "d") as daemon:
        assert {socket_peer.find(path, CONTAINERD).pid for _ in range(200)} == {daemon.pid}


# --- not found ----------------------------------------------------------------------------------


def _nothing(path: Path) -> AbstractContextManager[object]:
    return fake_node.listening(path.with_name("other"))


@contextmanager
def _stale(path: Path) -> Iterator[None]:
    with fake_node.listening(path):
        pass
    yield


@contextmanager
def _file(path: Path) -> Iterator[None]:
    path.touch()
    yield


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    path.mkdir()
    yield


@contextmanager
def _below_a_file(path: Path) -> Iterator[None]:
    path.parent.rmdir()
    path.parent.touch()
    yield


@contextmanager
def _busy(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(path))
        server.listen(0)
        client.connect(str(path))
        yield


@contextmanager
def _ourselves(path: Path) -> Iterator[None]:
    def serve(server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            client.sendall(fake_daemon.SETTINGS_FRAME)
            client.recv(1)

    with fake_node.listening(path) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield
        thread.join(5)


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("there", "message", "hint"),
    [
        (_nothing, "the socket {} does not exist", RUNNING),
        (_stale, "no process listens on {}: it is not a socket, or a stale one", RUNNING),
        (_file, "no process listens on {}: it is not a socket, or a stale one", RUNNING),
        (_directory, "no process listens on {}: it is not a socket, or a stale one", RUNNING),
        (_below_a_file, "the socket {} cannot be used: Not a directory", ""),
        (_busy, "{} was not answered within 0.8 s", ""),
        (_ourselves, "{} is answered by this very process, which is not a container runtime", ""),
    ],
    ids=["absent", "stale", "file", "directory", "below a file", "busy", "ourselves"],
)
def test_nobody_is_found(
    tmp_path: Path,
    there: Callable[[Path], AbstractContextManager[object]],
    message: str,
    hint: str,
) -> None:
    path = tmp_path / "run" / "c.sock"
    path.parent.mkdir()
    with there(path), pytest.raises(socket_peer.NoPeer) as caught:
        socket_peer.find(path, CONTAINERD, timeout=0.8)
    assert (str(caught.value), caught.value.hint) == (message.format(path), hint)
    assert caught.value.exit_code == 4


@pytest.mark.timing
@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("speech", "first", "message"),
    [
        ("silent", True, "{} was not answered within 0.8 s"),
        ("silent", False, "{} was not answered within 0.8 s"),
        ("http", True, "{} was not answered within 0.8 s"),
        (
            "close",
            True,
            "the socket {} cannot be used: the server closed the connection without an answer",
        ),
    ],
    ids=["silent", "silent when spoken to", "waits to be spoken to", "closes"],
)
def test_who_does_not_speak_is_not_waited_for_long(
    path: Path, speech: str, message: str, *, first: bool
) -> None:
    with fake_node.daemon(path, home=path.parent / "d", speech=speech) as daemon:
        begin = time.monotonic()
        with pytest.raises(socket_peer.NoPeer) as caught:
            socket_peer.find(path, CONTAINERD, server_speaks_first=first, timeout=0.8)
        assert time.monotonic() - begin < 1.5
        assert str(caught.value) == message.format(path)
        assert daemon.signals() == []


def test_another_program_is_not_taken_for_the_runtime(path: Path) -> None:
    with fake_node.daemon(path, home=path.parent / "d", name="postgres") as daemon:
        exe = os.readlink(f"/proc/{daemon.pid}/exe")
        with pytest.raises(socket_peer.NoPeer) as caught:
            socket_peer.find(path, frozenset({"containerd", "dockerd"}))
        assert (
            str(caught.value)
            == f"{path} is answered by PID {daemon.pid} ({exe}), which does not look like"
            " containerd or dockerd"
        )
        assert caught.value.hint == "name the runtime's own socket with --socket"
        assert daemon.signals() == []


@pytest.mark.parametrize("is_there", [False, True])
def test_an_answer_of_a_process_that_cannot_be_seen_names_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, is_there: bool
) -> None:
    """Without SYS_PTRACE a process is there and may not be looked at, which is not to be gone."""
    monkeypatch.setattr(processes, "inspect", lambda _pid: None)
    monkeypatch.setattr(processes, "is_running", lambda _pid: is_there)
    with fake_node.daemon(path, home=path.parent / "d") as daemon:
        with pytest.raises(socket_peer.NoPeer) as caught:
            socket_peer.find(path, CONTAINERD)
        why = (
            "which cannot be examined: permission denied"
            if is_there
            else "which has already exited"
        )
        assert str(caught.value) == f"{path} is answered by PID {daemon.pid}, {why}"
        assert ("SYS_PTRACE" in caught.value.hint) == is_there


@fake_node.needs_root
def test_a_process_outside_of_our_pid_namespace_is_not_guessed_at(path: Path) -> None:
    with fake_node.daemon(path, home=path.parent / "d") as daemon:
        shown = subprocess.run(
            ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", _FIND, str(path)],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        assert (
            shown.stdout
            == f"{path} is answered by a process outside of this PID namespace\nthe pod needs"
            " `hostPID: true`\n"
        )
        assert daemon.signals() == []


@fake_node.needs_root
def test_the_init_process_is_no_runtime(path: Path) -> None:
    words = [sys.executable, "-c", _INIT, str(path), _FIND]
    shown = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *words],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert (
        shown.stdout.strip()
        == f"{path} is answered by the init process (PID 1), which is not a container runtime"
    )


# --- a process ----------------------------------------------------------------------------------


def test_a_process_that_never_was_is_none() -> None:
    assert processes.inspect(2**22 + 1) is None


def test_a_deleted_executable_is_named_without_the_kernels_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "readlink", lambda _: "/usr/bin/containerd (deleted)")
    found = processes.inspect(os.getpid())
    assert found is not None
    assert found.executable == "/usr/bin/containerd"


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/containerd.service\n", "containerd.service"),
        ("0::/../../system.slice/containerd.service\n", "containerd.service"),
        (
            "0::/system.slice/snap.microk8s.daemon-containerd.service\n",
            "snap.microk8s.daemon-containerd.service",
        ),
        (
            "12:pids:/a.service\n1:name=systemd:/system.slice/docker.service\n0::/\n",
            "docker.service",
        ),
        ("4:memory:/system.slice/crio.service\n1:name=systemd:/\n", "crio.service"),
        ("0::/system.slice/k3s.service/containerd\n", "k3s.service"),
        ("0::/system.slice/a.service/b.service\n", "b.service"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", None),
        ("0::/system.slice/ssh.service/session-1.scope\n", None),
        # A node of kind is a container; seen from outside of it.
        ("0::/system.slice/docker-1.scope/system.slice/containerd.service\n", "containerd.service"),
        ("0::/\n", None),
        ("0::/system.slice/strange:name.service\n", "strange:name.service"),
        ("", None),
    ],
    ids=[
        "v2",
        "namespace",
        "snap",
        "v1",
        "v1 without systemd's",
        "child",
        "inner",
        "scope",
        "scope of a service",
        "kind",
        "root",
        "colon",
        "none",
    ],
)
def test_the_unit_is_read_from_the_control_group(
    fs: FakeFilesystem, cgroup: str, unit: str | None
) -> None:
    fs.create_file("/proc/4194000/cgroup", contents=cgroup)
    assert processes._unit(4194000) == unit


# --- a signal -----------------------------------------------------------------------------------


@pytest.fixture
def target(path: Path) -> Iterator[tuple[processes.RuntimeProcess, fake_node.Daemon]]:
    """Run a daemon that only notes what it gets."""
    with fake_node.daemon(path, home=path.parent / "d", on_hup="stay", revives=False) as daemon:
        found = processes.inspect(daemon.pid)
        assert found is not None
        yield found, daemon


def test_a_signal_arrives_through_a_descriptor_of_the_process(
    target: tuple[processes.RuntimeProcess, fake_node.Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, daemon = target

    def kill(*_: Any) -> None:
        pytest.fail("a PID may be another process by now")

    with monkeypatch.context() as patch:  # the stand-in is killed at the end
        patch.setattr(os, "kill", kill)
        processes.send(found, signal.SIGHUP)
    fake_node.wait_for(lambda: daemon.signals() == ["SIGHUP"], "the signal did not arrive")


def test_a_kernel_without_such_descriptors_is_no_obstacle(
    target: tuple[processes.RuntimeProcess, fake_node.Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, daemon = target

    def refuse(_pid: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    processes.send(found, signal.SIGHUP)
    fake_node.wait_for(lambda: daemon.signals() == ["SIGHUP"], "the signal did not arrive")


def test_a_pid_that_was_given_to_another_process_is_not_signalled(
    target: tuple[processes.RuntimeProcess, fake_node.Daemon],
) -> None:
    found, daemon = target
    earlier = replace(found, start_ticks=found.start_ticks - 100)
    with pytest.raises(StepError) as caught:
        processes.send(earlier, signal.SIGTERM)
    assert str(caught.value) == f"PID {daemon.pid} is another process now; nothing was signalled"
    processes.send(found, signal.SIGHUP)
    fake_node.wait_for(lambda: "SIGHUP" in daemon.signals(), "the signal did not arrive")
    assert daemon.signals() == ["SIGHUP"]


def test_a_process_that_is_gone_is_said_to_be(
    target: tuple[processes.RuntimeProcess, fake_node.Daemon],
) -> None:
    found, daemon = target
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    assert not found.is_alive()
    with pytest.raises(StepError) as caught:
        processes.send(found, signal.SIGHUP)
    assert str(caught.value) == f"PID {daemon.pid} is gone; nothing was signalled"


def test_sending_leaves_no_descriptor_open(
    target: tuple[processes.RuntimeProcess, fake_node.Daemon],
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    processes.send(target[0], signal.SIGHUP)
    assert set(os.listdir("/proc/self/fd")) == before
