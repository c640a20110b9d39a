"""The real CRI-O on booted nodes: built from its Go module, installed as a distribution does it.

No suite of Debian has it, and the nodes need nothing of it until a test asks: it is copied into a
node that runs already. Its configuration is two drop-ins, as on a real node: the package's, with
the handlers, and one with what an administrator sets. crio.conf exists only if a test wants one.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import http.client
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.support import containers, nodes, versions
from tests.support.containers import Pod, PodResult
from tests.support.nodes import Node, NodeError

VERSION: Final = versions.CRIO
SUITES: Final = ("trixie", "forky")
SOCKET: Final = "/run/crio/crio.sock"
CONFIG: Final = "/etc/crio/crio.conf"
DROP_INS: Final = "/etc/crio/crio.conf.d"
PACKAGE_DROP_IN: Final = f"{DROP_INS}/10-crio.conf"
RUNC: Final = "/usr/libexec/crio/runc"

_MODULE: Final = f"github.com/cri-o/cri-o@v{VERSION}"
_TAGS: Final = (
    "containers_image_openpgp", "containers_image_ostree_stub", "exclude_graphdriver_btrfs",
    "btrfs_noversion", "seccomp",
)  # fmt: skip
_BUILD_TIME: Final = 900
_MADE: Final = ("crio", "pinns", "crio.service")
_CONMON: Final = "/usr/libexec/crio/conmon"
_STORE: Final = "/var/lib/containers/storage"
# The annotations are there because a handler that is made after this one has to take them over.
_HANDLERS: Final = f"""\
[crio.runtime]
default_runtime = "runc"

[crio.runtime.runtimes.runc]
runtime_path = "{RUNC}"
runtime_root = "/run/runc"
monitor_path = "{_CONMON}"
allowed_annotations = [
    "io.containers.trace-syscall",
]
"""
# The root of a node is an overlay, and another one cannot lie on it. No registry is there to ask.
_SETTINGS: Final = f"""\
[crio]
storage_driver = "vfs"

[crio.image]
pause_image = "{containers.IMAGE}"
pause_command = ""
"""
_POLICY: Final = {"default": [{"type": "insecureAcceptAnything"}]}


@functools.cache
def why_not() -> str | None:
    """Return why this machine cannot run CRI-O in nodes, or None; builds it to be sure."""
    if reason := nodes.why_not():
        return reason
    if importlib.util.find_spec("grpc") is None:
        return "CRI-O needs grpcio, to speak CRI"
    programs = ["conmon", "ldd", "skopeo"]
    if not all((_home() / name).exists() for name in _MADE):
        programs += ["gcc", "go", "pkg-config"]
    if missing := [name for name in programs if shutil.which(name) is None]:
        return f"CRI-O needs {', '.join(missing)}"
    try:
        binary()
    except NodeError as error:
        return str(error)
    return None


def binary() -> Path:
    """Return the crio program, built on first use; pinns and its unit file lie beside it."""
    home = _home()
    with _locked(home):
        missing = [name for name in _MADE if not (home / name).exists()]
        if missing:
            with _scratch(home) as scratch:
                _build(scratch, missing)
                for name in missing:
                    (scratch / name).rename(home / name)
    return home / "crio"


def install(node: Node, *, config: str | None = None) -> None:
    """Put CRI-O, what it runs, its unit and drop-ins on a node; a crio.conf only if given."""
    # A node without units counts as booted before its systemd takes orders.
    nodes.wait_for(node, lambda: _has_booted(node))
    crio, conmon = binary(), Path(shutil.which("conmon") or "conmon")
    for source, target in (
        (crio, "/usr/local/bin/crio"),
        (crio.with_name("pinns"), "/usr/local/bin/pinns"),
        (conmon, _CONMON),
    ):
        _put(node, target, source.read_bytes(), mode=0o755)
    nodes.path(node, RUNC).symlink_to("/usr/sbin/runc")
    _put_libraries(node, (crio, conmon))
    _put(node, "/etc/systemd/system/crio.service", crio.with_name("crio.service").read_bytes())
    _put(node, "/etc/containers/policy.json", json.dumps(_POLICY).encode())
    _put(node, PACKAGE_DROP_IN, _HANDLERS.encode())
    _put(node, f"{DROP_INS}/05-test.conf", _SETTINGS.encode())
    if config is not None:
        _put(node, CONFIG, config.encode())
    nodes.run(node, ("systemctl", "daemon-reload"))


def prepare_images(node: Node) -> None:
    """Give the node's CRI-O the image of pods and sandboxes; to be done before the start."""
    known = nodes.path(node, f"{_STORE}/vfs-images/images.json")
    if known.exists() and containers.IMAGE in known.read_text(encoding="utf-8"):
        return
    if nodes.is_active(node, "crio"):
        raise NodeError(
            "images are prepared before CRI-O starts: it does not expect its store to change"
        )
    busybox = nodes.path(node, "/usr/bin/busybox").read_bytes()
    shutil.copytree(_store(busybox), nodes.path(node, _STORE), symlinks=True, dirs_exist_ok=True)


