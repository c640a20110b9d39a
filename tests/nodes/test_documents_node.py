"""The commands that the documents have for a node, run on a booted one with a real containerd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import artifacts, boot, containers, documents, nodes, real
from tests.support.documents import ROOT, Block
from tests.support.nodes import Node

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

BLOCKS = documents.of_kind("sh node")
READERS = list(dict.fromkeys(block.document for block in BLOCKS))
MOUNTS = {**containers.DEFAULT_MOUNTS, "/artifacts": "/artifacts"}
OPTIONS = "--runtime=containerd"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with boot.booted("trixie") as booted:
        artifacts.make(nodes.path(booted, "/artifacts/deb"))
        real.USED.add("containerd, for the commands in the documents, on a booted trixie node")
        yield booted


@pytest.fixture(autouse=True)
def _as_it_was(node: Node) -> Iterator[None]:
    """Give each document a node as it was before it, and all of the restart budget."""
    config = nodes.path(node, "/etc/containerd/config.toml")
    before = config.read_bytes() if config.exists() else None
    yield
    nodes.run(node, ["rm", "-f", "/run/nvidia/toolkit/restarts.json"])
    nodes.run(node, ["systemctl", "reset-failed", "containerd"])
    in_container(node, f"nvidia-toolkit revert {OPTIONS}")
    nodes.run(node, ["rm", "-f", "/run/nvidia/toolkit/restarts.json"])
    assert (config.read_bytes() if config.exists() else None) == before


@pytest.mark.parametrize("document", READERS, ids=lambda path: path.name)
def test_a_document_s_commands_work_from_top_to_bottom(document: Path, node: Node) -> None:
    for block in BLOCKS:
        if block.document == document:
            run(node, block)


def test_the_last_line_of_the_plan_is_the_documented_one(node: Node) -> None:
    [shown] = [
        block.text.strip()
        for block in documents.blocks(ROOT / "README.md")
        if block.kind == "text" and "unavailable for" in block.text
    ]
    planned = in_container(
        node, f"nvidia-toolkit plan {OPTIONS} --toolkit-source-root=/artifacts/deb"
    )
    assert planned.splitlines()[-1] == shown


def run(node: Node, block: Block) -> None:
    """Run a block's commands: ours as the DaemonSet's container, the others on the node."""
    for command in block.commands:
        if command.startswith("nvidia-toolkit "):
            in_container(node, command)
        else:
            nodes.run(node, ["bash", "-eu", "-o", "pipefail", "-c", command])


def in_container(node: Node, command: str) -> str:
    # What a command writes beside itself goes with the container.
    shell = ["bash", "-eu", "-o", "pipefail", "-c", f"cd /\n{command}"]
    done = containers.daemonset(node, shell, mounts=MOUNTS)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout
