"""A fake containerd that speaks CRI on a node's socket, and how it behaves: see fake_daemon.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import fake_daemon, fake_node
from tests.support.fake_node import Daemon, Node


def behaviour(node: Node) -> Path:
    """Return the file that the fake runtime reads its behaviour from."""
    return node.root.parent / "cri.json"


@contextmanager
def runtime(node: Node, **more: Any) -> Iterator[Daemon]:
    """Run a containerd that ends at SIGHUP, is restarted, and speaks CRI; its PATH has a runc."""
    home = node.root.parent / "d"
    with fake_node.daemon(node.socket, home=home, cri=str(behaviour(node)), **more) as daemon:
        yield daemon


def say(
    node: Node, sick_if: str | None = None, sick: dict[str, Any] | None = None, **well: Any
) -> None:
    """Set the behaviour: `well`, or `sick` if the configuration held `sick_if` at the start."""
    content = {"config": str(node.config), "well": well, "sick": sick or {}, "sick_if": sick_if}
    new = behaviour(node).with_suffix(".new")
    new.write_text(json.dumps(content), encoding="utf-8")
    new.rename(behaviour(node))


def pods(node: Node) -> list[str]:
    """Return the handlers of the pods that are there."""
    return [pod["handler"] for pod in _pods(node)["pods"].values()]


def started_pods(node: Node) -> list[str]:
    """Return the handlers of all pods that were ever to start, in order."""
    return list(_pods(node)["run"])


def add_pod(node: Node, name: str, handler: str) -> None:
    """Let a pod be there, of the namespace `default`."""
    pod = {"name": name, "namespace": "default", "label": "", "value": "", "handler": handler}
    _write_pods(node, {**_pods(node)["pods"], name: pod})


def remove_pod(node: Node, name: str) -> None:
    """Let a pod that was added be there no more."""
    _write_pods(node, {key: pod for key, pod in _pods(node)["pods"].items() if key != name})


def _write_pods(node: Node, pods: dict[str, Any]) -> None:
    path = node.root.parent / "d" / fake_daemon.PODS
    content = {"calls": [], **_pods(node), "pods": pods}
    path.with_suffix(".test").write_text(json.dumps(content), encoding="utf-8")
    path.with_suffix(".test").rename(path)


def calls(node: Node) -> int:
    """Return how many calls about pods there were."""
    return len(_pods(node).get("calls", ()))


def _pods(node: Node) -> dict[str, Any]:
    path = node.root.parent / "d" / fake_daemon.PODS
    content: dict[str, Any] = (
        json.loads(path.read_bytes()) if path.exists() else {"run": [], "pods": {}}
    )
    return content
