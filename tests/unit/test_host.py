"""Which path here is which path of the node, with every link meant as the node means it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.support import fake_node
from toolkit.errors import StepError
from toolkit.node.host import Host

NAMES = some.text(
    some.characters(categories=["L", "N", "P"], exclude_characters="/"), min_size=1, max_size=6
)
PATHS = some.lists(NAMES.filter(lambda n: n not in {".", ".."}), min_size=1, max_size=4).map(
    lambda names: "/" + "/".join(names)
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a node's root as a pod sees it."""
    root = tmp_path / "host"
    for name in ("etc/containerd/conf.d", "usr/bin", "opt/bin", "run"):
        (root / name).mkdir(parents=True)
    return root


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    fake_node.write_program(path, "#!/bin/sh\n")
    return path


# --- names --------------------------------------------------------------------------------------


def test_a_node_that_is_here_has_the_same_paths() -> None:
    host = Host(root=Path("/"))
    assert host.is_here
    assert host.local("/etc/containerd/config.toml") == Path("/etc/containerd/config.toml")
    assert host.node(Path("/etc/containerd/config.toml")) == "/etc/containerd/config.toml"


def test_a_node_elsewhere_is_seen_below_its_root(root: Path) -> None:
    host = Host(root=root)
    assert not host.is_here
    assert host.local("/etc/hosts") == root / "etc/hosts"
    assert host.node(root / "etc/hosts") == "/etc/hosts"


@given(path=PATHS)
def test_the_node_knows_a_local_path_by_the_name_it_was_found_by(path: str) -> None:
    host = Host(root=Path("/host")).mapped("/etc/containerd", Path("/runtime/config-dir"))
    assert host.node(host.local(path)) == path
    assert host.node(host.local(f"/etc/containerd{path}")) == f"/etc/containerd{path}"
    assert host.local(f"/etc/containerd{path}") == Path(f"/runtime/config-dir{path}")


def test_the_innermost_place_wins() -> None:
    host = (
        Host(root=Path("/host"))
        .mapped("/etc", Path("/a"))
        .mapped("/etc/containerd/conf.d", Path("/b"))
    )
    host = host.mapped("/etc/containerd", Path("/c"))
    assert host.local("/etc/containerd/conf.d/x.toml") == Path("/b/x.toml")
    assert host.local("/etc/containerd/config.toml") == Path("/c/config.toml")
    assert host.local("/etc/hosts") == Path("/a/hosts")
    assert host.local("/etcetera") == Path("/host/etcetera")


@pytest.mark.parametrize("exists", [True, False], ids=["a file that is there", "a file to come"])
def test_a_mounted_directory_is_known_by_its_inode(root: Path, *, exists: bool) -> None:
    if exists:
        (root / "etc/containerd/config.toml").touch()
    mounted = root.parent / "config-dir"
    mounted.symlink_to(root / "etc/containerd")
    host = Host(root=root)
    found = host.node(
        mounted / "config.toml", "/etc/other/config.toml", "/etc/containerd/config.toml"
    )
    assert found == "/etc/containerd/config.toml"


def test_a_path_that_no_candidate_is_keeps_its_name(root: Path) -> None:
    path = root.parent / "elsewhere/config.toml"
    assert Host(root=root).node(path, "/etc/containerd/config.toml") == str(path)


# --- links --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "to",
    ["/etc/other.toml", "../other.toml", "/etc/containerd/../other.toml"],
    ids=["absolute", "relative", "dots"],
)
def test_a_link_is_followed_as_the_node_would(root: Path, to: str) -> None:
    link = root / "etc/containerd/config.toml"
    link.symlink_to(to)
    (root / "etc/other.toml").touch()
    assert Host(root=root).target(link).resolve() == root / "etc/other.toml"


def test_a_chain_of_links_is_followed_to_its_end(root: Path) -> None:
    (root / "etc/a").symlink_to("/etc/b")
    (root / "etc/b").symlink_to("c")
    assert Host(root=root).target(root / "etc/a") == root / "etc/c"


def test_what_is_no_link_is_its_own_target(root: Path) -> None:
    assert Host(root=root).target(root / "etc/absent") == root / "etc/absent"


def test_links_in_circles_are_refused(root: Path) -> None:
    (root / "etc/a").symlink_to("/etc/b")
    (root / "etc/b").symlink_to("/etc/a")
    with pytest.raises(StepError) as caught:
        Host(root=root).target(root / "etc/a")
    assert str(caught.value) == f"{root}/etc/a is a loop of symbolic links"


