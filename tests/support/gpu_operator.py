"""The toolkit's container as the GPU Operator renders it: variables, mounts, entry point.

Written from the facts of NVIDIA/gpu-operator (Apache-2.0) at commit a22dbf671f2e (August 2026):
`assets/state-container-toolkit/0400_configmap.yaml` and `0500_daemonset.yaml`, and
`TransformToolkit` with what it calls in `controllers/object_controls.go`; the driver's file is the
one that `cmd/nvidia-validator/main.go` writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

VALIDATIONS: Final = "/run/nvidia/validations"
DRIVER_READY: Final = """\
IS_HOST_DRIVER=false
NVIDIA_DRIVER_ROOT=/run/nvidia/driver
DRIVER_ROOT_CTR_PATH=/driver-root
NVIDIA_DEV_ROOT=/run/nvidia/driver
DEV_ROOT_CTR_PATH=/driver-root
"""
HOST_DRIVER_READY: Final = """\
IS_HOST_DRIVER=true
NVIDIA_DRIVER_ROOT=/
DRIVER_ROOT_CTR_PATH=/host
NVIDIA_DEV_ROOT=/
DEV_ROOT_CTR_PATH=/host
"""
ENTRYPOINT: Final = f"""\
#!/bin/sh
until [ -f {VALIDATIONS}/driver-ready ]
do
  echo "waiting for the driver validations to be ready..."
  sleep 5
done
set -o allexport
cat {VALIDATIONS}/driver-ready
. {VALIDATIONS}/driver-ready
sleep 5
exec nvidia-toolkit
"""

_CONFIGS: Final = {
    "containerd": "/etc/containerd/config.toml",
    "crio": "/etc/crio/config.toml",  # which no CRI-O reads
    "docker": "/etc/docker/daemon.json",
}
_DROP_INS: Final = {
    "containerd": "/etc/containerd/conf.d/99-nvidia.toml",
    "crio": "/etc/crio/crio.conf.d/99-nvidia.conf",
}
_SOCKETS: Final = {
    "containerd": "/run/containerd/containerd.sock",
    "docker": "/var/run/docker.sock",
}
_PREFIX: Final = {"containerd": "CONTAINERD", "crio": "CRIO", "docker": "DOCKER"}
_HOOKS: Final = "/usr/share/containers/oci/hooks.d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Its variables, and the node's directories by path in the container; `/host` is added."""

    env: Mapping[str, str]
    mounts: Mapping[str, str]

    @property
    def followed(self) -> Mapping[str, str]:
        """Return the mounts at where an image's links lead: /var/run is one to /run."""
        return {os.path.realpath(target): source for target, source in self.mounts.items()}

    def objects(self, script: str) -> list[dict[str, Any]]:
        """Return the DaemonSet's part for a container; `script` is the node's entry point."""
        mounts = {**self.mounts, "/host": "/"}
        volumes = [
            {"name": source, "hostPath": {"path": source, "type": "DirectoryOrCreate"}}
            for source in dict.fromkeys(mounts.values())
        ]
        container = {
            "command": ["/bin/sh", "-c"],
            "args": ["/bin/entrypoint.sh"],
            "securityContext": {"privileged": True},
            "env": [{"name": name, "value": value} for name, value in self.env.items()],
            "volumeMounts": [
                {"name": script, "mountPath": "/bin/entrypoint.sh", "readOnly": True},
                *(
                    {"name": source, "mountPath": target, "readOnly": target == "/host"}
                    for target, source in mounts.items()
                ),
            ],
        }
        volumes.append({"name": script, "hostPath": {"path": script, "type": "File"}})
        pod = {"hostPID": True, "volumes": volumes, "containers": [container]}
        return [{"kind": "DaemonSet", "spec": {"template": {"spec": pod}}}]


