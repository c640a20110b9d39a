"""A runtime's own health report: what is a problem, what a node may lack, how long to ask."""

from __future__ import annotations

import importlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.adapter import Adapter
from runtimes.containerd import ADAPTER as containerd
from runtimes.crio import ADAPTER as crio
from runtimes.docker import ADAPTER as docker
from runtimes.model import Effective
from tests.support import pure_plan
from toolkit.deadline import Deadline
from toolkit.errors import StepError
from toolkit.node.host import Host
from toolkit.runtime import health
from toolkit.runtime.client import cri, protobuf
from toolkit.runtime.health import Health
from toolkit.runtime.locate import Target

RUNTIME: Final = "runtime.v1.RuntimeService"
INTROSPECTION: Final = "containerd.services.introspection.v1.Introspection"
CONFIG: Final = {
    "containerd": {
        "defaultRuntimeName": "runc",
        "runtimes": {"runc": {"options": {"SystemdCgroup": True}}, "kata": {"options": None}},
    },
    "sandboxImage": "pause:3.9",
}
_FOR_EVER: Final = 3600
"""In seconds: a test that waits that long times out."""
HAS: Final = Effective(
    handlers=frozenset({"runc", "kata"}),
    default="runc",
    sandbox_image="pause:3.9",
    systemd_cgroup=frozenset({"runc"}),
)
INFO: Final = {
    "Runtimes": {"runc": {"path": "runc"}},
    "DefaultRuntime": "runc",
    "CgroupDriver": "cgroupfs",
}

BinaryResult = Callable[[bytes], bytes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runtime.sock"


def scene(path: Path) -> Target:
    return Target(
        host=Host(root=Path("/")),
        desired=pure_plan.desired(),
        install_dir=path.parent,
        launch_file=path.with_name("launch.json"),
        socket=path,
        process=None,
        no_process="",
        binary=None,
    )


def once(path: Path, adapter: Adapter = containerd, *, timeout: float = 5) -> Health:
    return health.query(scene(path), adapter, timeout=timeout)


@contextmanager
def serving(path: Path, **methods: BinaryResult) -> Iterator[None]:
    """Serve gRPC on a socket by another implementation: `Status` and `Plugins`, if given."""
    grpc: Any = importlib.import_module("grpc")

    def handler(answer: BinaryResult) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: answer(request))

    with futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        for service, names in ((RUNTIME, {"Status"}), (INTROSPECTION, {"Plugins"})):
            known = {name: handler(answer) for name, answer in methods.items() if name in names}
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, known)])
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()


