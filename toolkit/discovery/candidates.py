"""Candidates for automatic selection: the daemons that may be chosen, and the one kubelet uses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from runtimes import distributions, registry
from runtimes.dataclass import dataclass, replace
from runtimes.distributions import DISTRIBUTIONS, Distribution
from runtimes.model import DeliveryKind, RuntimeName
from toolkit.discovery import endpoints
from toolkit.discovery.endpoints import Daemon
from toolkit.errors import StepError
from toolkit.kube.kubelet import KubeletConfig
from toolkit.node import processes
from toolkit.node.host import Host
from toolkit.node.processes import RuntimeProcess
from toolkit.runtime.client import cri

_SOON: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletRuntime:
    """The runtime that a kubelet uses.

    `config` is the kubelet's configuration and `row` the distribution of the runtime. `socket` is
    the node path of the runtime's socket, `seen_at` its local path. `process` is the runtime's
    daemon, if it was looked up.
    """

    config: KubeletConfig
    runtime: RuntimeName
    row: Distribution
    socket: str
    seen_at: Path
    process: RuntimeProcess | None = None

    @property
    def description(self) -> str:
        """Return a description for messages."""
        return (
            f"the kubelet (PID {self.config.pid}) uses {distribution_name(self.row)} on"
            f" {self.socket}, set by {self.config.by}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A daemon, why it must not be selected automatically ("" if it may be), and its kubelets."""

    daemon: Daemon
    refusal: str
    users: tuple[KubeletRuntime, ...]


def kubelet_runtime(host: Host, configs: Sequence[KubeletConfig]) -> KubeletRuntime | None:
    """Return the runtime that the node's kubelet uses.

    Returns None if no kubelet configures one, or if two kubelets use different ones.
    """
    uses = [
        kubelet_runtime
        for config in configs
        if (kubelet_runtime := runtime_of_kubelet(host, config))
    ]
    return uses[0] if uses and all(each.socket == uses[0].socket for each in uses) else None


def runtime_of_kubelet(host: Host, config: KubeletConfig) -> KubeletRuntime | None:
    """Return the runtime that a kubelet's configuration refers to; None if that is unknown."""
    if config.docker:
        row = distributions.plain(RuntimeName.DOCKER)
        socket = row.sockets[0]
        return KubeletRuntime(
            config=config,
            runtime=row.runtime,
            row=row,
            socket=socket,
            seen_at=endpoints.local_path(host, socket),
        )
    if not config.endpoint:
        return _embedded(host, config)
    local = endpoints.local_path(host, config.endpoint)
    in_kubelet_root = Path(f"/proc/{config.pid}/root{config.endpoint}")
    if not os.path.exists(local) and os.path.exists(in_kubelet_root):
        local = in_kubelet_root
    runtime, daemon = endpoints.expected(host, config.endpoint), None
    if runtime is None:
        result = endpoints.query(host, RuntimeName.CONTAINERD, local, config.endpoint)
        runtime, daemon = result.answers, result.owner
    if runtime is None:
        return None
    daemon = daemon or endpoints.find_process(host, runtime, config.endpoint, local)
    row = endpoints.row(host, runtime, config.endpoint, daemon)
    return KubeletRuntime(
        config=config,
        runtime=runtime,
        row=row,
        socket=config.endpoint,
        seen_at=local,
        process=daemon,
    )


def assess(
    host: Host, daemons: Sequence[Daemon], uses: Sequence[KubeletRuntime]
) -> tuple[Candidate, ...]:
    """Return each daemon as a candidate, with the reason if `auto` must not select it."""
    dockers = [each for each in daemons if each.is_runtime and each.runtime is RuntimeName.DOCKER]
    result = []
    for each in daemons:
        users = tuple(use for use in uses if endpoints.same(host, use.socket, each.socket))
        refusal = _refusal(host, each, dockers, is_used=bool(users))
        result.append(Candidate(daemon=each, refusal=refusal, users=users))
    return tuple(result)


