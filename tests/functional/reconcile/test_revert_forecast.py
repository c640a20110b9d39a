"""What `plan --revert` says of a revert: what it would change and refuse, and only that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from runtimes.dataclass import replace
from tests.support import fake_node, fake_runtime
from tests.support.fake_node import Daemon, Node
from toolkit.errors import StepError
from toolkit.reconcile import describe, uninstall

NOTHING: Final = "nothing to revert: no changes are recorded for this node"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = fake_node.make_node(tmp_path / "node")
    fake_node.name_low_level(node)
    return node


def install(node: Node, *words: str) -> None:
    fake_node.done("run", "--no-daemon", *words, *node.options())


def asked(node: Node, *words: str, code: int = 0) -> dict[str, Any]:
    """Return the plan of a revert, which changes nothing."""
    before = fake_node.snapshot(node.root, node.pid_file, node.socket)
    done = fake_node.cli("plan", "--revert", "-o", "json", *node.options(), *words)
    assert fake_node.snapshot(node.root, node.pid_file, node.socket) == before
    assert done.returncode == code, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["operation"] == "revert"
    return answer


def untouched(node: Node) -> None:
    """Leave the node as it was installed."""


def edited_beside(node: Node) -> None:
    node.config.write_bytes(node.config.read_bytes() + b'\n[plugins."mine"]\n  a = 1\n')


def edited_inside(node: Node) -> None:
    text = node.config.read_bytes()
    node.config.write_bytes(text.replace(b"SystemdCgroup = true", b"SystemdCgroup = false"))


def reverted_by_hand(node: Node) -> None:
    node.config.write_bytes(fake_node.KUBEADM)


def gone(node: Node) -> None:
    node.config.unlink()


@pytest.mark.parametrize("edit", [untouched, edited_beside, reverted_by_hand, gone])
def test_a_revert_does_what_its_plan_says(
    node: Node, running: Daemon, edit: Callable[[Node], None]
) -> None:
    install(node)
    edit(node)
    planned = asked(node, "--diff=full", "--exit-code", code=8)
    assert (planned["in_sync"], planned["blocked"]) == (False, [])
    assert f"the toolkit to remove from {node.toolkit}" in planned["summary"]
    starts = running.starts()
    done = json.loads(fake_node.done("revert", "-o", "json", *node.options()).stdout)
    changed = {(each["path"], each["action"]) for each in planned["changes"]}
    assert {(each["path"], each["action"]) for each in done["changes"]} == changed
    said = "would be kept, because it was modified: "
    kept = [note.removeprefix(said) for note in planned["notes"] if note.startswith(said)]
    assert kept == done["stayed"]
    assert (running.starts() > starts) == planned["reload"]["needed"]
    assert not node.toolkit.exists()
    assert asked(node, "--exit-code")["summary"] == NOTHING


@pytest.mark.parametrize("config", [b"a = [", b"{}", None], ids=["broken", "no TOML", "none"])
def test_a_config_that_nobody_changed_is_not_read(node: Node, config: bytes | None) -> None:
    node.config.unlink()
    if config is not None:
        node.config.write_bytes(config)
    answer = asked(node, "--exit-code")
    assert (answer["in_sync"], answer["summary"]) == (True, NOTHING)
    assert NOTHING in fake_node.cli("revert", *node.options()).stderr


def in_a_comment(node: Node) -> None:
    with node.config.open("ab") as config:
        config.write(f"# see {node.toolkit}/bin\n".encode())


def in_a_value(node: Node) -> None:
    with node.config.open("ab") as config:
        config.write(f"\n[plugins.mine]\npath = '{node.toolkit}/bin'\n".encode())


def test_a_comment_that_names_the_toolkit_does_not_keep_it(node: Node, running: Daemon) -> None:
    install(node)
    in_a_comment(node)
    assert asked(node, "--exit-code", code=8)["blocked"] == []
    fake_node.done("revert", *node.options())
    assert node.config.read_bytes().endswith(b"/bin\n")
    assert not node.toolkit.exists()


@fake_node.needs_root
def test_a_runtime_that_still_has_handlers_of_no_file_is_restarted(node: Node) -> None:
    fake_runtime.say(node)
    with fake_runtime.runtime(node) as running:
        install(node)
        reverted_by_hand(node)
        assert asked(node, "--exit-code", code=8)["reload"]["needed"]
        starts = running.starts()
        fake_node.done("revert", *node.options())
        assert running.starts() == starts + 1


@fake_node.needs_root
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (in_a_value, ()),
        (untouched, ("--restart-mode=none",)),
        (reverted_by_hand, ("--restart-mode=none",)),
    ],
    ids=["a value that names the toolkit", "no restart", "no restart after a revert by hand"],
)
def test_what_ends_a_revert_is_foreseen(
    node: Node, edit: Callable[[Node], None], words: tuple[str, ...]
) -> None:
    fake_runtime.say(node)
    with fake_runtime.runtime(node):
        install(node)
        edit(node)
        (refused,) = asked(node, "--exit-code", *words, code=9)["blocked"]
        done = fake_node.cli("revert", *node.options(), *words)
        assert done.returncode == refused["code"]
        assert f"error: {refused['problem']}\n" in done.stderr
        assert node.toolkit.exists()


def test_handlers_that_somebody_edited_keep_the_toolkit_s_files(
    node: Node, running: Daemon
) -> None:
    install(node)
    edited_inside(node)
    (refused,) = asked(node, "--exit-code", code=9)["blocked"]
    assert "(nvidia, nvidia-cdi, nvidia-legacy) still runs the toolkit" in refused["problem"]
    done = fake_node.cli("revert", *node.options())
    assert (done.returncode, node.toolkit.exists()) == (refused["code"], True)
    assert refused["problem"] in done.stderr


def test_the_plan_of_a_revert_is_read_like_that_of_a_run(node: Node, running: Daemon) -> None:
    install(node)
    added = fake_node.done("plan", "--revert", "--diff=keys", *node.options()).stdout.splitlines()
    assert f"--- {node.config}" in added
    assert all(line.startswith(("-", "+++", "#")) for line in added)
    assert added[-1].startswith(f"# 1 file to change, the toolkit to remove from {node.toolkit}, ")
    fake_node.done("revert", *node.options())
    done = fake_node.done("plan", "--revert", *node.options())
    assert (done.stdout, done.stderr) == (f"# {NOTHING}\n", "")


def test_a_node_without_an_installation_has_nothing_to_revert(node: Node) -> None:
    answer = asked(node, "--exit-code")
    assert (answer["in_sync"], answer["changes"], answer["blocked"]) == (True, [], [])
    assert answer["summary"] == NOTHING


def test_a_sample_on_standard_input_is_not_reverted(node: Node) -> None:
    options = [word for word in node.options() if not word.startswith("--config=")]
    done = fake_node.cli("plan", "--revert", "--config=-", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --config=-: a revert changes the files of this node\n"
        "hint: leave --config out, or --revert\n"
    )


def test_files_alone_are_removed_without_a_restart(node: Node, running: Daemon) -> None:
    install(node, "--no-runtime-config")
    answer = asked(node, "--exit-code", code=8)
    assert (answer["changes"], answer["reload"]["needed"], answer["blocked"]) == ([], False, [])
    assert answer["summary"] == f"the toolkit to remove from {node.toolkit}"


@fake_node.needs_root
def test_containers_that_use_the_handlers_refuse_a_revert(node: Node, running: Daemon) -> None:
    install(node)
    note = node.root.parent / "tasks/k8s.io/0123abc/runtime"
    note.parent.mkdir(parents=True)
    note.write_text(f"{node.toolkit}/nvidia-container-runtime", encoding="utf-8")
    adapter = replace(containerd, task_files=lambda *_: (f"{node.root.parent}/tasks/*/*/runtime",))
    found = uninstall.forecast(node.settings(), adapter)
    said = "1 container still uses the toolkit's handlers: 0123abc; only the default handler"
    (line,) = describe.refusals(found)
    assert line.startswith(f"`revert` would refuse: {said} would be restored (stop them and ")
    assert describe.summary(found.plan, is_blocked=True).startswith(
        "`revert` would refuse to make this change: 1 file to change, "
    )
    with pytest.raises(StepError, match="1 container still uses the toolkit's handlers: 0123abc;"):
        uninstall.revert(node.settings(), adapter)
    assert not uninstall.forecast(node.settings(force="true"), adapter).blocked


@fake_node.needs_root
@pytest.mark.parametrize("mode", ["none", "signal"])
def test_a_runtime_that_is_down_refuses_a_revert_or_not(node: Node, mode: str) -> None:
    with fake_node.daemon(node.socket, home=node.root.parent / "d"):
        install(node)
    options = node.options(restart_mode=mode)
    planned = fake_node.done("plan", "--revert", "-o", "json", *options)
    problems = [each["problem"] for each in json.loads(planned.stdout)["blocked"]]
    done = fake_node.cli("revert", *options)
    assert (done.returncode != 0) == bool(problems), (problems, done.stderr)
    assert all(each in done.stderr for each in problems)


def test_the_directory_of_an_owned_file_that_is_not_there_is_refused_like_by_a_revert(
    node: Node, running: Daemon
) -> None:
    install(node)
    node.config.parent.rename(node.root / "elsewhere")
    planned = fake_node.cli("plan", "--revert", *node.options())
    reverted = fake_node.cli("revert", *node.options())
    assert (planned.returncode, planned.stderr) == (reverted.returncode, reverted.stderr)
    assert "the directory of" in planned.stderr
