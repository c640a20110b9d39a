"""Every socket on which a runtime may answer: who does, with which program, config and root, started by whom.

It begins with sockets and not with names: a node may have three containerds, and
only what answers tells which is which.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from runtimes import distributions, registry
from runtimes.adapter import Adapter
from runtimes.distributions import DISTRIBUTIONS, Distribution
from runtimes.model import RuntimeName
from toolkit import detect, owner, process
from toolkit.detect import Scene
from toolkit.errors import ToolkitError
from toolkit.host import Host
from toolkit.owner import Owner
from toolkit.settings import Settings, resolve, runtime_default

_SOON: Final = 5.0
# What another runtime is looked at with: where the node is seen, and what of it is ours.
_SHARED: Final = ("host_root", "toolkit_install_dir", "pid_file")
_DOCKER_S_OWN: Final = "/run/docker/containerd/containerd.sock"
"""Where the containerd listens that dockerd starts for itself where there is no other."""
_ROOTLESS: Final = (
    (RuntimeName.DOCKER, "/run/user/*/docker.sock"),
    (RuntimeName.CONTAINERD, "/run/user/*/containerd/containerd.sock"),
    (RuntimeName.CONTAINERD, "/run/user/*/docker/containerd/containerd.sock"),
    (RuntimeName.CRIO, "/run/user/*/crio/crio.sock"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A socket that exists: as the node names it, where it is seen here, and whose place it is.

    `owner` is who answers, None where nobody does; `is_runtime` tells that it is
    the runtime of this place, else `answers` may name the one that it is instead.
    `problem` says why it is not. `row` is the distribution that it belongs to.
    """

    runtime: RuntimeName
    row: Distribution
    socket: str
    seen_at: Path
    owner: Owner | None = None
    is_runtime: bool = False
    answers: RuntimeName | None = None
    problem: str = ""


