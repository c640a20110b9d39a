"""Stand-ins of distributions: how they render their templates, by the real engine or real sed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

from runtimes import distributions
from runtimes.distributions import Distribution
from runtimes.formats import toml_editor
from runtimes.model import Desired
from tests.support import nodes, pure_plan
from tests.support.availability import Unavailable

K3S: Final = Path(__file__).parent / "k3s"
CONFIG: Final = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
TEMPLATE: Final = "/var/snap/microk8s/current/args/containerd-template.toml"
SNAP: Final = {
    "SNAP": "/snap/microk8s/7394",
    "SNAP_DATA": "/var/snap/microk8s/7394",
    "SNAPSHOTTER": "overlayfs",
    "RUNTIME": "runc",
    "RUNTIME_TYPE": "io.containerd.runc.v2",
}
"""What microk8s' wrapper of containerd replaces, on a node with cgroup2."""

MICROK8S: Final = b"""\
# The keys of microk8s' template, in words of our own.
version = 2

[metrics]
  address = "127.0.0.1:1338" # asked by the dashboard

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "${SNAPSHOTTER}"
    # what pods without a RuntimeClass get
    default_runtime_name = "${RUNTIME}"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "${RUNTIME_TYPE}"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
      runtime_type = "io.containerd.kata.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata.options]
        BinaryName = "kata-runtime"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "${SNAP_DATA}/opt/cni/bin"
    conf_dir = "${SNAP_DATA}/args/cni-network"
"""


def row(name: str) -> Distribution:
    """Return a distribution's row."""
    return next(each for each in distributions.DISTRIBUTIONS if each.name == name)


def wish(name: str, **changed: object) -> Desired:
    """Return the installer's wish on a distribution, with what a test changes."""
    found = row(name)
    return pure_plan.desired(
        **{"config": found.config, "drop_in": found.drop_in, "delivery": found.delivery, **changed}
    )


@cache
def agent() -> Path:
    """Return the stand-in of k3s' agent, built on first use. Raises Unavailable."""
    sources = sorted(path for path in K3S.iterdir() if path.is_file())
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:10]
    home = nodes.cache() / "go"
    home.mkdir(parents=True, exist_ok=True)
    wanted = home / f"k3s-{digest}"
    with (home / "k3s.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if wanted.exists():
            return wanted
        go = shutil.which("go", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/go/bin")
        if go is None:
            raise Unavailable("the stand-in of k3s is not built: it needs Go 1.26 or newer on PATH")
        done = subprocess.run(
            (go, "build", "-trimpath", "-o", f"{wanted}.new", "."),
            cwd=K3S, env={**os.environ, "CGO_ENABLED": "0"},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        Path(f"{wanted}.new").rename(wanted)
    return wanted


def k3s(root: Path, *flags: str) -> bytes:
    """Return what k3s would render on a node with files below a directory, or AssertionError."""
    done = subprocess.run(
        (agent(), "-render", f"-root={root}", *flags), capture_output=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_toolkit(root: Path) -> Path:
    """Put what k3s looks for where it looks, below a directory; return the directory."""
    for handler in pure_plan.HANDLERS:
        path = root / handler.binary.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def microk8s(template: bytes, values: Mapping[str, str] = SNAP) -> bytes:
    """Return what microk8s' wrapper makes of its template: by sed, one variable at a time."""
    words: Sequence[str] = [f"s@${{{name}}}@{text}@g" for name, text in values.items()]
    done = subprocess.run(
        ("sed", *(word for each in words for word in ("-e", each))),
        input=template, capture_output=True, check=True, timeout=30,
    )  # fmt: skip
    return done.stdout


def k0s(drop_ins: Mapping[str, bytes], *, before_136: bool) -> dict[str, bytes]:
    """Return what k0s writes for containerd: since 1.36 an import, before that the CRI section."""
    managed = b"# k0s_managed=true\n"
    if not before_136:
        return {
            "/etc/k0s/containerd.toml": (
                managed + b"version = 3\nimports ="
                b' ["/etc/k0s/containerd.d/*.toml"]\n'
                b"[plugins.'io.containerd.cri.v1.images'.pinned_images]\n"
                b'sandbox = "quay.io/k0s/pause:3.10"\n'
            ),
        }
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    text = (
        f'version = 2\n[{cri}]\nsandbox_image = "quay.io/k0s/pause:3.9"\n'
        f'[{cri}.cni]\nbin_dir = "/opt/cni/bin"\n'
        f'[{cri}.containerd]\ndefault_runtime_name = "runc"\n'
        f'[{cri}.containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'
    )
    document = toml_editor.parse(text.encode(), "containerd-cri.toml")
    for path, data in sorted(drop_ins.items()):
        for key, item in _leaves(toml_editor.tree(data, path)):
            document = toml_editor.put(document, key, item)
    return {
        "/etc/k0s/containerd.toml": (
            managed + b'version = 2\nimports = ["/run/k0s/containerd-cri.toml"]\n'
        ),
        "/run/k0s/containerd-cri.toml": document.encode(),
    }


def _leaves(
    tree: Mapping[str, object], prefix: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], object]]:
    found: list[tuple[tuple[str, ...], object]] = []
    for name, item in tree.items():
        found += (
            _leaves(item, (*prefix, name)) if isinstance(item, dict) else [((*prefix, name), item)]
        )
    return found


def nowhere(desired: Desired) -> Desired:
    """Return a wish that leaves the default to others."""
    return replace(desired, default=None)
