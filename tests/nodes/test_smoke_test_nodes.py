"""Handlers tried on real nodes: containerd 1.6, 1.7, 2.1, Docker 20.10, 26.1, 28.5, CRI-O 1.36.

The program installs the handlers; then they are tried from here, through the
node's own socket. What is on the node must be afterwards what was before.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import artifacts, boot, containers, crio, nodes, real
from tests.support.nodes import Node
from toolkit.errors import StepError
from toolkit.runtime import smoke_test
from toolkit.runtime.client import cri
from toolkit.runtime.smoke_test import NotTried

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

PROGRAM: Final = str(Path(sys.executable).parent / "nvidia-toolkit")
TOOLKIT: Final = "/usr/local/nvidia/toolkit"
OURS: Final = ("nvidia", "nvidia-cdi", "nvidia-legacy")
SLICE: Final = "system.slice"
# It hangs only where a container is created: containerd 2 asks every handler's binary for its
# features while it starts, and would wait for this one for ever.
HANGS: Final = "/usr/local/sbin/hangs"
_HANGS: Final = """#!/bin/sh
case " $* " in *" create "*) exec sleep 5 ;; esac
exec runc "$@"
"""
GONE: Final = "/usr/local/sbin/gone"
BINARIES: Final = {"gone": GONE, "fails": "/bin/false", "hangs": HANGS}
WHY: Final = {
    "gone": "no such file or directory",
    "fails": "exit status 1",
    "nobody": "nobody",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node with a runtime that has our handlers, and others that do not work."""

    node: Node
    socket: Path
    unit: str
    parent: str = ""
    mounts: Mapping[str, str]
    options: tuple[str, ...]

    def argv(self, *words: str) -> list[str]:
        return [PROGRAM, *words, *self.options]

    def tool(self, *words: str) -> str:
        """Run the program as the DaemonSet's container would, and return what it said."""
        done = containers.daemonset(self.node, self.argv(*words), mounts=self.mounts)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def verified(self) -> dict[str, str]:
        done = containers.daemonset(
            self.node, self.argv("status", "--output=json"), mounts=self.mounts
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["ready"], found["unready"]
        results = found["verified"]
        assert isinstance(results, dict)
        return results

    def start(self, handler: str, *, timeout: float = 60, parent: str | None = None) -> None:
        if self.unit == "docker":
            smoke_test.start_container(self.socket, handler, timeout=timeout)
        else:
            parent = self.parent if parent is None else parent
            smoke_test.start_pod(self.socket, handler, cgroup_parent=parent, timeout=timeout)

    def failure(self, handler: str, *, timeout: float = 60, parent: str | None = None) -> StepError:
        with pytest.raises(StepError) as caught:
            self.start(handler, timeout=timeout, parent=parent)
        return caught.value

    def traces(self, *, cgroups: bool = True) -> dict[str, object]:
        """Return what a pod or a container could leave behind; call it once one was there."""
        found: dict[str, object] = {
            "daemon": nodes.main_pid(self.node, self.unit),
            "mounts": sorted(run(self.node, "cat /proc/self/mounts").splitlines()),
            "processes": sorted(run(self.node, PROCESSES).splitlines()),
        }
        if cgroups:
            found["cgroups"] = cgroups_of(self.node)
        for name, command in LISTS[self.unit].items():
            found[name] = sorted(run(self.node, command).split())
        return found

    def assert_nothing_left(self, before: Mapping[str, object]) -> None:
        """Wait a moment: a shim ends a little later than what it answers."""
        wanted_cgroups = "cgroups" in before
        deadline = time.monotonic() + 5
        while (
            after := self._since(before, cgroups=wanted_cgroups)
        ) != before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert after == before

    def _since(self, before: Mapping[str, object], *, cgroups: bool) -> dict[str, object]:
        """Return the traces, without what containerd itself collects of an unused image's blobs."""
        after = self.traces(cgroups=cgroups)
        was, now = before.get("content"), after.get("content")
        if isinstance(was, list) and isinstance(now, list) and set(now) < set(was):
            after["content"] = was
        return after


PROCESSES: Final = (
    "cat /proc/[0-9]*/comm 2>/dev/null | grep -E 'shim|runc|conmon|pause|hangs|exit' || true"
)
LISTS: Final[Mapping[str, Mapping[str, str]]] = {
    "containerd": {
        name: f"ctr --namespace=k8s.io {command}"
        for name, command in {
            "containers": "containers ls -q",
            "tasks": "tasks ls -q",
            "images": "images ls -q",
            "leases": "leases ls -q",
            "content": "content ls -q",
            "snapshots": "snapshots ls",
        }.items()
    }
    | {"files": "cd / && find run/containerd run/netns var/lib/containerd/io.containerd.grpc.v1.cri"
       " var/lib/containerd/io.containerd.runtime.v2.task 2>/dev/null || true"},
    "docker": {
        "containers": "docker ps --all --quiet --no-trunc",
        "images": "docker images --all --quiet --no-trunc",
        "volumes": "docker volume ls --quiet",
        "networks": "docker network ls --quiet --no-trunc",
        "moby": "ctr --namespace=moby containers ls -q",
        "files": "cd /var/lib/docker && find containers image overlay2 buildkit -maxdepth 4"
        " -not -name repositories.json",
    },
    "crio": {
        "files": (
            "cd /var/lib/containers/storage &&"
            " find vfs/dir vfs-containers vfs-images -maxdepth 2"
        ),
        "running": "ls /run/containers/storage/vfs-containers /run/runc 2>/dev/null || true",
    },
}  # fmt: skip


def run(node: Node, command: str) -> str:
    return nodes.run(node, ["sh", "-c", command]).stdout


def cgroups_of(node: Node) -> set[str]:
    """Return all cgroups; systemd makes its own in further hierarchies as it likes."""
    return {name for _, below, _ in os.walk(nodes.path(node, "/sys/fs/cgroup")) for name in below}


def install(
    node: Node, source: Path, runtime: str, mounts: Mapping[str, str], socket: str
) -> tuple[str, ...]:
    """Install our handlers without starting anything, and return the program's options."""
    options = (
        f"--runtime={runtime}",
        f"--toolkit-source-root={source}",
        f"--socket={socket}",
        "--restart-budget=0",
    )
    argv = [PROGRAM, "run", "--no-daemon", "--verify=status", *options]
    done = containers.daemonset(node, argv, mounts=mounts)
    assert done.returncode == 0, done.stdout + done.stderr
    return options


def is_verified_by_default(place: Place) -> None:
    """Revert, install and repeat; every handler is started once, and nothing is left."""
    place.tool("revert")
    started = re.compile(
        rf"a container was started through each handler in (\S+) s: {', '.join(OURS)}\n"
    )
    place.tool("run", "--no-daemon")
    before = place.traces(cgroups=False)
    place.tool("revert")
    told = place.tool("run", "--no-daemon")
    found = started.search(told)
    assert found is not None, told
    real.USED.add(
        f"{place.unit} on {place.node.suite}: a container through 3 handlers in {found[1]} s"
    )
    assert place.verified() == dict.fromkeys(OURS, "started")
    after = {**before, "daemon": nodes.main_pid(place.node, place.unit)}
    place.assert_nothing_left(after)
    assert started.search(place.tool("run", "--no-daemon")) is None
    # Another process of the daemon is not the one that started them.
    nodes.run(place.node, ["systemctl", "restart", place.unit])
    nodes.wait_for(place.node, place.socket.exists)
    assert started.search(place.tool("run", "--no-daemon")) is not None
    assert place.verified() == dict.fromkeys(OURS, "started")


def leaves_nothing_when_killed(place: Place, is_there: Callable[[], bool]) -> None:
    """Kill runs while they start a container; revert, or the next run, removes what is left."""
    for words in (("revert",), ("run", "--no-daemon"), ("run", "--no-daemon", "--verify=status")):
        for _ in range(20):
            place.tool("revert")
            argv = place.argv("run", "--no-daemon")
            with containers.start_daemonset(place.node, argv, mounts=place.mounts) as process:
                program = containers.inner(process)
                while process.poll() is None and not is_there():
                    time.sleep(0.002)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(program, signal.SIGKILL)
                process.communicate(timeout=60)
            time.sleep(1)  # what the daemon still does
            if is_there():
                break
        else:
            pytest.fail("no run was killed while a container was there")
        place.tool(*words)
        assert not is_there(), words


def has_pods(place: Place) -> bool:
    try:
        return bool(cri.sandboxes(place.socket, timeout=10, label="nvidia-toolkit/check"))
    except cri.CriFailed:
        return False  # it is being restarted


def put(node: Node, name: str, text: str, *, mode: int = 0o755) -> None:
    path = nodes.path(node, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def try_with_the_driver(place: Place, handler: str) -> None:
    """Have the wrapper find a driver, as it does on a node with one, and see whose binary runs."""
    ran = nodes.path(place.node, artifacts.RAN)
    place.start(handler)
    assert not ran.exists()
    nodes.run(place.node, ["mount", "-t", "tmpfs", "driver", "/sys/module"])
    try:
        nodes.path(place.node, "/sys/module/nvidia").mkdir()
        place.start(handler)
    finally:
        nodes.run(place.node, ["umount", "/sys/module"])
    calls = ran.read_text(encoding="utf-8").splitlines()
    ran.unlink()
    assert any(
        line.startswith("nvidia-container-runtime.real ") and " create " in line for line in calls
    )


def try_without_the_binary(place: Place) -> None:
    """Take the installed binary of a handler of ours away."""
    link = nodes.path(place.node, f"{TOOLKIT}/nvidia-container-runtime")
    away = link.with_name("away")
    link.rename(away)
    try:
        told = str(place.failure("nvidia"))
    finally:
        away.rename(link)
    assert "nvidia" in told
    place.start("nvidia")


# containerd

RUNTIMES: Final = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'


def containerd_config() -> str:
    # Two handlers whose containers systemd puts into their cgroups, one of them broken.
    handlers = {
        "runc": "/usr/sbin/runc",
        "slice": "/usr/sbin/runc",
        "gone-slice": GONE,
        **BINARIES,
    }
    text = (
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\ndefault_runtime_name ='
        ' "runc"\n'
    )
    for name, binary in handlers.items():
        text += (
            f"[{RUNTIMES}.{name}]\nruntime_type ="
            f' "io.containerd.runc.v2"\n[{RUNTIMES}.{name}.options]\n'
        )
        text += f'BinaryName = "{binary}"\nSystemdCgroup = {str("slice" in name).lower()}\n'
    return text


@pytest.fixture(scope="module", params=nodes.SUITES)
def bare(request: pytest.FixtureRequest, source: Path) -> Iterator[Place]:
    """A node with containerd and our handlers, but without any image."""
    with boot.booted(request.param, "handlers tried") as booted:
        put(booted, HANGS, _HANGS)
        put(booted, "/etc/containerd/config.toml", containerd_config(), mode=0o644)
        nodes.run(booted, ["systemctl", "restart", "containerd"])
        mounts = containers.DEFAULT_MOUNTS
        options = install(booted, source, "containerd", mounts, nodes.SOCKETS["containerd"])
        socket = nodes.path(booted, nodes.SOCKETS["containerd"])
        yield Place(node=booted, socket=socket, unit="containerd", mounts=mounts, options=options)


@pytest.fixture(scope="module")
def containerd(bare: Place) -> Place:
    """The same node with images, after a first pod: what containerd makes for all is there."""
    if reason := containers.why_no_containers(bare.node):
        pytest.skip(reason)
    containers.prepare_images(bare.node)
    bare.start("runc")
    return bare


def test_sandbox_image_that_cannot_be_pulled(bare: Place) -> None:
    """Comes before the tests that give the node its image."""
    error = bare.failure("nvidia")
    assert isinstance(error, NotTried)
    assert str(error).startswith("sandbox image not found: ")
    assert "registry.k8s.io/pause:" in str(error)
    assert cri.sandboxes(bare.socket, timeout=10) == ()


def test_missing_image_is_told_and_rolls_nothing_back(bare: Place) -> None:
    """Comes before the tests that give the node its image."""
    told = bare.tool("run", "--no-daemon")
    why = f"sandbox image not found: {containers.sandbox_image(bare.node)}"
    assert f"not verified: no container was started through {', '.join(OURS)}: {why}" in told
    assert bare.verified() == dict.fromkeys(OURS, f"not verified: {why}")


@pytest.mark.parametrize("handler", ["runc", *OURS])
def test_pod_starts_and_leaves_nothing(containerd: Place, handler: str) -> None:
    before = containerd.traces()
    containerd.start(handler)
    containerd.assert_nothing_left(before)


def test_pod_starts_through_our_binary(containerd: Place) -> None:
    try_with_the_driver(containerd, "nvidia")


def test_pod_does_not_start_without_our_binary(containerd: Place) -> None:
    before = containerd.traces()
    try_without_the_binary(containerd)
    containerd.assert_nothing_left(before)


@pytest.mark.parametrize("handler", WHY)
def test_pod_does_not_start_through_a_broken_handler(containerd: Place, handler: str) -> None:
    before = containerd.traces()
    error = containerd.failure(handler)
    assert str(error).startswith(f"no pod starts through the handler {handler}: ")
    assert WHY[handler] in str(error)
    assert not isinstance(error, NotTried)
    containerd.assert_nothing_left(before)


def test_pod_in_a_slice(containerd: Place) -> None:
    containerd.start("slice", parent=SLICE)
    before = containerd.traces()
    containerd.start("slice", parent=SLICE)
    assert WHY["gone"] in str(containerd.failure("gone-slice", parent=SLICE))
    # runc says what is wrong where the parent is none for systemd.
    assert 'expected cgroupsPath to be of format "slice:prefix:name"' in str(
        containerd.failure("slice")
    )
    containerd.assert_nothing_left(before)


@pytest.mark.timing
def test_pod_that_hangs(containerd: Place) -> None:
    before = containerd.traces()
    begun = time.monotonic()
    error = containerd.failure("hangs", timeout=3)
    assert time.monotonic() - begun < 3.2
    assert str(error) == "no pod starts through the handler hangs: not started within 2.0 s"
    # containerd breaks it off itself, since it was told how long it has.
    containerd.assert_nothing_left(before)


def left_behind(place: Place, handler: str) -> str:
    """Start a pod as a run does that is killed then."""
    name = f"nvidia-toolkit-check-{handler}"
    request = smoke_test.pod_request(name, handler, place.parent)
    made = cri.call(place.socket, "RunPodSandbox", request, timeout=30)
    found = containers.decode(made)[1]
    assert isinstance(found, bytes)
    return found.decode()


def try_again_after_a_kill(place: Place) -> None:
    before = place.traces()
    other = left_behind(place, "nvidia-cdi")
    ids = {left_behind(place, "nvidia"), left_behind(place, "nvidia")}
    assert {pod.id for pod in cri.sandboxes(place.socket, timeout=10) if pod.ready} == {
        other,
        *ids,
    }
    left = place.traces()
    assert {key for key in before if left[key] == before[key]} <= {
        "daemon",
        "images",
        "content",
        "leases",
    }
    place.start("nvidia")
    assert [pod.id for pod in cri.sandboxes(place.socket, timeout=10)] == [other]
    place.start("nvidia-cdi")
    place.assert_nothing_left(before)


def test_pod_of_a_killed_run_goes(containerd: Place) -> None:
    try_again_after_a_kill(containerd)


def test_other_pods_stay(containerd: Place) -> None:
    pod = containers.start_pod(containerd.node, handler="nvidia", argv=["sleep", "600"])
    try:
        containerd.start("nvidia")
        assert containers.is_running(containerd.node, pod)
    finally:
        containers.stop_pod(containerd.node, pod)


def test_containerd_is_verified_by_default(containerd: Place) -> None:
    is_verified_by_default(containerd)


def test_killed_verification_of_containerd_leaves_nothing(containerd: Place) -> None:
    leaves_nothing_when_killed(containerd, lambda: has_pods(containerd))
    containerd.tool("run", "--no-daemon")


# CRI-O

CRIO_MOUNTS: Final = {
    "/etc/crio": "/etc/crio",
    "/run/crio": "/run/crio",
    "/usr/share/containers/oci/hooks.d": "/usr/share/containers/oci/hooks.d",
    "/usr/local/nvidia": "/usr/local/nvidia",
    "/run/nvidia": "/run/nvidia",
}
CRIO_EXTRA: Final = f"{crio.DROP_INS}/50-test.conf"


def crio_config(manager: str = "systemd") -> str:
    text = f'[crio.runtime]\ncgroup_manager = "{manager}"\n'
    text += f'conmon_cgroup = "{"pod" if manager == "cgroupfs" else SLICE}"\n'
    for name, binary in BINARIES.items():
        text += (
            f'[crio.runtime.runtimes.{name}]\nruntime_path = "{binary}"\nruntime_root ='
            ' "/run/runc"\n'
        )
        text += 'monitor_path = "/usr/libexec/crio/conmon"\n'
    return text


def start_crio(node: Node) -> None:
    # CRI-O does not start with a handler whose binary is not there. Later it may go.
    put(node, GONE, "#!/bin/sh\n")
    crio.start(node)
    nodes.path(node, GONE).unlink()


@pytest.fixture(scope="module", params=crio.SUITES)
def bare_crio(request: pytest.FixtureRequest, source: Path) -> Iterator[Place]:
    """A node with CRI-O and our handlers, but without any image."""
    if reason := crio.why_not():
        pytest.skip(reason)
    with nodes.boot(request.param, units=()) as booted:
        real.USED.add(f"crio {crio.VERSION}, handlers tried on a booted {booted.suite} node")
        crio.install(booted)
        put(booted, HANGS, _HANGS)
        put(booted, GONE, "#!/bin/sh\n")
        put(booted, CRIO_EXTRA, crio_config(), mode=0o644)
        crio.start(booted)
        options = install(booted, source, "crio", CRIO_MOUNTS, crio.SOCKET)
        nodes.path(booted, GONE).unlink()
        socket = nodes.path(booted, crio.SOCKET)
        yield Place(
            node=booted,
            socket=socket,
            unit="crio",
            parent=SLICE,
            mounts=CRIO_MOUNTS,
            options=options,
        )


@pytest.fixture(scope="module")
def crio_place(bare_crio: Place) -> Place:
    """The same node with images, once a pod was there."""
    crio.stop(bare_crio.node)
    crio.prepare_images(bare_crio.node)
    start_crio(bare_crio.node)
    if reason := crio.why_no_pods(bare_crio.node):
        pytest.skip(reason)
    bare_crio.start("runc")
    return bare_crio


def test_sandbox_image_that_crio_cannot_pull(bare_crio: Place) -> None:
    """Comes before the tests that give the node its image."""
    error = bare_crio.failure("nvidia")
    assert isinstance(error, NotTried)
    assert "sandbox image not found: creating pod sandbox with name" in str(error)
    with pytest.raises(NotTried) as caught:
        smoke_test.start_pod(
            bare_crio.socket, "nvidia", cgroup_parent=SLICE, timeout=60, image=containers.IMAGE
        )
    assert str(caught.value) == f"sandbox image not found: {containers.IMAGE}"
    assert cri.sandboxes(bare_crio.socket, timeout=10) == ()


@pytest.mark.parametrize("handler", ["runc", *OURS])
def test_pod_of_crio_starts_and_leaves_nothing(crio_place: Place, handler: str) -> None:
    before = crio_place.traces()
    crio_place.start(handler)
    crio_place.assert_nothing_left(before)


def test_pod_of_crio_starts_through_our_binary(crio_place: Place) -> None:
    """It would not without a PID namespace of the pod: then CRI-O runs no binary at all."""
    try_with_the_driver(crio_place, "nvidia")


def test_pod_of_crio_does_not_start_without_our_binary(crio_place: Place) -> None:
    try_without_the_binary(crio_place)


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        # conmon dies too early for more words.
        ("gone", "failed to wait exit status 1"),
        ("fails", "error reading container"),
        ("nobody", "nobody"),
    ],
)
def test_pod_of_crio_does_not_start_through_a_broken_handler(
    crio_place: Place, handler: str, why: str
) -> None:
    # CRI-O itself may leave the scope of a conmon that died at once.
    before = crio_place.traces(cgroups=False)
    error = crio_place.failure(handler)
    assert str(error).startswith(f"no pod starts through the handler {handler}: ")
    assert why in str(error)
    assert not isinstance(error, NotTried)
    crio_place.assert_nothing_left(before)


