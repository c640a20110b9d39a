"""Draw docs/dashboard.png: the chart's dashboard on metrics of real agents, in a real browser.

`python -m benchmarks.dashboard PROMETHEUS` starts agents of this program, each beside a stand-in of
containerd, lets a real Prometheus read them while they repair, fail and lose a driver, and takes a
screenshot of benchmarks/dashboard.html, which draws the panels of the dashboard's JSON with their
own queries. It is not Grafana. It needs root (mount namespaces) and Chromium; PROMETHEUS is the
program, for example built from its Go module.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from tests.support import fake_node, fake_runtime, helm, pods
from tests.support.fake_node import KUBEADM, Node

PICTURE: Final = helm.ROOT / "docs/dashboard.png"
_PAGE: Final = Path(__file__).with_suffix(".html")
_DASHBOARD: Final = helm.CHART / "files/dashboard.json"
_NODES: Final = 6
_SIZE: Final = (1400, 1080)
_MODULE: Final = 'mount -t tmpfs fake /sys/module\nln -s "$1" /sys/module/nvidia\nshift'
_VARIABLES: Final = {"$namespace": ".*", "$node": ".*", "$__rate_interval": "10s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """An agent with its node, its port, and a directory that exists while its driver is loaded."""

    node: Node
    port: int
    module: Path


@contextlib.contextmanager
def _agents(home: Path) -> Iterator[list[Agent]]:
    """Run agents, each with a stand-in of containerd."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(_NODES):
            node = fake_node.make_node(home / f"node-{number}" / "root")
            fake_runtime.say(node)
            stack.enter_context(fake_runtime.runtime(node))
            module = home / f"module-{number}"
            module.mkdir()
            port = _port()
            options = node.options(metrics_address=f"127.0.0.1:{port}", check_interval="10")
            prefix = fake_node.in_mounts(_MODULE, str(module))
            stack.enter_context(pods.staying(options, prefix=prefix))
            made.append(Agent(node=node, port=port, module=module))
        yield made


@contextlib.contextmanager
def _prometheus(program: Path, home: Path, agents: list[Agent]) -> Iterator[str]:
    """Run Prometheus, which reads the agents once a second; return its address."""
    targets = [
        {
            "targets": [f"127.0.0.1:{agent.port}"],
            "labels": {
                "namespace": helm.NAMESPACE,
                "pod": f"{helm.RELEASE}-{number:05}",
                "node": f"gpu-node-{number}",
            },
        }
        for number, agent in enumerate(agents)
    ]
    jobs = [{"job_name": "nodes", "scrape_interval": "1s", "static_configs": targets}]
    config = home / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": jobs}), encoding="utf-8")
    port = _port()
    argv = (
        str(program),
        f"--config.file={config}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (home / "prometheus.log").open("wb") as log, subprocess.Popen(argv, stderr=log) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _happenings(agents: list[Agent]) -> list[tuple[float, Callable[[], object]]]:
    """Return what happens to the nodes, each with its second."""
    first, second, third, fourth = (agent.node for agent in agents[:4])

    def drift(node: Node) -> Callable[[], object]:
        return lambda: node.config.write_bytes(KUBEADM)

    def breaks(node: Node) -> Callable[[], object]:
        return lambda: node.config.write_bytes(b"[broken\n")

    return [
        (15, drift(first)),
        (25, drift(second)),
        (40, breaks(third)),
        (55, agents[4].module.rmdir),
        (65, drift(third)),
        (80, drift(first)),
        (95, breaks(fourth)),
    ]


def _screenshot(browser: str, page: Path, home: Path, picture: Path) -> None:
    width, height = _SIZE
    subprocess.run(
        (
            browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
            f"--user-data-dir={home / 'browser'}",
            f"--window-size={width},{height}", "--virtual-time-budget=20000",
            f"--screenshot={picture}", page.as_uri(),
        ),
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip


def main() -> None:
    """Run the agents for two minutes, and write the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard")
    parser.add_argument("prometheus", type=Path, help="the Prometheus program")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    asked = parser.parse_args()
    browser = shutil.which("chromium")
    if browser is None:
        parser.error("Chromium is not on PATH: install Debian's chromium")
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        agents = stack.enter_context(_agents(home))
        address = stack.enter_context(_prometheus(asked.prometheus.resolve(), home, agents))
        start = time.time() + 3
        for second, happens in _happenings(agents):
            time.sleep(max(start + second - time.time(), 0))
            happens()
        time.sleep(max(start + 120 - time.time(), 0))
        given = {
            "prometheus": address,
            "dashboard": json.loads(_DASHBOARD.read_text(encoding="utf-8")),
            "variables": _VARIABLES,
            "start": start,
            "end": start + 120,
        }
        page = home / "page.html"
        text = _PAGE.read_text(encoding="utf-8").replace("/*INPUT*/null", json.dumps(given))
        page.write_text(text, encoding="utf-8")
        _screenshot(browser, page, home, asked.picture.resolve())


if __name__ == "__main__":
    main()
