"""The chart on many nodes: real API server, controllers and scheduler, and kwok's nodes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.support import api_requests, cluster, helm, kwok, lookups, nodes
from tests.support.api_requests import AuditLog
from tests.support.cluster import ControlPlane
from toolkit.kube.daemonset import DaemonSetState

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

IN: Final = f"--namespace={helm.NAMESPACE}"
NODES: Final = 50
BROKEN: Final = 25
MOST: Final = 5
"""maxUnavailable: fewer than are broken, so that the roll-out must stop."""
SLOWNESS: Final = 0.2
REQUESTS: Final = {"install": 30, "upgrade": 40, "uninstall": 15}
"""The most requests of all clients together, for each node."""
LOOKUPS: Final = 40


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    kwok.find()
    home = tmp_path_factory.mktemp("plane")
    with cluster.alone(home, *api_requests.audit_options(home)) as made:
        kwok.simulate(made, NODES, broken=BROKEN, slowness=SLOWNESS)
        yield made


def upgrade(plane: ControlPlane, version: str, *, most: str = "50%") -> None:
    """Install or upgrade to an image; `most` nodes may be not ready at a time."""
    plane.helm(
        "upgrade", "--install", helm.RELEASE, str(helm.CHART), IN, "--create-namespace",
        *helm.DOCUMENTED, "--set", "daemonsets.minReadySeconds=0",
        "--set", f"daemonsets.rollingUpdate.maxUnavailable={most}",
        "--set-string", f"toolkit.version={version}",
    )  # fmt: skip


def roll_out(plane: ControlPlane) -> None:
    # The controller may not have heard of every node yet: `rollout status` asks only for those
    # that it knows, and ends early.
    plane.until(
        lambda: status(plane).get("desiredNumberScheduled") == NODES, "the controller knows not all"
    )
    plane.kubectl("rollout", "status", IN, f"daemonset/{helm.RELEASE}", "--timeout=90s")


def status(plane: ControlPlane) -> dict[str, Any]:
    found = plane.get("daemonset", helm.RELEASE, IN)
    is_current = found["status"].get("observedGeneration") == found["metadata"]["generation"]
    return dict(found["status"]) if is_current else {}


def pods(plane: ControlPlane) -> Counter[tuple[str, str]]:
    """Return how many pods there are, by the tag of their image, and `ready` or the node's kind."""
    found: Counter[tuple[str, str]] = Counter()
    for pod in plane.get("pods", IN)["items"]:
        tag = pod["spec"]["containers"][0]["image"].rpartition(":")[2]
        containers = pod["status"].get("containerStatuses", [])
        is_ready = any(each["ready"] for each in containers)
        kind = pod["spec"].get("nodeName", "none").partition("-")[0]
        found[tag, "ready" if is_ready else kind] += 1
    return found


def check_requests(log: AuditLog, phase: str) -> None:
    """Require that a phase sent no more requests than its bound, without those of this test."""
    sent = Counter(each.client for each in log.new() if each.client != "kubectl")
    each_node = sent.total() / NODES
    assert 1 < each_node <= REQUESTS[phase], (each_node, sent)


def test_few_requests_for_each_node_and_a_stop_where_as_many_as_may_be_are_not_ready(
    plane: ControlPlane,
) -> None:
    log = AuditLog(plane.home)
    log.new()
    upgrade(plane, "1")
    roll_out(plane)
    assert pods(plane) == {("1", "ready"): NODES}
    check_requests(log, "install")
    upgrade(plane, "2")
    roll_out(plane)
    assert pods(plane) == {("2", "ready"): NODES}
    check_requests(log, "upgrade")

    upgrade(plane, kwok.BROKEN, most=str(MOST))
    failed = (kwok.BROKEN, kwok.BROKEN)
    plane.until(lambda: pods(plane)[failed] == MOST, "the roll-out does not stop")
    stopped = pods(plane)
    with pytest.raises(nodes.NodeError, match=r"new pods have been updated"):
        plane.kubectl("rollout", "status", IN, f"daemonset/{helm.RELEASE}", "--timeout=4s")
    assert pods(plane) == stopped
    # Every other node has a ready pod, of either version.
    assert set(stopped) <= {failed, (kwok.BROKEN, "ready"), ("2", "ready")}
    assert stopped["2", "ready"] >= BROKEN - MOST
    told = status(plane)
    assert (told["numberUnavailable"], told["numberAvailable"]) == (MOST, NODES - MOST)
    plane.helm("rollback", helm.RELEASE, IN)
    roll_out(plane)
    assert pods(plane) == {("2", "ready"): NODES}
    log.new()

    plane.helm("uninstall", helm.RELEASE, IN)
    plane.until(lambda: not pods(plane), "the pods are not gone")
    check_requests(log, "uninstall")


def test_pods_that_stop_ask_once_and_in_an_outage_at_most_four_times(plane: ControlPlane) -> None:
    upgrade(plane, "1")
    account = lookups.account(plane, plane.home)
    plane.helm("uninstall", helm.RELEASE, IN)
    log = AuditLog(plane.home)
    log.new()
    told = lookups.answers(lookups.begin(plane, account, LOOKUPS))
    assert told.states == {DaemonSetState.DELETED: LOOKUPS}, told.reasons
    asked = [each for each in log.new() if each.client == api_requests.PROGRAM]
    assert [(each.verb, each.resource) for each in asked] == [("get", "daemonsets")] * LOOKUPS

    plane.end("kube-apiserver")
    told = lookups.answers(lookups.begin(plane, account, LOOKUPS))
    assert told.states == {DaemonSetState.UNKNOWN: LOOKUPS}
    refused = re.compile(r"Connection refused \([34] attempts\)$")
    assert all(refused.search(why) for why in told.reasons), told.reasons
    # They do not come back at the same moment.
    assert told.seconds[-1] - told.seconds[0] > 0.5
    plane.begin_again("kube-apiserver")
    plane.until(plane.is_serving, "the API server")
    told = lookups.answers(lookups.begin(plane, account, LOOKUPS))
    assert told.states == {DaemonSetState.DELETED: LOOKUPS}, told.reasons
