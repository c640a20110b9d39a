"""Every adapter, named once."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from runtimes import containerd
from runtimes.adapter import Adapter
from runtimes.model import RuntimeName

ADAPTERS: Final = MappingProxyType({RuntimeName.CONTAINERD: containerd})


def adapter(name: RuntimeName) -> Adapter | None:
    """Return the adapter of a runtime, or None where there is none yet."""
    return ADAPTERS.get(name)
