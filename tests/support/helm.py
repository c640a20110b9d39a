"""The real helm, built from its Go module, and what it makes of the chart."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support import nodes, real, versions
from tests.support.availability import Unavailable

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "deploy/helm/nvidia-toolkit"
MAJORS: Final = tuple(versions.HELM)
"""The major versions, the first of which is meant where none is named."""
RELEASE: Final = "nvidia-toolkit"
NAMESPACE: Final = "nvidia-toolkit"
DOCUMENTED: Final = (
    "--set", "operator.defaultRuntime=containerd",
    "--set", "toolkit.env[0].name=CONTAINERD_CONFIG",
    "--set", "toolkit.env[0].value=/etc/containerd/config.toml",
    "--set", "toolkit.env[1].name=CONTAINERD_SOCKET",
    "--set", "toolkit.env[1].value=/run/containerd/containerd.sock",
    "--set", "toolkit.env[2].name=CONTAINERD_RUNTIME_CLASS",
    "--set", "toolkit.env[2].value=nvidia",
    "--set", "toolkit.env[3].name=CONTAINERD_SET_AS_DEFAULT",
    "--set-string", "toolkit.env[3].value=true",
)  # fmt: skip
"""The command line that the GPU Operator documents for containerd."""

_BUILD_TIME: Final = 900
# As the Makefile of 3 does: else it takes every cluster that it cannot ask for one of 1.20.
_KUBERNETES: Final = versions.KUBERNETES.split(".")
_LINKED: Final = {
    "3": (
        f"helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor={_KUBERNETES[0]}",
        f"helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={_KUBERNETES[1]}",
    ),
    "4": (),
}


@cache
def find(major: str = MAJORS[0]) -> Path:
    """Return the helm program of a major version, built on first use. Raises Unavailable."""
    version = versions.HELM[major]
    home = nodes.cache() / "go" / f"helm-{version}"
    home.mkdir(parents=True, exist_ok=True)
    wanted = home / "helm"
    with home.with_name(f"{home.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            _build(wanted, major, version)
    real.USED.add(f"helm {version}")
    return wanted


def _build(wanted: Path, major: str, version: str) -> None:
    go = shutil.which("go")
    if go is None:
        raise Unavailable("helm is not built: it needs Go 1.26 or newer on PATH")
    module = f"helm.sh/helm/v{major}"
    told = (f"{module}/internal/version.version={version}", *_LINKED[major])
    linked = " ".join(("-s -w", *(f"-X {each}" for each in told)))
    done = subprocess.run(
        (go, "install", "-trimpath", f"-ldflags={linked}", f"{module}/cmd/helm@{version}"),
        env={**os.environ, "CGO_ENABLED": "0", "GOBIN": str(wanted.parent)},
        capture_output=True, text=True, check=False, timeout=_BUILD_TIME,
    )  # fmt: skip
    if done.returncode != 0:
        raise Unavailable(f"helm {version} cannot be built here: {done.stderr[-500:]}")


def run(
    *words: str,
    kubeconfig: Path | None = None,
    prefix: Sequence[str] = (),
    timeout: float = 110,
    major: str = MAJORS[0],
) -> subprocess.CompletedProcess[str]:
    """Run helm, with nothing of this machine's settings and caches."""
    program = find(major)
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": nodes.PATH, "HOME": home}
        if kubeconfig is not None:
            environment["KUBECONFIG"] = str(kubeconfig)
        return subprocess.run(
            (*prefix, str(program), *words),
            env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip


def rendered(*options: str) -> list[dict[str, Any]]:
    """Return the objects that the chart makes of some options."""
    return objects(template(*options))


def template(*options: str, major: str = MAJORS[0]) -> str:
    """Return what the chart makes of some options, as helm writes it."""
    done = run("template", RELEASE, str(CHART), f"--namespace={NAMESPACE}", *options, major=major)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(*options: str, major: str = MAJORS[0]) -> str:
    """Return why helm refuses some options."""
    done = run("template", RELEASE, str(CHART), f"--namespace={NAMESPACE}", *options, major=major)
    assert done.returncode != 0, done.stdout
    return done.stderr


def objects(text: str) -> list[dict[str, Any]]:
    """Return the objects of a YAML text."""
    return [found for found in yaml.safe_load_all(text) if found]


def one(found: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return the only object of a kind."""
    (wanted,) = [each for each in found if each["kind"] == kind]
    return wanted


def container(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the installer's container."""
    (wanted,) = one(found, "DaemonSet")["spec"]["template"]["spec"]["containers"]
    return dict(wanted)


def environment(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the variables that the container gets as they are."""
    return {each["name"]: each["value"] for each in container(found)["env"] if "value" in each}


def mounts(found: Sequence[dict[str, Any]]) -> dict[str, tuple[str, bool]]:
    """Return where the container sees which directory of the host, and whether it is writable."""
    volumes = one(found, "DaemonSet")["spec"]["template"]["spec"]["volumes"]
    sources = {each["name"]: each["hostPath"]["path"] for each in volumes}
    return {
        each["mountPath"]: (sources[each["name"]], not each.get("readOnly", False))
        for each in container(found)["volumeMounts"]
    }
