"""The program as a pod that stays, with its story read as it is told."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from tests.support import fake_node


@dataclass
class Pod:
    """A process of the program that stays, and what it has told."""

    process: subprocess.Popen[str]
    told: list[dict[str, Any]] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.raw.append(line)
            try:
                self.told.append(json.loads(line))
            except ValueError:
                continue

    def messages(self, phase: str = "") -> list[str]:
        return [line["message"] for line in list(self.told) if phase in ("", line["phase"])]

    def says(self, words: str, *, timeout: float = 10, times: int = 1) -> str:
        """Wait until it says something; return the line."""
        deadline = time.monotonic() + timeout
        while True:
            found = [message for message in self.messages() if words in message]
            if len(found) >= times:
                return str(found[-1])
            assert time.monotonic() < deadline, f"{words!r} is not said: {''.join(self.raw)}"
            assert self.process.poll() is None or len(found) >= times, "".join(self.raw)
            time.sleep(0.005)

    def state(self) -> dict[str, Any]:
        """Ask for its state."""
        before = sum(message.startswith("state: ") for message in self.messages())
        self.process.send_signal(signal.SIGUSR1)
        told = self.says("state: ", times=before + 1)
        state: dict[str, Any] = json.loads(told.removeprefix("state: "))
        return state

    def settled(self, *, rounds: int = 0) -> dict[str, Any]:
        """Wait until nothing is to be looked at for a while; return the state then."""
        deadline = time.monotonic() + 15
        while True:
            state = self.state()
            done = sum(state["counts"]["outcomes"].values())
            if (state["next_look_in"] is None or state["next_look_in"] > 5) and done >= rounds:
                return state
            assert time.monotonic() < deadline, state
            time.sleep(0.1)

    def until(self, condition: Callable[[], bool], problem: str, *, timeout: float = 15) -> None:
        """Wait until a condition holds; its story says why where it does not."""
        try:
            until(condition, problem, timeout=timeout)
        except AssertionError as error:
            raise AssertionError(f"{problem}: {''.join(self.raw)}") from error

    def end(self, number: signal.Signals = signal.SIGTERM, *, timeout: float = 40) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def memory(self) -> int:
        """Return its proportional share of memory, in bytes."""
        return memory(self.pid)

    def children(self) -> list[int]:
        return children(self.pid)

    def syncs(self) -> list[int]:
        """Return the children that run the program by now: before, one is a copy of the agent."""
        return [pid for pid in self.children() if b"\0sync\0" in _command_line(pid)]


@contextmanager
def staying(
    argv: Sequence[str], *, prefix: Sequence[str] = (), **environment: str
) -> Iterator[Pod]:
    """Start the program and wait until it stays."""
    with fake_node.started([*prefix, *fake_node.program(*argv)], **environment) as process:
        pod = Pod(process)
        listener = threading.Thread(target=pod.listen, daemon=True)
        listener.start()
        pod.says("set up; watching", timeout=30)
        try:
            yield pod
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            listener.join(5)


_FETCH: Final = (
    "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]),"
    " timeout=5);c.request('GET', sys.argv[2]); a = c.getresponse();print(a.status,"
    " a.read().decode(), sep='\\n', end='')"
)


def page_of(pid: int, port: int, path: str) -> tuple[int, str]:
    """Ask for a page of the exporter in the network of a process."""
    ask = ["nsenter", f"--target={pid}", "--net", sys.executable, "-c", _FETCH, str(port), path]
    status, _, text = subprocess.run(
        ask, capture_output=True, text=True, check=True
    ).stdout.partition("\n")
    return int(status), text


def page(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """Ask for a page of the exporter."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        client.request(method, path)
        answer = client.getresponse()
        return answer.status, answer.read().decode()
    finally:
        client.close()


def metrics(port: int, *, pid: int | None = None) -> Mapping[str, float]:
    """Return the metrics by name and labels, of the network that a process sees."""
    status, text = page(port, "/metrics") if pid is None else page_of(pid, port, "/metrics")
    assert status == 200, text
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def until(condition: Callable[[], bool], problem: str, *, timeout: float = 15) -> None:
    fake_node.wait_for(condition, problem, timeout=timeout)


def memory(pid: int) -> int:
    """Return a process's proportional share of memory, in bytes."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as stream:
        [line] = [line for line in stream if line.startswith("Pss:")]
    return int(line.split()[1]) * 1024


def wakeups(pid: int) -> int:
    """Return how often a process was put to sleep and woken: its voluntary context switches."""
    with open(f"/proc/{pid}/status", encoding="ascii") as stream:
        [line] = [line for line in stream if line.startswith("voluntary_ctxt_switches")]
    return int(line.split()[1])


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as stream:
        return [int(word) for word in stream.read().split()]


def _command_line(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return stream.read()
    except FileNotFoundError:  # it has ended
        return b""