def render(
    runtime: str,
    *,
    cdi: bool,
    env: Mapping[str, str] | None = None,
    install_dir: str = "/usr/local/nvidia",
    nri: bool = False,
) -> Rendered:
    """Return what the operator makes for a runtime.

    `env` and `install_dir` are `toolkit.env` and `toolkit.installDir` of the ClusterPolicy, `nri`
    is `cdi.nriPluginEnabled`: nothing of the runtime is mounted then but the directory of its NRI
    socket.
    """
    found = {
        "ROOT": install_dir,
        "NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND": "management.nvidia.com/gpu",
        "NVIDIA_VISIBLE_DEVICES": "void",
        "TOOLKIT_PID_FILE": "/run/nvidia/toolkit/toolkit.pid",
        "NRI_NAMESPACE": "gpu-operator",
    }
    if cdi:
        found |= {
            "CDI_ENABLED": "true",
            "NVIDIA_RUNTIME_SET_AS_DEFAULT": "false",
            "NVIDIA_CONTAINER_RUNTIME_MODE": "cdi",
            "CRIO_CONFIG_MODE": "config",
        }
    elif runtime == "crio":
        found["CRIO_CONFIG_MODE"] = "hook"
    found |= {**(env or {}), "RUNTIME": runtime}
    if runtime == "containerd" and not nri:
        found["CONTAINERD_RUNTIME_CLASS"] = "nvidia"
    mounts = {
        "/run/nvidia/toolkit": "/run/nvidia/toolkit",
        VALIDATIONS: VALIDATIONS,
        install_dir: install_dir,
        _HOOKS: _HOOKS if runtime == "crio" else "/run/containers/oci/hooks.d",
        "/driver-root": "/run/nvidia/driver",
        "/var/run/cdi": "/var/run/cdi",
    }
    if nri:
        found |= {"ENABLE_NRI_PLUGIN": "true", "NRI_SOCKET": "/runtime/nri-sock-dir/nri.sock"}
        mounts["/runtime/nri-sock-dir"] = "/var/run/nri"
    else:
        _files(runtime, found, mounts)
    return Rendered(env=found, mounts=mounts)


def _files(runtime: str, env: dict[str, str], mounts: dict[str, str]) -> None:
    """Mount the directories of the runtime's files and socket, and name those in the container."""
    prefix = _PREFIX[runtime]
    config = env.get(f"{prefix}_CONFIG") or env.get("RUNTIME_CONFIG") or _CONFIGS[runtime]
    _mount(mounts, "/runtime/config-dir", config)
    env["RUNTIME_CONFIG"] = env[f"{prefix}_CONFIG"] = _inside("/runtime/config-dir", config)
    if runtime in _DROP_INS:
        drop_in = env.get("RUNTIME_DROP_IN_CONFIG") or _DROP_INS[runtime]
        _mount(mounts, "/runtime/config-dir.d", drop_in)
        env["RUNTIME_DROP_IN_CONFIG"] = _inside("/runtime/config-dir.d", drop_in)
        env["RUNTIME_DROP_IN_CONFIG_HOST_PATH"] = drop_in
    if sources := env.get("RUNTIME_CONFIG_SOURCE"):
        env["RUNTIME_CONFIG_SOURCE"] = ",".join(map(_source, sources.split(",")))
    if runtime in _SOCKETS:
        socket = env.get(f"{prefix}_SOCKET") or _SOCKETS[runtime]
        _mount(mounts, "/runtime/sock-dir", socket)
        env["RUNTIME_SOCKET"] = env[f"{prefix}_SOCKET"] = _inside("/runtime/sock-dir", socket)


def _mount(mounts: dict[str, str], target: str, path: str) -> None:
    mounts[target] = str(PurePosixPath(path).parent)


def _inside(target: str, path: str) -> str:
    return f"{target}/{PurePosixPath(path).name}"


def _source(source: str) -> str:
    kind, equals, path = source.partition("=")
    return f"file=/host{path}" if equals and kind == "file" else source
