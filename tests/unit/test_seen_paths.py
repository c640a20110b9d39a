"""Where a socket and a root config are seen, in a container that sees the node in part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtimes import registry
from runtimes.adapter import Adapter
from runtimes.model import RuntimeName
from toolkit.node.host import Host
from toolkit.runtime import config_paths
from toolkit.settings import resolve
from toolkit.settings.resolve import Settings


def adapter(name: str) -> Adapter:
    found = registry.ADAPTERS[RuntimeName(name)]
    assert found is not None
    return found


def crio(**options: str) -> Settings:
    return resolve.resolve({"runtime": "crio", **options}, {})


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A node whose root is seen below a directory, and whose /etc/crio is also seen beside it."""
    root = tmp_path / "host"
    (root / "etc/crio/crio.conf.d").mkdir(parents=True)
    (root / "etc/crio/crio.conf").write_bytes(b"")
    (root / "run/crio").mkdir(parents=True)
    (root / "run/crio/crio.sock").write_bytes(b"")
    (root / "var").mkdir()
    # As the node means it: here it would lead out of the node.
    (root / "var/run").symlink_to("/run")
    (tmp_path / "config-dir").symlink_to(root / "etc/crio")
    return Host(root=root)


# --- the socket ---------------------------------------------------------------------------------


def test_a_socket_that_is_not_mounted_is_seen_below_the_root(host: Host) -> None:
    assert config_paths.find_socket(crio(), host) == host.root / "run/crio/crio.sock"


def test_a_socket_that_was_named_is_that_one(host: Host) -> None:
    assert config_paths.find_socket(crio(socket="/x/crio.sock"), host) == Path("/x/crio.sock")


def test_a_socket_that_is_nowhere_keeps_its_name(host: Host) -> None:
    (host.root / "run/crio/crio.sock").unlink()
    assert config_paths.find_socket(crio(), host) == Path("/var/run/crio/crio.sock")


# --- the root config ------------------------------------------------------------------------------


@pytest.mark.parametrize("is_known", [True, False])
def test_a_root_config_that_is_only_read_is_the_one_that_is_read(
    host: Host, tmp_path: Path, *, is_known: bool
) -> None:
    """The GPU Operator names one that no CRI-O reads."""
    found = crio(config=str(tmp_path / "config-dir/config.toml"))
    seen = config_paths.find_config(found, host, adapter("crio"), None, is_known=is_known)
    assert os.path.samefile(seen, host.root / "etc/crio/crio.conf")


def test_also_where_one_of_that_name_is_there(host: Host, tmp_path: Path) -> None:
    (host.root / "etc/crio/config.toml").write_bytes(b"")
    named = tmp_path / "config-dir/config.toml"
    found = crio(config=str(named))
    seen = config_paths.find_config(found, host, adapter("crio"), None, is_known=True)
    assert os.path.samefile(seen, host.root / "etc/crio/crio.conf")
    # Without a daemon nobody knows, and a file that is there was named for a reason.
    assert config_paths.find_config(found, host, adapter("crio"), None, is_known=False) == named


def test_without_a_drop_in_it_is_the_one_that_was_named(host: Host, tmp_path: Path) -> None:
    named = str(tmp_path / "config-dir/config.toml")
    found = crio(config=named, drop_in_config="")
    assert config_paths.find_config(found, host, adapter("crio"), None) == Path(named)


def test_what_the_daemon_was_started_with_counts(host: Host, tmp_path: Path) -> None:
    (host.root / "srv").mkdir()
    (host.root / "srv/crio.conf").write_bytes(b"")
    found = crio(config=str(tmp_path / "config-dir/config.toml"))
    seen = config_paths.find_config(found, host, adapter("crio"), "/srv/crio.conf")
    assert os.path.samefile(seen, host.root / "srv/crio.conf")


@pytest.mark.parametrize(
    ("given", "config", "says"),
    [
        (None, "/etc/containerd/config.toml", ""),
        (
            None,
            "/etc/other/config.toml",
            "reads its default config /etc/containerd/config.toml",
        ),
        ("/srv/c.toml", "/etc/containerd/config.toml", "was started with /srv/c.toml"),
        ("/srv/c.toml", "/srv/c.toml", ""),
        ("/srv/link.toml", "/srv/c.toml", ""),
        ("c.toml", "/etc/containerd/config.toml", ""),
    ],
    ids=["the usual one", "another", "not the daemon's", "the daemon's", "by a link", "relative"],
)
def test_a_root_config_that_is_not_read(
    host: Host, given: str | None, config: str, says: str
) -> None:
    for directory in ("srv", "etc/containerd"):
        (host.root / directory).mkdir()
    (host.root / "srv/c.toml").write_bytes(b"")
    (host.root / "srv/link.toml").symlink_to("/srv/c.toml")
    found = config_paths.unread(host, adapter("containerd"), given, config)
    assert (says in found) if says else not found


def test_straight_on_a_node_a_daemon_that_was_told_nothing_is_believed() -> None:
    here = Host(root=Path("/"))
    assert not config_paths.unread(here, adapter("containerd"), None, "/tmp/other.toml")  # noqa: S108 - no file
    assert config_paths.unread(here, adapter("containerd"), "/etc/hostname", "/etc/passwd")


# --- names on the node ----------------------------------------------------------------------------


def test_a_file_is_named_by_the_directory_that_is_seen_under_another_name(
    host: Host, tmp_path: Path
) -> None:
    local = tmp_path / "config-dir/config.toml"
    assert host.node(local, "/etc/crio/crio.conf") == "/etc/crio/config.toml"
    assert (
        host.node(tmp_path / "config-dir/crio.conf", "/etc/crio/crio.conf") == "/etc/crio/crio.conf"
    )
    assert host.node(tmp_path / "elsewhere/x", "/etc/crio/crio.conf") == str(
        tmp_path / "elsewhere/x"
    )


def test_the_drop_in_has_its_own_name_in_the_directory_that_is_given(host: Host) -> None:
    found = crio(
        drop_in_config="/d/99-nvidia.conf", drop_in_config_host_path="/etc/crio/crio.conf.d/1.toml"
    )
    assert (
        config_paths.find_drop_in(found, host, adapter("crio"))
        == "/etc/crio/crio.conf.d/99-nvidia.conf"
    )
