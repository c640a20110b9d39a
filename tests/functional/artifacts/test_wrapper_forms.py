"""A change from scripts to static wrappers and back is a version like any other."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support import fake_node, programs
from tests.support.fake_node import Node
from toolkit.artifacts import manifest, static_wrapper, versions, wrappers
from toolkit.artifacts.manifest import Version
from toolkit.node.host import Host

WRAPPED: Final = tuple(name for name in fake_node.PROGRAMS if name != "nvidia-cdi-hook")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return fake_node.make_node(tmp_path / "node")


def desired(node: Node, template: bytes | None, monkeypatch: pytest.MonkeyPatch) -> Version:
    monkeypatch.setattr(static_wrapper, "template", lambda: template)
    return manifest.desired_version(
        node.settings(), Host(root=Path("/")), node.install_dir, ("runc",)
    )


def content(node: Node) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of every file that the toolkit's link leads to."""
    paths = [path for path in node.toolkit.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(node.toolkit)): (path.lstat().st_mode, path.read_bytes())
        for path in paths
    }


@pytest.mark.usefixtures("no_fsync")
def test_scripts_become_programs_and_scripts_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, found = Host(root=Path("/")), []
    template = programs.wrapper()
    for each in (None, template, None):
        version = desired(node, each, monkeypatch)
        assert not version.is_installed
        versions.install(version, node.install_dir, host)
        assert desired(node, each, monkeypatch).is_installed
        found.append(content(node))
    assert found[0] == found[2]
    changed = {name for name in found[0] if found[0][name] != found[1][name]}
    assert changed == {*WRAPPED, "nvidia-container-toolkit"}  # the last one is a link to a wrapper
    assert all(wrappers.is_script(found[0][name][1]) for name in WRAPPED)
    assert all(found[1][name][1].startswith(b"\x7fELF") for name in WRAPPED)


@pytest.mark.usefixtures("no_fsync")
def test_a_rollback_returns_to_the_scripts(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(root=Path("/"))
    old = desired(node, None, monkeypatch)
    versions.install(old, node.install_dir, host)
    before = content(node)
    new = desired(node, programs.wrapper(), monkeypatch)
    versions.install(new, node.install_dir, host)
    assert versions.switch_back(node.install_dir, old.digest, new.digest, None) == old.digest
    assert content(node) == before
    assert os.listdir(node.toolkit.parent / ".toolkit-versions") == [old.digest]


@pytest.mark.usefixtures("no_fsync")
def test_an_installed_wrapper_runs_the_installed_program(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = desired(node, programs.wrapper(), monkeypatch)
    versions.install(version, node.install_dir, Host(root=Path("/")))
    done = subprocess.run(
        [node.toolkit / "nvidia-ctk", "a b"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{node.toolkit}/nvidia-ctk.real\0a b\0"


def test_a_wrapper_with_another_setting_is_another_version(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = desired(node, programs.wrapper(), monkeypatch)
    other = manifest.desired_version(
        node.settings(), Host(root=Path("/")), node.install_dir, ("crun",)
    )
    assert one.digest != other.digest
