"""Distributions on a booted node: stand-ins of k3s and microk8s' snap, with a real containerd 2.1.

k3s' stand-in renders its configuration at each start, by Go's template engine, and
makes handlers for what it finds. The node's own containerd runs beside it all the time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support import containers, distros, gpu_operator, nodes, real
from tests.support.nodes import Node
from toolkit.errors import StepError
from toolkit.runtime.client import cri

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

PROGRAM: Final = str(Path(sys.executable).parent / "nvidia-toolkit")
RESTARTS: Final = "/run/nvidia/toolkit/restarts.json"
HOME: Final = "/var/lib/rancher/k3s"
K3S: Final = f"{HOME}/agent/etc/containerd"
PROGRAMS: Final = f"{HOME}/data/0b24fa2ffb10bc8e9a8bf5a3e4e1be9eb6a8c2f1/bin"
SNAP: Final = "/var/snap/microk8s"
COMMON: Final = ("/usr/local/nvidia", "/run/nvidia")
MADE: Final = frozenset({"nvidia", "nvidia-cdi"})
OURS: Final = MADE | {"nvidia-legacy"}

_K3S_UNIT: Final = """\
[Service]
ExecStart=/usr/local/bin/k3s -containerd {programs}/containerd {flags}
Delegate=yes
KillMode=process
Restart=always
RestartSec=5
"""
_SNAP_UNIT: Final = """\
[Service]
ExecStart=/snap/microk8s/7394/run-containerd
KillMode=process
Restart=always
"""
# As the snap's wrapper does it: the template is filled in at each start before containerd runs.
_WRAPPER: Final = """\
#!/bin/sh
set -e
sed {expressions} {snap}/7394/args/containerd-template.toml > {snap}/7394/args/containerd.toml
mkdir -p {snap}/common/run
exec /snap/microk8s/7394/bin/containerd --config {snap}/7394/args/containerd.toml \\
  --root {snap}/common/var/lib/containerd --state {snap}/common/run/containerd \\
  --address {snap}/common/run/containerd.sock
"""

_K0S_UNIT: Final = """\
[Service]
ExecStart=/usr/local/bin/k0s
Restart=always
"""
# k0s looks after containerd, and sends it a SIGHUP 3 s after something changed in the directory.
_K0S: Final = """\
#!/bin/sh
look() { ls -l --time-style=full-iso /etc/k0s/containerd.d; }
while :; do
  mkdir -p /run/k0s
  /var/lib/k0s/bin/containerd --root=/var/lib/k0s/containerd --state=/run/k0s/containerd \\
    --address=/run/k0s/containerd.sock --config=/etc/k0s/containerd.toml &
  pid=$! before=$(look)
  while [ "$before" = "$(look)" ] && kill -0 $pid; do sleep 0.2; done
  sleep 3
  kill -HUP $pid
  wait $pid
done
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    if reason := nodes.why_not():
        pytest.skip(reason)
    agent = distros.agent()
    with nodes.boot("forky") as booted:
        version = nodes.run(booted, ["containerd", "--version"]).stdout.split()[2]
        real.USED.add(f"containerd {version} below stand-ins of k3s and microk8s on a booted node")
        write(booted, "/usr/local/bin/k3s", agent.read_bytes(), mode=0o755)
        containerd = nodes.path(booted, "/usr/bin/containerd").read_bytes()
        # k3s is one program of many names.
        write(booted, f"{PROGRAMS}/k3s", containerd, mode=0o755)
        nodes.path(booted, f"{PROGRAMS}/containerd").symlink_to("k3s")
        write(booted, "/snap/microk8s/7394/bin/containerd", containerd, mode=0o755)
        words = [f"-e 's@${{{name}}}@{text}@g'" for name, text in distros.SNAP.items()]
        wrapper = _WRAPPER.format(expressions=" ".join(words), snap=SNAP)
        write(booted, "/snap/microk8s/7394/run-containerd", wrapper.encode(), mode=0o755)
        write(booted, f"{SNAP}/7394/args/containerd-template.toml", distros.MICROK8S)
        nodes.path(booted, f"{SNAP}/current").symlink_to("7394")
        for place in COMMON:
            nodes.path(booted, place).mkdir(parents=True, exist_ok=True)
        yield booted


