"""Pods and containers started to try a handler, against stand-ins; nodes/ has the real ones."""

from __future__ import annotations

import contextlib
import http.server
import importlib
import io
import json
import logging
import socket
import socketserver
import subprocess
import tarfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import containers, fake_node
from toolkit import log
from toolkit.errors import StepError
from toolkit.node import elf
from toolkit.runtime import smoke_test
from toolkit.runtime.client import http as unix_http
from toolkit.runtime.smoke_test import HandlerFailed, NotTried

NAME = "nvidia-toolkit-check-nvidia"
IMAGE = "nvidia-toolkit-check:nvidia"
LABEL = "nvidia-toolkit/check"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runtime.sock"


@pytest.fixture
def story(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Catch what is logged, which does not propagate once the program has set its log up."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.LOGGER.addHandler(handler)
    yield lines
    log.LOGGER.removeHandler(handler)


# Pods


class Refused(Exception):
    """What a runtime says no with."""

    def __init__(self, text: str, code: str = "UNKNOWN") -> None:
        self.code = code
        super().__init__(text)


class Runtime:
    """A runtime that knows sandboxes by ID, name and namespace; a test sets each call's effect.

    Those in `unlabelled` are not labelled as started by this program.
    """

    def __init__(self) -> None:
        self.pods: dict[str, tuple[str, str]] = {}
        self.unlabelled: set[str] = set()
        self.images: set[str] = set()
        self.selectors: set[bytes] = set()
        self.calls: list[str] = []
        self.requests: list[bytes] = []
        self.instead: dict[str, Callable[[], None]] = {}

    def answer(self, method: str, request: bytes) -> bytes:
        self.calls.append(method)
        self.instead.get(method, lambda: None)()
        fields = containers.decode(request)
        match method:
            case "ListPodSandbox":
                self.selectors.add(request)
                return b"".join(
                    (
                        containers.encode({1: {1: key, 2: {1: name, 2: "uid", 3: namespace}}})
                        if key in self.unlabelled
                        else containers.encode(
                            {
                                1: {
                                    1: key,
                                    2: {1: name, 2: "uid", 3: namespace},
                                    5: {1: LABEL, 2: "true"},
                                }
                            }
                        )
                    )
                    for key, (name, namespace) in self.pods.items()
                )
            case "ImageStatus":
                image = as_bytes(containers.decode(as_bytes(fields[1]))[1]).decode()
                return containers.encode({1: {1: image}}) if image in self.images else b""
            case "RunPodSandbox":
                self.requests.append(request)
                config = containers.decode(as_bytes(fields[1]))
                metadata = containers.decode(as_bytes(config[1]))
                self.pods["made"] = (
                    as_bytes(metadata[1]).decode(),
                    as_bytes(metadata[3]).decode(),
                )
                return containers.encode({1: "made"})
            case "RemovePodSandbox":
                self.pods.pop(as_bytes(fields[1]).decode(), None)
            case _:
                pass
        return b""


def as_bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value


@contextlib.contextmanager
def serving_cri(path: Path, runtime: Runtime) -> Iterator[None]:
    grpc: Any = importlib.import_module("grpc")

    def method(name: str) -> Callable[[bytes, Any], bytes]:
        def answer(request: bytes, context: Any) -> bytes:
            try:
                return runtime.answer(name, request)
            except Refused as error:
                context.abort(grpc.StatusCode[error.code], str(error))
                raise

        return answer

    names = ("ListPodSandbox", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox")
    handlers = {name: grpc.unary_unary_rpc_method_handler(method(name)) for name in names}
    images = {"ImageStatus": grpc.unary_unary_rpc_method_handler(method("ImageStatus"))}
    with futures.ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", handlers),
                grpc.method_handlers_generic_handler("runtime.v1.ImageService", images),
            ]
        )
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()


@pytest.fixture
def runtime(path: Path) -> Iterator[Runtime]:
    found = Runtime()
    with serving_cri(path, found):
        yield found


def waiting(freed: threading.Event) -> Callable[[], None]:
    """Have a call hang, until the test frees it."""

    def wait() -> None:
        freed.wait(20)

    return wait


def refuse(text: str, code: str = "UNKNOWN") -> Callable[[], None]:
    def raise_it() -> None:
        raise Refused(text, code)

    return raise_it


