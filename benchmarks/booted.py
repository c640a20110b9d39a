"""What is measured on booted nodes under systemd: one for this program, and one for the peer."""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from benchmarks import idle, peer
from benchmarks.silence import Listener
from benchmarks.table import Row
from tests.support import containers, nodes
from tests.support.fake_node import wait_for
from tests.support.nodes import Node
from toolkit.errors import StepError
from toolkit.runtime.client import cri

PROGRAM: Final = str(Path(sys.executable).parent / "nvidia-toolkit")
SUITE: Final = "trixie"
_SOCKET: Final = nodes.SOCKETS["containerd"]
_CONFIG: Final = "/etc/containerd/config.toml"
_READY: Final = "/run/nvidia/toolkit/ready.json"
_RUNTIME: Final = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
_WRITTEN_TO: Final = ("/etc/containerd", "/usr/local/nvidia", "/run/nvidia")
# Around the program alone, since to make its container takes longer than it does.
_TIMED: Final = 'date +%s%N; "$@" >/dev/null; code=$?; date +%s%N; exit $code'
_PATIENCE: Final = 30.0
_STILL: Final = 0.3
_DEAD: Final = 0.02
"""Below it, in seconds, a pause between two answers is the asking itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What one start of an installer did: seconds, of silence too, restarts and files written.

    `ready` is when it had ended and the runtime named our handlers for good, and
    `named` when it first did.
    """

    took: float
    ready: float
    dead: float
    named: float
    restarts: int
    writes: int


@dataclass(slots=True, kw_only=True)
class Observed:
    """What was measured with one installer; `added` is what its handler costs a container start."""

    first: Start
    again: list[Start]
    container: float
    added: float
    drift: float | None
    resting: idle.Rest


def rows(*, short: bool, idle_seconds: int) -> Iterator[Row]:
    """Boot a node for each installer, measure, and compare."""
    with tempfile.TemporaryDirectory(dir=nodes.cache(), prefix="bench-") as place:
        source = peer.source(Path(place))
        ours = _measured(
            [PROGRAM, "run"], source, short=short, idle_seconds=idle_seconds, is_ours=True
        )
        theirs = None
        if found := peer.found():
            peers = ["setsid", "--wait", str(found)]
            theirs = _measured(peers, source, short=short, idle_seconds=idle_seconds, is_ours=False)
    yield from _starts(ours, theirs)
    yield Row(
        what="a whole container start through the handler",
        unit="s",
        ours=ours.container,
        theirs=theirs.container if theirs else None,
        share=0.9,
        note=(
            "`ctr run`, driver absent; runc itself takes"
            f" {(ours.container - ours.added) * 1000:.0f} ms"
        ),
    )
    yield Row(
        what="what the handler adds to that",
        unit="s",
        ours=ours.added,
        theirs=theirs.added if theirs else None,
        note="median of the differences, one run through each in turn",
    )
    if ours.drift is not None:
        yield Row(what="drift repaired, overwritten to ready", unit="s", ours=ours.drift, most=2.0)
    yield from _idle(ours, theirs)


def _starts(ours: Observed, theirs: Observed | None) -> Iterator[Row]:
    def again(seen: Observed, name: str) -> float:
        return float(statistics.median(getattr(start, name) for start in seen.again))

    what = "a pod start on a node that is right"
    for name, unit, text, most in (
        ("ready", "s", "ready", 0.3),
        ("dead", "s", "socket dead", _DEAD),
        ("restarts", "", "restarts", 0),
        ("writes", "", "files written, but for the PID file", 0),
    ):
        yield Row(
            what=f"{what}: {text}",
            unit=unit,
            ours=again(ours, name),
            theirs=again(theirs, name) if theirs else None,
            most=most,
        )
    # Where the runtime never took it up, how long it was silent says nothing.
    took_up = theirs if theirs and math.isfinite(theirs.first.named) else None
    for name, text, most, other in (
        ("named", "handlers named", 1.0, theirs),
        ("dead", "socket dead", 0.2, took_up),
    ):
        yield Row(
            what=f"first install: {text}",
            unit="s",
            ours=getattr(ours.first, name),
            theirs=getattr(other.first, name) if other else None,
            most=most,
            note=(
                f"said to be done after {ours.first.took:.2f} s"
                + (f", by the peer after {theirs.first.took:.2f} s" if theirs else "")
                if name == "named"
                else ""
            ),
        )


def _idle(ours: Observed, theirs: Observed | None) -> Iterator[Row]:
    rest, other = ours.resting, theirs.resting if theirs else None
    yield Row(
        what="idle: memory (PSS)",
        unit="MB",
        ours=rest.memory,
        theirs=other.memory if other else None,
        share=1.0,
    )
    for name, unit, text in (
        ("wakeups", "", "wake-ups in ten minutes"),
        ("cpu", "s", "processor in an hour"),
    ):
        yield Row(
            what=f"idle: {text}",
            unit=unit,
            ours=getattr(rest, name),
            theirs=getattr(other, name) if other else None,
            note=f"from {rest.seconds:.0f} s"
            + ("" if name == "wakeups" else ", one look included"),
        )


# --- one node -----------------------------------------------------------------------------------


