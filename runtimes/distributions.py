"""Kubernetes distributions as data: where their runtime listens, what it reads, by what it is known.

There is no code per distribution: what differs is a row here, and what a row
means is decided where the meaning is (the adapters, the planner). Paths are the
node's; those with `*` are patterns as Go reads them. The facts were read in the
distributions' own sources and documentation (docs/compatibility.md says which).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from runtimes import globs
from runtimes.model import Reach, ReachKind, RuntimeName


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """One row: a distribution's runtime, with the paths by which it is known and used.

    `executables` are patterns of where the daemon's program lies; empty where the
    distribution has no place of its own. `config` and `drop_in` are the root
    config and the drop-in of ours; an empty `drop_in` means that there is none.
    `units` are the systemd units that start the daemon again, and `reach` says how
    our keys get into what it starts with. `in_place_of` are patterns of root
    configs that the daemon may name on its command line where ours is `config`.
    """

    name: str
    runtime: RuntimeName
    sockets: tuple[str, ...]
    config: str
    drop_in: str = ""
    executables: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    in_place_of: tuple[str, ...] = ()
    reach: Reach = field(default_factory=Reach)

    def reads(self, config: str) -> bool:
        """Tell whether a root config is this distribution's, by whichever of its names."""
        return bool(config) and any(globs.matches(p, config) for p in (self.config, *self.in_place_of))


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """An operating system on which the defaults do not work, known by the `ID` of its os-release file.

    `variant` is another name of it: an `ID` and a `VARIANT_ID`, with a dash between.
    `why` says what cannot be written there, and `way` what to do instead.
    """

    id: str
    why: str
    way: str
    variant: str = ""


CONTAINERD: Final = Distribution(
    name="containerd",
    runtime=RuntimeName.CONTAINERD,
    sockets=("/run/containerd/containerd.sock",),
    config="/etc/containerd/config.toml",
    drop_in="/etc/containerd/conf.d/99-nvidia.toml",
    units=("containerd.service",),
)
DOCKER: Final = Distribution(
    name="docker",
    runtime=RuntimeName.DOCKER,
    sockets=("/var/run/docker.sock",),
    config="/etc/docker/daemon.json",
    units=("docker.service",),
)
CRIO: Final = Distribution(
    name="crio",
    runtime=RuntimeName.CRIO,
    sockets=("/var/run/crio/crio.sock",),
    config="/etc/crio/crio.conf",
    drop_in="/etc/crio/crio.conf.d/99-nvidia.toml",
    units=("crio.service",),
)


def _rancher(name: str, units: tuple[str, ...], executables: tuple[str, ...]) -> Distribution:
    """Return the row of k3s or RKE2, which is k3s' agent with other paths and units.

    Both render the root config at each start. Since the releases of early 2026 it imports a directory
    named by its schema version (k3s-io/k3s#13680); at any version `nvidia` is made where the program
    of its runtime is found in the toolkit's usual directory, and `nvidia-cdi` since late 2024 (#11065).
    """
    home = f"/var/lib/rancher/{name}"
    made = f"{home}/agent/etc/containerd"
    return Distribution(
        name=name,
        runtime=RuntimeName.CONTAINERD,
        sockets=("/run/k3s/containerd/containerd.sock",),
        config=f"{made}/config.toml",
        drop_in=f"{made}/config-v3.toml.d/99-nvidia.toml",
        executables=executables,
        units=units,
        reach=Reach(
            kind=ReachKind.MADE,
            drop_ins=(f"{made}/config.toml.d/99-nvidia.toml",),
            makes=("nvidia", "nvidia-cdi"),
            looks_in="/usr/local/nvidia/toolkit",
            default_step=f"write `default-runtime: nvidia` into /etc/rancher/{name}/config.yaml"
            f" and restart {' or '.join(units)}",
            imports=False,
        ),
    )


