"""What is there: the paths as the node names them, the daemon and its binary, the files, the answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

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
from toolkit import contradiction, files, override, owner, places, process, programs, recall, whereabouts
from toolkit.errors import Contradiction, Interrupted, NodeNotUnderstood, StepFailed, UsageProblem
from toolkit.host import Host
from toolkit.log import LOGGER
from toolkit.programs import BINARIES
from toolkit.settings import Settings, runtime_default
from toolkit.stop import Patience, Stop, Timeout

_LONGEST_ANSWER: Final = 30.0
_LEAST: Final = 5.0
_SOON: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The node, the wish as the node names its paths, the install directory here, and who owns the socket.

    `owner` is None where nobody who may be signalled answers; `silence` then says why.
    `stop` is the wish to stop, for which a question is broken off. `against` is what
    speaks against the settings: with it the node may be looked at, but not changed.
    `recall` is what the binary said before.
    """

    host: Host
    desired: Desired
    install_dir: Path
    socket: Path
    owner: owner.Owner | None
    silence: str
    binary: str | None
    notes: tuple[str, ...] = ()
    stop: Stop | None = None
    against: tuple[Contradiction, ...] = ()
    recall: recall.Recall = field(default_factory=recall.Recall, compare=False)


def scene(settings: Settings, adapter: Adapter, stop: Stop | None = None) -> Scene:
    """Look at the node and at who owns the runtime's socket; change nothing.

    Raises UsageProblem where the settings do not fit the node.
    """
    host = Host(root=root(settings))
    socket = whereabouts.socket(settings, host)
    found, silence, against = None, "", settings.against
    try:
        found = owner.find(socket, adapter.executables, speaks_first=adapter.speaks_first)
    except owner.NoOwner as error:
        silence = f"{error} ({error.hint})" if error.hint else str(error)
        LOGGER.debug("%s", silence)
        against = against or contradiction.answered(settings, adapter, error)
    where = places.find(
        settings,
        host,
        adapter,
        found,
        told=owner.argument(found, adapter.config_flags),
        told_directory=owner.argument(found, adapter.directory_flags),
    )
    host = where.host
    directory = _drop_in_directory(settings, host, adapter, found, where.drop_in)
    hook = _hook_file(settings, host)
    if hook:
        host = host.mapped(str(Path(hook).parent), Path(settings.text("hooks_dir")))
    install_dir = Path(os.path.abspath(settings.text("toolkit_install_dir")))
    binary, notes = _binary(settings, host, adapter, found)
    notes += tuple(
        f"there is no {path} on the node, so there is no handler {name}"
        for name, path in programs.absent(settings, host, install_dir).items()
    )
    return Scene(
        host=host,
        desired=replace(
            _desired(settings, host, where.config, where.drop_in, install_dir),
            directory=directory,
            reach=where.reach,
        ),
        install_dir=install_dir,
        socket=socket,
        owner=found,
        silence=silence,
        binary=binary,
        notes=notes,
        stop=stop,
        against=against,
        recall=recall.of(settings, host, binary),
    )


def again(place: Scene, adapter: Adapter, *, timeout: Timeout = _SOON) -> Scene:
    """Return a scene with whoever owns the socket now."""
    try:
        found = owner.find(
            place.socket, adapter.executables, speaks_first=adapter.speaks_first, timeout=timeout
        )
    except owner.NoOwner as error:
        return replace(place, owner=None, silence=str(error))
    return replace(place, owner=found, silence="")


