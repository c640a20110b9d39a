"""Which runtime the node's kubelet uses, by its own command line and configuration.

A kubelet counts only in our own PID namespace: that of a node which runs in a
container (kind, a test) is another node's. Files are read as it sees them itself.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from toolkit.errors import StepFailed
from toolkit.host import Host

PROC: Final = Path("/proc")
_KUBELETS: Final = frozenset({"kubelet", "kubelite", "hyperkube"})
_EMBEDDERS: Final = {"k3s-server": "k3s", "k3s-agent": "k3s", "k3s": "k3s"}
"""Programs with a kubelet and a containerd of their own inside, and the distribution that they are."""
_ENDPOINT: Final = "--container-runtime-endpoint"
_KEY: Final = "containerRuntimeEndpoint"
_LINE: Final = re.compile(rf"^{_KEY}[ \t]*:(?:[ \t]+(.*))?$", re.MULTILINE)
_VALUE: Final = re.compile(r"""(?:"([^"\\]*)"|'([^']*)'|([^\s"'#&*!|>%@`{}\[\],][^\s#]*))(?:[ \t]+#.*)?\s*""")
_LARGEST: Final = 1 << 20
_VARIABLE: Final = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What one kubelet says: its PID and program, the path of the socket that it uses, and where it says so.

    `endpoint` is empty where it says nothing; `embedder` is then the distribution
    whose own containerd it brings along, empty for a kubelet on its own. `docker`
    tells that it uses Docker, through whatever shim.
    """

    pid: int
    program: str
    endpoint: str
    by: str
    embedder: str = ""
    docker: bool = False


def words(proc: Path = PROC) -> tuple[Word, ...]:
    """Return what every kubelet of this PID namespace says, by PID."""
    names = _names(str(proc))
    return tuple(_word(proc / pid, names[pid]) for pid in sorted(names, key=int))


def endpoint(text: str) -> str | None:
    """Return the path in a kubelet's YAML or JSON configuration; None where it says none that is plain.

    It reads the one line it wants, at the outermost level, and no other form of
    YAML than a plain or quoted word: what it does not know for sure counts as not said.
    """
    if text.lstrip().startswith("{"):
        try:
            said = json.loads(text)
        except ValueError:
            return None
        value = said.get(_KEY) if isinstance(said, dict) else None
        return _path(value) if isinstance(value, str) else None
    lines = _LINE.findall(text)
    value = _VALUE.fullmatch(lines[0]) if len(lines) == 1 else None
    return _path(value[1] or value[2] or value[3] or "") if value else None


def _names(proc: str) -> dict[str, str]:
    """Return the kubelets by PID. Every start does this, so it may cost little."""
    found = {}
    try:
        processes = [name for name in os.listdir(proc) if name.isdecimal()]
    except OSError:
        return {}
    for pid in processes:
        try:
            fd = os.open(f"{proc}/{pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # it is gone
        try:
            name = os.fsdecode(os.read(fd, 64)).strip()
        except OSError:
            continue
        finally:
            os.close(fd)
        if (name in _KUBELETS or name in _EMBEDDERS) and _is_of_this_node(proc, pid):
            found[pid] = name
    return found


def _is_of_this_node(proc: str, pid: str) -> bool:
    try:
        return os.readlink(f"{proc}/{pid}/ns/pid") == os.readlink(f"{proc}/self/ns/pid")
    except OSError:
        return False


def _word(process: Path, name: str) -> Word:
    argv = [os.fsdecode(word) for word in _bytes(process / "cmdline").split(b"\0") if word]
    said = Word(pid=int(process.name), program=name, endpoint="", by="", embedder=_EMBEDDERS.get(name, ""))
    for flags, by in _flags(process, argv):
        path = _path(flags.get(_ENDPOINT, ""))
        if path:
            return _told(said, path, f"{_ENDPOINT}{by}")
        if flags.get("--container-runtime") == "docker" or flags.get("--docker") in ("", "true"):
            return _told(said, "", f"its command line{by}", docker=True)
    for flags, _ in _flags(process, argv):
        for file in _configurations(process, flags):
            if named := endpoint(_text(file.local)):
                return _told(said, named, file.name)
    return said


def _told(said: Word, path: str, by: str, *, docker: bool = False) -> Word:
    # The shims are named so by kubelet before 1.24 and by cri-dockerd ever since.
    docker = docker or os.path.basename(path) in ("dockershim.sock", "cri-dockerd.sock")
    return Word(
        pid=said.pid, program=said.program, endpoint=path, by=by, embedder=said.embedder, docker=docker
    )


class _File(NamedTuple):
    """A file of a process: its name there, and where it is seen here."""

    name: str
    local: Path


def _flags(process: Path, argv: Sequence[str]) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the flags of a command line, then those of the file of arguments that it names (microk8s)."""
    flags = _parsed(argv[1:])
    yield flags, ""
    named = flags.get("--kubelet-args-file")
    if named:
        lines = (line.strip() for line in _text(_seen(process, named)).splitlines())
        words = [word for line in lines if line and not line.startswith("#") for word in line.split()]
        yield _parsed([_expanded(process, word) for word in words]), f" in {named}"


def _parsed(words: Sequence[str]) -> dict[str, str]:
    """Return flags as kubelet reads them: the last one wins; a value is behind `=` or the next word."""
    found = {}
    for index, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            following = words[index + 1] if index + 1 < len(words) else ""
            found[name] = value if equals else "" if following.startswith("-") else following
    return found


def _expanded(process: Path, word: str) -> str:
    """Return a word with the process's own variables in the place of their names."""
    if "$" not in word:
        return word
    pairs = (os.fsdecode(item).partition("=") for item in _bytes(process / "environ").split(b"\0"))
    variables = {name: value for name, _, value in pairs}
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], match[0]), word)


def _configurations(process: Path, flags: dict[str, str]) -> Iterator[_File]:
    """Yield the configuration files of a kubelet, the one that counts most first."""
    directory = flags.get("--config-dir")
    if directory:
        local = _seen(process, directory)
        try:
            names = sorted((name for name in os.listdir(local) if name.endswith(".conf")), reverse=True)
        except OSError:
            names = []
        yield from (_File(f"{directory.rstrip('/')}/{name}", local / name) for name in names)
    config = flags.get("--config")
    if config:
        yield _File(config, _seen(process, config))


def _seen(process: Path, path: str) -> Path:
    """Return where a file of a process is seen here, with every link meant as the process means it."""
    if not path.startswith("/"):
        return process / "cwd" / path
    root = Host(root=process / "root")
    try:
        return root.target(root.below(path))
    except StepFailed:
        return root.below(path)


def _path(address: str) -> str:
    """Return the path in `unix:///PATH` or `/PATH`; empty for what is no Unix socket."""
    path = address.removeprefix("unix://")
    return os.path.normpath(path) if path.startswith("/") else ""


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(_LARGEST)
    except OSError:
        return b""
