"""Detect the NVIDIA driver: its kernel module, device nodes and their links, and root directory."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from runtimes.dataclass import dataclass
from runtimes.lazy_pattern import lazy_pattern
from toolkit.artifacts import wrappers
from toolkit.errors import ToolkitError
from toolkit.node import procfs, system
from toolkit.node.host import Host
from toolkit.settings.resolve import Settings

_LIBRARIES: Final = (
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib",
    "lib64",
)
_UNMERGED: Final = ("lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu")
_CONTROL: Final = ("nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools")
MANAGEMENT: Final = "management"
_MODULE: Final = "/sys/module/nvidia"
_WSL: Final = "/dev/dxg"
_TEGRA: Final = "/sys/module/nvgpu"
_OF_NODE: Final = (
    "the driver of WSL2 and of a Tegra is part of the node: set --driver-root=/ (DRIVER_ROOT=/)"
)
_NODES: Final = lazy_pattern(r"nvidia.*")
_CAPABILITIES: Final = lazy_pattern(r"nvidia-cap.*|channel.*")
_DESCRIBING: Final = {
    "wsl": ("usr/lib/wsl/lib", "usr/lib/wsl/drivers"),
    "csv": ("etc/nvidia-container-runtime/host-files-for-container.d",),
}
"""The directories that nvidia-ctk looks into in its other modes."""
_PROGRAMS: Final = ("usr/bin", "bin", "usr/local/bin", "opt/bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """The directories of the driver's files and of the device nodes, as needed to run nvidia-ctk.

    `within` is the root directory that it runs in; `driver` and `dev` are the paths inside that
    root. `named` holds the node paths of the two, and `seen` their local paths.
    """

    within: Path
    driver: str
    dev: str
    named: tuple[str, str]
    local: tuple[Path, Path]


def roots(settings: Settings, host: Host) -> Roots | None:
    """Return the driver's directories: those on the node, else those mounted in this container.

    Returns None if neither exists.
    """
    node_paths = settings.driver_root, settings.dev_root or settings.driver_root
    on_node = _below(host, node_paths[0]), _below(host, node_paths[1])
    if on_node[0] is not None and on_node[1] is not None:
        return Roots(
            within=host.root,
            driver=node_paths[0],
            dev=node_paths[1],
            named=node_paths,
            local=(on_node[0], on_node[1]),
        )
    driver = settings.driver_root_ctr_path
    dev = settings.dev_root_ctr_path or driver
    if driver and Path(driver).is_dir():
        return Roots(
            within=Path("/"),
            driver=driver,
            dev=dev,
            named=node_paths,
            local=(Path(driver), Path(dev)),
        )
    return None


def _below(host: Host, node_path: str) -> Path | None:
    with suppress(ToolkitError, OSError):
        path = host.target(host.below(node_path))
        return path if path.is_dir() else None
    return None


def marker_paths(host: Host) -> list[str]:
    """Return the local paths that show the driver: one of them exists if it is loaded."""
    paths = (path for sign in wrappers.DRIVER_SIGNS for path in system.local_paths(host, sign))
    return [str(path) for path in dict.fromkeys(paths)]


def is_loaded(host: Host) -> bool:
    """Return whether the driver is loaded; the toolkit's wrappers check the same paths."""
    return procfs.any_exists(marker_paths(host))


def mode(host: Host) -> str:
    """Return the mode in which nvidia-ctk describes the driver that is loaded.

    WSL2 and a Tegra whose only module is nvgpu have no device nodes /dev/nvidia*, which the mode
    `management` looks for.
    """
    if not system.exists(host, _MODULE):
        if system.exists(host, _WSL):
            return "wsl"
        if system.exists(host, _TEGRA):
            return "csv"
    return MANAGEMENT


def absence(settings: Settings, host: Host) -> str:
    """Return which part of the driver is missing, or "" if it seems complete."""
    if not is_loaded(host):
        return "the driver is not loaded"
    result = roots(settings, host)
    if result is None or not any(result.local[0].iterdir()):
        why = f"the driver's root {settings.driver_root} does not exist or is empty"
        return why if mode(host) == MANAGEMENT else f"{why}; {_OF_NODE}"
    return ""


