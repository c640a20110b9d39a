"""Every copy of the toolkit on a node: ours, and those that a package or an image brought along."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from toolkit import process
from toolkit.errors import ToolkitError
from toolkit.host import Host

_DIRECTORIES: Final = (
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/libexec",
    "/opt/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/local/lib",
    "/usr/local/lib64",
)
_NAMES: Final = re.compile(
    r"nvidia-container-runtime.*|nvidia-container-toolkit|nvidia-container-cli(\.real)?"
    r"|nvidia-ctk(\.real)?|nvidia-cdi-hook|libnvidia-container(-go)?\.so\..*"
)
_LIBRARY: Final = re.compile(r"libnvidia-container(?:-go)?\.so\.(\d+\.\d+\S*)")
_SOON: Final = 5.0


def copies(host: Host, install_dir: Path, *, is_installed: bool) -> list[dict[str, Any]]:
    """Return every file of a toolkit, ours last; `is_installed` tells that what is installed is ours."""
    ours = f"{host.node(install_dir)}/toolkit"
    found = [each for place in _DIRECTORIES for each in _in(host.below(place), place, ours=False)]
    found += _in(install_dir / "toolkit", ours, ours=is_installed)
    return found


def own_version(host: Host, install_dir: Path) -> str:
    """Return what the installed `nvidia-ctk` says of its version, or why it says nothing."""
    program = f"{host.node(install_dir)}/toolkit/nvidia-ctk"
    try:
        result = process.run([program, "--version"], root=host.root, timeout=_SOON)
    except ToolkitError as error:
        return error.message
    lines = (result.out or result.err).splitlines()
    return lines[0] if lines else f"it said nothing (exit status {result.code})"


def _in(local: Path, node_path: str, *, ours: bool) -> Iterator[dict[str, Any]]:
    try:
        names = sorted(name for name in os.listdir(local) if _NAMES.fullmatch(name))
    except OSError:
        return
    for name in names:
        target = os.readlink(local / name) if (local / name).is_symlink() else None
        version = _LIBRARY.fullmatch(os.path.basename(target or name)) or _LIBRARY.fullmatch(name)
        yield {
            "path": f"{node_path}/{name}",
            "link": target,
            "ours": ours,
            "version": version[1] if version else None,
            **_content(local / name, is_link=target is not None),
        }


def _content(path: Path, *, is_link: bool) -> dict[str, Any]:
    """Return a file's size and kind; a link's target may be one of the node's root only."""
    if is_link:
        return {"size": None, "kind": "link"}
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as stream:
            head = stream.read(4)
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        return {"size": None, "kind": f"cannot be read: {error.strerror}"}
    kind = "ELF" if head == b"\x7fELF" else "script" if head[:2] == b"#!" else "other"
    return {"size": size, "kind": kind}