def start(node: Node) -> None:
    """Start CRI-O under systemd, or start it anew, and wait until its socket answers."""
    # Tests restart more often than systemd finds healthy; it may not know the unit yet.
    nodes.run(node, ("systemctl", "reset-failed", "crio"), check=False)
    started = nodes.run(node, ("systemctl", "restart", "crio"), check=False)
    if started.returncode != 0:
        raise NodeError(f"CRI-O did not start: {log(node)[-2000:]}")
    nodes.wait_for(node, lambda: answers(node))


def stop(node: Node) -> None:
    """Stop CRI-O, or keep systemd from trying again to start it; its containers live on."""
    nodes.run(node, ("systemctl", "stop", "crio"))


def hang_up(node: Node) -> None:
    """Send SIGHUP to CRI-O alone, by which it reads its files again, a moment later."""
    nodes.run(node, ("systemctl", "kill", "--signal=HUP", "--kill-whom=main", "crio"))


def log(node: Node) -> str:
    """Return what CRI-O wrote since it was started last, and systemd about it."""
    shown = nodes.run(
        node, ("systemctl", "show", "--property=InvocationID", "--value", "crio")
    ).stdout
    nodes.run(node, ("journalctl", "--sync"))
    words = ("journalctl", "--output=cat", f"_SYSTEMD_INVOCATION_ID={shown.strip()}")
    return nodes.run(node, words, check=False).stdout


def answers(node: Node) -> bool:
    """Return whether CRI-O answers at its socket."""
    try:
        _get(node, "/info")
    except (OSError, NodeError):
        return False
    return True


def config(node: Node) -> dict[str, Any]:
    """Return the configuration that the running CRI-O says it has."""
    return tomllib.loads(_get(node, "/config"))


def handlers(node: Node) -> dict[str, Any]:
    """Return the handlers that the running CRI-O says it has, by name."""
    found: dict[str, Any] = config(node)["crio"]["runtime"]["runtimes"]
    return found


def why_no_pods(node: Node) -> str | None:
    """Return the reason why CRI-O, which must run, can run no pod on this node, or None."""
    try:
        done = run_pod(node, handler="", argv=("true",))
    except NodeError as error:
        return f"this machine lets CRI-O on {node.suite} run no pods: {error}"
    return (
        None
        if done.exit_code == 0
        else f"a pod of CRI-O on {node.suite} ended with {done.exit_code}"
    )


def run_pod(
    node: Node, *, handler: str, argv: Sequence[str], timeout: float = 60, **more: Any
) -> PodResult:
    """Run a command in a pod of a runtime handler, as kubelet does; "" is the default handler."""
    more |= {"socket": SOCKET, "cgroup_parent": _cgroup_parent(node)}
    return containers.run_pod(node, handler=handler, argv=argv, timeout=timeout, **more)


def start_pod(node: Node, *, handler: str, argv: Sequence[str], **more: Any) -> Pod:
    """Start a command in a pod of a runtime handler, and leave it running."""
    return containers.start_pod(
        node, handler=handler, argv=argv, socket=SOCKET, cgroup_parent=_cgroup_parent(node), **more
    )


