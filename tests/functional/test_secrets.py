"""No secret of a node's configuration leaves the node, and none lies in a file that others can read."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import fake_node, pods
from tests.support.fake_node import Daemon, Node
from tests.support.pods import staying

CANARY: Final = "Zq7canary7qZ"
CRI: Final = 'plugins."io.containerd.grpc.v1.cri"'
# In tables and comments, above and below what is edited: a diff with context would show most of it.
SECRETS: Final = f"""
# password of the mirror: {CANARY} ({CANARY})
[{CRI}.registry.headers]
  X-Team = ["{CANARY}"]
[{CRI}.registry.configs."r.example".auth]
  username = "{CANARY}"
  anything = "{CANARY}"
[{CRI}.registry.configs."[::1]:5000".tls]
  ca = '''{CANARY}
{CANARY}'''
[{CRI}.registry.mirrors]
  "r.example" = {{ endpoint = ["https://u:{CANARY}@m.example?sig={CANARY}"] }} # {CANARY}
[{CRI}.containerd.runtimes.kata]
  # {CANARY}
  runtime_type = "io.containerd.kata.v2"
  privileged_without_host_devices = true
  pod_annotations = ["x.token={CANARY}"]
  [{CRI}.containerd.runtimes.kata.options]
    db_pw = "{CANARY}"
    ssh_key = "{CANARY}"
[stream_processors.x]
  env = ["MYPASS={CANARY}"]
  args = ["--password", "{CANARY}"]
"""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = fake_node.make_node(tmp_path / "node")
    fake_node.name_low_level(node)
    text = node.config.read_text(encoding="utf-8")
    beside = text.replace('    snapshotter = "overlayfs"\n', f'    snapshotter = "overlayfs" # {CANARY}\n')
    assert beside != text
    node.config.write_text(beside + SECRETS, encoding="utf-8")
    return node


@pytest.fixture
def running(node: Node, tmp_path: Path) -> Iterator[Daemon]:
    with fake_node.daemon(node.socket, home=tmp_path / "d") as daemon:
        yield daemon


def shown(node: Node, *words: str, debug: bool = True) -> str:
    """Return everything that a command prints."""
    done = fake_node.cli(*words, *node.options(), *(["--debug"] if debug else []))
    return done.stdout + done.stderr


def commands(node: Node) -> Iterator[tuple[str, str]]:
    """Yield every command that changes nothing, and what it prints."""
    for command in ("plan", "status", "detect", "diagnose"):
        for words in ([command], [command, "-o", "json"]):
            yield " ".join(words), shown(node, *words)


def files_with_secrets(node: Node) -> list[Path]:
    """Return the files with a secret that the program wrote, and expect that nobody else can read them."""
    found = []
    for path in node.root.rglob("*"):
        if path == node.config or not path.is_file() or CANARY.encode() not in path.read_bytes():
            continue
        assert node.state.parent in path.parents, path
        assert path.stat().st_mode & 0o777 == 0o600, path
        found.append(path)
    assert node.state.parent.stat().st_mode & 0o777 == 0o700
    return found


def test_no_command_shows_a_secret(node: Node, running: Daemon) -> None:
    for state in ("before", "installed", "drifted"):
        if state == "installed":
            assert CANARY not in shown(node, "run", "-n", "-o", "json")
        if state == "drifted":
            text = node.config.read_text(encoding="utf-8")
            node.config.write_text(re.sub(r'default_runtime_name = "nvidia"\n', "", text), encoding="utf-8")
        for command, printed in commands(node):
            assert CANARY not in printed, (state, command)
        assert ("default_runtime_name" in shown(node, "plan")) == (state != "installed")
    assert files_with_secrets(node) != []
    assert CANARY not in shown(node, "revert", "-o", "json")
    assert running.signals() == ["SIGHUP"] * 2


def test_the_log_and_the_pages_of_an_agent_show_no_secret(node: Node, running: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    original = node.config.read_bytes()
    with staying([*node.options(metrics_address=f"127.0.0.1:{port}", on_drift="report"), "--debug"]) as pod:
        good = node.config.read_bytes()
        aside = node.config.with_name("aside")
        aside.write_bytes(original)
        aside.rename(node.config)
        drift = pod.says("the node is not in sync")
        printed = [pods.page(port, page)[1] for page in ("/metrics", "/healthz", "/readyz")]
        # What the program cannot parse is not quoted either.
        node.config.write_bytes(good.replace(b"[stream_processors.x]", b"[stream_processors.x"))
        pod.says("it is not valid TOML")
        printed += [pods.page(port, page)[1] for page in ("/metrics", "/healthz", "/readyz")]
    assert f'+{CRI}.containerd.default_runtime_name = "nvidia"' in drift
    assert "snapshotter" not in drift
    assert CANARY not in "".join([*pod.raw, *printed])
    files_with_secrets(node)


def test_what_a_revert_leaves_is_named_without_its_secrets(node: Node, running: Daemon) -> None:
    fake_node.done("run", "-n", *node.options())
    text = node.config.read_text(encoding="utf-8")
    table = f"[{CRI}.containerd.runtimes.nvidia.options]\n"
    assert table in text
    added = f'{table}        client_key = "{CANARY}"\n        other = "kept"\n'
    node.config.write_text(text.replace(table, added), encoding="utf-8")
    printed = shown(node, "revert")
    assert CANARY not in printed
    assert 'runtimes.nvidia.options.client_key = "***"' in printed
    assert "runtimes.nvidia.options.other = 'kept'" in printed
    assert running.signals() == ["SIGHUP"] * 2


def test_a_terminal_gets_the_real_diff_and_others_only_if_they_ask_for_it(node: Node) -> None:
    quiet = node.options()
    assert CANARY in fake_node.on_terminal("plan", *quiet)
    assert CANARY not in fake_node.on_terminal("plan", "-o", "json", *quiet)
    assert CANARY not in fake_node.on_terminal("plan", "--diff=keys", *quiet)
    assert CANARY in fake_node.done("plan", "--diff=full", *quiet).stdout
    (change,) = json.loads(fake_node.done("plan", "--diff=full", "-o", "json", *quiet).stdout)["changes"]
    assert CANARY in change["diff"]


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_a_cache_that_others_can_read_is_written_again(tmp_path: Path, mode: int) -> None:
    from runtimes.model import BinaryQuery, BinaryResult  # noqa: PLC0415
    from toolkit.state.binary_cache import AnswerCache  # noqa: PLC0415

    program = tmp_path / "containerd"
    program.write_bytes(b"\x7fELF")
    path = tmp_path / "answers.json"
    query = BinaryQuery(name="effective", argv=("config", "dump"), is_lasting=True)

    def cache() -> AnswerCache:
        return AnswerCache(path=path, binary=program)

    first = cache()
    first.put(query, BinaryResult(code=0, out=f'password = "{CANARY}"', err=""))
    first.keep()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(mode)
    second = cache()
    assert second.get(query) is None
    second.put(query, BinaryResult(code=0, out="", err=""))
    second.keep()
    assert path.stat().st_mode & 0o777 == 0o600
    assert cache().get(query) is not None
