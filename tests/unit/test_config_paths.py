"""Which files hold our keys: by what the daemon says it reads, and by whose it is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from runtimes.adapter import Adapter
from runtimes.containerd import ADAPTER as containerd
from runtimes.crio import ADAPTER as crio
from runtimes.model import DeliveryKind
from tests.support import distros
from toolkit.errors import UsageProblem
from toolkit.node.host import Host
from toolkit.node.processes import RuntimeProcess
from toolkit.runtime import config_paths
from toolkit.runtime.config_paths import ConfigPaths
from toolkit.settings import resolve

K3S: Final = "/var/lib/rancher/k3s/agent/etc/containerd"
SNAP: Final = "/var/snap/microk8s"


def daemon(executable: str, unit: str | None = None) -> RuntimeProcess:
    return RuntimeProcess(
        pid=4_000_000, start_ticks=1, executable=executable, argv=("containerd",), unit=unit
    )


def find(
    root: Path,
    found: RuntimeProcess | None,
    config_argument: str | None,
    *,
    adapter: Adapter = containerd,
    **options: str,
) -> ConfigPaths:
    chosen = resolve.resolve({"runtime": adapter.name, "host_root": str(root), **options}, {})
    return config_paths.find(
        chosen, Host(root=root), adapter, found, config_argument=config_argument, directory_argument=None
    )


def test_a_containerd_of_nobody_in_particular(tmp_path: Path) -> None:
    where = find(tmp_path, daemon("/usr/bin/containerd"), None)
    assert (where.config, where.drop_in) == (
        "/etc/containerd/config.toml",
        "/etc/containerd/conf.d/99-nvidia.toml",
    )
    assert where.delivery.kind is DeliveryKind.FILES
    assert where.delivery.imports


@pytest.mark.parametrize("home", ["/var/lib/rancher/k3s", "/data/k3s"])
def test_k3s_s_directories_go_with_its_data(tmp_path: Path, home: str) -> None:
    made = f"{home}/agent/etc/containerd"
    where = find(tmp_path, daemon(f"{home}/data/01ab/bin/k3s", "k3s.service"), f"{made}/config.toml")
    assert where.config == f"{made}/config.toml"
    assert where.drop_in == f"{made}/config-v3.toml.d/99-nvidia.toml"
    assert where.delivery.drop_ins == (f"{made}/config.toml.d/99-nvidia.toml",)
    assert where.delivery.kind is DeliveryKind.AUTO_DETECTED
    assert where.host.local(where.drop_in) == tmp_path / where.drop_in.lstrip("/")


def test_a_drop_in_given_for_another_node_does_not_keep_k3s_s_own_from_being_used(
    tmp_path: Path,
) -> None:
    where = find(
        tmp_path,
        daemon("/var/lib/rancher/k3s/data/01ab/bin/k3s"),
        f"{K3S}/config.toml",
        drop_in_config="/runtime/99-nvidia.toml",
        drop_in_config_host_path="/etc/c/99-nvidia.toml",
    )
    assert where.drop_in == "/etc/c/99-nvidia.toml"
    assert where.delivery.drop_ins[0] == f"{K3S}/config-v3.toml.d/99-nvidia.toml"


def test_no_drop_in_is_none_anywhere(tmp_path: Path) -> None:
    where = find(
        tmp_path,
        daemon("/var/lib/rancher/k3s/data/01ab/bin/k3s"),
        f"{K3S}/config.toml",
        drop_in_config="",
    )
    assert (where.drop_in, where.delivery.drop_ins) == ("", ())


def test_microk8s_template_has_the_name_that_stays(tmp_path: Path) -> None:
    """A snap refresh copies the template to another revision's directory; the record must hold."""
    found = daemon("/snap/microk8s/7394/bin/containerd")
    where = find(tmp_path, found, f"{SNAP}/7394/args/containerd.toml")
    assert where.config == f"{SNAP}/current/args/containerd-template.toml"
    assert where.delivery.rendered == f"{SNAP}/current/args/containerd.toml"


@pytest.mark.parametrize("name", ["containerd-template.toml", "containerd.toml"])
def test_microk8s_template_is_meant_where_what_is_made_of_it_is_given(tmp_path: Path, name: str) -> None:
    args = tmp_path / SNAP.lstrip("/") / "7394/args"
    args.mkdir(parents=True)
    (args / name).write_bytes(distros.MICROK8S)
    where = find(tmp_path, None, None, config=str(args / name))
    assert where.config == f"{SNAP}/7394/args/containerd-template.toml"
    assert where.delivery.kind is DeliveryKind.TEMPLATE
    assert where.host.local(where.config) == args / "containerd-template.toml"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"# k0s_managed=true\nversion = 3\n", DeliveryKind.MERGED),
        (b"version = 3\n", DeliveryKind.FILES),
        (None, DeliveryKind.MERGED),
    ],
    ids=["k0s's own", "a person's", "none yet"],
)
def test_a_k0s_config_that_a_person_took_over_is_read_as_it_is(
    tmp_path: Path, text: bytes | None, kind: DeliveryKind
) -> None:
    (tmp_path / "etc/k0s").mkdir(parents=True)
    if text is not None:
        (tmp_path / "etc/k0s/containerd.toml").write_bytes(text)
    where = find(tmp_path, daemon("/var/lib/k0s/bin/containerd"), "/etc/k0s/containerd.toml")
    assert where.delivery.kind is kind
    assert not where.delivery.imports
    assert where.drop_in == "/etc/k0s/containerd.d/nvidia.toml"


