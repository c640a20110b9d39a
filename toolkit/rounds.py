"""One round of a daemon: look, do what is to be done, and report it in plain values.

The first round is done by the process that was started, all later ones by
short-lived children of it. A report holds everything that the process which
stays needs: what to watch, how to behave, what to show.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from runtimes.model import FileChange, fingerprint
from toolkit import (
    __version__,
    attest,
    cdi,
    cri,
    driver,
    footprint,
    health,
    standing,
    transaction,
)
from toolkit.errors import StepFailed, ToolkitError
from toolkit.log import LOGGER, facts
from toolkit.options import OnExit
from toolkit.settings import Settings
from toolkit.view import Task, View, view

CONVERGE: Final = "converge"
CHECK: Final = "check"
GREET: Final = "greet"
LEAVE: Final = "leave"
_LONGEST_DIFF: Final = 4096
_API_SECONDS: Final = 5.0
_SOON: Final = 2.0


def first(task: Task) -> dict[str, Any]:
    """Set the node up and report it. Raises ToolkitError: without a first success nothing stays."""
    return _reported(task, CONVERGE, standing.fresh(), _set_up)


def later(task: Task, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Do a round and report it, also where it failed.

    `given` has the counts of the rounds before, what was found out about the runtime then,
    and whether our DaemonSet is known to the API server.
    """
    counts = given.get("counts") or standing.fresh()
    act = _repair if kind == CONVERGE else _check
    began = time.monotonic()
    try:
        if kind == GREET:
            return _greeted(task)
        if kind == LEAVE:
            return _left(task, is_known=bool(given.get("is_known")))
        return _reported(task, kind, counts, act)
    except ToolkitError as error:
        failed = {
            **_blank(task, kind),
            "outcome": standing.FAILED,
            "code": error.exit_code,
            "message": error.message,
            "hint": error.hint,
            "check": task.tally.phase,
            "unready": error.message,
            "seconds": round(time.monotonic() - began, 3),
            "is_drift": True,
        }
        return _finished(task, failed, counts)


def orders(settings: Settings) -> dict[str, Any]:
    """Return how the process that stays shall behave."""
    return {
        "interval": settings.seconds("check_interval"),
        "on_drift": settings.text("on_drift"),
        "on_exit": settings.text("on_exit"),
        "grace": settings.seconds("grace_period"),
        "daemonset": settings.text("daemonset"),
        "metrics": settings.text("metrics_address"),
        "bound": 2 * settings.seconds("reload_timeout") + 120,
    }


# --- what is done -------------------------------------------------------------------------------


def _set_up(task: Task) -> tuple[View, str, str]:
    """Set the node up. What only the CDI specification lacks is no reason not to stay: it is tried again."""
    try:
        found = transaction.converge(task.settings, task.adapter, task.stop, tally=task.tally)
    except cdi.NotSpecified as error:
        LOGGER.error("%s", error.message)
        return view(task), standing.DRIFT, error.message
    if waits_for := found.specification.waits_for:
        LOGGER.warning("no CDI specification yet: %s", waits_for)
    return _settled(task, found)


def _repair(task: Task) -> tuple[View, str, str]:
    found = transaction.converge(task.settings, task.adapter, task.stop, tally=task.tally, announce=_announce)
    return _settled(task, found)


def _settled(task: Task, found: View) -> tuple[View, str, str]:
    """Look once more after a change: that is what is to be watched and shown from now on."""
    if found.is_noop:
        return found, standing.IN_SYNC, attest.unready(task, found)
    if task.stop.is_wished:
        return found, standing.CHANGED, "stopping is wished"
    now = view(task)
    return now, standing.CHANGED, attest.unready(task, now)


def _check(task: Task) -> tuple[View, str, str]:
    found, unready = attest.check(task)
    if found.is_noop:
        return found, standing.IN_SYNC, unready
    _announce(found)
    return found, standing.DRIFT, unready


def _announce(found: View) -> None:
    """Tell what differs, with the diff of every file, as far as a log can bear it."""
    from toolkit import report  # noqa: PLC0415  # a node that is right has nothing to report

    host = found.place.host
    diffs = "".join(report.diff(host, _masked(change)) for change in found.plan.changes)
    shown = diffs if len(diffs) <= _LONGEST_DIFF else f"{diffs[:_LONGEST_DIFF]}\n(and more)"
    shown = f"\n{shown.rstrip()}" if shown else ""
    paths = [str(host.local(change.path)) for change in found.plan.changes]
    LOGGER.warning(
        "the node is not as wanted: %s%s",
        "; ".join(report.differences(found)),
        shown,
        extra=facts(paths=paths),
    )


