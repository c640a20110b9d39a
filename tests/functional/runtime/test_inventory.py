"""What `detect` prints: its JSON has the documented keys, its text has what a person asks for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import documents, fake_node
from toolkit.cli import output
from toolkit.discovery import endpoints, inventory, selection
from toolkit.kube import kubelet
from toolkit.kube.kubelet import Ignored, KubeletConfig
from toolkit.settings.resolve import resolve

WORD = KubeletConfig(
    pid=42, program="kubelet", endpoint="/run/c.sock", by="--container-runtime-endpoint"
)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_node.Node]:
    made = fake_node.make_node(tmp_path / "node")
    monkeypatch.setattr(kubelet, "configs", lambda _root=None: (WORD,))
    monkeypatch.setattr(endpoints, "root", lambda _host, _found: ("/", False))
    distrusted = Ignored(pid=43, program="kubelet", problem="runs as user ID 65534")
    monkeypatch.setattr(kubelet, "ignored", lambda _root=None: (distrusted,))
    with fake_node.daemon(made.socket, home=tmp_path):
        yield made


def seen(node: fake_node.Node, **more: str) -> dict[str, Any]:
    options = {"host_root": str(node.root), "toolkit_install_dir": str(node.install_dir), **more}
    return inventory.collect(selection.inputs_of(resolve(options, {}), options, {}))


def documented() -> set[str]:
    """Return the keys of the table of `detect`."""
    text = documents.OUTPUT.read_text(encoding="utf-8")
    section = text[text.index("## `detect`") :]
    rows = [
        line.split("|")[1]
        for line in section.split("\n\n## ")[0].splitlines()
        if line.startswith("| `")
    ]
    return {name.strip(" `") for row in rows for name in row.split(",")}


def test_every_key_has_its_row_and_every_row_its_key(node: fake_node.Node) -> None:
    found = seen(node, socket=str(node.socket))
    printed = documents.keys(json.loads(json.dumps(found)))
    assert {key.removesuffix("[]") for key in printed} == documented()


def test_who_answers_and_who_uses_it(node: fake_node.Node) -> None:
    found = seen(node, socket=str(node.socket))
    assert found["kubelets"] == [
        {
            "pid": 42,
            "program": "kubelet",
            "socket": "/run/c.sock",
            "by": WORD.by,
            "runtime": "containerd",
        }
    ]
    (each,) = found["runtimes"]
    assert (each["runtime"], each["distribution"], each["socket"]) == (
        "containerd",
        "containerd",
        "/run/c.sock",
    )
    assert (each["used_by"], each["is_candidate"], each["refusal"]) == ([42], True, "")
    assert each["started_by"] == {"pid": os.getpid(), "name": each["started_by"]["name"]}
    assert each["root"] == {"path": "/", "is_host": True}
    chosen = found["choice"]
    assert (chosen["runtime"], chosen["socket"], chosen["problems"]) == (
        "containerd",
        str(node.socket),
        [],
    )


def test_the_text_says_it_to_people(node: fake_node.Node) -> None:
    lines = output.text(seen(node)).splitlines()
    assert (
        "kubelet (PID 42) uses containerd on /run/c.sock, by --container-runtime-endpoint" in lines
    )
    assert "kubelet (PID 43) is ignored: it runs as user ID 65534" in lines
    assert f"chosen: containerd on {node.socket}, config /etc/containerd/config.toml" in lines[-2]
    assert lines[-1].startswith("  reason: the kubelet (PID 42) uses containerd on /run/c.sock")


def test_nothing_to_choose_ends_with_9_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()  # An empty directory is no root of a node.
    done = fake_node.cli(
        "detect", "-o", "json", f"--host-root={tmp_path}", f"--socket={tmp_path}/none"
    )
    assert done.returncode == 9, done.stderr
    chosen = json.loads(done.stdout)["choice"]
    assert chosen["runtime"] is None
    assert chosen["problems"] == [f"--socket={tmp_path}/none: no container runtime answers there"]
    told = fake_node.cli("detect", f"--host-root={tmp_path}", f"--socket={tmp_path}/none").stdout
    assert told.startswith("no container runtime found\n")
    assert "chosen: none\n" in told
    assert "  hint: set --runtime, or set --socket" in told