def test_pod_of_crio_of_a_killed_run_goes(crio_place: Place) -> None:
    try_again_after_a_kill(crio_place)


def test_crio_is_verified_by_default(crio_place: Place) -> None:
    put(crio_place.node, GONE, "#!/bin/sh\n")  # CRI-O does not start without it
    try:
        is_verified_by_default(crio_place)
        leaves_nothing_when_killed(crio_place, lambda: has_pods(crio_place))
        crio_place.tool("run", "--no-daemon")
    finally:
        nodes.path(crio_place.node, GONE).unlink()


def test_wrong_parent_is_told_by_crio(crio_place: Place) -> None:
    told = str(crio_place.failure("nvidia", parent=""))
    assert (
        "cri-o configured with systemd cgroup manager, but did not receive slice as parent" in told
    )


def test_pod_of_crio_without_systemd(crio_place: Place) -> None:
    node = crio_place.node
    put(node, CRIO_EXTRA, crio_config("cgroupfs"), mode=0o644)
    start_crio(node)
    try:
        crio_place.start("nvidia", parent="")
        before = crio_place.traces()
        crio_place.start("nvidia", parent="")
        crio_place.assert_nothing_left(before)
        told = str(crio_place.failure("nvidia", parent=SLICE))
        assert "received systemd slice as parent" in told
    finally:
        put(node, CRIO_EXTRA, crio_config(), mode=0o644)
        start_crio(node)


