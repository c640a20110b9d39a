"""Real nodes for tests: a root file system of a Debian suite, booted with systemd as PID 1.

Every mount is made in a namespace of the node's own, so that the kernel takes all of them away
with the node's last process, however the test ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUITES: Final = ("bookworm", "trixie", "forky")
CHECKOUT: Final = Path(__file__).resolve().parents[2]
SOCKETS: Final[Mapping[str, str]] = {
    "containerd": "/run/containerd/containerd.sock",
    "docker": "/run/docker.sock",
}

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PACKAGES: Final = (
    "systemd", "systemd-sysv", "dbus", "containerd", "runc", "docker.io", "busybox-static", "jq",
)  # fmt: skip
# From trixie on, docker.io does not bring its client.
_MORE_PACKAGES: Final[Mapping[str, Sequence[str]]] = {
    "trixie": ("docker-cli",),
    "forky": ("docker-cli",),
}
FOR_PACKAGES: Final = ("python3", "rpm")
"""What a node has besides, where the packages of a release are installed on it."""
# Stands in for runc where the machine forbids what it is told; the rest of the way is real.
_RUNC: Final = """#!/bin/sh
last=
for word; do
    if [ "$last" = --bundle ]; then
        jq --from-file /usr/libexec/runc.jq "$word/config.json" > "$word/config.json.new" &&
            mv "$word/config.json.new" "$word/config.json"
    fi
    last=$word
