"""Values as text for people or as JSON for programs: the answer, which goes to stdout."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any, Final

from runtimes.model import FileChange
from toolkit.host import Host
from toolkit.removal import Removal
from toolkit.transaction import View

_COLOURS: Final = {"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"}
_RESET: Final = "\x1b[0m"


def plan_text(found: View, *, colour: bool) -> str:
    """Return a plan for people: the diff of every file, what would be reloaded, and why."""
    host = found.place.host
    lines = [painted(diff(host, change), colour=colour) for change in found.plan.changes]
    lines += [f"# {note}\n" for note in notes(found)]
    lines.append(f"# {summary(found)}\n")
    return "".join(lines)


def plan_json(found: View) -> str:
    """Return a plan as one JSON object; docs/output.md describes its shape."""
    return _json(
        {
            "runtime": str(found.place.desired.runtime),
            "in_sync": found.is_noop,
            "binary": found.place.binary,
            "changes": [_change(found.place.host, change) for change in found.plan.changes],
            "toolkit": _toolkit(found),
            "reload": {
                "needed": found.reload_needed,
                "reason": reload_reason(found),
                "how": found.way.words(found.place.owner),
            },
            "notes": list(notes(found)),
        }
    )


def status_text(found: View) -> str:
    """Return for people whether the node is as wanted, and what differs."""
    if found.is_noop:
        return "in sync\n"
    lines = ["not in sync\n"]
    host = found.place.host
    lines += [f"  {host.local(c.path)}: would {c.action}\n" for c in found.plan.changes]
    if found.version is not None and not found.version.is_installed:
        lines.append(f"  {found.place.install_dir / 'toolkit'}: {_listed(found.version.differing)}\n")
    if found.reload_owed:
        lines.append("  the runtime has not taken the configuration up yet\n")
    return "".join(lines)


def status_json(found: View) -> str:
    """Return the state of the node as one JSON object."""
    return plan_json(found)


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
    lines = difflib.unified_diff(_lines(change.before), _lines(change.after), old, new)
    return "".join(_ended(lines))


def painted(text: str, *, colour: bool) -> str:
    """Return a diff with colours where they are wanted."""
    if not colour:
        return text
    return "".join(
        f"{_COLOURS[line[0]]}{line.rstrip()}{_RESET}\n" if line[0] in _COLOURS else line
        for line in text.splitlines(keepends=True)
    )


def notes(found: View) -> Iterator[str]:
    """Yield what a person should know about a plan."""
    yield from found.plan.notes
    if found.version is None:
        yield f"{found.source_problem}: its files are not part of this plan"
    if found.way.obstacle:
        yield found.way.obstacle


def reload_reason(found: View) -> str:
    """Say why the runtime has to take something up, or why not."""
    if not found.plan.is_noop:
        return "the configuration changes"
    if found.reload_owed:
        return "the configuration was changed, but the runtime has not taken it up"
    return "the configuration is as wanted"


def summary(found: View) -> str:
    """Say in one line what would be done."""
    if found.is_noop:
        return "nothing to do: the node is as wanted"
    parts = []
    if found.plan.changes:
        count = len(found.plan.changes)
        parts.append(f"{count} file{'s' if count > 1 else ''} to change")
    if found.version is not None and not found.version.is_installed:
        parts.append(f"the toolkit to install at {found.place.install_dir / 'toolkit'}")
    if found.reload_needed:
        parts.append(found.way.words(found.place.owner))
    return "; ".join(parts)


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
