"""`--config` as people type it: a misspelt path, a file of another runtime, a template, `-`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import fake_node
from tests.support.fake_node import CHECKOUT, KUBEADM, Node

DAEMON_JSON = (CHECKOUT / "examples/docker/daemon.json").read_bytes()
CRIO = (CHECKOUT / "examples/crio/crio.conf.d/10-crio.conf").read_bytes()


def options(node: Node, **changed: str) -> list[str]:
    return node.options(restart_mode="none", **changed)


def test_a_file_that_does_not_exist_is_created_and_said_to_be(node: Node, tmp_path: Path) -> None:
    missing = tmp_path / "other/containerd.toml"
    done = fake_node.done("plan", *options(node, config=str(missing)))
    assert f"# --config={missing}: does not exist and would be created\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("# 1 file to create, ")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("typed", "is_meant"),
    [
        ("etc/containerd/confg.toml", True),
        ("etc/contanerd/config.toml", True),
        ("etc/containerd/config", True),
        ("etc/containerd/drop-in.toml", False),
    ],
)
def test_a_misspelt_path_is_no_new_file_by_silence(
    node: Node, typed: str, *, is_meant: bool
) -> None:
    path = node.root / typed
    meant = f"; did you mean {node.config}?" if is_meant else ""
    line = f"--config={path}: does not exist and would be created{meant}"
    assert f"# {line}\n" in fake_node.done("plan", *options(node, config=str(path))).stdout
    logged = fake_node.done("-n", *options(node, config=str(path))).stderr
    assert (f": {line}\n" in logged) == is_meant


def test_a_copy_beside_a_file_is_not_meant(node: Node) -> None:
    node.config.rename(node.config.with_name("config.toml.bak"))
    assert "did you mean" not in fake_node.done("plan", *options(node)).stdout


def test_the_usual_path_that_nobody_named_is_not_worth_a_note(node: Node) -> None:
    node.config.unlink()
    variables = {"CONTAINERD_CONFIG": str(node.config)}
    words = [word for word in options(node) if not word.startswith("--config=")]
    shown = fake_node.done("plan", *words, environment=variables).stdout
    assert f"# CONTAINERD_CONFIG={node.config}: does not exist and would be created\n" in shown


@pytest.mark.parametrize(
    ("runtime", "content", "other"),
    [
        ("containerd", DAEMON_JSON, "docker"),
        ("containerd", CRIO, "crio"),
        ("docker", KUBEADM, "containerd"),
        ("docker", CRIO, "crio"),
        ("crio", KUBEADM, "containerd"),
        ("crio", DAEMON_JSON, "docker"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_file_of_another_runtime_is_recognized(
    node: Node, command: str, runtime: str, content: bytes, other: str
) -> None:
    node.config.write_bytes(content)
    words = ["-n"] if command == "run" else []
    done = fake_node.cli(command, *words, *options(node, runtime=runtime, drop_in_config=""))
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"error: --config={node.config}: this is a configuration of {other}, and the runtime is"
        f" {runtime}\n"
        f"hint: use --runtime={other}, or name the configuration of {runtime} with --config\n"
    )
    assert node.config.read_bytes() == content


@pytest.mark.parametrize(
    ("runtime", "line"),
    [
        ("containerd", b"sandbox_image = {{ .Image | quote }}\n"),
        ("containerd", b"{% if cgroups %}\nversion = 2\n{% endif %}\n"),
        ("docker", b'{"data-root": {{ data_root }}}\n'),
    ],
)
def test_a_template_is_recognized(node: Node, runtime: str, line: bytes) -> None:
    node.config.write_bytes(line)
    done = fake_node.cli("plan", *options(node, runtime=runtime, drop_in_config=""))
    assert done.returncode == 3, done.stderr
    assert ": this is a template that was not rendered\n" in done.stderr
    assert "hint: name the rendered file with --config, or render the template first\n" in (
        done.stderr
    )


def test_a_value_with_braces_is_no_template(node: Node) -> None:
    node.config.write_bytes(KUBEADM + b"\n# {{ name }}\n")
    fake_node.done("plan", *options(node))
