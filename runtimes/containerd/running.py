"""What matters to pods of what a containerd has: by its dump of the files, or by its own word over CRI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtimes.containerd.facts import told
from runtimes.containerd.imports import load
from runtimes.containerd.schema import BINARY, CRI, section_of, table_or_empty
from runtimes.edits import value
from runtimes.model import EMPTY, Desired, Effective, Observation, Tree

# Since 2.0 the image is another plugin's.
_IMAGE: Final = (
    ("plugins", "io.containerd.cri.v1.images", "pinned_images", "sandbox"),
    ("plugins", "io.containerd.grpc.v1.cri", "sandbox_image"),
    ("plugins", "cri", "sandbox_image"),
)

# Of a handler's table, and of its options in small letters: what the shim of type v1 reads has other names.
_PROGRAMS: Final = ("runtime_path", "runtime_engine")
_OPTIONS: Final = (BINARY.lower(), "runtime")


def effective(desired: Desired, seen: Observation) -> Effective:
    """Return what the node's binary makes of the files as they are."""
    dump = told(seen).effective
    section = section_of(dump) if dump is not None else None
    if dump is None or section is None:
        return Effective()
    images = [image for key in _IMAGE if isinstance(image := value(dump, key), str)]
    return _effective(section, "default_runtime_name", images[0] if images else None)


def programs(desired: Desired, seen: Observation) -> dict[str, tuple[str, ...]]:
    """Return the programs that the handlers in effect name; without a dump, that any file names."""
    dump = told(seen).effective
    trees = [file.tree for file in load(desired, seen)[0]] if dump is None else [dump]
    found: dict[str, tuple[str, ...]] = {}
    for tree in trees:
        for cri in dict.fromkeys(CRI.values()):
            containerd = table_or_empty(tree, ("plugins", cri, "containerd"))
            old = containerd.get("default_runtime")
            handlers = {"default_runtime": old} if old else {}
            for handler, table in {**handlers, **table_or_empty(containerd, ("runtimes",))}.items():
                named = _named(table) if isinstance(table, Mapping) else ()
                found[handler] = tuple(dict.fromkeys((*found.get(handler, ()), *named)))
    return {handler: named for handler, named in found.items() if named}


def _named(handler: Tree) -> tuple[str, ...]:
    options = handler.get("options")
    listed = options.items() if isinstance(options, Mapping) else ()
    items = [handler.get(key) for key in _PROGRAMS] + [v for k, v in listed if k.lower() in _OPTIONS]
    return tuple(item for item in items if isinstance(item, str) and item)


def running(config: Tree | None, body: str) -> Effective:
    """Return what the verbose status over CRI says; 2.x leaves the sandbox image out (seen with 2.1)."""
    if config is None:
        return Effective()
    image = config.get("sandboxImage")
    return _effective(config, "defaultRuntimeName", image if isinstance(image, str) and image else None)


def _effective(section: Tree, default_key: str, image: str | None) -> Effective:
    containerd = table_or_empty(section, ("containerd",))
    handlers = table_or_empty(containerd, ("runtimes",))
    default = containerd.get(default_key)
    return Effective(
        handlers=frozenset(handlers) if handlers else None,
        default=default if isinstance(default, str) and default else None,
        sandbox_image=image,
        by_systemd=frozenset(name for name, table in handlers.items() if _is_by_systemd(table)),
    )


def _is_by_systemd(handler: Any) -> bool:
    options = handler.get("options") if isinstance(handler, Mapping) else None
    return bool((options or EMPTY).get("SystemdCgroup")) if isinstance(options, Mapping) else False