# Docker

DOCKER_MOUNTS: Final = {
    "/etc/docker": "/etc/docker",
    "/runtime/sock-dir": "/run",
    "/usr/local/nvidia": "/usr/local/nvidia",
    "/run/nvidia": "/run/nvidia",
}


@pytest.fixture(scope="module", params=nodes.SUITES)
def docker(request: pytest.FixtureRequest, source: Path) -> Iterator[Place]:
    """A node with Docker and our handlers, once a container was there."""
    with boot.booted(request.param, units=("containerd", "docker")) as booted:
        put(booted, HANGS, _HANGS)
        # dockerd refuses to take up a handler whose binary is not there. Later it may go.
        put(booted, GONE, "#!/bin/sh\n")
        runtimes = {name: {"path": binary} for name, binary in BINARIES.items()}
        put(booted, "/etc/docker/daemon.json", json.dumps({"runtimes": runtimes}), mode=0o644)
        nodes.run(booted, ["systemctl", "restart", "docker"])
        options = install(booted, source, "docker", DOCKER_MOUNTS, "/runtime/sock-dir/docker.sock")
        nodes.path(booted, GONE).unlink()
        info = docker_info(booted)
        real.USED.add(
            f"dockerd {info['ServerVersion']}, handlers tried on a booted {booted.suite} node"
        )
        socket = nodes.path(booted, nodes.SOCKETS["docker"])
        place = Place(
            node=booted, socket=socket, unit="docker", mounts=DOCKER_MOUNTS, options=options
        )
        try:
            place.start("runc")
        except StepError as error:
            pytest.skip(f"this machine lets docker on {booted.suite} run no containers: {error}")
        yield place


