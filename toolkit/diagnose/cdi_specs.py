"""List the node's CDI specifications of NVIDIA devices, with missing hooks and outdated drivers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from runtimes.lazy_pattern import lazy_pattern
from toolkit.cdi import spec
from toolkit.errors import ToolkitError
from toolkit.node import files, system
from toolkit.node.host import Host
from toolkit.settings.resolve import Settings

_DIRECTORIES: Final = ("/etc/cdi", "/var/run/cdi")
_ENDINGS: Final = (".json", ".yaml", ".yml")
# Searched as text: a specification from another tool may be YAML, and only these values are needed.
_KIND: Final = lazy_pattern(r'"?kind"?:\s*"?([\w./-]+)')
_HOOK: Final = lazy_pattern(r'"?path"?:\s*"?(/[^\s",]+/(?:nvidia-cdi-hook|nvidia-ctk))\b')
_DRIVER: Final = lazy_pattern(r"/lib(?:cuda|nvidia-ml)\.so\.(\d+\.\d+(?:\.\d+)*)")


def specifications(settings: Settings, host: Host) -> dict[str, Any]:
    """Return the specifications, and the version of the loaded driver."""
    loaded = system.text_of(host, "/sys/module/nvidia/version")
    directories = dict.fromkeys((*_DIRECTORIES, settings.cdi_output_dir))
    result = [
        _described(host, path, loaded)
        for each in directories
        if each
        for path in _files(host, each)
    ]
    return {
        "wanted": spec.is_wanted(settings),
        "driver": loaded,
        "specifications": [each for each in result if each is not None],
    }


def _files(host: Host, directory: str) -> list[Path]:
    with suppress(ToolkitError, OSError):
        location = (
            Path(directory) if Path(directory).is_dir() else host.target(host.seen(directory))
        )
        return sorted(path for path in location.iterdir() if path.name.endswith(_ENDINGS))
    return []


def _described(host: Host, path: Path, loaded: str | None) -> dict[str, Any] | None:
    try:
        snapshot = files.read(path)
    except ToolkitError as error:
        return {"path": str(path), "problem": error.message}
    text = snapshot.data.decode(errors="replace") if snapshot else ""
    kind = _KIND.search(text)
    if kind is None or "nvidia" not in text:
        return None
    drivers = sorted(set(_DRIVER.findall(text)))
    hooks = sorted(set(_HOOK.findall(text)))
    return {
        "path": str(path),
        "kind": kind[1],
        "drivers": drivers,
        "is_old": bool(loaded and drivers and loaded not in drivers),
        "hooks": hooks,
        "missing_hooks": [hook for hook in hooks if not host.seen(hook).exists()],
    }
