"""The reports of a real agent with a service account, and an API server that answers or not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import fake_node, pods
from tests.support.fake_node import KUBEADM, Daemon, Node
from tests.support.kubernetes import Api, Certificates, Speech, serving
from tests.support.pods import Pod

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="a service account is mounted in a mount namespace of its own, which needs root",
)

LABEL: Final = "nvidia-toolkit.io/ready"
PATCH: Final = "PATCH /api/v1/nodes/node-1/status"
_MOUNT: Final = (
    "mount -t tmpfs tmpfs /run && mkdir -p /run/secrets/kubernetes.io &&"
    ' cp -r "$1" /run/secrets/kubernetes.io/serviceaccount && shift && exec "$@"'
)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = fake_node.make_node(tmp_path / "node")
    (tmp_path / "cri.json").write_text(json.dumps({"config": str(node.config)}), encoding="utf-8")
    return node


@pytest.fixture(autouse=True)
def running(node: Node, tmp_path: Path) -> Iterator[Daemon]:
    with fake_node.daemon(
        node.socket, home=tmp_path / "d", cri=str(tmp_path / "cri.json")
    ) as daemon:
        yield daemon


class Answers(dict[str, tuple[int, object]]):
    """The answers of an API server that takes everything, and shows the label that was sent."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}

    def __missing__(self, target: str) -> tuple[int, object]:
        named = {"metadata": {"name": "node-1", "labels": self.labels}}
        return (201 if target.startswith("POST") else 200), named


class Cluster(Api):
    """An API server with one Node."""

    def __init__(self) -> None:
        super().__init__(Answers())

    def labelled(self) -> list[str | None]:
        """Return the values that the label was set to."""
        return [body["metadata"]["labels"][LABEL] for target, body in self.sent if target == PATCH]

    def reasons(self) -> list[str]:
        return [body["reason"] for target, body in self.sent if target.startswith("POST")]


@contextmanager
def agent(
    node: Node, account: Path, certificates: Certificates, speech: Speech, **options: str
) -> Iterator[Pod]:
    """Run the agent of a pod with an API server."""
    given = {"node_label": LABEL, "log_format": "json", **options}
    argv = ["run", *node.options(**given), "--events"]
    prefix = ("unshare", "--mount", "sh", "-eu", "-c", _MOUNT, "sh", str(account))
    with (
        serving(speech, certificates.good) as port,
        pods.staying(
            argv,
            prefix=prefix,
            NODE_NAME="node-1",
            KUBERNETES_SERVICE_HOST="127.0.0.1",
            KUBERNETES_SERVICE_PORT=str(port),
        ) as pod,
    ):
        yield pod


def test_an_agent_reports_readiness_and_repairs_and_withdraws_the_label_first(
    node: Node, account: Path, certificates: Certificates
) -> None:
    api = Cluster()
    answers: Any = api.answers
    answers.labels[LABEL] = "true"
    with agent(node, account, certificates, api, on_exit="revert") as pod:
        pod.until(lambda: api.labelled() == ["true"], "the label is not set")
        pod.until(lambda: api.reasons() == ["SetUp"], "no Event is sent")
        node.config.write_bytes(KUBEADM)
        pod.until(lambda: "DriftRepaired" in api.reasons(), "no Event is sent")
        assert api.labelled() == ["true"]  # a repair takes a moment
        del answers.labels[LABEL]
        assert pod.end() == 0
        assert api.labelled() == ["true", None]
    assert not node.toolkit.exists()
    assert all("not reported" not in line and "still" not in line for line in pod.messages())


def test_an_api_server_that_never_answers_delays_nothing(
    node: Node, account: Path, certificates: Certificates
) -> None:
    asked = threading.Event()

    def stalling(client: socket.socket) -> None:
        while client.recv(65536):
            asked.set()

    with agent(node, account, certificates, stalling) as pod:
        pod.until(asked.is_set, "nothing is sent")
        assert pod.state()["ready"]
        node.config.write_bytes(KUBEADM)
        pod.until(lambda: node.config.read_bytes() != KUBEADM, "the node is not repaired")
        pod.until(lambda: pod.state()["counts"]["repairs"] == 1, "the sync does not end")
        assert pod.end() == 0  # whether the report runs or not
    assert node.toolkit.exists()


def test_a_server_that_refuses_is_named_once(
    node: Node, account: Path, certificates: Certificates
) -> None:
    class Refusing(dict[str, tuple[int, object]]):
        def __missing__(self, target: str) -> tuple[int, object]:
            return 403, {}

    api = Api(Refusing())
    with agent(node, account, certificates, api) as pod:
        said = pod.says("the node's state is not reported, it is tried again: ")
        assert f"answers {PATCH} with 403 Forbidden" in said
        assert pod.state()["ready"]
        assert pod.end() == 0
