"""Any bad input: one clear line, the documented exit code, and no byte of the node changed."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from tests.support import fake_node
from tests.support.fake_node import Node
from toolkit.artifacts import versions
from toolkit.errors import Conflict, RolledBack
from toolkit.reconcile import preflight, transaction, uninstall

SOURCE: Final = "set --toolkit-source-root to the directory that contains the toolkit's usr/bin"
OPTIONS: Final = "`nvidia-toolkit run --help-all` lists the options and their variables"


def _nothing(_: Node) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is wrong with a node or a wish, and what the program says to it.

    `{node}` stands for the node's directory in all texts; `said` is the beginning
    of the one line, `hint` the whole of the second one.
    """

    name: str
    code: int
    said: str
    hint: str = ""
    spoil: Callable[[Node], None] = _nothing
    options: dict[str, str | None] = field(default_factory=dict)
    prefix: Callable[[Node], Sequence[str]] = lambda _: ()
    beside: Callable[[Node], AbstractContextManager[object]] = lambda _: nullcontext()
    marks: Sequence[pytest.MarkDecorator] = ()


def _config(data: bytes) -> Callable[[Node], None]:
    def spoil(node: Node) -> None:
        node.config.write_bytes(data)

    return spoil


def _instead_of_config(make: Callable[[Path], object]) -> Callable[[Node], None]:
    def spoil(node: Node) -> None:
        node.config.unlink()
        make(node.config)

    return spoil


def _state(text: str) -> Callable[[Node], None]:
    def spoil(node: Node) -> None:
        node.state.parent.mkdir(parents=True)
        node.state.write_text(text, encoding="utf-8")

    return spoil


def _forbidden(name: str) -> Callable[[Node], None]:
    def spoil(node: Node) -> None:
        (node.root / name).chmod(0)

    return spoil


def _missing_artifact(node: Node) -> None:
    (node.source / "usr/bin/nvidia-ctk").unlink()


def _other_machine(node: Node) -> None:
    (node.source / "usr/bin/nvidia-ctk").write_bytes(fake_node.elf(fake_node.other_machine()[1]))


def _stale_socket(node: Node) -> None:
    with fake_node.listening(node.socket):
        pass