done
exec /usr/libexec/runc "$@"
"""
# systemd 258 and later know cgroup2 only.
_KNOW_CGROUP1: Final = ("bookworm", "trixie")
_CAP_SYS_RESOURCE: Final = 1 << 24
_CGROUP1_SYSTEMD: Final = (
    "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
    "SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
)
# What no test looks at, and what would reach past the node (sysctl, udev, modules).
_MASKED: Final = (
    "apt-daily-upgrade.timer", "apt-daily.timer", "console-getty.service", "dev-hugepages.mount",
    "dev-mqueue.mount", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "getty-static.service", "getty.target", "kmod-static-nodes.service",
    "ldconfig.service", "modprobe@.service", "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount", "systemd-binfmt.service", "systemd-firstboot.service",
    "systemd-hwdb-update.service", "systemd-logind.service", "systemd-modules-load.service",
    "systemd-random-seed.service", "systemd-remount-fs.service", "systemd-sysctl.service",
    "systemd-timesyncd.service", "systemd-tmpfiles-clean.timer", "systemd-udev-trigger.service",
    "systemd-udevd.service", "systemd-update-done.service", "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
)  # fmt: skip

# Runs on the machine, before any namespace: the cgroups have to be joined from outside.
_ENTER: Final = """
set -eu
for group in $NODE_CGROUPS; do echo $$ > "$group/cgroup.procs"; done
exec unshare --mount --pid --fork --kill-child --uts --ipc --cgroup --net -- /bin/sh -c "$NODE_BOOT"
"""
# Runs as PID 1 of the node, still with the machine's /proc.
_BOOT: Final = """
set -eu
exec 9> "$NODE_SCRATCH/pid"
read -r outer rest < /proc/self/stat
cd "$NODE_SCRATCH"
mount -t tmpfs -o mode=0755 node top
mkdir top/upper top/work
mount -t overlay -o "lowerdir=layer:$NODE_IMAGE,upperdir=top/upper,workdir=top/work" node root
cd root
mount -t proc -o nosuid,nodev,noexec proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs -o nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o mode=0755,nosuid node dev
mknod -m 0666 dev/null c 1 3
mknod -m 0666 dev/zero c 1 5
mknod -m 0666 dev/full c 1 7
mknod -m 0666 dev/random c 1 8
mknod -m 0666 dev/urandom c 1 9
mknod -m 0666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777,nosuid,nodev node dev/shm
mount -t tmpfs -o mode=0755,nosuid,nodev node run
mount -t tmpfs -o mode=1777,nosuid,nodev node tmp
mkdir -p var/lib/containerd var/lib/docker
# The overlay of a container cannot lie on the overlay of its node.
mount -t tmpfs node var/lib/containerd
mount -t tmpfs node var/lib/docker
if [ -z "$NODE_CGROUP1" ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs -o mode=0755 cgroup sys/fs/cgroup
    for options in $NODE_CGROUP1; do
        mkdir "sys/fs/cgroup/${options##*name=}"
        mount -t cgroup -o "$options" cgroup "sys/fs/cgroup/${options##*name=}"
    done
fi
# Only now is it sure that the process exists and has its mounts.
echo "$outer" >&9
exec 9>&-
# A root of its own, not a chroot: who enters the node's mount namespace must find the node.
pivot_root . mnt
cd /
umount -l /mnt
# As systemd does on a machine, but not in what it takes for a container.
mount --make-rshared /
eval "set -- $NODE_SYSTEMD"
exec /usr/bin/env -i container=other "PATH=$PATH" "$@" /lib/systemd/systemd
"""
# What this machine must be able to do, tried in namespaces that vanish.
_TRIAL: Final = """
set -eu
mount -t tmpfs node /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work node /mnt/root
mount -t sysfs sysfs /mnt/work
"""


class NodeError(Exception):
    """A node could not be made, booted or asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A booted node, known by its PID 1 as the test machine counts."""

    suite: str
    pid: int
    cgroup2: bool

    @property
    def root(self) -> Path:
        """The node's root directory; an absolute symlink below it leads out of the node."""
        return Path(f"/proc/{self.pid}/root")


def cache() -> Path:
    """Where root file systems and images are kept between runs."""
    if chosen := os.environ.get("NVIDIA_TOOLKIT_TEST_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nvidia-toolkit"


def why_not() -> str | None:
    """Return the reason why this machine cannot boot nodes, or None."""
    if sys.platform != "linux":
        return "nodes need Linux"
    if os.geteuid() != 0:
        return "nodes need root"
    programs = ("mount", "nsenter", "pivot_root", "setpriv", "umount", "unshare")
    if missing := [name for name in programs if shutil.which(name) is None]:
        return f"nodes need {', '.join(missing)}"
    if shutil.which("mmdebstrap") is None and not all(_home(suite).is_dir() for suite in SUITES):
        return "nodes need mmdebstrap"
    candidate_query = subprocess.run(
        ("unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--net",
         "sh", "-c", _TRIAL),
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    if candidate_query.returncode != 0:
        return f"nodes need namespaces and overlayfs: {candidate_query.stderr.strip()}"
    return None


def lacking(suite: str) -> str:
    """Return why there is no root file system of a suite yet; empty where there is one."""
    return "" if _home(suite).is_dir() else f"there is no node of {suite} (`make test` makes it)"


def image(suite: str, packages: Sequence[str] = ()) -> Path:
    """Return the root file system of a suite, made on first use; it must not be written to.

    `packages` are Debian packages that it has besides those of every node.
    """
    wanted = _home(suite, packages)
    home = wanted.parent
    home.mkdir(parents=True, exist_ok=True)
    with (home / f"{suite}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if wanted.is_dir():
            return wanted
        for stale in home.glob(f".{suite}-*"):
            shutil.rmtree(stale)
        made = Path(tempfile.mkdtemp(prefix=f".{suite}-", dir=home))
        try:
            done = subprocess.run(
                (*_recipe(suite, packages), suite, str(made)),
                capture_output=True, text=True, check=False, timeout=900,
            )  # fmt: skip
            if done.returncode != 0:
                raise NodeError(f"mmdebstrap could not make {suite}: {done.stderr[-2000:]}")
            made.chmod(0o755)
            made.rename(wanted)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return wanted


@contextlib.contextmanager
def boot(
    suite: str,
    *,
    units: Sequence[str] = ("containerd",),
    packages: Sequence[str] = (),
    timeout: float = 60,
) -> Iterator[Node]:
    """Boot a fresh node of a suite and yield it once the sockets of its units answer.

    A unit that is not asked for is disabled, not masked: a test may start it later. `packages` are
    as for `image`.
    """
    lower = image(suite, packages)
    for stale in _abandoned(Path(tempfile.gettempdir())):
        shutil.rmtree(stale, ignore_errors=True)  # several workers find the same ones
    with contextlib.ExitStack() as undo:
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix=_prefix())))
        groups = undo.enter_context(_cgroups())
        cgroup1 = _cgroup1_options() if suite in _KNOW_CGROUP1 else []
        for name in ("top", "root"):
            (scratch / name).mkdir()
        _lay(scratch / "layer", suite=suite, units=units)
        if strange := _forbidden(cgroup2=not cgroup1):
            _lay_runc(scratch / "layer", strange)
        process = undo.enter_context(_booting(scratch, lower, groups=groups, cgroup1=cgroup1))
        node = Node(suite=suite, pid=_first_pid(process, scratch, timeout), cgroup2=not cgroup1)
        try:
            wait_for(node, lambda: _is_up(node, units), timeout)
        except NodeError as error:
            raise NodeError(f"{error}: {_read(scratch / 'console')[-2000:]}") from error
        yield node


def path(node: Node, name: str) -> Path:
    """Return how the test machine reaches a path of the node."""
    return node.root / name.lstrip("/")


def run(
    node: Node,
    argv: Sequence[str],
    *,
    timeout: float = 60,
    check: bool = True,
    input: str | None = None,  # noqa: A002 - the name that subprocess gives it
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program of the node inside the node; refuse its failure, unless told otherwise."""
    done = subprocess.run(
        ("nsenter", f"--target={node.pid}", "--mount", "--pid", "--uts", "--ipc", "--cgroup",
         "--net", "--root", "--wd", "--",
         # Without it, what a timeout leaves behind would live on in the node.
         "setpriv", "--pdeathsig", "KILL", "--", *argv),
        timeout=timeout, check=False, input=input or "", env={"PATH": PATH, **(env or {})},
        capture_output=True, text=True,
    )  # fmt: skip
    if check and done.returncode != 0:
        raise NodeError(f"{list(argv)} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done


def main_pid(node: Node, unit: str) -> int:
    """Return the main PID of a unit as the node counts, 0 when it has none."""
    shown = run(node, ("systemctl", "show", "--property=MainPID", "--value", unit)).stdout
    return int(shown)


def is_active(node: Node, unit: str) -> bool:
    """Return whether systemd counts a unit as active."""
    return run(node, ("systemctl", "is-active", "--quiet", unit), check=False).returncode == 0


def machine_pid(node: Node, pid: int) -> int:
    """Return the test machine's PID of a process that lives in the node's own PID namespace."""
    namespace = Path(f"/proc/{node.pid}/ns/pid").readlink()
    for process in Path("/proc").glob("[0-9]*"):
        # Processes come and go while they are looked through.
        with contextlib.suppress(OSError):
            if (process / "ns/pid").readlink() == namespace:
                status = (process / "status").read_text(encoding="utf-8", errors="replace")
                if status.split("NSpid:", 1)[1].splitlines()[0].split()[-1] == str(pid):
                    return int(process.name)
    raise NodeError(f"{node.suite} has no process {pid}")


def children(pid: int) -> list[int]:
    """Return the PIDs of the children of a process, as the test machine counts."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(child) for child in text.split()]
    return []


def wait_for(node: Node, predicate: Callable[[], bool], timeout: float = 30) -> None:
    """Wait until the predicate holds; refuse a node that dies or takes longer.

    What takes long to find out is looked at less often: it takes the time of what is waited for.
    """
    deadline = time.monotonic() + timeout
    while True:
        began = time.monotonic()
        if predicate():
            return
        if not Path(f"/proc/{node.pid}/ns/pid").exists():
            raise NodeError(f"{node.suite} died")
        if time.monotonic() > deadline:
            raise NodeError(f"{node.suite} was waited for in vain for {timeout} s")
        time.sleep(min(0.25, max(0.02, 2 * (time.monotonic() - began))))


def answers(node: Node, unit: str = "containerd") -> bool:
    """Return whether the socket of a unit takes a connection."""
    try:
        with socket.socket(socket.AF_UNIX) as knock:
            knock.connect(str(path(node, SOCKETS[unit])))
    except OSError:
        return False
    return True


def _recipe(suite: str, more: Sequence[str] = ()) -> list[str]:
    packages = (*_PACKAGES, *_MORE_PACKAGES.get(suite, ()), *more)
    return [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        # The index of a suite may be older than its Valid-Until on a mirror that lags.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        # A second name for the real one, where another is put in front of it.
        '--customize-hook=ln "$1/usr/sbin/runc" "$1/usr/libexec/runc"',
    ]


def _home(suite: str, packages: Sequence[str] = ()) -> Path:
    recipe = hashlib.sha256("\0".join(_recipe(suite, packages)).encode()).hexdigest()[:10]
    return cache() / "nodes" / f"{suite}-{recipe}"


def _is_up(node: Node, units: Sequence[str]) -> bool:
    # A connect is cheap; systemd is asked only when it is likely to say yes. A node of which no
    # unit is wanted is up when its own units are: what is written before that may be gone with a
    # mount.
    wanted = ("basic.target", *units)
    return all(answers(node, unit) for unit in units) and all(
        is_active(node, unit) for unit in wanted
    )


def _lay(layer: Path, *, suite: str, units: Sequence[str]) -> None:
    """Write what makes this node differ from its image, as one more layer of its root."""
    system = layer / "etc/systemd/system"
    system.mkdir(parents=True)
    for unit in _MASKED:
        (system / unit).symlink_to("/dev/null")
    (layer / "etc/hostname").write_text(f"{suite}\n", encoding="utf-8")
    # Without one, systemd takes it for the first boot and enables whatever its presets name.
    (layer / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n", encoding="utf-8")
    for unit in SOCKETS:
        if unit not in units:
            for wanted in ("multi-user.target.wants/{}.service", "sockets.target.wants/{}.socket"):
                white = system / wanted.format(unit)
                white.parent.mkdir(exist_ok=True)
                # This is how overlayfs spells "not there".
                os.mknod(white, stat.S_IFCHR, os.makedev(0, 0))


def _lay_runc(layer: Path, forbidden: Sequence[str]) -> None:
    """Put a runc in front of the real one that leaves out what this machine forbids."""
    for name, mode, text in (
        ("usr/sbin/runc", 0o755, _RUNC),
        ("usr/libexec/runc.jq", 0o644, " | ".join(forbidden)),
    ):
        (layer / name).parent.mkdir(parents=True, exist_ok=True)
        (layer / name).write_text(text, encoding="utf-8")
        (layer / name).chmod(mode)


def _forbidden(*, cgroup2: bool) -> list[str]:
    """Return what has to be taken out of a container's description on this machine."""
    filters = []
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    if not int(status.split("CapEff:", 1)[1].split()[0], 16) & _CAP_SYS_RESOURCE:
        # A pod sandbox asks for a lower score than its parent's.
        filters.append("del(.process.oomScoreAdj)")
    if cgroup2 and not _has_cgroup2_controllers():
        filters.append(".linux.resources |= {devices}")
    return filters


@contextlib.contextmanager
def _booting(
    scratch: Path, lower: Path, *, groups: Sequence[Path], cgroup1: Sequence[str]
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        "PATH": PATH,
        "NODE_BOOT": _BOOT,
        "NODE_CGROUPS": " ".join(map(str, groups)),
        "NODE_CGROUP1": " ".join(cgroup1),
        "NODE_IMAGE": str(lower),
        "NODE_SCRATCH": str(scratch),
        "NODE_SYSTEMD": " ".join(map(shlex.quote, _CGROUP1_SYSTEMD if cgroup1 else ())),
    }
    with (
        (scratch / "console").open("wb") as console,
        subprocess.Popen(
            # The node must not outlive the tests, even if those are killed.
            ("setpriv", "--pdeathsig", "KILL", "--", "/bin/sh", "-c", _ENTER),
            env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            # A Ctrl-C at the terminal is for the tests, which then stop the node in order.
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            yield process
        finally:
            # With PID 1 its namespace ends. Then unshare ends, which must live to reap PID 1.
            for pid in children(process.pid) or [process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                process.wait(timeout=10)
            finally:
                process.kill()


def _first_pid(process: subprocess.Popen[bytes], scratch: Path, timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while not (text := _read(scratch / "pid")).endswith("\n"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise NodeError(f"a node could not be started: {_read(scratch / 'console')}")
        time.sleep(0.01)
    return int(text)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hierarchy:
    """A cgroup hierarchy of the test machine: its mount point, and our own group in it."""

    options: str
    top: Path
    own: Path


def _hierarchies() -> list[_Hierarchy]:
    mounted: dict[frozenset[str], tuple[Path, str]] = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        place, filesystem = line.split(" - ", 1)
        kind, _, options = filesystem.split(" ")
        if kind in {"cgroup", "cgroup2"}:
            root, top = place.split(" ")[3:5]
            names = frozenset(options.split(",")) if kind == "cgroup" else frozenset({""})
            mounted.setdefault(names, (Path(top), root))
    found = []
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, options, group = line.split(":", 2)
        for names, (place_of, root_of) in mounted.items():
            # Beside the controllers, the options hold "rw" and the like.
            if names.issuperset(options.split(",")):
                below = os.path.relpath(group, root_of)
                own = place_of if below.startswith("..") else place_of / below
                found.append(_Hierarchy(options=options, top=place_of, own=own))
    return found


def _cgroup1_options() -> list[str]:
    """Return the mount options of the machine's cgroup v1 hierarchies, where it has controllers."""
    options = [each.options for each in _hierarchies() if each.options]
    if "name=systemd" not in options or "memory" not in ",".join(options):
        return []
    return [f"none,{each}" if each.startswith("name=") else each for each in options]


def _has_cgroup2_controllers() -> bool:
    controllers = [
        (_delegating(each) / "cgroup.controllers").read_text(encoding="ascii").split()
        for each in _hierarchies()
        if not each.options
    ]
    return any({"cpu", "memory", "pids"}.issubset(each) for each in controllers)


@contextlib.contextmanager
def _cgroups() -> Iterator[list[Path]]:
    """Make a cgroup for a node in every hierarchy, and remove what the node made below it."""
    name = f"{_prefix()}{uuid.uuid4().hex[:8]}"
    groups: list[Path] = []
    try:
        for each in _hierarchies():
            parent = each.own if each.options else _delegating(each)
            for stale in _abandoned(parent):
                _remove(stale, time.monotonic() + 1)
            group = parent / name
            group.mkdir()
            groups.append(group)
            for setting in ("cpuset.cpus", "cpuset.mems"):
                # Version 1 takes no process into a group whose sets are empty.
                if each.options and (group / setting).exists():
                    (group / setting).write_text((group.parent / setting).read_text())
        yield groups
    finally:
        deadline = time.monotonic() + 10
        for group in groups:
            _remove(group, deadline)


def _prefix() -> str:
    """Return how names of what belongs to a node of this process begin."""
    return f"node-{os.getpid()}-"


def _abandoned(directory: Path) -> list[Path]:
    """Return what test processes that were killed have left behind in a directory."""
    owned = [(each, each.name.split("-")) for each in directory.glob("node-*-*")]
    return [
        each
        for each, name in owned
        if name[1].isdecimal() and not Path(f"/proc/{name[1]}").exists()
    ]


def _delegating(hierarchy: _Hierarchy) -> Path:
    """Return the nearest cgroup2 group that hands controllers down to its children."""
    group = hierarchy.own
    while group != hierarchy.top:
        if (group / "cgroup.subtree_control").read_text(encoding="ascii").strip():
            return group
        group = group.parent
    return group


def _remove(group: Path, deadline: float) -> None:
    for below, _, _ in os.walk(group, topdown=False):
        while True:
            try:
                Path(below).rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                # The last processes of the node may still be on their way out.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                break
