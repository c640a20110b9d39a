"""Sections of the report about the installation: settings, plan, state file, restarts."""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from runtimes.adapter import SighupEffect
from runtimes.model import Effective, Observation, fingerprint
from toolkit import __version__
from toolkit.errors import StepError, ToolkitError
from toolkit.node import files, lock, mounts
from toolkit.reconcile import describe, preflight, readiness
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan
from toolkit.runtime import health, locate
from toolkit.runtime.locate import Target
from toolkit.runtime.supervision import systemd
from toolkit.settings.layout import InstallDir
from toolkit.settings.resolve import Settings
from toolkit.state.record import Owned, Record

_SOON: Final = 5.0
# The kernel's inode number of the initial PID namespace (PROC_PID_INIT_INO).
_FIRST_NAMESPACE: Final = "pid:[4026531836]"


def program(settings: Settings) -> dict[str, Any]:
    """Return the program's version, its environment, and the settings that are not defaults."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "user": os.geteuid(),
        "given": [
            {"name": name, "value": _json_value(settings.values[name]), "by": origin}
            for name, origin in settings.origins.items()
            if origin != "default"
        ],
        "pid_namespace": _namespace(),
    }


def paths(target: Target, record: Record, observed: Sequence[str]) -> list[str]:
    """Return the node paths of all relevant files: the configured, the observed and the owned ones.

    The root config comes first.
    """
    desired = (target.desired.config, target.desired.drop_in, target.desired.hook)
    return list(
        dict.fromkeys(p for p in (*desired, *observed, *(o.path for o in record.owned)) if p)
    )


def listed(target: Target, record: Record, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a description of each file, or the reason why it cannot be read."""
    points = mounts.mount_points()
    owned = {each.path: each for each in record.owned}
    return [_file(target, name, owned.get(name), points) for name in names]


def plan(context: Context, plan: Plan) -> dict[str, Any]:
    """Return the planned changes, and why a run would refuse them."""
    host = plan.target.host
    forecast = preflight.forecast(context, plan, patience=0)
    return {
        "in_sync": plan.is_noop,
        "changes": [
            {
                "path": change.path,
                "action": change.action,
                "diff": describe.changed_keys(host, change),
            }
            for change in plan.config_plan.changes
        ],
        "toolkit": list(plan.version.differing) if plan.version is not None else None,
        "specification": describe.specification(plan),
        "reload": describe.reload_reason(plan),
        "blocked": [{"problem": each.problem, "hint": each.hint} for each in forecast.blocked],
        "notes": list(describe.forecast_notes(forecast)),
    }


def effective(context: Context, target: Target, observation: Observation) -> dict[str, Any]:
    """Return the config that the runtime gets from its files at start. Raises ConfigError."""
    configuration = context.adapter.effective(target.desired, observation)
    programs = context.adapter.programs(target.desired, observation)
    return {
        **_configuration(configuration),
        "programs": {name: list(paths) for name, paths in sorted(programs.items())},
    }


def running(context: Context, target: Target) -> dict[str, Any]:
    """Return the health and the configuration that the running daemon reports."""
    now = health.query(target, context.adapter, timeout=_SOON)
    return {
        "healthy": not now.problems,
        "problems": list(now.problems),
        "cri": now.no_cri or "served",
        "network": now.network or "ready",
        **_configuration(now.effective),
    }


def supervisor(context: Context, target: Target) -> dict[str, Any]:
    """Return what starts the runtime again, and the units that depend on its unit."""
    found = locate.supervised(target, context.adapter, _SOON).supervisor
    if target.process is None or found is None:
        raise StepError(target.no_process)
    unit = found.unit
    stopped = (
        systemd.stopped(target.host, unit, timeout=_SOON) if unit and not found.unusable else {}
    )
    return {
        "unit": unit,
        "no_unit": found.no_unit,
        "unusable": found.unusable,
        "after_sighup": (
            found.after_signal if context.adapter.on_hangup is SighupEffect.TERMINATES else None
        ),
        "doubt": found.doubt if context.adapter.on_hangup is SighupEffect.TERMINATES else "",
        "dependents": list(found.dependents),
        "stopped_dependents": stopped,
    }


