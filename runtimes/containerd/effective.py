"""The effective configuration of containerd, from the dump of its files or from its CRI status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtimes.containerd.binary import binary_facts
from runtimes.containerd.imports import load
from runtimes.containerd.schema import BINARY, CRI, section_of, table_or_empty
from runtimes.edits import value
from runtimes.model import EMPTY, Desired, Effective, Observation, Tree

# Since 2.0 the sandbox image belongs to another plugin.
_IMAGE: Final = (
    ("plugins", "io.containerd.cri.v1.images", "pinned_images", "sandbox"),
    ("plugins", "io.containerd.grpc.v1.cri", "sandbox_image"),
    ("plugins", "cri", "sandbox_image"),
)

# The keys of a handler's table that name a program, and those of its options in lower case. The
# second of each is read by the shim of runtime type v1.
_PROGRAMS: Final = ("runtime_path", "runtime_engine")
_OPTIONS: Final = (BINARY.lower(), "runtime")


def effective(desired: Desired, observation: Observation) -> Effective:
    """Return the configuration in the binary's dump of the current files; empty without a dump."""
    return _of_dump(binary_facts(observation).effective)


def effective_without_us(desired: Desired, observation: Observation) -> Effective:
    """Return the configuration that the files would have without our keys; empty if unknown."""
    return _of_dump(binary_facts(observation).original)


def _of_dump(dump: Tree | None) -> Effective:
    section = section_of(dump) if dump is not None else None
    if dump is None or section is None:
        return Effective()
    images = [image for key in _IMAGE if isinstance(image := value(dump, key), str)]
    return _effective(section, "default_runtime_name", images[0] if images else None)


def programs(desired: Desired, observation: Observation) -> dict[str, tuple[str, ...]]:
    """Return the programs of effective handlers, by handler; without a dump, those of all files."""
    dump = binary_facts(observation).effective
    trees = [file.tree for file in load(desired, observation)[0]] if dump is None else [dump]
    result: dict[str, tuple[str, ...]] = {}
    for tree in trees:
        for cri in dict.fromkeys(CRI.values()):
            containerd = table_or_empty(tree, ("plugins", cri, "containerd"))
            legacy_default = containerd.get("default_runtime")
            handlers = {"default_runtime": legacy_default} if legacy_default else {}
            for handler, table in {
                **handlers,
                **table_or_empty(containerd, ("runtimes",)),
            }.items():
                named = _named(table) if isinstance(table, Mapping) else ()
                result[handler] = tuple(dict.fromkeys((*result.get(handler, ()), *named)))
    return {handler: named for handler, named in result.items() if named}


def _named(handler: Tree) -> tuple[str, ...]:
    """Return the programs that a handler's table and its options name."""
    options = handler.get("options")
    listed = options.items() if isinstance(options, Mapping) else ()
    items = [handler.get(key) for key in _PROGRAMS] + [
        v for k, v in listed if k.lower() in _OPTIONS
    ]
    return tuple(item for item in items if isinstance(item, str) and item)


def running(config: Tree | None, body: str) -> Effective:
    """Return the config in CRI's verbose status; 2.x omits the sandbox image (seen with 2.1)."""
    if config is None:
        return Effective()
    image = config.get("sandboxImage")
    return _effective(
        config, "defaultRuntimeName", image if isinstance(image, str) and image else None
    )


def _effective(section: Tree, default_key: str, image: str | None) -> Effective:
    """Return the effective config of a CRI section; `default_key` holds the default handler."""
    containerd = table_or_empty(section, ("containerd",))
    handlers = table_or_empty(containerd, ("runtimes",))
    default = containerd.get(default_key)
    return Effective(
        handlers=frozenset(handlers) if handlers else None,
        default=default if isinstance(default, str) and default else None,
        sandbox_image=image,
        systemd_cgroup=frozenset(name for name, table in handlers.items() if _is_by_systemd(table)),
    )


def _is_by_systemd(handler: Any) -> bool:
    """Return whether a handler uses the systemd cgroup driver."""
    options = handler.get("options") if isinstance(handler, Mapping) else None
    return bool((options or EMPTY).get("SystemdCgroup")) if isinstance(options, Mapping) else False
