"""Restart or reload the runtime: by a restart of its systemd unit, by SIGHUP, or not at all.

SIGHUP terminates containerd: with the usual unit file its socket is down for 5.3 s until systemd
starts it again, against 0.1 s for `systemctl restart`. Docker reloads in place. CRI-O logs a
reload, but uses the old handlers for new pods until it is restarted.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from runtimes.adapter import Adapter, SighupEffect
from runtimes.dataclass import dataclass, replace
from toolkit.deadline import Deadline
from toolkit.errors import ReloadError, StepError
from toolkit.log import LOGGER
from toolkit.node import command, files, processes, socket_peer
from toolkit.runtime.locate import Target
from toolkit.runtime.supervision import supervisor, systemd
from toolkit.runtime.supervision.supervisor import Supervisor
from toolkit.settings.options import RestartMode

_NOTHING: Final = "nothing is known to start it again"
_CHOICES: Final = (
    "use --restart-mode none and restart it yourself, or --restart-mode signal if something does"
    " start it"
)
_PRIVILEGED: Final = (
    "the pod needs `privileged: true`; or use --restart-mode none and restart it yourself"
)
_RETURNED: Final = 15.0
"""Seconds within which a supervisor that is not known starts the daemon again; some wait for 5."""
_STATE: Final = ("LoadState", "ActiveState")
_SHORTEST_WAIT: Final = 0.02
_LONGEST_WAIT: Final = 0.25
_LEAST: Final = 0.1
NOTICED: Final = 10.0
"""Seconds within which a distribution that watches its drop-ins restarts the daemon (k0s: 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartMethod:
    """The way to make the runtime load a change.

    `replaces` is whether the daemon gets a new process. `obstacle` says why the method cannot be
    used, "" if it can. `by_itself` is whether the distribution notices the change and restarts the
    daemon itself; the unit is restarted only if it does not. `after_signal` names what starts a
    daemon again that SIGHUP ends; if nothing is known to, `warning` says so. `dependents` are the
    running units that depend on the runtime's. With `is_as_before`, it starts a runtime that a
    killed run has ended.
    """

    mode: RestartMode
    unit: str | None
    replaces: bool
    obstacle: str = ""
    by_itself: bool = False
    after_signal: str = ""
    warning: str = ""
    dependents: tuple[str, ...] = ()
    is_as_before: bool = False

    def is_revival(self, target: Target) -> bool:
        """Return whether this starts a runtime that is down."""
        return target.process is None and (self.unit is not None or self.is_as_before)

    @property
    def dependents_end(self) -> bool:
        """Return whether systemd restarts or stops the dependents along with the runtime."""
        return self.mode is RestartMode.SIGNAL and self.replaces and bool(self.dependents)

    def words(self, process: processes.RuntimeProcess | None) -> str:
        """Return a description of the method for the plan."""
        if self.mode is RestartMode.NONE:
            return "not restarted (restart mode none): restart it yourself"
        if self.by_itself:
            return "restarted by the distribution"
        if self.unit is not None:
            return f"restart {self.unit}"
        if self.is_as_before:
            return "start it as it was started before a killed run ended it"
        to = (
            f"SIGHUP to PID {process.pid}"
            if process
            else "SIGHUP to the process that owns the socket"
        )
        if self.after_signal:
            return f"{to}, which ends it: {self.after_signal} starts it again"
        return f"{to}, which ends it: {_NOTHING}" if self.warning else to


def restart_method(
    target: Target, adapter: Adapter, mode: RestartMode, found: Supervisor | None
) -> RestartMethod:
    """Return the method to restart or reload this node's runtime.

    `found` is what starts it again. None stands for a runtime that has nothing to load, whose
    supervisor was not looked for.
    """
    if mode is RestartMode.NONE:
        return RestartMethod(mode=mode, unit=None, replaces=False)
    process = target.process
    ends = adapter.on_hangup is SighupEffect.TERMINATES
    if process is None and found is not None and found.was_ended:
        lacking = _no_start(found)
        return RestartMethod(
            mode=RestartMode.SIGNAL,
            unit=None,
            replaces=True,
            obstacle=(
                f"{adapter.name} was ended by a killed run: {lacking} ({_PRIVILEGED})"
                if lacking
                else ""
            ),
            is_as_before=True,
        )
    if process is None:
        return RestartMethod(mode=mode, unit=None, replaces=ends, obstacle=target.no_process)
    is_known = found is not None
    found = found or supervisor.presume(process)
    no_unit = f"{found.no_unit} (use --restart-mode signal or none)" if found.no_unit else ""
    by_unit = RestartMethod(
        mode=RestartMode.SYSTEMD,
        unit=found.unit,
        replaces=True,
        obstacle=no_unit or found.unusable,
        by_itself=target.desired.delivery.watches and mode is RestartMode.AUTO,
        dependents=found.dependents,
    )
    by_signal = RestartMethod(
        mode=RestartMode.SIGNAL,
        unit=None,
        replaces=ends,
        after_signal=found.after_signal if ends and is_known else "",
        warning=_warning(adapter, process, found) if ends else "",
        dependents=found.dependents if ends else (),
    )
    if not _uses_signal(mode, adapter.on_hangup, by_unit):
        return by_unit
    return replace(by_signal, obstacle=_signal_obstacle(by_signal.warning, mode, found))


def _signal_obstacle(warning: str, mode: RestartMode, found: Supervisor) -> str:
    """Return why SIGHUP must not be sent, or "": it would leave the node without a runtime."""
    if not warning:
        return ""
    if mode is not RestartMode.SIGNAL:
        return f"{warning} ({_CHOICES})"
    lacking = _no_start(found)
    return f"{warning}; {lacking} ({_PRIVILEGED})" if lacking else ""


def _uses_signal(mode: RestartMode, effect: SighupEffect, by_unit: RestartMethod) -> bool:
    """Return whether the runtime gets SIGHUP instead of a restart of its unit."""
    if mode is not RestartMode.AUTO:
        return mode is RestartMode.SIGNAL
    match effect:
        case SighupEffect.RELOADS:
            return True
        case SighupEffect.NEEDS_RESTART:
            return False
        case SighupEffect.TERMINATES:
            return bool(by_unit.obstacle)


def _warning(adapter: Adapter, process: processes.RuntimeProcess, found: Supervisor) -> str:
    """Return that nothing is known to start the runtime again after SIGHUP, and why, or ""."""
    if found.after_signal:
        return ""
    return f"SIGHUP would end {adapter.name} (PID {process.pid}), and {_NOTHING}: {found.doubt}"


def _no_start(found: Supervisor) -> str:
    """Return why the runtime cannot be started as it was if nothing else starts it again, or ""."""
    by_unit = found.unit is not None and not found.unusable
    return "" if by_unit or found.launch is None else found.launch.obstacle()


def takes_effect(adapter: Adapter, restart_method: RestartMethod) -> bool:
    """Return whether a method makes the runtime use a change, rather than only read it."""
    needs_restart = (
        adapter.on_hangup is SighupEffect.NEEDS_RESTART
        and restart_method.mode is RestartMode.SIGNAL
    )
    return restart_method.mode is not RestartMode.NONE and not needs_restart


def start_stopped(
    target: Target, unit: str | None, deadline: Deadline, *, even_if_stopped: bool = False
) -> RestartMethod | None:
    """Return the method to start a failed runtime; None if it did not fail or cannot be started.

    With `even_if_stopped`, start it whatever the state of its unit is, because we stopped it
    ourselves.
    """
    if unit is None or target.process is not None or systemd.unusable(target.host):
        return None
    method = RestartMethod(
        mode=RestartMode.SYSTEMD,
        unit=unit,
        replaces=True,
        dependents=_dependents(target, unit, deadline),
    )
    if even_if_stopped:
        return method
    state = _systemctl(target, "is-active", unit, deadline=deadline)
    if state.out.strip() not in {"failed", "activating"}:
        return None  # an administrator stopped it, perhaps on purpose
    return method


def _dependents(target: Target, unit: str, deadline: Deadline) -> tuple[str, ...]:
    """Return the running units that depend on a unit; none if systemd does not say."""
    try:
        return systemd.dependents(target.host, unit, timeout=deadline.at_least(_LEAST))
    except StepError as error:
        LOGGER.warning("the units that depend on %s are unknown: %s", unit, error.message)
        return ()


def perform(target: Target, adapter: Adapter, chosen: RestartMethod, deadline: Deadline) -> float:
    """Restart or reload the runtime and wait until it answers again.

    Returns the seconds that passed. Raises StepError if the restart fails, and ReloadError if the
    runtime does not answer before the deadline.
    """
    before = target.process
    if chosen.obstacle:
        raise StepError(chosen.obstacle)
    begin = time.monotonic()
    if before is not None and chosen.by_itself and _is_replaced(target, adapter, before, deadline):
        LOGGER.info("the distribution restarted %s", adapter.name)
    elif chosen.unit is not None:
        restart_unit(target, chosen.unit, chosen.dependents, deadline)
    elif before is not None:
        _warn(chosen, before)
        before = _hang_up(target, adapter, before, deadline)
        if adapter.on_hangup is SighupEffect.NEEDS_RESTART:
            LOGGER.warning("%s uses the change for new pods only after a restart", adapter.name)
    if chosen.unit is None and chosen.replaces:
        _start_again(target, adapter, before, deadline)
    _wait(target, adapter, before, chosen, deadline)
    forget_launch(target)
    return time.monotonic() - begin


def save_launch(target: Target, chosen: RestartMethod) -> None:
    """Save how a daemon was started that SIGHUP will end and that nothing is known to start again.

    The next run starts it if this one is killed in between. Raises StepError.
    """
    if chosen.warning and target.process is not None and target.supervisor is not None:
        from toolkit.runtime.supervision import launch_file  # noqa: PLC0415  # Rarely used.

        launch_file.save(target.launch_file, target.process, target.supervisor)


def forget_launch(target: Target) -> None:
    """Remove the file of `save_launch`, once the daemon runs: its environment may hold secrets."""
    files.sweep(target.launch_file, None)
    with suppress(OSError):
        target.launch_file.unlink()


def _warn(chosen: RestartMethod, process: processes.RuntimeProcess) -> None:
    """Log what a SIGHUP ends, and what is not known to come back after it."""
    if chosen.warning:
        LOGGER.warning("%s", chosen.warning)
    if chosen.dependents_end:
        units = ", ".join(chosen.dependents)
        LOGGER.warning(
            "systemd restarts or stops the units that depend on %s: %s", process.unit, units
        )


def _start_again(
    target: Target, adapter: Adapter, before: processes.RuntimeProcess | None, deadline: Deadline
) -> None:
    """Start an ended daemon, if nothing is known to start it again and nothing did in some seconds.

    Raises StepError, with the command that starts it, if it cannot be started as it was before.
    """
    found = target.supervisor
    if found is None or not found.doubt:
        return
    seconds = min(_RETURNED, deadline.left / 2)
    soon = Deadline(seconds)
    while not _is_answered(target, adapter, before):
        if soon.is_over:
            break
        deadline.pause(_LONGEST_WAIT)
    else:
        return
    if before is not None and before.is_alive():
        return  # it did not end at all
    LOGGER.warning(
        "nothing started %s again within %.0f s; starting it as it was", adapter.name, seconds
    )
    try:
        _start_as_before(target, found, deadline)
    except StepError as error:
        how = f", with `{_start_words(found)}`" if _start_words(found) else ""
        raise StepError(
            f"{adapter.name} ended and nothing started it again: start it yourself{how}"
            f" ({error.message})",
            hint=(
                "nothing is known to start this runtime again: set up a supervisor, or use"
                " --restart-mode none and restart it yourself"
            ),
        ) from error


def _start_as_before(target: Target, found: Supervisor, deadline: Deadline) -> None:
    """Start a daemon that has ended by its unit, or as it was started before. Raises StepError."""
    if found.unit is not None and not found.unusable:
        result = _systemctl(target, "start", found.unit, deadline=deadline)
        if not result.ok:
            raise _not_restarted(found.unit, result)
    elif found.launch is None:
        raise StepError("how it was started could not be read")
    else:
        from toolkit.runtime.supervision import launch  # noqa: PLC0415  # Rarely used.

        launch.start(target.host, found.launch)


def _start_words(found: Supervisor) -> str:
    """Return the command that starts a daemon as it was started before, "" if it is not known."""
    if found.unit is not None:
        return f"systemctl start {found.unit}"
    return found.launch.words() if found.launch is not None else ""


def _is_answered(target: Target, adapter: Adapter, before: processes.RuntimeProcess | None) -> bool:
    """Return whether another process than before owns the socket."""
    try:
        now = socket_peer.find(
            target.socket,
            adapter.executables,
            server_speaks_first=adapter.server_speaks_first,
            timeout=_LONGEST_WAIT,
        )
    except socket_peer.NoPeer:
        return False
    return before is None or (now.pid, now.start_ticks) != (before.pid, before.start_ticks)


def _is_replaced(
    target: Target, adapter: Adapter, before: processes.RuntimeProcess, deadline: Deadline
) -> bool:
    """Wait some seconds for the distribution to restart a process; return whether it ended."""
    soon = Deadline(min(NOTICED, deadline.left))
    while before.is_alive():
        if soon.is_over:
            return False
        deadline.pause(_LONGEST_WAIT)
    return True


def _hang_up(
    target: Target, adapter: Adapter, before: processes.RuntimeProcess, deadline: Deadline
) -> processes.RuntimeProcess:
    """Send SIGHUP to the process that owns the socket *now*, and return that process.

    The daemon may have been restarted since it was located, and may have started before the change
    was written.
    """
    while True:
        try:
            LOGGER.info("sending SIGHUP to PID %d (%s)", before.pid, before.executable)
            processes.send(before, signal.SIGHUP)
        except StepError as error:
            if deadline.is_over:
                raise
            LOGGER.info("%s; looking for the new process", error.message)
            before = _answering(target, adapter, deadline)
        else:
            return before


def _answering(target: Target, adapter: Adapter, deadline: Deadline) -> processes.RuntimeProcess:
    """Wait for a process that owns the socket, and return it. Raises NoPeer at the deadline."""
    while True:
        try:
            return socket_peer.find(
                target.socket,
                adapter.executables,
                server_speaks_first=adapter.server_speaks_first,
                timeout=deadline.at_least(_LEAST),
            )
        except socket_peer.NoPeer:
            if deadline.is_over:
                raise
        deadline.pause(_LONGEST_WAIT)


def restart_unit(target: Target, unit: str, dependents: Sequence[str], deadline: Deadline) -> None:
    """Restart a unit, and leave the running units that depend on it alone."""
    also = (
        f" alone: the units that depend on it keep running: {', '.join(dependents)}"
        if dependents
        else ""
    )
    LOGGER.info("restarting %s%s", unit, also)
    job = (systemd.ALONE,) if dependents else ()
    if target.desired.delivery.is_regenerated:
        # The unit is a whole distribution (rke2-server) and becomes active long after its runtime,
        # so do not wait for it.
        _systemctl(target, "reset-failed", unit, deadline=deadline)
        result = _restart(target, *job, "--no-block", unit, deadline=deadline)
        if not result.ok:
            raise _not_restarted(unit, result)
        return
    result = _restart(target, *job, unit, deadline=deadline)
    if not result.ok:
        # systemd refuses to start a unit that was started too often in a short time
        # (StartLimitBurst), and leaves the runtime down. Reset that counter and try once more.
        LOGGER.warning("%s did not start (%s); trying once more", unit, _reason(result))
        _systemctl(target, "reset-failed", unit, deadline=deadline)
        result = _restart(target, *job, unit, deadline=deadline)
    if not result.ok:
        raise _not_restarted(unit, result)


def confirm_dependents(target: Target, units: Sequence[str], deadline: Deadline) -> None:
    """Wait until units that ran before the restart run again; start those that do not.

    Raises ReloadError if one of them does not run at the deadline.
    """
    if not units or systemd.unusable(target.host):
        return
    started: set[str] = set()
    while True:
        states = systemd.show(target.host, units, _STATE, timeout=deadline.at_least(_LEAST))
        down = {
            unit: each["ActiveState"]
            for unit, each in states.items()
            if each["LoadState"] == "loaded" and not systemd.is_running(each)
        }
        stopped = sorted(unit for unit, state in down.items() if state != "activating")
        if not down:
            return
        if new := [unit for unit in stopped if unit not in started]:
            LOGGER.warning("%s stopped with the runtime; starting it again", ", ".join(new))
            started |= set(new)
            _systemctl(target, "start", "--no-block", *new, deadline=deadline)
        elif deadline.is_over:
            unit = min(down)
            raise ReloadError(
                f"{unit} ran before the runtime was restarted, and is {down[unit]} now",
                hint=f"see `journalctl -u {unit}` on the node",
            )
        deadline.pause(_LONGEST_WAIT)


def _not_restarted(unit: str, result: command.Result) -> StepError:
    return StepError(
        f"`systemctl restart {unit}` failed: {_reason(result)}",
        hint=f"see `journalctl -u {unit}` on the node",
    )


def _restart(target: Target, *words: str, deadline: Deadline) -> command.Result:
    timeout = deadline.at_least(_LEAST)
    return systemd.systemctl(target.host, "restart", *words, timeout=timeout, is_quoted=True)


def _reason(result: command.Result) -> str:
    """Return why systemctl failed, without its advice, which our hint repeats, on one line."""
    lines = [line for line in result.err.splitlines() if not line.startswith("See ")]
    return " ".join(lines).strip().removesuffix(".") or f"exit status {result.code}"


def _systemctl(target: Target, *words: str, deadline: Deadline) -> command.Result:
    return systemd.systemctl(target.host, *words, timeout=deadline.at_least(_LEAST))


def _wait(
    target: Target,
    adapter: Adapter,
    before: processes.RuntimeProcess | None,
    chosen: RestartMethod,
    deadline: Deadline,
) -> None:
    pause = _SHORTEST_WAIT
    last = ""
    while True:
        try:
            now = socket_peer.find(
                target.socket,
                adapter.executables,
                server_speaks_first=adapter.server_speaks_first,
                timeout=deadline.at_least(_LEAST),
            )
        except socket_peer.NoPeer as error:
            last = str(error)
        else:
            is_new = before is None or (now.pid, now.start_ticks) != (
                before.pid,
                before.start_ticks,
            )
            if is_new or not chosen.replaces:
                LOGGER.info("PID %d answers on %s", now.pid, target.socket)
                return
            last = f"PID {now.pid} is still the old process"
        if deadline.is_over:
            raise ReloadError(
                f"the runtime did not restart or reload in time: {last}",
                hint=target.log_hint,
            )
        deadline.pause(pause)
        pause = min(pause * 1.5, _LONGEST_WAIT)
