"""Facts of the node: kernel, distribution, cgroups, security modules, uptime. Reads only files."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from toolkit.errors import ToolkitError
from toolkit.node.host import Host

_SYSTEMD: Final = (
    "/usr/lib/systemd/libsystemd-shared-*.so",
    "/lib/systemd/libsystemd-shared-*.so",
    "/usr/lib/*/systemd/libsystemd-shared-*.so",
    "/usr/lib64/systemd/libsystemd-shared-*.so",
)
_MOST: Final = 65536


def node(host: Host) -> dict[str, Any]:
    """Return the facts about a node as JSON values; None for facts that cannot be determined."""
    uptime = text_of(host, "/proc/uptime")
    return {
        "root": str(host.root),
        "kernel": os.uname().release,
        "architecture": os.uname().machine,
        "os": _distribution(host),
        "cgroup": _cgroup(host),
        "selinux": _selinux(host),
        "apparmor": (
            "on" if text_of(host, "/sys/module/apparmor/parameters/enabled") == "Y" else "off"
        ),
        "systemd": _systemd(host),
        "boot": text_of(host, "/proc/sys/kernel/random/boot_id"),
        "uptime_s": int(float(uptime.split()[0])) if uptime else None,
    }


def text_of(host: Host, node_path: str) -> str | None:
    """Return the stripped content of a small file of the node; None if it cannot be read."""
    for path in local_paths(host, node_path):
        # O_NONBLOCK, since a FIFO at the path must not block.
        with suppress(OSError), open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            return (stream.read(_MOST) or b"").decode(errors="replace").strip()
    return None


def local_paths(host: Host, node_path: str) -> Iterator[Path]:
    """Yield the local paths of a node path: below the root, and for /proc and /sys the path itself.

    The kernel's files have the same content in every mount namespace.
    """
    with suppress(ToolkitError):
        yield host.target(host.below(node_path))
    if node_path.startswith(("/proc/", "/sys/")):
        yield Path(node_path)


def exists(host: Host, node_path: str) -> bool:
    """Return whether a path of the node exists; False if it cannot be examined."""
    for path in local_paths(host, node_path):
        with suppress(OSError):
            if path.exists():
                return True
    return False


def os_release(host: Host) -> str:
    """Return the content of the node's os-release file; empty if there is none."""
    return text_of(host, "/etc/os-release") or text_of(host, "/usr/lib/os-release") or ""


def _distribution(host: Host) -> str | None:
    for line in os_release(host).splitlines():
        name, _, quoted = line.partition("=")
        if name.strip() == "PRETTY_NAME":
            with suppress(ValueError):
                return " ".join(shlex.split(quoted))
            return quoted
    return None


def _cgroup(host: Host) -> str | None:
    if exists(host, "/sys/fs/cgroup/cgroup.controllers"):
        return "v2"
    if exists(host, "/sys/fs/cgroup/unified/cgroup.controllers"):
        return "hybrid"
    return "v1" if exists(host, "/sys/fs/cgroup/memory") else None


def _selinux(host: Host) -> str:
    enforce = text_of(host, "/sys/fs/selinux/enforce")
    return "off" if enforce is None else "enforcing" if enforce == "1" else "permissive"


def _systemd(host: Host) -> str | None:
    """Return systemd's version, from the name of its shared library; None if not found."""
    for pattern in _SYSTEMD:
        for path in host.glob(pattern):
            result = re.fullmatch(r"libsystemd-shared-(.+)\.so", path.rpartition("/")[2])
            if result and not result[1].startswith("core"):
                return result[1]
    return None
