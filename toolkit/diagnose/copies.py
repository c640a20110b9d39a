"""List the node's copies of the toolkit: the installed one, and those from packages or an image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from runtimes.lazy_pattern import lazy_pattern
from toolkit.errors import ToolkitError
from toolkit.node import command
from toolkit.node.host import Host
from toolkit.settings.layout import InstallDir

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
_NAMES: Final = lazy_pattern(
    r"nvidia-container-runtime.*|nvidia-container-toolkit|nvidia-container-cli(\.real)?"
    r"|nvidia-ctk(\.real)?|nvidia-cdi-hook|libnvidia-container(-go)?\.so\..*"
)
_LIBRARY: Final = lazy_pattern(r"libnvidia-container(?:-go)?\.so\.(\d+\.\d+\S*)")
_SOON: Final = 5.0


def copies(host: Host, install_dir: Path, *, is_installed: bool) -> list[dict[str, Any]]:
    """Return every file of a toolkit, those in our install directory last.

    `is_installed` is whether we installed the toolkit in that directory.
    """
    own_directory = f"{host.node(install_dir)}/toolkit"
    result = [
        each
        for location in _DIRECTORIES
        for each in _toolkit_files(host.below(location), location, owned=False)
    ]
    result += _toolkit_files(InstallDir(install_dir).toolkit, own_directory, owned=is_installed)
    return result


def own_version(host: Host, install_dir: Path) -> str:
    """Return the version that the installed `nvidia-ctk` reports, or why it reports none."""
    program = f"{host.node(install_dir)}/toolkit/nvidia-ctk"
    try:
        result = command.run([program, "--version"], root=host.root, timeout=_SOON)
    except ToolkitError as error:
        return error.message
    lines = (result.out or result.err).splitlines()
    return lines[0] if lines else f"no output (exit status {result.code})"


def _toolkit_files(local: Path, node_path: str, *, owned: bool) -> Iterator[dict[str, Any]]:
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
            "owned": owned,
            "version": version[1] if version else None,
            **_content(local / name, is_link=target is not None),
        }


def _content(path: Path, *, is_link: bool) -> dict[str, Any]:
    """Return a file's size and kind. Links are not followed: targets may exist only on the node."""
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
