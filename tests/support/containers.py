"""Containers on a node: the installer's own, and pods that the node's containerd or CRI-O runs.

The installer's container is made here, call by call, since no image of it is needed that way: the
test machine's root stands in for the image. Its parent process is `container_parent`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

from tests.support import container_parent
from tests.support.nodes import PATH, SOCKETS, Node, NodeError, children, path, run, wait_for

CHECKOUT: Final = Path(__file__).resolve().parents[2]
DEFAULT_MOUNTS: Final[Mapping[str, str]] = {
    "/etc/containerd": "/etc/containerd",
    "/run/containerd": "/run/containerd",
    "/usr/local/nvidia": "/usr/local/nvidia",
    "/run/nvidia": "/run/nvidia",
}

# Field numbers to values, as CRI's description lists them.
Value: TypeAlias = "str | int | Sequence[str] | Sequence[Mapping[int, Value]] | Mapping[int, Value]"
Fields: TypeAlias = Mapping[int, Value]
BinaryResult: TypeAlias = dict[int, int | bytes]

IMAGE: Final = "localhost/test:1"

_NOT_YET: Final = "server is not initialized yet"
_ARCHIVE: Final = "/root/images.tar"
_APPLETS: Final = tuple(
    f"bin/{name}" for name in ("cat", "echo", "env", "false", "id", "ls", "sh", "sleep", "true")
)
_PAUSE: Final = "trap exit TERM; while :; do sleep 3600 & wait; done"
_NODE_NAMESPACE: Final = 2
_RUNNING: Final = 1
_EXITED: Final = 2
FEW: Final = ("CHOWN", "DAC_OVERRIDE", "SYS_CHROOT", "SYS_PTRACE")
"""What the chart gives by default."""


def daemonset(  # noqa: PLR0913  # each is a property of the container
    node: Node,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    mounts: Mapping[str, str] = DEFAULT_MOUNTS,
    host_pid: bool = True,
    capabilities: Collection[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program as a DaemonSet container of the node would, to its end."""
    with start_daemonset(
        node, argv, env=env, mounts=mounts, host_pid=host_pid, capabilities=capabilities
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_daemonset(  # noqa: PLR0913  # each is a property of the container
    node: Node,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    mounts: Mapping[str, str] = DEFAULT_MOUNTS,
    host_pid: bool = True,
    log: IO[str] | None = None,
    capabilities: Collection[str] | None = None,
) -> subprocess.Popen[str]:
    """Start a program as in a DaemonSet's container: privileged, or with capabilities only.

    The process handed back is the container's parent: it passes signals on and ends as the program
    ends. SIGKILL cannot be passed on; where the order matters, kill `inner(process)`.
    """
    path = f"{Path(sys.executable).parent}:{PATH}"
    order = {
        "node": node.pid,
        "argv": list(argv),
        # What is compiled would go to a layer that is thrown away.
        "env": {"PATH": path, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
        "mounts": dict(mounts),
        "host_pid": host_pid,
        "capabilities": None if capabilities is None else sorted(capabilities),
        "shared": sorted({"/tmp", tempfile.gettempdir()}),  # noqa: S108 - it is the machine's own
    }
    return subprocess.Popen(
        (sys.executable, "-I", "-S", container_parent.__file__, json.dumps(order)),
        cwd=CHECKOUT, env={"PATH": path}, stdin=subprocess.DEVNULL, text=True,
        stdout=log or subprocess.PIPE, stderr=log or subprocess.PIPE,
    )  # fmt: skip


def inner(process: subprocess.Popen[str], *, timeout: float = 10) -> int:
    """Return the test machine's PID of the program in a container, once it runs."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        # Until it has become the program, a child is a copy of its parent.
        pids = [process.pid]
        while pids and _command(pids[0]) == _command(process.pid):
            pids = children(pids[0])
        if pids and _command(pids[0]):
            return pids[0]
        time.sleep(0.01)
    raise NodeError(f"{process.args!r} runs no program")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodResult:
    """How the one container of a pod ended, and what it wrote."""

    exit_code: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod sandbox of the node with one container in it."""

    sandbox: str
    container: str
    log: str
    socket: str


def is_whole(node: Node) -> bool:
    """Return whether containerd loads its configuration and all our programs in it can be run."""
    text = path(node, "/etc/containerd/config.toml").read_text(encoding="utf-8")
    named = [
        line.split('"')[1] for line in text.splitlines() if "/usr/local/nvidia/toolkit" in line
    ]
    found = [run(node, ("test", "-x", binary), check=False).returncode == 0 for binary in named]
    return all(found) and run(node, ("containerd", "config", "dump"), check=False).returncode == 0


def why_no_containers(node: Node) -> str | None:
    """Return the reason why no pod can run on this node, or None."""
    if importlib.util.find_spec("grpc") is None:
        return "pods need grpcio, to speak CRI"
    candidate_query = ctr_run(node, ("true",))
    if candidate_query.returncode != 0:
        return f"this machine lets {node.suite} run no containers: {candidate_query.stderr.strip()}"
    return None


def prepare_images(node: Node) -> None:
    """Give the node an image for pods and one for their sandboxes, both made of busybox."""
    names = [IMAGE, sandbox_image(node)]
    archive = path(node, _ARCHIVE)
    archive.write_bytes(image_archive(path(node, "/usr/bin/busybox").read_bytes(), names))
    run(node, ("ctr", "--namespace=k8s.io", "images", "import", _ARCHIVE))
    archive.unlink()
    # CRI learns of images by events, a moment later.
    wait_for(node, lambda: all(has_image(node, name) for name in names))


def sandbox_image(node: Node) -> str:
    """Return the name of the image that the node's pod sandboxes are made of."""
    plugins = _plugins(node)
    if images := plugins.get("io.containerd.cri.v1.images"):
        return str(images["pinned_images"]["sandbox"])
    return str(plugins["io.containerd.grpc.v1.cri"]["sandbox_image"])


def run_pod(
    node: Node,
    *,
    handler: str,
    argv: Sequence[str],
    timeout: float = 60,
    **more: Any,
) -> PodResult:
    """Run a command in a pod of a runtime handler, as kubelet does; "" is the default handler.

    `more` are arguments of `start_pod`.
    """
    pod = start_pod(node, handler=handler, argv=argv, **more)
    try:
        wait_for(node, lambda: _container_status(node, pod).get(3) == _EXITED, timeout)
        code = _container_status(node, pod).get(7, 0)
        return PodResult(exit_code=int(code), output=_output(node, pod))
    finally:
        stop_pod(node, pod)


def start_pod(  # noqa: PLR0913  # each is a property of the pod
    node: Node,
    *,
    handler: str,
    argv: Sequence[str],
    socket: str = SOCKETS["containerd"],
    cgroup_parent: str | None = None,
    wishes: Fields | None = None,
    namespace: str = "default",
    annotations: Mapping[str, str] | None = None,
) -> Pod:
    """Start a command in a pod of a runtime handler, and leave it running.

    Where no cgroup is named as the parent, the node's containerd is asked which one it takes.
    `wishes` are further fields of CRI's description of a container (see `wishing`); the namespace
    and the annotations are the pod's.
    """
    name = f"test-{uuid.uuid4().hex[:8]}"
    # The node's own network, so that no CNI plugin is needed.
    security: Fields = {1: {1: _NODE_NAMESPACE}}
    logs = f"/var/log/pods/{name}"
    path(node, logs).mkdir(parents=True)
    sandbox_config: Fields = {
        1: {1: name, 2: name, 3: namespace},
        3: logs,
        7: [{1: key, 2: text} for key, text in (annotations or {}).items()],
        8: {1: cgroup_parent or _cgroup_parent(node, handler), 2: security},
    }
    made = _cri(node, socket, "RunPodSandbox", {1: sandbox_config, 2: handler})
    sandbox = _bytes(made[1]).decode()
    try:
        config: Fields = {
            1: {1: "test"},
            2: {1: IMAGE},
            3: list(argv),
            11: "log",
            15: {2: {3: {1: _NODE_NAMESPACE}}},
            **(wishes or {}),
        }
        made = _cri(node, socket, "CreateContainer", {1: sandbox, 2: config, 3: sandbox_config})
        container = _bytes(made[1]).decode()
        pod = Pod(sandbox=sandbox, container=container, log=f"{logs}/log", socket=socket)
        _cri(node, socket, "StartContainer", {1: pod.container})
    except BaseException:
        remove_sandbox(node, socket, sandbox)
        raise
    return pod


def wishing(*cdi_devices: str, **env: str) -> Fields:
    """Return a container's requests: variables, and CDI devices as by a device plugin."""
    variables = [{1: name, 2: text} for name, text in env.items()]
    return {6: variables, 17: [{1: device} for device in cdi_devices]}


def is_running(node: Node, pod: Pod) -> bool:
    """Return whether CRI says that the pod's container runs."""
    return _container_status(node, pod).get(3) == _RUNNING


def stop_pod(node: Node, pod: Pod) -> None:
    """Kill the pod's container and remove the pod."""
    remove_sandbox(node, pod.socket, pod.sandbox)


def ctr_run(
    node: Node, argv: Sequence[str], *, runc_binary: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a container without CRI: busybox alone, the default runtime or another."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    root = path(node, f"/run/{name}")
    (root / "bin").mkdir(parents=True)
    try:
        (root / "bin/busybox").write_bytes(path(node, "/usr/bin/busybox").read_bytes())
        (root / "bin/busybox").chmod(0o755)
        for applet in _APPLETS:
            (root / applet).symlink_to("/bin/busybox")
        binary = () if runc_binary is None else (f"--runc-binary={runc_binary}",)
        return run(
            node,
            ("ctr", "run", "--rm", "--env=PATH=/bin", *binary, "--rootfs", f"/run/{name}", name,
             *argv),
            check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(root)


# CRI, spoken by its field numbers: the few messages needed are not worth generated code.


def _cri(node: Node, socket: str, method: str, fields: Fields) -> BinaryResult:
    """Call a method of the CRI runtime service at a socket of the node; refuse what it refuses."""
    return _call_cri(node, socket, f"/runtime.v1.RuntimeService/{method}", fields)


def _call_cri(node: Node, socket: str, method: str, fields: Fields) -> BinaryResult:
    grpc: Any = importlib.import_module("grpc")
    deadline = time.monotonic() + 30
    with grpc.insecure_channel(f"unix:{path(node, socket)}") as channel:
        ask = channel.unary_unary(method)
        while True:
            try:
                said: bytes = ask(encode(fields), timeout=60, wait_for_ready=True)
            except grpc.RpcError as error:
                # containerd serves its socket a moment before its CRI plugin is ready.
                if error.details() != _NOT_YET or time.monotonic() > deadline:
                    raise NodeError(f"{method}: {error.details()}") from error
                time.sleep(0.02)
            else:
                return decode(said)


def _plugins(node: Node) -> dict[str, Any]:
    dump = run(node, ("containerd", "config", "dump")).stdout
    plugins: dict[str, Any] = tomllib.loads(dump)["plugins"]
    return plugins


def _cgroup_parent(node: Node, handler: str) -> str:
    """Return a parent in the language of the handler's cgroup driver, as kubelet has to."""
    plugins = _plugins(node)
    section = plugins.get("io.containerd.cri.v1.runtime") or plugins["io.containerd.grpc.v1.cri"]
    known = section["containerd"]
    options = known["runtimes"].get(handler or known["default_runtime_name"], {}).get("options")
    return "kubepods.slice" if (options or {}).get("SystemdCgroup") else "/kubepods"


def _container_status(node: Node, pod: Pod) -> BinaryResult:
    return _nested(_cri(node, pod.socket, "ContainerStatus", {1: pod.container})[1])


def has_image(node: Node, name: str) -> bool:
    """Return whether the node's CRI knows an image by this name."""
    method = "/runtime.v1.ImageService/ImageStatus"
    return 1 in _call_cri(node, SOCKETS["containerd"], method, {1: {1: name}})


def _output(node: Node, pod: Pod) -> str:
    """Read what a container wrote: "TIME STREAM TAG TEXT", where the tag P stands for a piece."""
    pieces = []
    for line in path(node, pod.log).read_text(encoding="utf-8").splitlines():
        _, _, tag, text = line.split(" ", 3)
        pieces.append(text if tag == "P" else f"{text}\n")
    return "".join(pieces)


def remove_sandbox(node: Node, socket: str, sandbox: str) -> None:
    _cri(node, socket, "StopPodSandbox", {1: sandbox})
    _cri(node, socket, "RemovePodSandbox", {1: sandbox})


def image_archive(busybox: bytes, names: Sequence[str]) -> bytes:
    """Return an image archive as `docker save` writes it, with busybox as its one layer."""
    layer = _tar({"bin/busybox": busybox, **dict.fromkeys(_APPLETS)})
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        # CRI-O asks a sandbox by SIGTERM to end, and gives it as long as its own caller waits.
        "config": {"Cmd": ["sh", "-c", _PAUSE], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    index = [{"Config": "config.json", "RepoTags": list(names), "Layers": ["layer.tar"]}]
    return _tar({
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer,
        "manifest.json": json.dumps(index).encode(),
    })  # fmt: skip


def _tar(files: Mapping[str, bytes | None]) -> bytes:
    """Return an archive of files; what has no content is a link to busybox."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if content is None:
                entry.type, entry.linkname = tarfile.SYMTYPE, "/bin/busybox"
            else:
                entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content or b""))
    return out.getvalue()


def encode(fields: Fields) -> bytes:
    """Return a protocol buffer message, given by its field numbers."""
    out = b""
    for number, value in fields.items():
        items: Sequence[Any] = value if isinstance(value, list) else [value]
        for item in items:
            if isinstance(item, int):
                out += _varint(number << 3) + _varint(item)
            else:
                data = item.encode() if isinstance(item, str) else encode(item)
                out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return out


def decode(data: bytes) -> BinaryResult:
    """Return the fields of a protocol buffer message; of a repeated one, the last."""
    found: BinaryResult = {}
    stream = io.BytesIO(data)
    while stream.tell() < len(data):
        number, kind = divmod(_read_varint(stream), 8)
        if kind not in {0, 2}:
            raise NodeError(f"CRI answered a field of the unknown kind {kind}")
        value = _read_varint(stream)
        found[number] = value if kind == 0 else stream.read(value)
    return found


def _nested(value: int | bytes) -> BinaryResult:
    return decode(_bytes(value))


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise NodeError(f"CRI answered the number {value} where a text was due")
    return value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _read_varint(stream: IO[bytes]) -> int:
    value, shift = 0, 0
    while True:
        byte = stream.read(1)[0]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value
