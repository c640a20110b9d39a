"""What a real containerd said of itself is remembered from run to run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from runtimes.containerd import ADAPTER as containerd
from runtimes.model import BinaryQuery
from tests.support import binaries, fake_node
from toolkit.deadline import Cancellation
from toolkit.node import command
from toolkit.reconcile import transaction, uninstall
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import make_plan
from toolkit.runtime import locate

LASTING = BinaryQuery(name="default", argv=("config", "default"), is_lasting=True)


@pytest.fixture
def judge() -> str:
    """Return a real containerd that runs in this root."""
    return binaries.find("2.2").path


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    asked: Counter[str] = Counter()
    run = command.run

    def noted(argv: Any, **more: Any) -> command.Result:
        asked[" ".join(word for word in argv[1:] if not word.startswith("/"))] += 1
        return run(argv, **more)

    monkeypatch.setattr(command, "run", noted)
    return asked


@pytest.mark.binary
def test_a_later_run_asks_only_about_the_configuration(
    tmp_path: Path, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = fake_node.make_node(tmp_path / "node")
    settings = node.settings(executable_path=judge, config_source="command", restart_mode="none")
    asked = counted(monkeypatch)
    transaction.converge(settings, containerd)
    assert asked["config default"] == 1
    asked.clear()
    first = make_plan(Context(settings=settings, adapter=containerd, stop=Cancellation()))
    assert asked == {"--config config dump": 1}
    notes = node.pid_file.with_name("answers.json")
    assert notes.exists()
    notes.unlink()
    assert (
        make_plan(Context(settings=settings, adapter=containerd, stop=Cancellation())).observation
        == first.observation
    )
    assert not notes.exists(), "to look writes nothing"
    transaction.converge(settings, containerd)
    assert notes.exists()
    uninstall.revert(settings, containerd)
    assert not notes.exists()
    assert locate.target(settings, containerd).answers.get(LASTING) is None


@pytest.mark.binary
def test_a_password_in_the_configuration_lies_in_no_file_that_others_can_read(
    tmp_path: Path, judge: str
) -> None:
    node = fake_node.make_node(tmp_path / "node")
    headers = '[plugins."io.containerd.grpc.v1.cri".registry.headers]\nX-Team = ["Zq7canary7qZ"]\n'
    node.config.write_text(node.config.read_text(encoding="utf-8") + headers, encoding="utf-8")
    settings = node.settings(executable_path=judge, config_source="command", restart_mode="none")
    transaction.converge(settings, containerd)
    written = [
        path
        for path in node.root.rglob("*")
        if path.is_file() and path != node.config and b"Zq7canary7qZ" in path.read_bytes()
    ]
    # containerd's dump of the whole configuration, and the original of the file.
    assert node.pid_file.with_name("answers.json") in written
    assert len(written) > 1
    assert {path.stat().st_mode & 0o777 for path in written} == {0o600}
    for options in ([], ["-o", "json"]):
        for name in ("plan", "status", "diagnose"):
            done = fake_node.cli(name, *options, *node.options(executable_path=judge))
            assert "Zq7canary7qZ" not in done.stdout + done.stderr
