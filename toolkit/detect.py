"""What is there: the paths as the node names them, the daemon and its binary, the files, the answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.errors import NotUnderstood, Unfit
from runtimes.model import (
    Answer,
    Desired,
    Handler,
    Observation,
    Ownership,
    Plan,
    Question,
    RuntimeName,
    directory_token,
    token,
)
from toolkit import files, owner, process
from toolkit.errors import NodeNotUnderstood, StepFailed, UsageProblem
from toolkit.host import Host
from toolkit.log import LOGGER
from toolkit.settings import Settings, runtime_default

BINARIES = MappingProxyType(
    {
        "": "nvidia-container-runtime",
        "nvidia-cdi": "nvidia-container-runtime.cdi",
        "nvidia-legacy": "nvidia-container-runtime.legacy",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The node, the wish as the node names its paths, the install directory here, and who owns the socket.

    `owner` is None where nobody who may be signalled answers; `silence` then says why.
    """

    host: Host
    desired: Desired
    install_dir: Path
    socket: Path
    owner: owner.Owner | None
    silence: str
    binary: str | None
    notes: tuple[str, ...] = ()


def scene(settings: Settings, adapter: Adapter) -> Scene:
    """Look at the node and at who owns the runtime's socket; change nothing.

    Raises UsageProblem where the settings do not fit the node.
    """
    host = Host(root=_root(settings))
    socket = Path(settings.text("socket"))
    found, silence = None, ""
    try:
        found = owner.find(socket, adapter.executables, speaks_first=adapter.speaks_first)
    except owner.NoOwner as error:
        silence = f"{error} ({error.hint})" if error.hint else str(error)
        LOGGER.debug("%s", silence)
    given = _argument(found, adapter.config_flags)
    config = Path(os.path.abspath(settings.text("config")))
    if given is not None and not settings.is_given("config"):
        config = host.seen(given)
    config_node = host.node(config, *([given] if given else []), _default_path(adapter, "config"))
    host = host.mapped(str(Path(config_node).parent), config.parent)
    drop_in_node = ""
    own_directory = _argument(found, adapter.directory_flags)
    if own_directory is not None and not settings.is_given("drop_in_config"):
        # The daemon reads another directory than the usual one.
        drop_in_node = f"{own_directory.rstrip('/')}/{Path(settings.text('drop_in_config')).name}"
        host = host.mapped(str(Path(drop_in_node).parent), host.seen(drop_in_node).parent)
    elif settings.text("drop_in_config"):
        drop_in = Path(settings.text("drop_in_config"))
        drop_in_node = settings.text("drop_in_config_host_path") or host.node(
            drop_in, _default_path(adapter, "drop_in_config")
        )
        host = host.mapped(str(Path(drop_in_node).parent), drop_in.parent)
    directory = _drop_in_directory(settings, host, adapter, found, drop_in_node)
    hook = _hook_file(settings, host)
    if hook:
        host = host.mapped(str(Path(hook).parent), Path(settings.text("hooks_dir")))
    install_dir = Path(os.path.abspath(settings.text("toolkit_install_dir")))
    binary, notes = _binary(settings, host, adapter, found)
    return Scene(
        host=host,
        desired=replace(
            _desired(settings, host, config_node, drop_in_node, install_dir), directory=directory
        ),
        install_dir=install_dir,
        socket=socket,
        owner=found,
        silence=silence,
        binary=binary,
        notes=notes,
    )


def observe(place: Scene, adapter: Adapter, owned: tuple[Ownership, ...]) -> Observation:
    """Look at everything that the adapter wants to have looked at, and ask what it wants to have asked.

    Raises NodeNotUnderstood for what cannot be understood, StepFailed for what cannot be read.
    """
    argv = place.owner.argv if place.owner else ()
    seen = Observation(binary=place.binary, argv=argv, owned=owned)
    paths = {path.path: place.host.local(path.path) for path in owned}
    seen = replace(seen, files=_read(place.host, tuple(paths), {}))
    try:
        while True:
            wanted = adapter.look(place.desired, seen)
            if wanted.files or wanted.globs:
                seen = replace(
                    seen,
                    files=_read(place.host, wanted.files, seen.files),
                    globs={**seen.globs, **{g: place.host.glob(g) for g in wanted.globs}},
                )
                continue
            questions = adapter.questions(place.desired, seen) if place.binary else ()
            if not questions:
                return seen
            answers = {question.name: ask(place, question) for question in questions}
            seen = replace(seen, answers={**seen.answers, **answers})
    except NotUnderstood as error:
        raise not_understood(error) from error


def plan(place: Scene, adapter: Adapter, seen: Observation) -> Plan:
    """Return the plan, judged by the node's own binary. Raises NodeNotUnderstood."""
    try:
        found = planner.plan(adapter, place.desired, seen)
        if not found.is_noop:
            question = planner.trial(adapter, place.desired, seen, found)
            if question is not None:
                planner.judge(adapter, place.desired, seen, ask(place, question))
    except NotUnderstood as error:
        raise not_understood(error) from error
    except Unfit as error:
        raise StepFailed(f"{error.why}: nothing was changed", hint=error.hint) from error
    return replace(found, notes=(*place.notes, *found.notes))


def removal(place: Scene, adapter: Adapter, seen: Observation) -> Plan:
    """Return the plan that takes everything back, judged likewise. Raises NodeNotUnderstood."""
    try:
        found = planner.removal(adapter, seen)
        if not found.is_noop:
            question = planner.trial(adapter, place.desired, seen, found)
            if question is not None:
                planner.judge_removal(adapter, place.desired, seen, ask(place, question))
    except NotUnderstood as error:
        raise not_understood(error) from error
    return found