def test_a_link_above_the_root_ends_at_the_root_as_on_the_node(root: Path) -> None:
    link = root / "etc/containerd/config.toml"
    link.symlink_to("../../../elsewhere.toml")
    assert Host(root=root).target(link) == root / "elsewhere.toml"


def test_a_link_out_of_what_is_seen_is_refused(root: Path, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    link = mounted / "config.toml"
    link.symlink_to("../elsewhere.toml")
    host = Host(root=root).mapped("/etc/containerd", mounted)
    with pytest.raises(StepError) as caught:
        host.target(link)
    assert (
        str(caught.value)
        == f"{link} is a link to ../elsewhere.toml, which is not mounted from the node"
    )
    assert caught.value.hint == "name the target file itself, or mount its directory from the node"


def test_a_linked_directory_on_the_way_is_the_nodes_own(root: Path) -> None:
    (root / "opt/containerd").mkdir()
    (root / "opt/containerd/config.toml").touch()
    (root / "etc/linked").symlink_to("/opt/containerd")
    host = Host(root=root)
    found = host.target(host.local("/etc/linked/config.toml"))
    assert found.resolve() == root / "opt/containerd/config.toml"


@pytest.fixture
def mounted(root: Path) -> Host:
    """Return a node whose /etc/containerd is also mounted at another path, as in a pod."""
    place = root.parent / "config-dir"
    place.symlink_to(root / "etc/containerd")  # the same inode, as of a mount
    return Host(root=root).mapped("/etc/containerd", place)


@pytest.mark.parametrize(
    ("to", "leads"),
    [
        ("/opt/conf.d", "host/opt/conf.d"),
        ("../../opt/conf.d", "host/opt/conf.d"),
        ("real.d", "config-dir/real.d"),
        ("/etc/containerd/real.d", "config-dir/real.d"),
        ("/etc/alias/real.d", "config-dir/real.d"),
        ("../containerd/./real.d", "config-dir/real.d"),
    ],
)
def test_every_part_of_a_mounted_path_is_followed_as_the_node_would(
    mounted: Host, to: str, leads: str
) -> None:
    root = mounted.root
    (root / "etc/alias").symlink_to("/etc/containerd")
    (root / "etc/containerd/conf.d").rmdir()
    (root / "etc/containerd/conf.d").symlink_to(to)
    directory = root.parent / leads
    for node_path in ("/etc/containerd/conf.d/99-nvidia.toml", "/etc/containerd/conf.d/sub/x.toml"):
        name = node_path.removeprefix("/etc/containerd/conf.d/")
        assert mounted.file(node_path) == directory / name
        assert mounted.target(root.parent / "config-dir/conf.d" / name) == directory / name
        assert mounted.opened(node_path) in (directory / name, mounted.local(node_path))
    directory.mkdir()
    (directory / "a.toml").write_text("a", encoding="utf-8")
    assert mounted.glob("/etc/containerd/conf.d/*.toml") == ("/etc/containerd/conf.d/a.toml",)
    assert mounted.glob("/etc/containerd/conf.d/**") == ("/etc/containerd/conf.d/a.toml",)
    assert mounted.file("/etc/containerd/conf.d/a.toml").read_text(encoding="utf-8") == "a"
    assert mounted.opened("/etc/containerd/conf.d/a.toml").read_text(encoding="utf-8") == "a"


def test_a_directory_in_a_mounted_one_may_be_a_link_although_it_was_named(mounted: Host) -> None:
    place = mounted.root.parent / "config-dir"
    (place / "conf.d").rmdir()
    (place / "conf.d").symlink_to("/opt/conf.d")
    named = mounted.mapped("/etc/containerd/conf.d", place / "conf.d")
    assert named == mounted
    assert named.file("/etc/containerd/conf.d/x.toml") == mounted.root / "opt/conf.d/x.toml"


def test_a_mounted_directory_that_is_a_link_on_the_node_has_the_parent_of_its_target(
    root: Path,
) -> None:
    (root / "opt/real").mkdir()
    (root / "etc/linked").symlink_to("/opt/real")
    (root / "opt/real/up").symlink_to("../beside")
    place = root.parent / "place"
    place.symlink_to(root / "opt/real")
    host = Host(root=root).mapped("/etc/linked", place)
    assert host.file("/etc/linked/up/x") == root / "opt/beside/x"


def test_a_link_in_a_mounted_directory_never_leads_into_this_machine(
    mounted: Host, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (mounted.root / "etc/containerd/conf.d").rmdir()
    (mounted.root / "etc/containerd/conf.d").symlink_to(outside)
    (outside / "x.toml").touch()
    assert (
        mounted.file("/etc/containerd/conf.d/x.toml") == mounted.root / str(outside)[1:] / "x.toml"
    )
    assert mounted.glob("/etc/containerd/conf.d/*") == ()


def test_links_of_a_mounted_directory_in_circles_are_refused(mounted: Host) -> None:
    place = mounted.root.parent / "config-dir"
    (place / "a").symlink_to("/etc/containerd/b")
    (place / "b").symlink_to("a")
    with pytest.raises(StepError, match="is a loop of symbolic links"):
        mounted.file("/etc/containerd/a/x.toml")


# --- patterns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/etc/containerd/conf.d/*.toml", [".hidden.toml", "10-a.toml", "9-b.toml"]),
        ("/etc/containerd/conf.d/?-b.toml", ["9-b.toml"]),
        ("/etc/containerd/conf.d/*", [".hidden.toml", "10-a.toml", "9-b.toml", "sub"]),
        ("/etc/containerd/*/9-b.toml", ["9-b.toml"]),
        ("/etc/containerd/conf.d/*/c.toml", ["sub/c.toml"]),
        ("/etc/containerd/absent/*.toml", []),
        ("/etc/containerd/conf.d/9-b.toml/*", []),
        ("/etc/containerd/conf.d/+*.toml", []),
        ("/etc/containerd/*/absent.toml", []),
        ("/etc/containerd/conf.d/[0-9]-*.toml", ["9-b.toml"]),
    ],
    ids=["hidden too, sorted", "one", "directories too", "above", "below", "no directory", "file",
         "plus", "a name behind a star must be there", "class"],
)  # fmt: skip
def test_a_pattern_finds_what_go_finds(root: Path, pattern: str, found: Sequence[str]) -> None:
    directory = root / "etc/containerd/conf.d"
    (directory / "sub").mkdir()
    for name in ("9-b.toml", "10-a.toml", ".hidden.toml", "sub/c.toml"):
        (directory / name).touch()
    wanted = tuple(f"/etc/containerd/conf.d/{name}" for name in found)
    assert Host(root=root).glob(pattern) == wanted


