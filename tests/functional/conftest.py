"""What the functional tests share: a fake node, its runtime, and a low-level runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import fake_node, fake_runtime
from tests.support.fake_node import Daemon, Node
from toolkit.reconcile import preflight


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Return a fake node, whose fake runtime speaks CRI where it is started by `fake_runtime`."""
    node = fake_node.make_node(tmp_path / "node")
    fake_runtime.say(node)
    return node


@pytest.fixture
def running(node: Node) -> Iterator[Daemon]:
    """Run the node's fake containerd, which does not speak CRI."""
    with fake_node.daemon(node.socket, home=node.root.parent / "d") as daemon:
        yield daemon


@pytest.fixture
def cri_runtime(node: Node) -> Iterator[Daemon]:
    """Run a fake containerd that speaks CRI, as `fake_runtime.say` lets it."""
    with fake_runtime.runtime(node) as daemon:
        yield daemon


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk; tests/faults show that what is written is durable."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def low_level_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a fake runc."""
    directory = tmp_path_factory.mktemp("low-level")
    fake_node.write_program(directory / "runc", "#!/bin/sh\n")
    return directory


@pytest.fixture(autouse=True)
def low_level(low_level_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program, run in this process, find a runc whether or not the machine has one.

    The fake nodes have the machine's own root, so the program searches the machine's directories.
    What a process of its own sees is up to `fake_node.name_low_level`, or to the PATH of a fake
    runtime that runs; tests of the search itself replace this path.
    """
    monkeypatch.setattr(preflight, "SEARCH_PATH", f"{low_level_directory}:{preflight.SEARCH_PATH}")