def pod_failure(path: Path, *, timeout: float = 20) -> StepError:
    with pytest.raises(StepError) as caught:
        smoke_test.start_pod(path, "nvidia", cgroup_parent="", timeout=timeout)
    return caught.value


def test_pod_is_started_and_removed(path: Path, runtime: Runtime) -> None:
    smoke_test.start_pod(path, "nvidia", cgroup_parent="system.slice", timeout=20)
    run = ["ListPodSandbox", "RunPodSandbox"]
    assert runtime.calls == [*run, "ListPodSandbox", "StopPodSandbox", "RemovePodSandbox"]
    assert runtime.pods == {}
    # Only pods of this program are asked for.
    assert runtime.selectors == {containers.encode({1: {3: {1: LABEL, 2: "true"}}})}


@pytest.mark.parametrize(("asked", "sent"), [("system.slice", b"system.slice"), ("", b"/")])
def test_what_is_asked_for(path: Path, runtime: Runtime, asked: str, sent: bytes) -> None:
    smoke_test.start_pod(path, "nvidia", cgroup_parent=asked, timeout=20)
    fields = containers.decode(runtime.requests[0])
    assert fields[2] == b"nvidia"
    config = containers.decode(as_bytes(fields[1]))
    # No log directory and no annotations, and of labels only ours: kubelet's are none of ours.
    assert set(config) == {1, 6, 8}
    assert containers.decode(as_bytes(config[6])) == {1: LABEL.encode(), 2: b"true"}
    metadata = containers.decode(as_bytes(config[1]))
    assert (metadata[1], metadata[3]) == (NAME.encode(), b"nvidia-toolkit")
    assert len(as_bytes(metadata[2])) == 36
    linux = containers.decode(as_bytes(config[8]))
    assert linux[1] == sent
    security = containers.decode(as_bytes(linux[2]))
    # The network of the node, the processes of the pod.
    assert containers.decode(as_bytes(security[1])) == {1: 2, 2: 0}


def test_each_pod_has_a_uid_of_its_own(path: Path, runtime: Runtime) -> None:
    for _ in range(2):
        smoke_test.start_pod(path, "nvidia", cgroup_parent="", timeout=20)
    assert runtime.requests[0] != runtime.requests[1]


def test_refusal_is_one_line_and_what_it_left_is_removed(path: Path, runtime: Runtime) -> None:
    def fail() -> None:
        runtime.pods["half"] = (NAME, "nvidia-toolkit")
        raise Refused("OCI runtime create failed:\n\tstderr: nvml error:\n  driver not loaded\n")

    runtime.instead["RunPodSandbox"] = fail
    error = pod_failure(path)
    told = "OCI runtime create failed: stderr: nvml error: driver not loaded"
    assert str(error) == f"no pod starts through the handler nvidia: {told}"
    assert isinstance(error, HandlerFailed)
    assert not error.is_certain
    assert runtime.pods == {}


def test_pod_of_a_killed_run_goes_first_and_others_stay(path: Path, runtime: Runtime) -> None:
    others = {
        "theirs": (NAME, "default"),
        "cdi": ("nvidia-toolkit-check-nvidia-cdi", "nvidia-toolkit"),
        "unlabelled": (NAME, "nvidia-toolkit"),
    }
    runtime.unlabelled.add("unlabelled")
    runtime.pods |= {"old": (NAME, "nvidia-toolkit"), "older": (NAME, "nvidia-toolkit"), **others}
    smoke_test.start_pod(path, "nvidia", cgroup_parent="", timeout=20)
    assert runtime.pods == others
    assert runtime.calls.index("RunPodSandbox") > runtime.calls.index("RemovePodSandbox")


def test_pods_of_killed_runs_go_whatever_their_handler(path: Path, runtime: Runtime) -> None:
    others = {"theirs": (NAME, "default"), "unlabelled": (NAME, "nvidia-toolkit")}
    runtime.unlabelled.add("unlabelled")
    ours = {"one": (NAME, "nvidia-toolkit"), "other": (f"{NAME}-cdi", "nvidia-toolkit")}
    runtime.pods |= {**ours, **others}
    smoke_test.clear_pods(path, timeout=5)
    assert runtime.pods == others


