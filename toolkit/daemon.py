"""Stay, watch the node, and have a child put right what is not as wanted. Stopping changes nothing there.

This process takes the place of the one that set the node up, keeps its PID and
its lock, and imports next to nothing: everything that needs more is done by a
short-lived child, whose memory goes with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from toolkit import handover, log, mailbox, standing
from toolkit.errand import Errand
from toolkit.inotify import Watches
from toolkit.log import LOGGER
from toolkit.mailbox import STOPS, Mailbox
from toolkit.pace import Pace
from toolkit.pages import Pages

if TYPE_CHECKING:
    from toolkit.stop import Stop

_WAY_BACK: Final = 18.0
"""For how many seconds a revert that is told to stop may still go on: a step, the way back, and some air."""
_LAST_WORDS: Final = 1.0
_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_LONGEST: Final = 3600.0
_NEVER: Final = float("inf")


def stay(
    lock: int, report: Mapping[str, Any], arguments: Sequence[str], manner: Mapping[str, Any], stop: Stop
) -> NoReturn:
    """Become the process that stays. Signals that arrive meanwhile are kept for it. Raises OSError.

    `arguments` are those that a round is to be given, `manner` how to log, and
    `stop` what was wished until now.
    """
    mailbox.hold_back()
    given = {"lock": lock, "report": report, "arguments": list(arguments), "manner": dict(manner)}
    paper = handover.paper({**given, "stop": stop.signal})
    for fd in (lock, paper):
        fcntl.fcntl(fd, fcntl.F_SETFD, 0)  # it stays open in the next program
    sys.stdout.flush()
    sys.stderr.flush()
    argv = [*handover.interpreter("toolkit.daemon"), str(paper)]
    os.execv(argv[0], argv)  # noqa: S606  # this very interpreter


class Daemon:
    """The process that stays: what it was told last, what it waits for, and the child at work, if any."""

    def __init__(self, lock: int, report: dict[str, Any], arguments: Sequence[str]) -> None:
        self.lock = lock
        self.arguments = arguments
        self.report = report
        self.pace = Pace(_NEVER)
        self.stopped_by: signal.Signals | None = None
        self._since = 0.0
        self._is_hurried = False
        self._is_cut = False
        self._is_asked = False
        self._errand: Errand | None = None
        self._ended: int | None = None
        self._watches = Watches()
        self._runtime = -1
        self._pages = Pages(lambda: self.report, self._busy)
        self._mailbox = Mailbox()

    def run(self, stop: int | None = None) -> int:
        """Stay until told to stop, which `stop` may say already; return the exit code."""
        if stop is not None:
            self._mailbox.put(stop)
        self._mailbox.listen()
        self._take(self.report)
        self._pause()
        if self.report["orders"]["daemonset"] and self._asks:
            self._send("greet")
        LOGGER.info("set up; watching %d directories until SIGTERM", len(self.report["watch"]))
        while self.stopped_by is None or self._errand is not None:
            if self._turn():
                break
            if self._errand is None and self.stopped_by is None and self.pace.due <= time.monotonic():
                self._send("converge" if self._is_asked or self._on_drift == "repair" else "check")
                self._is_asked = False
        return self._leave()

    def _turn(self) -> bool:
        """Wait for whatever comes first and see to it; tell whether time to stop is over."""
        self._wait()
        for number in self._mailbox.taken():
            self._heed(number)
        self._reap()
        if self._errand is not None and self._ended is not None:
            self._take_back(self._errand, self._ended)
        return self._is_late()

    # --- waiting ---

    def _wait(self) -> None:
        """Wait for whatever comes first. Nothing is looked at for the sake of looking."""
        poll = select.poll()
        for fd in (self._mailbox.fd, self._watches.fd, self._runtime, self._pages.fd):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        if self._errand is not None:
            poll.register(self._errand.fd, select.POLLIN)
        for fd, _ in poll.poll(self._milliseconds()):
            self._heard(fd)

    def _milliseconds(self) -> float:
        """Return how long nothing has to be done."""
        ends = [time.monotonic() + _LONGEST]
        if self._errand is None and self.stopped_by is None:
            ends.append(self.pace.due)
        if self.stopped_by is not None:
            ends.append(self._end - _LAST_WORDS)
            if self._errand is not None and not self._is_hurried:
                ends.append(self._end - _WAY_BACK)
        return max(min(ends) - time.monotonic(), 0.0) * 1000 + 1

    def _heard(self, fd: int) -> None:
        if fd == self._mailbox.fd:
            self._mailbox.empty()
        elif fd == self._watches.fd:
            if self._watches.changed():
                self.pace.changed()
        elif fd == self._runtime:
            self._lost_runtime()
        elif self._errand is not None and fd == self._errand.fd:
            self._errand.relay()
        else:
            self._pages.serve()

    def _lost_runtime(self) -> None:
        self.report |= {"ready": False, "unready": "the runtime's process ended"}
        LOGGER.info("the runtime's process ended")
        self._follow(None)
        self.pace.changed()

    def _reap(self) -> None:
        """Take whatever child has ended: as the first process of a container, orphans are ours too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if self._errand is not None and pid == self._errand.pid:
                self._ended = os.waitstatus_to_exitcode(status)

    # --- the child ---

    def _send(self, kind: str) -> bool:
        """Send a child; tell whether it could be."""
        self.pace.began()
        try:
            given = {name: self.report.get(name) for name in ("counts", "is_known", "found")}
            self._errand = Errand(kind, self.arguments, self.lock, given)
        except OSError as error:
            LOGGER.error("a round cannot be begun: %s", error)
            self.pace.ended(code=1, is_changed=False)
        return self._errand is not None

    def _take_back(self, errand: Errand, code: int) -> None:
        """Hear what a child that has ended has to say."""
        self._errand, self._ended = None, None
        errand.relay()
        report = errand.report() or standing.cut_short(code, time.monotonic() - errand.began)
        errand.close()
        self._tell(report)
        self._take({**self.report, **report})
        self._pause(is_changed=report["outcome"] == "changed")

    def _pause(self, *, is_changed: bool = False) -> None:
        """Let the next look wait; less where the node is right and does not count as ready yet."""
        is_done = self.report["ready"] or self._on_drift == "ignore"
        self.pace.ended(code=self.report["code"] or int(not is_done), is_changed=is_changed)

    def _tell(self, report: Mapping[str, Any]) -> None:
        """Log how a round ended, where that is news."""
        if report["outcome"] == "failed":
            hint = f" ({report['hint']})" if report["hint"] else ""
            LOGGER.error("%s%s", report["message"], hint, extra=log.facts(check=report["check"]))
        elif report["outcome"] == "in sync" and self.report["outcome"] in ("failed", "drift"):
            LOGGER.info("the node is as wanted again")

    def _take(self, report: dict[str, Any]) -> None:
        """Behave as a report says from now on."""
        self.report = report
        looks = self._on_drift != "ignore"
        interval = report["orders"]["interval"] if looks else _NEVER
        self.pace.look_every(interval)
        watch = report["watch"].items() if looks else ()
        self._watches.follow((path, None if names is None else frozenset(names)) for path, names in watch)
        for lost in self._watches.lost:
            LOGGER.warning("cannot be watched, only looked at every %.0f s: %s", interval, lost)
        if report["outcome"] != "failed":
            self._follow(report["pid"] if looks else None)
        self._pages.listen(report["orders"]["metrics"])

    def _follow(self, pid: int | None) -> None:
        """Wait for the end of the runtime's process as well."""
        if self._runtime >= 0:
            os.close(self._runtime)
        self._runtime = -1
        try:
            self._runtime = -1 if pid is None else os.pidfd_open(pid)
        except ProcessLookupError:
            self.pace.changed()
        except OSError:
            pass  # a kernel before 5.3: the looks without a reason have to do

    # --- being told ---

    def _heed(self, number: signal.Signals) -> None:
        """Do what a signal asks for, outside of its handler."""
        if number in STOPS:
            self._stop(number)
        elif number is signal.SIGHUP:
            LOGGER.info("SIGHUP: reading the settings again and looking now")
            self._is_asked = True
            self.pace.wanted()
        elif number is signal.SIGUSR1:
            LOGGER.info("state: %s", json.dumps(self._state()))

    def _stop(self, number: signal.Signals) -> None:
        if self.stopped_by is not None:
            LOGGER.info("%s again: what is under way is finished first", number.name)
            return
        self.stopped_by, self._since = number, time.monotonic()
        if self._errand is not None:
            LOGGER.info("%s: stopping once the round under way has ended", number.name)
            self._is_cut = self._errand.kind != "greet"  # of which nothing depends
            self._errand.signal(signal.SIGTERM)

    def _state(self) -> dict[str, Any]:
        left = {name: value for name, value in self.report.items() if name not in ("watch", "metrics")}
        due = None if self.pace.due == _NEVER else round(self.pace.due - time.monotonic(), 1)
        return {
            **left,
            "now": round(time.time(), 3),
            "watched": len(self.report["watch"]),
            "next_look_in": due,
        }

    def _busy(self) -> float:
        return 0.0 if self._errand is None else time.monotonic() - self._errand.began

    # --- the end ---

    @property
    def _on_drift(self) -> str:
        return str(self.report["orders"]["on_drift"])

    @property
    def _asks(self) -> bool:
        """Tell whether the API server is asked what becomes of us."""
        return self.report["orders"]["on_exit"] == "auto" and os.path.exists(_ACCOUNT)

    @property
    def _end(self) -> float:
        """Return when the pod is killed."""
        return self._since + float(self.report["orders"]["grace"])

    def _is_late(self) -> bool:
        """See that a child which works while we stop ends in time; tell whether it does not."""
        if self.stopped_by is None or self._errand is None:
            return False
        left = self._end - time.monotonic()
        if left <= _WAY_BACK and not self._is_hurried:
            self._is_hurried = True
            self._errand.signal(signal.SIGTERM)
        return left <= _LAST_WORDS

    def _leave(self) -> int:
        """End as it was asked for: the node stays as it is, unless it shall not."""
        number = self.stopped_by or signal.SIGTERM
        if self._errand is not None:
            LOGGER.warning("%s: the round under way did not end in time", number.name)
            return 128 + number
        is_cut = self._is_cut and self.report["code"] != 0
        if self.report["orders"]["on_exit"] == "revert" or self._asks:
            code, is_back = self._undo()
            if code or is_back:
                LOGGER.info("%s: stopping, the node was %sset back", number.name, "not " if code else "")
                return code
        LOGGER.info("%s: stopping, the node stays as it is", number.name)
        return 128 + number if is_cut else 0

    def _undo(self) -> tuple[int, bool]:
        """Have a child find out whether we leave for good, and take everything back if so.

        Returns the exit code, and whether everything was taken back.
        """
        self._is_hurried = False
        if not self._send("leave"):
            return 1, False
        while self._errand is not None:
            if self._turn():
                LOGGER.error("the node was not set back in time; the next run, or a revert, goes on with it")
                return 128 + (self.stopped_by or signal.SIGTERM), False
        return int(self.report["code"]), self.report["outcome"] == "changed"


def main() -> int:
    """Go on from where the process that set the node up has got to."""
    paper = int(sys.argv[1])
    given = handover.read(paper)
    os.close(paper)
    log.start(**given["manner"], counted=True)
    fcntl.fcntl(given["lock"], fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    code = Daemon(given["lock"], given["report"], given["arguments"]).run(given["stop"])
    os.ftruncate(given["lock"], 0)  # the PID in it is ours
    return code


if __name__ == "__main__":
    sys.exit(main())
