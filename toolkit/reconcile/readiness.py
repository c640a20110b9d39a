"""Decide whether the node is ready, as confirmed by the runtime, and write the readiness record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from runtimes.dataclass import replace
from toolkit import __version__
from toolkit.cdi import driver
from toolkit.errors import HandlerAtFault, StepError, UsageProblem
from toolkit.kube import report as kube_report
from toolkit.log import LOGGER
from toolkit.node.processes import RuntimeProcess
from toolkit.reconcile import verify
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan, make_plan
from toolkit.runtime import locate
from toolkit.runtime.health import Health
from toolkit.settings.options import VerifyMode
from toolkit.settings.resolve import Settings
from toolkit.state import readiness_probe, readiness_record

if TYPE_CHECKING:
    from toolkit.kube.report import Occurrence

_REPORT_SECONDS: Final = 5.0


def check(context: Context) -> tuple[Plan, str]:
    """Observe the node and update the readiness record; change nothing else.

    Returns the plan, and why the node is not ready (empty if it is). Raises ToolkitError.
    """
    plan = make_plan(context)
    refuse(context, plan)
    is_settled = plan.is_noop and plan.record.open is None
    plan = write_readiness(
        context, plan, verify.runtime_state(context, plan) if is_settled else None
    )
    return plan, unready(context, plan)


def refuse(context: Context, plan: Plan) -> None:
    """Raise UsageProblem if the node contradicts the settings or the toolkit is not available.

    Raise StepError if the runtime does not see the files that are installed already. With
    `--no-install`, the readiness record is removed if the node's own toolkit is not available,
    because handlers without a program are not ready.
    """
    contradictions = () if context.settings.no_runtime_config else plan.target.contradictions
    if contradictions:
        raise UsageProblem(
            [f"{each.problem}: nothing was changed" for each in contradictions],
            hint="; ".join(dict.fromkeys(each.hint for each in contradictions)),
        )
    if plan.source_problem is not None:
        if not plan.installs:
            readiness_record.remove(context.readiness)
        raise plan.source_problem
    if not plan.is_in_place:
        return  # preflight reports this together with everything else
    if invisible := plan.invisible():
        readiness_record.remove(context.readiness)
        raise StepError("; ".join(each.problem for each in invisible), hint=invisible[0].hint)


def write_readiness(
    context: Context, plan: Plan, now: Health | None, verified: Mapping[str, str] | None = None
) -> Plan:
    """Write the readiness record if the runtime confirmed its configuration, else remove it.

    `now` is the state that the runtime reported after everything else was observed, None if it is
    not in sync. `verified` is the result for each handler; if it is None, the handlers are verified
    now, unless the record holds the results for this boot, this process and these files. Returns
    the plan with the content of the record as `ready_facts`. Raises StepError if a handler is at
    fault.
    """
    facts = None
    try:
        is_lacking = now is None or plan.specification.is_lacking or lacks_driver(context, plan)
        is_lacking = is_lacking or (context.settings.runs_plugin and context.plugin is None)
        facts = None if now is None or is_lacking else _ready_facts(context, plan, now)
        if facts is not None and now is not None:
            facts["verified"] = dict(verified or _verified(context, plan, now, facts))
        if facts is None:
            readiness_record.remove(context.readiness)
        else:
            readiness_record.write(context.readiness, facts)
    except HandlerAtFault:
        raise
    except StepError as error:
        LOGGER.warning("%s; the node is in sync, but is not reported as ready", error.message)
    return replace(plan, ready_facts=facts)


def lacks_driver(context: Context, plan: Plan) -> bool:
    """Return whether the driver is not loaded although readiness depends on it."""
    return context.settings.readiness_requires_driver and not driver.is_loaded(plan.target.host)


def _unmet(context: Context, plan: Plan) -> str:
    """Return why the node is not ready, whatever the runtime says; else an empty text."""
    if not plan.is_noop:
        return "the node is not in sync"
    if plan.specification.is_lacking:
        return f"the CDI specification is not generated yet: {plan.specification.waits_for}"
    if invisible := plan.invisible():
        return "; ".join(each.problem for each in invisible)
    if lacks_driver(context, plan):
        return readiness_probe.NO_DRIVER
    return (
        readiness_probe.NO_PLUGIN
        if context.settings.runs_plugin and _plugin(context) is None
        else ""
    )


def _plugin(context: Context) -> Sequence[int] | None:
    """Return the process of the registered NRI plugin: for other commands the one in the record."""
    return context.plugin or readiness_record.plugin(context.readiness)


def unready(context: Context, plan: Plan) -> str:
    """Return why the node is not ready; empty if the readiness record exists and matches it."""
    if problem := _unmet(context, plan):
        return problem
    if plan.ready_facts is not None:
        return readiness_record.mismatch(context.readiness, dict(plan.ready_facts))
    state = verify.runtime_state(context, plan)
    if state is None:
        return "the runtime is unhealthy or has not loaded the configuration"
    return readiness_record.mismatch(
        context.readiness, _facts(context, plan, state, _daemon(context, plan))
    )


def _ready_facts(context: Context, plan: Plan, state: Health) -> dict[str, Any] | None:
    """Return the content of the readiness record, None if the runtime was replaced meanwhile.

    The process is identified before and after its state is queried, because a runtime that was
    restarted in between may have other handlers. If the process of the plan still runs, that
    identification is the first one; otherwise the state is queried again.
    """
    process = _daemon(context, plan)
    if process == plan.target.process or context.settings.no_runtime_config:
        return _facts(context, plan, state, process)
    new_state = verify.runtime_state(context, plan)
    if new_state is None or _daemon(context, plan) != process:
        LOGGER.warning(
            "the runtime changed during the check, so the node is not reported as ready yet"
        )
        return None
    return _facts(context, plan, new_state, process)


def verified(context: Context) -> dict[str, str]:
    """Return the result for each handler that the readiness record holds, empty if none."""
    results = (readiness_record.read(context.readiness) or {}).get("verified")
    return (
        {str(name): str(result) for name, result in results.items()}
        if isinstance(results, dict)
        else {}
    )


def _verified(
    context: Context, plan: Plan, now: Health, facts: Mapping[str, Any]
) -> Mapping[str, str]:
    """Return the recorded result for each handler, or verify the handlers if it says too little.

    Raises StepError if a handler is at fault; the node is not ready then.
    """
    content = readiness_record.read(context.readiness) or {}
    recorded = (
        content.get("verified") if all(content.get(key) == facts[key] for key in facts) else None
    )
    is_started = context.settings.verify == VerifyMode.RUN
    if isinstance(recorded, dict) and readiness_record.is_verified(
        recorded, verify.handlers(context, plan), is_started=is_started
    ):
        return recorded
    from toolkit.reconcile import handler_verification  # noqa: PLC0415  # slow to import, and rarely needed

    phase = context.stats.phase
    try:
        with context.stats.during("smoke_test"):
            results = handler_verification.verified(context, plan, now, recorded)
    except StepError as error:
        readiness_record.remove(context.readiness)
        raise HandlerAtFault(f"{error.message}; no file was changed", hint=error.hint) from error
    context.stats.phase = phase
    return results


def _daemon(context: Context, plan: Plan) -> RuntimeProcess | None:
    """Return the process that owns the runtime's socket now, None if the runtime is not managed."""
    if context.settings.no_runtime_config:
        return None
    return locate.again(plan.target, context.adapter, timeout=verify.soon(context)).process