def observe(place: Scene, adapter: Adapter, owned: tuple[Ownership, ...]) -> Observation:
    """Look at everything that the adapter wants to have looked at, and ask what it wants to have asked.

    Raises NodeNotUnderstood for what cannot be understood, StepFailed for what cannot be read.
    """
    argv = place.owner.argv if place.owner else ()
    seen = Observation(binary=place.binary, argv=argv, owned=owned)
    paths = {path.path: place.host.local(path.path) for path in owned}
    seen = replace(seen, files=read(place.host, tuple(paths)))
    try:
        while True:
            wanted = adapter.look(place.desired, seen)
            if wanted.files or wanted.globs:
                seen = replace(
                    seen,
                    files={**seen.files, **read(place.host, wanted.files)},
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


def read(host: Host, paths: tuple[str, ...]) -> dict[str, bytes | None]:
    """Return files of the node by path; None for one that is absent. Raises NodeNotUnderstood, StepFailed."""
    seen = {path: files.read(host.target(host.local(path))) for path in paths}
    return {path: found.data if found else None for path, found in seen.items()}


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
    against = (f"{each.problem} ({each.way_out})" for each in place.against)
    return replace(found, notes=(*against, *place.notes, *found.notes))


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
    """Ask the node's own binary, in the node's own root.

    Raises StepFailed where it cannot be asked now, and Interrupted where it had
    no time to answer since stopping is wished.
    """
    try:
        return place.recall.said(question) or place.recall.learned(question, _ask(place, question))
    except StepFailed as error:
        if place.stop is not None and place.stop.is_wished:
            raise Interrupted(place.stop.signal) from error
        raise
    except OSError as error:
        raise StepFailed(f"{place.binary} cannot be asked: {error.strerror}: nothing was changed") from error


def _ask(place: Scene, question: Question) -> Answer:
    with (
        process.staged(question.files) as (fds, paths),
        process.staged_directories(question.directories) as (directories, places),
    ):
        marks = {token(i): path for i, path in enumerate(paths)}
        marks |= {directory_token(i): path for i, path in enumerate(places)}
        for fd, data in zip(fds, question.files, strict=True):
            os.ftruncate(fd, 0)
            os.pwrite(fd, _named(data, marks), 0)
        patience = Patience(_LONGEST_ANSWER, place.stop)
        argv = [place.binary or "", *(_named(word.encode(), marks).decode() for word in question.argv)]
        try:
            result = process.run(
                argv,
                root=place.host.root,
                timeout=patience.allowing(_LEAST),
                pass_fds=[*fds, *directories],
            )
        except process.NotStarted as error:
            return Answer(code=-1, out="", err=error.message)
    err = result.err
    for path, name in zip(paths, question.names, strict=False):
        err = err.replace(path, name)
    return Answer(code=result.code, out=result.out, err=err)


def not_understood(error: NotUnderstood) -> NodeNotUnderstood:
    """Return the study's complaint as an error with an exit code."""
    return NodeNotUnderstood(str(error), hint=error.hint)


# --- paths and programs -------------------------------------------------------------------------


def root(settings: Settings) -> Path:
    """Return where the node's root is seen. Raises UsageProblem."""
    given = Path(settings.text("host_root"))
    if given.is_dir():
        return given
    if settings.is_given("host_root"):
        raise UsageProblem([f"--host-root={given}: there is no such directory"])
    return Path("/")


def _default_path(adapter: Adapter, name: str) -> str:
    return runtime_default(adapter.name, name)


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
    if found and candidates and os.path.basename(found.executable) not in adapter.executables:
        # A program of many names (k3s) is a runtime only by the one that it is started by.
        beside = os.path.dirname(found.executable)
        candidates += [f"{beside}/{name}" for name in sorted(adapter.executables)]
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
    toolkit = programs.directory(settings, host, install_dir)
    absent = programs.absent(settings, host, install_dir)
    handlers = (
        Handler(name=name, binary=f"{toolkit}/{BINARIES['']}"),
        *(
            Handler(name=other, binary=f"{toolkit}/{binary}")
            for other, binary in BINARIES.items()
            if other and other not in absent
        ),
    )
    asked = "enable_cdi_in_runtime" if settings.is_given("enable_cdi_in_runtime") else "cdi_enabled"
    return Desired(
        runtime=RuntimeName(settings.text("runtime")),
        config=config,
        drop_in=drop_in,
        handlers=handlers,
        default=name if settings.flag("set_as_default") else None,
        hook=_hook_file(settings, host),
        hook_mode=settings.text("runtime") == "crio" and settings.text("config_mode") == "hook",
        hook_binary=f"{toolkit}/nvidia-container-runtime-hook",
        enable_cdi=True if settings.flag(asked) else None,
        enable_cri=settings.flag("enable_cri"),
        runtime_type=settings.text("runtime_type"),
        legacy=settings.flag("use_legacy_config"),
        annotations=tuple(f"{prefix}*" for prefix in settings.items("cdi_annotation_prefixes")),
        override=_override(settings),
    )


def _override(settings: Settings) -> Mapping[str, Any]:
    text = settings.text("runtime_config_override")
    return override.read(text) if text else {}


def _drop_in_directory(
    settings: Settings, host: Host, adapter: Adapter, found: owner.Owner | None, drop_in: str
) -> str:
    """Return the directory whose files the daemon reads all, whether ours lies there or not."""
    if not adapter.directory_flags:
        return ""
    if drop_in:
        return str(Path(drop_in).parent)
    given = owner.argument(found, adapter.directory_flags)
    return given or str(Path(_default_path(adapter, "drop_in_config")).parent)


def _hook_file(settings: Settings, host: Host) -> str:
    """Return the OCI hook file as the node names it; only CRI-O has one."""
    if settings.text("runtime") != RuntimeName.CRIO:
        return ""
    filename = settings.text("hook_filename")
    # On OpenShift the GPU Operator mounts that one.
    return host.node(Path(settings.text("hooks_dir")) / filename, f"/run/containers/oci/hooks.d/{filename}")


def _named(data: bytes, marks: Mapping[str, str]) -> bytes:
    for mark, path in marks.items():
        data = data.replace(mark.encode(), path.encode())
    return data
