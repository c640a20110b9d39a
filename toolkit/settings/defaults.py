"""The defaults of the settings, by runtime."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

from toolkit.settings.options import Setting

AUTO: Final = "auto"
"""The value of the setting `runtime` as long as no runtime has been detected."""
_PREFIXES: Final = MappingProxyType(
    {"containerd": "CONTAINERD_", "docker": "DOCKER_", "crio": "CRIO_"}
)
BY_RUNTIME: Final = MappingProxyType(
    {
        "containerd": {
            "config": "/etc/containerd/config.toml",
            "drop_in_config": "/etc/containerd/conf.d/99-nvidia.toml",
            "socket": "/run/containerd/containerd.sock",
        },
        "docker": {
            "config": "/etc/docker/daemon.json",
            "drop_in_config": "",
            "socket": "/var/run/docker.sock",
        },
        "crio": {
            "config": "/etc/crio/crio.conf",
            "drop_in_config": "/etc/crio/crio.conf.d/99-nvidia.toml",
            "socket": "/var/run/crio/crio.sock",
        },
    }
)


def runtime_default(runtime: str, name: str) -> str:
    """Return the default of a setting whose default depends on the runtime."""
    return BY_RUNTIME[runtime][name]


def applies(variable: str, runtime: str) -> bool:
    """Return whether a variable applies to a runtime: `CONTAINERD_*` only to containerd, etc."""
    return not any(
        variable.startswith(prefix) for other, prefix in _PREFIXES.items() if other != runtime
    )


def default(row: Setting, runtime: str) -> Any:
    """Return the default of a setting for a runtime; None if it has no default."""
    if row.default is None:
        return BY_RUNTIME.get(runtime, {}).get(row.name)
    return row.default
