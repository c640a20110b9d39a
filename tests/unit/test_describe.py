"""What a plan says in its last line, by how the runtime would hear of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runtimes import registry
from runtimes.model import FileChange, RuntimeName
from tests.support import fake_node
from toolkit.deadline import Cancellation
from toolkit.node.host import Host
from toolkit.node.processes import RuntimeProcess
from toolkit.reconcile import describe
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan, make_plan
from toolkit.runtime.restart import RestartMethod
from toolkit.settings.options import RestartMode

UNIT = RestartMethod(mode=RestartMode.SYSTEMD, unit="containerd.service", replaces=True)
SIGNAL = RestartMethod(mode=RestartMode.SIGNAL, unit=None, replaces=True)


@pytest.fixture
def found(tmp_path: Path) -> Plan:
    node = fake_node.make_node(tmp_path / "node")
    adapter = registry.ADAPTERS[RuntimeName.CONTAINERD]
    seen = make_plan(Context(settings=node.settings(), adapter=adapter, stop=Cancellation()))
    return replace(seen, version=None)


def owned(found: Plan, restart_method: RestartMethod, unit: str | None) -> Plan:
    owner = RuntimeProcess(
        pid=7, start_ticks=1, executable="/usr/bin/containerd", argv=("containerd",), unit=unit
    )
    return replace(
        found, restart_method=restart_method, target=replace(found.target, process=owner)
    )


@pytest.mark.parametrize("end", ["", "\n"], ids=["no newline at the end", "a newline"])
def test_in_a_diff_only_a_newline_ends_a_line(end: str) -> None:
    before = f"# a\u2028b\x85c\rd\r\nx = 1\n# z\u2029{end}"
    after = before.replace("x = 1", "x = 2")
    change = FileChange(path="/f", before=before.encode(), after=after.encode(), edits=())
    lines = describe.diff(Host(root=Path("/")), change).split("\n")[3:-1]
    kept = [line for line in lines if not line.startswith("\\")]
    for text, sign in ((before, "-"), (after, "+")):
        shown = [line[1:] for line in kept if line[0] in f" {sign}"]
        assert "\n".join(shown) == text.removesuffix("\n")
    assert (lines[-1] == "\\ No newline at end of file") is not bool(end)


@pytest.mark.parametrize(
    ("restart_method", "unit", "seconds", "words"),
    [
        (
            UNIT,
            "containerd.service",
            0.111,
            "containerd.service to restart (unavailable for about 0.1 s)",
        ),
        (SIGNAL, "containerd.service", 5.2, "SIGHUP to PID 7 (unavailable for about 5 s)"),
        (SIGNAL, None, None, "SIGHUP to PID 7"),
        (replace(UNIT, unit="k3s.service"), "k3s.service", None, "k3s.service to restart"),
        (
            replace(UNIT, obstacle="no systemd"),
            "containerd.service",
            None,
            "but the runtime cannot be restarted",
        ),
    ],
    ids=["restarted", "signalled", "without a unit", "a unit that was not measured", "not at all"],
)
def test_the_summary_says_what_happens_to_the_runtime(
    found: Plan, restart_method: RestartMethod, unit: str | None, seconds: float | None, words: str
) -> None:
    shown = owned(found, restart_method, unit)
    assert describe.unavailable_seconds(shown) == seconds
    assert describe.summary(shown) == f"1 file to change, {words}"


def test_a_dead_runtime_is_started_again(found: Plan) -> None:
    assert (
        describe.summary(replace(found, restart_method=UNIT))
        == "1 file to change, containerd.service to start"
    )