def docker_info(node: Node) -> dict[str, Any]:
    found = json.loads(nodes.run(node, ["docker", "info", "--format", "{{json .}}"]).stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("handler", ["runc", *OURS])
def test_container_starts_and_leaves_nothing(docker: Place, handler: str) -> None:
    before = docker.traces()
    docker.start(handler)
    docker.assert_nothing_left(before)


def test_container_starts_through_our_binary(docker: Place) -> None:
    try_with_the_driver(docker, "nvidia")


def test_container_does_not_start_without_our_binary(docker: Place) -> None:
    before = docker.traces()
    try_without_the_binary(docker)
    docker.assert_nothing_left(before)


@pytest.mark.parametrize("handler", WHY)
def test_container_does_not_start_through_a_broken_handler(docker: Place, handler: str) -> None:
    before = docker.traces()
    error = docker.failure(handler)
    assert str(error).startswith(f"no container starts through the handler {handler}: ")
    assert WHY[handler] in str(error)
    assert not isinstance(error, NotTried)
    docker.assert_nothing_left(before)


def test_container_of_a_killed_run_goes(docker: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = docker.traces()
    with monkeypatch.context() as patch:
        # As far as a run comes that is killed before it could clear up.
        patch.setattr(smoke_test, "delete", lambda *_: None)
        docker.start("nvidia")
    assert (
        run(docker.node, "docker ps --all --format '{{.Names}}'") == "nvidia-toolkit-check-nvidia\n"
    )
    left = docker.traces()
    assert {key for key in before if left[key] != before[key]} == {"containers", "images", "files"}
    docker.start("nvidia-cdi")
    docker.start("nvidia")
    docker.assert_nothing_left(before)


def test_docker_is_verified_by_default(docker: Place) -> None:
    put(docker.node, GONE, "#!/bin/sh\n")  # dockerd does not start without it
    names = "docker ps --all --format '{{.Names}}'; docker images --format '{{.Repository}}'"
    try:
        is_verified_by_default(docker)
        leaves_nothing_when_killed(
            docker, lambda: "nvidia-toolkit-check" in run(docker.node, names)
        )
        docker.tool("run", "--no-daemon")
    finally:
        nodes.path(docker.node, GONE).unlink()


@pytest.mark.timing
def test_container_that_hangs_is_told_and_goes_with_the_next_try(docker: Place) -> None:
    before = docker.traces()
    begun = time.monotonic()
    error = docker.failure("hangs", timeout=3)
    assert time.monotonic() - begun < 3.5
    assert (
        str(error) == "no container starts through the handler hangs: did not finish within 2.0 s"
    )
    # dockerd goes on with it although nobody waits any more, and removes nothing meanwhile. Other
    # handlers can be tried, and the next try of this one clears up.
    docker.start("nvidia")
    assert "no container starts through the handler hangs" in str(
        docker.failure("hangs", timeout=60)
    )
    docker.assert_nothing_left(before)
