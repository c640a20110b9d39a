"""Kubernetes distributions as data: sockets, config paths, units, and how to recognize each one.

There is no code per distribution. Each difference is a field of a row here, and the adapters act on
it. Paths are paths on the node; those with `*` are patterns with Go's semantics (`globs`). The
facts come from the distributions' sources and documentation; see docs/compatibility.md.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from runtimes import globs
from runtimes.dataclass import dataclass, field
from runtimes.model import ConfigDelivery, DeliveryKind, RuntimeName

# --- restart times --------------------------------------------------------------------------------

RESTARTED: Final[Mapping[str, float]] = MappingProxyType(
    {"containerd.service": 0.111, "crio.service": 0.151}
)
"""The measured downtime of a restart by systemd, in seconds, by the runtime's unit."""

SIGNALLED: Final[Mapping[str, float]] = MappingProxyType(
    {"containerd.service": 5.2, "docker.service": 0.007}
)
"""The measured downtime after SIGHUP, in seconds, by the runtime's unit.

containerd exits on SIGHUP, and its unit waits for `RestartSec=5` before it starts it again.
"""


def duration(seconds: float) -> str:
    """Return a duration in seconds as text, rounded because the measurements vary."""
    if seconds < 0.05:
        return "less than 0.1 s"
    return f"about {seconds:.0f} s" if seconds >= 1 else f"about {seconds:.1f} s"


