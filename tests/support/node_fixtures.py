"""Fixtures that boot real nodes, or skip with the reason why this machine cannot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import boot, containers, nodes
from tests.support.availability import Unavailable
from tests.support.nodes import Node


@pytest.fixture(scope="session")
def node_machine() -> None:
    """Skip where no node can be booted."""
    if reason := nodes.why_not():
        raise Unavailable(reason)


@pytest.fixture(params=nodes.SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """Name each suite in turn; a test that wants some of them parametrizes `suite` itself."""
    return str(request.param)


@pytest.fixture
def node(node_machine: None, suite: str) -> Iterator[Node]:
    """Boot a fresh node with containerd; it may be spoilt."""
    with boot.booted(suite) as made:
        yield made


@pytest.fixture
def pod_node(node: Node) -> Node:
    """Give a fresh node what pods are made of, or skip where no container can run."""
    if reason := containers.why_no_containers(node):
        raise Unavailable(reason)
    containers.prepare_images(node)
    return node