def _masked(change: FileChange) -> FileChange:
    """Return a change without secrets: a registry's password may stand beside our keys."""
    from toolkit import masking  # noqa: PLC0415

    return replace(change, before=masking.data(change.before), after=masking.data(change.after))


def _greeted(task: Task) -> dict[str, Any]:
    """Ask after the DaemonSet that was named: one that was never there is a wrong name, and not gone."""
    from toolkit import cluster  # noqa: PLC0415  # brings TLS along

    name = task.settings.text("daemonset")
    is_known = cluster.is_ours(name)
    if not is_known:
        verdict = cluster.fate(name, timeout=_API_SECONDS)
        is_known = verdict.fate is cluster.Fate.STAYS
        if not is_known:
            LOGGER.warning("--daemonset: %s; on exit the pod's own owner is asked for instead", verdict.why)
    return {"kind": GREET, "code": 0, "outcome": standing.IN_SYNC, "is_known": is_known}


def _left(task: Task, *, is_known: bool) -> dict[str, Any]:
    """Take everything back where the pod goes for good, or where that was asked for."""
    settings = task.settings
    from toolkit import cluster, removal, report  # noqa: PLC0415  # only the last round leaves

    left = {"kind": LEAVE, "code": 0}
    if settings.text("on_exit") == OnExit.AUTO:
        name = settings.text("daemonset")
        # The first round that asks may have been cut short.
        verdict = cluster.fate(name if is_known or cluster.is_ours(name) else "", timeout=_API_SECONDS)
        LOGGER.info("%s", verdict.why)
        if verdict.fate is not cluster.Fate.LEAVES:
            return {**left, "outcome": standing.IN_SYNC}
    done = removal.revert(settings, task.adapter, task.stop)
    LOGGER.info("%s", "; ".join(report.removal_text(done).strip().splitlines()))
    return {**left, "outcome": standing.CHANGED}


# --- the report ---------------------------------------------------------------------------------


def _reported(
    task: Task, kind: str, counts: Mapping[str, Any], act: Callable[[Task], tuple[View, str, str]]
) -> dict[str, Any]:
    began = time.monotonic()
    found, outcome, unready = act(task)
    owner = found.place.owner
    done = {
        **_blank(task, kind),
        "outcome": outcome,
        "ready": not unready,
        "unready": unready,
        "is_drift": act is not _set_up,
        "seconds": round(time.monotonic() - began, 3),
        "pid": owner.pid if owner and not task.settings.flag("no_runtime_config") else None,
        "watch": {
            path: sorted(names) if names else None for path, names in footprint.of(task, found).items()
        },
        "versions": _versions(task, found),
        "driver": driver.is_loaded(found.place.host),
    }
    return _finished(task, done, counts)


def _blank(task: Task, kind: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "code": 0,
        "message": "",
        "hint": "",
        "check": "",
        "ready": False,
        "orders": orders(task.settings),
        "found": dict(task.settings.found),
    }


def _finished(task: Task, done: dict[str, Any], counts: Mapping[str, Any]) -> dict[str, Any]:
    """Add the counts and, where somebody may ask for them, the metrics to a report."""
    done["counts"] = standing.after(counts, done, task.tally)
    done["counts"]["versions"] = done.get("versions") or counts.get("versions", {})
    if task.settings.text("metrics_address"):
        from toolkit import metrics  # noqa: PLC0415  # its library costs time and memory where nobody asks

        done["metrics"] = metrics.exposition(done)
    return done


def _versions(task: Task, found: View) -> dict[str, str]:
    """Return what is in use: of this program, of the toolkit, of the runtime and its configuration."""
    place = found.place
    digest = found.version.digest if found.version is not None else found.record.artifacts
    told = {"tool": __version__, "toolkit": digest or "", "runtime": str(place.desired.runtime)}
    told["configuration"] = fingerprint(json.dumps(attest.configuration(found)).encode())
    if place.owner is None or task.settings.flag("no_runtime_config"):
        return {**told, "runtime_version": ""}
    try:
        if task.adapter.speaks_cri:
            version = cri.version(place.socket, timeout=_SOON).runtime_version
        else:
            version = health.once(place, task.adapter, timeout=_SOON).has.version
    except StepFailed:
        version = ""  # it is busy, and that is told elsewhere
    return {**told, "runtime_version": version}
