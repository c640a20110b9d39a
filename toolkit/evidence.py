"""What is known of the installation itself: how it was asked for, what it would do, what it remembers."""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from runtimes.model import Effective, Observation, fingerprint
from toolkit import __version__, attest, files, health, journal, lock, masking, preflight, report
from toolkit.detect import Scene
from toolkit.errors import ToolkitError
from toolkit.memory import Owned, Record
from toolkit.settings import Settings
from toolkit.view import Task, View

_SOON: Final = 5.0
# The kernel's own number of the first PID namespace (PROC_PID_INIT_INO).
_FIRST_NAMESPACE: Final = "pid:[4026531836]"


def tool(settings: Settings) -> dict[str, Any]:
    """Return what runs here, and what it was given."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "user": os.geteuid(),
        "given": [
            {"name": name, "value": _plain(settings.values[name]), "by": origin}
            for name, origin in settings.origins.items()
            if origin != "default"
        ],
        "pid_namespace": _namespace(),
    }


def paths(place: Scene, record: Record, seen: Sequence[str]) -> list[str]:
    """Return the files that matter, as the node names them: the root config first."""
    wanted = (place.desired.config, place.desired.drop_in, place.desired.hook)
    return list(dict.fromkeys(p for p in (*wanted, *seen, *(o.path for o in record.owned)) if p))


def listed(place: Scene, record: Record, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return files with what tells whether they are as they should be; one that cannot be read says why."""
    mounts = preflight.mount_points()
    owned = {each.path: each for each in record.owned}
    return [_file(place, name, owned.get(name), mounts) for name in names]


def plan(found: View) -> dict[str, Any]:
    """Return how the node differs from what is wanted; secrets are masked before the files are compared."""
    host = found.place.host
    return {
        "in_sync": found.is_noop,
        "changes": [
            {
                "path": change.path,
                "action": change.action,
                "diff": report.diff(
                    host,
                    replace(change, before=masking.data(change.before), after=masking.data(change.after)),
                ),
            }
            for change in found.plan.changes
        ],
        "toolkit": list(found.version.differing) if found.version is not None else None,
        "specification": report.specification(found),
        "reload": report.reload_reason(found),
        "notes": list(report.notes(found)),
        "problem": "",
    }


def effective(task: Task, place: Scene, seen: Observation) -> dict[str, Any]:
    """Return what the files make the runtime have when it starts. Raises NotUnderstood."""
    has = task.adapter.effective(place.desired, seen)
    programs = task.adapter.programs(place.desired, seen)
    return {**_has(has), "programs": {name: list(named) for name, named in sorted(programs.items())}}


def running(task: Task, place: Scene) -> dict[str, Any]:
    """Return what the running daemon says."""
    now = health.once(place, task.adapter, timeout=_SOON)
    return {
        "well": not now.ailments,
        "ailments": list(now.ailments),
        "cri": now.no_cri or "served",
        "network": now.network or "ready",
        **_has(now.has),
    }


def state(install_dir: Path, record: Record) -> dict[str, Any]:
    """Return the record's summary."""
    opened = record.open
    return {
        "path": str(journal.path(install_dir)),
        "sequence": record.sequence,
        "runtime": record.runtime,
        "owned": [each.path for each in record.owned],
        "directories": list(record.directories),
        "specification": record.specification.path if record.specification else None,
        "unit": record.unit,
        "artifacts": record.artifacts,
        "replaced": record.replaced,
        "owed_since": _moment(record.owed_since),
        "open": None
        if opened is None
        else {
            "job": str(opened.job),
            "told": opened.told,
            "why": opened.why,
            "files": [each.path for each in opened.files],
        },
    }


def ready(task: Task, found: View | None) -> dict[str, Any]:
    """Return the readiness record and why it does not count."""
    seen = files.read(task.readiness)
    why = attest.unready(task, found) if found is not None else "the node cannot be compared"
    return {
        "path": str(task.readiness),
        "record": seen.data.decode(errors="replace") if seen else None,
        "ready": not why,
        "why": why,
    }


def restarts(task: Task) -> dict[str, Any]:
    """Return how often the runtime was restarted by us within the budget's window."""
    spent = task.budget.spent()
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return {
        "budget": task.budget.most,
        "window_s": task.budget.window,
        "ago_s": [int(now - moment) for moment in spent],
        "refusal": task.budget.refusal(),
    }


def holder(pid_file: Path) -> dict[str, Any]:
    """Return who holds the lock, by the kernel's list of locks: it is not tried."""
    seen = files.read(pid_file)
    pid = seen.data.decode(errors="replace").strip() if seen else ""
    return {"path": str(pid_file), "pid": pid or None, "held": lock.is_held(pid_file)}


# --- small words --------------------------------------------------------------------------------


def _file(place: Scene, name: str, owned: Owned | None, mounts: set[str]) -> dict[str, Any]:
    local = place.host.local(name)
    entry: dict[str, Any] = {"path": name, "seen_at": str(local), "ours": owned is not None}
    try:
        status = os.lstat(local)
        link = os.readlink(local) if stat.S_ISLNK(status.st_mode) else None
        at = place.host.target(local)
        seen = files.read(at)
    except FileNotFoundError:
        seen = None
        if owned is None:
            return {**entry, "exists": False}
        return {**entry, "exists": False, "as_written": fingerprint(None) in owned.written}
    except (OSError, ToolkitError) as error:
        return {**entry, "exists": None, "problem": str(error)}
    if seen is None:
        return {**entry, "exists": False, "link": link}
    return {
        **entry,
        "exists": True,
        "link": link,
        "sha256": hashlib.sha256(seen.data).hexdigest(),
        "size": len(seen.data),
        "mode": f"{seen.mode:04o}",
        "owner": f"{seen.uid}:{seen.gid}",
        "modified": _moment(os.stat(at).st_mtime),
        "mounted_by_itself": str(at) in mounts,
        "as_written": fingerprint(seen.data) in owned.written if owned else None,
    }


def _has(has: Effective) -> dict[str, Any]:
    return {
        "handlers": None if has.handlers is None else sorted(has.handlers),
        "default": has.default,
        "sandbox_image": has.sandbox_image,
        "by_systemd": sorted(has.by_systemd),
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


def _plain(item: Any) -> Any:
    return list(item) if isinstance(item, tuple) else item
