"""The demonstration's throw-away node: a configuration, a toolkit to install, a low-level runtime.

Everything lies below one directory that only its owner can enter, and goes with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

EXAMPLES: Final = Path(__file__).resolve().parents[1]
PROGRAMS: Final = (
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime.legacy",
    "nvidia-container-runtime-hook",
    "nvidia-container-cli",
    "nvidia-ctk",
    "nvidia-cdi-hook",
)
LIBRARIES: Final = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")
# sockaddr_un has 108 bytes, the last one for a NUL. The longest path is that of the ttrpc socket.
_LONGEST_ADDRESS: Final = 107
_SOCKET: Final = "run/containerd.sock"
# What keeps a real containerd inside the node. NRI and the `opt` plugin have fixed paths.
_CONFINED: Final = """\
version = 2
root = "{root}/var/lib/containerd"
state = "{root}/run/containerd"

[grpc]
  address = "{root}/run/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt/containerd"

[plugins."io.containerd.nri.v1.nri"]
  disable = true
"""


class NoRoom(Exception):
    """No directory is fit to hold the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The paths of the node; `root` is the directory that holds all of it."""

    root: Path

    @property
    def etc(self) -> Path:
        """Return the directory of the runtime's configuration."""
        return self.root / "etc/containerd"

    @property
    def config(self) -> Path:
        """Return the runtime's root configuration."""
        return self.etc / "config.toml"

    @property
    def drop_in(self) -> Path:
        """Return the file that gets the handlers."""
        return self.etc / "conf.d/99-nvidia.toml"

    @property
    def socket(self) -> Path:
        """Return the socket on which the runtime answers."""
        return self.root / _SOCKET

    @property
    def programs(self) -> Path:
        """Return the directory with the node's low-level runtime, first on the runtime's PATH."""
        return self.root / "bin"

    @property
    def install_dir(self) -> Path:
        """Return where the toolkit is installed."""
        return self.root / "usr/local/nvidia"

    @property
    def env_file(self) -> Path:
        """Return the file of settings that every command of the demonstration reads."""
        return self.root / "node.env"


@contextmanager
def throw_away() -> Iterator[Node]:
    """Make an empty node and remove it, whatever becomes of the block. Raises NoRoom."""
    root = Path(tempfile.mkdtemp(prefix="nvidia-demo-", dir=_short_directory()))
    try:
        yield Node(root=root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def furnish(node: Node, *, validator: str | None, is_real: bool) -> None:
    """Write the node's files.

    `validator` is the containerd that loads each configuration before it is written; None where
    there is none. `is_real` tells whether it also is the daemon, which has to stay inside the node.
    """
    shutil.copytree(EXAMPLES / "containerd", node.etc)
    if is_real:
        text = node.config.read_text(encoding="utf-8")
        text = text.replace("version = 2\n", _CONFINED.format(root=node.root), 1)
        # Not every machine can lay file systems over each other, and no image is unpacked here.
        text = text.replace('snapshotter = "overlayfs"', 'snapshotter = "native"', 1)
        node.config.write_text(text, encoding="utf-8")
    node.socket.parent.mkdir()
    node.programs.mkdir()
    for program in ("runc", "containerd-shim-runc-v2"):
        if is_real and program != "runc":
            continue  # The real one, beside the containerd that needs it.
        _write_program(
            node.programs / program, f"echo '{program}: a stand-in, it starts no containers'"
        )
    binaries = node.root / "artifacts/usr/bin"
    libraries = node.root / "artifacts/usr/lib64"
    binaries.mkdir(parents=True)
    libraries.mkdir(parents=True)
    for program in PROGRAMS:
        _write_program(binaries / program, f'echo "{program}: a stand-in, called with: $*"')
    for library in LIBRARIES:
        (libraries / f"{library}.17.0").write_text("a stand-in\n", encoding="utf-8")
        (libraries / library).symlink_to(f"{library}.17.0")
    settings = {
        "RUNTIME": "containerd",
        "RUNTIME_CONFIG": node.config,
        "RUNTIME_DROP_IN_CONFIG": node.drop_in,
        "RUNTIME_SOCKET": node.socket,
        **(
            {"RUNTIME_EXECUTABLE_PATH": validator}
            if validator
            else {"RUNTIME_CONFIG_SOURCES": "file"}
        ),
        "RUNTIME_RESTART_MODE": "signal",
        "TOOLKIT_SOURCE_ROOT": node.root / "artifacts",
        "TOOLKIT_INSTALL_DIR": node.install_dir,
        "TOOLKIT_PID_FILE": node.root / "run/toolkit.pid",
        # On a real node this limits how often the runtime is restarted; here that is intended.
        "TOOLKIT_RESTART_BUDGET": 0,
        # This machine may be a node itself; its kubelet is not concerned.
        "TOOLKIT_ALLOW_NON_KUBELET_RUNTIME": "true",
        "TOOLKIT_ON_EXIT": "keep",
        "TOOLKIT_LOG_FORMAT": "text",
        "HOST_ROOT_MOUNT": "/",
    }
    lines = [f"{name}={value}\n" for name, value in settings.items()]
    node.env_file.write_text("".join(lines), encoding="utf-8")


def fingerprint(
    root: Path, names: tuple[str, ...], *, identity: bool = False, without: str = ""
) -> str:
    """Hash name, type, mode, owner and content of every file below some directories of a root.

    With `identity` the inode and the time of the last change count too: then a file that was
    written again with the same content is another one. A directory named `without` is left out,
    and so is a file that goes away meanwhile: the program may be at work.
    """
    digest = hashlib.sha256()
    for name in names:
        for path in sorted((root / name).rglob("*")):
            if without in path.parts:
                continue
            with contextlib.suppress(FileNotFoundError):
                facts = _facts(path, identity=identity)
                digest.update(f"{facts}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _facts(path: Path, *, identity: bool) -> tuple[object, ...]:
    status = path.lstat()
    facts: tuple[object, ...] = (path, status.st_mode, status.st_uid, status.st_gid)
    if identity:
        facts += (status.st_ino, status.st_mtime_ns)
    if stat.S_ISREG(status.st_mode):
        facts += (hashlib.sha256(path.read_bytes()).hexdigest(),)
    elif stat.S_ISLNK(status.st_mode):
        facts += (os.readlink(path),)
    return facts


def _short_directory() -> str:
    """Return a temporary directory where a socket's path fits and programs can be run."""
    tried = list(
        dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", f"/run/user/{os.geteuid()}"))  # noqa: S108
    )
    for directory in tried:
        longest = os.path.join(directory, "nvidia-demo-12345678", f"{_SOCKET}.ttrpc")
        if (
            not os.access(directory, os.W_OK | os.X_OK)
            or len(os.fsencode(longest)) > _LONGEST_ADDRESS
        ):
            continue
        if not os.statvfs(directory).f_flag & os.ST_NOEXEC:
            return directory
    raise NoRoom(
        f"none of {', '.join(tried)} can hold the throw-away node (writable, not mounted noexec, a"
        " short path): name another with TMPDIR=DIRECTORY"
    )


def _write_program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)