@contextmanager
def _locked(node: Node) -> Iterator[None]:
    with node.pid_file.open("r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _broken_import(node: Node) -> None:
    more = node.root / "etc/containerd/more.toml"
    more.write_bytes(b"a b\n")
    node.config.write_text(f'version = 2\nimports = ["{more}"]\n', encoding="utf-8")


def _imported_directory(node: Node) -> None:
    more = node.root / "etc/containerd/more.toml"
    more.mkdir()
    node.config.write_text(f'version = 2\nimports = ["{more}"]\n', encoding="utf-8")


def _postgres(node: Node) -> AbstractContextManager[object]:
    return fake_node.daemon(node.socket, home=node.root.parent / "d", name="postgres")


def _ordinary(_: Node) -> Sequence[str]:
    return fake_node.ORDINARY


_READABLE: Final = (
    "a pod needs `privileged: true`, or the capabilities CHOWN and DAC_OVERRIDE"
    if os.geteuid() == 0
    else "run as root, or with the directory mounted into the container"
)
CASES: Final = (
    # --- the wish
    Case(
        name="unknown runtime",
        options={"runtime": "podman"},
        code=2,
        said="--runtime=podman: must be one of auto, docker, containerd, crio",
        hint=OPTIONS,
    ),
    Case(
        name="contradictory options",
        options={"runtime": "docker", "runtime_type": "io.containerd.runc.v2"},
        code=2,
        said="--runtime-type: applies to containerd only, but the runtime is docker",
        hint=OPTIONS,
    ),
    Case(
        name="relative socket",
        options={"socket": "c.sock"},
        code=2,
        said="--socket=c.sock: must be an absolute path",
        hint=OPTIONS,
    ),
    Case(
        name="no such host root",
        options={"host_root": "/nonexistent/host"},
        code=2,
        said="--host-root=/nonexistent/host: no such directory",
    ),
    Case(
        name="restart mode systemd without systemd",
        options={"restart_mode": "systemd"},
        beside=lambda node: fake_node.daemon(node.socket, home=node.root.parent / "d"),
        code=4,
        said="PID ",
    ),
    # --- the socket
    Case(name="no socket", code=4, said="the socket {node}/run/c.sock does not exist"),
    Case(
        name="stale socket",
        spoil=_stale_socket,
        code=4,
        said="no process listens on {node}/run/c.sock: it is not a socket, or a stale one",
    ),
    Case(
        name="a file for a socket",
        spoil=lambda node: node.socket.touch(),
        code=4,
        said="no process listens on {node}/run/c.sock: it is not a socket, or a stale one",
    ),
    Case(
        name="another program's socket",
        beside=_postgres,
        code=4,
        said="{node}/run/c.sock is answered by PID ",
    ),
    # --- the configuration
    Case(
        name="broken TOML",
        spoil=_config(b"version = 2\n\n[plugins\nx = 1\n"),
        code=3,
        said="{node}/etc/containerd/config.toml:3:9: ",
    ),
    Case(
        name="a value that is none",
        spoil=_config(b"version = 2\nroot = yes\n"),
        code=3,
        said="{node}/etc/containerd/config.toml:2:8: ",
    ),
    Case(
        name="a key twice",
        spoil=_config(b"version = 2\nversion = 2\n"),
        code=3,
        said="{node}/etc/containerd/config.toml:2",
    ),
    Case(
        name="no UTF-8",
        spoil=_config(b"version = 2\n# \xff\n"),
        code=3,
        said="{node}/etc/containerd/config.toml",
    ),
    Case(
        name="unknown schema version",
        spoil=_config(b"version = 9\n"),
        code=3,
        said=(
            "{node}/etc/containerd/config.toml: schema version 9 is not supported:"
            " must be one of 1, 2, 3, 4"
        ),
        hint="a newer nvidia-toolkit may support it",
    ),
    Case(
        name="a table that is none",
        spoil=_config(b'version = 2\nplugins = "none"\n'),
        code=3,
        said="{node}/etc/containerd/config.toml",
    ),
    Case(
        name="imports that are none",
        spoil=_config(b"version = 2\nimports = 3\n"),
        code=3,
        said="{node}/etc/containerd/config.toml: its `imports` is not an array of strings",
    ),
    Case(
        name="a broken import",
        spoil=_broken_import,
        code=3,
        said="{node}/etc/containerd/more.toml:1:3: ",
    ),
    Case(
        name="a directory for an import",
        spoil=_imported_directory,
        code=3,
        said="{node}/etc/containerd/more.toml is a directory",
        hint=(
            "{node}/etc/containerd/config.toml includes it: put a file there, or remove it from"
            " `imports`"
        ),
    ),
    Case(
        name="a directory for the config",
        spoil=_instead_of_config(Path.mkdir),
        code=3,
        said="{node}/etc/containerd/config.toml is a directory",
        hint="name the configuration file itself",
    ),
    Case(
        name="a pipe for the config",
        spoil=_instead_of_config(os.mkfifo),
        code=3,
        said="{node}/etc/containerd/config.toml is not a regular file",
        hint="name the configuration file itself",
    ),
    Case(
        name="a circle for the config",
        spoil=_instead_of_config(lambda path: path.symlink_to(path.name)),
        code=4,
        said="{node}/etc/containerd/config.toml is a loop of symbolic links",
    ),
    Case(
        name="unreadable config",
        spoil=_forbidden("etc/containerd/config.toml"),
        prefix=_ordinary,
        code=3,
        said="{node}/etc/containerd/config.toml cannot be read: Permission denied",
        hint=_READABLE,
    ),
    Case(
        name="unreadable directory of the config",
        spoil=_forbidden("etc/containerd"),
        prefix=_ordinary,
        code=3,
        said="{node}/etc/containerd",
    ),
    Case(
        name="read-only config",
        options={"restart_mode": "none"},
        prefix=lambda node: fake_node.read_only(node.config.parent),
        code=4,
        said="{node}/etc/containerd/config.toml is on a read-only file system",
        marks=[fake_node.needs_root],
    ),
    Case(
        name="read-only install directory",
        options={"restart_mode": "none"},
        spoil=lambda node: node.install_dir.mkdir(parents=True),
        prefix=lambda node: fake_node.read_only(node.install_dir),
        code=4,
        said="{node}/usr/local/nvidia is on a read-only file system",
        marks=[fake_node.needs_root],
    ),
    Case(
        name="read-only directory of the lock",
        prefix=lambda node: fake_node.read_only(node.pid_file.parent),
        code=4,
        said="the lock {node}/run/toolkit.pid cannot be opened: Read-only file system",
        marks=[fake_node.needs_root],
    ),
    # --- the toolkit
    Case(
        name="no source",
        options={"toolkit_source_root": "/nonexistent/artifacts"},
        code=2,
        said="the toolkit's source /nonexistent/artifacts is no directory",
        hint=SOURCE,
    ),
    Case(
        name="missing artifact",
        spoil=_missing_artifact,
        code=2,
        said="the toolkit's source {node}/artifacts lacks usr/bin/nvidia-ctk",
        hint=SOURCE,
    ),
    Case(
        name="artifact for another machine",
        spoil=_other_machine,
        code=2,
        said="{node}/artifacts/usr/bin/nvidia-ctk is for ",
        hint="use the image for this node's architecture",
        marks=[
            pytest.mark.skipif(
                platform.machine() not in fake_node.MACHINES,
                reason="the toolkit is not for this machine",
            )
        ],
    ),
    Case(
        name="unreadable artifact",
        spoil=_forbidden("artifacts/usr/bin/nvidia-ctk"),
        prefix=_ordinary,
        code=2,
        said="{node}/artifacts/usr/bin/nvidia-ctk",
    ),
    Case(
        name="a file for the install directory",
        options={"restart_mode": "none"},
        spoil=lambda node: (node.root / "usr").touch(),
        code=4,
        said="{node}/usr is no directory",
    ),
    # --- the record and the lock
    Case(
        name="damaged record",
        spoil=_state('{"format": 1,'),
        code=3,
        said="{node}/usr/local/nvidia/.nvidia-toolkit/state.json is damaged: ",
        hint=(
            "keep {node}/usr/local/nvidia/.nvidia-toolkit and report the problem;"
            " if you remove it, the original files can no longer be restored"
        ),
    ),
    Case(
        name="record of a newer version",
        spoil=_state(json.dumps({"format": 5, "readable_by": 4, "tool": "9.9"})),
        code=3,
        said=(
            "{node}/usr/local/nvidia/.nvidia-toolkit/state.json was written by nvidia-toolkit 9.9"
            " and needs a newer version"
        ),
        hint="use that version or a newer one",
    ),
    Case(
        name="lock held",
        beside=_locked,
        code=5,
        said="another instance (PID unknown) holds {node}/run/toolkit.pid",
        hint="wait for it to end, or end it; nothing was changed",
    ),
)


ARTIFACTS: Final = frozenset(case.name for case in CASES if "artifact" in case.name)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = fake_node.make_node(tmp_path / "node")
    fake_node.name_low_level(node)
    node.pid_file.touch(mode=0o600)
    return node


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=case.marks) for case in CASES]
)
def test_it_is_named_and_nothing_is_changed(node: Node, case: Case) -> None:
    case.spoil(node)
    with case.beside(node):
        before = fake_node.snapshot(node.root, node.pid_file)
        done = fake_node.cli(
            "-n", *node.options(**case.options), prefix=case.prefix(node), timeout=20
        )
        after = fake_node.snapshot(node.root, node.pid_file)
    assert done.returncode == case.code, done.stderr
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"error: {case.said.format(node=node.root)}"), first
    assert rest == [f"hint: {case.hint.format(node=node.root)}"] if case.hint else len(rest) <= 1, (
        rest
    )
    assert after == before


