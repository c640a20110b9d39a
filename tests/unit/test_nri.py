"""The NRI plugin without an agent: the wire, its answers, its pauses, and invalid messages."""

from __future__ import annotations

import contextlib
import random
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import fake_node, fake_nri
from toolkit.agent.nri import NriSettings, Plugin
from toolkit.errors import StepError
from toolkit.runtime.client import ttrpc
from toolkit.runtime.client.ttrpc import Broken, Call

KEY: Final = "nvidia.cdi.k8s.io"
MANAGEMENT: Final = "management.nvidia.com/gpu=all"
GPU: Final = "nvidia.com/gpu=0"
OPERATOR: Final = "gpu-operator"


def settings(socket_path: Path, **more: Any) -> NriSettings:
    found: NriSettings = {
        "socket": str(socket_path),
        "index": "10",
        "kinds": ["management.nvidia.com/gpu"],
        "namespaces": [OPERATOR, "kube-tools"],
        "executables": ["containerd"],
    }
    return {**found, **more}  # type: ignore[typeddict-item]


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Loop:
    """The agent's loop around a plugin, in a thread, so that the test plays the runtime's part."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.is_ended = False
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        while not self.is_ended:
            step(self.plugin, 5)

    def end(self) -> None:
        self.is_ended = True
        self.thread.join(5)
        self.plugin.close()


def step(plugin: Plugin, milliseconds: int = 0) -> None:
    """Do what the agent does once."""
    poll = select.poll()
    if plugin.fd >= 0:
        poll.register(plugin.fd, plugin.events)
    if poll.poll(milliseconds):
        plugin.serve()
    plugin.tick()


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[fake_nri.Runtime]:
    runtime = fake_nri.Runtime(tmp_path / "nri.sock")
    yield runtime
    runtime.close()


def of(tmp_path: Path, **more: Any) -> Plugin:
    return Plugin(settings(tmp_path / "nri.sock", **more), examine=lambda *_: None)


@pytest.fixture
def plugin(tmp_path: Path, runtime: fake_nri.Runtime) -> Iterator[Plugin]:
    loop = Loop(of(tmp_path))
    loop.thread.start()
    yield loop.plugin
    loop.end()


# --- as upstream ----------------------------------------------------------------------------------


def test_it_registers_for_new_containers_only(plugin: Plugin, runtime: fake_nri.Runtime) -> None:
    assert runtime.register() == {
        "kind": 1,
        "service": "nri.pkg.api.v1alpha1.Runtime",
        "method": "RegisterPlugin",
        "name": "nvidia-toolkit",
        "index": "10",
        "events": 1 << 3,
        "policy": {1: [1]},
        "more": [0],
    }
    assert runtime.create(OPERATOR, {}) == []
    assert plugin.is_registered


@pytest.mark.parametrize(
    ("namespace", "annotations", "devices"),
    [
        (OPERATOR, {KEY: MANAGEMENT}, [MANAGEMENT]),
        ("kube-tools", {KEY: MANAGEMENT}, [MANAGEMENT]),
        ("default", {KEY: MANAGEMENT}, []),
        ("default", {KEY: f"{GPU},{MANAGEMENT}"}, []),
        ("default", {KEY: f"{GPU}, {MANAGEMENT}"}, []),
        ("default", {KEY: GPU}, [GPU]),
        ("default", {KEY: f" {GPU} , nvidia.com/gpu=1,, "}, [GPU, "nvidia.com/gpu=1"]),
        ("default", {KEY: f"{GPU},nvidia.com/gpu=1, {GPU}"}, [GPU, "nvidia.com/gpu=1"]),
        ("default", {}, []),
        ("default", {KEY: ""}, []),
        ("default", {"nvidia.cdi.k8s.io.example": GPU, "cdi.k8s.io/x": GPU}, []),
        ("default", {f"{KEY}/pod": "a.b/c=1", KEY: "a.b/c=2"}, ["a.b/c=1"]),
        ("default", {f"{KEY}/container.c": "a.b/c=0", f"{KEY}/pod": "a.b/c=1"}, ["a.b/c=0"]),
        ("default", {f"{KEY}/container.other": "a.b/c=0"}, []),
        ("default", {f"{KEY}/container.c": "", KEY: "a.b/c=2"}, []),
        ("default", {KEY: "nonsense"}, ["nonsense"]),
    ],
)
def test_the_devices_are_those_of_the_annotation(
    plugin: Plugin,
    runtime: fake_nri.Runtime,
    namespace: str,
    annotations: dict[str, str],
    devices: list[str],
) -> None:
    runtime.register()
    assert runtime.create(namespace, annotations) == devices
    assert sum(plugin.results.values()) == 1


def test_the_kind_of_the_management_devices_may_be_another_one(
    tmp_path: Path, runtime: fake_nri.Runtime
) -> None:
    loop = Loop(of(tmp_path, kinds=["example.com/all"]))
    loop.thread.start()
    runtime.register()
    assert runtime.create("default", {KEY: "example.com/all=x"}) == []
    assert loop.plugin.results["refused"] == 1
    loop.end()


def test_a_long_answer_comes_in_pieces_that_the_runtime_takes(
    plugin: Plugin, runtime: fake_nri.Runtime
) -> None:
    runtime.register()
    devices = [f"nvidia.com/gpu={number}" for number in range(4000)]
    assert runtime.create("default", {KEY: ",".join(devices)}) == devices
    assert runtime.create("default", {KEY: ",".join(devices)}, piece=7) == devices


def test_an_annotation_longer_than_any_pods_gets_nothing(
    plugin: Plugin, runtime: fake_nri.Runtime
) -> None:
    runtime.register()
    assert runtime.create("default", {KEY: "x" * (256 * 1024 + 1)}) == []
    assert plugin.results["unanswered"] == 1
    assert plugin.is_registered


def test_what_it_does_not_know_is_refused_and_it_stays(
    plugin: Plugin, runtime: fake_nri.Runtime
) -> None:
    runtime.register()
    with pytest.raises(AssertionError, match=r"NewMethod: not supported \(12\)"):
        runtime.ask("NewMethod", b"")
    with pytest.raises(AssertionError, match=r"CreateContainer: not supported \(12\)"):
        runtime.ask("CreateContainer", b"", service="other.Service")
    assert runtime.ask("Shutdown", b"") == b""
    assert plugin.results["unanswered"] == 2
    assert runtime.create("default", {KEY: GPU}) == [GPU]


def test_a_request_that_is_not_valid_lets_the_container_start(
    plugin: Plugin, runtime: fake_nri.Runtime
) -> None:
    runtime.register()
    assert runtime.ask("CreateContainer", b"\x0b\xff") == b""
    assert plugin.results["unanswered"] == 1
    assert runtime.create("default", {KEY: GPU}) == [GPU]


# --- containers that were created while it was away -----------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_containers_that_got_nothing_are_named(
    plugin: Plugin, runtime: fake_nri.Runtime, parts: int
) -> None:
    pods = [
        fake_nri.pod("default", "asks", {f"{KEY}/container.gpu": GPU}),
        fake_nri.pod("default", "may-not", {KEY: MANAGEMENT}),
        fake_nri.pod(OPERATOR, "may", {KEY: MANAGEMENT}),
        fake_nri.pod("default", "asks-nothing", {"other": "x"}),
    ]
    containers = [
        fake_nri.container("asks", "gpu"),
        fake_nri.container("asks", "sidecar"),
        fake_nri.container("asks", "gpu", state=4),
        fake_nri.container("asks", "gpu", devices=["/dev/nvidia0"]),
        fake_nri.container("may-not", "c"),
        fake_nri.container("may", "c"),
        fake_nri.container("asks-nothing", "c"),
    ]
    assert runtime.register(pods, containers, parts=parts)["more"] == [1] * (parts - 1) + [0]
    runtime.create(OPERATOR, {})
    assert sorted(plugin.missed) == [
        "the container c of gpu-operator/may asks for management.nvidia.com/gpu=all",
        "the container gpu of default/asks asks for nvidia.com/gpu=0",
    ]
    runtime.drop()
    runtime.register()
    runtime.create(OPERATOR, {})
    assert plugin.missed == []


# --- a connection that is lost --------------------------------------------------------------------


def test_it_connects_again_after_a_restart_of_the_runtime(
    plugin: Plugin, runtime: fake_nri.Runtime
) -> None:
    for _ in range(3):
        runtime.register()
        assert runtime.create("default", {KEY: GPU}) == [GPU]
        runtime.drop()
    assert plugin.connections_lost >= 2


def test_the_pause_grows_and_a_missing_socket_is_tried_every_two_seconds(tmp_path: Path) -> None:
    clock = Clock()
    plugin = Plugin(settings(tmp_path / "none"), clock, lambda *_: None)
    pauses = []
    for _ in range(6):
        plugin.tick()
        assert plugin.problem == f"{tmp_path}/none: No such file or directory"
        pauses.append(plugin.due - clock.now)
        clock.now = plugin.due
    assert pauses == [0.25, 0.5, 1, 2, 2, 2]


def test_a_runtime_that_refuses_is_left_alone_longer(
    tmp_path: Path, runtime: fake_nri.Runtime
) -> None:
    clock = Clock()
    plugin = Plugin(settings(tmp_path / "nri.sock"), clock, lambda *_: None)
    pauses = []
    for _ in range(9):
        plugin.tick()
        step(plugin)
        runtime.accept()
        _, stream, _ = runtime.receive(2)
        runtime.send(
            fake_nri.frame(2, stream, 2, fake_nri.encode((1, fake_nri.encode((1, 3), (2, "no")))))
        )
        plugin.serve()
        assert plugin.problem == f"{tmp_path}/nri.sock: the registration was refused: no"
        runtime.drop()
        pauses.append(plugin.due - clock.now)
        clock.now = plugin.due
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_registration_that_never_ends_is_given_up(
    tmp_path: Path, runtime: fake_nri.Runtime
) -> None:
    clock = Clock()
    plugin = Plugin(settings(tmp_path / "nri.sock"), clock, lambda *_: None)
    plugin.tick()
    assert (plugin.fd >= 0, plugin.due) == (True, clock.now + 30)
    clock.now = plugin.due
    plugin.tick()
    assert plugin.fd < 0
    assert "does not finish the registration" in plugin.problem


def test_a_peer_that_is_not_trusted_is_not_answered(
    tmp_path: Path, runtime: fake_nri.Runtime
) -> None:
    def examine(*_: object) -> None:
        raise StepError("it is somebody else")

    plugin = Plugin(settings(tmp_path / "nri.sock"), examine=examine)
    plugin.tick()
    step(plugin)
    runtime.accept()
    runtime.send(fake_nri.call(1, "Configure", b""))
    plugin.serve()
    assert plugin.problem == f"{tmp_path}/nri.sock: it is somebody else"
    runtime.receive(2)
    with pytest.raises(fake_nri.ThrownOutError):
        runtime.receive(1)


# --- bytes that are no messages -------------------------------------------------------------------


def hostile(chance: random.Random) -> bytes:
    """Return bytes that are nearly what a runtime sends."""
    request = fake_nri.encode(
        (1, fake_nri.pod("default", "p", {KEY: GPU})), (2, fake_nri.container("p", "c"))
    )
    method = chance.choice(["CreateContainer", "Configure", "Synchronize", "Shutdown", "x", ""])
    makes: list[Callable[[], bytes]] = [
        lambda: chance.randbytes(chance.randrange(64)),
        lambda: fake_nri.call(chance.randrange(1 << 32), method, request),
        lambda: fake_nri.call(
            chance.randrange(1, 99, 2), method, chance.randbytes(chance.randrange(64))
        ),
        lambda: fake_nri.frame(
            chance.randrange(4), chance.randrange(4), chance.randrange(5), request
        ),
        lambda: chance.randrange(1 << 64).to_bytes(8),
        lambda: (1).to_bytes(4) + (20).to_bytes(4) + ((1 << 32) - 1).to_bytes(4) + b"\0\0\0\1\1\0",
        lambda: (1).to_bytes(4) + ((4 << 20) + 11).to_bytes(4),
        lambda: fake_nri.call(1, method, request)[: chance.randrange(1, 60)],
        lambda: fake_nri.frame(2, chance.choice([1, 3]), 2, chance.randbytes(chance.randrange(16))),
    ]
    return b"".join(chance.choice(makes)() for _ in range(chance.randrange(1, 6)))


@pytest.mark.parametrize("seed", range(300))
def test_hostile_bytes_end_the_connection_at_most(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # the same bytes every time
    runtime = fake_nri.Runtime(tmp_path / "nri.sock")
    clock = Clock()
    plugin = Plugin(settings(tmp_path / "nri.sock"), clock, lambda *_: None)
    for _ in range(5):
        clock.now = max(clock.now, plugin.due) if plugin.fd < 0 else clock.now
        step(plugin)
        if plugin.fd >= 0 and runtime.client is None:
            runtime.accept()
        assert runtime.client is not None
        try:
            runtime.client.sendall(hostile(chance))
        except OSError:
            runtime.client = None
        for _ in range(3):
            step(plugin)
        if plugin.fd < 0:
            assert "bug" not in plugin.problem
            runtime.drop()
            runtime.client = None
    plugin.close()
    runtime.close()


def test_a_runtime_that_reads_nothing_is_not_answered_without_end(
    tmp_path: Path, runtime: fake_nri.Runtime
) -> None:
    plugin = Plugin(settings(tmp_path / "nri.sock"), examine=lambda *_: None)
    plugin.tick()
    runtime.accept()
    assert runtime.client is not None
    runtime.client.settimeout(0)
    devices = ",".join(f"nvidia.com/gpu={number}" for number in range(2000))
    request = fake_nri.encode(
        (1, fake_nri.pod("d", "p", {KEY: devices})), (2, fake_nri.container("p", "c"))
    )
    waiting = b""
    for stream in range(1, 4001, 2):
        waiting = waiting or fake_nri.call(stream, "CreateContainer", request)
        with contextlib.suppress(BlockingIOError):
            waiting = waiting[runtime.client.send(waiting) :]
        step(plugin)
    assert plugin.events == select.POLLOUT
    assert 0 < len(plugin._unsent) < 1 << 20  # what it holds is the promise
    plugin.close()


@pytest.mark.parametrize("junk", [b"\x08\x01", b"\x0a\x00", b"\x12\x04\x0a\x00\x0a\x00"])
@pytest.mark.parametrize("method", ["CreateContainer", "Synchronize"])
def test_a_message_of_millions_of_fields_is_not_read_to_its_end(
    plugin: Plugin, runtime: fake_nri.Runtime, junk: bytes, method: str
) -> None:
    runtime.register()
    with contextlib.suppress(fake_nri.ThrownOutError):
        assert runtime.ask(method, junk * ((4 << 20) // len(junk) - 100)) == b""
    fake_node.wait_for(
        lambda: plugin.is_registered is (method == "CreateContainer"),
        "the connection is kept, or not",
    )


@given(st.lists(st.binary(max_size=40)))
def test_the_reader_holds_no_more_than_it_was_given(chunks: list[bytes]) -> None:
    reader = ttrpc.Reader()
    given_bytes = 0
    try:
        for chunk in chunks:
            given_bytes += len(chunk)
            for _ in reader.feed(chunk):
                pass
            assert reader.held <= given_bytes
    except Broken:
        return


@given(st.lists(st.integers(1, 30), min_size=1), st.binary(max_size=200))
def test_a_message_arrives_however_it_is_cut(sizes: list[int], payload: bytes) -> None:
    data = fake_nri.call(7, "CreateContainer", payload, piece=11)
    reader, found = ttrpc.Reader(), []
    at = 0
    while at < len(data):
        size = sizes[at % len(sizes)]
        found += list(reader.feed(data[at : at + size]))
        at += size
    assert found == [Call(7, fake_nri.PLUGIN, "CreateContainer", payload)]
    assert reader.held == 0
