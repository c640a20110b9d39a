"""Check that the node has what the toolkit's handlers name: programs, files and snapshotters.

`config dump` accepts any path and any name. What does not exist is found when a pod starts. The
keys are those of `--runtime-config-override` and those that are inherited from a handler of the
node.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from runtimes.model import EMPTY, Origin, RuntimeName, Tree
from toolkit.deadline import Timeout
from toolkit.node import command, processes
from toolkit.node.host import Host
from toolkit.runtime import visibility
from toolkit.runtime.client import cri
from toolkit.runtime.locate import Target

_OPTION: Final = "--runtime-config-override"


def problems(target: Target, *, timeout: Timeout) -> Iterator[str]:
    """Yield a message for each override key whose program, file or snapshotter does not exist."""
    return _problems(target, _OPTION, target.desired.override, timeout)


def inherited_problems(target: Target, origin: Origin, *, timeout: Timeout) -> Iterator[str]:
    """Yield the same for the keys that the toolkit's handlers inherit, except the override's."""
    where = f"the handler {origin.source}, from which the toolkit's handlers inherit"
    if target.desired.runtime == RuntimeName.CRIO:
        path = origin.settings.get("monitor_path")
        if isinstance(path, str) and path:
            yield from _program(target, where, "monitor_path", path)
        return
    settings = dict(_without(origin.settings, target.desired.override))
    options = _table(settings, "options")
    settings["options"] = dict(_without(options, _table(target.desired.override, "options")))
    if target.process is None or "runtime_path" in {key.lower() for key in target.desired.override}:
        settings.pop("runtime_type", None)  # The PATH in which its shim is searched is not known.
    yield from _problems(target, where, settings, timeout)


def _without(keys: Tree, others: Tree) -> Iterator[tuple[str, Any]]:
    """Yield the keys that others do not set; tables are kept."""
    lowered = {key.lower() for key, item in others.items() if not isinstance(item, Mapping)}
    return ((key, item) for key, item in keys.items() if key.lower() not in lowered)


def _table(keys: Tree, name: str) -> Tree:
    found = next((item for key, item in keys.items() if key.lower() == name), EMPTY)
    return found if isinstance(found, Mapping) else EMPTY


def _problems(target: Target, where: str, given: Tree, timeout: Timeout) -> Iterator[str]:
    """Yield a message for each key of a handler that names something that does not exist."""
    keys = {key.lower(): item for key, item in given.items()}
    path, kind = keys.get("runtime_path"), keys.get("runtime_type")
    if isinstance(path, str) and path:
        yield from _program(target, where, "runtime_path", path)
    elif isinstance(kind, str) and kind:
        yield from _shim(target, where, kind)
    spec = keys.get("base_runtime_spec")
    if isinstance(spec, str) and spec:
        yield from _file(target, where, "base_runtime_spec", spec)
    for key, item in _table(given, "options").items():
        if key.lower() == "configpath" and isinstance(item, str) and item:
            yield from _file(target, where, "options.ConfigPath", item)
    name = keys.get("snapshotter")
    if isinstance(name, str) and name and target.process is not None:
        yield from _snapshotter(target, where, name, timeout)


def shim_name(kind: str) -> str:
    """Return the name of the program of a runtime type, as containerd derives it; empty if none."""
    parts = kind.split(".")
    return f"containerd-shim-{parts[-2]}-{parts[-1]}" if len(parts) > 1 and parts[0] else ""


def _host(target: Target) -> Host:
    """Return the file system in which the runtime finds what a handler names."""
    return visibility.of_runtime(target) or target.host


def _program(target: Target, where: str, key: str, path: str) -> Iterator[str]:
    if not path.startswith("/"):
        yield f"{where}: {key} must be an absolute path, but is {path!r}"
    elif _host(target).executable(path) is None:
        yield f"{where}: {key} names {path}, which is not an executable file on the node"


def _file(target: Target, where: str, key: str, path: str) -> Iterator[str]:
    found = _host(target).resolve(path) if path.startswith("/") else None
    if found is None or not os.path.isfile(found):
        yield f"{where}: {key} names {path}, which is not a file on the node"


def _shim(target: Target, where: str, kind: str) -> Iterator[str]:
    """Search the shim as containerd does: in the daemon's PATH, then beside its own executable."""
    if kind.startswith("/"):
        yield from _program(target, where, "runtime_type", kind)
        return
    name = shim_name(kind)
    if not name:
        yield f"{where}: runtime_type {kind!r} is not of the form NAME.VERSION, so it names no shim"
        return
    path = processes.search_path(target.process) if target.process is not None else None
    beside = [str(PurePosixPath(target.binary).parent)] if target.binary else []
    searched = ":".join([path or command.SEARCH_PATH, *beside])
    if _host(target).executable(name, searched) is None:
        yield (
            f"{where}: the shim {name} of runtime_type {kind!r} was not found in the PATH of"
            f" containerd ({searched})"
        )


def _snapshotter(target: Target, where: str, name: str, timeout: Timeout) -> Iterator[str]:
    known = cri.snapshotters(target.socket, timeout=timeout)
    if not known:
        return  # It does not say, so only the configuration counts.
    usable = ", ".join(sorted(key for key, error in known.items() if not error))
    if name not in known:
        yield f"{where}: the running containerd has no snapshotter {name!r}, only {usable}"
    elif known[name]:
        yield (
            f"{where}: the running containerd did not load the snapshotter {name!r}: {known[name]}"
        )
