"""What a plan says in its last line, by how the runtime would hear of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runtimes import registry
from runtimes.model import RuntimeName
from tests import workshop
from toolkit import report
from toolkit.options import RestartMode
from toolkit.owner import Owner
from toolkit.reload import Way
from toolkit.stop import Stop
from toolkit.view import Task, View, view

UNIT = Way(mode=RestartMode.SYSTEMD, unit="containerd.service", replaces=True)
SIGNAL = Way(mode=RestartMode.SIGNAL, unit=None, replaces=True)


@pytest.fixture
def found(tmp_path: Path) -> View:
    node = workshop.make_node(tmp_path / "node")
    adapter = registry.ADAPTERS[RuntimeName.CONTAINERD]
    seen = view(Task(settings=node.settings(), adapter=adapter, stop=Stop()))
    return replace(seen, version=None)


def owned(found: View, way: Way, unit: str | None) -> View:
    owner = Owner(pid=7, started=1, executable="/usr/bin/containerd", argv=("containerd",), unit=unit)
    return replace(found, way=way, place=replace(found.place, owner=owner))


@pytest.mark.parametrize(
    ("way", "unit", "seconds", "words"),
    [
        (UNIT, "containerd.service", 0.111, "containerd.service to restart (silent for about 0.1 s)"),
        (SIGNAL, "containerd.service", 5.2, "SIGHUP to PID 7 (silent for about 5 s)"),
        (SIGNAL, None, None, "SIGHUP to PID 7"),
        (replace(UNIT, unit="k3s.service"), "k3s.service", None, "k3s.service to restart"),
        (replace(UNIT, obstacle="no systemd"), "containerd.service", None, "but the runtime cannot be told"),
    ],
    ids=["restarted", "signalled", "without a unit", "a unit that was not measured", "not at all"],
)
def test_the_summary_says_what_happens_to_the_runtime(
    found: View, way: Way, unit: str | None, seconds: float | None, words: str
) -> None:
    shown = owned(found, way, unit)
    assert report.silent(shown) == seconds
    assert report.summary(shown) == f"1 file to change, {words}"


def test_a_dead_runtime_is_started_again(found: View) -> None:
    assert report.summary(replace(found, way=UNIT)) == "1 file to change, containerd.service to start again"