def test_image_that_is_missing_is_not_pulled(path: Path, runtime: Runtime) -> None:
    with pytest.raises(NotTried) as caught:
        smoke_test.start_pod(path, "nvidia", cgroup_parent="", timeout=20, image="pause:1")
    assert str(caught.value) == "sandbox image not found: pause:1"
    assert "RunPodSandbox" not in runtime.calls
    runtime.images.add("pause:1")
    smoke_test.start_pod(path, "nvidia", cgroup_parent="", timeout=20, image="pause:1")
    assert "RunPodSandbox" in runtime.calls


def test_image_of_which_nothing_is_told_is_left_to_the_runtime(
    path: Path, runtime: Runtime
) -> None:
    runtime.instead["ImageStatus"] = refuse("no such service", "UNIMPLEMENTED")
    smoke_test.start_pod(path, "nvidia", cgroup_parent="", timeout=20, image="pause:1")
    assert "RunPodSandbox" in runtime.calls


@pytest.mark.parametrize(
    "told",
    [
        'failed to get sandbox runtime: no runtime for "nvidia" is configured',
        "failed to find runtime handler nvidia from runtime list map[runc:0x1]",
        (
            "failed to create containerd container: get snapshotter: snapshotter nydus was not"
            " found: not found"
        ),
        (
            'failed to get sandbox image "pause:1": failed to pull image: snapshotter nydus was not'
            " found"
        ),
        (
            "failed to start shim: start failed: invalid custom binary path: stat /opt/shim: no"
            " such file"
        ),
        (
            'failed to resolve runtime path: runtime "io.containerd.none.v1" binary not installed'
            " on the system"
        ),
        "Can't convert yes(string) to bool",
    ],
)
def test_a_wrong_configuration_of_the_handler_is_certain(
    path: Path, runtime: Runtime, told: str
) -> None:
    runtime.instead["RunPodSandbox"] = refuse(told)
    error = pod_failure(path)
    assert isinstance(error, HandlerFailed)
    assert error.is_certain


@pytest.mark.parametrize(
    ("told", "code", "reason"),
    [
        ("mkdir: no space left on device", "UNKNOWN", "disk full: mkdir: no space left on device"),
        (
            "OCI runtime create failed: Disk quota exceeded",
            "UNKNOWN",
            "disk full: OCI runtime create failed: Disk quota exceeded",
        ),
        ("cni plugin not initialized", "UNKNOWN", "network not ready: cni plugin not initialized"),
        ("unknown service", "UNIMPLEMENTED", "unknown service"),
        ("the server is not there yet", "UNAVAILABLE", "the server is not there yet"),
    ],
)
def test_what_is_of_the_node_is_not_the_handlers_fault(
    path: Path, runtime: Runtime, told: str, code: str, reason: str
) -> None:
    runtime.instead["RunPodSandbox"] = refuse(told, code)
    error = pod_failure(path)
    assert isinstance(error, NotTried)
    assert str(error) == reason


@pytest.mark.parametrize(
    "told",
    [
        'failed to get sandbox image "registry.k8s.io/pause:3.6": failed to pull image "pause"',
        (
            'failed to start sandbox "1": failed to get sandbox image "registry.k8s.io/pause:3.10":'
            " not found"
        ),
        (
            'creating pod sandbox with name "k8s_x": unable to pull image: initializing source'
            " docker://x"
        ),
        (
            'error creating pod sandbox with name "k8s_x": Error initializing source'
            " docker://k8s.gcr.io/pause"
        ),
    ],
    ids=["containerd 1", "containerd 2", "CRI-O 1.36", "CRI-O 1.18"],
)
def test_missing_sandbox_image_is_not_the_handlers_fault(
    path: Path, runtime: Runtime, told: str
) -> None:
    runtime.instead["RunPodSandbox"] = refuse(told)
    error = pod_failure(path)
    assert isinstance(error, NotTried)
    assert str(error) == f"sandbox image not found: {told}"


