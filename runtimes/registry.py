"""The adapters by runtime name. Each is imported on first use, because a node runs only one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from runtimes.adapter import Adapter
from runtimes.model import RuntimeName


class _Adapters(Mapping[RuntimeName, Adapter]):
    """A mapping from runtime name to adapter that imports each adapter on first use."""

    def __getitem__(self, name: RuntimeName) -> Adapter:
        match name:
            case RuntimeName.CONTAINERD:
                from runtimes import containerd  # noqa: PLC0415

                return containerd.ADAPTER
            case RuntimeName.CRIO:
                from runtimes import crio  # noqa: PLC0415

                return crio.ADAPTER
            case RuntimeName.DOCKER:
                from runtimes import docker  # noqa: PLC0415

                return docker.ADAPTER
        raise KeyError(name)

    def __iter__(self) -> Iterator[RuntimeName]:
        return iter(RuntimeName)

    def __len__(self) -> int:
        return len(RuntimeName)


ADAPTERS: Final[Mapping[RuntimeName, Adapter]] = _Adapters()
