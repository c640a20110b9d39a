"""Real runtimes that fall sick: a fault of the node, while our change is in its configuration.

The runtime's loader finds nothing wrong with the change; what breaks is something that the daemon
needs when it starts. A drop-in of its unit does it: a script that looks at the configuration, then
breaks something or mends it. It lies below /run of the node until the block ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from tests.support import containers, crio, nodes
from tests.support.nodes import Node
from toolkit.errors import ToolkitError
from toolkit.runtime.client import cri

OURS: Final = frozenset({"nvidia", "nvidia-cdi", "nvidia-legacy"})
TOOLKIT: Final = "/usr/local/nvidia"
PROGRAM: Final = str(Path(sys.executable).parent / "nvidia-toolkit")
NEVER_AGAIN: Final = "/run/sick/never-again"

_HOME: Final = "/run/sick"
_IMAGE: Final = "test:1"
_CNI: Final = "/etc/cni/net.d/10-test.conflist"
_CNI_PLUGIN: Final = "/opt/cni/bin/test"
# Enough for "the network is ready"; the pods of tests have the node's own.
_NETWORK: Final = {"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "test"}]}
_VERSIONS: Final = '#!/bin/sh\necho \'{"cniVersion": "0.4.0", "supportedVersions": ["0.4.0"]}\'\n'
_SCRIPT: Final = """#!/bin/sh
grep -rqs nvidia {config} && found=yes || found=no
case {when} in
$found | always)
    {breaks}
    ;;
*)
    {mends}
    ;;
esac
exit 0
"""
# The daemon sees files of its own, under a mount that nobody else sees. Everything else is shared.
_STALE: Final = f"""#!/bin/sh
exec unshare --mount --propagation unchanged /bin/sh -c '
    mount --make-private "$0" && mount --bind {_HOME}/stale "$0" && exec "$@"
' {{config}} {{start}}
"""


class When(StrEnum):
    """While the configuration is how a fault is there."""

    WITH_US = "yes"
    WITHOUT_US = "no"
    ALWAYS = "always"


class Shell(NamedTuple):
    """What breaks something, and what mends it, however often either was done before."""

    breaks: str = "true"
    mends: str = "true"


NOTHING: Final = Shell()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that makes a daemon sick: how it is brought about, and how our error has to begin.

    `shell` is done before the daemon is started or, with `after_start`, once it
    is up, with its PID in $MAINPID. `is_stale` has the daemon read a copy of its
    files from before, which is found before anything is changed. `options` are those
    with which our program has to be run so that the fault comes about.
    """

    name: str
    says: str | tuple[str, ...]
    shell: Shell = NOTHING
    after_start: bool = False
    is_stale: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A runtime as a node has it. `config` is its directory, `start` how its unit starts it."""

    name: str
    unit: str
    config: str
    start: str
    socket: str
    mounts: Mapping[str, str]
    options: tuple[str, ...] = ()


RUNTIMES: Final[Mapping[str, Runtime]] = {
    "containerd": Runtime(
        name="containerd",
        unit="containerd.service",
        config="/etc/containerd",
        start="/usr/bin/containerd",
        socket="/run/containerd/containerd.sock",
        mounts=containers.DEFAULT_MOUNTS,
    ),
    "docker": Runtime(
        name="docker",
        unit="docker.service",
        config="/etc/docker",
        start="/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock",
        socket="/run/docker.sock",
        mounts={
            "/etc/docker": "/etc/docker",
            "/runtime/sock-dir": "/run",
            "/usr/local/nvidia": "/usr/local/nvidia",
            "/run/nvidia": "/run/nvidia",
        },
        options=("--socket=/runtime/sock-dir/docker.sock",),
    ),
    "crio": Runtime(
        name="crio",
        unit="crio.service",
        config="/etc/crio",
        start="/usr/local/bin/crio",
        socket=crio.SOCKET,
        mounts={
            "/etc/crio": "/etc/crio",
            "/run/crio": "/run/crio",
            "/usr/local/nvidia": "/usr/local/nvidia",
            "/run/nvidia": "/run/nvidia",
        },
        options=("--socket=/run/crio/crio.sock",),
    ),
}


def _displaced(path: str, *, by_a_file: bool = True) -> Shell:
    """Put a file where something was, or leave nothing there."""
    put = f"echo > {path}" if by_a_file else "true"
    return Shell(
        breaks=f"[ -e {path}.aside ] || {{ mv {path} {path}.aside && {put}; }}",
        mends=f"[ ! -e {path}.aside ] || {{ rm -rf {path} && mv {path}.aside {path}; }}",
    )


def _occupied(path: str) -> Shell:
    """Make a socket's path a directory, which no daemon removes."""
    return Shell(
        breaks=f"rm -f {path}; mkdir -p {path}/occupied", mends=f"[ ! -d {path} ] || rm -r {path}"
    )


