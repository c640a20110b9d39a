"""A sync of the agent: compare the node with the settings, apply the difference, return a report.

The first sync runs in the process that the user started, all later ones in children of the agent.
The report contains everything that the agent needs: what to watch, its settings, and what to show.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtimes import registry
from runtimes.dataclass import replace
from runtimes.model import RuntimeName, fingerprint
from toolkit import __version__
from toolkit.agent import counters, watch_list
from toolkit.agent.report import AgentSettings, SyncReport
from toolkit.cdi import driver
from toolkit.errors import Interrupted, NotRolledBack, RolledBack, StepError, ToolkitError
from toolkit.kube import report as kube_report
from toolkit.log import LOGGER, facts
from toolkit.reconcile import cdi, preflight, readiness, transaction, verify
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan, make_plan
from toolkit.runtime import health
from toolkit.runtime.client import cri
from toolkit.settings.layout import RunDir
from toolkit.settings.options import OnExit
from toolkit.settings.resolve import Settings
from toolkit.state import journal, readiness_probe

if TYPE_CHECKING:
    from toolkit.agent.nri import NriSettings

CONVERGE: Final = "converge"
GREET: Final = "greet"
LEAVE: Final = "leave"
_MANAGEMENT: Final = "management.nvidia.com/gpu"
_LONGEST_DIFF: Final = 4096
_API_SECONDS: Final = 5.0
_SOON: Final = 2.0


def first(context: Context) -> SyncReport:
    """Configure the node and return the report.

    Raises ToolkitError if that fails: the agent is not started then.
    """
    return _reported(context, CONVERGE, counters.initial(), _set_up)


def later(context: Context, kind: str, previous: SyncReport) -> SyncReport:
    """Run a sync of a kind and return its report, also if it failed.

    `previous` holds the counters of the earlier syncs, and whether the API server knows the
    DaemonSet.
    """
    counts = previous.get("counts") or counters.initial()
    act = _repair if kind == CONVERGE else _check
    context = replace(context, plugin=previous.get("plugin"))
    began = time.monotonic()
    try:
        if kind == GREET:
            return _greeted(context)
        if kind == LEAVE:
            return _left(context, is_known=bool(previous.get("is_known")))
        return _reported(context, kind, counts, act)
    except ToolkitError as error:
        failed: SyncReport = {
            **_blank(context, kind),
            "outcome": counters.FAILED,
            "code": error.exit_code,
            "message": error.message,
            "hint": error.hint,
            "check": context.stats.phase,
            "unready": error.message,
            "seconds": round(time.monotonic() - began, 3),
            "is_drift": True,
            "is_exhausted": isinstance(error, StepError) and bool(context.budget.restart_refusal()),
        }
        return _finished(context, failed, counts)


def agent_settings(settings: Settings) -> AgentSettings:
    """Return the settings of the agent itself; `bound` is the longest time a sync should take."""
    return {
        "interval": settings.check_interval,
        "on_drift": settings.on_drift,
        "on_exit": settings.on_exit,
        "grace": settings.grace_period,
        "daemonset": settings.daemonset,
        "metrics": settings.metrics_address,
        "bound": 2 * settings.reload_timeout + 120,
        "refuses": settings.require_driver,
        "needs_driver": readiness_probe.NO_DRIVER if settings.readiness_requires_driver else "",
        "readiness": str(settings.readiness),
        "state": str(RunDir.of(settings.pid_file).agent),
        "nri": _plugin_settings(settings) if settings.runs_plugin else None,
        "report": kube_report.settings_of(settings),
    }


def _plugin_settings(settings: Settings) -> NriSettings:
    """Return the settings of the NRI plugin.

    The usual kind is restricted as well where the management devices have another one: a
    specification of it may be on the node.
    """
    executables = (
        registry.ADAPTERS[name].executables for name in (RuntimeName.CONTAINERD, RuntimeName.CRIO)
    )
    return {
        "socket": settings.nri_socket,
        "index": f"{int(settings.nri_plugin_index):02}",
        "kinds": sorted({settings.cdi_kind, _MANAGEMENT}),
        "namespaces": list(
            dict.fromkeys([settings.nri_namespace.strip(), *settings.nri_namespaces])
        ),
        "executables": sorted(frozenset().union(*executables)),
    }


# --- the kinds of syncs -------------------------------------------------------------------------


def _set_up(context: Context) -> tuple[Plan, str, str]:
    """Configure the node. If only the CDI specification fails, the agent starts and tries again."""
    if context.settings.runs_plugin:
        preflight.require_nri(context)
        _remove_handlers(context)
    try:
        plan = transaction.converge(
            context.settings, context.adapter, context.stop, tally=context.stats
        )
    except cdi.NotSpecified as error:
        LOGGER.error("%s", error.message)
        return make_plan(context), counters.DRIFT, error.message
    if waits_for := plan.specification.waits_for:
        LOGGER.warning("no CDI specification yet: %s", waits_for)
    return _outcome(context, plan)


def _remove_handlers(context: Context) -> None:
    """Remove the handlers of earlier runs without the NRI plugin, once no pod uses them.

    A node on which this is not possible, for example because the runtime's files are not mounted,
    keeps them, as a node has them beside upstream's plugin. Raises RolledBack or NotRolledBack.
    """
    if not journal.load(Path(context.settings.toolkit_install_dir).absolute()).owned:
        return
    from toolkit.reconcile import uninstall  # noqa: PLC0415  # needed once

    try:
        kept = uninstall.remove_handlers(context)
    except (RolledBack, NotRolledBack, Interrupted):
        raise
    except ToolkitError as error:
        kept = error.message
    if kept:
        LOGGER.warning("the handlers stay beside the NRI plugin: %s", kept)


def _repair(context: Context) -> tuple[Plan, str, str]:
    if context.settings.runs_plugin:
        _remove_handlers(context)
    plan = transaction.converge(
        context.settings,
        context.adapter,
        context.stop,
        tally=context.stats,
        announce=_announce,
        plugin=context.plugin,
    )
    return _outcome(context, plan)


def _outcome(context: Context, plan: Plan) -> tuple[Plan, str, str]:
    """Return the plan, outcome and why the node is not ready; observe it again after a change."""
    if plan.is_noop:
        return plan, counters.IN_SYNC, readiness.unready(context, plan)
    if context.stop.is_requested:
        return plan, counters.CHANGED, "the agent is stopping"
    current = make_plan(context)
    return current, counters.CHANGED, readiness.unready(context, current)


def _check(context: Context) -> tuple[Plan, str, str]:
    plan, unready = readiness.check(context)
    if plan.is_noop:
        return plan, counters.IN_SYNC, unready
    _announce(plan)
    return plan, counters.DRIFT, unready


def _announce(plan: Plan) -> None:
    """Log what differs, with the changed keys of every file, truncated to a sensible length."""
    from toolkit.reconcile import describe  # noqa: PLC0415  # not needed while the node is in sync

    host = plan.target.host
    diffs = "".join(describe.changed_keys(host, change) for change in plan.config_plan.changes)
    shown = diffs if len(diffs) <= _LONGEST_DIFF else f"{diffs[:_LONGEST_DIFF]}\n(truncated)"
    shown = f"\n{shown.rstrip()}" if shown else ""
    paths = [str(host.local(change.path)) for change in plan.config_plan.changes]
    LOGGER.warning(
        "the node is not in sync: %s%s",
        "; ".join(describe.differences(plan)),
        shown,
        extra=facts(paths=paths),
    )


def _greeted(context: Context) -> SyncReport:
    """Look up the DaemonSet of --daemonset at start, to tell a wrong name from a deleted one."""
    from toolkit.kube import daemonset  # noqa: PLC0415  # imports ssl, which is large

    name = context.settings.daemonset
    is_known = daemonset.is_own(name)
    if not is_known:
        verdict = daemonset.look_up(name, timeout=_API_SECONDS)
        is_known = verdict.state is daemonset.DaemonSetState.PRESENT
        if not is_known:
            LOGGER.warning(
                "--daemonset: %s; on exit the pod's owner is looked up instead", verdict.why
            )
    return {"kind": GREET, "code": 0, "outcome": counters.IN_SYNC, "is_known": is_known}


def _left(context: Context, *, is_known: bool) -> SyncReport:
    """Uninstall if --on-exit is `revert`, or if it is `auto` and the DaemonSet is deleted."""
    settings = context.settings
    from toolkit.kube import daemonset  # noqa: PLC0415  # needed on exit only
    from toolkit.reconcile import describe, uninstall  # noqa: PLC0415  # needed on exit only

    report: SyncReport = {"kind": LEAVE, "code": 0}
    if settings.on_exit == OnExit.AUTO:
        name = settings.daemonset
        # The lookup at the start may have been interrupted, so `is_known` alone is not enough.
        verdict = daemonset.look_up(
            name if is_known or daemonset.is_own(name) else "", timeout=_API_SECONDS
        )
        LOGGER.info("%s", verdict.why)
        if verdict.state is not daemonset.DaemonSetState.DELETED:
            return {**report, "outcome": counters.IN_SYNC}
    done = uninstall.revert(settings, context.adapter, context.stop)
    LOGGER.info("%s", "; ".join(describe.removal_text(done).strip().splitlines()))
    return {**report, "outcome": counters.CHANGED}


# --- the report ---------------------------------------------------------------------------------


def _reported(
    context: Context,
    kind: str,
    counts: Mapping[str, Any],
    act: Callable[[Context], tuple[Plan, str, str]],
) -> SyncReport:
    began = time.monotonic()
    plan, outcome, unready = act(context)
    owner = plan.target.process
    done: SyncReport = {
        **_blank(context, kind),
        "outcome": outcome,
        "ready": not unready,
        "unready": unready,
        "is_drift": act is not _set_up,
        "seconds": round(time.monotonic() - began, 3),
        "pid": owner.pid if owner and not context.settings.no_runtime_config else None,
        "watch": {
            path: sorted(names) if names else None
            for path, names in watch_list.of(context, plan).items()
        },
        "observed_at": plan.observed_at,
        "versions": _versions(context, plan),
        "driver": driver.is_loaded(plan.target.host),
        "signs": driver.marker_paths(plan.target.host),
        "verified": {} if unready else readiness.verified(context),
    }
    return _finished(context, done, counts)


def _blank(context: Context, kind: str) -> SyncReport:
    return {
        "kind": kind,
        "code": 0,
        "message": "",
        "hint": "",
        "check": "",
        "ready": False,
        "settings": agent_settings(context.settings),
        "found": dict(context.settings.discovered),
    }


def _finished(context: Context, done: SyncReport, counts: Mapping[str, Any]) -> SyncReport:
    """Return a report with the counters and, with --metrics-address, the metrics."""
    done["counts"] = counters.after(counts, done, context.stats)
    done["counts"]["versions"] = done.get("versions") or counts.get("versions", {})
    if context.settings.metrics_address:
        from toolkit.agent import metrics  # noqa: PLC0415  # its library costs time and memory

        done["metrics"] = metrics.exposition(done, restarts_remaining=context.budget.remaining())
    return done


def _versions(context: Context, plan: Plan) -> dict[str, str]:
    """Return the versions of this program, toolkit and runtime, and a configuration digest."""
    target = plan.target
    digest = plan.version.digest if plan.version is not None else plan.record.toolkit_digest
    versions = {
        "tool": __version__,
        "toolkit": digest or "",
        "runtime": str(target.desired.runtime),
    }
    versions["configuration"] = fingerprint(json.dumps(verify.configuration(plan)).encode())
    if target.process is None or context.settings.no_runtime_config:
        return {**versions, "runtime_version": ""}
    try:
        if context.adapter.supports_cri:
            version = cri.version(target.socket, timeout=_SOON)
        else:
            version = health.query(target, context.adapter, timeout=_SOON).effective.version
    except StepError:
        version = ""  # the runtime does not answer now, which the readiness check reports
    return {**versions, "runtime_version": version}
