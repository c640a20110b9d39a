"""What is there of the driver: the kernel's part, its device nodes and their links, and its root."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from toolkit import machine
from toolkit.errors import ToolkitError
from toolkit.host import Host
from toolkit.settings import Settings

_LIBRARIES: Final = ("usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib", "lib64")
_UNMERGED: Final = ("lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu")
_CONTROL: Final = ("nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools")
_MODULE: Final = "/sys/module/nvidia"
_NODES: Final = re.compile(r"nvidia.*")
_CAPABILITIES: Final = re.compile(r"nvidia-cap.*|channel.*")
_PROGRAMS: Final = ("usr/bin", "bin", "usr/local/bin", "opt/bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Where the driver's files and the device nodes are, for a program that shall find them.

    `within` is the root that it runs in, `driver` and `dev` are the paths there,
    `named` the same two as the node names them, and `seen` as we see them.
    """

    within: Path
    driver: str
    dev: str
    named: tuple[str, str]
    seen: tuple[Path, Path]


def roots(settings: Settings, host: Host) -> Roots | None:
    """Return where the driver is: as the node has it, else where we are told to see it; None for nowhere."""
    named = settings.text("driver_root"), settings.text("dev_root") or settings.text("driver_root")
    on_node = _below(host, named[0]), _below(host, named[1])
    if on_node[0] is not None and on_node[1] is not None:
        return Roots(
            within=host.root, driver=named[0], dev=named[1], named=named, seen=(on_node[0], on_node[1])
        )
    driver = settings.text("driver_root_ctr_path")
    dev = settings.text("dev_root_ctr_path") or driver
    if driver and Path(driver).is_dir():
        return Roots(within=Path("/"), driver=driver, dev=dev, named=named, seen=(Path(driver), Path(dev)))
    return None


def _below(host: Host, node_path: str) -> Path | None:
    with suppress(ToolkitError, OSError):
        found = host.target(host.below(node_path))
        return found if found.is_dir() else None
    return None


def is_loaded(host: Host) -> bool:
    """Tell whether the kernel has the driver: by that the wrappers go as well."""
    return machine.is_there(host, _MODULE)


def absence(settings: Settings, host: Host) -> str:
    """Return what of the driver is missing; empty where nothing is, as far as one can see."""
    if not is_loaded(host):
        return "the driver is not loaded"
    found = roots(settings, host)
    if found is None or not any(found.seen[0].iterdir()):
        return f"the driver's root {settings.text('driver_root')} is not there"
    return ""


def missing_control_nodes(found: Roots) -> tuple[str, ...]:
    """Return which of the device nodes that every GPU needs are not there."""
    return tuple(name for name in _CONTROL if not (found.seen[1] / "dev" / name).exists())


def traits(host: Host, found: Roots) -> list[str]:
    """Return what tells one driver, and what it makes of this node's devices, from another."""
    version = machine.words(host, f"{_MODULE}/version") or ""
    dev = found.seen[1] / "dev"
    nodes = [
        *_characters(dev, _NODES),
        *_characters(dev / "nvidia-caps", _CAPABILITIES),
        *_characters(dev / "nvidia-caps-imex-channels", _CAPABILITIES),
    ]
    files = [
        f"/{directory}/{name}"
        for directory in (*_LIBRARIES, *_UNMERGED, *_PROGRAMS)
        for name in _names(found.seen[0] / directory)
        if _is_of_driver(name)
    ]
    return [version, *nodes, *files]


def watched(settings: Settings, host: Host) -> Iterator[Path]:
    """Yield the paths whose change may mean another driver; one that ends in a star is all of a directory."""
    found = roots(settings, host)
    if found is None:
        with suppress(ToolkitError):
            yield host.target(host.below(settings.text("driver_root")))
        return
    dev = found.seen[1] / "dev"
    yield found.seen[0]
    yield from (dev / name for name in (*_CONTROL, "nvidia0"))
    yield dev / "nvidia-caps" / "*"


def _characters(directory: Path, pattern: re.Pattern[str]) -> Iterator[str]:
    for name in _names(directory):
        with suppress(OSError):
            status = os.stat(directory / name)
            if pattern.fullmatch(name) and stat.S_ISCHR(status.st_mode):
                yield f"{name} {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _is_of_driver(name: str) -> bool:
    is_library = ".so." in name and name[-1].isdigit() and "nvidia" in name
    return is_library or name.startswith(("libcuda.", "nvidia-"))


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def driver(settings: Settings, host: Host) -> dict[str, Any]:
    """Return what is there of the driver; nothing is loaded, and no program of it is run."""
    version = machine.words(host, "/proc/driver/nvidia/version")
    nodes = list(_nodes(_dev(settings, host)))
    return {
        "version": version.splitlines()[0] if version else None,
        "modules": sorted(_modules(host)),
        "devices": nodes,
        "missing_links": [f"/dev/char/{n['number']}" for n in nodes if not n["link"]],
        "root": _root(settings, host),
    }


def _modules(host: Host) -> Iterator[str]:
    for line in (machine.words(host, "/proc/modules") or "").splitlines():
        if re.match(r"nvidia\w*\s", line):
            yield line.split()[0]


def _dev(settings: Settings, host: Host) -> Path:
    given = settings.text("dev_root_ctr_path")
    return Path(given) / "dev" if given else host.below("/dev")


def _nodes(dev: Path) -> Iterator[dict[str, Any]]:
    """Yield the device nodes, and whether systemd and runc find each under its number (`/dev/char`)."""
    for directory, prefix in ((dev, "/dev"), (dev / "nvidia-caps", "/dev/nvidia-caps")):
        try:
            names = sorted(name for name in os.listdir(directory) if name.startswith("nvidia"))
        except OSError:
            continue
        for name in names:
            with suppress(OSError):
                status = os.stat(directory / name, follow_symlinks=False)
                if stat.S_ISCHR(status.st_mode):
                    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
                    yield {
                        "path": f"{prefix}/{name}",
                        "number": number,
                        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
                        "link": os.path.lexists(dev / "char" / number),
                    }


def _root(settings: Settings, host: Host) -> dict[str, Any]:
    """Return what the driver's root has, seen where we are told to see it, else through the node's root."""
    node_path = settings.text("driver_root")
    seen = Path(settings.text("driver_root_ctr_path") or "/nonexistent")
    if not seen.is_dir():
        with suppress(ToolkitError):
            seen = host.target(host.below(node_path))
    return {
        "path": node_path,
        "seen_at": str(seen),
        "exists": seen.is_dir(),
        "nvidia_smi": _first(seen, _PROGRAMS, "nvidia-smi"),
        "libnvidia_ml": _first(seen, _LIBRARIES, "libnvidia-ml.so.1"),
    }


def _first(root: Path, directories: tuple[str, ...], name: str) -> str | None:
    return next((f"/{d}/{name}" for d in directories if os.path.lexists(root / d / name)), None)