_DID_NOT_START: Final = "`systemctl restart {0}.service` failed: "
_NO_ANSWER: Final = "the runtime did not restart or reload in time: {0} was not answered within "
_NOBODY: Final = "the runtime did not restart or reload in time: no process listens on {0}"
UNSEEN: Final = "does not see "
_NOT_TAKEN_UP: Final = "the runtime did not apply the change: "
_NO_NETWORK: Final = "the network is no longer ready: NetworkReady is false: NetworkPluginNotReady"
_BY_UNIT: Final = ("--restart-mode=systemd",)
_STATE: Final = "/var/lib/containerd"
_FREEZES: Final = Shell(breaks="kill -STOP $MAINPID")
_DOES_NOT_COME_BACK: Final = "does not come back"

FAULTS: Final[Mapping[str, tuple[Fault, ...]]] = {
    "containerd": (
        # "failed to get listener for main endpoint: is a directory", exit 1.
        Fault(
            name=_DOES_NOT_COME_BACK,
            says=_DID_NOT_START.format("containerd"),
            shell=_occupied("/run/containerd/containerd.sock"),
        ),
        # "Failed to run CRI service" is fatal where CRI's own directory cannot be read: exit 1,
        # which is before systemd was told that all is well, or after.
        Fault(
            name="CRI cannot recover its state",
            # It is up for a moment, and may be asked then.
            says=(
                _DID_NOT_START.format("containerd"),
                _NOBODY.format("/run/containerd/containerd.sock"),
                f"{_NOT_TAKEN_UP}Status on /run/containerd/containerd.sock failed: ",
            ),
            shell=_displaced(f"{_STATE}/io.containerd.grpc.v1.cri"),
        ),
        # The next two are up and active, and answer UNIMPLEMENTED to every call of CRI.
        Fault(
            name="CRI failed",
            says=f"{_NOT_TAKEN_UP}its CRI plugin failed: ",
            shell=_displaced(f"{_STATE}/io.containerd.snapshotter.v1.overlayfs"),
        ),
        Fault(
            name="CRI has no database",
            says=f"{_NOT_TAKEN_UP}its CRI plugin failed: ",
            shell=_displaced(f"{_STATE}/io.containerd.metadata.v1.bolt"),
        ),
        Fault(
            name="hangs",
            says=_NO_ANSWER.format("/run/containerd/containerd.sock"),
            shell=_FREEZES,
            after_start=True,
        ),
        Fault(
            name="has no network",
            says=f"{_NOT_TAKEN_UP}{_NO_NETWORK}",
            shell=_displaced(_CNI, by_a_file=False),
        ),
        Fault(
            name="ignores the file",
            says=UNSEEN,
            is_stale=True,
        ),
    ),
    "docker": (
        Fault(
            name=_DOES_NOT_COME_BACK,
            says=_DID_NOT_START.format("docker"),
            options=_BY_UNIT,
            shell=_displaced("/var/lib/docker/network"),
        ),
        Fault(
            name="hangs",
            says="the runtime did not restart or reload in time: ",
            shell=_FREEZES,
            after_start=True,
            options=_BY_UNIT,
        ),
        Fault(
            name="ignores the file",
            says=UNSEEN,
            is_stale=True,
        ),
        Fault(
            name="ignores the file, started anew",
            says=UNSEEN,
            is_stale=True,
            options=_BY_UNIT,
        ),
    ),
    "crio": (
        Fault(
            name=_DOES_NOT_COME_BACK,
            says=_DID_NOT_START.format("crio"),
            shell=_occupied("/run/crio/crio.sock"),
        ),
        # "cannot run conmon: no such file", exit 1; `crio config` does not look for it.
        Fault(
            name="lacks conmon",
            says=_DID_NOT_START.format("crio"),
            shell=_displaced("/usr/libexec/crio/conmon", by_a_file=False),
        ),
        # RuntimeReady is always true with CRI-O, so it is the network that it can lose.
        Fault(
            name="has no network",
            says=f"{_NOT_TAKEN_UP}{_NO_NETWORK}",
            shell=_displaced(_CNI, by_a_file=False),
        ),
        Fault(
            name="hangs",
            says=_NO_ANSWER.format("/run/crio/crio.sock"),
            shell=_FREEZES,
            after_start=True,
        ),
        Fault(
            name="ignores the file",
            says=UNSEEN,
            is_stale=True,
        ),
    ),
}
SLOW: Final = Fault(name="takes 20 s", says="", shell=Shell(breaks="sleep 20"), options=_BY_UNIT)
"""What takes its time to come back, and is well then."""
LOST: Final = Fault(
    name="never starts again",
    says="",
    shell=Shell(breaks=f"touch {NEVER_AGAIN}; exit 1", mends=f"[ ! -e {NEVER_AGAIN} ] || exit 1"),
    options=_BY_UNIT,
)
"""What does not start any more once it was started with our change, whatever the files say then."""


