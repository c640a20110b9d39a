"""Find the runtime that the node's kubelet uses, from kubelet's command line and configuration.

Only kubelets in our own PID namespace count; one in a container (kind, a test) belongs to another
node. A kubelet must run as root and have the node's root directory, because anyone can start a
program called `kubelet` with any arguments. Its files are read in its own root directory.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from runtimes.dataclass import dataclass
from runtimes.lazy_pattern import lazy_pattern
from toolkit.errors import StepError
from toolkit.log import LOGGER
from toolkit.node import trust
from toolkit.node.host import Host

PROC: Final = Path("/proc")
_KUBELETS: Final = frozenset({"kubelet", "kubelite", "hyperkube"})
_EMBEDDERS: Final = {"k3s-server": "k3s", "k3s-agent": "k3s", "k3s": "k3s"}
"""Programs that embed a kubelet and a containerd, with the name of their distribution."""
_ENDPOINT: Final = "--container-runtime-endpoint"
_KEY: Final = "containerRuntimeEndpoint"
_DRIVER: Final = "cgroupDriver"
_VALUE: Final = lazy_pattern(
    r"""(?:"([^"\\]*)"|'([^']*)'|([^\s"'#&*!|>%@`{}\[\],][^\s#]*))(?:[ \t]+#.*)?\s*"""
)
_LARGEST: Final = 1 << 20
_VARIABLE: Final = lazy_pattern(r"\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletConfig:
    """The configuration of one kubelet: its PID and program, and the runtime socket that it uses.

    `endpoint` is the path of the socket, "" if none is configured, and `by` is the flag or file
    that sets it. `embedder` is the distribution whose program contains the kubelet and a
    containerd, "" for a standalone kubelet. `docker` is whether it uses Docker, through any shim.
    """

    pid: int
    program: str
    endpoint: str
    by: str
    embedder: str = ""
    docker: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """A process with a kubelet's name that is ignored because untrusted; `problem` says why."""

    pid: int
    program: str
    problem: str


def configs(root: Path | None = None, proc: Path = PROC) -> tuple[KubeletConfig, ...]:
    """Return the configuration of every kubelet in this PID namespace, ordered by PID.

    `root` is the local path of the node's root directory; a kubelet with another one belongs to
    another node. An untrusted process is left out, with a warning.
    """
    result = []
    for pid, name in _candidates(proc):
        if problem := _problem(proc, pid, root):
            LOGGER.warning("%s (PID %s) %s: its configuration is ignored", name, pid, problem)
        else:
            result.append(_kubelet_config(proc / pid, name))
    return tuple(result)


def ignored(root: Path | None = None, proc: Path = PROC) -> tuple[Ignored, ...]:
    """Return the untrusted processes with a kubelet's name, ordered by PID; see `configs`."""
    return tuple(
        Ignored(pid=int(pid), program=name, problem=problem)
        for pid, name in _candidates(proc)
        if (problem := _problem(proc, pid, root))
    )


def cgroup_driver(root: Path | None = None, proc: Path = PROC) -> str | None:
    """Return the cgroup driver of the node's kubelet, None if there is no kubelet or they differ.

    A kubelet without that setting uses cgroupfs.
    """
    drivers = {_cgroup_driver(proc / str(each.pid)) for each in configs(root, proc)}
    return drivers.pop() if len(drivers) == 1 else None


def _cgroup_driver(process: Path) -> str:
    argv = [os.fsdecode(word) for word in _bytes(process / "cmdline").split(b"\0") if word]
    for flags, _ in _flags(process, argv):
        if given := flags.get("--cgroup-driver"):
            return given
        for file in _configurations(process, flags):
            if given := _scalar(_text(process, file), _DRIVER):
                return given
    return "cgroupfs"


def endpoint(text: str) -> str | None:
    """Return the runtime's socket path from a kubelet's YAML or JSON configuration, or None.

    In YAML only one top-level line with a plain or quoted scalar is understood; any other form
    counts as not set.
    """
    value = _scalar(text, _KEY)
    return _path(value) if value is not None else None


def _scalar(text: str, key: str) -> str | None:
    """Return a top-level string of YAML or JSON; None if it is not set or not understood."""
    if text.lstrip().startswith("{"):
        try:
            document = json.loads(text)
        except ValueError:
            return None
        value = document.get(key) if isinstance(document, dict) else None
        return value if isinstance(value, str) else None
    lines = re.findall(rf"^{key}[ \t]*:(?:[ \t]+(.*))?$", text, re.MULTILINE)
    found = _VALUE.fullmatch(lines[0]) if len(lines) == 1 else None
    return (found[1] or found[2] or found[3] or "") if found else None


def _candidates(proc: Path) -> Iterator[tuple[str, str]]:
    names = _names(str(proc))
    yield from ((pid, names[pid]) for pid in sorted(names, key=int))


def _problem(proc: Path, pid: str, root: Path | None) -> str:
    """Return why a process is not trusted to be the node's kubelet, or "" if it is."""
    if problem := trust.process_problem(int(pid), str(proc)):
        return problem
    if root is None or os.geteuid() != 0:
        return ""
    own = f"{proc}/{pid}/root/"
    # A pod may not have the node's root mounted, but with hostPID it can compare with the root of
    # PID 1.
    if any(_is_same(own, other) for other in (str(root), f"{proc}/1/root/")):
        return ""
    return "has a different root directory than the node"


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _names(proc: str) -> dict[str, str]:
    """Return the names of kubelet processes by PID. This runs at every start, so must be fast."""
    result = {}
    try:
        processes = [name for name in os.listdir(proc) if name.isdecimal()]
    except OSError:
        return {}
    for pid in processes:
        try:
            fd = os.open(f"{proc}/{pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # the process has exited
        try:
            name = os.fsdecode(os.read(fd, 64)).strip()
        except OSError:
            continue
        finally:
            os.close(fd)
        if (name in _KUBELETS or name in _EMBEDDERS) and _is_of_this_node(proc, pid):
            result[pid] = name
    return result


def _is_of_this_node(proc: str, pid: str) -> bool:
    try:
        return os.readlink(f"{proc}/{pid}/ns/pid") == os.readlink(f"{proc}/self/ns/pid")
    except OSError:
        return False


def _kubelet_config(process: Path, name: str) -> KubeletConfig:
    argv = [os.fsdecode(word) for word in _bytes(process / "cmdline").split(b"\0") if word]
    config = KubeletConfig(
        pid=int(process.name), program=name, endpoint="", by="", embedder=_EMBEDDERS.get(name, "")
    )
    for flags, by in _flags(process, argv):
        path = _path(flags.get(_ENDPOINT, ""))
        if path:
            return _with_endpoint(config, path, f"{_ENDPOINT}{by}")
        if flags.get("--container-runtime") == "docker" or flags.get("--docker") in ("", "true"):
            return _with_endpoint(config, "", f"its command line{by}", docker=True)
    for flags, _ in _flags(process, argv):
        for file in _configurations(process, flags):
            if socket := endpoint(_text(process, file)):
                return _with_endpoint(config, socket, file)
    return config


def _with_endpoint(
    config: KubeletConfig, path: str, by: str, *, docker: bool = False
) -> KubeletConfig:
    # The names of the sockets of kubelet's dockershim (before 1.24) and of cri-dockerd.
    docker = docker or os.path.basename(path) in ("dockershim.sock", "cri-dockerd.sock")
    return KubeletConfig(
        pid=config.pid,
        program=config.program,
        endpoint=path,
        by=by,
        embedder=config.embedder,
        docker=docker,
    )


def _flags(process: Path, argv: Sequence[str]) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the flags of a command line, then of its arguments file (microk8s), with the origin."""
    flags = _parsed(argv[1:])
    yield flags, ""
    path = flags.get("--kubelet-args-file")
    if path:
        lines = (line.strip() for line in _text(process, path).split("\n"))
        words = [
            word for line in lines if line and not line.startswith("#") for word in line.split()
        ]
        yield _parsed([_expanded(process, word) for word in words]), f" in {path}"


def _parsed(words: Sequence[str]) -> dict[str, str]:
    """Parse flags as kubelet does: the last one wins; a value follows `=` or is the next word."""
    result = {}
    for index, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            following = words[index + 1] if index + 1 < len(words) else ""
            result[name] = value if equals else "" if following.startswith("-") else following
    return result


def _expanded(process: Path, word: str) -> str:
    """Return a word with the variables of the process's environment expanded."""
    if "$" not in word:
        return word
    pairs = (os.fsdecode(item).partition("=") for item in _bytes(process / "environ").split(b"\0"))
    variables = {name: value for name, _, value in pairs}
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], match[0]), word)