@contextmanager
def http(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answer every connection with the same bytes, and yield what was asked."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        heard.append(client.recv(65536))
                        client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def page(body: str, status: str = "200 OK") -> bytes:
    data = body.encode()
    return f"HTTP/1.0 {status}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


# --- what is said over the wire -----------------------------------------------------------------


def nested(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Encode a message whose fields may be messages."""
    return b"".join(
        (
            bytes([number << 3 | 2]) + _size(len(value)) + value
            if isinstance(value, bytes)
            else protobuf.encode([(number, value)])
        )
        for number, value in fields
    )


def _size(number: int) -> bytes:
    found = b""
    while number > 0x7F:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


def status(
    *,
    runtime: bool = True,
    network: bool = True,
    config: Mapping[str, Any] | str | None = CONFIG,
    handlers: tuple[str, ...] = (),
) -> bytes:
    """Return an answer to Status as CRI encodes it."""
    text = config if isinstance(config, str) else json.dumps(config)
    info = [(2, nested((1, "config"), (2, text)))] if config is not None else []
    conditions = nested(
        (1, condition("RuntimeReady", "ContainerdNotReady", well=runtime)),
        (1, condition("NetworkReady", "NetworkPluginNotReady", well=network)),
    )
    return nested((1, conditions), *info, *((3, nested((1, name))) for name in handlers))


def condition(name: str, reason: str, *, well: bool) -> bytes:
    why: tuple[tuple[int, int | str], ...] = (
        ((2, 1),) if well else ((3, reason), (4, "as the test wants it"))
    )
    return nested((1, name), *why)


def said(**what: Any) -> BinaryResult:
    return lambda _: status(**what)


def plugin(name: str, failure: str = "") -> bytes:
    """Return a plugin as containerd's introspection lists it: type, id, and any error."""
    error = [(7, nested((1, 2), (2, failure)))] if failure else []
    return nested((1, "io.containerd.grpc.v1"), (2, name), *error)


def listing(*plugins_: bytes) -> BinaryResult:
    return lambda _: nested(*((1, each) for each in plugins_))


# --- CRI ----------------------------------------------------------------------------------------


def test_a_well_runtime_says_what_it_has(path: Path) -> None:
    with serving(path, Status=said()):
        found = once(path)
    assert found == Health(effective=HAS)
    assert found.supports_cri


def test_what_it_says_of_its_handlers_goes_before_its_configuration(path: Path) -> None:
    with serving(path, Status=said(handlers=("", "runc", "nvidia"))):
        assert once(path).effective.handlers == frozenset({"runc", "nvidia"})


@pytest.mark.parametrize("config", [None, "", "[]", "{}", '{"containerd": 5}'])
def test_what_is_not_told_is_not_known(path: Path, config: str | None) -> None:
    with serving(path, Status=said(config=config)):
        assert once(path) == Health(effective=Effective())


def test_a_runtime_that_is_not_ready_ails(path: Path) -> None:
    with serving(path, Status=said(runtime=False)):
        found = once(path)
    why = "RuntimeReady is false: ContainerdNotReady: as the test wants it"
    assert found == Health(effective=HAS, problems=(f"the runtime is not ready: {why}",))
    assert found.supports_cri


def test_a_network_that_is_not_ready_is_told_and_is_no_ailment(path: Path) -> None:
    with serving(path, Status=said(network=False)):
        found = once(path)
    why = "NetworkReady is false: NetworkPluginNotReady: as the test wants it"
    assert found == Health(effective=HAS, network=why)


def test_where_neither_is_ready_each_is_told_at_its_place(path: Path) -> None:
    with serving(path, Status=said(runtime=False, network=False)):
        found = once(path)
    (ailment,) = found.problems
    assert "RuntimeReady is false" in ailment
    assert "NetworkReady" not in ailment
    assert found.network.startswith("NetworkReady is false: ")


def test_a_runtime_that_does_not_tell_how_it_is_ails(path: Path) -> None:
    with serving(path, Status=lambda _: b""):
        assert once(path).problems == ("the runtime is not ready: RuntimeReady is not reported",)


# --- no CRI -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "methods",
    [{}, {"Plugins": listing()}, {"Plugins": listing(plugin("cri"))}],
    ids=["no introspection", "no such plugin", "a plugin that did not fail"],
)
def test_a_cri_that_is_switched_off_is_no_ailment(
    path: Path, methods: dict[str, BinaryResult]
) -> None:
    with serving(path, **methods):
        found = once(path)
    assert found.problems == ()
    assert not found.supports_cri
    assert found.no_cri.startswith(f"Status on {path} failed: UNIMPLEMENTED")
    assert found.effective == Effective()


def test_a_cri_plugin_that_failed_is_an_ailment_with_its_own_words(path: Path) -> None:
    failure = "failed to create CRI service: mkdir /var/lib/x: no space left on device"
    with serving(path, Plugins=listing(plugin("cri", failure))):
        found = once(path)
    why = f"its CRI plugin failed: {failure}"
    assert found == Health(effective=Effective(), problems=(why,), no_cri=why)
    assert not found.supports_cri


def test_nobody_asks_for_plugins_where_cri_answers(path: Path) -> None:
    asked: list[bytes] = []

    def note(request: bytes) -> bytes:
        asked.append(request)
        return nested((1, plugin("cri", "long ago")))

    with serving(path, Status=said(), Plugins=note):
        assert once(path).problems == ()
    assert asked == []


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "PERMISSION_DENIED", "UNKNOWN"])
def test_a_cri_that_answers_with_an_error_ails_and_its_plugins_are_not_asked(
    path: Path, code: str
) -> None:
    grpc: Any = importlib.import_module("grpc")

    def refuse(_: bytes, context: Any) -> bytes:
        context.abort(getattr(grpc.StatusCode, code), "the shim is gone")
        return b""

    method = {"Status": grpc.unary_unary_rpc_method_handler(refuse)}
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(RUNTIME, method)])
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            found = once(path)
        finally:
            server.stop(None).wait()
    assert found.problems == (f"Status on {path} failed: {code}: the shim is gone",)
    assert not found.supports_cri


def test_an_answer_that_is_no_cri_ails(path: Path) -> None:
    with serving(path, Status=lambda _: b"\x0a"):
        (ailment,) = once(path).problems
    assert ailment.startswith(f"Status on {path} failed: the response is not valid CRI: ")


def test_a_socket_that_nobody_answers_ails(path: Path) -> None:
    (ailment,) = once(path).problems
    assert ailment == f"Status on {path} failed: No such file or directory"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        assert once(path, timeout=0.3).problems == (
            f"Status on {path} failed: no answer within 0.3 s",
        )


# --- plugins ------------------------------------------------------------------------------------


def test_only_the_cri_plugin_is_asked_for(path: Path) -> None:
    asked: list[bytes] = []

    def note(request: bytes) -> bytes:
        asked.append(request)
        return b""

    with serving(path, Plugins=note):
        assert cri.cri_failure(path, timeout=5) == ""
    assert asked == [nested((1, "type==io.containerd.grpc.v1,id==cri"))]


def test_the_first_failure_among_several_plugins_is_told(path: Path) -> None:
    several = listing(plugin("cri"), plugin("cri", "first"), plugin("cri", "second"))
    with serving(path, Plugins=several):
        assert cri.cri_failure(path, timeout=5) == "first"


