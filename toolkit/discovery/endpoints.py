"""Inspect the sockets on which a runtime may listen, and the daemons behind them.

Discovery starts from sockets instead of names, because a node may run several containerds, and only
the process that answers on a socket shows which one it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from runtimes import distributions, registry
from runtimes.adapter import Adapter
from runtimes.dataclass import dataclass, replace
from runtimes.distributions import DISTRIBUTIONS, Distribution
from runtimes.model import RuntimeName
from toolkit.errors import ToolkitError
from toolkit.node import command, processes, socket_peer
from toolkit.node.host import Host
from toolkit.node.processes import RuntimeProcess
from toolkit.runtime import locate
from toolkit.runtime.locate import Target
from toolkit.settings.defaults import runtime_default
from toolkit.settings.resolve import Settings, resolve

_SOON: Final = 5.0
# Settings that also apply to a runtime other than the configured one.
_SHARED: Final = ("host_root", "toolkit_install_dir", "pid_file")
_DOCKER_CONTAINERD: Final = "/run/docker/containerd/containerd.sock"
"""The socket of the containerd that dockerd starts for its own use if no other containerd runs."""
_ROOTLESS: Final = (
    (RuntimeName.DOCKER, "/run/user/*/docker.sock"),
    (RuntimeName.CONTAINERD, "/run/user/*/containerd/containerd.sock"),
    (RuntimeName.CONTAINERD, "/run/user/*/docker/containerd/containerd.sock"),
    (RuntimeName.CRIO, "/run/user/*/crio/crio.sock"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """An existing socket and the daemon behind it.

    `socket` is the node path, `seen_at` the local path. `runtime` is the runtime expected there,
    and `row` its distribution. `owner` is the process that answers, None if none does. `is_runtime`
    is whether that is the expected runtime; if not, `answers` is the runtime that answers instead,
    if known, and `problem` is the reason.
    """

    runtime: RuntimeName
    row: Distribution
    socket: str
    seen_at: Path
    owner: RuntimeProcess | None = None
    is_runtime: bool = False
    answers: RuntimeName | None = None
    problem: str = ""


def query_all(
    host: Host, runtime: RuntimeName | None = None, also: Sequence[Path] = ()
) -> tuple[Daemon, ...]:
    """Return the daemon of every known socket that exists, for one runtime or for all.

    `also` are further sockets of that runtime, which come first. Sockets of rootless runtimes are
    listed but not contacted, because their users control what listens there.
    """
    result = []
    seen: set[tuple[int, int]] = set()
    for each, node_path, local in _known_sockets(host, runtime, also):
        status = _socket_status(local)
        if status is None or (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        result.append(query(host, each, local, node_path))
    return tuple(result)


def query(host: Host, runtime: RuntimeName, local: Path, node_path: str = "") -> Daemon:
    """Return the daemon on a socket where `runtime` is expected.

    `local` is the socket's local path, and `node_path` its path on the node if that is known.
    """
    adapter = registry.ADAPTERS[runtime]
    socket = node_path or host.node(local, *(path for row in DISTRIBUTIONS for path in row.sockets))
    daemon = Daemon(runtime=runtime, row=row(host, runtime, socket), socket=socket, seen_at=local)
    if is_rootless(local, socket):
        return replace(
            daemon, problem="it is a user's rootless runtime, which a Kubernetes node does not use"
        )
    try:
        process = socket_peer.find(
            local,
            adapter.executables,
            server_speaks_first=adapter.server_speaks_first,
            timeout=_SOON,
        )
    except socket_peer.UnexpectedPeer as error:
        return replace(
            daemon, owner=error.process, answers=of(error.process), problem=error.message
        )
    except ToolkitError as error:
        return replace(
            daemon, problem=f"{error.message} ({error.hint})" if error.hint else error.message
        )
    return replace(
        daemon,
        owner=process,
        is_runtime=True,
        answers=runtime,
        row=row(host, runtime, socket, process),
    )


def of(process: RuntimeProcess) -> RuntimeName | None:
    """Return the runtime that a process is, or None if it is not a known one."""
    return next(
        (
            name
            for name, each in registry.ADAPTERS.items()
            if processes.looks_like(process, each.executables)
        ),
        None,
    )


def row(
    host: Host, runtime: RuntimeName, socket: str, process: RuntimeProcess | None = None
) -> Distribution:
    """Return the distribution of a socket: by its process, by its path, else the plain runtime.

    If several distributions use the path, prefer those whose config exists, and among them the
    plain one.
    """
    usual = distributions.plain(runtime)
    if process is not None:
        config = processes.argument(process, registry.ADAPTERS[runtime].config_flags) or ""
        named = distributions.of(
            runtime,
            executable=process.executable,
            config=config,
            unit=process.unit or "",
            socket=socket,
        )
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


def find_process(
    host: Host, runtime: RuntimeName, socket: str, local: Path
) -> RuntimeProcess | None:
    """Return the daemon on a socket, if only it shows where its distribution has its files."""
    if not any(each.data_dir and socket in each.sockets for each in DISTRIBUTIONS):
        return None
    daemon = query(host, runtime, local, socket)
    return daemon.owner if daemon.is_runtime else None


def expected(host: Host, socket: str) -> RuntimeName | None:
    """Return the runtime that uses a socket's path by default, by path or inode, or None."""
    known = [(path, each.runtime) for each in DISTRIBUTIONS for path in each.sockets]
    by_name = next((name for path, name in known if _plain(path) == _plain(socket)), None)
    return by_name or next((name for path, name in known if same(host, socket, path)), None)


