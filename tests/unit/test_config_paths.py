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
from toolkit.node import files
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
        chosen,
        Host(root=root),
        adapter,
        found,
        config_argument=config_argument,
        directory_argument=None,
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
    where = find(
        tmp_path, daemon(f"{home}/data/01ab/bin/k3s", "k3s.service"), f"{made}/config.toml"
    )
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
def test_microk8s_template_is_meant_where_what_is_made_of_it_is_given(
    tmp_path: Path, name: str
) -> None:
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


def operators(
    root: Path, found: RuntimeProcess | None, config: str | None, **options: str
) -> ConfigPaths:
    """Return the paths where the GPU Operator mounts /etc/containerd, whatever the runtime is."""
    (root / "etc/containerd").mkdir(parents=True)
    home = Path(f"{root}{config or f'{K3S}/config.toml'}").parent
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_bytes(b"version = 3\n")
    given: dict[str, str] = {
        "config": f"{root}/etc/containerd/config.toml",
        "drop_in_config": f"{root}/etc/containerd/conf.d/99-nvidia.toml",
        "socket": f"{root}/run/k3s/containerd/containerd.sock",
    }
    return find(root, found, config, adapter=containerd, **{**given, **options})


@pytest.mark.parametrize(
    ("executable", "unit", "config"),
    [
        ("/var/lib/rancher/k3s/data/01ab/bin/containerd", "k3s.service", f"{K3S}/config.toml"),
        (
            "/data/k3s/data/01ab/bin/k3s",
            "gpu.service",
            "/data/k3s/agent/etc/containerd/config.toml",
        ),
        (
            "/var/lib/rancher/rke2/data/v1.35.0-rke2r1-01ab/bin/containerd",
            "rke2-agent.service",
            "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        ),
    ],
    ids=["k3s", "k3s elsewhere", "RKE2"],
)
def test_the_gpu_operator_s_default_config_is_not_meant_where_k3s_generates_its_own(
    tmp_path: Path, executable: str, unit: str, config: str
) -> None:
    where = operators(tmp_path, daemon(executable, unit), config)
    assert (where.config, where.delivery.kind) == (config, DeliveryKind.AUTO_DETECTED)
    assert where.host.local(where.config).exists()
    assert where.note.startswith(
        "--config=/etc/containerd/config.toml is the default of containerd"
    )
    assert config in where.note


def test_it_is_not_meant_while_k3s_is_down_either(tmp_path: Path) -> None:
    where = operators(tmp_path, None, None)
    assert (where.config, where.delivery.kind) == (f"{K3S}/config.toml", DeliveryKind.AUTO_DETECTED)


@pytest.mark.parametrize(
    ("executable", "config"),
    [
        ("/usr/bin/containerd", None),
        ("/usr/bin/containerd", "/etc/other.toml"),
        ("/snap/k8s/1/bin/containerd", "/var/snap/k8s/common/etc/containerd/config.toml"),
    ],
    ids=["containerd", "containerd elsewhere", "Canonical Kubernetes"],
)
def test_it_is_meant_everywhere_else(tmp_path: Path, executable: str, config: str | None) -> None:
    socket = f"{tmp_path}/run/containerd/containerd.sock"
    where = operators(tmp_path, daemon(executable), config, socket=socket)
    assert (where.config, where.note) == ("/etc/containerd/config.toml", "")


def test_no_drop_in_is_wanted_in_a_directory_of_k3s_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        files, "immutable_reason", lambda path: "is read-only" if K3S in str(path) else ""
    )
    where = operators(
        tmp_path, daemon("/var/lib/rancher/k3s/data/01ab/bin/k3s"), f"{K3S}/config.toml"
    )
    assert (where.drop_in, where.delivery.drop_ins) == ("", ())
    assert f"CONTAINERD_CONFIG={K3S}/config.toml" in where.note


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
            "drop_in_config": str(
                tmp_path / f"{usual}/config-v3.toml.d/99-nvidia.toml".lstrip("/")
            ),
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


def test_what_was_discovered_does_not_outlast_a_daemon_that_is_started_otherwise(
    tmp_path: Path,
) -> None:
    found = {
        "runtime": "containerd",
        "config": "/srv/c.toml",
        "drop_in_config": "/srv/c.d/99-nvidia.toml",
    }
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