def fault(runtime: str, name: str) -> Fault:
    """Return a fault of a runtime by its name."""
    return next(each for each in FAULTS[runtime] if each.name == name)


class Bench:
    """A runtime on a booted node, and our program to be run against it as its DaemonSet would."""

    def __init__(self, node: Node, runtime: Runtime, source: Path) -> None:
        self.node = node
        self.runtime = runtime
        self.options = [
            f"--runtime={runtime.name}",
            f"--toolkit-source-root={source}",
            # Tests restart more often than a node should.
            "--restart-budget=0",
            *runtime.options,
        ]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [PROGRAM, *words, *self.options]
        return containers.daemonset(self.node, argv, mounts=self.runtime.mounts)

    def done(self, *words: str) -> str:
        """Run the program and expect it to succeed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    # What is there

    def files(self) -> Iterator[tuple[str, Path]]:
        for place in (self.runtime.config, TOOLKIT):
            for path in sorted(nodes.path(self.node, place).rglob("*")):
                if path.name != "key.json":  # dockerd's own
                    yield str(path.relative_to(self.node.root)), path

    def picture(self) -> dict[str, tuple[str, int, str, bytes]]:
        """Return mode, owner, target and content of every writable file but the record."""
        found = {}
        for name, path in self.files():
            if name.endswith("/.nvidia-toolkit/state.json"):
                continue
            status = path.lstat()
            target = os.readlink(path) if path.is_symlink() else ""
            content = path.read_bytes() if path.is_file() and not target else b""
            found[name] = (oct(status.st_mode), status.st_uid, target, content)
        return found

    def times(self) -> dict[str, tuple[int, int]]:
        """Return each file's inode and mtime: a write of the same bytes changes them too."""
        return {
            name: (path.lstat().st_ino, path.lstat().st_mtime_ns) for name, path in self.files()
        }

    def pid(self) -> int:
        return nodes.main_pid(self.node, self.runtime.unit)

    def is_well(self) -> bool:
        try:
            self.known()
        except (OSError, ToolkitError, nodes.NodeError):
            return False
        return True

    def known(self) -> tuple[frozenset[str], str, bool]:
        """Return the handlers, the default and the network, as the running daemon reports."""
        if self.runtime.name == "docker":
            asked = ["timeout", "5", "docker", "info", "--format", "{{json .}}"]
            info = json.loads(nodes.run(self.node, asked).stdout)
            # Without a daemon it prints what is left of its answer.
            if not info.get("Runtimes"):
                raise nodes.NodeError("dockerd does not answer")
            # 20.10 lists containerd's own only until it reads its file again.
            names = frozenset(
                name for name in info["Runtimes"] if not name.startswith("io.containerd.")
            )
            return names, info["DefaultRuntime"], True
        said = cri.status(nodes.path(self.node, self.runtime.socket), timeout=5)
        if not said.runtime_ready:
            raise nodes.NodeError("; ".join(said.reasons))
        if self.runtime.name == "crio":
            default = str(crio.config(self.node)["crio"]["runtime"]["default_runtime"])
        else:
            default = str((said.config or {})["containerd"]["defaultRuntimeName"])
        return frozenset(said.handlers or ()), default, said.network_ready

    def why_no_containers(self) -> str | None:
        """Return why this machine lets the runtime run no containers, None where it does."""
        try:
            said = self.run_container()
        except nodes.NodeError as error:
            return str(error)
        return None if said == "hello\n" else f"a container said {said!r}"

    def run_container(self) -> str:
        """Run a container through the default handler and return what it wrote."""
        argv = ["echo", "hello"]
        match self.runtime.name:
            case "docker":
                words = ["docker", "run", "--rm", "--network=none", _IMAGE, *argv]
                return nodes.run(self.node, words).stdout
            case "crio":
                return crio.run_pod(self.node, handler="", argv=argv).output
            case _:
                return containers.run_pod(self.node, handler="", argv=argv).output

    # What makes it sick

    @contextlib.contextmanager
    def sick(
        self, cause: Fault, when: When = When.WITH_US, *, unit: Sequence[str] = ()
    ) -> Iterator[None]:
        """Make the daemon fail at each start while the configuration is so; mend it afterwards.

        `unit` are further lines of the unit's `[Unit]` section.
        """
        script = _SCRIPT.format(
            config=self.runtime.config,
            when=when,
            breaks=cause.shell.breaks,
            mends=cause.shell.mends,
        )
        lines = [f"ExecStart{'Post' if cause.after_start else 'Pre'}=/bin/sh {_HOME}/script"]
        if cause.is_stale:
            lines += ["ExecStart=", f"ExecStart=/bin/sh {_HOME}/start"]
        self._put(f"{_HOME}/script", script)
        self._put(
            f"{_HOME}/start", _STALE.format(config=self.runtime.config, start=self.runtime.start)
        )
        drop_in = f"/run/systemd/system/{self.runtime.unit}.d/sick.conf"
        try:
            if cause.is_stale:
                self.sh(f"cp -a {self.runtime.config} {_HOME}/stale")
                self.sh(f"mount --bind {self.runtime.config} {self.runtime.config}")
            self._put(drop_in, "\n".join(["[Unit]", *unit, "[Service]", *lines, ""]))
            self.sh("systemctl daemon-reload")
            if cause.is_stale:
                self.restart()
            yield
        finally:
            nodes.path(self.node, drop_in).unlink(missing_ok=True)
            self.sh(
                f"rm -f {NEVER_AGAIN}; ( {cause.shell.mends} ); systemctl daemon-reload",
                check=False,
            )
            if cause.is_stale or not self.is_well():
                self.restart()
            if cause.is_stale:
                self.sh(f"umount {self.runtime.config}", check=False)
            self.sh(f"rm -rf {_HOME}")

    @contextlib.contextmanager
    def upon_change(self, path: str, act: Callable[[], None]) -> Iterator[None]:
        """Act as soon as a file has a word of ours; a reloading daemon is not notified of it."""
        file, is_over = nodes.path(self.node, path), threading.Event()

        def watch() -> None:
            while not is_over.wait(0.001):
                if b"nvidia" in file.read_bytes():
                    act()
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()

    def restart(self) -> None:
        """Start the daemon anew, however often that was done, and wait until it is well."""
        socket = " docker.socket" if self.runtime.name == "docker" else ""
        self.sh(f"systemctl reset-failed {self.runtime.unit}{socket}", check=False)
        self.sh(f"systemctl restart {self.runtime.unit}")
        nodes.wait_for(self.node, self.is_well)

    def forget_starts(self) -> None:
        """Have systemd forget how often the unit was started."""
        self.sh(f"systemctl reset-failed {self.runtime.unit}", check=False)

    def sh(self, script: str, *, check: bool = True) -> str:
        return nodes.run(self.node, ["sh", "-c", script], check=check, timeout=120).stdout

    def _put(self, name: str, text: str) -> None:
        put(self.node, name, text)