def ask(place: Scene, question: Question) -> Answer:
    """Ask the node's own binary, in the node's own root."""
    with (
        process.staged(question.files) as (fds, paths),
        process.staged_directories(question.directories) as (directories, places),
    ):
        marks = {token(i): path for i, path in enumerate(paths)}
        marks |= {directory_token(i): path for i, path in enumerate(places)}
        for fd, data in zip(fds, question.files, strict=True):
            os.ftruncate(fd, 0)
            os.pwrite(fd, _named(data, marks), 0)
        argv = [place.binary or "", *(_named(word.encode(), marks).decode() for word in question.argv)]
        try:
            result = process.run(argv, root=place.host.root, pass_fds=[*fds, *directories])
        except StepFailed as error:
            return Answer(code=-1, out="", err=error.message)
    err = result.err
    for path, name in zip(paths, question.names, strict=False):
        err = err.replace(path, name)
    return Answer(code=result.code, out=result.out, err=err)


def not_understood(error: NotUnderstood) -> NodeNotUnderstood:
    """Return the study's complaint as an error with an exit code."""
    return NodeNotUnderstood(str(error), hint=error.hint)


# --- paths and programs -------------------------------------------------------------------------


def _root(settings: Settings) -> Path:
    root = Path(settings.text("host_root"))
    if root.is_dir():
        return root
    if settings.is_given("host_root"):
        raise UsageProblem([f"--host-root={root}: there is no such directory"])
    return Path("/")


def _default_path(adapter: Adapter, name: str) -> str:
    return runtime_default(adapter.name, name)


def _argument(found: owner.Owner | None, flags: tuple[str, ...]) -> str | None:
    """Return the value that the daemon was started with for one of these flags, where it says so."""
    words = found.argv if found else ()
    for index, word in enumerate(words):
        if word in flags and index + 1 < len(words):
            return words[index + 1]
        name, equals, value = word.partition("=")
        if equals and name in flags:
            return value
    return None


def _binary(
    settings: Settings, host: Host, adapter: Adapter, found: owner.Owner | None
) -> tuple[str | None, tuple[str, ...]]:
    """Return the node path of the binary that judges, and what is to be said about its choice."""
    sources = [source.split("=", 1)[0].strip() for source in settings.items("config_source")]
    if "command" not in sources:
        return None, ()
    given = settings.text("executable_path")
    if given:
        path = host.executable(given)
        if path is None and "file" not in sources:
            raise UsageProblem([f"--executable-path={given}: there is no such program on the node"])
        note = () if path else (f"{given} is no program on the node, so it cannot judge the change",)
        return path, note
    if not host.is_here and os.geteuid() != 0:
        return None, ("only root can run the node's own programs below its root",)
    candidates = [found.executable] if found and owner.looks_like(found, adapter.executables) else []
    # Where the daemon is known, another program of its name may not judge in its place.
    for candidate in candidates or sorted(adapter.executables):
        path = host.executable(candidate)
        if path is not None and os.path.basename(path) in adapter.executables:
            return path, ()
    return None, ()


def _desired(settings: Settings, host: Host, config: str, drop_in: str, install_dir: Path) -> Desired:
    name = settings.text("runtime_class")
    if name in BINARIES:
        name = "nvidia"
    toolkit = f"{host.node(install_dir)}/toolkit"
    handlers = (
        Handler(name=name, binary=f"{toolkit}/{BINARIES['']}"),
        *(Handler(name=other, binary=f"{toolkit}/{binary}") for other, binary in BINARIES.items() if other),
    )
    cdi = settings.flag("enable_cdi_in_runtime")
    return Desired(
        runtime=RuntimeName(settings.text("runtime")),
        config=config,
        drop_in=drop_in,
        handlers=handlers,
        default=name if settings.flag("set_as_default") else None,
        hook=_hook_file(settings, host),
        hook_mode=settings.text("runtime") == "crio" and settings.text("config_mode") == "hook",
        hook_binary=f"{toolkit}/nvidia-container-runtime-hook",
        enable_cdi=True if cdi else None,
        runtime_type=settings.text("runtime_type"),
        legacy=settings.flag("use_legacy_config"),
        annotations=tuple(f"{prefix}*" for prefix in settings.items("cdi_annotation_prefixes")),
    )


def _drop_in_directory(
    settings: Settings, host: Host, adapter: Adapter, found: owner.Owner | None, drop_in: str
) -> str:
    """Return the directory whose files the daemon reads all, whether ours lies there or not."""
    if not adapter.directory_flags:
        return ""
    if drop_in:
        return str(Path(drop_in).parent)
    given = _argument(found, adapter.directory_flags)
    return given or str(Path(_default_path(adapter, "drop_in_config")).parent)


def _hook_file(settings: Settings, host: Host) -> str:
    """Return the OCI hook file as the node names it; only CRI-O has one."""
    if settings.text("runtime") != RuntimeName.CRIO:
        return ""
    return host.node(Path(settings.text("hooks_dir")) / settings.text("hook_filename"))


def _read(host: Host, paths: tuple[str, ...], known: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
    found = dict(known)
    for path in paths:
        seen = files.read(host.target(host.local(path)))
        found[path] = seen.data if seen else None
    return found


def _named(data: bytes, marks: Mapping[str, str]) -> bytes:
    for mark, path in marks.items():
        data = data.replace(mark.encode(), path.encode())
    return data
