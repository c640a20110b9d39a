"""The output of `detect`: every runtime on the node, its kubelets, and the one to configure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from runtimes import registry
from runtimes.model import RuntimeName
from toolkit.discovery import candidates, endpoints, selection
from toolkit.discovery.candidates import Candidate, KubeletRuntime
from toolkit.discovery.selection import Inputs
from toolkit.errors import ToolkitError, UsageProblem
from toolkit.kube import kubelet
from toolkit.kube.kubelet import KubeletConfig
from toolkit.node.host import Host
from toolkit.runtime import locate, nri_support
from toolkit.settings.resolve import Settings

FORMAT: Final = 1


def collect(inputs: Inputs) -> dict[str, Any]:
    """Return the runtimes of the node as JSON values; docs/output.md describes the format."""
    host, configs = inputs.host, kubelet.configs(inputs.host.root)
    uses = [use for config in configs if (use := candidates.runtime_of_kubelet(host, config))]
    result = candidates.assess(host, _everywhere(inputs), uses)
    return {
        "format": FORMAT,
        "kubelets": [_kubelet(host, config) for config in configs],
        "ignored": [
            {"pid": each.pid, "program": each.program, "problem": each.problem}
            for each in kubelet.ignored(host.root)
        ],
        "runtimes": [_runtime(inputs.settings, host, each) for each in result],
        "choice": _choice(inputs),
    }


def _everywhere(inputs: Inputs) -> Sequence[endpoints.Daemon]:
    """Return the daemon of every known socket, and of the configured socket if it is not known."""
    host, settings = inputs.host, inputs.settings
    result = list(endpoints.query_all(host))
    local = Path(settings.socket)
    if settings.is_given("socket") and not any(
        endpoints.same(host, str(local), each.socket) for each in result
    ):
        name = settings.runtime
        hint = RuntimeName(name) if name in registry.ADAPTERS else RuntimeName.CONTAINERD
        result.insert(0, endpoints.query(host, hint, local))
    return result


def _kubelet(host: Host, config: KubeletConfig) -> dict[str, Any]:
    use: KubeletRuntime | None = candidates.runtime_of_kubelet(host, config)
    return {
        "pid": config.pid,
        "program": config.program,
        "socket": use.socket if use else config.endpoint or None,
        "by": use.config.by if use else config.by or None,
        "runtime": str(use.runtime) if use else None,
    }


def _runtime(settings: Settings, host: Host, candidate: Candidate) -> dict[str, Any]:
    each, owner = candidate.daemon, candidate.daemon.owner
    known: dict[str, Any] = dict.fromkeys(("pid", "executable", "version", "config", "unit", "nri"))
    known |= {"root": None, "started_by": None}
    if owner is not None:
        path, is_elsewhere = endpoints.root(host, owner)
        above = endpoints.parent(owner)
        adapter = registry.ADAPTERS[each.answers or each.runtime]
        binary = (
            endpoints.binary(host, adapter, owner.executable)
            if each.answers and not is_elsewhere
            else None
        )
        known = {
            "pid": owner.pid,
            "executable": owner.executable,
            "version": binary["version"] if binary else None,
            "config": endpoints.config(host, each) if each.answers else None,
            "unit": owner.unit,
            "nri": _nri(settings, host, each),
            "root": {"path": path, "is_host": not is_elsewhere},
            "started_by": {"pid": above[0], "name": above[1]} if above else None,
        }
    return {
        "runtime": str(each.runtime),
        "distribution": each.row.name,
        "socket": each.socket,
        "seen_at": str(each.seen_at),
        **known,
        "used_by": [use.config.pid for use in candidate.users],
        "is_candidate": not candidate.refusal,
        "refusal": candidate.refusal,
    }


def _nri(settings: Settings, host: Host, each: endpoints.Daemon) -> str | None:
    """Return whether NRI is on, off, or missing; None if that is unknown."""
    if each.answers is None:
        return None
    state = nri_support.look_up(settings, host, each.answers, each.seen_at).state
    return None if state is nri_support.NriState.UNKNOWN else str(state)


def _choice(inputs: Inputs) -> dict[str, Any]:
    """Return the runtime that a run with these settings would configure, or what prevents it."""
    empty: dict[str, Any] = dict.fromkeys(("runtime", "socket", "config", "drop_in", "why"))
    try:
        chosen = selection.choose(inputs)
        settings = selection.settings_of(inputs, chosen)
        target = locate.target(settings, registry.ADAPTERS[chosen.runtime])
    except UsageProblem as error:
        if inputs.settings.runs_plugin:
            return {**empty, "why": "the NRI plugin needs no runtime", "problems": [], "hint": ""}
        return {**empty, "problems": list(error.problems), "hint": error.hint}
    except ToolkitError as error:
        return {**empty, "problems": [error.message], "hint": error.hint}
    return {
        "runtime": str(chosen.runtime),
        "socket": str(target.socket),
        "config": target.desired.config,
        "drop_in": target.desired.drop_in or None,
        "why": chosen.why,
        "problems": [each.problem for each in target.contradictions],
        "hint": "; ".join(each.hint for each in target.contradictions),
    }