def everywhere(
    host: Host, runtime: RuntimeName | None = None, also: Sequence[Path] = ()
) -> tuple[Daemon, ...]:
    """Return what is on every known socket that exists, of one runtime or of all; each is asked once.

    `also` are further sockets of that runtime, which come first. Sockets of users are listed and
    not asked: what listens there is theirs to choose.
    """
    found = []
    seen: set[tuple[int, int]] = set()
    for each, node_path, local in _places(host, runtime, also):
        status = _socket_status(local)
        if status is None or (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        found.append(look(host, each, local, node_path))
    return tuple(found)


def look(host: Host, runtime: RuntimeName, local: Path, node_path: str = "") -> Daemon:
    """Return who answers on a socket at which a runtime is to be expected."""
    adapter = registry.ADAPTERS[runtime]
    socket = node_path or host.node(local, *(path for row in DISTRIBUTIONS for path in row.sockets))
    place = Daemon(runtime=runtime, row=row(host, runtime, socket), socket=socket, seen_at=local)
    if is_rootless(local, socket):
        return replace(place, problem="it is a user's own (rootless), which has no part in a Kubernetes node")
    try:
        found = owner.find(local, adapter.executables, speaks_first=adapter.speaks_first, timeout=_SOON)
    except owner.Stranger as error:
        return replace(place, owner=error.found, answers=of(error.found), problem=error.message)
    except ToolkitError as error:
        return replace(place, problem=f"{error.message} ({error.hint})" if error.hint else error.message)
    return replace(
        place,
        owner=found,
        is_runtime=True,
        answers=runtime,
        row=row(host, runtime, socket, found),
    )


def of(found: Owner) -> RuntimeName | None:
    """Return which runtime a process is; None for a stranger."""
    return next(
        (name for name, each in registry.ADAPTERS.items() if owner.looks_like(found, each.executables)), None
    )


def row(host: Host, runtime: RuntimeName, socket: str, found: Owner | None = None) -> Distribution:
    """Return the distribution of a socket: by the program that answers, by its place, else the plain one.

    Where two share a place, it is the one whose config is there, and the plain one before others.
    """
    usual = distributions.plain(runtime)
    if found is not None:
        config = owner.argument(found, registry.ADAPTERS[runtime].config_flags) or ""
        named = distributions.of(runtime, executable=found.executable, config=config, unit=found.unit or "")
        if named is not usual:
            return named
    rows = [
        each
        for each in DISTRIBUTIONS
        if each.runtime == runtime and any(same(host, socket, path) for path in each.sockets)
    ]
    if len(rows) > 1:
        rows = [each for each in rows if os.path.lexists(host.seen(each.config))] or rows
    return usual if usual in rows or not rows else rows[0]


def expected(host: Host, socket: str) -> RuntimeName | None:
    """Return the runtime whose place a socket is, by its path or by its inode; None for no known place."""
    known = [(path, each.runtime) for each in DISTRIBUTIONS for path in each.sockets]
    by_name = next((name for path, name in known if _plain(path) == _plain(socket)), None)
    return by_name or next((name for path, name in known if same(host, socket, path)), None)


def same(host: Host, one: str, other: str) -> bool:
    """Tell whether two paths are the same socket on the node, under whatever names."""
    if _plain(one) == _plain(other):
        return True
    there = _status(host, other)
    here = _status(host, one) if there is not None else None
    return here is not None and there is not None and os.path.samestat(here, there)


def exists(host: Host, node_path: str) -> bool:
    """Tell whether a path of the node is a socket, answered or not."""
    return any(_socket_status(local) is not None for local in _seen_at(host, node_path))


def seen(host: Host, node_path: str) -> Path:
    """Return where a socket of the node is seen here, whatever links lead to it."""
    there = (local for local in _seen_at(host, node_path) if _socket_status(local) is not None)
    return next(there, host.seen(node_path))


def is_rootless(local: Path, node_path: str) -> bool:
    """Tell whether a socket is a user's own."""
    return any(path.startswith("/run/user/") for path in (_plain(node_path), os.path.realpath(local)))


def parent(found: Owner) -> tuple[int, str] | None:
    """Return the PID and the name of what started a daemon; None where that cannot be seen."""
    try:
        with open(f"/proc/{found.pid}/stat", encoding="utf-8", errors="replace") as stream:
            pid = int(stream.read().rpartition(")")[2].split()[1])
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            return pid, stream.read().strip()
    except OSError:
        return None


def root(host: Host, found: Owner) -> tuple[str, bool]:
    """Return a daemon's root as it is named, and whether it is known to be another than the node's."""
    path = f"/proc/{found.pid}/root"
    try:
        return os.readlink(path), not os.path.samefile(f"{path}/", host.root)
    except OSError:
        return "/", False


# --- for the diagnosis and `detect` -----------------------------------------------------------------


def runtime(settings: Settings, host: Host, adapter: Adapter) -> dict[str, Any]:
    """Return what is there of a runtime: its sockets that exist, who owns them, and its binary."""
    configured = settings.text("runtime") == adapter.name
    given = [Path(settings.text("socket"))] if configured and settings.text("socket") else []
    found = [_entry(host, each) for each in everywhere(host, adapter.name, given)]
    running = next((each["owner"] for each in found if each["owner"] and each["is_runtime"]), None)
    return {
        "name": str(adapter.name),
        "configured": configured,
        "sockets": found,
        "binary": binary(host, adapter, running["executable"] if running else None),
    }


def scene(settings: Settings, host: Host, adapter: Adapter, found: dict[str, Any]) -> Scene | None:
    """Return the scene of a runtime that is not the configured one; None where it is not there at all.

    `found` is what `runtime` says of it. Raises ToolkitError.
    """
    owners = [each for each in found["sockets"] if each["owner"] and each["is_runtime"]]
    config = owners[0]["owner"]["config"]["path"] if owners else runtime_default(adapter.name, "config")
    if not owners and not os.path.lexists(host.seen(config)):
        return None
    socket = owners[0]["seen_at"] if owners else runtime_default(adapter.name, "socket")
    drop_in = runtime_default(adapter.name, "drop_in_config")
    rows = {name: settings.text(name) for name in _SHARED}
    rows |= {
        "host_root": str(host.root),
        "runtime": str(adapter.name),
        "config": str(host.seen(config)),
        "socket": str(socket),
        "config_source": "file" if not host.is_here and os.geteuid() != 0 else "command,file",
    }
    if drop_in:
        rows["drop_in_config"] = str(host.seen(drop_in))
    return detect.scene(resolve(rows, {}), adapter)


def config(host: Host, found: Daemon) -> dict[str, Any] | None:
    """Return the root config that a daemon reads, and by what that is known; None where nobody answers."""
    if found.owner is None:
        return None
    adapter = registry.ADAPTERS[found.answers or found.runtime]
    given = owner.argument(found.owner, adapter.config_flags)
    path = given or runtime_default(adapter.name, "config")
    return {
        "path": path,
        "by": "its command line" if given else "default",
        "exists": os.path.lexists(host.seen(path)),
    }


def binary(host: Host, adapter: Adapter, executable: str | None) -> dict[str, Any] | None:
    """Return a program, by its path or else by the runtime's names, with its version; None where none is."""
    names = [executable] if executable else sorted(adapter.executables)
    path = next((p for p in map(host.executable, names) if p is not None), None)
    if path is None:
        return (
            {"path": executable, "version": None, "problem": "it is not on the node"} if executable else None
        )
    try:
        return {"path": path, "version": _version(host, path), "problem": ""}
    except ToolkitError as error:
        return {"path": path, "version": None, "problem": error.message}


def _entry(host: Host, found: Daemon) -> dict[str, Any]:
    return {
        "path": found.socket,
        "seen_at": str(found.seen_at),
        "distribution": found.row.name,
        "is_runtime": found.is_runtime,
        "owner": _process(host, found, found.owner) if found.owner else None,
        "problem": found.problem,
    }


def _process(host: Host, found: Daemon, daemon: Owner) -> dict[str, Any]:
    age = owner.age(daemon)
    return {
        "pid": daemon.pid,
        "executable": daemon.executable,
        "argv": list(daemon.argv),
        "unit": daemon.unit,
        "age_s": int(age) if age < float("inf") else None,
        "search_path": owner.search_path(daemon),
        "config": config(host, found),
    }


def _version(host: Host, program: str) -> str | None:
    """Return the first line of what a binary says of its version. Raises StepFailed."""
    result = process.run([program, "--version"], root=host.root, timeout=_SOON)
    lines = (result.out or result.err).splitlines()
    return lines[0] if lines else None


# --- places -----------------------------------------------------------------------------------------


def _places(
    host: Host, runtime: RuntimeName | None, also: Sequence[Path]
) -> Iterator[tuple[RuntimeName, str, Path]]:
    """Yield where a socket may be: whose place it is, its name on the node where that is known, and here."""
    for local in also:
        if runtime is not None:
            yield runtime, "", local
    known = [(each.runtime, path) for each in DISTRIBUTIONS for path in each.sockets]
    known.append((RuntimeName.CONTAINERD, _DOCKER_S_OWN))
    known += [(name, path) for name, pattern in _ROOTLESS for path in host.glob(pattern)]
    for name, path in known:
        if runtime in (None, name):
            yield from ((name, path, local) for local in _seen_at(host, path))


def _seen_at(host: Host, node_path: str) -> Iterator[Path]:
    yield host.seen(node_path)
    try:
        yield host.target(host.below(node_path))
    except ToolkitError:
        return


def _status(host: Host, path: str) -> os.stat_result | None:
    """Return what a socket is, by its name on the node, else by the one that it has here."""
    return _socket_status(host.below(_plain(path))) or _socket_status(Path(path))


def _socket_status(path: Path) -> os.stat_result | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISSOCK(status.st_mode) else None


def _plain(path: str) -> str:
    """Return a path without what names the same place on every node."""
    path = os.path.normpath(path)
    return path.removeprefix("/var") if path.startswith("/var/run/") else path
