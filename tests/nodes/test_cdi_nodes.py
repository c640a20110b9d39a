"""The whole chain on a booted node: installer, containerd, the real toolkit, runc, a container.

There is no GPU here. The driver is made up (`tests/support/driver.py`), and that the kernel has
loaded it is said by a file system laid over the node's /sys/module: without it the wrappers would
pass everything on to runc, as they should. What is real is everything between: nvidia-ctk, which
makes the specification, nvidia-container-runtime and its `.cdi`, which find the devices that a
container asks for, and nvidia-cdi-hook, which runc runs.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support import artifacts, boot, containers, crio, driver, nodes, real
from tests.support.nodes import Node, NodeError

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

PROGRAM: Final = str(Path(sys.executable).parent / "nvidia-toolkit")
MANAGEMENT: Final = "/run/cdi/management.nvidia.com-gpu.yaml"
# What the GPU Operator sets for CDI, with a driver container.
OPERATOR: Final = {
    "CDI_ENABLED": "true",
    "NVIDIA_RUNTIME_SET_AS_DEFAULT": "false",
    "NVIDIA_CONTAINER_RUNTIME_MODE": "cdi",
    "NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND": "nvidia.com/gpu",
    "NVIDIA_DRIVER_ROOT": "/run/nvidia/driver",
    "DRIVER_ROOT_CTR_PATH": "/driver-root",
}
MOUNTS: Final = {
    **containers.DEFAULT_MOUNTS,
    "/etc/docker": "/etc/docker",
    "/etc/crio": "/etc/crio",
    "/runtime/sock-dir": "/run",
    "/run/cdi": "/run/cdi",
    "/driver-root": "/run/nvidia/driver",
}
IMAGE: Final = "test:1"
SOCKETS: Final = {"docker": "docker.sock", "crio": "crio/crio.sock"}
STATE: Final = "/usr/local/nvidia/.nvidia-toolkit/state.json"
BY_HAND: Final = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [
        {
            "name": name,
            "containerEdits": {
                "env": [f"MADE_UP_GPU={name}"],
                "mounts": [
                    {
                        "hostPath": "/run/made-up",
                        "containerPath": "/made-up",
                        "options": ["ro", "bind"],
                    }
                ],
            },
        }
        for name in ("0", "all")
    ],
}
LOOK: Final = ("sh", "-c", 'echo "gpu=$MADE_UP_GPU"; cat /made-up')
NO_LOOK: Final = ("sh", "-c", 'echo "gpu=$MADE_UP_GPU"; cat /made-up 2> /dev/null || echo nothing')


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.make_real(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with boot.booted("trixie", units=("containerd", "docker")) as booted:
        if reason := containers.why_no_containers(booted):
            pytest.skip(reason)
        containers.prepare_images(booted)
        for name in ("/run/cdi", "/run/nvidia/driver", "/etc/docker", "/etc/crio"):
            nodes.path(booted, name).mkdir(parents=True, exist_ok=True)
        load_image(booted)
        nodes.path(booted, "/run/cdi/by-hand.yaml").write_text(
            json.dumps(BY_HAND), encoding="utf-8"
        )
        nodes.path(booted, "/run/made-up").write_text("from the node\n", encoding="utf-8")
        yield booted


@pytest.fixture
def loaded(node: Node) -> Iterator[None]:
    """Make the driver up and say that it is loaded, for one test."""
    with driver.on_node(node):
        yield


@pytest.fixture(autouse=True)
def restored(node: Node, source: Path) -> Iterator[None]:
    yield
    install(node, source, "revert", "--force", runtime=runtime_of(node))
    assert not nodes.path(node, MANAGEMENT).exists()
    nodes.run(node, ["rm", "-f", "/run/nvidia/toolkit/restarts.json"])
    nodes.run(node, ["systemctl", "reset-failed", "containerd"], check=False)


def load_image(node: Node) -> None:
    busybox = nodes.path(node, "/usr/bin/busybox").read_bytes()
    nodes.path(node, "/run/image.tar").write_bytes(containers.image_archive(busybox, [IMAGE]))
    nodes.run(node, ["docker", "load", "--input", "/run/image.tar"])


def runtime_of(node: Node) -> str:
    """Return for which runtime the node is set up."""
    return str(json.loads(nodes.path(node, STATE).read_bytes())["runtime"])


def install(node: Node, source: Path, *words: str, runtime: str = "containerd", **env: str) -> str:
    argv = [PROGRAM, *words, f"--runtime={runtime}", f"--toolkit-source-root={source}"]
    argv += [f"--socket=/runtime/sock-dir/{SOCKETS[runtime]}"] if runtime in SOCKETS else []
    given = argv if words else [*argv, "--no-daemon"]
    done = containers.daemonset(node, given, env={**OPERATOR, **env}, mounts=MOUNTS)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def pod(node: Node, handler: str, argv: Sequence[str], *devices: str, **env: str) -> str:
    wishes = containers.wishing(*devices, **env)
    done = containers.run_pod(node, handler=handler, argv=argv, wishes=wishes)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.usefixtures("loaded")
def test_a_container_gets_what_the_specification_says(node: Node, source: Path) -> None:
    install(node, source)
    for handler in ("nvidia", "nvidia-cdi"):
        for asked, name in (("0", "0"), ("all", "all"), ("nvidia.com/gpu=0", "0")):
            said = pod(node, handler, LOOK, NVIDIA_VISIBLE_DEVICES=asked)
            assert (handler, said) == (handler, f"gpu={name}\nfrom the node\n")
        assert pod(node, handler, NO_LOOK, NVIDIA_VISIBLE_DEVICES="void") == "gpu=\nnothing\n"
    assert pod(node, "", NO_LOOK, NVIDIA_VISIBLE_DEVICES="all") == "gpu=\nnothing\n"
    real.USED.add(f"the real toolkit in CDI mode under containerd on Debian {node.suite}")


@pytest.mark.usefixtures("loaded")
def test_docker_s_containers_get_it_too(node: Node, source: Path) -> None:
    install(node, source, runtime="docker")
    for handler in ("nvidia", "nvidia-cdi"):
        run = ["docker", "run", "--rm", "--network=none", f"--runtime={handler}"]
        said = nodes.run(node, [*run, "--env=NVIDIA_VISIBLE_DEVICES=0", IMAGE, *LOOK]).stdout
        assert (handler, said) == (handler, "gpu=0\nfrom the node\n")
        said = nodes.run(node, [*run, "--env=NVIDIA_VISIBLE_DEVICES=void", IMAGE, *NO_LOOK]).stdout
        assert (handler, said) == (handler, "gpu=\nnothing\n")
    real.USED.add(f"the real toolkit in CDI mode under dockerd on Debian {node.suite}")


@pytest.mark.usefixtures("loaded")
def test_a_container_gets_the_whole_driver_of_the_management_specification(
    node: Node, source: Path
) -> None:
    """Made by the real nvidia-ctk, resolved by containerd and toolkit, its hooks run by runc."""
    said = install(node, source)
    assert f"generated the CDI specification {MANAGEMENT.replace('/run/', '/var/run/')}" in said
    library = f"/usr/lib/x86_64-linux-gnu/libcuda.so.{driver.VERSION}"
    look = (
        "sh",
        "-c",
        f"ls /usr/bin/nvidia-smi {library} /dev/nvidiactl; ls /usr/lib/x86_64-linux-gnu",
    )
    device = "management.nvidia.com/gpu=all"
    by_containerd = pod(node, "", look, device)
    by_toolkit = pod(node, "nvidia", look, NVIDIA_VISIBLE_DEVICES=device)
    for said in (by_containerd, by_toolkit):
        assert said.splitlines()[:3] == ["/dev/nvidiactl", "/usr/bin/nvidia-smi", library]
        # A link that only the hook makes: it ran.
        assert "libcuda.so\n" in said


@pytest.mark.parametrize("is_loaded", [False, True], ids=["without the driver", "with it"])
@pytest.mark.parametrize("runtime", ["containerd", "docker"])
def test_each_handler_of_the_real_toolkit_starts_a_container_without_a_gpu(
    node: Node, source: Path, runtime: str, *, is_loaded: bool
) -> None:
    with driver.on_node(node) if is_loaded else contextlib.nullcontext():
        said = install(node, source, runtime=runtime, CDI_ENABLED="false")
    assert "a container was started through each handler in " in said, said


def test_without_the_driver_a_container_runs_without_a_gpu(node: Node, source: Path) -> None:
    install(node, source, CDI_ENABLED="false")
    assert pod(node, "nvidia", NO_LOOK, NVIDIA_VISIBLE_DEVICES="all") == "gpu=\nnothing\n"


def test_without_the_driver_a_container_that_asks_for_a_gpu_is_refused_where_asked_for(
    node: Node, source: Path
) -> None:
    install(node, source, CDI_ENABLED="false", REQUIRE_DRIVER="true")
    for handler in ("nvidia", "nvidia-cdi", "nvidia-legacy"):
        assert pod(node, handler, NO_LOOK, NVIDIA_VISIBLE_DEVICES="void") == "gpu=\nnothing\n"
        assert pod(node, handler, NO_LOOK) == "gpu=\nnothing\n"
        with pytest.raises(
            NodeError, match="requests GPUs, but the NVIDIA driver is not loaded on this node"
        ):
            pod(node, handler, NO_LOOK, NVIDIA_VISIBLE_DEVICES="all")
    assert pod(node, "", NO_LOOK, NVIDIA_VISIBLE_DEVICES="all") == "gpu=\nnothing\n"


@pytest.fixture(scope="module")
def with_crio(node: Node) -> Node:
    if reason := crio.why_not():
        pytest.skip(reason)
    crio.install(node)
    crio.prepare_images(node)
    crio.start(node)
    if reason := crio.why_no_pods(node):
        pytest.skip(reason)
    return node


@pytest.mark.usefixtures("loaded")
def test_cri_o_s_containers_get_it_too(with_crio: Node, source: Path) -> None:
    install(with_crio, source, runtime="crio")
    for handler in ("nvidia", "nvidia-cdi"):
        asks = containers.wishing(NVIDIA_VISIBLE_DEVICES="0")
        done = crio.run_pod(with_crio, handler=handler, argv=LOOK, wishes=asks)
        assert (handler, done.output) == (handler, "gpu=0\nfrom the node\n")
    real.USED.add(f"the real toolkit in CDI mode under CRI-O on Debian {with_crio.suite}")


def test_cri_o_tells_why_a_container_was_refused(with_crio: Node, source: Path) -> None:
    install(with_crio, source, runtime="crio", CDI_ENABLED="false", REQUIRE_DRIVER="true")
    asks, none = (containers.wishing(NVIDIA_VISIBLE_DEVICES=value) for value in ("all", "void"))
    assert crio.run_pod(with_crio, handler="nvidia", argv=NO_LOOK, wishes=none).exit_code == 0
    with pytest.raises(
        NodeError, match="requests GPUs, but the NVIDIA driver is not loaded on this node"
    ):
        crio.run_pod(with_crio, handler="nvidia", argv=NO_LOOK, wishes=asks)