def same(host: Host, one: str, other: str) -> bool:
    """Return whether two paths refer to the same socket on the node."""
    if _plain(one) == _plain(other):
        return True
    other_status = _status(host, other)
    one_status = _status(host, one) if other_status is not None else None
    return (
        one_status is not None
        and other_status is not None
        and os.path.samestat(one_status, other_status)
    )


def exists(host: Host, node_path: str) -> bool:
    """Return whether a path on the node is a socket, whether or not a process listens on it."""
    return any(_socket_status(local) is not None for local in _seen_at(host, node_path))


def local_path(host: Host, node_path: str) -> Path:
    """Return the local path of a socket on the node, with symbolic links resolved on the node."""
    paths = (local for local in _seen_at(host, node_path) if _socket_status(local) is not None)
    return next(paths, host.seen(node_path))


def is_rootless(local: Path, node_path: str) -> bool:
    """Return whether a socket belongs to a rootless runtime of a user."""
    return any(
        path.startswith("/run/user/") for path in (_plain(node_path), os.path.realpath(local))
    )


def parent(process: RuntimeProcess) -> tuple[int, str] | None:
    """Return the PID and the name of a daemon's parent process, or None if they cannot be read."""
    try:
        with open(f"/proc/{process.pid}/stat", encoding="utf-8", errors="replace") as stream:
            pid = int(stream.read().rpartition(")")[2].split()[1])
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            return pid, stream.read().strip()
    except OSError:
        return None


def root(host: Host, process: RuntimeProcess) -> tuple[str, bool]:
    """Return a daemon's root directory, and whether it is known to differ from the node's."""
    path = f"/proc/{process.pid}/root"
    try:
        return os.readlink(path), not os.path.samefile(f"{path}/", host.root)
    except OSError:
        return "/", False


# --- for `diagnose` and `detect` ------------------------------------------------------------------


def runtime(settings: Settings, host: Host, adapter: Adapter) -> dict[str, Any]:
    """Return a description of a runtime: its existing sockets, their processes, its binary."""
    configured = settings.runtime == adapter.name
    given = [Path(settings.socket)] if configured and settings.socket else []
    result = [_entry(host, each) for each in query_all(host, adapter.name, given)]
    running = next((each["owner"] for each in result if each["owner"] and each["is_runtime"]), None)
    return {
        "name": str(adapter.name),
        "configured": configured,
        "sockets": result,
        "binary": binary(host, adapter, running["executable"] if running else None),
    }