def is_running(node: Node, pod: Pod) -> bool:
    """Return whether CRI-O says that the pod's container runs."""
    return containers.is_running(node, pod)


def stop_pod(node: Node, pod: Pod) -> None:
    """Kill the pod's container and remove the pod."""
    containers.stop_pod(node, pod)


def _home() -> Path:
    return nodes.cache() / "go" / f"crio-v{VERSION}"


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Keep two test runs from making the same thing at once."""
    home.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """Make a work directory, and remove those of killed test runs; needs the lock."""
    for stale in home.glob(".made-*"):
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=".made-", dir=home) as name:
        yield Path(name)


def _build(out: Path, names: Sequence[str]) -> None:
    told = json.loads(_make(("go", "mod", "download", "-json", _MODULE), cwd=out))
    source = Path(told["Dir"])
    if "crio" in names:
        # `go install` refuses the module, which has replacements.
        words = ("go", "build", "-trimpath", "-ldflags=-s -w", "-tags", " ".join(_TAGS))
        _make((*words, "-o", str(out / "crio"), "./cmd/crio"), cwd=source, env={"CGO_ENABLED": "1"})
    if "pinns" in names:
        files = sorted(str(file) for file in (source / "pinns/src").glob("*.c"))
        _make(
            ("gcc", "-std=c99", "-Os", "-s", "-static", "-o", str(out / "pinns"), *files), cwd=out
        )
    if "crio.service" in names:
        (out / "crio.service").write_bytes((source / "contrib/systemd/crio.service").read_bytes())


def _make(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, **(env or {})},
        capture_output=True, text=True, check=False, timeout=_BUILD_TIME,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr or done.stdout
        raise NodeError(f"CRI-O {VERSION} cannot be made here, {argv[0]} says: {said[-1000:]}")
    return done.stdout


def _store(busybox: bytes) -> Path:
    """Return an image store that holds the one image of tests, made on first use."""
    archive = containers.image_archive(busybox, [containers.IMAGE])
    wanted = _home() / f"store-{hashlib.sha256(archive).hexdigest()[:10]}"
    with _locked(_home()):
        if wanted.is_dir():
            return wanted
        with _scratch(_home()) as scratch:
            (scratch / "image.tar").write_bytes(archive)
            target = f"containers-storage:[vfs@{scratch}/store+{scratch}/run]{containers.IMAGE}"
            words = ("skopeo", "--insecure-policy", "copy", "--quiet")
            _make((*words, f"docker-archive:{scratch}/image.tar", target), cwd=scratch)
            (scratch / "store").rename(wanted)
    return wanted


def _put(node: Node, name: str, data: bytes, *, mode: int = 0o644) -> None:
    file = nodes.path(node, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    file.chmod(mode)


def _put_libraries(node: Node, programs: Sequence[Path]) -> None:
    """Copy the libraries of this machine's programs that the node does not have."""
    known = nodes.run(node, ("ldconfig", "--print-cache")).stdout.split()
    for program in programs:
        for line in _make(("ldd", str(program)), cwd=program.parent).splitlines():
            library, arrow, place, *_ = (*line.split(), "", "", "")
            if arrow == "=>" and library not in known:
                _put(node, f"/usr/local/lib/{library}", Path(place).read_bytes())
    nodes.run(node, ("ldconfig",))


def _has_booted(node: Node) -> bool:
    said = nodes.run(node, ("systemctl", "is-system-running"), check=False)
    return said.stdout.strip() in {"running", "degraded"}


def _cgroup_parent(node: Node) -> str:
    """Return a parent in the language of CRI-O's cgroup manager, as kubelet has to."""
    manager = config(node)["crio"]["runtime"]["cgroup_manager"]
    return "kubepods.slice" if manager == "systemd" else "/kubepods"


def _get(node: Node, target: str) -> str:
    """Ask CRI-O over HTTP, which it speaks beside CRI at the same socket."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(10)
        asked.connect(str(nodes.path(node, SOCKET)))
        asked.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
        answer = http.client.HTTPResponse(asked)
        answer.begin()
        body = answer.read().decode()
    if answer.status != 200:
        raise NodeError(f"CRI-O answered {target} with {answer.status}: {body}")
    return body