def _facts(
    context: Context, plan: Plan, state: Health, daemon: RuntimeProcess | None
) -> dict[str, Any]:
    """Return the content of the readiness record of a node that is in sync."""
    digest = plan.version.digest if plan.version is not None else plan.record.toolkit_digest
    files = verify.configuration(plan)
    if plan.specification.path:
        files[str(plan.specification.local)] = plan.specification.content
    signs = (
        driver.marker_paths(plan.target.host)
        if context.settings.readiness_requires_driver
        else None
    )
    runtime = plan.target.desired.runtime
    facts = readiness_record.facts(runtime, daemon, state.effective, digest, files, signs)
    plugin = _plugin(context) if context.settings.runs_plugin else None
    return {**facts, "plugin": None if plugin is None else list(plugin)}


# --- the report to the API server, where no agent sends it ----------------------------------------


def report(settings: Settings, failure: Occurrence | None = None) -> None:
    """Report to the API server whether the node is ready, as the readiness record says.

    `failure` is the Event of a run that failed; if the record still counts, the label and the
    condition stay as they are. A failure to report is only logged.
    """
    if (to := kube_report.settings_of(settings)) is None:
        return
    from toolkit.kube import node_report, report_schedule  # noqa: PLC0415  # imports ssl, which is large

    problem = readiness_probe.unready(settings.readiness)
    is_ready = None if failure and not problem else not problem
    why = failure["message"] if failure else problem
    result = node_report.send(
        {
            "settings": to,
            "ready": is_ready,
            "reason": report_schedule.NOT_READY if problem else report_schedule.VERIFIED,
            "message": why or f"nvidia-toolkit {__version__}",
            "events": [failure] if failure else [],
        },
        timeout=_REPORT_SECONDS,
    )
    if result["error"]:
        LOGGER.warning("the node's state is not reported: %s", result["error"])


def withdraw(settings: Settings) -> None:
    """Remove the label, and set the condition to False, before the node is reverted.

    If that fails, the revert goes on: an API server that is away keeps no node from being reverted.
    """
    if (to := kube_report.settings_of(settings)) is None:
        return
    from toolkit.kube import node_report  # noqa: PLC0415  # imports ssl, which is large

    if problem := node_report.withdraw(to, "the node is being reverted"):
        way_out = f"kubectl label node {to['node']} {to['label']}-" if to["label"] else ""
        LOGGER.warning(
            "the node may still be reported as ready: %s%s",
            problem,
            f"; remove the label: {way_out}" if way_out else "",
        )
