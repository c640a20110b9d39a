"""The output of the commands, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from runtimes.model import FileChange
from toolkit import log
from toolkit.log import CYAN, GREEN, RED, YELLOW
from toolkit.node.host import Host
from toolkit.reconcile import describe
from toolkit.reconcile.planning import Plan
from toolkit.reconcile.preflight import Forecast
from toolkit.settings.layout import InstallDir
from toolkit.state.readiness_record import STARTED

if TYPE_CHECKING:
    from toolkit.reconcile.uninstall import Removal

_OF_CHOICE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "no container runtime found": RED,
        "chosen": GREEN,
        "chosen: none": RED,
        "problem": RED,
        "hint": CYAN,
    }
)
"""The colours of lines of `detect`, by what they begin with."""
_COLOURS: Final = {"+": GREEN, "-": RED, "@": CYAN}


def plan_text(forecast: Forecast, *, colour: bool, is_full: bool) -> str:
    """Return as text what refuses a run, the change of every file, and how the runtime loads it.

    With `is_full`, a change is a unified diff with context; otherwise only its keys, secrets
    masked.
    """
    plan, blocked = forecast.plan, forecast.blocked
    host, shown = plan.target.host, describe.diff if is_full else describe.changed_keys
    lines = [_line(line, RED, colour=colour) for line in describe.refusals(forecast)]
    lines += [
        colour_diff(shown(host, change), colour=colour) for change in plan.config_plan.changes
    ]
    lines += [_line(note, CYAN, colour=colour) for note in describe.forecast_notes(forecast)]
    summary_colour = RED if blocked else GREEN if plan.is_done else YELLOW
    summary = describe.summary(plan, is_blocked=bool(blocked))
    return "".join([*lines, _line(summary, summary_colour, colour=colour)])


def _line(words: str, code: str, *, colour: bool) -> str:
    """Return a line that is not part of a diff."""
    return log.coloured(f"# {words}", code, wanted=colour) + "\n"


def plan_json(forecast: Forecast, *, is_full: bool) -> str:
    """Return a plan as one JSON object (see docs/output.md). `is_full` as in `plan_text`."""
    return _json(_plan(forecast, is_full=is_full))


def _plan(forecast: Forecast, *, is_full: bool = False) -> dict[str, Any]:
    plan, blocked = forecast.plan, forecast.blocked
    return {
        "runtime": str(plan.target.desired.runtime),
        "operation": str(plan.operation),
        "in_sync": plan.is_done,
        "binary": plan.target.binary,
        "changes": [
            _change(plan.target.host, change, is_full=is_full)
            for change in plan.config_plan.changes
        ],
        "toolkit": _toolkit(plan),
        "specification": describe.specification(plan),
        "nri": None if plan.nri is None else {"state": plan.nri.state, "text": plan.nri.text},
        "reload": {
            "needed": plan.reload_needed,
            "reason": describe.reload_reason(plan),
            "how": plan.restart_method.words(plan.target.process),
            "unavailable_s": describe.unavailable_seconds(plan),
        },
        "blocked": [
            {"problem": each.problem, "hint": each.hint, "code": each.code} for each in blocked
        ],
        "notes": list(describe.forecast_notes(forecast)),
        "summary": describe.summary(plan, is_blocked=bool(blocked)),
    }


def run_json(plan: Plan, *, seconds: float) -> str:
    """Return the plan that a run applied and its outcome as one JSON object."""
    outcome = "in sync" if plan.is_noop else "changed"
    return _json({**_plan(Forecast(plan=plan)), "outcome": outcome, "seconds": round(seconds, 3)})


def status_text(
    forecast: Forecast, unready: str, verified: Mapping[str, str], *, colour: bool = False
) -> str:
    """Return as text whether the node is in sync, what differs, and whether it is ready.

    `unready` is the reason why the node is not ready; empty if it is ready. `verified` is the
    result for each handler: those through which no container was started are listed.
    """
    plan = forecast.plan
    if not plan.is_noop:
        head = log.coloured("not in sync", YELLOW, wanted=colour)
        lines = [f"  {line}\n" for line in describe.differences(plan)]
        lines += [
            f"  {log.coloured(line, RED, wanted=colour)}\n" for line in describe.refusals(forecast)
        ]
        return "".join([f"{head}\n", *lines])
    ready = log.coloured("ready", GREEN, wanted=colour)
    if unready:
        ready = f"{log.coloured('not ready', YELLOW, wanted=colour)}: {unready}"
    listed = {} if unready else {name: text for name, text in verified.items() if text != STARTED}
    lines = [f"  {handler}: {result}\n" for handler, result in listed.items()]
    lines += [] if plan.nri is None else [f"  {plan.nri.text}\n"]
    return "".join([f"{log.coloured('in sync', GREEN, wanted=colour)}\n{ready}\n", *lines])


def status_json(forecast: Forecast, unready: str, verified: Mapping[str, str]) -> str:
    """Return the node's state as one JSON object; `unready` and `verified` as in `status_text`."""
    results = {} if unready else dict(verified)
    return _json({**_plan(forecast), "ready": not unready, "unready": unready, "verified": results})


