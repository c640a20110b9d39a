"""CRI-O on test nodes is the real one: unit, socket, drop-ins, pods through its handlers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import crio, nodes, real
from tests.support.nodes import Node, NodeError

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

WRAPPER = "/usr/local/bin/wrapper"
RAN = "/run/wrapper"
DROP_IN = f"{crio.DROP_INS}/50-wrapper.conf"
HANDLER = f"""\
[crio.runtime]
default_runtime = "wrapper"

[crio.runtime.runtimes.wrapper]
runtime_path = "{WRAPPER}"
runtime_root = "/run/runc"
monitor_path = "/usr/libexec/crio/conmon"
"""


@pytest.fixture(scope="module", params=crio.SUITES)
def crio_node(request: pytest.FixtureRequest) -> Iterator[Node]:
    if reason := crio.why_not():
        pytest.skip(reason)
    with nodes.boot(request.param, units=()) as booted:
        crio.install(booted)
        crio.prepare_images(booted)
        crio.start(booted)
        version = nodes.run(booted, ("crio", "--version")).stdout.splitlines()[0].split()[-1]
        real.USED.add(f"crio {version} on a booted {booted.suite} node")
        yield booted


@pytest.fixture(scope="module")
def pod_node(crio_node: Node) -> Node:
    if reason := crio.why_no_pods(crio_node):
        pytest.skip(reason)
    return crio_node


@pytest.fixture
def drop_in(crio_node: Node) -> Iterator[Path]:
    """Give the path of a drop-in that is not there, and a CRI-O that never saw it."""
    wrapper = nodes.path(crio_node, WRAPPER)
    wrapper.write_text(f'#!/bin/sh\necho "$*" >> {RAN}\nexec {crio.RUNC} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    path = nodes.path(crio_node, DROP_IN)
    yield path
    path.unlink()
    crio.start(crio_node)
    nodes.path(crio_node, RAN).unlink(missing_ok=True)


def ran(node: Node) -> bool:
    log = nodes.path(node, RAN)
    return log.exists() and " create " in log.read_text(encoding="utf-8")


def test_crio_runs_under_systemd_with_the_drop_ins_of_a_package(crio_node: Node) -> None:
    assert nodes.main_pid(crio_node, "crio") != 0
    assert crio.answers(crio_node)
    assert not nodes.path(crio_node, crio.CONFIG).exists()
    runtime = crio.config(crio_node)["crio"]["runtime"]
    assert runtime["default_runtime"] == "runc"
    assert runtime["runtimes"]["runc"]["runtime_path"] == crio.RUNC
    # The built-in crun has no program here, and CRI-O drops it.
    assert list(crio.handlers(crio_node)) == ["runc"]
    said = nodes.run(crio_node, ("crio", "version")).stdout
    assert f"Version:        {crio.VERSION}" in said


def test_pod_runs_through_the_handler_that_was_asked_for(pod_node: Node) -> None:
    argv = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    for handler in ("", "runc"):
        done = crio.run_pod(pod_node, handler=handler, argv=argv)
        assert done.exit_code == 3
        assert sorted(done.output.splitlines()) == ["err", "out"]
    with pytest.raises(NodeError, match="failed to find runtime handler other"):
        crio.run_pod(pod_node, handler="other", argv=["true"])


def test_pod_runs_through_a_handler_of_a_drop_in_after_a_restart(
    pod_node: Node, drop_in: Path
) -> None:
    drop_in.write_text(HANDLER, encoding="utf-8")
    crio.start(pod_node)
    assert crio.run_pod(pod_node, handler="runc", argv=["true"]).exit_code == 0
    assert not ran(pod_node)
    for handler in ("", "wrapper"):
        done = crio.run_pod(pod_node, handler=handler, argv=["echo", "wrapped"])
        assert (done.exit_code, done.output) == (0, "wrapped\n")
        assert ran(pod_node)
        nodes.path(pod_node, RAN).unlink()


def test_hangup_shows_a_new_handler_but_pods_cannot_use_it(pod_node: Node, drop_in: Path) -> None:
    """Pin down a defect of CRI-O: if this fails with a newer one, SIGHUP has become enough."""
    drop_in.write_text(HANDLER, encoding="utf-8")
    before = nodes.main_pid(pod_node, "crio")
    crio.hang_up(pod_node)
    nodes.wait_for(pod_node, lambda: "wrapper" in crio.handlers(pod_node))
    assert crio.config(pod_node)["crio"]["runtime"]["default_runtime"] == "wrapper"
    assert nodes.main_pid(pod_node, "crio") == before
    assert crio.run_pod(pod_node, handler="", argv=["true"]).exit_code == 0
    assert not ran(pod_node)
    with pytest.raises(NodeError, match="failed to find runtime handler wrapper"):
        crio.run_pod(pod_node, handler="wrapper", argv=["true"])


def test_pod_survives_a_restart(pod_node: Node) -> None:
    pod = crio.start_pod(pod_node, handler="", argv=["sleep", "600"])
    before = nodes.main_pid(pod_node, "crio")
    crio.start(pod_node)
    assert nodes.main_pid(pod_node, "crio") not in {0, before}
    assert crio.is_running(pod_node, pod)
    crio.stop_pod(pod_node, pod)


def test_broken_drop_in_keeps_crio_from_starting(crio_node: Node, drop_in: Path) -> None:
    drop_in.write_text("[crio.runtime\n", encoding="utf-8")
    with pytest.raises(NodeError, match=f"unable to decode configuration {DROP_IN}"):
        crio.start(crio_node)
    assert not crio.answers(crio_node)
    crio.stop(crio_node)


def test_broken_drop_in_does_not_end_a_crio_that_runs(crio_node: Node, drop_in: Path) -> None:
    before = nodes.main_pid(crio_node, "crio")
    drop_in.write_text("[crio.runtime\n", encoding="utf-8")
    crio.hang_up(crio_node)
    nodes.wait_for(crio_node, lambda: "unable to decode configuration" in crio.log(crio_node))
    assert crio.answers(crio_node)
    assert nodes.main_pid(crio_node, "crio") == before


def test_crio_conf_is_read_before_the_drop_ins() -> None:
    if reason := crio.why_not():
        pytest.skip(reason)
    text = '[crio.runtime]\ndefault_runtime = "lost"\nlog_level = "warn"\n'
    with nodes.boot("trixie", units=()) as node:
        crio.install(node, config=text)
        crio.start(node)
        runtime = crio.config(node)["crio"]["runtime"]
        assert (runtime["default_runtime"], runtime["log_level"]) == ("runc", "warn")
        with pytest.raises(NodeError, match="before CRI-O starts"):
            crio.prepare_images(node)


def test_machine_that_cannot_run_crio_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nodes, "why_not", lambda: None)
    monkeypatch.setenv("NVIDIA_TOOLKIT_TEST_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    assert crio.why_not.__wrapped__() == "CRI-O needs conmon, ldd, skopeo, gcc, go, pkg-config"
