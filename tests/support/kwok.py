"""kwok: nodes that are objects of the API only, for roll-outs over more than a machine can boot.

API server, controllers and scheduler are the real ones; kwok is the kubelet of every node. It
starts nothing and sends what a kubelet sends of a pod: states, Events, and the deletion.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support import binaries, real, versions
from tests.support.cluster import ControlPlane

BROKEN: Final = "broken"
"""A pod whose image has this tag is never ready on a node whose name begins with this word."""

_MODULE: Final = "sigs.k8s.io/kwok/cmd/kwok"
_AT_ONCE: Final = 500
"""Nodes in one call of kubectl, which has a time limit."""
_READY: Final = '.status.conditions.[]? | select(.type == "Ready") | .status'
_RUNNING: Final = ".status.containerStatuses.[0]?.state.running.startedAt"
_NEVER: Final = (
    f'(.spec.nodeName | startswith("{BROKEN}-")) and '
    f'(.spec.containers[0].image | endswith(":{BROKEN}")) | tostring'
)
_CONTAINERS: Final = """
containerStatuses:
{{ range .spec.containers }}
- {image: {{ .image | Quote }}, imageID: "", name: {{ .name | Quote }}, restartCount: 0, %s}
{{ end }}
"""
_CONDITIONS: Final = """
conditions:
- {type: Initialized, status: "True", lastTransitionTime: {{ Now | Quote }}}
- {type: ContainersReady, status: "%s", lastTransitionTime: {{ Now | Quote }}}
- {type: Ready, status: "%s", lastTransitionTime: {{ Now | Quote }}}
"""


@cache
def find() -> Path:
    """Return the kwok program, built on first use. Raises Unavailable."""
    found = binaries.built(_MODULE, versions.KWOK)
    real.USED.add(f"kwok {versions.KWOK}")
    return found


def simulate(plane: ControlPlane, count: int, *, broken: int = 0, slowness: float = 1.0) -> None:
    """Add nodes with a GPU to a cluster, `broken` of them with a name that begins with BROKEN.

    Heartbeats are left out: only what a roll-out causes is to be counted. What takes a second on a
    real node takes `slowness` seconds.
    """
    config = plane.home / "kwok.yaml"
    config.write_text(yaml.safe_dump_all(_stages(slowness)), encoding="utf-8")
    names = [f"{BROKEN if index < broken else 'node'}-{index:04}" for index in range(count)]
    for first in range(0, count, _AT_ONCE):
        items = [_node(name) for name in names[first : first + _AT_ONCE]]
        listed = {"apiVersion": "v1", "kind": "List", "items": items}
        plane.kubectl("create", "--validate=false", "--filename=-", text=json.dumps(listed))
    plane.run(
        "kwok",
        f"--kubeconfig={plane.kubeconfig}",
        f"--config={config}",
        "--manage-all-nodes",
        "--node-lease-duration-seconds=0",
        program=find(),
    )


def _node(name: str) -> dict[str, Any]:
    """Return a node as its kubelet registers it, ready."""
    room = {"cpu": "64", "memory": "512Gi", "pods": "110"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "nvidia.com/gpu.present": "true",
            },
        },
        "status": {
            "allocatable": room,
            "capacity": room,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }


def _stages(slowness: float) -> Iterator[dict[str, Any]]:
    """Yield what happens to a pod: accepted, started, ready, and stopped once it is deleted."""
    # Without a stage for nodes kwok serves the pods of none. These are ready, so it never matches.
    yield _stage(
        "registered", [(_READY, "DoesNotExist")], [_status("phase: Running")], (0, 0), kind="Node"
    )
    alive = (".metadata.deletionTimestamp", "DoesNotExist")
    waiting = 'ready: false, started: false, state: {waiting: {reason: "ContainerCreating"}}'
    running = "started: %s, ready: %s, state: {running: {startedAt: {{ Now | Quote }}}}"
    yield _stage(
        "accepted",
        [alive, (".status.podIP", "DoesNotExist")],
        [
            _status(
                "phase: Pending\nhostIP: 10.0.0.1\npodIP: 10.0.0.2\nstartTime: {{ Now | Quote }}"
                + _CONDITIONS % ("False", "False")
                + _CONTAINERS % waiting
            )
        ],
        _between(0.05, 0.2, slowness),
    )
    yield _stage(
        "started",
        [alive, (".status.podIP", "Exists"), (_RUNNING, "DoesNotExist")],
        [
            *(_event(reason) for reason in ("Pulled", "Created", "Started")),
            _status("phase: Running" + _CONTAINERS % (running % ("false", "false"))),
        ],
        _between(0.2, 0.6, slowness),
    )
    # The program takes about a second, and the probes look every 2 s.
    yield _stage(
        "ready",
        [alive, (_RUNNING, "Exists"), (_READY, "In", "False"), (_NEVER, "In", "false")],
        [
            _status(
                "phase: Running"
                + _CONDITIONS % ("True", "True")
                + _CONTAINERS % (running % ("true", "true"))
            )
        ],
        _between(1, 3, slowness),
    )
    ended = 'state: {terminated: {exitCode: 0, reason: "Completed"}}'
    stopped = f"ready: false, started: false, {ended}"
    yield _stage(
        "stopped",
        # Its own change of the status must not begin it again.
        [(".metadata.deletionTimestamp", "Exists"), (".status.phase", "NotIn", "Succeeded")],
        [_event("Killing"), _status("phase: Succeeded" + _CONTAINERS % stopped), {"delete": True}],
        _between(0.5, 1.5, slowness),
    )


def _between(least: float, most: float, slowness: float) -> tuple[int, int]:
    return round(least * slowness * 1000), round(most * slowness * 1000)


def _stage(
    name: str,
    when: Sequence[tuple[str, ...]],
    steps: Sequence[dict[str, Any]],
    milliseconds: tuple[int, int],
    *,
    kind: str = "Pod",
) -> dict[str, Any]:
    """Return a stage; `when` has a jq expression each, an operator and the values for it."""
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {
                "matchExpressions": [
                    {
                        "jq": {
                            "key": key,
                            "operator": operator,
                            **({"values": values} if values else {}),
                        }
                    }
                    for key, operator, *values in when
                ]
            },
            "delay": {
                "durationMilliseconds": milliseconds[0],
                "jitterDurationMilliseconds": milliseconds[1],
            },
            "steps": [*steps],
        },
    }


def _event(reason: str) -> dict[str, Any]:
    return {"event": {"type": "Normal", "reason": reason, "message": f"{reason} the container"}}


def _status(template: str) -> dict[str, Any]:
    return {
        "patch": {
            "subresource": "status",
            "root": "status",
            "type": "strategic",
            "template": template,
        }
    }