def missing_control_nodes(host: Host, result: Roots) -> tuple[str, ...]:
    """Return the names of missing control device nodes, which every GPU of module nvidia needs."""
    if mode(host) != MANAGEMENT:
        return ()
    return tuple(name for name in _CONTROL if not (result.local[1] / "dev" / name).exists())


def identity(host: Host, result: Roots) -> list[str]:
    """Return strings that identify the driver: its version, its device nodes, and its files.

    They change when the driver or the node's devices change.
    """
    version = system.text_of(host, f"{_MODULE}/version") or ""
    dev = result.local[1] / "dev"
    nodes = [
        *_characters(dev, _NODES),
        *_characters(dev / "nvidia-caps", _CAPABILITIES),
        *_characters(dev / "nvidia-caps-imex-channels", _CAPABILITIES),
    ]
    files = [
        f"/{directory}/{name}"
        for directory in (*_LIBRARIES, *_UNMERGED, *_PROGRAMS)
        for name in _names(result.local[0] / directory)
        if _is_driver_file(name)
    ]
    other = mode(host)
    described = [
        f"{other} /{directory}/{name} {_modified(result.local[0] / directory / name)}"
        for directory in _DESCRIBING.get(other, ())
        for name in _names(result.local[0] / directory)
    ]
    return [version, *nodes, *files, *described]


def watched(settings: Settings, host: Host) -> Iterator[Path]:
    """Yield the paths to watch for driver changes; one that ends in `*` means a whole directory."""
    result = roots(settings, host)
    if result is None:
        with suppress(ToolkitError):
            yield host.target(host.below(settings.driver_root))
        return
    dev = result.local[1] / "dev"
    yield result.local[0]
    yield from (dev / name for name in (*_CONTROL, "nvidia0"))
    yield dev / "nvidia-caps" / "*"


def _characters(directory: Path, pattern: re.Pattern[str]) -> Iterator[str]:
    for name in _names(directory):
        with suppress(OSError):
            status = os.stat(directory / name)
            if pattern.fullmatch(name) and stat.S_ISCHR(status.st_mode):
                yield f"{name} {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _is_driver_file(name: str) -> bool:
    is_library = ".so." in name and name[-1].isdigit() and "nvidia" in name
    return is_library or name.startswith(("libcuda.", "nvidia-"))


def _modified(path: Path) -> int:
    try:
        return os.lstat(path).st_mtime_ns
    except OSError:
        return 0


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def driver(settings: Settings, host: Host) -> dict[str, Any]:
    """Return a description of the driver, without loading a module or running a program."""
    version = system.text_of(host, "/proc/driver/nvidia/version")
    nodes = list(_nodes(_dev(settings, host)))
    return {
        "version": version.splitlines()[0] if version else None,
        "modules": sorted(_modules(host)),
        "loaded": next((sign for sign in wrappers.DRIVER_SIGNS if system.exists(host, sign)), None),
        "devices": nodes,
        "missing_links": [f"/dev/char/{n['number']}" for n in nodes if not n["link"]],
        "root": _root(settings, host),
    }


def _modules(host: Host) -> Iterator[str]:
    for line in (system.text_of(host, "/proc/modules") or "").splitlines():
        if re.match(r"(nvidia\w*|nvgpu)\s", line):
            yield line.split()[0]


def _dev(settings: Settings, host: Host) -> Path:
    given = settings.dev_root_ctr_path
    return Path(given) / "dev" if given else host.below("/dev")


def _nodes(dev: Path) -> Iterator[dict[str, Any]]:
    """Yield each device node and whether its /dev/char link (for systemd and runc) exists."""
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
    """Describe the driver's root: the mounted one, else the one below the node's root."""
    node_path = settings.driver_root
    path = Path(settings.driver_root_ctr_path or "/nonexistent")
    if not path.is_dir():
        with suppress(ToolkitError):
            path = host.target(host.below(node_path))
    return {
        "path": node_path,
        "seen_at": str(path),
        "exists": path.is_dir(),
        "nvidia_smi": _first(path, _PROGRAMS, "nvidia-smi"),
        "libnvidia_ml": _first(path, _LIBRARIES, "libnvidia-ml.so.1"),
    }


def _first(root: Path, directories: tuple[str, ...], name: str) -> str | None:
    return next((f"/{d}/{name}" for d in directories if os.path.lexists(root / d / name)), None)
