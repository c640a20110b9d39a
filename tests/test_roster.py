"""What `detect` prints: its JSON has the documented keys, its text has what a person asks for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import workshop
from tests.test_output import TEXT, keys
from toolkit import choice, kubelet, roster, sockets
from toolkit.kubelet import Word
from toolkit.settings import resolve

WORD = Word(pid=42, program="kubelet", endpoint="/run/c.sock", by="--container-runtime-endpoint")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[workshop.Node]:
    made = workshop.make_node(tmp_path / "node")
    monkeypatch.setattr(kubelet, "words", lambda: (WORD,))
    monkeypatch.setattr(sockets, "root", lambda _host, _found: ("/", False))
    with workshop.daemon(made.socket, home=tmp_path):
        yield made


def seen(node: workshop.Node, **more: str) -> dict[str, Any]:
    options = {"host_root": str(node.root), "toolkit_install_dir": str(node.install_dir), **more}
    return roster.roster(choice.ask(resolve(options, {}), options, {}))


def documented() -> set[str]:
    """Return the keys of the table of `detect`."""
    section = TEXT[TEXT.index("## `detect`") :]
    rows = [line.split("|")[1] for line in section.split("\n\n## ")[0].splitlines() if line.startswith("| `")]
    return {name.strip(" `") for row in rows for name in row.split(",")}


def test_every_key_has_its_row_and_every_row_its_key(node: workshop.Node) -> None:
    found = seen(node, socket=str(node.socket))
    assert {key.removesuffix("[]") for key in keys(json.loads(json.dumps(found)))} == documented()


def test_who_answers_and_who_uses_it(node: workshop.Node) -> None:
    found = seen(node, socket=str(node.socket))
    assert found["kubelets"] == [
        {"pid": 42, "program": "kubelet", "socket": "/run/c.sock", "by": WORD.by, "runtime": "containerd"}
    ]
    (each,) = found["runtimes"]
    assert (each["runtime"], each["distribution"], each["socket"]) == (
        "containerd",
        "containerd",
        "/run/c.sock",
    )
    assert (each["used_by"], each["is_candidate"], each["refusal"]) == ([42], True, "")
    assert each["started_by"] == {"pid": os.getpid(), "name": each["started_by"]["name"]}
    assert each["root"] == {"path": "/", "is_the_node_s": True}
    chosen = found["choice"]
    assert (chosen["runtime"], chosen["socket"], chosen["problems"]) == ("containerd", str(node.socket), [])


def test_the_text_says_it_to_people(node: workshop.Node) -> None:
    lines = roster.text(seen(node)).splitlines()
    assert "kubelet (PID 42) uses containerd on /run/c.sock, by --container-runtime-endpoint" in lines
    assert f"chosen: containerd on {node.socket}, config /etc/containerd/config.toml" in lines[-2]
    assert lines[-1].startswith("  since the kubelet (PID 42) uses containerd on /run/c.sock")


def test_nothing_to_choose_ends_with_2_and_says_why(tmp_path: Path) -> None:
    done = workshop.cli("detect", "-o", "json", f"--host-root={tmp_path}", f"--socket={tmp_path}/none")
    assert done.returncode == 2, done.stderr
    chosen = json.loads(done.stdout)["choice"]
    assert chosen["runtime"] is None
    assert chosen["problems"] == [f"--socket={tmp_path}/none: no container runtime answers there"]
    told = workshop.cli("detect", f"--host-root={tmp_path}", f"--socket={tmp_path}/none").stdout
    assert "chosen: none\n" in told
    assert "  -> say which one it is with --runtime" in told
