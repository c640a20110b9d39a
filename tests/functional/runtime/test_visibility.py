"""Files that the runtime cannot see are refused, even if the program can; real mount namespaces.

The programs of a handler are started by the runtime, in its own mount namespace: a file that only
the program sees is one that no container starts with.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.support import fake_node
from tests.support.fake_node import KUBEADM, Node
from tests.support.fake_runtime import runtime

pytestmark = fake_node.needs_root

EMPTY: Final = 'mount -t tmpfs none "$1"\nshift'  # TemporaryFileSystem=
INACCESSIBLE: Final = 'mount -t tmpfs -o mode=000 none "$1"\nshift'  # InaccessiblePaths=
NO_EXEC: Final = 'mount --bind "$1" "$1"\nmount -o remount,bind,noexec "$1"\nshift'  # NoExecPaths=
COPIED: Final = 'cp -a "$1/." "$2"\nmount --bind "$2" "$1"\nshift 2'


def seen(node: Node) -> dict[str, fake_node.Trace]:
    """Return every file of the node but those that a run always writes; directories by mode."""
    found = fake_node.snapshot(node.root, node.pid_file, node.socket)
    return {
        name: each
        for name, each in found.items()
        if not stat.S_ISDIR(each.mode) and not name.startswith("run/")
    }


def refused(node: Node, *words: str, prefix: Sequence[str] = ()) -> tuple[str, str]:
    """Run the program; check that nothing changes and it is not ready; return error and hint."""
    before = seen(node)
    done = fake_node.cli("-n", *words, prefix=prefix)
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert seen(node) == before
    assert not node.pid_file.with_name("ready.json").exists()
    lines = done.stderr.splitlines()
    (error,) = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    return error, "".join(hints)


# --- a runtime in a mount namespace of its own ----------------------------------------------------


class Hidden(NamedTuple):
    """What is hidden from the runtime, and what is said of it."""

    script: str
    directory: Callable[[Node], Path]
    option: str
    problem: str


HIDDEN: Final = {
    "empty": Hidden(
        EMPTY, lambda n: n.install_dir.parent, "--toolkit-install-dir", "does not exist"
    ),
    "empty itself": Hidden(
        EMPTY, lambda n: n.install_dir, "--toolkit-install-dir", "is another directory"
    ),
    "inaccessible": Hidden(
        INACCESSIBLE, lambda n: n.install_dir, "--toolkit-install-dir", "is another directory"
    ),
    "imported files": Hidden(EMPTY, lambda n: n.drop_in.parent, "", "is another directory"),
}


@pytest.mark.parametrize("case", HIDDEN.values(), ids=HIDDEN)
def test_a_directory_that_the_runtime_does_not_see(node: Node, case: Hidden) -> None:
    node.install_dir.mkdir(parents=True)
    node.drop_in.parent.mkdir()
    (node.drop_in.parent / "10-image.toml").write_bytes(b"version = 2\n")
    node.config.write_bytes(b'imports = ["conf.d/*.toml"]\n' + KUBEADM)
    hidden = case.directory(node)
    place = f"{case.option}={node.install_dir}" if case.option else str(hidden)
    with runtime(node, prefix=fake_node.in_mounts(case.script, str(hidden))) as running:
        error, hint = refused(node, *node.options())
        assert running.signals() == []
    assert (
        error == f"containerd (PID {running.pid}) does not see {place}: in its mount"
        f" namespace that path {case.problem}: nothing was changed"
    )
    assert "choose a directory that the runtime sees, or change the settings of its unit" in hint


def test_a_root_config_that_the_runtime_has_a_copy_of(node: Node, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    words = (str(node.config.parent), str(tmp_path / "copy"))
    with runtime(node, prefix=fake_node.in_mounts(COPIED, *words)) as running:
        error, _ = refused(node, *node.options())
        assert running.signals() == []
    assert f"does not see --config={node.config.parent}: " in error


def test_a_directory_in_which_the_runtime_may_execute_nothing(node: Node) -> None:
    node.install_dir.mkdir(parents=True)
    with runtime(node, prefix=fake_node.in_mounts(NO_EXEC, str(node.install_dir))) as running:
        error, _ = refused(node, *node.options())
    assert (
        error
        == f"containerd (PID {running.pid}) can run no program in {node.install_dir}: its file"
        " system is mounted noexec: nothing was changed"
    )
    assert list(node.install_dir.iterdir()) == []


def test_another_mount_namespace_with_the_same_files_is_no_obstacle(node: Node) -> None:
    with runtime(node, prefix=fake_node.in_mounts(":")):
        done = fake_node.cli("-n", *node.options())
        assert done.returncode == 0, done.stderr
        assert fake_node.done("-n", *node.options()).stderr == fake_node.NOTHING_TO_DO


def test_a_directory_of_cdi_specifications_that_the_runtime_does_not_see(node: Node) -> None:
    directory = node.root / "var/run/cdi"
    directory.mkdir(parents=True)
    options = node.options(cdi_enabled="true", cdi_output_dir=str(directory))
    with runtime(node, prefix=fake_node.in_mounts(EMPTY, str(directory))):
        error, _ = refused(node, *options)
    assert (
        f"does not see --cdi-output-dir={directory}: in its mount namespace that path is another"
        in error
    )


def test_a_toolkit_of_the_nodes_own_that_the_runtime_does_not_see(node: Node) -> None:
    bin_dir = node.root / "usr/bin"
    bin_dir.mkdir(parents=True)
    for name in fake_node.PROGRAMS:
        fake_node.write_program(bin_dir / name, "#!/bin/sh\n")
    options = node.options(
        no_install="true", toolkit_bin_dir=str(bin_dir), toolkit_source_root=None
    )
    with runtime(node, prefix=fake_node.in_mounts(EMPTY, str(bin_dir))):
        error, _ = refused(node, *options)
    assert (
        f"does not see --toolkit-bin-dir={bin_dir}: in its mount namespace that path is another"
        in error
    )


def test_a_low_level_runtime_that_the_runtime_does_not_see(node: Node) -> None:
    """It is searched where the daemon would search: one that only the program sees is missing."""
    place = node.root.parent / "d/bin"
    place.mkdir(parents=True)
    option = b"SystemdCgroup = true"
    config = KUBEADM.replace(
        option, option + f'\n        BinaryName = "{place}/only-here"\n#'.encode()
    )
    assert config != KUBEADM
    node.config.write_bytes(config)
    fake_node.write_program(place / "only-here", "#!/bin/sh\n")
    with runtime(
        node, prefix=fake_node.in_mounts('mount --bind /dev/null "$1"\nshift', f"{place}/only-here")
    ):
        error, _ = refused(node, *node.options())
    assert "the low-level runtime " in error
    assert " was not found on the node" in error


# --- later ----------------------------------------------------------------------------------------


def test_a_runtime_that_stops_seeing_the_toolkit_is_not_ready(node: Node) -> None:
    """A unit may change after the installation: it is no longer ready, and diagnose says why."""
    with runtime(node):
        fake_node.done("-n", *node.options())
        assert node.pid_file.with_name("ready.json").exists()
    with runtime(node, prefix=fake_node.in_mounts(EMPTY, str(node.install_dir))) as running:
        error, _ = refused(node, *node.options())
        expected = (
            f"containerd (PID {running.pid}) does not see"
            f" --toolkit-install-dir={node.install_dir}: "
        )
        assert error.startswith(expected)
        status = fake_node.cli("status", *node.options())
        assert f"not ready: {expected}" in status.stdout
        report = json.loads(fake_node.cli("diagnose", "-o", "json", *node.options()).stdout)
        problems = [each["problem"] for each in report["findings"]]
        assert any(
            problem.startswith("the handler nvidia of containerd runs ")
            and "does not exist" in problem
            for problem in problems
        ), problems
        # What it cannot see any more can be taken back all the same.
        done = fake_node.cli("revert", *node.options())
        assert done.returncode == 0, done.stderr
    assert node.config.read_bytes() == KUBEADM
    assert not node.install_dir.exists()


# --- the program in a container -------------------------------------------------------------------


@pytest.mark.parametrize("what", ["everything", "files only", "CDI"])
@pytest.mark.parametrize("root", ["", "host"], ids=["without /host", "with /host"])
def test_a_directory_of_the_container_that_is_none_of_the_node(
    node: Node, tmp_path: Path, what: str, root: str
) -> None:
    """Case 06: the files would lie in the container; the configuration would name node paths."""
    node.install_dir.mkdir(parents=True)
    directory, option = node.install_dir, "--toolkit-install-dir"
    options: dict[str, str | None] = {}
    if what == "files only":
        options = {"no_runtime_config": "true"}
    if what == "CDI":
        directory, option = node.root / "var/run/cdi", "--cdi-output-dir"
        directory.mkdir(parents=True)
        options = {"cdi_enabled": "true", "cdi_output_dir": str(directory)}
    script, words = EMPTY, [str(directory)]
    if root:
        script, words = (
            f'mount --rbind / "$2"\n{EMPTY}\nshift',
            [
                str(directory),
                str(tmp_path / "host"),
            ],
        )
        (tmp_path / "host").mkdir()
        options["host_root"] = str(tmp_path / "host")
    with runtime(node) as running:
        error, hint = refused(
            node, *node.options(**options), prefix=fake_node.in_mounts(script, *words)
        )
        assert running.signals() == []
    if root:
        assert error.startswith(
            f"{option}={directory} is not a directory of the node, but of this container"
        )
        assert hint.startswith(
            "mount that directory of the node into this container at the same path"
        )
    else:
        # Where the node's first process may be examined, the directory is known to be the pod's.
        known = f"{option}={directory} is not a directory of the node, but of this container"
        seen = f"does not see {option}={directory}: in its mount namespace that path is another"
        assert error.startswith(known) or seen in error
        assert "mount that directory of the node into this container at the same path" in hint
    assert list(directory.iterdir()) == []