# --- distributions --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A distribution's runtime, with its paths and units.

    `executables` are patterns of the path of the daemon's program; empty if the distribution uses
    the usual path. `config` is the root config and `drop_in` our drop-in; an empty `drop_in` means
    that there is none. `units` are the systemd units that start the daemon, and `other_units`
    patterns of the names that an installation may give them instead. `delivery` describes how our
    keys get into the daemon's configuration. `in_place_of` are patterns of root configs that the
    daemon may have on its command line instead of `config`.

    `data_dir` is the default of a directory that an installation may have elsewhere; empty if there
    is none. `config` and `executables` that are below it are then below the other one, and
    `programs` are patterns of the daemon's program relative to it which no other distribution uses.

    `runtime_classes` are the RuntimeClasses that the distribution itself creates in the cluster,
    so that the chart must not.
    """

    name: str
    runtime: RuntimeName
    sockets: tuple[str, ...]
    config: str
    drop_in: str = ""
    executables: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    other_units: tuple[str, ...] = ()
    in_place_of: tuple[str, ...] = ()
    data_dir: str = ""
    programs: tuple[str, ...] = ()
    runtime_classes: tuple[str, ...] = ()
    delivery: ConfigDelivery = field(default_factory=ConfigDelivery)

    def reads(self, config: str) -> bool:
        """Return whether a path is a root config of this distribution, including `in_place_of`."""
        return bool(config) and any(
            globs.matches(p, config) for p in (self.config, *self.in_place_of)
        )

    def reads_elsewhere(self, config: str) -> bool:
        """Return whether a path is this distribution's root config below another data directory."""
        return bool(self.data_dir) and config.endswith(self.config.removeprefix(self.data_dir))

    def relocated(self, path: str, config: str) -> str:
        """Return one of this distribution's paths where its root config is `config`.

        A path below the root config's directory moves with it, and one below the data directory
        too.
        """
        if not path or config == self.config or self.delivery.kind is DeliveryKind.TEMPLATE:
            return path
        relative = posixpath.relpath(path, posixpath.dirname(self.config))
        return posixpath.normpath(posixpath.join(posixpath.dirname(config), relative))

    def is_unit(self, unit: str) -> bool:
        """Return whether a systemd unit is one of this distribution."""
        return unit in self.units or any(
            globs.matches(pattern, unit) for pattern in self.other_units
        )

    def is_program(self, executable: str) -> bool:
        """Return whether an executable is this distribution's below another data directory."""
        parts = executable.split("/")
        return any(
            len(parts) > pattern.count("/") + 1
            and globs.matches(pattern, "/".join(parts[-pattern.count("/") - 1 :]))
            for pattern in self.programs
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """An operating system on which the default settings do not work.

    `id` is the `ID` of its os-release file. `variant` is an alternative: `ID` and `VARIANT_ID`,
    joined by a dash. `why` says which directories are read-only and `hint` what to do instead.
    """

    id: str
    why: str
    hint: str
    variant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A program that starts a runtime's daemon as its child, and what it does when the child ends.

    `name` is the name of its process, as the kernel cuts it (15 bytes). It starts the child again,
    unless `ends_with_child`: then it ends as well, with an exit status that is not 0.
    """

    name: str
    ends_with_child: bool = False


PARENTS: Final[tuple[Parent, ...]] = (
    Parent(name="runsv"),
    Parent(name="s6-supervise"),
    Parent(name="supervise-daemo"),  # of OpenRC
    Parent(name="supervise"),  # of daemontools
    Parent(name="k0s"),
    Parent(name="k3s", ends_with_child=True),
    Parent(name="k3s-server", ends_with_child=True),
    Parent(name="k3s-agent", ends_with_child=True),
    Parent(name="rke2", ends_with_child=True),
)
"""Supervisors other than systemd, and distributions that start the daemon themselves."""


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


def _rancher(
    name: str, units: tuple[str, ...], executables: tuple[str, ...], programs: tuple[str, ...]
) -> Distribution:
    """Return the row of k3s or RKE2; RKE2 runs the agent of k3s with other paths and units.

    Both have an option `data-dir`. The socket does not depend on it. The programs are in a
    directory named after a hash (k3s) or after the release (RKE2). INSTALL_K3S_NAME changes the
    unit's name. Both render the root config at each start. Since the releases of early 2026 it
    imports a directory named after its schema version (k3s-io/k3s#13680). Every release adds the
    handler `nvidia` if it finds the runtime's program in the usual directory of the toolkit;
    releases since late 2024 also add `nvidia-cdi` (#11065). The RuntimeClass `nvidia` is in the
    packaged manifest runtimes.yaml of k3s, and in the packaged chart rke2-runtimeclasses of RKE2.
    """
    home = f"/var/lib/rancher/{name}"
    config_dir = f"{home}/agent/etc/containerd"
    return Distribution(
        name=name,
        runtime=RuntimeName.CONTAINERD,
        sockets=("/run/k3s/containerd/containerd.sock",),
        config=f"{config_dir}/config.toml",
        drop_in=f"{config_dir}/config-v3.toml.d/99-nvidia.toml",
        executables=executables,
        units=units,
        other_units=(f"{name}-*.service",),
        data_dir=home,
        programs=programs,
        runtime_classes=("nvidia",),
        delivery=ConfigDelivery(
            kind=DeliveryKind.AUTO_DETECTED,
            drop_ins=(f"{config_dir}/config.toml.d/99-nvidia.toml",),
            provided_handlers=("nvidia", "nvidia-cdi"),
            search_dir="/usr/local/nvidia/toolkit",
            default_step=(
                f"write `default-runtime: nvidia` into /etc/rancher/{name}/config.yaml"
                f" and restart {' or '.join(units)}"
            ),
            imports=False,
        ),
    )


DISTRIBUTIONS: Final[tuple[Distribution, ...]] = (
    _rancher(
        "k3s",
        ("k3s.service", "k3s-agent.service"),
        ("/var/lib/rancher/k3s/data/*/bin/containerd", "/var/lib/rancher/k3s/data/*/bin/k3s"),
        ("data/[0-9a-f]*/bin/containerd", "data/*/bin/k3s"),
    ),
    _rancher(
        "rke2",
        ("rke2-server.service", "rke2-agent.service"),
        ("/var/lib/rancher/rke2/data/*/bin/containerd",),
        ("data/v[0-9]*rke2*/bin/containerd",),
    ),
    Distribution(
        name="microk8s",
        runtime=RuntimeName.CONTAINERD,
        sockets=("/var/snap/microk8s/common/run/containerd.sock",),
        # The daemon's command line contains the revision of the snap instead of `current`. A
        # refresh of the snap copies the files to the directory of the new revision.
        config="/var/snap/microk8s/current/args/containerd-template.toml",
        in_place_of=("/var/snap/microk8s/*/args/containerd*.toml",),
        executables=("/snap/microk8s/*/bin/containerd",),
        units=("snap.microk8s.daemon-containerd.service",),
        delivery=ConfigDelivery(
            kind=DeliveryKind.TEMPLATE,
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
        # Before 1.36, k0s itself merges the CRI section of drop-ins, because its containerd 1.7
        # would replace the whole section.
        delivery=ConfigDelivery(
            kind=DeliveryKind.MERGED,
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
        delivery=ConfigDelivery(imports=False),
    ),
    CONTAINERD,
    DOCKER,
    CRIO,
)
"""All supported distributions; the last three rows are the runtimes without a distribution."""

SYSTEMS: Final[tuple[System, ...]] = (
    System(
        id="talos",
        why="Talos has a read-only root and reads its configuration only from its machine config",
        hint=(
            "install the system extension nvidia-container-toolkit instead: it provides the toolkit"
            " and the handlers, so this program is not needed"
        ),
    ),
    System(
        id="bottlerocket",
        why="Bottlerocket has a read-only root and renders its configuration from its settings API",
        hint=(
            "use an image of an nvidia variant: it provides the toolkit and the handlers, so this"
            " program is not needed"
        ),
    ),
    System(
        id="flatcar",
        why="Flatcar has a read-only /usr, including /usr/local",
        hint=(
            "use --toolkit-install-dir=/opt/nvidia (in a pod, with that directory of the node"
            " mounted at the same path); containerd's default configuration is in /usr/share, so"
            " first replace it by one in /etc/containerd"
        ),
    ),
    System(
        id="nixos",
        why="NixOS generates configuration files in /nix/store, which is read-only",
        hint=(
            "add the handlers to virtualisation.containerd.settings (virtualisation.cri-o.settings,"
            " virtualisation.docker.daemon.settings) of the system's configuration, and use"
            " --no-runtime-config to install the toolkit alone"
        ),
    ),
    System(
        id="cos",
        why=(
            "Container-Optimized OS has a read-only root and mounts most writable file systems"
            " noexec"
        ),
        hint=(
            "use --toolkit-install-dir=/home/kubernetes/bin/nvidia (in a pod, with that directory"
            " of the node mounted at the same path), or --no-runtime-config if the host provides"
            " the toolkit"
        ),
    ),
    System(
        id="rhcos",
        variant="rhel-coreos",  # from OpenShift 4.19 on (kubernetes-sigs/blob-csi-driver#2192)
        why="RHEL CoreOS has a read-only /usr, but /usr/local is a link into /var",
        hint="use --toolkit-install-dir=/usr/local/nvidia, which is writable",
    ),
)
"""Operating systems with a read-only root or /usr; see `system`."""


def of(
    runtime: RuntimeName, *, executable: str, config: str, unit: str = "", socket: str = ""
) -> Distribution:
    """Return the distribution of a daemon.

    The path of its executable is checked first, then its systemd unit and its root config. Then its
    socket decides, unless a runtime without a distribution may use it as well. If none matches,
    return the row of the runtime without a distribution.
    """
    rows = [row for row in DISTRIBUTIONS if row.runtime == runtime]
    for row in rows:
        if any(globs.matches(pattern, executable) for pattern in row.executables):
            return row
    for row in rows:
        if row.is_unit(unit) or row.reads(config):
            return row
    usual = plain(runtime)
    at_socket = [row for row in rows if socket in row.sockets]
    if usual in at_socket:
        return usual
    return _elsewhere(at_socket, executable=executable, config=config) or usual


def _elsewhere(
    at_socket: Sequence[Distribution], *, executable: str, config: str
) -> Distribution | None:
    """Return the distribution of a daemon whose files are not at the usual paths, by its socket.

    If several distributions use the socket, the program decides, and then the root config: by its
    place, and by the names of its directories, which people choose.
    """
    for row in at_socket:
        if row.is_program(executable):
            return row
    reading = [row for row in at_socket if row.reads_elsewhere(config)] or at_socket
    named = [row for row in reading if f"/{row.name}/" in config]
    return next(iter(named or reading), None)


def parent(name: str) -> Parent | None:
    """Return the row of a process that starts a runtime's daemon, by its name; None if unknown."""
    return next((row for row in PARENTS if row.name == name), None)


def plain(runtime: RuntimeName) -> Distribution:
    """Return the row of a runtime without a distribution."""
    return next(row for row in (CONTAINERD, DOCKER, CRIO) if row.runtime == runtime)


def system(os_release: str) -> System | None:
    """Return the row for the content of an os-release file; None if the defaults work there."""
    fields = {
        name.strip(): value.strip().strip("\"'")
        for name, _, value in (line.partition("=") for line in os_release.splitlines())
    }
    names = {fields.get("ID", ""), f"{fields.get('ID')}-{fields.get('VARIANT_ID')}"}
    return next((row for row in SYSTEMS if (names - {""}) & {row.id, row.variant}), None)