class Site:
    """A distribution's runtime on a node, and the program with the chart's mounts and rights."""

    def __init__(self, node: Node, source: Path, *, unit: str, socket: str, config: str) -> None:
        self.node, self.unit, self.config = node, unit, config
        self.socket = nodes.path(node, socket)
        self.options = [
            f"--toolkit-source-root={source}",
            "--runtime=containerd",
            f"--socket={socket}",
        ]
        places = (*COMMON, config, str(Path(socket).parent))
        self.mounts: Mapping[str, str] = {place: place for place in places}
        self.env: Mapping[str, str] = {}

    def __call__(self, *arguments: str, code: int = 0) -> str:
        argv = [PROGRAM, *arguments, *self.options]
        done = containers.daemonset(
            self.node, argv, env=self.env, mounts=self.mounts, capabilities=containers.FEW
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self) -> int:
        """Start the unit anew and return its main PID once its runtime answers."""
        nodes.run(self.node, ["systemctl", "daemon-reload"])
        # Tests restart more often than systemd finds healthy.
        nodes.run(self.node, ["systemctl", "reset-failed", self.unit], check=False)
        nodes.run(self.node, ["systemctl", "restart", self.unit])
        nodes.wait_for(self.node, self.is_up)
        return nodes.main_pid(self.node, self.unit)

    def is_up(self) -> bool:
        try:
            return cri.status(self.socket, timeout=5).runtime_ready
        except StepError:
            return False

    def handlers(self) -> tuple[frozenset[str], str]:
        """Return the handlers of ours and the default that the running daemon says it has."""
        config = cri.status(self.socket, timeout=5).config or {}
        section = config["containerd"]
        return frozenset(section["runtimes"]) & (OURS | {"gpu"}), section["defaultRuntimeName"]

    def binary(self, handler: str) -> str:
        config = cri.status(self.socket, timeout=5).config or {}
        return str(config["containerd"]["runtimes"][handler]["options"]["BinaryName"])

    def pid(self) -> int:
        return nodes.main_pid(self.node, self.unit)

    def restarts(self) -> int:
        """Return how many restarts of ours were counted."""
        path = nodes.path(self.node, RESTARTS)
        return len(json.loads(path.read_bytes())["restarts"]) if path.exists() else 0

    def picture(self) -> dict[str, bytes]:
        """Return every file of the distribution and of ours: its configuration, the toolkit."""
        places = (self.config, "/usr/local/nvidia")
        found = [p for place in places for p in sorted(nodes.path(self.node, place).rglob("*"))]
        return {
            str(p.relative_to(self.node.root)): p.read_bytes() if p.is_file() else b""
            for p in found
        }