def test_a_pattern_is_looked_for_in_a_place_that_is_mounted_elsewhere(root: Path) -> None:
    mounted = root.parent / "drop-in"
    mounted.mkdir()
    (mounted / "a.toml").touch()
    host = Host(root=root).mapped("/etc/containerd/conf.d", mounted)
    assert host.glob("/etc/containerd/conf.d/*.toml") == ("/etc/containerd/conf.d/a.toml",)


# --- programs -----------------------------------------------------------------------------------


def test_a_program_is_found_on_the_usual_path(root: Path) -> None:
    program(root / "usr/bin/containerd")
    assert Host(root=root).executable("containerd") == "/usr/bin/containerd"
    program(root / "usr/local/bin/containerd")
    assert Host(root=root).executable("containerd") == "/usr/local/bin/containerd"


def test_an_absolute_program_is_taken_as_it_is(root: Path) -> None:
    program(root / "opt/bin/containerd")
    assert Host(root=root).executable("/opt/bin/containerd") == "/opt/bin/containerd"
    assert Host(root=root).executable("/usr/bin/containerd") is None


@pytest.mark.parametrize(
    "to", ["/opt/bin/containerd", "../../opt/bin/containerd", "/opt/../opt/bin/containerd"]
)
def test_a_linked_program_is_the_nodes_own(root: Path, to: str) -> None:
    program(root / "opt/bin/containerd")
    (root / "usr/bin/containerd").symlink_to(to)
    assert Host(root=root).executable("containerd") == "/usr/bin/containerd"


def test_a_linked_directory_of_programs_is_the_nodes_own(root: Path) -> None:
    program(root / "usr/bin/containerd")
    (root / "bin").symlink_to("/usr/bin")
    assert Host(root=root).executable("/bin/containerd") == "/bin/containerd"


@pytest.mark.parametrize(
    "make", ["directory", "not executable", "dangling", "circle", "of this machine"]
)
def test_what_is_no_program_of_the_node_is_not_found(root: Path, make: str) -> None:
    path = root / "usr/bin/containerd"
    outside = program(root.parent / "outside")
    match make:
        case "directory":
            path.mkdir()
        case "not executable":
            path.touch(mode=0o644)
        case "dangling":
            path.symlink_to("/absent")
        case "circle":
            path.symlink_to("/usr/bin/containerd")
        case _:
            path.symlink_to(outside)
    assert Host(root=root).executable("containerd") is None
