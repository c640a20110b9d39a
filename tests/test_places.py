"""Which files hold our keys: by what the daemon says it reads, and by whose it is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from runtimes import containerd, crio
from runtimes.adapter import Adapter
from runtimes.model import ReachKind
from tests import distros
from toolkit import places, settings
from toolkit.host import Host
from toolkit.owner import Owner
from toolkit.places import Places

K3S: Final = "/var/lib/rancher/k3s/agent/etc/containerd"
SNAP: Final = "/var/snap/microk8s"


def daemon(executable: str, unit: str | None = None) -> Owner:
    return Owner(pid=4_000_000, started=1, executable=executable, argv=("containerd",), unit=unit)


def find(
    root: Path, found: Owner | None, told: str | None, *, adapter: Adapter = containerd, **options: str
) -> Places:
    chosen = settings.resolve({"runtime": adapter.name, "host_root": str(root), **options}, {})
    return places.find(chosen, Host(root=root), adapter, found, told=told, told_directory=None)


def test_a_containerd_of_nobody_in_particular(tmp_path: Path) -> None:
    where = find(tmp_path, daemon("/usr/bin/containerd"), None)
    assert (where.config, where.drop_in) == (
        "/etc/containerd/config.toml",
        "/etc/containerd/conf.d/99-nvidia.toml",
    )
    assert where.reach.kind is ReachKind.FILES
    assert where.reach.imports


@pytest.mark.parametrize("home", ["/var/lib/rancher/k3s", "/data/k3s"])
def test_k3s_s_directories_go_with_its_data(tmp_path: Path, home: str) -> None:
    made = f"{home}/agent/etc/containerd"
    where = find(tmp_path, daemon(f"{home}/data/01ab/bin/k3s", "k3s.service"), f"{made}/config.toml")
    assert where.config == f"{made}/config.toml"
    assert where.drop_in == f"{made}/config-v3.toml.d/99-nvidia.toml"
    assert where.reach.drop_ins == (f"{made}/config.toml.d/99-nvidia.toml",)
    assert where.reach.kind is ReachKind.MADE
    assert where.host.local(where.drop_in) == tmp_path / where.drop_in.lstrip("/")


def test_a_drop_in_given_for_another_node_does_not_keep_k3s_s_own_from_being_used(tmp_path: Path) -> None:
    where = find(
        tmp_path,
        daemon("/var/lib/rancher/k3s/data/01ab/bin/k3s"),
        f"{K3S}/config.toml",
        drop_in_config="/runtime/99-nvidia.toml",
        drop_in_config_host_path="/etc/c/99-nvidia.toml",
    )
    assert where.drop_in == "/etc/c/99-nvidia.toml"
    assert where.reach.drop_ins[0] == f"{K3S}/config-v3.toml.d/99-nvidia.toml"


def test_no_drop_in_is_none_anywhere(tmp_path: Path) -> None:
    where = find(
        tmp_path,
        daemon("/var/lib/rancher/k3s/data/01ab/bin/k3s"),
        f"{K3S}/config.toml",
        drop_in_config="",
    )
    assert (where.drop_in, where.reach.drop_ins) == ("", ())


def test_microk8s_template_has_the_name_that_stays(tmp_path: Path) -> None:
    """A refresh of the snap copies the template to another revision's directory; the record has to hold."""
    found = daemon("/snap/microk8s/7394/bin/containerd")
    where = find(tmp_path, found, f"{SNAP}/7394/args/containerd.toml")
    assert where.config == f"{SNAP}/current/args/containerd-template.toml"
    assert where.reach.rendered == f"{SNAP}/current/args/containerd.toml"


@pytest.mark.parametrize("name", ["containerd-template.toml", "containerd.toml"])
def test_microk8s_template_is_meant_where_what_is_made_of_it_is_given(tmp_path: Path, name: str) -> None:
    args = tmp_path / SNAP.lstrip("/") / "7394/args"
    args.mkdir(parents=True)
    (args / name).write_bytes(distros.MICROK8S)
    where = find(tmp_path, None, None, config=str(args / name))
    assert where.config == f"{SNAP}/7394/args/containerd-template.toml"
    assert where.reach.kind is ReachKind.TEMPLATE
    assert where.host.local(where.config) == args / "containerd-template.toml"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"# k0s_managed=true\nversion = 3\n", ReachKind.MERGED),
        (b"version = 3\n", ReachKind.FILES),
        (None, ReachKind.MERGED),
    ],
    ids=["k0s's own", "a person's", "none yet"],
)
def test_a_k0s_config_that_a_person_took_over_is_read_as_it_is(
    tmp_path: Path, text: bytes | None, kind: ReachKind
) -> None:
    (tmp_path / "etc/k0s").mkdir(parents=True)
    if text is not None:
        (tmp_path / "etc/k0s/containerd.toml").write_bytes(text)
    where = find(tmp_path, daemon("/var/lib/k0s/bin/containerd"), "/etc/k0s/containerd.toml")
    assert where.reach.kind is kind
    assert not where.reach.imports
    assert where.drop_in == "/etc/k0s/containerd.d/nvidia.toml"


def test_another_config_than_the_distribution_s_is_an_ordinary_one(tmp_path: Path) -> None:
    given = tmp_path / "srv/containerd.toml"
    given.parent.mkdir()
    given.write_bytes(b"version = 2\n")
    found = daemon("/var/lib/rancher/k3s/data/01ab/bin/k3s", "k3s.service")
    where = find(tmp_path, found, f"{K3S}/config.toml", config=str(given))
    assert where.config == "/srv/containerd.toml"
    assert where.reach.kind is ReachKind.FILES


def test_cri_o_is_found_as_before(tmp_path: Path) -> None:
    where = find(tmp_path, None, None, adapter=crio)
    assert (where.config, where.drop_in) == (
        "/etc/crio/crio.conf",
        "/etc/crio/crio.conf.d/99-nvidia.toml",
    )