def write(node: Node, path: str, data: bytes, *, mode: int = 0o644) -> None:
    place = nodes.path(node, path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    place.chmod(mode)


def k3s_with(
    node: Node, source: Path, flags: str, *, name: str = "k3s", home: str = HOME
) -> Iterator[Site]:
    config = K3S.replace(HOME, home)
    site = Site(
        node, source, unit=name, socket="/run/k3s/containerd/containerd.sock", config=config
    )
    programs = PROGRAMS.replace(HOME, home)
    unit = _K3S_UNIT.format(programs=programs, flags=f"{flags} -data={home}")
    write(node, f"/etc/systemd/system/{name}.service", unit.encode())
    if home != HOME:
        shutil.copytree(nodes.path(node, PROGRAMS), nodes.path(node, programs), symlinks=True)
    nodes.path(node, config).mkdir(parents=True, exist_ok=True)
    nodes.path(node, RESTARTS).unlink(missing_ok=True)
    site.start()
    own = nodes.main_pid(node, "containerd")
    before = site.picture()
    try:
        yield site
        site("revert")
        assert site.picture() == before
        assert site.handlers() == (frozenset(), "runc")
        assert nodes.main_pid(node, "containerd") == own
    finally:
        nodes.run(node, ["systemctl", "stop", name], check=False)
        shutil.rmtree(nodes.path(node, config))
        if home != HOME:
            shutil.rmtree(nodes.path(node, home))


@pytest.fixture
def k3s(node: Node, source: Path) -> Iterator[Site]:
    """Give a k3s of 2026, which imports a directory."""
    yield from k3s_with(node, source, "")


@pytest.fixture
def older(node: Node, source: Path) -> Iterator[Site]:
    """Give a k3s of 2025, which imports nothing."""
    yield from k3s_with(node, source, "-imports=false")


def test_p04_k3s_is_set_up_by_one_file_and_one_restart(k3s: Site) -> None:
    """P04: after any number of starts of k3s it is still so, and its rendered file is its own."""
    rendered = nodes.path(k3s.node, f"{K3S}/config.toml")
    k3s("run", "--no-daemon", "--set-as-default=false")
    assert k3s.handlers() == (OURS, "runc")
    assert k3s.restarts() == 1
    pid = k3s.pid()
    assert "nothing to do: the node is in sync" in k3s(
        "run", "--no-daemon", "--set-as-default=false"
    )
    assert k3s.pid() == pid
    k3s("run", "--no-daemon")
    assert k3s.handlers() == (OURS, "nvidia")
    assert k3s.restarts() == 2
    for _ in range(2):
        k3s.start()
        assert k3s.handlers() == (OURS, "nvidia")
        assert k3s("status").startswith("in sync\n")
    assert "nothing to do: the node is in sync" in k3s("run", "--no-daemon")
    assert k3s("status").startswith("in sync\nready\n")
    # Somebody removes it: it is put back.
    nodes.path(k3s.node, f"{K3S}/config-v3.toml.d/99-nvidia.toml").unlink()
    k3s.start()
    assert k3s.handlers() == (MADE, "runc")
    assert k3s("status").startswith("not in sync\n")
    nodes.path(k3s.node, RESTARTS).unlink()
    k3s("run", "--no-daemon")
    assert k3s.handlers() == (OURS, "nvidia")
    assert sorted(path.name for path in nodes.path(k3s.node, K3S).rglob("*")) == [
        "99-nvidia.toml",
        "config-v3.toml.d",
        "config.toml",
    ]
    assert b"config-v3.toml.d/*.toml" in rendered.read_bytes()


def test_a_k3s_with_another_data_directory_is_set_up_there(node: Node, source: Path) -> None:
    """Neither its unit nor its directories are the usual ones; the rendered file stays k3s'."""
    home = "/ssd/rancher/k3s"
    for site in k3s_with(node, source, "", name="cluster", home=home):
        drop_in = nodes.path(node, f"{home}/agent/etc/containerd/config-v3.toml.d/99-nvidia.toml")
        rendered = nodes.path(node, f"{home}/agent/etc/containerd/config.toml")
        site("run", "--no-daemon")
        assert site.handlers() == (OURS, "nvidia")
        assert site.restarts() == 1
        assert drop_in.exists()
        assert not nodes.path(node, f"{K3S}/config-v3.toml.d").exists()
        site.start()
        assert site.handlers() == (OURS, "nvidia")
        assert "nothing to do: the node is in sync" in site("run", "--no-daemon")
        nodes.run(node, ["systemctl", "stop", "cluster"])
        kept = site.picture()
        site("plan")
        assert site.picture() == kept
        site.start()
        drop_in.unlink()
        site("run", "--no-daemon")
        assert drop_in.exists()
        # k3s' own handlers, for the programs that it finds, are not all of ours.
        assert b"nvidia-legacy" not in rendered.read_bytes()


def test_an_older_k3s_with_another_data_directory_makes_the_handlers_itself(
    node: Node, source: Path
) -> None:
    home = "/kubernetes"
    for site in k3s_with(node, source, "-imports=false -version=2", name="cluster", home=home):
        refused = site("run", "--no-daemon", code=4)
        assert "the default handler cannot be set to nvidia: nothing was changed" in refused
        assert "write `default-runtime: nvidia` into /etc/rancher/k3s/config.yaml" in refused
        site("run", "--no-daemon", "--set-as-default=false")
        assert site.handlers() == (MADE, "runc")
        names = [path.name for path in nodes.path(node, f"{home}/agent/etc/containerd").rglob("*")]
        assert names == ["config.toml"]
        done = "nothing to do: the node is in sync"
        assert done in site("run", "--no-daemon", "--set-as-default=false")


def test_p04_a_k3s_that_imports_nothing_makes_the_handlers_itself(older: Site) -> None:
    """P04: the files are installed, k3s is started once; none of its config files is ours."""
    refused = older("run", "--no-daemon", code=4)
    assert "the default handler cannot be set to nvidia: nothing was changed" in refused
    assert "write `default-runtime: nvidia` into /etc/rancher/k3s/config.yaml" in refused
    assert older.restarts() == 0
    older("run", "--no-daemon", "--set-as-default=false")
    assert older.handlers() == (MADE, "runc")
    assert older.binary("nvidia") == "/usr/local/nvidia/toolkit/nvidia-container-runtime"
    assert older.restarts() == 1
    assert [path.name for path in nodes.path(older.node, K3S).rglob("*")] == ["config.toml"]
    pid = older.pid()
    assert "nothing to do: the node is in sync" in older(
        "run", "--no-daemon", "--set-as-default=false"
    )
    assert older("status", "--set-as-default=false").startswith("in sync\nready\n")
    assert older.pid() == pid
    # What the documentation says of the default, done by an admin as the refusal told.
    setting = "/etc/rancher/k3s/config.yaml"
    write(older.node, setting, b"default-runtime: nvidia\n")
    older.start()
    assert "nothing to do: the node is in sync" in older("run", "--no-daemon")
    assert older.handlers() == (MADE, "nvidia")
    nodes.path(older.node, setting).unlink()
    older.start()


def test_p04_handlers_that_are_not_made_are_no_success(node: Node, source: Path) -> None:
    """It looks elsewhere: the toolkit goes again, and k3s runs as before."""
    for site in k3s_with(node, source, "-imports=false -root=/var/empty"):
        before = site.picture()
        told = site("run", "--no-daemon", "--set-as-default=false", "--reload-timeout=15", code=6)
        assert "the distribution was restarted, but the handler nvidia runs nothing yet" in told
        assert site.picture() == before
        assert site.is_up()


def test_p04_a_run_that_was_killed_before_k3s_started_is_finished_by_the_next(older: Site) -> None:
    """The toolkit is there, k3s' handlers are not: nothing else shows that k3s must restart."""
    argv = [PROGRAM, "run", "--no-daemon", "--set-as-default=false", *older.options]
    with containers.start_daemonset(
        older.node, argv, mounts=older.mounts, capabilities=containers.FEW
    ) as process:
        pid = containers.inner(process)
        nodes.wait_for(older.node, nodes.path(older.node, "/usr/local/nvidia/toolkit").is_symlink)
        os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=30)
    older("run", "--no-daemon", "--set-as-default=false")
    assert older.handlers() == (MADE, "runc")
    assert older.restarts() <= 2
    assert older("status", "--set-as-default=false").startswith("in sync\nready\n")


