"""No secret of a node's configuration leaves the node or lies in a file that others can read."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes import registry
from runtimes.errors import ConfigError
from runtimes.model import BinaryQuery, BinaryResult, RuntimeName
from tests.support import fake_node, pods
from tests.support.fake_node import Daemon, Node
from tests.support.pods import staying
from toolkit import log
from toolkit.agent import sync
from toolkit.cli import output
from toolkit.deadline import Cancellation
from toolkit.diagnose import collect
from toolkit.diagnose import text as text_of
from toolkit.errors import ToolkitError
from toolkit.node import command
from toolkit.reconcile import preflight
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import make_plan
from toolkit.runtime import observe
from toolkit.runtime.client import cri
from toolkit.runtime.supervision import launch
from toolkit.state.binary_cache import AnswerCache

CANARY: Final = "Zq7canary7qZ"
CRI_PATH: Final = "io.containerd.grpc.v1.cri"
CRI: Final = f'plugins."{CRI_PATH}"'
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
    beside = text.replace(
        '    snapshotter = "overlayfs"\n', f'    snapshotter = "overlayfs" # {CANARY}\n'
    )
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
    for name in ("plan", "status", "detect", "diagnose"):
        for words in ([name], [name, "-o", "json"]):
            yield " ".join(words), shown(node, *words)


def files_with_secrets(node: Node) -> list[Path]:
    """Return the files with a secret that the program wrote; none may be readable by others."""
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
            node.config.write_text(
                re.sub(r'default_runtime_name = "nvidia"\n', "", text), encoding="utf-8"
            )
        for name, printed in commands(node):
            assert CANARY not in printed, (state, name)
        assert ("default_runtime_name" in shown(node, "plan")) == (state != "installed")
    assert files_with_secrets(node) != []
    assert CANARY not in shown(node, "revert", "-o", "json")
    assert running.signals() == ["SIGHUP"] * 2


def test_the_log_and_the_pages_of_an_agent_show_no_secret(node: Node, running: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    original = node.config.read_bytes()
    with staying(
        [*node.options(metrics_address=f"127.0.0.1:{port}", on_drift="report"), "--debug"]
    ) as pod:
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
    (change,) = json.loads(fake_node.done("plan", "--diff=full", "-o", "json", *quiet).stdout)[
        "changes"
    ]
    assert CANARY in change["diff"]


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_a_cache_that_others_can_read_is_written_again(tmp_path: Path, mode: int) -> None:
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


PLACES: Final = st.sampled_from(
    [
        (CRI_PATH, "registry", "headers", "X-Team"),
        (CRI_PATH, "registry", "configs", "r.example", "auth", "x"),
        (CRI_PATH, "registry", "configs", "r.example", "tls", "x"),
        (CRI_PATH, "containerd", "db_pw"),
        (CRI_PATH, "containerd", "runtimes", "kata", "options", "ssh_key"),
        ("stream_processors", "x", "env"),
        (CRI_PATH, "containerd", "runtimes", "kata", "environment", "A"), ("proxies", "http-proxy"),
        ("MYPASS",),
    ]
)  # fmt: skip
SPELLED: Final = st.text(max_size=10).map(lambda text: f"{CANARY}{text}{CANARY}")


@settings(max_examples=40, deadline=None)
@given(
    places=st.lists(PLACES, min_size=1, max_size=4, unique=True),
    secret=st.one_of(SPELLED, st.lists(SPELLED, min_size=1, max_size=2)),
    comment=st.sampled_from(["", f"# {CANARY}\n"]),
)
def test_no_secret_of_a_generated_file_leaves_the_program(
    places: list[tuple[str, ...]],
    secret: object,
    comment: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    node = fake_node.make_node(tmp_path_factory.mktemp("node"), None)
    tree: dict[str, Any] = {"version": 2}
    for place in places:
        path = ("plugins", *place) if place[0] == CRI_PATH else place
        below = tree
        for name in path[:-1]:
            below = below.setdefault(name, {})
        below[path[-1]] = secret
    text = tomlkit.dumps(tree)
    node.config.write_text(text + comment, encoding="utf-8")
    context = Context(
        settings=node.settings(),
        adapter=registry.ADAPTERS[RuntimeName.CONTAINERD],
        stop=Cancellation(),
    )
    with suppress(ToolkitError):  # tomlkit does not write every character so that it is read again
        plan = make_plan(context)
        forecast = preflight.forecast(context, plan, patience=0)
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        log.LOGGER.addHandler(handler)
        sync._announce(plan)
        log.LOGGER.removeHandler(handler)
        assert "default_runtime_name" in said.getvalue()
        printed = [
            output.plan_json(forecast, is_full=False),
            output.plan_text(forecast, colour=False, is_full=False),
            output.status_json(forecast, "", {}),
            said.getvalue(),
        ]  # fmt: skip
        assert CANARY not in "".join(printed)
    report = collect.collect(context)
    assert CANARY not in json.dumps(report)
    assert CANARY not in text_of.text(report)


# --- text from outside that messages quote ------------------------------------------------------


def test_what_a_failed_command_prints_is_masked() -> None:
    script = f"echo 'toml: line 3: password = \"{CANARY}\"' >&2; exit 1"
    result = command.run(["/bin/sh", "-c", script])
    assert (result.code, result.err) == (1, 'toml: line 3: password = "***"')


def test_what_a_runtime_answers_is_masked() -> None:
    said = f"pulling https://h.example/x?sig={CANARY} failed"
    error = cri.CriFailed(f"PullImage failed: {said}", detail=said)
    assert error.message == "PullImage failed: pulling https://h.example/x?sig=*** failed"
    assert error.detail == "pulling https://h.example/x?sig=*** failed"


def test_what_a_refusal_quotes_of_a_file_is_masked() -> None:
    said = (
        f"the change would do more: registry.headers.X-Team would change from '{CANARY}' to"
        f" '{CANARY}'"
    )
    error = observe.not_understood(ConfigError("/etc/x", said))
    assert error.message.endswith(
        "the change would do more: registry.headers.X-Team would change from ***"
    )


def test_the_command_that_starts_a_daemon_again_is_masked() -> None:
    found = launch.Launch(
        executable="/usr/bin/dockerd", argv=("dockerd", "--cluster-store-token", CANARY),
        environment=(), directory="/", output="", groups=(), limits=(), score="0", namespaces=(),
    )  # fmt: skip
    assert found.words() == "cd / && /usr/bin/dockerd --cluster-store-token '***'"


def test_a_report_of_a_node_without_secrets_masks_nothing(tmp_path: Path) -> None:
    node = fake_node.make_node(tmp_path / "node")
    fake_node.name_low_level(node)
    with fake_node.daemon(node.socket, home=tmp_path / "d"):
        fake_node.done("run", "-n", *node.options())
        for name, printed in commands(node):
            assert "***" not in printed, name
