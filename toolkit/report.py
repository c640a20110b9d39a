"""Values as text for people or as JSON for programs: the answer, which goes to stdout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from runtimes import silence
from runtimes.model import FileChange
from toolkit import terminal
from toolkit.host import Host
from toolkit.options import RestartMode
from toolkit.removal import Removal
from toolkit.terminal import CYAN, GREEN, RED, YELLOW
from toolkit.view import View

_COLOURS: Final = {"+": GREEN, "-": RED, "@": CYAN}
_DONE: Final = {"create": "created", "modify": "changed", "delete": "removed"}


def plan_text(found: View, *, colour: bool) -> str:
    """Return a plan for people: the diff of every file, what would be reloaded, and why."""
    host = found.place.host
    lines = [painted(diff(host, change), colour=colour) for change in found.plan.changes]
    lines += [f"# {note}\n" for note in notes(found)]
    lines.append(f"# {summary(found)}\n")
    return "".join(lines)


def plan_json(found: View) -> str:
    """Return a plan as one JSON object; docs/output.md describes its shape."""
    return _json(_plan(found))


def _plan(found: View) -> dict[str, Any]:
    return {
        "runtime": str(found.place.desired.runtime),
        "in_sync": found.is_noop,
        "binary": found.place.binary,
        "changes": [_change(found.place.host, change) for change in found.plan.changes],
        "toolkit": _toolkit(found),
        "specification": specification(found),
        "reload": {
            "needed": found.reload_needed,
            "reason": reload_reason(found),
            "how": found.way.words(found.place.owner),
            "silent_s": silent(found),
        },
        "notes": list(notes(found)),
        "summary": summary(found),
    }


def run_json(found: View, *, seconds: float) -> str:
    """Return what a run found and did, as one JSON object."""
    outcome = "in sync" if found.is_noop else "changed"
    return _json({**_plan(found), "outcome": outcome, "seconds": round(seconds, 3)})


def status_text(found: View, unready: str, *, colour: bool = False) -> str:
    """Return for people whether the node is as wanted, what differs, and why it is not ready, if so."""
    if not found.is_noop:
        head = terminal.painted("not in sync", YELLOW, wanted=colour)
        return "".join([f"{head}\n", *(f"  {line}\n" for line in differences(found))])
    ready = terminal.painted("ready", GREEN, wanted=colour)
    if unready:
        ready = f"{terminal.painted('not ready', YELLOW, wanted=colour)}: {unready}"
    return f"{terminal.painted('in sync', GREEN, wanted=colour)}\n{ready}\n"


def differences(found: View) -> list[str]:
    """Say where the node is not as wanted."""
    host = found.place.host
    lines = [f"{host.local(c.path)}: would be {_DONE[c.action]}" for c in found.plan.changes]
    if found.version is not None and not found.version.is_installed:
        lines.append(f"{found.place.install_dir / 'toolkit'}: {_listed(found.version.differing)}")
    if found.specification.is_due:
        lines.append(f"{found.specification.local}: nvidia-ctk would make it anew")
    if found.specification.is_stale:
        lines.append("the CDI specification that was made: would go")
    if found.plan.unmade:
        lines.append(found.plan.unmade)
    elif found.reload_owed:
        lines.append("the runtime has not taken the configuration up yet")
    if found.source_problem is not None and not found.installs:
        lines.append(str(found.source_problem))
    return lines


def status_json(found: View, unready: str) -> str:
    """Return the state of the node as one JSON object; `unready` says why it is not ready, if so."""
    return _json({**_plan(found), "ready": not unready, "unready": unready})


def removal_text(done: Removal) -> str:
    """Return for people what a revert did, and what it left."""
    if done.was_empty:
        return "nothing to take back\n"
    lines = [f"gave back {done.place.host.local(c.path)}\n" for c in done.plan.changes]
    lines += [f"stays, since it was edited by someone: {name}\n" for name in done.plan.stayed]
    return "".join([*lines, "reverted\n"])


def removal_json(done: Removal) -> str:
    """Return what a revert did as one JSON object."""
    return _json(
        {
            "changes": [_change(done.place.host, change) for change in done.plan.changes],
            "stayed": list(done.plan.stayed),
        }
    )


def diff(host: Host, change: FileChange) -> str:
    """Return a file's change as a unified diff, with the path as it is seen here."""
    path = str(host.local(change.path))
    old = "/dev/null" if change.before is None else path
    new = "/dev/null" if change.after is None else path
    import difflib  # noqa: PLC0415  # only where there is a difference to show

    lines = difflib.unified_diff(_lines(change.before), _lines(change.after), old, new)
    return "".join(_ended(lines))


