"""Check that the node has the files and plugins that `--runtime-config-override` names.

`config dump` accepts any path and any name. What does not exist is found when a pod starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

from runtimes.model import EMPTY
from toolkit.deadline import Timeout
from toolkit.node import command, processes
from toolkit.runtime.client import cri
from toolkit.runtime.locate import Target

_OPTION: Final = "--runtime-config-override"


def problems(target: Target, *, timeout: Timeout) -> Iterator[str]:
    """Yield a message for each key whose program, file or snapshotter the node does not have."""
    keys = {key.lower(): item for key, item in target.desired.override.items()}
    path, kind = keys.get("runtime_path"), keys.get("runtime_type")
    if isinstance(path, str) and path:
        yield from _program(target, "runtime_path", path)
    elif isinstance(kind, str) and kind:
        yield from _shim(target, kind)
    spec = keys.get("base_runtime_spec")
    if isinstance(spec, str) and spec:
        yield from _file(target, "base_runtime_spec", spec)
    options = keys.get("options")
    listed = options.items() if isinstance(options, Mapping) else EMPTY.items()
    for key, item in listed:
        if key.lower() == "configpath" and isinstance(item, str) and item:
            yield from _file(target, "options.ConfigPath", item)
    name = keys.get("snapshotter")
    if isinstance(name, str) and name and target.process is not None:
        yield from _snapshotter(target, name, timeout)


def shim_name(kind: str) -> str:
    """Return the name of the program of a runtime type, as containerd derives it; empty if it has none."""
    parts = kind.split(".")
    return f"containerd-shim-{parts[-2]}-{parts[-1]}" if len(parts) > 1 and parts[0] else ""


def _program(target: Target, key: str, path: str) -> Iterator[str]:
    if not path.startswith("/"):
        yield f"{_OPTION}: {key} must be an absolute path, but is {path!r}"
    elif target.host.executable(path) is None:
        yield f"{_OPTION}: {key} names {path}, which is not an executable file on the node"


def _file(target: Target, key: str, path: str) -> Iterator[str]:
    found = target.host.resolve(path) if path.startswith("/") else None
    if found is None or not os.path.isfile(found):
        yield f"{_OPTION}: {key} names {path}, which is not a file on the node"


def _shim(target: Target, kind: str) -> Iterator[str]:
    """Search the shim as containerd does: in the PATH of the daemon, then beside its own executable."""
    if kind.startswith("/"):
        yield from _program(target, "runtime_type", kind)
        return
    name = shim_name(kind)
    if not name:
        yield f"{_OPTION}: runtime_type {kind!r} is not of the form NAME.VERSION, so it names no shim"
        return
    path = processes.search_path(target.process) if target.process is not None else None
    beside = [str(PurePosixPath(target.binary).parent)] if target.binary else []
    searched = ":".join([path or command.SEARCH_PATH, *beside])
    if target.host.executable(name, searched) is None:
        yield (
            f"{_OPTION}: the shim {name} of runtime_type {kind!r} was not found in the PATH of containerd"
            f" ({searched})"
        )


def _snapshotter(target: Target, name: str, timeout: Timeout) -> Iterator[str]:
    known = cri.snapshotters(target.socket, timeout=timeout)
    if not known:
        return  # It does not say, so only the configuration counts.
    usable = ", ".join(sorted(key for key, error in known.items() if not error))
    if name not in known:
        yield f"{_OPTION}: the running containerd has no snapshotter {name!r}, only {usable}"
    elif known[name]:
        yield f"{_OPTION}: the running containerd did not load the snapshotter {name!r}: {known[name]}"