@pytest.mark.timing
def test_pod_that_hangs(path: Path, runtime: Runtime) -> None:
    freed = threading.Event()

    def hang() -> None:
        runtime.pods["half"] = (NAME, "nvidia-toolkit")
        freed.wait(20)
        raise Refused("too late")

    runtime.instead["RunPodSandbox"] = hang
    begun = time.monotonic()
    try:
        error = pod_failure(path, timeout=1.5)
        seconds = time.monotonic() - begun
    finally:
        freed.set()
    # A third of the time is kept for the way back.
    assert str(error) == "no pod starts through the handler nvidia: not started within 1.0 s"
    assert "sandbox image" in error.hint
    assert seconds < 1.5
    assert runtime.pods == {}


@pytest.mark.timing
def test_runtime_that_hangs_altogether_takes_no_longer_than_it_may(
    path: Path, runtime: Runtime
) -> None:
    freed = threading.Event()
    runtime.instead["ListPodSandbox"] = waiting(freed)
    begun = time.monotonic()
    try:
        error = pod_failure(path, timeout=0.9)
        seconds = time.monotonic() - begun
    finally:
        freed.set()
    assert "ListPodSandbox on" in str(error)
    assert seconds < 1.2


def test_pod_that_cannot_be_stopped_is_removed_all_the_same(path: Path, runtime: Runtime) -> None:
    runtime.instead["StopPodSandbox"] = refuse("it does not listen")
    smoke_test.start_pod(path, "nvidia", cgroup_parent="", timeout=20)
    assert runtime.pods == {}


def test_removal_is_tried_again(path: Path, runtime: Runtime) -> None:
    refusals = iter([True, True])

    def twice() -> None:
        if next(refusals, False):
            raise Refused("it is being removed already")

    runtime.instead["RemovePodSandbox"] = twice
    smoke_test.start_pod(path, "nvidia", cgroup_parent="", timeout=20)
    assert runtime.pods == {}


def test_pod_that_stays_is_told(path: Path, runtime: Runtime) -> None:
    runtime.instead["RemovePodSandbox"] = refuse("no")
    error = pod_failure(path, timeout=1.5)
    assert str(error).startswith(f"the pod {NAME} cannot be removed: RemovePodSandbox on ")
    # The last try of all may be broken off by the end of the time.
    assert " failed: UNKNOWN: no" in str(error) or " failed: no answer within " in str(error)


def test_pod_that_stays_does_not_hide_why_it_failed(
    path: Path, runtime: Runtime, story: list[str]
) -> None:
    def fail() -> None:
        runtime.pods["half"] = (NAME, "nvidia-toolkit")
        raise Refused("exec format error")

    runtime.instead["RunPodSandbox"] = fail
    runtime.instead["RemovePodSandbox"] = refuse("no")
    error = pod_failure(path, timeout=1.5)
    assert str(error) == "no pod starts through the handler nvidia: exec format error"
    (line,) = story
    assert line.startswith("a pod of the handler nvidia may remain on the node: the pod ")


def test_interruption_removes_the_pod_as_well(path: Path, runtime: Runtime) -> None:
    # As a signal's handler would, in the middle of the call; here before it.
    def interrupt(*_: object, **__: object) -> bytes:
        runtime.pods["half"] = (NAME, "nvidia-toolkit")
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smoke_test, "pod_request", interrupt)
        with pytest.raises(KeyboardInterrupt):
            smoke_test.start_pod(path, "nvidia", cgroup_parent="", timeout=20)
    assert runtime.pods == {}


def test_hint_about_cri_is_kept(path: Path, runtime: Runtime) -> None:
    runtime.instead["RunPodSandbox"] = refuse("unknown service", "UNIMPLEMENTED")
    assert "disabled_plugins" in pod_failure(path).hint


def test_nobody_listens(path: Path) -> None:
    assert "No such file or directory" in str(pod_failure(path))
    with pytest.raises(StepError, match="No such file or directory"):
        smoke_test.start_container(path, "nvidia", timeout=5)


# Containers