RANCHER: Final = {"CONTAINERD_SOCKET": "/run/k3s/containerd/containerd.sock"}
"""What the documentation of RKE2 sets in `toolkit.env` of the GPU Operator, and nothing else."""


def as_operator(site: Site, source: Path, *, cdi: bool = True, **env: str) -> None:
    """Run the program as the GPU Operator does with Rancher's values from now on."""
    rendered = gpu_operator.render("containerd", cdi=cdi, env={**RANCHER, **env})
    variables = {**rendered.env, "CDI_OUTPUT_DIR": "", "TOOLKIT_SOURCE_ROOT": str(source)}
    site.options = ["--reload-timeout=30"]
    site.mounts, site.env = rendered.followed, variables


@pytest.mark.parametrize(
    "flags", ["", "-imports=false", "-imports=false -version=2"], ids=["2026", "2025", "version 2"]
)
def test_rancher_s_values_of_the_gpu_operator_set_k3s_up(
    node: Node, source: Path, flags: str
) -> None:
    """The operator then mounts /etc/containerd, which k3s ignores: k3s adds the handlers itself."""
    for site in k3s_with(node, source, flags):
        as_operator(site, source)
        before = default_config(node)
        assert f"it generates {K3S}/config.toml" in site("plan")
        told = site("run", "--no-daemon")
        assert "k3s does not read" in told
        assert site.handlers() == (MADE, "runc")
        assert site.restarts() == 1
        assert site("status").startswith("in sync\nready\n")
        pid = site.pid()
        assert "nothing to do: the node is in sync" in site("run", "--no-daemon")
        assert site.pid() == pid
        assert [path.name for path in nodes.path(node, K3S).rglob("*") if path.is_file()] == [
            "config.toml"
        ]
        assert default_config(node) == before


