"""Many pods that ask the API server about their DaemonSet at once, by the program's own client.

`python -m tests.support.lookups` is the process of all of them, in the control plane's network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support import helm, nodes
from tests.support.cluster import ControlPlane
from toolkit.kube import daemonset
from toolkit.kube.daemonset import Lookup

TIMEOUT: Final = 5.0
"""In seconds, as the agent allows when it stops."""
_PATIENCE: Final = 120
_STACK: Final = 512 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Numbers of lookups by state and by reason, and the seconds that each took, sorted."""

    states: Counter[str]
    reasons: Counter[str]
    seconds: list[float]


def account(plane: ControlPlane, home: Path) -> Path:
    """Return the service account of the chart's pods, as kubelet mounts it, below a directory."""
    path = home / "serviceaccount"
    path.mkdir(exist_ok=True)
    namespace = f"--namespace={helm.NAMESPACE}"
    token = plane.kubectl("create", "token", helm.RELEASE, namespace, "--duration=2h").stdout
    (path / "token").write_text(token, encoding="utf-8")
    (path / "namespace").write_text(helm.NAMESPACE, encoding="utf-8")
    (path / "ca.crt").write_bytes(plane.authority.path.read_bytes())
    return path


def begin(
    plane: ControlPlane, account: Path, clients: int, *, each_second: float = 0
) -> subprocess.Popen[str]:
    """Start lookups, all at once or so many each second; `answers` waits for them."""
    argv = (sys.executable, "-m", __name__, str(account), str(clients), str(each_second))
    # With its parent goes the child, however the test ends.
    return subprocess.Popen(
        ("setpriv", "--pdeathsig", "KILL", "--", *plane.enter, *argv),
        cwd=nodes.CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def answers(process: subprocess.Popen[str]) -> Answers:
    """Return what the lookups of a process ended with."""
    try:
        out, _ = process.communicate(timeout=_PATIENCE)
    finally:
        process.kill()
        process.wait(20)
    told = json.loads(out)
    return Answers(
        states=Counter(told["states"]), reasons=Counter(told["reasons"]), seconds=told["seconds"]
    )


def main() -> None:
    """Look up, and print the answers."""
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}")
    parser.add_argument("account", type=Path)
    parser.add_argument("clients", type=int)
    parser.add_argument("each_second", type=float, help="0: all at once")
    given = parser.parse_args()
    environment = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    results: list[tuple[float, Lookup]] = []

    def ask() -> None:
        began = time.monotonic()
        found = daemonset.look_up(
            helm.RELEASE, timeout=TIMEOUT, environment=environment, account=given.account
        )
        results.append((time.monotonic() - began, found))

    threading.stack_size(_STACK)
    threads = [threading.Thread(target=ask) for _ in range(given.clients)]
    for thread in threads:
        thread.start()
        time.sleep(1 / given.each_second if given.each_second else 0)
    for thread in threads:
        thread.join()
    told = {
        "states": Counter(found.state for _, found in results),
        "reasons": Counter(found.why for _, found in results),
        "seconds": sorted(round(seconds, 3) for seconds, _ in results),
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