class Docker:
    """A dockerd for the requests that are made here; `instead` answers, or waits, for it."""

    def __init__(self) -> None:
        self.containers: dict[str, dict[str, Any]] = {}
        self.images: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.kinds: list[str | None] = []
        self.instead: dict[str, Callable[[], tuple[int, str] | None]] = {}
        self.ends_with = 0

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, str]:
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query))
        call = f"{method} {url.path}"
        self.calls.append(call)
        if (asked := self.instead.get(call)) and (said := asked()):
            return said
        match method, url.path.strip("/").split("/"):
            case "POST", ["images", "create"]:
                assert query["fromSrc"] == "-"
                self.images[f"{query['repo']}:{query['tag']}"] = body
                answer = (200, '{"status":"sha256:1"}\r\n')
            case "POST", ["containers", "create"]:
                self.containers[query["name"]] = json.loads(body)
                answer = (201, '{"Id":"1","Warnings":[]}')
            case "POST", ["containers", name, "start"] if name in self.containers:
                assert not body
                answer = (204, "")
            case "POST", ["containers", name, "wait"] if name in self.containers:
                answer = (200, json.dumps({"StatusCode": self.ends_with}))
            case "DELETE", ["containers", name] if (
                name in self.containers and query["force"] == "1"
            ):
                del self.containers[name]
                answer = (204, "")
            case "DELETE", ["images", name] if name in self.images:
                del self.images[name]
                answer = (200, "[]")
            case _:
                answer = (404, '{"message":"page not found"}')
        return answer

    def listed(self, target: str) -> list[dict[str, Any]]:
        path, _, query = target.partition("?")
        filters = json.loads(dict(urllib.parse.parse_qsl(query))["filters"])
        if path == "/containers/json":
            assert filters == {"label": [f"{LABEL}=true"]}
            return [
                {"Id": name}
                for name, each in self.containers.items()
                if LABEL in each.get("Labels", {})
            ]
        assert (path, filters) == ("/images/json", {"reference": [IMAGE.partition(":")[0]]})
        return [
            {"RepoTags": [name]} for name in self.images if name.startswith(IMAGE.partition(":")[0])
        ]

    @property
    def is_empty(self) -> bool:
        return not self.containers and not self.images