def _cases(*codes: int, of_the_source: bool) -> list[Any]:
    """Return the cases that a plan sees too."""
    return [
        pytest.param(case, id=case.name, marks=case.marks)
        for case in CASES
        if case.code in codes and (case.name in {"no source", *ARTIFACTS}) == of_the_source
    ]


@pytest.mark.parametrize("case", _cases(2, 3, of_the_source=False))
def test_a_plan_says_the_same(node: Node, case: Case) -> None:
    case.spoil(node)
    done = fake_node.cli(
        "plan", *node.options(**case.options), prefix=case.prefix(node), timeout=20
    )
    assert done.returncode == case.code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {case.said.format(node=node.root)}")


@pytest.mark.parametrize("case", _cases(2, of_the_source=True))
def test_a_plan_does_without_the_toolkits_files_and_says_so(node: Node, case: Case) -> None:
    case.spoil(node)
    done = fake_node.cli(
        "plan", *node.options(**case.options), prefix=case.prefix(node), timeout=20
    )
    assert done.returncode == 0, done.stderr
    assert "default_runtime_name" in done.stdout
    assert done.stdout.startswith(f"# `run` would refuse: {case.said.format(node=node.root)}")
    assert "# the toolkit's files are not part of this plan: " in done.stdout


def test_every_problem_with_the_options_has_its_line(node: Node) -> None:
    done = fake_node.cli(
        "-n", *node.options(restart_mode="gently", pid_file="/run/x.pid", no_daemon="maybe")
    )
    assert done.returncode == 2
    assert sorted(done.stderr.splitlines()) == [
        "error: --no-daemon=maybe: must be true or false (true/false, 1/0, yes/no, on/off)",
        "error: --pid-file=/run/x.pid: the file name must be toolkit.pid",
        "error: --restart-mode=gently: must be one of auto, signal, systemd, none",
        f"hint: {OPTIONS}",
    ]


