"""Phases of roll-outs over a fleet, and the requests that the API server gets in each."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import idle
from tests.support import api_requests, helm, kwok, lookups
from tests.support.api_requests import AuditLog, Request
from tests.support.cluster import ControlPlane

_IN: Final = f"--namespace={helm.NAMESPACE}"
_DAEMONSET: Final = f"daemonset/{helm.RELEASE}"
_OBSERVER: Final = "kubectl"
"""The client of the measurement itself: its requests are left out."""
_LOOK: Final = 1.0
_SETTLING: Final = 3.0
_QUIET: Final = 5.0
"""Requests each second: those of a control plane that has nothing to do."""
_STILL: Final = 40.0
"""After so many seconds without a change, a roll-out has stopped: four times minReadySeconds."""
_PATIENCE: Final = 4 * 3600.0
_DELETED_EACH_SECOND: Final = 20.0
"""What kube-controller-manager allows its DaemonSet controller by default (--kube-api-qps)."""
PHASES: Final = {
    "install": "first installation",
    "update": "update",
    "stop": "update that 2 % fail, `maxUnavailable: 1%`, `minReadySeconds: 0`",
    "fail": "update that 2 % fail",
    "repair": "update to what works",
    "uninstall": "uninstallation",
}
"""All phases in their order: their names, and how they are called in the tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Duration and consequences of one phase.

    `requests` are counted by client, `details` by client, verb and resource, `written` by resource
    (changes that the API server accepted). `busiest` is how many requests came in the busiest
    second. `served` is the total by the API server's own metrics, with those of the measurement.
    `memory` is the most that the API server had, in MB, and `cpu` its processor seconds.
    `unavailable` is the largest number of nodes without a ready pod at a time, `status` the
    DaemonSet's status at the end, and `said` what `kubectl rollout status` says then.
    """

    name: str
    seconds: float
    requests: dict[str, int]
    details: dict[str, int]
    written: dict[str, int]
    busiest: int
    served: int
    memory: float
    cpu: float
    unavailable: int
    status: dict[str, Any]
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """Pods that look up their DaemonSet, by the program's own client.

    `states` are what they learned, `reasons` why, `median` and `slowest` how long it took them, in
    seconds. `requests` reached the API server, `busiest` of them in the busiest second.
    """

    name: str
    pods: int
    states: dict[str, int]
    reasons: dict[str, int]
    median: float
    slowest: float
    requests: int
    busiest: int


class Fleet:
    """Nodes of kwok on a control plane, and a release of the chart on them."""

    def __init__(self, plane: ControlPlane, count: int) -> None:
        self.plane = plane
        self.count = count
        self._log = AuditLog(plane.home)
        self._lookups: subprocess.Popen[str] | None = None
        self._asked: list[Request] = []

    def settle(self) -> None:
        """Wait until controllers and kwok are done with the new nodes, which is not counted."""
        while len(self._sent()) > _QUIET * _SETTLING:
            time.sleep(_SETTLING)

    def phases(self, wanted: Collection[str]) -> Iterator[Phase]:
        """Go through the wanted phases of PHASES in their order, and yield each when it is over.

        A roll-out with a small `maxUnavailable` would take a quarter of an hour with the default of
        `minReadySeconds`; where it stops does not depend on that.
        """
        broken = f"toolkit.version={kwok.BROKEN}"
        few = ("daemonsets.rollingUpdate.maxUnavailable=1%", "daemonsets.minReadySeconds=0")
        acts: dict[str, Callable[[], object]] = {
            "install": partial(self._upgrade, "toolkit.version=1"),
            "update": partial(self._upgrade, "toolkit.version=2"),
            "stop": partial(self._upgrade, broken, *few),
            "fail": partial(self._upgrade, broken),
            "repair": partial(self._upgrade, "toolkit.version=3"),
            "uninstall": self._uninstall,
        }
        for name, text in PHASES.items():
            if name in wanted:
                yield self._measured(text, acts[name])

    def storms(self, pods: int) -> Iterator[Storm]:
        """Let the pods ask that an uninstallation stops, then `pods` at once, and in an outage."""
        if self._lookups:
            yield self._storm("at the rate of an uninstallation", self._lookups, self.count)
        account = lookups.account(self.plane, self.plane.home)
        process = lookups.begin(self.plane, account, pods)
        yield self._storm("all at once", process, pods)
        self.plane.end("kube-apiserver")
        process = lookups.begin(self.plane, account, pods)
        yield self._storm("all at once, the API server is down", process, pods)
        process = lookups.begin(self.plane, account, pods)
        self.plane.begin_again("kube-apiserver")
        yield self._storm("all at once, the API server is just started", process, pods)
        self.plane.until(self.plane.is_serving, "the API server")

    def _storm(self, name: str, process: subprocess.Popen[str], pods: int) -> Storm:
        told = lookups.answers(process)
        self._sent()
        asked, self._asked = self._asked, []
        return Storm(
            name=name,
            pods=pods,
            states=dict(told.states),
            reasons=dict(told.reasons),
            median=statistics.median(told.seconds),
            slowest=told.seconds[-1],
            requests=len(asked),
            busiest=_busiest(asked),
        )

    # --- a phase --------------------------------------------------------------------------------

    def _measured(self, name: str, act: Callable[[], object]) -> Phase:
        """Do something, wait until it is done or has stopped, and return what it caused."""
        pid = self.plane.processes["kube-apiserver"].pid
        served = api_requests.total(self.plane).total()
        self._sent()
        # This resets the peak of its memory (proc(5)).
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="utf-8")
        cpu, began = idle.spent(pid), time.monotonic()
        act()
        changed, unavailable = self._watched()
        sent = self._sent()
        status = self._status()
        return Phase(
            name=name,
            seconds=round(changed - began, 1),
            requests=_counted(each.client for each in sent),
            details=_counted(f"{each.client}: {each.verb} {each.resource}" for each in sent),
            written=_counted(each.resource for each in sent if each.is_write),
            busiest=_busiest(sent),
            served=api_requests.total(self.plane).total() - served,
            memory=_peak(pid),
            cpu=round(idle.spent(pid) - cpu, 1),
            unavailable=unavailable,
            status=status,
            said=self._said() if status else "",
        )

    def _sent(self) -> list[Request]:
        """Return what was sent since the last call; what the program sent is also kept."""
        sent = [each for each in self._log.new() if each.client != _OBSERVER]
        self._asked += [each for each in sent if each.client == api_requests.PROGRAM]
        return sent

    def _watched(self) -> tuple[float, int]:
        """Return when the last change was, and the most nodes at a time without a ready pod."""
        began = changed = time.monotonic()
        before: object = None
        unavailable = 0
        while time.monotonic() - began < _PATIENCE:
            now = (self._status(), self._pods())
            unavailable = max(unavailable, now[0].get("numberUnavailable", 0))
            if now != before:
                changed, before = time.monotonic(), now
            if self._is_done(*now):
                return time.monotonic(), unavailable
            if time.monotonic() - changed > _STILL:
                return changed, unavailable
            time.sleep(_LOOK)
        raise TimeoutError(f"not done after {_PATIENCE:g} s: {before}")

    def _is_done(self, status: dict[str, Any], pods: int) -> bool:
        """Return whether all nodes have what was asked for: a ready new pod, or none at the end."""
        if not status:
            return pods == 0
        numbers = ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable")
        is_current = status["generation"] == status.get("observedGeneration")
        return is_current and all(status.get(name) == self.count for name in numbers)

    def _status(self) -> dict[str, Any]:
        """Return the DaemonSet's status with its generation; nothing if there is none."""
        told = self.plane.kubectl("get", _DAEMONSET, _IN, "--output=json", check=False)
        if told.returncode != 0:
            return {}
        found = json.loads(told.stdout)
        return {**found["status"], "generation": found["metadata"]["generation"]}

    def _pods(self) -> int:
        """Return how many pods there are, without reading them all."""
        path = f"/api/v1/namespaces/{helm.NAMESPACE}/pods?limit=1"
        told = json.loads(self.plane.kubectl("get", f"--raw={path}").stdout)
        return len(told["items"]) + int(told["metadata"].get("remainingItemCount", 0))

    def _said(self) -> str:
        """Return what an operator reads who asks for the state of the roll-out."""
        words = ("rollout", "status", _IN, _DAEMONSET, "--watch=false")
        done = self.plane.kubectl(*words, check=False)
        return f"{done.stdout}{done.stderr}".strip()

    # --- what is done ---------------------------------------------------------------------------

    def _upgrade(self, *values: str) -> None:
        options = []
        for value in values:
            is_text = value.startswith("toolkit.version=")
            options += ["--set-string" if is_text else "--set", value]
        self.plane.helm(
            "upgrade", "--install", helm.RELEASE, str(helm.CHART), _IN, "--create-namespace",
            *helm.DOCUMENTED, *options,
        )  # fmt: skip

    def _uninstall(self) -> None:
        """Uninstall; the pods of kwok run nothing, so the program's client asks beside them."""
        account = lookups.account(self.plane, self.plane.home)
        self.plane.helm("uninstall", helm.RELEASE, _IN)
        self._lookups = lookups.begin(
            self.plane, account, self.count, each_second=_DELETED_EACH_SECOND
        )


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _busiest(requests: Sequence[Request]) -> int:
    """Return how many requests came in the second in which most came."""
    return max(Counter(each.at for each in requests).values(), default=0)


def _peak(pid: int) -> float:
    """Return the most memory that a process had at once since its peak was reset, in MB."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("VmHWM:")]
    return round(int(line.split()[1]) / 1024, 1)