@contextlib.contextmanager
def serving_http(path: Path, docker: Docker) -> Iterator[None]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def speak(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            docker.kinds.append(self.headers["Content-Type"])
            if "filters=" in self.path:
                status, said = 200, json.dumps(docker.listed(self.path))
            else:
                status, said = docker.answer(self.command, self.path, body)
            with contextlib.suppress(OSError):
                self.send_response(status)
                if status != 204:
                    self.send_header("Content-Length", str(len(said.encode())))
                self.end_headers()
                self.wfile.write(said.encode())

        do_GET = do_POST = do_DELETE = speak  # noqa: N815 - the names that the server looks for

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the parent's
            pass

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def docker(path: Path) -> Iterator[Docker]:
    found = Docker()
    with serving_http(path, found):
        yield found


def container_failure(path: Path, *, handler: str = "nvidia", timeout: float = 20) -> StepError:
    with pytest.raises(StepError) as caught:
        smoke_test.start_container(path, handler, timeout=timeout)
    return caught.value


CLEARED = [f"DELETE /containers/{NAME}", f"DELETE /images/{IMAGE}"]


def test_container_is_started_and_everything_removed(path: Path, docker: Docker) -> None:
    smoke_test.start_container(path, "nvidia", timeout=20)
    made = [
        "/images/create",
        "/containers/create",
        f"/containers/{NAME}/start",
        f"/containers/{NAME}/wait",
    ]
    assert docker.calls == [*CLEARED, *(f"POST {each}" for each in made), *CLEARED]
    assert docker.is_empty
    # The archive and the description; nothing else has a body.
    assert [kind for kind in docker.kinds if kind] == ["application/x-tar", "application/json"]


def test_what_the_container_is_made_of(path: Path, docker: Docker, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    program = tmp_path / "program"

    def look() -> None:
        seen.append(docker.containers[NAME])
        with tarfile.open(fileobj=io.BytesIO(docker.images[IMAGE])) as archive:
            (member,) = archive.getmembers()
            found = archive.extractfile(member)
            assert found is not None
            program.write_bytes(found.read())
            # Only the mode is taken over: what is in the archive says nothing about where it goes.
            program.chmod(member.mode)
        assert member.name == "exit"

    docker.instead[f"POST /containers/{NAME}/start"] = look
    smoke_test.start_container(path, "nvidia", timeout=20)
    (container,) = seen
    assert container == {
        "Image": IMAGE,
        "Cmd": ["/exit"],
        "Labels": {LABEL: "true"},
        "HostConfig": {"Runtime": "nvidia", "NetworkMode": "none", "LogConfig": {"Type": "none"}},
    }
    assert program.read_bytes() == elf.minimal()
    assert subprocess.run([program], check=False, timeout=10).returncode == 0


def test_container_of_a_killed_run_goes_first_and_others_stay(path: Path, docker: Docker) -> None:
    docker.containers |= {NAME: {}, "theirs": {}}
    docker.images |= {IMAGE: b"", "theirs:1": b""}
    smoke_test.start_container(path, "nvidia", timeout=20)
    assert (list(docker.containers), list(docker.images)) == (["theirs"], ["theirs:1"])


def test_containers_and_images_of_killed_runs_go_whatever_their_handler(
    path: Path, docker: Docker
) -> None:
    label = {"Labels": {LABEL: "true"}}
    docker.containers |= {NAME: label, f"{NAME}-cdi": label, "theirs": {}}
    docker.images |= {IMAGE: b"", f"{IMAGE}-cdi": b"", "theirs:1": b""}
    smoke_test.clear_containers(path, timeout=5)
    assert (list(docker.containers), list(docker.images)) == (["theirs"], ["theirs:1"])


def test_full_disk_of_docker_is_not_the_handlers_fault(path: Path, docker: Docker) -> None:
    docker.instead[f"POST /containers/{NAME}/start"] = lambda: (
        500,
        '{"message":"no space left on device"}',
    )
    error = container_failure(path)
    assert isinstance(error, NotTried)
    assert str(error) == "disk full: no space left on device"
    assert docker.is_empty


@pytest.mark.parametrize("step", ["create", f"{NAME}/start", f"{NAME}/wait"])
def test_refusal_of_a_step(path: Path, docker: Docker, step: str) -> None:
    told = json.dumps({"message": "OCI runtime create failed:\nstderr: no such file"})
    docker.instead[f"POST /containers/{step}"] = lambda: (400, told)
    error = container_failure(path)
    assert (
        str(error)
        == "no container starts through the handler nvidia: OCI runtime create failed: stderr: no"
        " such file"
    )
    assert not isinstance(error, NotTried)
    assert docker.is_empty


@pytest.mark.parametrize(
    ("body", "told"), [("", "500 Internal Server Error"), ("plain\n", "plain"), ("[1]", "[1]")]
)
def test_refusal_in_other_words(path: Path, docker: Docker, body: str, told: str) -> None:
    docker.instead["POST /containers/create"] = lambda: (500, body)
    assert str(container_failure(path)) == f"no container starts through the handler nvidia: {told}"


def test_program_that_fails(path: Path, docker: Docker) -> None:
    docker.ends_with = 127
    told = "its program exited with 127 instead of 0"
    assert str(container_failure(path)) == f"no container starts through the handler nvidia: {told}"


def test_end_that_is_not_told_is_no_success(path: Path, docker: Docker) -> None:
    docker.instead[f"POST /containers/{NAME}/wait"] = lambda: (200, "")
    assert "exited with None" in str(container_failure(path))


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (500, '{"message":"no space left on device"}', "no space left on device"),
        (
            200,
            '{"status":"x"}\r\n{"errorDetail":{},"error":"Error processing\\ntar"}',
            "Error processing tar",
        ),
    ],
    ids=["at once", "later"],
)
def test_image_that_cannot_be_made(
    path: Path, docker: Docker, status: int, body: str, told: str
) -> None:
    docker.instead["POST /images/create"] = lambda: (status, body)
    error = container_failure(path)
    assert isinstance(error, NotTried)
    assert str(error) == f"cannot create the image to start: {told}"


def test_machine_without_a_program(
    path: Path, docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(machine="riscv64"))
    error = container_failure(path)
    assert isinstance(error, NotTried)
    assert str(error) == "no test program for this CPU architecture"


@pytest.mark.timing
def test_container_that_hangs(path: Path, docker: Docker) -> None:
    freed = threading.Event()
    docker.instead[f"POST /containers/{NAME}/start"] = waiting(freed)
    begun = time.monotonic()
    try:
        error = container_failure(path, timeout=1.5)
        seconds = time.monotonic() - begun
    finally:
        freed.set()
    assert (
        str(error) == "no container starts through the handler nvidia: did not finish within 1.0 s"
    )
    assert seconds < 1.5
    assert docker.is_empty


