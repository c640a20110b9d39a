"""What `detect` says: every runtime of the node, who uses it, and which one would be set up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from runtimes import registry
from runtimes.model import RuntimeName
from toolkit import candidates, choice, detect, kubelet, sockets
from toolkit.candidates import Judged, Use
from toolkit.choice import Question
from toolkit.errors import ToolkitError, UsageProblem
from toolkit.host import Host
from toolkit.kubelet import Word

FORMAT: Final = 1


def roster(question: Question) -> dict[str, Any]:
    """Return the runtimes of the node as plain values; docs/output.md describes their shape."""
    host, words = question.host, kubelet.words()
    uses = [use for word in words if (use := candidates.use_of(host, word))]
    found = candidates.judged(host, _everywhere(question), uses)
    return {
        "format": FORMAT,
        "kubelets": [_kubelet(host, word) for word in words],
        "runtimes": [_runtime(host, each) for each in found],
        "choice": _choice(question),
    }


def text(found: Mapping[str, Any]) -> str:
    """Return the same for people."""
    return "\n".join(_lines(found)) + "\n"


def _everywhere(question: Question) -> Sequence[sockets.Daemon]:
    """Return every known socket, and the one that was given where it is no known one."""
    host, settings = question.host, question.settings
    found = list(sockets.everywhere(host))
    local = Path(settings.text("socket"))
    if settings.is_given("socket") and not any(sockets.same(host, str(local), each.socket) for each in found):
        name = settings.text("runtime")
        hint = RuntimeName(name) if name in registry.ADAPTERS else RuntimeName.CONTAINERD
        found.insert(0, sockets.look(host, hint, local))
    return found


def _kubelet(host: Host, word: Word) -> dict[str, Any]:
    use: Use | None = candidates.use_of(host, word)
    return {
        "pid": word.pid,
        "program": word.program,
        "socket": use.socket if use else word.endpoint or None,
        "by": use.word.by if use else word.by or None,
        "runtime": str(use.runtime) if use else None,
    }


def _runtime(host: Host, found: Judged) -> dict[str, Any]:
    each, owner = found.daemon, found.daemon.owner
    known: dict[str, Any] = dict.fromkeys(("pid", "executable", "version", "config", "unit"))
    known |= {"root": None, "started_by": None}
    if owner is not None:
        path, is_elsewhere = sockets.root(host, owner)
        above = sockets.parent(owner)
        adapter = registry.ADAPTERS[each.answers or each.runtime]
        binary = (
            sockets.binary(host, adapter, owner.executable) if each.answers and not is_elsewhere else None
        )
        known = {
            "pid": owner.pid,
            "executable": owner.executable,
            "version": binary["version"] if binary else None,
            "config": sockets.config(host, each) if each.answers else None,
            "unit": owner.unit,
            "root": {"path": path, "is_the_node_s": not is_elsewhere},
            "started_by": {"pid": above[0], "name": above[1]} if above else None,
        }
    return {
        "runtime": str(each.runtime),
        "distribution": each.row.name,
        "socket": each.socket,
        "seen_at": str(each.seen_at),
        **known,
        "used_by": [use.word.pid for use in found.users],
        "is_candidate": not found.refusal,
        "refusal": found.refusal,
    }


def _choice(question: Question) -> dict[str, Any]:
    """Return what a run with these settings would set up, and why, or why it would set up nothing."""
    empty: dict[str, Any] = dict.fromkeys(("runtime", "socket", "config", "drop_in", "why"))
    try:
        chosen = choice.choose(question)
        settings = choice.settled(question, chosen)
        place = detect.scene(settings, registry.ADAPTERS[chosen.runtime])
    except UsageProblem as error:
        return {**empty, "problems": list(error.problems), "way_out": error.hint}
    except ToolkitError as error:
        return {**empty, "problems": [error.message], "way_out": error.hint}
    return {
        "runtime": str(chosen.runtime),
        "socket": str(place.socket),
        "config": place.desired.config,
        "drop_in": place.desired.drop_in or None,
        "why": chosen.why,
        "problems": [each.problem for each in place.against],
        "way_out": "; ".join(each.way_out for each in place.against),
    }


# --- for people -------------------------------------------------------------------------------------


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    for each in found["runtimes"]:
        yield from _told(each)
    for each in found["kubelets"]:
        says = f"uses {each['runtime'] or '?'} on {each['socket']}, by {each['by']}" if each["socket"] else ""
        yield f"{each['program']} (PID {each['pid']}) {says or 'does not say which runtime it uses'}"
    if not found["kubelets"]:
        yield "no kubelet runs in this PID namespace"
    chosen = found["choice"]
    if chosen["runtime"]:
        drop_in = f", drop-in {chosen['drop_in']}" if chosen["drop_in"] else ""
        yield f"chosen: {chosen['runtime']} on {chosen['socket']}, config {chosen['config']}{drop_in}"
        yield f"  since {chosen['why']}"
    else:
        yield "chosen: none"
    yield from (f"  but {each}" for each in chosen["problems"])
    if chosen["problems"]:
        yield f"  -> {chosen['way_out']}"


def _told(each: Mapping[str, Any]) -> Iterator[str]:
    of = "" if each["distribution"] == each["runtime"] else f" of {each['distribution']}"
    yield f"{each['runtime']}{of} on {each['socket']}"
    if each["pid"] is not None:
        yield f"  process: {each['executable']} (PID {each['pid']})"
    if each["version"]:
        yield f"  version: {each['version']}"
    if each["config"]:
        missing = "" if each["config"]["exists"] else ", which does not exist"
        yield f"  config: {each['config']['path']}, by {each['config']['by'].removeprefix('its ')}{missing}"
    if each["root"] and not each["root"]["is_the_node_s"]:
        yield f"  root: {each['root']['path']}, which is not the node's"
    if each["started_by"]:
        by = f"{each['started_by']['name']} (PID {each['started_by']['pid']})"
        yield f"  kept by: {each['unit'] or 'no unit'}, started by {by}"
    if each["used_by"]:
        yield f"  used by: the kubelet (PID {', '.join(map(str, each['used_by']))})"
    yield f"  may be chosen: {'yes' if each['is_candidate'] else 'no: ' + each['refusal']}"