def distribution_name(row: Distribution) -> str:
    """Return the name of a runtime and of its distribution, for messages."""
    is_plain = row is distributions.plain(row.runtime)
    return str(row.runtime) if is_plain else f"{row.runtime} of {row.name}"


def describe(each: Daemon) -> str:
    """Return a description of a daemon, for messages."""
    process = f" (PID {each.owner.pid}, {each.owner.executable})" if each.owner else ""
    return f"{distribution_name(each.row)} on {each.socket}{process}"


def paths(
    host: Host,
    runtime: RuntimeName,
    row: Distribution,
    local: Path | None,
    owner: RuntimeProcess | None = None,
) -> dict[str, str]:
    """Return values for settings not given: the name, and every path that is not the default.

    The root config on the command line of the daemon `owner` takes precedence over that of the row.
    """
    result: dict[str, str] = {"runtime": str(runtime)}
    is_plain = row is distributions.plain(runtime)
    if local is not None and not (is_plain and str(local) == row.sockets[0]):
        result["socket"] = str(local)
    if not is_plain:
        result.setdefault("socket", str(endpoints.local_path(host, row.sockets[0])))
        config = processes.argument(owner, registry.ADAPTERS[runtime].config_flags) or row.config
        if row.delivery.kind is DeliveryKind.TEMPLATE:
            config = row.config
        drop_in = row.relocated(row.drop_in, config)
        result["config"] = str(host.seen(config))
        result["drop_in_config"] = str(host.seen(drop_in)) if drop_in else ""
    return result


def _embedded(host: Host, config: KubeletConfig) -> KubeletRuntime | None:
    """Return the containerd that a program with an embedded kubelet (k3s) has started."""
    for row in DISTRIBUTIONS:
        for socket in row.sockets if row.name == config.embedder else ():
            if not endpoints.exists(host, socket):
                continue
            daemon = endpoints.query(host, row.runtime, endpoints.local_path(host, socket), socket)
            above = endpoints.parent(daemon.owner) if daemon.owner and daemon.is_runtime else None
            if above is not None and above[0] == config.pid:
                by = replace(config, by=f"its parent process {config.program}")
                return KubeletRuntime(
                    config=by,
                    runtime=row.runtime,
                    row=daemon.row,
                    socket=socket,
                    seen_at=daemon.seen_at,
                    process=daemon.owner,
                )
    return None


def _refusal(host: Host, each: Daemon, dockers: Sequence[Daemon], *, is_used: bool) -> str:
    """Return why a daemon must not be selected automatically, or "" if it may be."""
    if each.owner is None or not each.is_runtime:
        return each.problem
    path, is_elsewhere = endpoints.root(host, each.owner)
    if is_elsewhere:
        return (
            f"its root directory ({path}) is not the node's, so its files are not the node's either"
        )
    if each.runtime is not RuntimeName.CONTAINERD:
        return ""
    above = endpoints.parent(each.owner)
    if above is not None and above[1] == "dockerd":
        return f"dockerd (PID {above[0]}) started it for its own use"
    server = next((docker for docker in dockers if _serves(host, each, docker)), None)
    if server is None or server.owner is None or is_used or _has_cri(each):
        return ""
    return f"it serves Docker (PID {server.owner.pid}), and its CRI is disabled"


def _serves(host: Host, each: Daemon, docker: Daemon) -> bool:
    """Return whether a dockerd uses this containerd; by default the one on the default socket."""
    address = processes.argument(docker.owner, ("--containerd",))
    usual = distributions.plain(RuntimeName.CONTAINERD).sockets[0]
    return endpoints.same(host, address.removeprefix("unix://") if address else usual, each.socket)


def _has_cri(each: Daemon) -> bool:
    """Return whether a containerd serves CRI, or has it enabled but failed, or does not answer."""
    try:
        cri.version(each.seen_at, timeout=_SOON)
    except cri.CriFailed as error:
        if error.code == "UNIMPLEMENTED":
            return bool(cri.cri_failure(each.seen_at, timeout=_SOON))
    except StepError:
        pass
    return True
