"""A made-up driver: libraries, a program, device nodes, and a kernel that says that it is loaded.

Only a mount namespace says the latter: whoever is run with `loaded` sees it, and nobody else.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support import fake_node
from tests.support.nodes import Node, path, run

VERSION: Final = "999.88.77"
ROOT: Final = "/run/nvidia/driver"
"""Where the GPU Operator's driver container shows its root, on a booted node."""
CONTROL: Final = ("nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools")
"""The device nodes that nvidia-ctk makes where they are missing."""
_LIBRARIES: Final = ("libcuda.so", "libnvidia-ml.so", "libnvidia-ptxjitcompiler.so")
_MAJOR: Final = 195
_NODES: Final = {"nvidia0": 0, "nvidiactl": 255, "nvidia-modeset": 254}
_UVM: Final = {"nvidia-uvm": 0, "nvidia-uvm-tools": 1}
_DEVICES: Final = f"Character devices:\n{_MAJOR} nvidia\n{_MAJOR + 1} nvidia-uvm\n"
_LOADED: Final = """
mount -t tmpfs fake /sys/module
mkdir /sys/module/nvidia
cat "$1/version" > /sys/module/nvidia/version
mount --bind "$1/devices" /proc/devices
shift
"""


def make(root: Path, version: str = VERSION, *, nodes: bool = True) -> Path:
    """Make a driver's root, anew where there is one; its device nodes are what nobody can open."""
    shutil.rmtree(root, ignore_errors=True)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    (root / "dev").mkdir()
    for library in _LIBRARIES:
        (libraries / f"{library}.{version}").write_bytes(b"not a library\n")
        (libraries / f"{library}.1").symlink_to(f"{library}.{version}")
    fake_node.write_program(root / "usr/bin/nvidia-smi", "#!/bin/sh\necho made up\n")
    (root / "version").write_text(f"{version}\n", encoding="ascii")
    # The machine's own stay: runc and systemd look for them there.
    devices = (
        Path("/proc/devices").read_text(encoding="ascii").replace("Character devices:\n", _DEVICES)
    )
    (root / "devices").write_text(devices, encoding="ascii")
    if nodes:
        for names, major in ((_NODES, _MAJOR), (_UVM, _MAJOR + 1)):
            for name, minor in names.items():
                node(root, name, major, minor)
    return root


def node(root: Path, name: str, major: int, minor: int) -> None:
    """Make a device node of the driver."""
    (root / "dev" / name).parent.mkdir(exist_ok=True)
    os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))


def loaded(root: Path) -> tuple[str, ...]:
    """Return a prefix that runs a command where the kernel says that this driver is loaded."""
    return fake_node.in_mounts(_LOADED, str(root))


@contextmanager
def on_node(booted: Node) -> Iterator[None]:
    """Make the driver up on a booted node, all of which sees that it is loaded.

    Of its device nodes there is the GPU's alone: the others are left to nvidia-ctk.
    """
    root = path(booted, ROOT)
    made = make(root / "made", nodes=False)
    node(made, "nvidia0", _MAJOR, 0)
    for each in made.iterdir():
        each.rename(root / each.name)
    run(booted, ["mount", "--bind", f"{ROOT}/devices", "/proc/devices"])
    run(booted, ["mount", "-t", "tmpfs", "made-up", "/sys/module"])
    try:
        run(booted, ["mkdir", "/sys/module/nvidia"])
        path(booted, "/sys/module/nvidia/version").write_text(VERSION, encoding="ascii")
        yield
    finally:
        run(booted, ["umount", "/sys/module", "/proc/devices"])
        run(booted, ["sh", "-c", f"rm -rf {ROOT}/*"])
