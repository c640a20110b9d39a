"""The parts of an effective configuration that pods depend on, read from every dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import pytest

from runtimes.containerd import ADAPTER as containerd
from runtimes.crio import ADAPTER as crio
from runtimes.docker import ADAPTER as docker
from runtimes.errors import ConfigError
from runtimes.model import BinaryResult, Desired, Effective, Observation, RuntimeName
from tests.support import pure_plan


def names(*handlers: str) -> frozenset[str]:
    return frozenset(handlers)


# --- containerd, by its dump --------------------------------------------------------------------

# Cut down from what the packages of these versions print; 1.x nests tables, 2.x quotes with '.
DUMP_1_6: Final = """
disabled_plugins = []
imports = ["/etc/containerd/config.toml"]
version = 2
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    enable_selinux = false
    sandbox_image = "registry.k8s.io/pause:3.6"
    [plugins."io.containerd.grpc.v1.cri".containerd]
      default_runtime_name = "runc"
      snapshotter = "overlayfs"
      [plugins."io.containerd.grpc.v1.cri".containerd.default_runtime]
        runtime_type = ""
        [plugins."io.containerd.grpc.v1.cri".containerd.default_runtime.options]
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes]
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
          runtime_type = "io.containerd.runc.v2"
          [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
            BinaryName = ""
            SystemdCgroup = false
      [plugins."io.containerd.grpc.v1.cri".containerd.untrusted_workload_runtime]
        runtime_type = ""
  [plugins."io.containerd.internal.v1.opt"]
    path = "/opt/containerd"
"""
DUMP_1_7: Final = """
version = 2
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.8"
    [plugins."io.containerd.grpc.v1.cri".containerd]
      default_runtime_name = "nvidia"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes]
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
          runtime_type = "io.containerd.runc.v2"
          sandbox_mode = "podsandbox"
          [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
            BinaryName = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
            SystemdCgroup = true
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
          runtime_type = "io.containerd.kata.v2"
"""
DUMP_2: Final = """
version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
[plugins]
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = 'overlayfs'
    [plugins.'io.containerd.cri.v1.images'.pinned_images]
      sandbox = 'registry.k8s.io/pause:3.10'
  [plugins.'io.containerd.cri.v1.runtime']
    enable_cdi = true
    [plugins.'io.containerd.cri.v1.runtime'.containerd]
      default_runtime_name = 'runc'
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]
        [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
          runtime_type = 'io.containerd.runc.v2'
          sandboxer = 'podsandbox'
          [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
            SystemdCgroup = true
        [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.gvisor]
          runtime_type = 'io.containerd.runsc.v1'
  [plugins.'io.containerd.grpc.v1.cri']
    disable_tcp_service = true
    stream_server_port = '0'
"""
OLD: Final = """
[plugins.cri]
sandbox_image = "k8s.gcr.io/pause:3.1"
[plugins.cri.containerd]
default_runtime_name = "runc"
[plugins.cri.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v1"
"""
BARE: Final = """
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = ""
"""

DUMPS: Final = {
    "1.6": (
        DUMP_1_6,
        Effective(
            handlers=names("runc"), default="runc", sandbox_image="registry.k8s.io/pause:3.6"
        ),
    ),
    "1.7": (
        DUMP_1_7,
        Effective(
            handlers=names("nvidia", "kata"),
            default="nvidia",
            sandbox_image="registry.k8s.io/pause:3.8",
            systemd_cgroup=names("nvidia"),
        ),
    ),
    "2.x": (
        DUMP_2,
        Effective(
            handlers=names("runc", "gvisor"),
            default="runc",
            sandbox_image="registry.k8s.io/pause:3.10",
            systemd_cgroup=names("runc"),
        ),
    ),
    "schema 1": (
        OLD,
        Effective(handlers=names("runc"), default="runc", sandbox_image="k8s.gcr.io/pause:3.1"),
    ),
    "no sandbox image": (
        DUMP_2.replace("sandbox = 'registry.k8s.io/pause:3.10'", ""),
        Effective(handlers=names("runc", "gvisor"), default="runc", systemd_cgroup=names("runc")),
    ),
    "no handlers and no default": (
        BARE,
        Effective(),
    ),
    "CRI left out": ('version = 2\ndisabled_plugins = ["cri"]\n[plugins]\n', Effective()),
    "no byte": ("", Effective()),
}


def answer(out: str, code: int = 0) -> BinaryResult:
    return BinaryResult(code=code, out=out, err="")


@pytest.mark.parametrize(("dump", "expected"), DUMPS.values(), ids=DUMPS)
def test_a_dump_of_containerd_says_what_its_files_make(dump: str, expected: Effective) -> None:
    seen = Observation(results={"effective": answer(dump)})
    assert containerd.effective(pure_plan.desired(), seen) == expected


def test_without_a_dump_nothing_is_known_of_containerd_s_files() -> None:
    assert containerd.effective(pure_plan.desired(), Observation()) == Effective()
    seen = Observation(results={"effective": answer(DUMP_1_7, code=1)})
    assert containerd.effective(pure_plan.desired(), seen) == Effective()


# --- containerd, by its own word ----------------------------------------------------------------

# As `crictl info` shows it: containerd names in its own camel case, with everything that it has.
SAID_1_7: Final = {
    "containerd": {
        "snapshotter": "overlayfs",
        "defaultRuntimeName": "nvidia",
        "defaultRuntime": {"runtimeType": "", "options": None},
        "untrustedWorkloadRuntime": {"runtimeType": "", "options": None},
        "runtimes": {
            "runc": {"runtimeType": "io.containerd.runc.v2", "options": {"SystemdCgroup": True}},
            "nvidia": {
                "runtimeType": "io.containerd.runc.v2",
                "options": {"SystemdCgroup": False},
            },
            "kata": {"runtimeType": "io.containerd.kata.v2", "options": None},
            "bare": {},
        },
    },
    "cni": {"binDir": "/opt/cni/bin"},
    "sandboxImage": "registry.k8s.io/pause:3.8",
}
SAID_2: Final = {
    "containerd": {
        "defaultRuntimeName": "runc",
        "runtimes": {
            "runc": {"runtimeType": "io.containerd.runc.v2", "options": {"SystemdCgroup": True}}
        },
    },
    "enableCDI": True,
}
SAID: Final[dict[str, tuple[Mapping[str, Any] | None, Effective]]] = {
    "1.7": (
        SAID_1_7,
        Effective(
            handlers=names("runc", "nvidia", "kata", "bare"),
            default="nvidia",
            sandbox_image="registry.k8s.io/pause:3.8",
            systemd_cgroup=names("runc"),
        ),
    ),
    "2.x": (
        SAID_2,
        Effective(handlers=names("runc"), default="runc", systemd_cgroup=names("runc")),
    ),
    "nothing": (None, Effective()),
    "no key": ({}, Effective()),
    "an empty image": ({"sandboxImage": ""}, Effective()),
    "no default": (
        {"containerd": {"defaultRuntimeName": "", "runtimes": {"runc": {}}}},
        Effective(handlers=names("runc")),
    ),
    "other kinds": (
        {"containerd": {"defaultRuntimeName": 5, "runtimes": {"runc": 5}}, "sandboxImage": {}},
        Effective(handlers=names("runc")),
    ),
    "lists": ({"containerd": {"runtimes": ["runc"]}}, Effective()),
    "a list": ({"containerd": []}, Effective()),
    "null": ({"containerd": None}, Effective()),
}


@pytest.mark.parametrize(("config", "expected"), SAID.values(), ids=SAID)
def test_containerd_s_own_word_says_what_it_has(
    config: Mapping[str, Any] | None, expected: Effective
) -> None:
    assert containerd.running(config, "") == expected


def test_the_dump_and_the_word_of_one_containerd_say_the_same() -> None:
    seen = Observation(results={"effective": answer(DUMP_1_7)})
    handlers = {
        "nvidia": {"options": {"BinaryName": "/x", "SystemdCgroup": True}},
        "kata": {"options": None},
    }
    said = {
        "containerd": {"defaultRuntimeName": "nvidia", "runtimes": handlers},
        "sandboxImage": "registry.k8s.io/pause:3.8",
    }
    assert containerd.effective(pure_plan.desired(), seen) == containerd.running(said, "")


# --- CRI-O --------------------------------------------------------------------------------------

WISH: Final = Desired(
    runtime=RuntimeName.CRIO,
    config="/etc/crio/crio.conf",
    drop_in="/etc/crio/crio.conf.d/99-nvidia.conf",
    directory="/etc/crio/crio.conf.d",
    handlers=pure_plan.HANDLERS,
    default="nvidia",
)
# What the daemon answers to GET /config: everything, whatever the files say.
CONFIG: Final = """
[crio]
  root = "/var/lib/containers/storage"
  [crio.api]
    listen = "/var/run/crio/crio.sock"
  [crio.runtime]
    default_runtime = "crun"
    cgroup_manager = "systemd"
    conmon_cgroup = "system.slice"
    [crio.runtime.runtimes]
      [crio.runtime.runtimes.crun]
        runtime_path = "/usr/libexec/crio/crun"
        allowed_annotations = ["io.containers.trace-syscall"]
      [crio.runtime.runtimes.runc]
        runtime_path = "/usr/libexec/crio/runc"
  [crio.image]
    pause_image = "registry.k8s.io/pause:3.10"
"""
CRIO_HAS: Final = Effective(
    handlers=names("crun", "runc"),
    default="crun",
    sandbox_image="registry.k8s.io/pause:3.10",
    systemd_cgroup=names("crun", "runc"),
)
# What `crio config --default` prints: the built-in values of 1.28 and later are comments.
DEFAULT: Final = """
[crio]
[crio.runtime]
# default_runtime = "crun"
[crio.runtime.runtimes.crun]
runtime_path = "/usr/libexec/crio/crun"
[crio.image]
pause_image = "registry.k8s.io/pause:3.10"
"""


def test_crio_s_own_word_says_what_it_has() -> None:
    assert crio.running(None, CONFIG) == CRIO_HAS
    assert crio.running({"containerd": {}}, CONFIG) == CRIO_HAS, (
        "the status over CRI says nothing of it"
    )


def test_crio_that_does_cgroups_itself_has_no_handler_by_systemd() -> None:
    assert crio.running(None, CONFIG.replace('"systemd"', '"cgroupfs"')).systemd_cgroup == names()
    assert (
        crio.running(None, CONFIG.replace('cgroup_manager = "systemd"', "")).systemd_cgroup
        == CRIO_HAS.handlers
    )


def test_crio_without_a_pause_image_names_none() -> None:
    assert crio.running(None, CONFIG.replace("pause_image", "other_image")).sandbox_image is None


UNREADABLE: Final = {
    "no byte": "",
    "no TOML": "<html>",
    "half": CONFIG[: len(CONFIG) // 2],
    "another": "[crio]\nroot = '/'\n",
    "no default": "[crio.runtime.runtimes.crun]\n",
    "no handlers": "[crio.runtime]\ndefault_runtime = 'crun'\n",
    "a number": "crio = 1\n",
    "a number of handlers": "[crio.runtime]\nruntimes = 1\ndefault_runtime = 'crun'\n",
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_a_word_of_crio_that_cannot_be_read_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match=r"^CRI-O's answer cannot be read \("):
        crio.running(None, body)


def of_crio(printed: str, default: str = DEFAULT) -> Effective:
    answers = {"default": answer(default), "effective": answer(printed)}
    return crio.effective(WISH, Observation(results=answers))


def test_crio_s_files_say_what_its_binary_prints_of_them() -> None:
    assert of_crio(CONFIG) == CRIO_HAS


def test_what_crio_prints_as_a_comment_comes_from_its_defaults() -> None:
    found = of_crio("[crio.runtime]\ndefault_runtime = 'runc'\n[crio.runtime.runtimes.runc]\n")
    assert found.sandbox_image == "registry.k8s.io/pause:3.10"
    assert (found.handlers, found.default) == (names("runc"), "runc")


def test_crio_without_handlers_of_its_own_has_the_built_in_ones() -> None:
    assert of_crio("[crio.runtime]\ndefault_runtime = 'crun'\n").handlers == names("crun")


@pytest.mark.parametrize("missing", ["default", "effective"])
@pytest.mark.parametrize("how", ["not asked", "not answered"])
def test_without_both_answers_nothing_is_known_of_crio_s_files(missing: str, how: str) -> None:
    answers = {"default": answer(DEFAULT), "effective": answer(CONFIG)}
    if how == "not asked":
        del answers[missing]
    else:
        answers[missing] = answer("", code=1)
    assert crio.effective(WISH, Observation(results=answers)) == Effective()


# --- Docker -------------------------------------------------------------------------------------

# Cut down from `curl --unix-socket /run/docker.sock http://localhost/info`.
INFO_20_10: Final = {
    "ServerVersion": "20.10.24",
    "CgroupDriver": "cgroupfs",
    "CgroupVersion": "1",
    "Runtimes": {
        "io.containerd.runc.v2": {"path": "runc"},
        "io.containerd.runtime.v1.linux": {"path": "runc"},
        "runc": {"path": "runc"},
    },
    "DefaultRuntime": "runc",
}
INFO_28: Final = {
    "ServerVersion": "28.5.1",
    "CgroupDriver": "systemd",
    "CgroupVersion": "2",
    "Runtimes": {
        "io.containerd.runc.v2": {
            "path": "runc",
            "status": {"org.opencontainers.runtime-spec.features": "{}"},
        },
        "nvidia": {"path": "/usr/local/nvidia/toolkit/nvidia-container-runtime"},
        "runc": {"path": "runc", "status": {"org.opencontainers.runtime-spec.features": "{}"}},
    },
    "DefaultRuntime": "nvidia",
}
INFOS: Final = {
    "20.10": (INFO_20_10, names("runc"), "runc", False),
    "28.5": (INFO_28, names("runc", "nvidia"), "nvidia", True),
    "no cgroup driver": (
        {"Runtimes": {"runc": {}}, "DefaultRuntime": "runc"}, names("runc"), "runc", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("info", "handlers", "default", "is_by_systemd"), INFOS.values(), ids=INFOS
)
def test_dockerd_s_own_word_says_what_it_has_without_its_aliases(
    info: dict[str, Any],
    handlers: frozenset[str],
    default: str,
    *,
    is_by_systemd: bool,
) -> None:
    found = docker.running(None, json.dumps(info))
    assert (found.handlers, found.default, found.sandbox_image) == (handlers, default, None)
    assert found.systemd_cgroup >= handlers if is_by_systemd else not found.systemd_cgroup


@pytest.mark.parametrize(
    "body",
    ["", "<html>", "[]", "null", "5", "{}", '{"Runtimes": {}}', '{"DefaultRuntime": "runc"}',
     '{"Runtimes": null, "DefaultRuntime": "runc"}', '{"Runtimes": 5, "DefaultRuntime": "runc"}',
     '{"Runtimes": [5], "DefaultRuntime": "runc"}'],
    ids=lambda body: body or "no byte",
)  # fmt: skip
def test_a_word_of_dockerd_that_cannot_be_read_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match=r"^dockerd's answer cannot be read \("):
        docker.running(None, body)


FILES: Final = {
    "absent": (None, names("runc"), "runc"),
    "empty": (b"", names("runc"), "runc"),
    "an empty object": (b"{}", names("runc"), "runc"),
    "others'": (b'{"runtimes": {"kata": {"path": "/kata"}}}', names("runc", "kata"), "runc"),
    "a default": (
        b'{"runtimes": {"nvidia": {"path": "/n"}}, "default-runtime": "nvidia"}',
        names("runc", "nvidia"),
        "nvidia",
    ),
    "an empty default": (b'{"default-runtime": ""}', names("runc"), "runc"),
    "an alias": (
        b'{"default-runtime": "io.containerd.runc.v2"}',
        names("runc"),
        "io.containerd.runc.v2",
    ),
}


@pytest.mark.parametrize(("data", "handlers", "default"), FILES.values(), ids=FILES)
def test_docker_s_file_says_what_the_daemon_will_have(
    data: bytes | None, handlers: frozenset[str], default: str
) -> None:
    wish = pure_plan.desired(
        runtime=RuntimeName.DOCKER, config="/etc/docker/daemon.json", drop_in=""
    )
    seen = Observation(files={"/etc/docker/daemon.json": data})
    assert docker.effective(wish, seen) == Effective(handlers=handlers, default=default)


def test_what_docker_s_file_says_is_what_the_daemon_says_once_it_was_read() -> None:
    data = json.dumps(
        {"runtimes": {"nvidia": {"path": "/n"}}, "default-runtime": "nvidia"}
    ).encode()
    wish = pure_plan.desired(
        runtime=RuntimeName.DOCKER, config="/etc/docker/daemon.json", drop_in=""
    )
    said = docker.effective(wish, Observation(files={"/etc/docker/daemon.json": data}))
    now = docker.running(None, json.dumps(INFO_28))
    assert (said.handlers, said.default) == (now.handlers, now.default)


@pytest.mark.parametrize(
    "text",
    [
        '{"runtimes": null}',
        '{"runtimes": []}',
        '{"runtimes": 5}',
        '{"runtimes": [5]}',
        '{"runtimes": {"kata": null}}',
        '{"default-runtime": 5}',
        '{"default-runtime": {"a": 1}}',
        '{"default-runtime": null}',
    ],
)
def test_a_file_of_docker_with_values_of_another_kind_is_refused_or_read(text: str) -> None:
    wish = pure_plan.desired(
        runtime=RuntimeName.DOCKER, config="/etc/docker/daemon.json", drop_in=""
    )
    seen = Observation(files={"/etc/docker/daemon.json": text.encode()})
    try:
        found = docker.effective(wish, seen)
    except ConfigError:
        return
    assert found.handlers is None or "runc" in found.handlers
    assert isinstance(found.default, str | None)