@pytest.mark.parametrize(
    "answer", [b"\x0a", b"\x0a\x01\x0a", b"\xff" * 30], ids=["cut", "nested", "noise"]
)
def test_what_is_no_list_of_plugins_tells_of_no_failure(path: Path, answer: bytes) -> None:
    with serving(path, Plugins=lambda _: answer):
        assert cri.cri_failure(path, timeout=5) == ""


def test_a_silent_or_absent_socket_tells_of_no_failure(path: Path) -> None:
    assert cri.cri_failure(path, timeout=5) == ""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        assert cri.cri_failure(path, timeout=0.3) == ""


def test_what_speaks_no_grpc_tells_of_no_failure(path: Path) -> None:
    with http(path, page("{}")):
        assert cri.cri_failure(path, timeout=1) == ""


# --- one look is not enough ---------------------------------------------------------------------


def falling_silent(*answers: bytes) -> BinaryResult:
    """Return an answer that is another one each time, and then the last one for ever."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_a_runtime_is_asked_again_until_it_is_well(path: Path) -> None:
    answer = falling_silent(status(runtime=False), b"", b"\x0a", status())
    with serving(path, Status=answer):
        assert health.wait_healthy(scene(path), containerd, Deadline(20)) == Health(effective=HAS)


def test_a_runtime_that_is_well_is_asked_once(path: Path) -> None:
    with serving(path, Status=falling_silent(status(), b"")):
        assert health.wait_healthy(scene(path), containerd, Deadline(20)).problems == ()


def test_a_runtime_that_stays_unwell_is_told_so_when_patience_is_over(path: Path) -> None:
    with serving(path, Status=said(runtime=False)):
        begin = time.monotonic()
        found = health.wait_healthy(scene(path), containerd, Deadline(0.3))
        assert time.monotonic() - begin >= 0.3
    assert found.problems[0].startswith("the runtime is not ready: ")


def test_without_any_patience_it_is_asked_once(path: Path) -> None:
    with serving(path, Status=falling_silent(status(runtime=False), status())):
        assert health.wait_healthy(scene(path), containerd, Deadline(0)).problems != ()


def test_what_is_only_off_is_not_waited_for(path: Path) -> None:
    with serving(path):
        assert health.wait_healthy(scene(path), containerd, Deadline(_FOR_EVER)).problems == ()


# --- over HTTP ----------------------------------------------------------------------------------


def test_docker_is_asked_over_http_and_has_no_cri(path: Path) -> None:
    body = json.dumps(INFO)
    with http(path, page(body)) as heard:
        found = once(path, docker)
    has = Effective(handlers=frozenset({"runc"}), default="runc")
    assert found == Health(effective=has, no_cri="this runtime has no CRI", body=body)
    assert heard[0].startswith(b"GET /info HTTP/1.")


@pytest.mark.parametrize("body", ["", "{", "<html>", "[]", "null", "{}", '{"Runtimes": 5}'])
def test_docker_that_cannot_be_understood_ails(path: Path, body: str) -> None:
    with http(path, page(body)):
        found = once(path, docker)
    (ailment,) = found.problems
    assert ailment.startswith("dockerd's answer cannot be read (")
    assert found.effective == Effective()
    assert found.body == body


def test_docker_that_answers_with_an_error_ails(path: Path) -> None:
    with http(path, page("no", "500 Internal Server Error")):
        assert once(path, docker).problems == (
            f"GET /info on {path} failed: 500 Internal Server Error",
        )


def test_docker_that_does_not_answer_ails(path: Path) -> None:
    (ailment,) = once(path, docker).problems
    assert ailment.startswith(f"GET /info on {path} failed: ")


CRIO: Final = """
[crio.image]
pause_image = "pause:3.9"
[crio.runtime]
default_runtime = "crun"
cgroup_manager = "cgroupfs"
[crio.runtime.runtimes.crun]
"""


def over_both(monkeypatch: pytest.MonkeyPatch, body: str, answer: cri.Status | StepError) -> None:
    """Let HTTP and CRI be answered: CRI-O does both on one socket."""

    def status_(*_: Any, **__: Any) -> cri.Status:
        if isinstance(answer, StepError):
            raise answer
        return answer

    monkeypatch.setattr("toolkit.runtime.client.http.get", lambda *_, **__: body)
    monkeypatch.setattr(cri, "status", status_)


def well() -> cri.Status:
    return cri.Status(
        runtime_ready=True, network_ready=True, reasons=(), handlers=None, config=None
    )


def test_crio_is_asked_both_ways(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over_both(monkeypatch, CRIO, well())
    has = Effective(handlers=frozenset({"crun"}), default="crun", sandbox_image="pause:3.9")
    assert once(path, crio) == Health(effective=has, body=CRIO)


def test_crio_whose_cri_fails_ails_and_what_it_said_before_is_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_both(monkeypatch, CRIO, cri.CriFailed("it broke"))
    found = once(path, crio)
    assert (found.problems, found.body, found.supports_cri) == (("it broke",), CRIO, False)


def test_crio_whose_configuration_cannot_be_read_ails(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_both(monkeypatch, "<html>", well())
    (ailment,) = once(path, crio).problems
    assert ailment.startswith("CRI-O's answer cannot be read (")