def default_config(node: Node) -> dict[str, bytes]:
    """Return the files of the default configuration; kubelet creates directories for mounts."""
    files = (path for path in nodes.path(node, "/etc/containerd").rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


def test_rancher_s_values_with_the_path_of_k3s_add_all_handlers(k3s: Site, source: Path) -> None:
    as_operator(k3s, source, cdi=False, CONTAINERD_CONFIG=f"{K3S}/config.toml")
    k3s("run", "--no-daemon")
    assert k3s.handlers() == (OURS, "nvidia")
    assert k3s.restarts() == 1


def test_without_cdi_what_k3s_cannot_do_is_refused_with_the_value_to_set(
    k3s: Site, source: Path
) -> None:
    as_operator(k3s, source, cdi=False)
    refused = k3s("run", "--no-daemon", code=4)
    assert "the default handler cannot be set to nvidia: nothing was changed" in refused
    assert "NVIDIA_RUNTIME_SET_AS_DEFAULT=false" in refused
    assert k3s.restarts() == 0


def test_p14_k0s_starts_its_containerd_once_and_by_itself(node: Node, source: Path) -> None:
    """P14: our file lies where k0s watches; a restart of ours as well would be a second one."""
    site = Site(
        node, source, unit="k0sworker", socket="/run/k0s/containerd.sock", config="/etc/k0s"
    )
    write(
        node,
        "/var/lib/k0s/bin/containerd",
        nodes.path(node, "/usr/bin/containerd").read_bytes(),
        mode=0o755,
    )
    write(node, "/usr/local/bin/k0s", _K0S.encode(), mode=0o755)
    write(node, "/etc/systemd/system/k0sworker.service", _K0S_UNIT.encode())
    for path, data in distros.k0s({}, before_136=False).items():
        write(node, path, data)
    nodes.path(node, "/etc/k0s/containerd.d").mkdir()
    nodes.path(node, RESTARTS).unlink(missing_ok=True)
    try:
        pid = site.start()
        before = site.picture()
        told = site("run", "--no-daemon")
        assert "the distribution restarted containerd" in told
        assert "restarting" not in told
        assert site.handlers() == (OURS, "nvidia")
        assert "nothing to do: the node is in sync" in site("run", "--no-daemon")
        site("revert")
        assert site.handlers() == (frozenset(), "runc")
        assert site.picture() == before
        assert site.pid() == pid
    finally:
        nodes.run(node, ["systemctl", "stop", "k0sworker"], check=False)


def test_cri_of_docker_s_package_is_enabled_where_that_is_asked_for(
    node: Node, source: Path
) -> None:
    """Its containerd.io has CRI off: changed only on request, and it is off again after revert."""
    socket, config = "/run/containerd/containerd.sock", "/etc/containerd"
    site = Site(node, source, unit="containerd", socket=socket, config=config)
    nodes.path(node, RESTARTS).unlink(missing_ok=True)
    before = site.picture()
    package = b'# Docker\'s\n\ndisabled_plugins = ["cri"]\n'
    write(node, f"{config}/config.toml", package)
    try:
        nodes.run(node, ["systemctl", "restart", "containerd"])
        nodes.wait_for(node, lambda: nodes.answers(node))
        assert "use --enable-cri to enable it" in site("plan")
        site("run", "--no-daemon", "--enable-cri")
        assert site.handlers() == (OURS, "nvidia")
        assert "nothing to do: the node is in sync" in site("run", "--no-daemon", "--enable-cri")
        site("revert")
        assert nodes.path(node, f"{config}/config.toml").read_bytes() == package
        assert not site.is_up()
    finally:
        nodes.path(node, f"{config}/config.toml").unlink()
        for path, data in before.items():
            if data and path.startswith(config.lstrip("/")):
                write(node, path, data)
        nodes.run(node, ["systemctl", "restart", "containerd"])


def test_p21_microk8s_template_is_filled_in_with_ours(node: Node, source: Path) -> None:
    """P21: the template keeps its variables, the snap's unit is restarted, the bytes come back."""
    args = f"{SNAP}/current/args"
    unit = "snap.microk8s.daemon-containerd"
    site = Site(node, source, unit=unit, socket=f"{SNAP}/common/run/containerd.sock", config=args)
    write(node, f"/etc/systemd/system/{unit}.service", _SNAP_UNIT.encode())
    nodes.path(node, RESTARTS).unlink(missing_ok=True)
    template = nodes.path(node, f"{SNAP}/7394/args/containerd-template.toml")
    try:
        site.start()
        told = site("run", "--no-daemon")
        assert f"restarting {unit}.service" in told
        assert site.handlers() == (OURS, "nvidia")
        assert template.read_bytes().count(b"${RUNTIME_TYPE}") == 4
        assert b"${SNAPSHOTTER}" in template.read_bytes()
        pid = site.pid()
        assert "nothing to do: the node is in sync" in site("run", "--no-daemon")
        assert site("status").startswith("in sync\nready\n")
        assert site.pid() == pid
        site.start()
        assert site.handlers() == (OURS, "nvidia")
        site("revert")
        assert template.read_bytes() == distros.MICROK8S
        assert site.handlers() == (frozenset(), "runc")
        assert not list(nodes.path(node, "/usr/local/nvidia").iterdir())
    finally:
        nodes.run(node, ["systemctl", "stop", unit], check=False)
