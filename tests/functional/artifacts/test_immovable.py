"""Another installer's directory at `ROOT/toolkit` that cannot be renamed: overlay or mount."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import fake_node
from tests.support.fake_node import Daemon, Node, needs_root

pytestmark = needs_root

THEIRS = b"the upstream installer's wrapper\n"


@contextmanager
def overlay(node: Node, tmp_path: Path, options: str = "redirect_dir=off") -> Iterator[None]:
    """Make the install directory's content the lower layer of an overlay mounted over it."""
    layers = tmp_path / "layers"
    layers.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "layers", str(layers)], check=True)
    try:
        lower, upper, work = (layers / name for name in ("lower", "upper", "work"))
        subprocess.run(["cp", "-a", str(node.install_dir), str(lower)], check=True)
        upper.mkdir()
        work.mkdir()
        given = f"lowerdir={lower},upperdir={upper},workdir={work},{options}"
        mount = ["mount", "-t", "overlay", "overlay", "-o", given, str(node.install_dir)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode and "unknown filesystem type" in done.stderr:
            pytest.skip("this kernel has no overlay file system")
        assert done.returncode == 0, done.stderr
        try:
            yield
        finally:
            subprocess.run(["umount", str(node.install_dir)], check=True)
    finally:
        subprocess.run(["umount", str(layers)], check=True)


@contextmanager
def mounted(directory: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
def theirs(node: Node) -> dict[str, tuple[int, str]]:
    """Put another installer's directory at the toolkit's path; return its content."""
    (node.toolkit / ".config/nvidia-container-runtime").mkdir(parents=True)
    (node.toolkit / "nvidia-container-runtime").write_bytes(THEIRS)
    (node.toolkit / "nvidia-container-runtime").chmod(0o750)
    (node.toolkit / "nvidia-container-toolkit").symlink_to("nvidia-container-runtime-hook")
    return fake_node.content(node.toolkit)


def refused(node: Node) -> str:
    """Run, see that it is refused and that nothing was changed; return the message."""
    before = fake_node.content(node.root)
    done = fake_node.cli("run", "--no-daemon", *node.options())
    after = fake_node.content(node.root)
    assert {name: after[name] for name in before if not name.startswith("run")} == {
        name: before[name] for name in before if not name.startswith("run")
    }
    assert [name for name in after if "toolkit-probe" in name or ".toolkit-before" in name] == []
    assert done.returncode == 4, done.stderr
    [message] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return message


def test_a_directory_in_a_lower_layer_is_refused_with_its_path_and_the_way_out(
    node: Node, running: Daemon, theirs: dict[str, tuple[int, str]], tmp_path: Path
) -> None:
    with overlay(node, tmp_path):
        message = refused(node)
        assert message.startswith(
            f"error: {node.toolkit} is in a lower layer of an overlay file system and cannot be"
            " moved aside"
        )
        assert message.endswith(": nothing was changed")
        assert running.signals() == []
        remedy = re.search("`(.*)`", message)
        assert remedy is not None
        subprocess.run(["sh", "-c", remedy[1]], check=True)
        assert fake_node.content(node.toolkit) == theirs
        fake_node.done("run", "--no-daemon", *node.options())
        assert node.toolkit.is_symlink()
        fake_node.done("revert", *node.options())
        assert fake_node.content(node.toolkit) == theirs
        assert [path.name for path in node.install_dir.iterdir()] == ["toolkit"]


def test_a_directory_in_a_lower_layer_that_can_be_renamed_is_moved_aside(
    node: Node, running: Daemon, theirs: dict[str, tuple[int, str]], tmp_path: Path
) -> None:
    with overlay(node, tmp_path, "redirect_dir=on"):
        fake_node.done("run", "--no-daemon", *node.options())
        assert node.toolkit.is_symlink()
        assert fake_node.content(node.install_dir / ".toolkit-before") == theirs
        fake_node.done("revert", *node.options())
        assert fake_node.content(node.toolkit) == theirs
    assert running.signals() == ["SIGHUP"] * 2


def test_a_mount_point_is_refused_with_its_path_and_the_way_out(
    node: Node, running: Daemon, theirs: dict[str, tuple[int, str]]
) -> None:
    with mounted(node.toolkit):
        assert (
            refused(node)
            == f"error: {node.toolkit} is a mount point and cannot be moved aside (unmount it,"
            f" mount {node.install_dir} instead, or choose another --toolkit-install-dir):"
            " nothing was changed"
        )
    assert running.signals() == []
    fake_node.done("run", "--no-daemon", *node.options())
    fake_node.done("revert", *node.options())
    assert fake_node.content(node.toolkit) == theirs


def test_a_damaged_version_in_a_lower_layer_is_repaired_file_by_file(
    node: Node, running: Daemon, tmp_path: Path
) -> None:
    """The image of a node may have been made from one on which the toolkit is installed."""
    fake_node.done("run", "--no-daemon", *node.options())
    good = fake_node.content(node.toolkit.resolve())
    with overlay(node, tmp_path):
        (node.toolkit / "nvidia-ctk.real").write_bytes(b"damaged\n")
        (node.toolkit / "nvidia-cdi-hook").unlink()
        fake_node.done("run", "--no-daemon", *node.options())
        assert fake_node.content(node.toolkit.resolve()) == good
        assert [path.name for path in node.toolkit.resolve().parent.iterdir()] == [
            node.toolkit.resolve().name
        ]
        fake_node.done("revert", *node.options())
        assert list(node.install_dir.iterdir()) == []
    assert running.signals() == ["SIGHUP"] * 2


def test_what_was_displaced_into_a_lower_layer_is_named_by_a_revert(
    node: Node, running: Daemon, theirs: dict[str, tuple[int, str]], tmp_path: Path
) -> None:
    fake_node.done("run", "--no-daemon", *node.options())
    with overlay(node, tmp_path):
        done = fake_node.cli("revert", *node.options())
        before = node.install_dir / ".toolkit-before"
        assert done.returncode == 4
        assert f"error: {before} cannot be moved back to {node.toolkit}: " in done.stderr
        remedy = re.search(r"\((rm -f .*)\) and run revert again", done.stderr)
        assert remedy is not None
        subprocess.run(["sh", "-c", remedy[1]], check=True)
        fake_node.done("revert", *node.options())
        assert fake_node.content(node.toolkit) == theirs
        assert [path.name for path in node.install_dir.iterdir()] == ["toolkit"]
    assert running.signals() == ["SIGHUP"] * 2
