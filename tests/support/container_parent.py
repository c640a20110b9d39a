"""The parent of an installer's container: a program that becomes it, then follows its child.

`tests.support.containers` starts it with one argument, a JSON object that describes the container.
It imports little, since its start is a part of every run of the program on a node.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

CHECKOUT: Final = Path(__file__).resolve().parents[2]
CAPABILITIES: Final = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "SYS_CHROOT": 18,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
}
"""The numbers of the capabilities that a container may be given."""
_MNT_DETACH: Final = 2
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MS_RDONLY: Final = 1
_MS_REMOUNT: Final = 0x20
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18
_MS_SLAVE: Final = 1 << 19
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUTS: Final = 0x04000000
_CLONE_NEWIPC: Final = 0x08000000
_CLONE_NEWPID: Final = 0x20000000
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
# The same numbers on every architecture.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_STAGE: Final = "/mnt"
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    """Become the parent of the container that the first argument describes."""
    order = json.loads(sys.argv[1])
    _die_with_parent()
    own, theirs, pids = (
        os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
        for pid, kind in (("self", "mnt"), (order["node"], "mnt"), (order["node"], "pid"))
    )
    # A mount of another namespace cannot be bound, but a detached copy can be carried over.
    _setns(theirs, _CLONE_NEWNS)
    trees = {"/host": _tree("/"), "/dev": _tree("/dev")}
    for target, source in sorted(order["mounts"].items()):
        # As kubelet does for a hostPath of type DirectoryOrCreate.
        Path(source).mkdir(mode=0o755, parents=True, exist_ok=True)
        trees[target] = _tree(source)
    _setns(own, _CLONE_NEWNS)
    _call("unshare", _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWNET)
    _mount(None, "/", flags=_MS_REC | _MS_PRIVATE)
    root = _root(_machine_trees(order["shared"]) | trees)
    _setns(pids, _CLONE_NEWPID)
    if child := os.fork():
        _follow(child)
    _die_with_parent()
    if not order["host_pid"]:
        _call("unshare", _CLONE_NEWPID)
        if child := os.fork():
            _follow(child)
        _die_with_parent()
    _enter(root)
    if order["capabilities"] is not None:
        _keep_only(order["capabilities"])
    try:
        os.chdir(CHECKOUT)
        os.execvpe(order["argv"][0], order["argv"], order["env"])  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.exit(f"{order['argv'][0]} cannot be run: {error}")


def _machine_trees(directories: Collection[str]) -> dict[str, int]:
    """Copy the mounts below the machine's root, which an overlay of it does not show.

    The directories are shared with the machine.
    """
    trees = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        target = line.split(" ")[4].encode().decode("unicode_escape")
        top = Path(target).parts[:2]
        if target != "/" and top not in {("/", each) for each in ("dev", "proc", "run", "sys")}:
            # Of mounts at the same place only the last one can be seen, and that is opened.
            with contextlib.suppress(OSError):
                trees[target] = _tree(target, flags=0)
    # Tests hand files over in both directions there.
    for shared in directories:
        trees.setdefault(shared, _tree(shared))
    return trees


def _root(trees: Mapping[str, int]) -> str:
    """Make the container's root directory out of the machine's root and the given trees."""
    _mount("image", _STAGE, kind="tmpfs")
    upper, work, root = (f"{_STAGE}/{name}" for name in ("upper", "work", "root"))
    for directory in (upper, work, root):
        Path(directory).mkdir()
    _mount("image", root, kind="overlay", data=f"lowerdir=/,upperdir={upper},workdir={work}")
    _mount("sysfs", f"{root}/sys", kind="sysfs")
    _mount("run", f"{root}/run", kind="tmpfs")
    for target, tree in sorted(trees.items()):
        place = Path(root + target)
        if not place.exists():
            place.mkdir(parents=True)
        _call("syscall", _SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, bytes(place),
              _MOVE_MOUNT_F_EMPTY_PATH)  # fmt: skip
        if target == "/host":
            # HostToContainer: what the node mounts later shows up, not the other way round.
            _mount(None, str(place), flags=_MS_REC | _MS_SLAVE)
            # As kubelet's readOnly, it is not recursive: what is mounted below stays writable.
            _mount(None, str(place), flags=_MS_REMOUNT | _MS_BIND | _MS_RDONLY)
        else:
            _mount(None, str(place), flags=_MS_REC | _MS_PRIVATE)
    return root


def _enter(root: str) -> None:
    _mount("proc", f"{root}/proc", kind="proc")
    os.chdir(root)
    _call("pivot_root", b".", b"mnt")
    os.chdir("/")
    _call("umount2", b"/mnt", _MNT_DETACH)
    socket.sethostname("installer")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def _keep_only(names: Collection[str]) -> None:
    """Let no program that is executed from here on have another capability than these."""
    kept = {CAPABILITIES[name] for name in names}
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    for number in set(range(last + 1)) - kept:
        _call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _follow(child: int) -> NoReturn:
    """Pass signals on to the child, and end as it ends."""

    def pass_on(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1,
        signal.SIGUSR2,
    ):  # fmt: skip
        signal.signal(number, pass_on)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        end = os.WTERMSIG(status)
        if end != signal.SIGKILL:
            signal.signal(end, signal.SIG_DFL)
        os.kill(os.getpid(), end)
    os._exit(os.waitstatus_to_exitcode(status))


def _die_with_parent() -> None:
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)


def _setns(namespace: int, kind: int) -> None:
    _call("setns", namespace, kind)


def _tree(source: str, *, flags: int = _AT_RECURSIVE) -> int:
    """Return a detached copy of the mounts at a path, as a file descriptor."""
    flags |= _OPEN_TREE_CLONE | os.O_CLOEXEC
    return _call("syscall", _SYS_OPEN_TREE, _AT_FDCWD, source.encode(), flags)


def _mount(
    source: str | None, target: str, *, kind: str | None = None, flags: int = 0, data: str = ""
) -> None:
    _call(
        "mount", source and source.encode(), target.encode(), kind and kind.encode(),
        ctypes.c_ulong(flags), data.encode(),
    )  # fmt: skip


def _call(name: str, *arguments: object) -> int:
    """Call a function of the C library; refuse its failure."""
    done: int = getattr(_LIBC, name)(*arguments)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")
    return done


if __name__ == "__main__":
    main()
