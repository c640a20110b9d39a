"""How long a runtime does not answer while the program makes it take a change up, on booted nodes.

`python -m benchmarks.silence` asks each runtime's socket every 2 ms during an
install and prints the longest time without an answer. Needs what the tests of
real runtimes need (root, mmdebstrap, Go for CRI-O).
"""

from __future__ import annotations

import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support import artifacts, containers, crio, nodes
from tests.support.nodes import Node

PROGRAM = str(Path(sys.executable).parent / "nvidia-toolkit")
PAUSE = 0.002


class Listener(threading.Thread):
    """Asks a socket again and again, and remembers the longest silence."""

    def __init__(self, path: Path, *, server_speaks_first: bool) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0
        self._path = path
        self._speaks_first = server_speaks_first
        self._over = threading.Event()

    def run(self) -> None:
        """Ask until stopped."""
        last = time.monotonic()
        while not self._over.is_set():
            answered = self._answers()
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            if answered:
                last = now
            time.sleep(PAUSE)

    def stop(self) -> float:
        """Return the longest silence in seconds."""
        self._over.set()
        self.join()
        return self.longest

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(2)
                client.connect(str(self._path))
                if not self._speaks_first:
                    client.sendall(b"GET /_ping HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return bool(client.recv(1))
        except OSError:
            return False


def measured(
    node: Node, options: Sequence[str], mounts: dict[str, str], path: str, *, first: bool
) -> float:
    """Install and revert on a node; return the longest silence of the install in seconds."""
    listener = Listener(nodes.path(node, path), server_speaks_first=first)
    listener.start()
    done = containers.daemonset(node, [PROGRAM, "run", "--no-daemon", *options], mounts=mounts)
    time.sleep(0.2)
    silence = listener.stop()
    assert done.returncode == 0, done.stderr
    undone = containers.daemonset(node, [PROGRAM, "revert", *options], mounts=mounts)
    assert undone.returncode == 0, undone.stderr
    return silence


@contextmanager
def settled(node: Node, unit: str) -> Iterator[None]:
    """Let systemd forget how often the unit was started."""
    nodes.run(node, ["systemctl", "reset-failed", unit])
    yield


def main() -> None:
    """Print a table."""
    base = {"/usr/local/nvidia": "/usr/local/nvidia", "/run/nvidia": "/run/nvidia"}
    with tempfile.TemporaryDirectory(prefix="silence-") as place:
        source = artifacts.make(Path(place))
        common = [f"--toolkit-source-root={source}"]
        for suite in nodes.SUITES:
            with nodes.boot(suite, units=("containerd", "docker")) as node:
                nodes.path(node, "/etc/docker").mkdir(exist_ok=True)
                for mode in ("auto", "signal"):
                    mounts = {
                        **base,
                        "/etc/containerd": "/etc/containerd",
                        "/run/containerd": "/run/containerd",
                    }
                    options = ["--runtime=containerd", f"--restart-mode={mode}", *common]
                    with settled(node, "containerd"):
                        silence = measured(
                            node, options, mounts, "/run/containerd/containerd.sock", first=True
                        )
                    show(f"containerd on {suite}, {mode}", silence)
                mounts = {**base, "/etc/docker": "/etc/docker", "/sock": "/run"}
                options = ["--runtime=docker", "--socket=/sock/docker.sock", *common]
                silence = measured(node, options, mounts, "/run/docker.sock", first=False)
                show(f"docker on {suite}, auto", silence)
        if crio.why_not() is None:
            for suite in crio.SUITES:
                with nodes.boot(suite, units=()) as node:
                    crio.install(node)
                    crio.prepare_images(node)
                    crio.start(node)
                    mounts = {**base, "/etc/crio": "/etc/crio", "/run/crio": "/run/crio"}
                    options = ["--runtime=crio", "--socket=/run/crio/crio.sock", *common]
                    silence = measured(node, options, mounts, "/run/crio/crio.sock", first=False)
                    show(f"crio on {suite}, auto", silence)


def show(what: str, seconds: float) -> None:
    """Print one row."""
    sys.stdout.write(f"{what:40} {seconds * 1000:8.0f} ms\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
