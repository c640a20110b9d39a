"""The node's systemd: properties of units, jobs on them, and units that a restart takes along."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from toolkit.deadline import Timeout
from toolkit.errors import StepError
from toolkit.node import command
from toolkit.node.host import Host

_ENVIRONMENT: Final = {"SYSTEMD_IGNORE_CHROOT": "1"}
_REVERSE: Final = ("RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo")
"""Dependencies by which a unit is restarted or stopped along with another one."""
_RUNNING: Final = frozenset({"active", "reloading", "refreshing"})
_MOST_UNITS: Final = 200

ALONE: Final = "--job-mode=ignore-requirements"
"""Restart a unit and leave those that depend on it alone, whatever the kind of the dependency."""

Properties = Mapping[str, str]


def invisible_reason(host: Host) -> str:
    """Return why the node's systemd is not visible, or "" if it is."""
    if not host.below("/run/systemd/system").is_dir() or host.executable("systemctl") is None:
        return f"the node's systemd is not visible below {host.root}: mount the node's /run there"
    return ""


def unusable(host: Host) -> str:
    """Return why a unit of the node's systemd cannot be restarted, or "" if it can."""
    return "only root can use the node's systemd" if os.geteuid() != 0 else invisible_reason(host)


def systemctl(host: Host, *words: str, timeout: Timeout, is_quoted: bool = False) -> command.Result:
    """Run the node's systemctl. Raises StepError if it cannot be started or takes too long.

    `is_quoted` is as for `command.run`.
    """
    return command.run(
        ["systemctl", *words],
        root=host.root,
        timeout=timeout,
        environment=_ENVIRONMENT,
        is_quoted=is_quoted,
    )


def show(
    host: Host, units: Sequence[str], names: Sequence[str], *, timeout: Timeout
) -> dict[str, dict[str, str]]:
    """Return properties of units, by the names that were asked for. Raises StepError."""
    if not units:
        return {}
    result = systemctl(host, "show", f"--property={','.join(names)}", "--", *units, timeout=timeout)
    blocks = [_block(text) for text in result.out.strip("\n").split("\n\n")]
    if not result.ok or len(blocks) != len(units):
        raise StepError(
            f"systemd does not describe {', '.join(units)}: {result.err or 'no answer'}"
        )
    return dict(zip(units, blocks, strict=True))


def dependents(host: Host, unit: str, *, timeout: Timeout) -> tuple[str, ...]:
    """Return the running units that systemd restarts or stops along with a unit, sorted.

    Those that depend on one of them count as well. Raises StepError.
    """
    names = ("ActiveState", *_REVERSE)
    known = show(host, [unit], names, timeout=timeout)
    new = _depending(known[unit]) - known.keys()
    while new and len(known) < _MOST_UNITS:
        found = show(host, sorted(new), names, timeout=timeout)
        known |= found
        # A unit that does not run is not taken along, and neither is what depends on it.
        running = [each for each in found.values() if each.get("ActiveState") in _RUNNING]
        new = {name for each in running for name in _depending(each)} - known.keys()
    return tuple(sorted(name for name, each in known.items() if name != unit and is_running(each)))


def stopped(host: Host, unit: str, *, timeout: Timeout) -> dict[str, str]:
    """Return the state of the units that depend on a unit, should run and do not. Raises StepError.

    A unit should run if it is enabled; one that failed counts in any case.
    """
    properties = show(host, [unit], _REVERSE, timeout=timeout)[unit]
    units = sorted(_depending(properties))
    found = show(host, units, ("ActiveState", "UnitFileState"), timeout=timeout)
    return {name: each["ActiveState"] for name, each in found.items() if _should_run(each)}


def _should_run(properties: Properties) -> bool:
    """Return whether a unit that does not run should do so."""
    state = properties.get("ActiveState")
    return state == "failed" or (
        state == "inactive" and properties.get("UnitFileState") == "enabled"
    )


def is_running(properties: Properties) -> bool:
    """Return whether a unit is active, by its properties."""
    return properties.get("ActiveState") in _RUNNING


def _depending(properties: Properties) -> set[str]:
    return {name for kind in _REVERSE for name in properties.get(kind, "").split()}


def _block(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}