DISTRIBUTIONS: Final[tuple[Distribution, ...]] = (
    _rancher(
        "k3s",
        ("k3s.service", "k3s-agent.service"),
        ("/var/lib/rancher/k3s/data/*/bin/containerd", "/var/lib/rancher/k3s/data/*/bin/k3s"),
    ),
    _rancher(
        "rke2",
        ("rke2-server.service", "rke2-agent.service"),
        ("/var/lib/rancher/rke2/data/*/bin/containerd",),
    ),
    Distribution(
        name="microk8s",
        runtime=RuntimeName.CONTAINERD,
        sockets=("/var/snap/microk8s/common/run/containerd.sock",),
        # The daemon names the snap's revision, and a refresh copies the files to the next one's directory.
        config="/var/snap/microk8s/current/args/containerd-template.toml",
        in_place_of=("/var/snap/microk8s/*/args/containerd*.toml",),
        executables=("/snap/microk8s/*/bin/containerd",),
        units=("snap.microk8s.daemon-containerd.service",),
        reach=Reach(
            kind=ReachKind.TEMPLATE,
            rendered="/var/snap/microk8s/current/args/containerd.toml",
            values=(("RUNTIME", "runc"),),
            imports=False,
        ),
    ),
    Distribution(
        name="k0s",
        runtime=RuntimeName.CONTAINERD,
        sockets=("/run/k0s/containerd.sock",),
        config="/etc/k0s/containerd.toml",
        drop_in="/etc/k0s/containerd.d/nvidia.toml",
        executables=("/var/lib/k0s/bin/containerd",),
        units=("k0sworker.service", "k0scontroller.service"),
        # Before 1.36 it merges what is of CRI itself, since its containerd 1.7 would replace the section.
        reach=Reach(
            kind=ReachKind.MERGED,
            mark="# k0s_managed=true",
            merges_into="/run/k0s/containerd-cri.toml",
            watches=True,
            imports=False,
        ),
    ),
    Distribution(
        name="canonical-k8s",
        runtime=RuntimeName.CONTAINERD,
        sockets=(
            "/run/containerd/containerd.sock",
            "/var/snap/k8s/common/run/containerd/containerd.sock",
            "/var/snap/k8s/common/run/containerd.sock",
        ),
        config="/var/snap/k8s/common/etc/containerd/config.toml",
        drop_in="/var/snap/k8s/common/etc/containerd/conf.d/99-nvidia.toml",
        executables=("/snap/k8s/*/bin/containerd",),
        units=("snap.k8s.containerd.service",),
        reach=Reach(imports=False),
    ),
    CONTAINERD,
    DOCKER,
    CRIO,
)
"""Every distribution that is known; the plain runtimes are the last three rows."""

SYSTEMS: Final[tuple[System, ...]] = (
    System(
        id="talos",
        why="Talos has a read-only root and takes its configuration from its machine config alone",
        way="install the system extension nvidia-container-toolkit instead: it brings the toolkit and the"
        " handlers, and this program is not needed there",
    ),
    System(
        id="bottlerocket",
        why="Bottlerocket has a read-only root and renders its configuration from its settings API",
        way="use an image of an nvidia variant: it brings the toolkit and the handlers, and this program is"
        " not needed there",
    ),
    System(
        id="flatcar",
        why="Flatcar has a read-only /usr, /usr/local included",
        way="use --toolkit-install-dir=/opt/nvidia; containerd's own configuration lies in /usr/share and has"
        " to be replaced by one in /etc/containerd first",
    ),
    System(
        id="cos",
        why="Container-Optimized OS has a read-only root, and mounts what can be written noexec",
        way="use --toolkit-install-dir=/home/kubernetes/bin/nvidia, or with the host's own toolkit"
        " --no-runtime-config",
    ),
    System(
        id="rhcos",
        variant="rhel-coreos",  # from OpenShift 4.19 on (kubernetes-sigs/blob-csi-driver#2192)
        why="RHEL CoreOS has a read-only /usr; /usr/local is a link into /var",
        way="use --toolkit-install-dir=/usr/local/nvidia, which can be written",
    ),
)
"""Operating systems with a read-only root; `system` finds one of them."""


def of(runtime: RuntimeName, *, executable: str, config: str, unit: str = "") -> Distribution:
    """Return the distribution of a daemon, by the path of its program, its unit, else the config it reads.

    A daemon that is nobody's in particular is that of its plain runtime.
    """
    rows = [row for row in DISTRIBUTIONS if row.runtime == runtime]
    for row in rows:
        if any(globs.matches(pattern, executable) for pattern in row.executables):
            return row
    for row in rows:
        if unit in row.units or row.reads(config):
            return row
    return plain(runtime)


def plain(runtime: RuntimeName) -> Distribution:
    """Return the row of a runtime that no distribution has made its own."""
    return next(row for row in (CONTAINERD, DOCKER, CRIO) if row.runtime == runtime)


def system(os_release: str) -> System | None:
    """Return the row of an operating system by its os-release file; None where the defaults work."""
    said = {
        name.strip(): value.strip().strip("\"'")
        for name, _, value in (line.partition("=") for line in os_release.splitlines())
    }
    named = {said.get("ID", ""), f"{said.get('ID')}-{said.get('VARIANT_ID')}"}
    return next((row for row in SYSTEMS if (named - {""}) & {row.id, row.variant}), None)
