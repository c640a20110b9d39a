"""The runtime's supervisor, which starts it again: a systemd service or another program, if known.

The control group of a process says in which unit it was started, not which unit is its service: a
daemon that a node agent, cron or an ssh session started is in *their* unit, and a restart of that
unit ends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from runtimes import distributions
from runtimes.dataclass import dataclass, replace
from toolkit.deadline import Timeout
from toolkit.errors import StepError
from toolkit.node import processes, procfs
from toolkit.node.host import Host
from toolkit.runtime.supervision import systemd

if TYPE_CHECKING:
    from toolkit.runtime.supervision.launch import Launch

_PROPERTIES: Final = (
    "MainPID", "Restart", "RestartForceExitStatus", "RestartPreventExitStatus", "ExecStart",
)  # fmt: skip
_AFTER_SIGHUP: Final = frozenset({"always", "on-success"})
"""Values of `Restart=` with which a service is restarted after SIGHUP ended it: a clean exit."""
_AFTER_FAILURE: Final = frozenset({"always", "on-failure"})
_SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "busybox"})
_MOST_ANCESTORS: Final = 16


class Ancestor(NamedTuple):
    """A process from which the daemon descends: its PID and its name (`comm`)."""

    pid: int
    name: str

    def words(self) -> str:
        """Return the process in words."""
        return f"{self.name} (PID {self.pid})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervisor:
    """The supervisor of a daemon, as far as it is known.

    `unit` is the systemd service that runs the daemon, None if there is none that may be restarted,
    for the reason `no_unit`. `unusable` says why that unit cannot be restarted from here.
    `after_signal` names what starts the daemon again after SIGHUP ended it; it is empty if nothing
    is known to, for the reason `doubt`. `dependents` are the running units that a restart of the
    unit takes along. `launch` is how the daemon was started, if nothing is known to start it again.
    `was_ended` is set if a killed run has ended the daemon.
    """

    unit: str | None = None
    no_unit: str = ""
    unusable: str = ""
    after_signal: str = ""
    doubt: str = ""
    dependents: tuple[str, ...] = ()
    launch: Launch | None = None
    was_ended: bool = False


def presume(process: processes.RuntimeProcess | None) -> Supervisor:
    """Return the supervisor that the control group suggests, for a daemon with nothing to load."""
    unit = process.unit if process is not None else None
    no_unit = _no_unit(process.pid) if process is not None and unit is None else ""
    return Supervisor(unit=unit, no_unit=no_unit, after_signal=unit or "its supervisor")


def find(
    host: Host, process: processes.RuntimeProcess, names: frozenset[str], *, timeout: Timeout
) -> Supervisor:
    """Return the supervisor of a daemon; `names` are the base names of its executable.

    Nothing is changed. A systemd that does not answer counts as one that is not visible.
    """
    ancestors = _ancestors(process.pid)
    unusable = systemd.unusable(host)
    properties: dict[str, str] = {}
    problem = systemd.invisible_reason(host) if process.unit is not None else ""
    if process.unit is not None and not problem:
        try:
            properties = systemd.show(host, [process.unit], _PROPERTIES, timeout=timeout)[
                process.unit
            ]
        except StepError as error:
            problem = error.message
    found = decide(process, ancestors, properties, names=names, problem=problem)
    found = replace(found, unusable=unusable or problem)
    if found.doubt:
        from toolkit.runtime.supervision import launch  # noqa: PLC0415  # Rarely used.

        found = replace(found, launch=launch.of(host, process))
    if found.unit is None or problem:
        return found
    try:
        return replace(found, dependents=systemd.dependents(host, found.unit, timeout=timeout))
    except StepError as error:
        # Without them it is unknown what a restart ends.
        return replace(
            found, unusable=unusable or error.message, after_signal="", doubt=error.message
        )


def decide(
    process: processes.RuntimeProcess,
    ancestors: Sequence[Ancestor],
    properties: Mapping[str, str],
    *,
    names: frozenset[str],
    problem: str = "",
) -> Supervisor:
    """Return the supervisor of a daemon.

    `ancestors` are its parent, the parent of that, and so on. `properties` are those of the unit in
    whose control group it is; `problem` says why they are unknown.
    """
    unit, no_unit = process.unit, ""
    main = int(properties.get("MainPID") or 0)
    if unit is None:
        no_unit = _no_unit(process.pid)
    elif not problem and not _is_service_of(process, ancestors, properties, names):
        who = f"is PID {main}" if main else "has ended"
        no_unit = (
            f"PID {process.pid} was started in {unit}, but is not its service: the main process"
            f" {who}"
        )
        unit = None
    doubt = _doubt(process, ancestors, properties, unit=unit, no_unit=no_unit, problem=problem)
    by = "" if doubt else _by(ancestors, unit)
    return Supervisor(unit=unit, no_unit=no_unit, after_signal=by, doubt=doubt)


def _no_unit(pid: int) -> str:
    return f"PID {pid} does not belong to a systemd service"


def _is_service_of(
    process: processes.RuntimeProcess,
    ancestors: Sequence[Ancestor],
    properties: Mapping[str, str],
    names: frozenset[str],
) -> bool:
    """Return whether the unit of a daemon runs it as its service."""
    main = int(properties.get("MainPID") or 0)
    if main == process.pid:
        return True
    starter = next((each for each in ancestors if each.pid == main), None)
    if starter is None:
        return False
    units = {unit for row in distributions.DISTRIBUTIONS for unit in row.units}
    if process.unit in units or distributions.parent(starter.name) is not None:
        return True
    # `ExecStart=/bin/sh -c "...; /usr/bin/containerd"`: the shell waits for the daemon.
    words = [word.strip("'\";") for word in properties.get("ExecStart", "").split()]
    programs = {word.rpartition("/")[2] for word in words if word.startswith("/")}
    return starter.name in _SHELLS and bool(names & programs)


def _doubt(
    process: processes.RuntimeProcess,
    ancestors: Sequence[Ancestor],
    properties: Mapping[str, str],
    *,
    unit: str | None,
    no_unit: str,
    problem: str,
) -> str:
    """Return why nothing is known to start the daemon again after SIGHUP ended it, or ""."""
    chain = list(ancestors)
    row = distributions.parent(chain[0].name) if chain else None
    child, ends_by_signal = process.pid, True
    if row is not None and not row.ends_with_child:
        return ""
    if row is not None:
        child, ends_by_signal = chain.pop(0).pid, False
        row = distributions.parent(chain[0].name) if chain else None
        if row is not None:
            return ""
    if problem:
        return problem
    if unit is None:
        above = f", and its parent {chain[0].words()} is not known to restart it" if chain else ""
        return f"{no_unit}{above}"
    if int(properties.get("MainPID") or 0) != child:
        return f"PID {child} is not the main process of {unit}"
    return _not_restarted(unit, properties, ends_by_signal=ends_by_signal)


def _not_restarted(unit: str, properties: Mapping[str, str], *, ends_by_signal: bool) -> str:
    """Return why systemd does not start a service again when its main process ends, or ""."""
    if ends_by_signal and "SIGHUP" in properties.get("RestartPreventExitStatus", "").split():
        return f"{unit} has RestartPreventExitStatus=SIGHUP"
    if ends_by_signal and "SIGHUP" in properties.get("RestartForceExitStatus", "").split():
        return ""
    policy = properties.get("Restart", "no")
    if policy in (_AFTER_SIGHUP if ends_by_signal else _AFTER_FAILURE):
        return ""
    return f"{unit} has Restart={policy}"


def _by(ancestors: Sequence[Ancestor], unit: str | None) -> str:
    """Return what starts the daemon again, where it is known that something does."""
    for each in ancestors:
        row = distributions.parent(each.name)
        if row is None:
            break
        if not row.ends_with_child:
            return each.words()
    return unit or ""


def _ancestors(pid: int) -> tuple[Ancestor, ...]:
    found: list[Ancestor] = []
    while len(found) < _MOST_ANCESTORS and (above := procfs.parent(pid)):
        pid = above
        name = procfs.name(pid)
        if name is None:
            break
        found.append(Ancestor(pid, name))
    return tuple(found)
