"""Every adapter, named once. One is loaded when it is asked for: a node has one runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from runtimes.adapter import Adapter
from runtimes.model import RuntimeName


class _Adapters(Mapping[RuntimeName, Adapter]):
    """The adapters by the names of their runtimes, each loaded on first use."""

    def __getitem__(self, name: RuntimeName) -> Adapter:
        match name:
            case RuntimeName.CONTAINERD:
                from runtimes import containerd  # noqa: PLC0415

                return containerd
            case RuntimeName.CRIO:
                from runtimes import crio  # noqa: PLC0415

                return crio
            case RuntimeName.DOCKER:
                from runtimes import docker  # noqa: PLC0415

                return docker
        raise KeyError(name)

    def __iter__(self) -> Iterator[RuntimeName]:
        return iter(RuntimeName)

    def __len__(self) -> int:
        return len(RuntimeName)


ADAPTERS: Final[Mapping[RuntimeName, Adapter]] = _Adapters()


def adapter(name: RuntimeName) -> Adapter | None:
    """Return the adapter of a runtime, or None where there is none yet."""
    return ADAPTERS.get(name)