def test_another_config_than_the_distribution_s_is_an_ordinary_one(tmp_path: Path) -> None:
    given = tmp_path / "srv/containerd.toml"
    given.parent.mkdir()
    given.write_bytes(b"version = 2\n")
    found = daemon("/var/lib/rancher/k3s/data/01ab/bin/k3s", "k3s.service")
    where = find(tmp_path, found, f"{K3S}/config.toml", config=str(given))
    assert where.config == "/srv/containerd.toml"
    assert where.delivery.kind is DeliveryKind.FILES


def test_cri_o_is_found_as_before(tmp_path: Path) -> None:
    where = find(tmp_path, None, None, adapter=crio)
    assert (where.config, where.drop_in) == (
        "/etc/crio/crio.conf",
        "/etc/crio/crio.conf.d/99-nvidia.toml",
    )


@pytest.mark.parametrize("socket", ["/run/k3s/containerd/containerd.sock"])
@pytest.mark.parametrize(
    ("executable", "home", "name"),
    [
        ("/ssd/rancher/k3s/data/01ab/bin/containerd", "/ssd/rancher/k3s", "k3s"),
        ("/kubernetes/data/v1.30.2-rke2r1-ab/bin/containerd", "/kubernetes", "rke2"),
        ("/usr/bin/python3", "/kubernetes", "k3s"),
    ],
)
def test_files_of_a_distribution_in_another_directory_are_where_the_daemon_has_them(
    tmp_path: Path, socket: str, executable: str, home: str, name: str
) -> None:
    """Only the daemon shows where: its unit is unknown, the discovered paths are the usual ones."""
    made = f"{home}/agent/etc/containerd"
    usual = f"/var/lib/rancher/{name}/agent/etc/containerd"
    chosen = resolve.resolve(
        {"host_root": str(tmp_path)},
        {},
        {
            "runtime": "containerd",
            "socket": str(tmp_path / socket.lstrip("/")),
            "config": str(tmp_path / f"{usual}/config.toml".lstrip("/")),
            "drop_in_config": str(tmp_path / f"{usual}/config-v3.toml.d/99-nvidia.toml".lstrip("/")),
        },
    )
    where = config_paths.find(
        chosen,
        Host(root=tmp_path),
        containerd,
        daemon(executable),
        config_argument=f"{made}/config.toml",
        directory_argument=None,
    )
    assert where.config == f"{made}/config.toml"
    assert where.drop_in == f"{made}/config-v3.toml.d/99-nvidia.toml"
    assert where.delivery.is_regenerated
    assert f"/etc/rancher/{name}/config.yaml" in where.delivery.default_step


def test_what_was_discovered_does_not_outlast_a_daemon_that_is_started_otherwise(tmp_path: Path) -> None:
    found = {"runtime": "containerd", "config": "/srv/c.toml", "drop_in_config": "/srv/c.d/99-nvidia.toml"}
    chosen = resolve.resolve({"host_root": str(tmp_path)}, {}, found)
    where = config_paths.find(
        chosen,
        Host(root=tmp_path),
        containerd,
        daemon("/usr/bin/containerd"),
        config_argument=None,
        directory_argument=None,
    )
    assert where.config == "/etc/containerd/config.toml"
    assert where.drop_in == "/etc/containerd/conf.d/99-nvidia.toml"


def test_a_template_is_beside_the_file_that_the_daemon_was_started_with(tmp_path: Path) -> None:
    found = daemon("/snap/microk8s/7394/bin/containerd")
    where = find(tmp_path, found, "/srv/microk8s/args/containerd.toml")
    assert where.config == "/srv/microk8s/args/containerd-template.toml"
    assert where.delivery.rendered == "/srv/microk8s/args/containerd.toml"


@pytest.mark.parametrize("config_argument", [None, "/etc/containerd/config.toml"])
def test_a_drop_in_as_the_root_config_is_refused_with_its_option(
    tmp_path: Path, config_argument: str | None
) -> None:
    path = str(tmp_path / "etc/containerd/conf.d/nvidia.toml")
    with pytest.raises(UsageProblem) as caught:
        find(tmp_path, daemon("/usr/bin/containerd"), config_argument, config=path)
    assert caught.value.problems == (
        f"--config={path}: this is a drop-in, not the main configuration file of containerd",
    )
    assert caught.value.hint == f"set RUNTIME_DROP_IN_CONFIG={path} instead"


def test_a_daemon_that_was_started_with_a_file_of_such_a_directory_reads_it(tmp_path: Path) -> None:
    given = tmp_path / "srv/containerd.d/config.toml"
    given.parent.mkdir(parents=True)
    given.write_bytes(b"version = 2\n")
    found = daemon("/usr/bin/containerd")
    where = find(tmp_path, found, "/srv/containerd.d/config.toml", config=str(given))
    assert where.config == "/srv/containerd.d/config.toml"