def test_every_obstacle_on_the_node_is_told_at_once(node: Node) -> None:
    (node.root / "usr").touch()
    done = fake_node.cli("-n", *node.options())
    assert done.returncode == 4
    assert f"{node.root}/usr is no directory" in done.stderr
    assert f"the socket {node.socket} does not exist" in done.stderr
    assert done.stderr.splitlines()[0].endswith(": nothing was changed")


# --- somebody else writes at the same time ------------------------------------------------------


def _edits_meanwhile(node: Node, call: Callable[..., Any]) -> Callable[..., Any]:
    def edited(*words: Any, **named: Any) -> Any:
        node.config.write_bytes(fake_node.KUBEADM + b"# somebody's\n")
        return call(*words, **named)

    return edited


def test_an_edit_between_the_plan_and_its_application_is_a_conflict(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "check", _edits_meanwhile(node, preflight.check))
    with pytest.raises(Conflict) as caught:
        transaction.converge(node.settings(restart_mode="none"), containerd)
    assert (
        str(caught.value)
        == f"{node.config} was modified while the change was planned; nothing was written"
    )
    assert (caught.value.exit_code, caught.value.hint) == (4, "run the command again")
    assert node.config.read_bytes() == fake_node.KUBEADM + b"# somebody's\n"
    assert not (node.root / "usr").exists()


def test_an_edit_while_the_toolkit_is_installed_is_not_lost(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The files take seconds to write on a slow disk: the last look has to come after them.
    with monkeypatch.context() as patch:
        patch.setattr(versions, "install", _edits_meanwhile(node, versions.install))
        with pytest.raises(RolledBack, match=r"was modified after the change was planned"):
            transaction.converge(node.settings(restart_mode="none"), containerd)
    assert node.config.read_bytes() == fake_node.KUBEADM + b"# somebody's\n"
    transaction.converge(node.settings(restart_mode="none"), containerd)
    assert b"# somebody's\n" in node.config.read_bytes()
    uninstall.revert(node.settings(restart_mode="none"), containerd)
    assert node.config.read_bytes() == fake_node.KUBEADM + b"# somebody's\n"


def test_an_edit_while_the_file_itself_is_written_is_not_lost(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, real = fake_node.KUBEADM + b"# somebody's\n", os.fsync
    edited: list[int] = []

    def fsync(fd: int) -> None:
        # The disk may take seconds for this, with all looks at the file behind it.
        if not edited and os.readlink(f"/proc/self/fd/{fd}").startswith(f"{node.config.parent}/"):
            edited.append(node.config.write_bytes(theirs))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        RolledBack, match=r"was modified after the change was planned; it was not written"
    ):
        transaction.converge(node.settings(restart_mode="none"), containerd)
    assert edited
    assert node.config.read_bytes() == theirs
    assert [path.name for path in node.config.parent.iterdir()] == [node.config.name]
    transaction.converge(node.settings(restart_mode="none"), containerd)
    assert b"# somebody's\n" in node.config.read_bytes()
    uninstall.revert(node.settings(restart_mode="none"), containerd)
    assert node.config.read_bytes() == theirs


def test_the_message_for_broken_toml_says_line_and_column_in_words_of_the_file(node: Node) -> None:
    node.config.write_bytes("version = 2\n# äöü\nroot = 'ä' x\n".encode())
    done = fake_node.cli("plan", *node.options())
    assert done.returncode == 3
    assert re.search(r"config\.toml:3:12: ", done.stderr), done.stderr