def find_target(
    settings: Settings, host: Host, adapter: Adapter, result: dict[str, Any]
) -> Target | None:
    """Return the target for a runtime other than the configured one; None if it is not on the node.

    `result` is its description by `runtime`. Raises ToolkitError.
    """
    owners = [each for each in result["sockets"] if each["owner"] and each["is_runtime"]]
    config = (
        owners[0]["owner"]["config"]["path"] if owners else runtime_default(adapter.name, "config")
    )
    if not owners and not os.path.lexists(host.seen(config)):
        return None
    socket = owners[0]["seen_at"] if owners else runtime_default(adapter.name, "socket")
    drop_in = runtime_default(adapter.name, "drop_in_config")
    rows = {name: settings.values[name] for name in _SHARED}
    rows |= {
        "host_root": str(host.root),
        "runtime": str(adapter.name),
        "config": str(host.seen(config)),
        "socket": str(socket),
        "config_source": "file" if not host.is_here and os.geteuid() != 0 else "command,file",
    }
    if drop_in:
        rows["drop_in_config"] = str(host.seen(drop_in))
    return locate.target(resolve(rows, {}), adapter)


def config(host: Host, daemon: Daemon) -> dict[str, Any] | None:
    """Return the root config that a daemon reads, and its path's source; None without a process."""
    if daemon.owner is None:
        return None
    adapter = registry.ADAPTERS[daemon.answers or daemon.runtime]
    given = processes.argument(daemon.owner, adapter.config_flags)
    path = given or runtime_default(adapter.name, "config")
    return {
        "path": path,
        "by": "its command line" if given else "default",
        "exists": os.path.lexists(host.seen(path)),
    }


def binary(host: Host, adapter: Adapter, executable: str | None) -> dict[str, Any] | None:
    """Return a program and its version, by path or by the runtime's names; None if not found."""
    names = [executable] if executable else sorted(adapter.executables)
    path = next((p for p in map(host.executable, names) if p is not None), None)
    if path is None:
        return (
            {"path": executable, "version": None, "problem": "not found on the node"}
            if executable
            else None
        )
    try:
        return {"path": path, "version": _version(host, path), "problem": ""}
    except ToolkitError as error:
        return {"path": path, "version": None, "problem": error.message}


def _entry(host: Host, daemon: Daemon) -> dict[str, Any]:
    return {
        "path": daemon.socket,
        "seen_at": str(daemon.seen_at),
        "distribution": daemon.row.name,
        "is_runtime": daemon.is_runtime,
        "owner": _process(host, daemon, daemon.owner) if daemon.owner else None,
        "problem": daemon.problem,
    }


def _process(host: Host, entry: Daemon, daemon: RuntimeProcess) -> dict[str, Any]:
    age = processes.age(daemon)
    return {
        "pid": daemon.pid,
        "executable": daemon.executable,
        "argv": list(daemon.argv),
        "unit": daemon.unit,
        "age_s": int(age) if age < float("inf") else None,
        "search_path": processes.search_path(daemon),
        "config": config(host, entry),
    }


def _version(host: Host, program: str) -> str | None:
    """Return the first line of the output of `--version`. Raises StepError."""
    result = command.run([program, "--version"], root=host.root, timeout=_SOON)
    lines = (result.out or result.err).splitlines()
    return lines[0] if lines else None


# --- paths of sockets -----------------------------------------------------------------------------


def _known_sockets(
    host: Host, runtime: RuntimeName | None, also: Sequence[Path]
) -> Iterator[tuple[RuntimeName, str, Path]]:
    """Yield the runtime, node path ("" if unknown) and local path of every possible socket."""
    for local in also:
        if runtime is not None:
            yield runtime, "", local
    known = [(each.runtime, path) for each in DISTRIBUTIONS for path in each.sockets]
    known.append((RuntimeName.CONTAINERD, _DOCKER_CONTAINERD))
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
    """Return the status of a socket, looked up on the node and else locally, or None."""
    return _socket_status(host.below(_plain(path))) or _socket_status(Path(path))


def _socket_status(path: Path) -> os.stat_result | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISSOCK(status.st_mode) else None


def _plain(path: str) -> str:
    """Return a normalized path, with /var/run as /run, which is the same on every node."""
    path = os.path.normpath(path)
    return path.removeprefix("/var") if path.startswith("/var/run/") else path
