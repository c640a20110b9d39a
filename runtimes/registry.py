"""Every adapter, named once."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from runtimes import containerd, crio, docker
from runtimes.adapter import Adapter
from runtimes.model import RuntimeName

ADAPTERS: Final[Mapping[RuntimeName, Adapter]] = MappingProxyType(
    {
        RuntimeName.CONTAINERD: containerd,
        RuntimeName.CRIO: crio,
        RuntimeName.DOCKER: docker,
    }
)


def adapter(name: RuntimeName) -> Adapter | None:
    """Return the adapter of a runtime, or None where there is none yet."""
    return ADAPTERS.get(name)