def state(install_dir: Path, record: Record) -> dict[str, Any]:
    """Return a summary of the state file."""
    opened = record.open
    return {
        "path": str(InstallDir(install_dir).record),
        "sequence": record.sequence,
        "runtime": record.runtime,
        "owned": [each.path for each in record.owned],
        "directories": list(record.directories),
        "specification": record.specification.path if record.specification else None,
        "unit": record.unit,
        "toolkit_digest": record.toolkit_digest,
        "displaced": record.displaced,
        "pending_reload": _moment(record.pending_reload.since if record.pending_reload else None),
        "open": (
            None
            if opened is None
            else {
                "operation": str(opened.operation),
                "notified": opened.notified,
                "failure": opened.failure,
                "files": [each.path for each in opened.files],
            }
        ),
    }


def ready(context: Context, plan: Plan | None) -> dict[str, Any]:
    """Return the readiness file, and why the node is not ready."""
    snapshot = files.read(context.readiness)
    why = readiness.unready(context, plan) if plan is not None else "the node cannot be compared"
    return {
        "path": str(context.readiness),
        "record": snapshot.data.decode(errors="replace") if snapshot else None,
        "ready": not why,
        "why": why,
    }


def restarts(context: Context) -> dict[str, Any]:
    """Return our restarts of the runtime within the budget's window."""
    spent = context.budget.spent()
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return {
        "budget": context.budget.most,
        "window_s": context.budget.window,
        "ago_s": [int(now - moment) for moment in spent],
        "refusal": context.budget.restart_refusal(),
    }


def holder(pid_file: Path) -> dict[str, Any]:
    """Return the holder of the lock, from the kernel's list of locks, without acquiring it."""
    snapshot = files.read(pid_file)
    pid = snapshot.data.decode(errors="replace").strip() if snapshot else ""
    return {"path": str(pid_file), "pid": pid or None, "held": lock.is_held(pid_file)}


# --- values -------------------------------------------------------------------------------------


def _file(target: Target, name: str, owned: Owned | None, mount_points: set[str]) -> dict[str, Any]:
    local = target.host.local(name)
    entry: dict[str, Any] = {"path": name, "seen_at": str(local), "owned": owned is not None}
    try:
        itself = target.host.target(local.parent) / local.name
        status = os.lstat(itself)
        link = os.readlink(itself) if stat.S_ISLNK(status.st_mode) else None
        at = target.host.target(local)
        snapshot = files.read(at)
    except FileNotFoundError:
        snapshot = None
        if owned is None:
            return {**entry, "exists": False}
        return {**entry, "exists": False, "as_written": fingerprint(None) in owned.written}
    except (OSError, ToolkitError) as error:
        return {**entry, "exists": None, "problem": str(error)}
    if snapshot is None:
        return {**entry, "exists": False, "link": link}
    return {
        **entry,
        "exists": True,
        "link": link,
        "sha256": hashlib.sha256(snapshot.data).hexdigest(),
        "size": len(snapshot.data),
        "mode": f"{snapshot.mode:04o}",
        "owner": f"{snapshot.uid}:{snapshot.gid}",
        "modified": _moment(os.stat(at).st_mtime),
        "mounted_by_itself": str(at) in mount_points,
        "as_written": fingerprint(snapshot.data) in owned.written if owned else None,
    }


def _configuration(configuration: Effective) -> dict[str, Any]:
    return {
        "handlers": None if configuration.handlers is None else sorted(configuration.handlers),
        "default": configuration.default,
        "sandbox_image": configuration.sandbox_image,
        "systemd_cgroup": sorted(configuration.systemd_cgroup),
    }


def _namespace() -> dict[str, Any]:
    try:
        namespace = os.readlink("/proc/self/ns/pid")
        first = Path("/proc/1/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        return {"unavailable": str(error)}
    return {"id": namespace, "is_first": namespace == _FIRST_NAMESPACE, "pid_1": first}


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _json_value(item: Any) -> Any:
    return list(item) if isinstance(item, tuple) else item