def removal_json(done: Removal) -> str:
    """Return the changes that a revert made as one JSON object."""
    return _json(
        {
            "changes": [_change(done.target.host, change) for change in done.plan.changes],
            "stayed": list(done.plan.stayed),
        }
    )


def colour_diff(text: str, *, colour: bool) -> str:
    """Return a diff, with `colour` in the colours of a terminal."""
    if not colour:
        return text
    return "".join(
        (
            f"{log.coloured(line.rstrip(), _COLOURS[line[0]], wanted=True)}\n"
            if line[0] in _COLOURS
            else line
        )
        for line in text.splitlines(keepends=True)
    )


def _change(host: Host, change: FileChange, *, is_full: bool = False) -> dict[str, Any]:
    return {
        "path": str(host.local(change.path)),
        "node_path": change.path,
        "action": change.action,
        "diff": describe.diff(host, change) if is_full else describe.changed_keys(host, change),
    }


def _toolkit(plan: Plan) -> dict[str, Any]:
    version = plan.version
    return {
        "path": str(InstallDir(plan.target.install_dir).toolkit),
        "version": version.digest if version else None,
        "in_sync": version.is_installed if version else None,
        "differing": list(version.differing) if version else [],
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def text(result: Mapping[str, Any], *, colour: bool = False) -> str:
    """Return the inventory that `detect` collected as text."""
    lines = []
    for line in _lines(result):
        head = line.strip().partition(":")[0]
        code = _OF_CHOICE.get("chosen: none" if line == "chosen: none" else head)
        lines.append(log.coloured(line, code, wanted=colour) if code else line)
    return "\n".join(lines) + "\n"


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    if all(each["pid"] is None for each in result["runtimes"]):
        yield "no container runtime found"
    for each in result["runtimes"]:
        yield from _runtime(each)
    for each in result["kubelets"]:
        uses = (
            f"uses {each['runtime'] or '?'} on {each['socket']}, by {each['by']}"
            if each["socket"]
            else ""
        )
        yield f"{each['program']} (PID {each['pid']}) {uses or 'names no runtime endpoint'}"
    for each in result["ignored"]:
        yield f"{each['program']} (PID {each['pid']}) is ignored: it {each['problem']}"
    if not result["kubelets"]:
        yield "no kubelet found in this PID namespace"
    chosen = result["choice"]
    if chosen["runtime"]:
        drop_in = f", drop-in {chosen['drop_in']}" if chosen["drop_in"] else ""
        yield (
            f"chosen: {chosen['runtime']} on {chosen['socket']}, config {chosen['config']}{drop_in}"
        )
        yield f"  reason: {chosen['why']}"
    else:
        yield "chosen: none"
    yield from (f"  problem: {each}" for each in chosen["problems"])
    if chosen["problems"]:
        yield f"  hint: {chosen['hint']}"


def _runtime(each: Mapping[str, Any]) -> Iterator[str]:
    of = "" if each["distribution"] == each["runtime"] else f" of {each['distribution']}"
    yield f"{each['runtime']}{of} on {each['socket']}"
    if each["pid"] is not None:
        yield f"  process: {each['executable']} (PID {each['pid']})"
    if each["version"]:
        yield f"  version: {each['version']}"
    if each["config"]:
        missing = "" if each["config"]["exists"] else ", which does not exist"
        yield (
            f"  config: {each['config']['path']}, by"
            f" {each['config']['by'].removeprefix('its ')}{missing}"
        )
    if each["root"] and not each["root"]["is_host"]:
        yield f"  root: {each['root']['path']}, not the root of the node"
    if each["nri"]:
        yield f"  NRI: {each['nri']}"
    if each["started_by"]:
        by = f"{each['started_by']['name']} (PID {each['started_by']['pid']})"
        yield f"  unit: {each['unit'] or 'none'}, started by {by}"
    if each["used_by"]:
        yield f"  used by: the kubelet (PID {', '.join(map(str, each['used_by']))})"
    yield f"  can be selected: {'yes' if each['is_candidate'] else 'no: ' + each['refusal']}"
