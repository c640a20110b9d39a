"""The main loop of the agent: it watches the node, and starts a child process for every sync.

The agent replaces the process that configured the node by execve(2), and keeps its PID and its
lock. It imports as little as possible to use little memory: all work is done by short-lived
children.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from toolkit import log
from toolkit.agent import child, counters, inotify, signals
from toolkit.agent.child import RESIDENT, Worker
from toolkit.agent.inotify import Watches
from toolkit.agent.pages import Pages
from toolkit.agent.report import (
    NOT_ROLLED_BACK,
    ROLLED_BACK,
    STEP_FAILED,
    SyncReport,
    from_json,
    occurrence,
    versions,
)
from toolkit.agent.schedule import Schedule
from toolkit.agent.signals import STOPS, SignalQueue
from toolkit.log import LOGGER
from toolkit.node import procfs
from toolkit.state.liveness import StateFile
from toolkit.state.readiness_probe import NO_PLUGIN

if TYPE_CHECKING:
    from toolkit.agent.nri import Plugin
    from toolkit.deadline import Cancellation
    from toolkit.kube.report_schedule import ReportSchedule
    from toolkit.node.service_manager import ServiceManager

_ROLLBACK_TIME: Final = 18.0
"""Seconds that a child needs after SIGTERM: finish a step (8 s), roll back (8 s), and a margin."""
_EXIT_TIME: Final = 1.0
"""Seconds before the end of the grace period at which the agent exits in any case."""
_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_LONGEST: Final = 3600.0
_DRIVER_INTERVAL: Final = 10.0
"""Seconds between checks for the driver, if readiness depends on it: a module causes no event."""
_NO_DRIVER: Final = "the NVIDIA driver is not loaded any more"
_REPORT_TIME: Final = 30.0
"""Seconds after which a child that reports to the API server is killed; its requests take 10 s."""
_NEVER: Final = float("inf")


def stay(
    lock: int,
    report: SyncReport,
    arguments: Sequence[str],
    log_options: Mapping[str, Any],
    stop: Cancellation,
) -> NoReturn:
    """Replace this process by the agent. Signals that arrive meanwhile are passed on to it.

    `lock` is the descriptor of the lock file, `report` that of the first sync, `arguments` those of
    the command line, which every sync gets, and `log_options` the keyword arguments of `log.start`.
    `stop` holds the signals that were received until now. Raises OSError if the agent cannot be
    executed.
    """
    signals.block_signals()
    state = {
        "lock": lock,
        "report": report,
        "arguments": list(arguments),
        "log_options": dict(log_options),
    }
    received = [*stop.kept, *([] if stop.signal is None else [stop.signal])]
    state_fd = child.shared_json_fd({**state, "came": received})
    for fd in (lock, state_fd):
        fcntl.fcntl(fd, fcntl.F_SETFD, 0)  # clear FD_CLOEXEC: the agent inherits the descriptor
    with contextlib.suppress(OSError):  # the log has no reader, or its disk is full
        sys.stderr.flush()
    argv = [*child.program(), RESIDENT, str(state_fd)]
    os.execv(argv[0], argv)  # noqa: S606  # the interpreter of this process


class Daemon:
    """The agent: the last report, the file descriptors it polls, and the running child, if any."""

    def __init__(self, lock: int, report: SyncReport, arguments: Sequence[str]) -> None:
        self.lock = lock
        self.arguments = arguments
        self.report = report
        self.pace = Schedule(_NEVER)
        self.stopped_by: signal.Signals | None = None
        self._since = 0.0
        self._is_hurried = False
        self._is_cut = False
        self._sync_requested = False
        self._worker: Worker | None = None
        self._ended: int | None = None
        self._watches = Watches()
        self._has_driver: bool | None = None
        self._watched = 0
        self._directories: frozenset[str] = frozenset()
        self._unwatched: list[str] = []
        self._runtime = -1
        self._plugin: Plugin | None = None
        self._was_registered = False
        self._reports: ReportSchedule | None = None
        self._reporter: Worker | None = None
        self._state_file = StateFile()
        self._pages = Pages(lambda: self.report, self._state_file.problem, lambda: self._plugin)
        self._signals = SignalQueue()
        self._service_manager = _service_manager()

    def run(self, came: Iterable[int] = ()) -> int:
        """Run until a signal stops the agent; return the exit code.

        `came` are the signals that were received before the agent started.
        """
        for number in came:
            self._signals.put(number)
        self._signals.listen()
        self._apply(self.report)
        self._note(self.report)
        self._pause()
        self._publish()
        if not self._has_driver and self.report["settings"]["needs_driver"]:
            LOGGER.warning("not ready: %s", self.report["settings"]["needs_driver"])
        if self.report["settings"]["daemonset"] and self._asks:
            self._start("greet")
        LOGGER.info("set up; watching %d directories until SIGTERM", self._watched)
        self._notify()
        while self.stopped_by is None or self._worker is not None:
            if self._step():
                break
            if (
                self._worker is None
                and self.stopped_by is None
                and self.pace.due <= time.monotonic()
            ):
                self._start(
                    "converge" if self._sync_requested or self._on_drift == "repair" else "check"
                )
                self._sync_requested = False
            self._notify()
            self._send_report()
        self._end_reporter()  # before a revert, which removes the label that it may be setting
        code = self._leave()
        self._state_file.remove()
        return code

    def _step(self) -> bool:
        """Wait for the next event and handle it; return whether the time to stop has run out."""
        self._wait()
        for number in self._signals.taken():
            self._handle(number)
        self._reap()
        if self._worker is not None and self._ended is not None:
            self._collect(self._worker, self._ended)
        return self._is_late()

    # --- waiting ---

    def _wait(self) -> None:
        """Wait for the next event or deadline."""
        poll = select.poll()
        for fd in (self._signals.fd, self._watches.fd, self._runtime, self._pages.fd):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        for child_process in (self._worker, self._reporter):
            if child_process is not None:
                poll.register(child_process.fd, select.POLLIN)
        if self._plugin is not None and self._plugin.fd >= 0:
            poll.register(self._plugin.fd, self._plugin.events)
        ready = poll.poll(self._milliseconds())
        self._run_plugin([fd for fd, _ in ready])  # before anything else: the runtime waits for it
        self._check_driver()  # first, since a client may have asked whether the node is ready
        for fd, _ in ready:
            self._dispatch(fd)

    def _milliseconds(self) -> float:
        """Return the milliseconds until the next deadline."""
        ends = [time.monotonic() + _LONGEST, self._report_due()]
        if self._plugin is not None:
            ends.append(self._plugin.due)
        if self._service_manager is not None:
            ends.append(self._service_manager.due)
        if self._worker is None and self.stopped_by is None:
            ends.append(self.pace.due)
            if self.report["settings"]["needs_driver"]:
                ends.append(time.monotonic() + _DRIVER_INTERVAL)
        if self.stopped_by is not None:
            ends.append(self._end - _EXIT_TIME)
            if self._worker is not None and not self._is_hurried:
                ends.append(self._end - _ROLLBACK_TIME)
        return max(min(ends) - time.monotonic(), 0.0) * 1000 + 1

    def _report_due(self) -> float:
        """Return when the next report starts, or the running one has to end."""
        if self._reporter is not None:
            return self._reporter.began + _REPORT_TIME
        if self._reports is not None and self.stopped_by is None:
            return self._reports.due
        return _NEVER

    def _dispatch(self, fd: int) -> None:
        if fd == self._signals.fd:
            self._signals.empty()
        elif fd == self._watches.fd:
            if self._watches.changed():
                self.pace.changed()
        elif fd == self._runtime:
            self._lost_runtime()
        elif self._worker is not None and fd == self._worker.fd:
            self._worker.relay()
        elif self._reporter is not None and fd == self._reporter.fd:
            self._reporter.relay()
        elif fd == self._pages.fd:
            self._pages.serve()

    def _run_plugin(self, ready: Sequence[int]) -> None:
        """Let the NRI plugin connect or answer; the node is ready only while it is registered."""
        if self._plugin is None:
            return
        if self._plugin.fd in ready:
            self._plugin.serve()
        self._plugin.tick()
        if self._plugin.is_registered and not self._was_registered:
            self.pace.changed()  # a sync writes the readiness record
        self._was_registered = self._plugin.is_registered
        if not self._was_registered and self.report["ready"]:
            self.report |= {"ready": False, "unready": NO_PLUGIN}
            self._remove_readiness()

    def _lost_runtime(self) -> None:
        self.report |= {"ready": False, "unready": "the runtime's process ended"}
        LOGGER.info("the runtime's process ended")
        self._follow(None)
        self.pace.changed()

    def _reap(self) -> None:
        """Reap every exited child. As PID 1 of a container the agent also inherits orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if self._worker is not None and pid == self._worker.pid:
                self._ended = os.waitstatus_to_exitcode(status)
            if self._reporter is not None and pid == self._reporter.pid:
                self._collect_report(self._reporter)

    # --- the child ---

    def _start(self, kind: str) -> bool:
        """Start a child for a sync of a kind; return whether it was started."""
        self.pace.began()
        try:
            previous = from_json(
                {name: self.report.get(name) for name in ("counts", "is_known", "found")}
            )
            if self._was_registered:
                previous["plugin"] = [os.getpid(), procfs.start_time(os.getpid()) or 0]
            command = child.sync_command(kind, self.arguments)
            self._worker = Worker(kind, command, previous, self.lock)
        except OSError as error:
            problem = f"a sync cannot be started: {error}"
            LOGGER.error("%s", problem)
            self.report |= counters.not_started(problem)
            self._remove_readiness()
            self.pace.ended(code=1, is_changed=False)
            self._publish(problem)
        else:
            self._publish()
        return self._worker is not None

    def _collect(self, worker: Worker, code: int) -> None:
        """Read the report of a child that has exited with a code, and apply it."""
        self._worker, self._ended = None, None
        worker.relay()
        report = worker.report()
        if not report:
            report = counters.cut_short(code, time.monotonic() - worker.began)
            self._remove_readiness()
        worker.close()
        self._log_outcome(report)
        self._apply({**self.report, **report})
        if report.get("kind") != "greet":
            self._note({**self.report, **report})
        self._pause(is_changed=report["outcome"] == "changed")
        self._publish()

    def _publish(self, failure: str = "") -> None:
        """Write the state for the liveness probe when a sync starts, ends or cannot be started."""
        began = None if self._worker is None else self._worker.began
        due = max(self.pace.due, time.monotonic()) if began is None else began
        deadline = due + self.report["settings"]["bound"]
        path = Path(self.report["settings"]["state"])
        self._state_file.publish(path, began=began, deadline=deadline, failure=failure)

    def _remove_readiness(self) -> None:
        """Remove the readiness record, which no child was able to update."""
        with contextlib.suppress(OSError):
            os.unlink(self.report["settings"]["readiness"])

    def _pause(self, *, is_changed: bool = False) -> None:
        """Schedule the next sync. A node in sync but not ready is retried soon, like a failure."""
        # Whether the plugin is registered does not depend on a sync.
        is_done = (
            self.report["ready"]
            or self._on_drift == "ignore"
            or self.report["unready"] == NO_PLUGIN
        )
        self.pace.ended(code=self.report["code"] or int(not is_done), is_changed=is_changed)

    def _log_outcome(self, report: SyncReport) -> None:
        """Log a sync that failed, and the first one that succeeds again."""
        if report["outcome"] == "failed":
            hint = f" ({report['hint']})" if report["hint"] else ""
            LOGGER.error("%s%s", report["message"], hint, extra=log.facts(check=report["check"]))
        elif report["outcome"] == "in sync" and self.report["outcome"] in ("failed", "drift"):
            LOGGER.info("the node is in sync again")

    def _apply(self, report: SyncReport) -> None:
        """Apply a report: its interval, watch list, runtime's PID and metrics address."""
        self.report = report
        checks = self._on_drift != "ignore"
        interval = report["settings"]["interval"] if checks else _NEVER
        self.pace.set_interval(interval)
        self._watch(report["watch"] if checks else {}, interval)
        if report["outcome"] != "failed":
            self._follow(report["pid"] if checks else None)
        self._pages.listen(report["settings"]["metrics"])
        self._apply_reports(interval)
        self._apply_plugin()
        self._check_driver()

    def _apply_plugin(self) -> None:
        """Start, replace or end the NRI plugin if its settings changed."""
        settings = self.report["settings"]["nri"]
        if self._plugin is not None and self._plugin.settings != settings:
            self._plugin.close()
            self._plugin = None
        if self._plugin is None and settings is not None:
            from toolkit.agent.nri import Plugin  # noqa: PLC0415  # needs memory

            self._plugin = Plugin(settings)
        self._run_plugin(())  # a sync that began earlier may report the node as ready

    def _check_driver(self) -> None:
        """Log when the driver is loaded or unloaded; without it the node may not be ready any more.

        Files in /sys cause no event, so this is called whenever the agent wakes up.
        """
        if "signs" not in self.report:
            return
        settings, is_loaded = self.report["settings"], procfs.any_exists(self.report["signs"])
        if settings["needs_driver"] and not is_loaded and self.report["ready"]:
            self.report |= {"ready": False, "unready": settings["needs_driver"]}
        had_driver, self._has_driver = self._has_driver, is_loaded
        if had_driver is None or had_driver is is_loaded:
            return
        if self._reports is not None:
            self._reports.add(
                {"reason": "DriverLoaded", "kind": "Normal", "message": "the driver is loaded"}
                if is_loaded
                else {"reason": "DriverGone", "kind": "Warning", "message": _NO_DRIVER}
            )
        if is_loaded:
            LOGGER.info("the NVIDIA driver is loaded")
        else:
            effect = (
                "that request GPUs are refused"
                if settings["refuses"]
                else "that start now get no GPU"
            )
            LOGGER.warning("the NVIDIA driver is not loaded any more: containers %s", effect)
        if self._on_drift != "ignore" or settings["needs_driver"]:
            self.pace.changed()  # metrics, readiness record and CDI specification depend on it

    # --- the report to the API server ---

    def _apply_reports(self, interval: float) -> None:
        """Begin, change or end the reports to the API server if their settings changed."""
        settings = self.report["settings"].get("report")
        if self._reports is not None and self._reports.settings != settings:
            self._reports = None
        if self._reports is None and settings is not None:
            from toolkit.kube.report_schedule import ReportSchedule  # noqa: PLC0415  # in a pod only

            self._reports = ReportSchedule(settings, min(interval, _LONGEST))

    def _note(self, report: SyncReport) -> None:
        """Add the Event for a sync that was more than a look, and what it says of readiness."""
        if self._reports is None:
            return
        if (event := occurrence(report)) is not None:
            self._reports.add(event)
        self._observe(is_harmed=report["code"] in (ROLLED_BACK, NOT_ROLLED_BACK))

    def _observe(self, *, is_harmed: bool = False) -> None:
        if self._reports is not None:
            is_ready = self.report["ready"]
            why = versions(self.report) if is_ready else self.report["unready"]
            self._reports.observe(is_ready=is_ready, why=why, is_harmed=is_harmed)

    def _send_report(self) -> None:
        """Start a child for the report if it is due; end one that takes too long.

        It runs beside a sync and without the lock: neither waits for the other.
        """
        self._observe()
        if self._reporter is not None:
            if time.monotonic() >= self._reporter.began + _REPORT_TIME:
                self._reporter.signal(signal.SIGKILL)
            return
        if self._reports is None or self.stopped_by is not None:
            return
        if self._reports.due <= time.monotonic():
            report = self._reports.begin()
            try:
                self._reporter = Worker("report", child.report_command(), report)
            except OSError as error:
                self._log_report({"error": f"cannot be started: {error.strerror}"})

    def _collect_report(self, reporter: Worker) -> None:
        """Take over what became of a report from the child, which has exited."""
        self._reporter = None
        reporter.relay()
        content = reporter.content()
        reporter.close()
        self._log_report(content if content.get("kind") == "report" else {})

    def _log_report(self, result: Mapping[str, Any]) -> None:
        """Log the first failure of the reports to the API server, and another one."""
        if self._reports is not None and (error := self._reports.end(result)):
            LOGGER.warning("the node's state is not reported, it is tried again: %s", error)

    def _end_reporter(self) -> None:
        """Kill a running report and wait for its end: no request of it may come later."""
        if self._reporter is not None:
            self._reporter.signal(signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._reporter.pid, 0)
            self._reporter.close()
            self._reporter = None

    def _watch(self, watch: Mapping[str, list[str] | None], interval: float) -> None:
        """Watch directories; log which ones cannot be watched whenever that changes."""
        self._watches.follow(
            (path, None if names is None else frozenset(names)) for path, names in watch.items()
        )
        # What changed before there was a watch causes no event.
        new = {path: names for path, names in watch.items() if path not in self._directories}
        self._directories = frozenset(watch)
        since = self.report.get("observed_at")
        if since and inotify.changed_since(since, new, self.report["settings"]["readiness"]):
            self.pace.changed()
        self._watched = len(watch) - len(self._watches.lost)
        unwatched = self._watches.problems()
        for problem in unwatched:
            if problem not in self._unwatched:
                LOGGER.warning("%s; changes there are noticed only every %.0f s", problem, interval)
        if self._unwatched and not unwatched:
            LOGGER.info("all %d directories are watched again", self._watched)
        self._unwatched = unwatched

    def _follow(self, pid: int | None) -> None:
        """Poll for the exit of the process with this PID, and stop polling for the previous one."""
        if self._runtime >= 0:
            os.close(self._runtime)
        self._runtime = -1
        try:
            self._runtime = -1 if pid is None else os.pidfd_open(pid)
        except ProcessLookupError:
            self.pace.changed()
        except OSError:
            pass  # Linux before 5.3 has no pidfd_open(2): the periodic check notices the exit later

    # --- the service manager ---

    def _notify(self) -> None:
        """Send the service manager what changed, and that this process is alive or stops."""
        if self._service_manager is None:
            return
        is_settled = self._worker is None and not self._sync_requested
        self._service_manager.update(
            self._status(), is_ready=self.report["ready"], is_settled=is_settled
        )
        self._service_manager.keep_alive(self._state_file.problem())

    def _status(self) -> str:
        """Return in one line whether the node is ready, or why not."""
        if not self.report["ready"]:
            return f"not ready: {self.report['unready']}"
        versions, handlers = self.report["versions"], ", ".join(self.report["verified"])
        runtime = f"{versions['runtime']} {versions['runtime_version']}".strip()
        return f"ready: {runtime}" + (f" with the handlers {handlers}" if handlers else "")

    # --- signals ---

    def _handle(self, number: signal.Signals) -> None:
        """Handle a signal, outside of the signal handler."""
        if number in STOPS:
            self._stop(number)
        elif number is signal.SIGHUP:
            LOGGER.info("SIGHUP: reloading the settings and syncing now")
            self._sync_requested = True
            self.pace.wanted()
            if self._service_manager is not None:
                self._service_manager.reloading("reading the settings again")
        elif number is signal.SIGUSR1:
            LOGGER.info("state: %s", json.dumps(self._state()))

    def _stop(self, number: signal.Signals) -> None:
        if self.stopped_by is not None:
            LOGGER.info("%s again: waiting for the running sync to finish", number.name)
            return
        self.stopped_by, self._since = number, time.monotonic()
        if self._service_manager is not None:
            self._service_manager.stopping(
                f"{number.name}: stopping", float(self.report["settings"]["grace"])
            )
        if self._worker is not None:
            LOGGER.info("%s: stopping when the running sync has finished", number.name)
            # A `greet` changes nothing on the node, so interrupting it is no failure.
            self._is_cut = self._worker.kind != "greet"
            self._worker.signal(signal.SIGTERM)

    def _state(self) -> dict[str, Any]:
        report = {
            name: value for name, value in self.report.items() if name not in ("watch", "metrics")
        }
        due = None if self.pace.due == _NEVER else round(self.pace.due - time.monotonic(), 1)
        return {
            **report,
            "now": round(time.time(), 3),
            "watched": self._watched,
            "unwatched": list(self._watches.lost),
            "next_look_in": due,
            "nri": None if self._plugin is None else self._plugin.state(),
        }

    # --- stopping ---

    @property
    def _on_drift(self) -> str:
        return str(self.report["settings"]["on_drift"])

    @property
    def _asks(self) -> bool:
        """Return whether to ask the API server about the DaemonSet: --on-exit=auto, in a pod."""
        return self.report["settings"]["on_exit"] == "auto" and os.path.exists(_ACCOUNT)

    @property
    def _end(self) -> float:
        """Return the monotonic time at which the grace period ends and the pod is killed."""
        return self._since + float(self.report["settings"]["grace"])

    def _is_late(self) -> bool:
        """Make a running child stop in time while the agent stops; return whether it did not."""
        if self.stopped_by is None or self._worker is None:
            return False
        left = self._end - time.monotonic()
        if left <= _ROLLBACK_TIME and not self._is_hurried:
            self._is_hurried = True
            self._worker.signal(signal.SIGTERM)
        return left <= _EXIT_TIME

    def _leave(self) -> int:
        """Revert the node if --on-exit asks for it; return the exit code of the agent."""
        number = self.stopped_by or signal.SIGTERM
        if self._worker is not None:
            LOGGER.warning("%s: the running sync did not finish in time", number.name)
            is_asked = self.report["settings"]["on_exit"] == "revert"
            return STEP_FAILED if is_asked else 128 + number
        # A sync that was interrupted before it changed anything is no failure.
        is_cut = self._is_cut and self.report["code"] not in {0, 128 + signal.SIGTERM}
        if self.report["settings"]["on_exit"] == "revert" or self._asks:
            code, is_reverted = self._revert()
            if code == 128 + number:
                code = STEP_FAILED  # a service manager takes 143 for a clean stop
            if code or is_reverted:
                LOGGER.info(
                    "%s: stopping, the node was %sreverted", number.name, "not " if code else ""
                )
                return code
        LOGGER.info("%s: stopping, the node stays as it is", number.name)
        if is_cut and self.report["code"] == NOT_ROLLED_BACK:
            return NOT_ROLLED_BACK  # a service manager takes 143 for a clean stop
        return 128 + number if is_cut else 0

    def _revert(self) -> tuple[int, bool]:
        """Start a child to revert the node, with --on-exit=auto only if the DaemonSet is deleted.

        Return the exit code of the child, and whether the node was reverted.
        """
        self._is_hurried = False
        if not self._start("leave"):
            return 1, False
        while self._worker is not None:
            if self._step():
                LOGGER.error("the node was not reverted in time; the next run or revert continues")
                return STEP_FAILED, False
            self._notify()
        return int(self.report["code"]), self.report["outcome"] == "changed"


def _service_manager() -> ServiceManager | None:
    """Return the service manager that started this process, None if none did."""
    if "NOTIFY_SOCKET" not in os.environ:
        return None
    from toolkit.node import service_manager  # noqa: PLC0415  # needs memory

    return service_manager.take(os.environ)


def main() -> int:
    """Run the agent with the state that `stay` passed on; return the exit code."""
    state_fd = int(sys.argv[2])
    state = child.read(state_fd)
    os.close(state_fd)
    log.start(**state["log_options"], counted=True, phase="daemon")
    fcntl.fcntl(state["lock"], fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    code = Daemon(state["lock"], state["report"], state["arguments"]).run(state["came"])
    os.ftruncate(state["lock"], 0)  # remove the PID of this process, which exits now
    log.write(sys.stderr, "")
    return code