def _configurations(process: Path, flags: dict[str, str]) -> Iterator[str]:
    """Yield the configuration files of a kubelet, the one with the highest precedence first."""
    directory = flags.get("--config-dir")
    if directory:
        local = _local(process, directory)
        try:
            names = sorted(
                (name for name in os.listdir(local) if name.endswith(".conf")), reverse=True
            )
        except OSError:
            names = []
        yield from (f"{directory.rstrip('/')}/{name}" for name in names)
    config = flags.get("--config")
    if config:
        yield config


def _local(process: Path, path: str) -> Path:
    """Return the local path of a process's file, with links resolved in the root of the process."""
    if not path.startswith("/"):
        return process / "cwd" / path
    root = Host(root=process / "root")
    try:
        return root.target(root.below(path))
    except StepError:
        return root.below(path)


def _path(address: str) -> str:
    """Return the path in `unix:///PATH` or `/PATH`, or "" if the address is not a Unix socket."""
    path = address.removeprefix("unix://")
    return os.path.normpath(path) if path.startswith("/") else ""


def _text(process: Path, path: str) -> str:
    """Return the text of a file named by a kubelet, or "" if it does not exist or is untrusted."""
    if not path.startswith("/"):
        try:
            path = os.path.join(os.readlink(process / "cwd"), path)
        except OSError:
            return ""
    try:
        return trust.read(path, _LARGEST, process / "root").decode(errors="replace")
    except trust.Distrusted as error:
        LOGGER.warning(
            "%s, a file of kubelet (PID %s), is ignored: %s", path, process.name, error.strerror
        )
    except OSError:
        pass
    return ""


def _bytes(path: Path) -> bytes:
    """Return the content of a file in /proc, or b"" if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read(_LARGEST)
    except OSError:
        return b""
