"""Real binaries: the toolkit's programs, and containerds, queried without leaving anything mounted.

The Debian ones live in a root file system of their own and need its libraries, and a /proc to read
what is staged: each question gets a mount namespace that ends with it.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from runtimes.model import BinaryQuery, BinaryResult, token
from tests.support import nodes, real, versions
from tests.support.availability import Unavailable
from tests.support.nodes import Node
from toolkit.node import command

SUITES: Final = {"1.6": "bookworm", "1.7": "trixie", "2.1": "forky"}
LINES: Final = (*SUITES, *versions.CONTAINERD)
"""The release lines that are asked, oldest first."""

_COMMANDS: Final = "github.com/containerd/containerd/v2/cmd"
_IN_ROOT: Final = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
TOOLKIT_MODULE: Final = "github.com/NVIDIA/nvidia-container-toolkit"
TOOLKIT_PROGRAMS: Final = (
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime.legacy",
    "nvidia-container-runtime-hook",
    "nvidia-ctk",
    "nvidia-cdi-hook",
)
"""The real programs that Go alone builds; nvidia-container-cli is C, and not run with CDI."""
_BUILD_TIME: Final = 900
_OLD: Final = 1_000_000_000
# A node's root that somebody else may be using: everything laid over it goes with the process.
_ON_NODE: Final = """
set -eu
mount -t tmpfs node "$0/etc/containerd"
if [ -n "$2" ]; then mount --bind "$2" "$0/usr/bin/containerd"; fi
mount -t proc proc "$0/proc"
tar -x -C "$0" -f "$1"
exec chroot "$0" /usr/bin/containerd --config "$3" config dump
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """A containerd: its release line, the root it runs in, and its path there."""

    line: str
    root: Path
    path: str


@cache
def find(line: str) -> Binary:
    """Return the containerd of a release line, made on first use. Raises Unavailable."""
    if line in SUITES:
        found = Binary(line=line, root=_image(SUITES[line]), path="/usr/bin/containerd")
    else:
        found = Binary(line=line, root=Path("/"), path=str(_containerd("containerd", line)))
    said = command.run(_argv(found, ("--version",)))
    if not said.ok:
        raise Unavailable(f"containerd {line} cannot be run here: {said.err}")
    real.USED.add(f"containerd {said.out.split()[2]}")
    return found


def put_on(node: Node, line: str) -> None:
    """Replace the containerd and the shim of a booted node by those of a release line."""
    for program in ("containerd", "containerd-shim-runc-v2"):
        there = nodes.path(node, f"/usr/bin/{program}")
        new = there.with_name(f"{program}.new")
        shutil.copy(_containerd(program, line), new)
        new.rename(there)
    nodes.run(node, ("systemctl", "restart", "containerd"))
    nodes.wait_for(node, lambda: nodes.answers(node))


def ask(binary: Binary, question: BinaryQuery) -> BinaryResult:
    """Query a binary as the program does; an earlier query is answered from memory."""
    answer = _asked(binary, question.argv, question.files)
    for _ in range(question.times - 1):
        again = _asked.__wrapped__(binary, question.argv, question.files)
        if (again.code, again.out) != (answer.code, answer.out):
            answer = replace(answer, is_stable=False)
    err = answer.err
    for index, name in enumerate(question.names):
        err = err.replace(token(index), name)
    return BinaryResult(code=answer.code, out=answer.out, err=err, is_stable=answer.is_stable)


@cache
def load(binary: Binary, config: str, files: frozenset[tuple[str, bytes]]) -> BinaryResult:
    """Return what a binary makes of files at their real paths, all below /etc/containerd.

    Nothing of the program has a hand in it: it is what the program's own staging is held against.
    """
    root, program = (
        (binary.root, "") if binary.root != Path("/") else (_image("trixie"), binary.path)
    )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, data in sorted(files):
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mtime = len(data), _OLD
            archive.addfile(entry, io.BytesIO(data))
    with command.staged_files([packed.getvalue()]) as (fds, paths):
        words = (
            "unshare",
            "--mount",
            "--",
            "sh",
            "-c",
            _ON_NODE,
            str(root),
            paths[0],
            program,
            config,
        )
        result = command.run(words, pass_fds=fds)
    return BinaryResult(code=result.code, out=result.out, err=result.err)


@cache
def _asked(binary: Binary, argv: tuple[str, ...], staged: tuple[bytes, ...]) -> BinaryResult:
    with command.staged_files([b""] * len(staged)) as (fds, paths):
        tokens = {token(index): path for index, path in enumerate(paths)}
        for fd, data in zip(fds, staged, strict=True):
            os.pwrite(fd, _replaced(data.decode(), tokens).encode(), 0)
        words = tuple(_replaced(word, tokens) for word in argv)
        result = command.run(_argv(binary, words), pass_fds=fds)
    err = _replaced(result.err, {path: mark for mark, path in tokens.items()})
    return BinaryResult(code=result.code, out=result.out, err=err)


def _argv(binary: Binary, words: tuple[str, ...]) -> tuple[str, ...]:
    if binary.root == Path("/"):
        return (binary.path, *words)
    return (
        "unshare",
        "--mount",
        "--",
        "sh",
        "-c",
        _IN_ROOT,
        str(binary.root),
        binary.path,
        *words,
    )


def _replaced(text: str, marks: dict[str, str]) -> str:
    for mark, path in marks.items():
        text = text.replace(mark, path)
    return text


def _image(suite: str) -> Path:
    if os.geteuid() != 0:
        raise Unavailable(f"only root can enter the root file system of {suite}")
    try:
        return nodes.image(suite)
    except (OSError, nodes.NodeError, subprocess.SubprocessError) as error:
        raise Unavailable(f"no root file system of {suite} can be made here: {error}") from error


def _containerd(program: str, line: str) -> Path:
    return built(f"{_COMMANDS}/{program}", versions.CONTAINERD[line])


@cache
def toolkit(program: str) -> Path:
    """Return an NVIDIA Container Toolkit program, made on first use. Raises Unavailable."""
    found = built(f"{TOOLKIT_MODULE}/cmd/{program}", versions.TOOLKIT, cgo=True)
    real.USED.add(f"{program} {versions.TOOLKIT.removeprefix('v')}")
    return found


def built(module: str, version: str, *, cgo: bool = False) -> Path:
    """Return a program built from its Go module; a lock keeps two runs from building it at once.

    With `cgo` it is linked with this machine's C library, as its makers do.
    """
    name = module.rpartition("/")[2]
    home = nodes.cache() / "go"
    home.mkdir(parents=True, exist_ok=True)
    wanted = home / f"{name}-{version}" / name
    with (home / f"{name}-{version}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if wanted.exists():
            return wanted
        go = shutil.which("go")
        if go is None:
            raise Unavailable(f"{name} {version} is not built: it needs Go 1.26 or newer on PATH")
        done = subprocess.run(
            (go, "install", f"{module}@{version}"),
            env={**os.environ, "CGO_ENABLED": str(int(cgo)), "GOBIN": str(wanted.parent)},
            capture_output=True,
            text=True,
            check=False,
            timeout=_BUILD_TIME,
        )
        if done.returncode != 0:
            raise Unavailable(f"{name} {version} cannot be built here: {done.stderr[-500:]}")
    return wanted