def _measured(
    program: Sequence[str], source: Path, *, short: bool, idle_seconds: int, is_ours: bool
) -> Observed:
    options = ["--runtime=containerd", f"--toolkit-source-root={source}"]
    with nodes.boot(SUITE) as node:
        once = [*program, *options, "--no-daemon"]
        before = nodes.path(node, _CONFIG).read_bytes()
        first = _started(node, once)
        again = [_started(node, once) for _ in range(3 if short or not is_ours else 9)]
        container, added = _containers(node, 10 if short else 50)
        quiet = [] if is_ours else ["--restart-mode=none"]
        drift = None
        with containers.start_daemonset(node, [*program, *options, *quiet]) as process:
            try:
                pid = containers.inner(process)
                if is_ours:
                    drift = _repaired(node, before, 1 if short else 3)
                resting = idle.rest(pid if is_ours else _last(pid), idle_seconds)
            finally:
                process.terminate()
                process.communicate(timeout=60)
    return Observed(
        first=first, again=again, container=container, added=added, drift=drift, resting=resting
    )


def _last(pid: int) -> int:
    """Return the last process of a line of parents: the peer, below setsid, has no children."""
    while below := nodes.children(pid):
        pid = below[0]
    return pid


def _started(node: Node, argv: Sequence[str]) -> Start:
    """Let an installer set the node up and end, and see what that did."""
    nodes.run(node, ["rm", "-f", "/run/nvidia/toolkit/restarts.json"])
    nodes.run(node, ["systemctl", "reset-failed", "containerd"], check=False)
    before, pid = _traces(node), nodes.main_pid(node, "containerd")
    listener = Listener(nodes.path(node, _SOCKET), server_speaks_first=True)
    listener.start()
    with _naming(node) as named:
        done = containers.daemonset(node, ["sh", "-c", _TIMED, "sh", *argv])
        began, ended = (int(line) / 1e9 for line in done.stdout.split())
        if done.returncode != 0:
            raise RuntimeError(
                f"{' '.join(argv)} ended with {done.returncode}: {done.stderr[-800:]}"
            )
        with contextlib.suppress(AssertionError):  # then it is never, as the row says
            # A runtime that was told to end may answer for a moment still.
            wait_for(
                lambda: any(t > ended + _STILL for t in named),
                "they are not named",
                timeout=_PATIENCE,
            )
    dead = listener.stop()
    is_another = nodes.main_pid(node, "containerd") != pid
    later = [began, *(t for t in named if t >= began)]
    gap, back = max(((b - a, b) for a, b in pairwise(later)), default=(0.0, float("inf")))
    return Start(
        took=ended - began,
        # A runtime that is the same process still was not away, however late it was asked.
        ready=max(ended, back if is_another and (gap > _STILL or dead > _DEAD) else ended) - began,
        dead=dead,
        named=(later[1] if len(later) > 1 else float("inf")) - began,
        restarts=int(is_another),
        writes=len({path for path, trace in _traces(node).items() if before.get(path) != trace}),
    )


@contextmanager
def _naming(node: Node) -> Iterator[list[float]]:
    """Note each time at which the runtime itself names the handler `nvidia`."""
    named: list[float] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.02):
            with contextlib.suppress(StepError):
                said = cri.status(nodes.path(node, _SOCKET), timeout=2)
                if "nvidia" in (said.handlers or ()):
                    named.append(time.time())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield named
    finally:
        over.set()
        thread.join()


def _traces(node: Node) -> Mapping[str, tuple[int, int]]:
    """Return inode and time of everything that a start could write to."""
    found = {}
    for top in _WRITTEN_TO:
        for path in nodes.path(node, top).rglob("*"):
            seen = path.lstat()
            if not path.is_dir() and path.name != "toolkit.pid":
                found[str(path)] = (seen.st_ino, seen.st_mtime_ns)
    return found


def _containers(node: Node, times: int) -> tuple[float, float]:
    """Return how long `ctr run` of a container that ends at once takes, and our part of it.

    Both are medians; runc itself is run in turn with it, since a machine's speed varies.
    """
    took, more = [], []
    for number in range(times + 1):
        through, alone = (_container(node, binary) for binary in (_RUNTIME, ""))
        if number:  # the first one loads what all use
            took.append(through)
            more.append(through - alone)
    return statistics.median(took), statistics.median(more)


def _container(node: Node, binary: str) -> float:
    began = time.perf_counter()
    done = containers.ctr_run(node, ("true",), runc_binary=binary or None)
    if done.returncode != 0:
        raise RuntimeError(f"no container runs: {done.stderr}")
    return time.perf_counter() - began


def _repaired(node: Node, before: bytes, times: int) -> float:
    """Return how long it takes from an overwritten config to a ready node."""
    ready, config = nodes.path(node, _READY), nodes.path(node, _CONFIG)
    wait_for(ready.exists, "it does not become ready", timeout=_PATIENCE)
    time.sleep(2)  # it has to stay, and to watch
    good = config.read_bytes()
    took = []
    for _ in range(times):
        aside = config.with_name("aside")
        aside.write_bytes(before)
        aside.rename(config)
        began = time.monotonic()
        wait_for(
            lambda: config.read_bytes() == good, "the config is not repaired", timeout=_PATIENCE
        )
        wait_for(ready.exists, "it does not become ready again", timeout=_PATIENCE)
        took.append(time.monotonic() - began)
        nodes.run(node, ["rm", "-f", "/run/nvidia/toolkit/restarts.json"])
        time.sleep(1)
    return statistics.median(took)


def why_not() -> str:
    """Return why no node can be booted of what is there; empty where one can."""
    return nodes.why_not() or nodes.lacking(SUITE)