def painted(text: str, *, colour: bool) -> str:
    """Return a diff with colours where they are wanted."""
    if not colour:
        return text
    return "".join(
        f"{terminal.painted(line.rstrip(), _COLOURS[line[0]], wanted=True)}\n"
        if line[0] in _COLOURS
        else line
        for line in text.splitlines(keepends=True)
    )


def notes(found: View) -> Iterator[str]:
    """Yield what a person should know about a plan."""
    yield from found.plan.notes
    if found.record.open is not None and found.record.open.why:
        yield f"an earlier change is to be taken back first: {found.record.open.why}"
    if found.source_problem is not None and found.installs:
        yield f"{found.source_problem}: its files are not part of this plan"
    if not found.installs:
        yield f"the toolkit is the node's own, as asked: {found.source_problem or 'no file of it is copied'}"
    if found.specification.is_lacking and found.specification.waits_for:
        yield f"the CDI specification {found.specification.local} waits: {found.specification.waits_for}"
    if found.way.obstacle:
        yield found.way.obstacle


def reload_reason(found: View) -> str:
    """Say why the runtime has to take something up, or why not."""
    if not found.plan.is_noop:
        return "the configuration changes"
    if found.way.is_revival(found.place):
        why = "a run was killed at it" if found.record.ends else "--repair"
        return f"the runtime is down and is to be started again ({why})"
    if found.plan.unmade:
        return found.plan.unmade
    if found.reload_owed:
        return "the configuration was changed, but the runtime has not taken it up"
    return "the configuration is as wanted"


def summary(found: View) -> str:
    """Say in one line what would be done, and for how long the runtime would not answer."""
    if found.is_noop:
        return "nothing to do: the node is as wanted"
    if found.source_problem is not None and not found.installs:
        return "nothing could be done: the node has no toolkit of its own there"
    parts = []
    if found.plan.changes:
        count = len(found.plan.changes)
        parts.append(f"{count} file{'s' if count > 1 else ''} to change")
    if found.version is not None and not found.version.is_installed:
        parts.append(f"the toolkit to install at {found.place.install_dir / 'toolkit'}")
    if found.specification.is_due:
        parts.append("the CDI specification to make")
    if found.specification.is_stale:
        parts.append("the CDI specification to take back")
    if found.reload_needed:
        parts.append(_telling(found))
    return ", ".join(parts)


def _telling(found: View) -> str:
    """Say how the runtime would hear of a change."""
    way, seconds = found.way, silent(found)
    if way.obstacle:
        return "but the runtime cannot be told"
    if way.mode is RestartMode.NONE:
        return "the runtime to be told by you (restart mode none)"
    if way.is_revival(found.place):
        return f"{way.unit} to start again"
    how = f"{way.unit} to restart" if way.unit else way.words(found.place.owner)
    return f"{how} (silent for {silence.words(seconds)})" if seconds is not None else how


def silent(found: View) -> float | None:
    """Return for how many seconds the runtime will not answer, by what was measured; None: nobody knows.

    Only units that were measured count: that of a whole distribution takes its time to start.
    """
    way, owner = found.way, found.place.owner
    if not found.reload_needed:
        return 0.0
    if owner is None or owner.unit is None or way.obstacle or way.mode is RestartMode.NONE:
        return None
    return (silence.RESTARTED if way.unit else silence.SIGNALLED).get(owner.unit)


def _change(host: Host, change: FileChange) -> dict[str, Any]:
    return {
        "path": str(host.local(change.path)),
        "node_path": change.path,
        "action": change.action,
        "diff": diff(host, change),
    }


def _toolkit(found: View) -> dict[str, Any]:
    version = found.version
    return {
        "path": str(found.place.install_dir / "toolkit"),
        "version": version.digest if version else None,
        "in_sync": version.is_installed if version else None,
        "differing": list(version.differing) if version else [],
    }


def specification(found: View) -> dict[str, Any] | None:
    """Return how the CDI specification stands; null where there is nothing to say of one."""
    now = found.specification
    if not now.path and not now.is_stale:
        return None
    return {
        "path": str(now.local) if now.path else None,
        "node_path": now.path or None,
        "in_sync": now.is_current and not now.is_stale,
        "waits_for": now.waits_for,
    }


def _lines(data: bytes | None) -> list[str]:
    return (data or b"").decode(errors="replace").splitlines(keepends=True)


def _ended(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[:4])}{more} would be written"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
