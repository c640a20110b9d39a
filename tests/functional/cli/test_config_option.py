"""`--config` as people type it: a misspelt path, a file of another runtime, a template, `-`."""

from __future__ import annotations

import json
import subprocess
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
    # A machine without a low-level runtime says before it why `run` would refuse to do so.
    assert "1 file to create, " in done.stdout.splitlines()[-1]
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
    logged = fake_node.cli("-n", *options(node, config=str(path))).stderr
    assert (f": {line}\n" in logged) == is_meant


@pytest.mark.parametrize(("typed", "is_meant"), [("crio.cnf", True), ("other.conf", False)])
def test_a_misspelt_path_of_a_runtime_that_gets_a_drop_in_is_named(
    node: Node, tmp_path: Path, typed: str, *, is_meant: bool
) -> None:
    """CRI-O's own file is never created: without the note, it would be taken for an empty one."""
    (tmp_path / "crio.conf").write_bytes(CRIO)
    meant = f"; did you mean {tmp_path / 'crio.conf'}?" if is_meant else ""
    given = options(node, runtime="crio", config=str(tmp_path / typed))
    shown = fake_node.done("plan", *given).stdout
    assert f"# --config={tmp_path / typed}: does not exist{meant}\n" in shown
    given = options(node, runtime="crio", config=str(tmp_path / "crio.conf"))
    assert "does not exist" not in fake_node.done("plan", *given).stdout


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


# --- standard input -----------------------------------------------------------------------------


def piped(*words: str, data: bytes | None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        fake_node.program(*words),
        env=fake_node.ENVIRONMENT,
        input=data,
        capture_output=True,
        timeout=30,
        check=False,
    )


def test_standard_input_is_planned_with(node: Node) -> None:
    words = [word for word in options(node) if not word.startswith("--config=")]
    done = piped("plan", "--config", "-", "-o", "json", *words, data=KUBEADM)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    (change,) = plan["changes"]
    assert change["action"] == "modify"
    assert "/toolkit/nvidia-container-runtime" in change["diff"]
    assert "standard input was read in place of /etc/containerd/config.toml" in plan["notes"]
    again = piped("plan", "--config=-", *words, data=b"version = \n")
    assert again.returncode == 3
    assert again.stderr.startswith(b"error: /etc/containerd/config.toml:1:")


@pytest.mark.parametrize("command", ["run", "status", "revert", "diagnose", "detect"])
def test_no_other_command_reads_standard_input(node: Node, command: str) -> None:
    done = piped(command, "--config=-", data=KUBEADM)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: --config=-: only `plan` reads a configuration")


def test_standard_input_that_is_closed_or_too_large_is_an_error(node: Node) -> None:
    script = 'exec "$@" <&-'
    words = fake_node.program("plan", "--runtime=containerd", "--config=-")
    closed = subprocess.run(
        ["sh", "-c", script, "sh", *words],
        env=fake_node.ENVIRONMENT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert closed.returncode in {0, 2, 9}, closed.stderr
    assert "Traceback" not in closed.stderr
    large = piped("plan", "--runtime=containerd", "--config=-", data=bytes((64 << 20) + 1))
    assert large.returncode == 2
    assert large.stderr.startswith(b"error: --config=-: standard input has more than 64 MiB\n")