def put(node: Node, name: str, text: str, *, mode: int = 0o644) -> None:
    """Write a file of a node."""
    path = nodes.path(node, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


@contextlib.contextmanager
def bench(name: str, suite: str, source: Path) -> Iterator[Bench]:
    """Boot a node with a runtime that is well, has a network and can run containers."""
    runtime = RUNTIMES[name]
    units = {"containerd": ("containerd",), "docker": ("containerd", "docker"), "crio": ()}[name]
    with nodes.boot(suite, units=units) as node:
        put(node, _CNI, json.dumps(_NETWORK))
        put(node, _CNI_PLUGIN, _VERSIONS, mode=0o755)
        nodes.path(node, runtime.config).mkdir(exist_ok=True)
        found = Bench(node, runtime, source)
        match name:
            case "docker":
                put(node, "/etc/docker/daemon.json", '{\n\t"mtu":  1400}')
                busybox = nodes.path(node, "/usr/bin/busybox").read_bytes()
                archive = nodes.path(node, "/run/image.tar")
                archive.write_bytes(containers.image_archive(busybox, [_IMAGE]))
                nodes.run(node, ["docker", "load", "--input", "/run/image.tar"])
                archive.unlink()
            case "crio":
                crio.install(node)
                crio.prepare_images(node)
                crio.start(node)
            case _:
                containers.prepare_images(node)
        found.restart()
        nodes.wait_for(node, lambda: found.known()[2])
        yield found