@pytest.mark.timing
def test_dockerd_that_hangs_altogether_takes_no_longer_than_it_may(
    path: Path, docker: Docker, story: list[str]
) -> None:
    freed = threading.Event()

    def hang() -> None:
        docker.instead[CLEARED[0]] = waiting(freed)
        freed.wait(20)

    docker.instead[f"POST /containers/{NAME}/start"] = hang
    begun = time.monotonic()
    try:
        error = container_failure(path, timeout=0.9)
        seconds = time.monotonic() - begun
    finally:
        freed.set()
    assert "did not finish within 0.6 s" in str(error)
    assert seconds < 1.2
    (line,) = story
    assert line.startswith("a container of the handler nvidia may remain on the node: ")


def test_removal_under_way_is_waited_for(path: Path, docker: Docker) -> None:
    refusals = iter([(409, '{"message":"removal of container is already in progress"}')] * 2)
    docker.instead[CLEARED[0]] = lambda: next(refusals, None)
    smoke_test.start_container(path, "nvidia", timeout=20)
    assert docker.calls[:3] == [CLEARED[0]] * 3


def test_container_that_stays_is_told(path: Path, docker: Docker) -> None:
    docker.instead[CLEARED[1]] = lambda: (409, '{"message":"image is in use"}')
    told = f"/images/{IMAGE} cannot be removed: image is in use"
    assert str(container_failure(path, timeout=1.5)) == told


def test_names_are_such_as_docker_takes(path: Path, docker: Docker) -> None:
    docker.instead["POST /containers/create"] = lambda: (400, '{"message":"no"}')
    assert "the handler gpu:ü: no" in str(container_failure(path, handler="gpu:ü"))
    assert docker.calls[-2:] == [
        "DELETE /containers/nvidia-toolkit-check-gpu__",
        "DELETE /images/nvidia-toolkit-check:gpu__",
    ]


# HTTP


def test_request_returns_any_status(path: Path, docker: Docker) -> None:
    answer = unix_http.request(path, "GET", "/nothing", timeout=5)
    assert (answer.status, answer.reason, answer.ok) == (404, "Not Found", False)
    assert answer.body == '{"message":"page not found"}'
    docker.instead["GET /empty"] = lambda: (204, "")
    answer = unix_http.request(path, "GET", "/empty", timeout=5)
    assert (answer.status, answer.ok, answer.body) == (204, True, "")


def test_get_wants_ok(path: Path, docker: Docker) -> None:
    docker.instead["GET /info"] = lambda: (200, "{}")
    assert unix_http.get(path, "/info", timeout=5) == "{}"
    assert unix_http.get(path, "/nothing", timeout=5, gone="null") == "null"
    with pytest.raises(StepError, match=r"GET /nothing on .* failed: 404 Not Found$"):
        unix_http.get(path, "/nothing", timeout=5)
    docker.instead["GET /info"] = lambda: (204, "")
    with pytest.raises(StepError, match=r"GET /info on .* failed: 204 No Content$"):
        unix_http.get(path, "/info", timeout=5)


def test_no_answer_names_the_request(path: Path, docker: Docker) -> None:
    freed = threading.Event()
    docker.instead["DELETE /x"] = waiting(freed)
    try:
        with pytest.raises(StepError, match=r"DELETE /x on .* failed: timed out$"):
            unix_http.request(path, "DELETE", "/x", timeout=0.2)
    finally:
        freed.set()


# Each byte once restarted the timeout: such a runtime took 20 times as long as allowed.
@pytest.mark.timing
def test_a_server_that_drips_gets_no_more_time_by_it(tmp_path: Path) -> None:
    path, ended = tmp_path / "s", threading.Event()

    def drip(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while not ended.wait(0.05):
                    client.sendall(b"x")

    with fake_node.listening(path) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        begin = time.monotonic()
        try:
            with pytest.raises(StepError, match=r"GET /info on .* failed: timed out$"):
                unix_http.get(path, "/info", timeout=0.4)
            assert time.monotonic() - begin < 3
        finally:
            ended.set()
            thread.join()
