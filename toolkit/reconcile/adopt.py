"""Find handlers that run the toolkit but are missing from the state file, and adopt them.

A handler whose program was removed is worse than none: if it is the default handler, no container
starts. Therefore handlers that run the installed toolkit are owned even if their record was lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.dataclass import replace
from runtimes.errors import ConfigError
from runtimes.lazy_pattern import lazy_pattern
from runtimes.model import Observation, Ownership
from toolkit.artifacts import manifest, programs, versions
from toolkit.errors import StepError, UsageProblem
from toolkit.node.host import same_place
from toolkit.runtime import observe
from toolkit.runtime.locate import Target
from toolkit.settings.layout import InstallDir
from toolkit.state.record import Record

_RUN: Final = lazy_pattern(rb"(/[^\s\"'=:\0]*)/toolkit/nvidia-container-runtime")
_USUAL: Final = "nvidia"
_BUILT_IN: Final = frozenset({"runc", "crun"})
"""Handlers that a runtime may have without naming them in its files."""


def restored_record(target: Target, record: Record) -> Record:
    """Return the record; if it was lost, with the digest of the installed toolkit."""
    if not is_lost(record) or record.toolkit_digest is not None:
        return record
    return replace(
        record, toolkit_digest=manifest.named(InstallDir(target.install_dir).toolkit) or None
    )


def is_lost(record: Record) -> bool:
    """Return whether no completed run is recorded: there was none, or its record was lost."""
    committed = record.open.previous if record.open is not None else record
    return not committed.runtime


def adopted(
    target: Target, adapter: Adapter, record: Record, observation: Observation
) -> tuple[Ownership, ...]:
    """Return the files with handlers of the toolkit if the record was lost, else nothing.

    Raises NodeConfigError if a file cannot be parsed.
    """
    return _unowned(target, adapter, observation) if is_lost(record) else ()


def notes(target: Target, adopted: Iterable[Ownership]) -> tuple[str, ...]:
    """Return a note for every adopted file."""
    return tuple(
        f"{target.host.local(each.path)} has handlers of the toolkit that are missing from the"
        " state file: they are adopted"
        for each in adopted
    )


def are_named(target: Target) -> bool:
    """Test cheaply whether the runtime's files contain the toolkit's path. Raises ToolkitError."""
    paths = {target.desired.config, target.desired.drop_in, target.desired.hook} - {""}
    toolkit = _toolkit(target).encode()
    return any(
        toolkit in (data or b"") for data in observe.read(target.host, tuple(paths)).values()
    )


def refuse(target: Target, adapter: Adapter, observation: Observation) -> None:
    """Raise StepError if a file that is not owned runs the toolkit, which must then stay."""
    if paths := [
        str(target.host.local(each.path)) for each in _unowned(target, adapter, observation)
    ]:
        raise StepError(
            f"{', '.join(paths)} has handlers of the toolkit that are missing from the state file:"
            " nothing was changed",
            hint="remove those handlers by hand and run revert again",
        )


def refuse_another(target: Target, files: Mapping[str, bytes | None]) -> None:
    """Raise UsageProblem if the runtime was configured with another install directory.

    The originals of these files are saved in that directory. A second installation would make that
    record useless.
    """
    directories = {path for data in files.values() for path in _RUN.findall(data or b"")}
    for directory in sorted(directories):
        local = target.host.seen(os.fsdecode(directory))
        if same_place(local, target.install_dir) or not os.path.lexists(InstallDir(local).record):
            continue
        raise UsageProblem(
            [f"--toolkit-install-dir={target.install_dir}: this node was set up with {local}"],
            hint=f"revert that first: nvidia-toolkit revert --toolkit-install-dir {local}",
        )


def refuse_taken_name(
    target: Target, adapter: Adapter, observation: Observation, option: str
) -> None:
    """Raise UsageProblem if the main handler has the name of a handler that others own.

    That handler would run the toolkit's program from then on, and the other handlers would no
    longer inherit its settings. The usual name, and a handler that runs a toolkit already, are
    replaced. `option` is what the name was given by.
    """
    desired = target.desired
    name = desired.handlers[0].name
    if name in {_USUAL, *programs.BINARIES} or desired.hook_mode:
        return
    if name in planner.former(observation):
        return
    is_there = (
        name in _BUILT_IN
        or name in adapter.defined(desired, observation.files)
        or name in (adapter.effective(desired, observation).handlers or ())
    )
    runs = adapter.programs(desired, observation).get(name, ()) if is_there else ()
    if is_there and not any(planner.is_toolkit_program(path) for path in runs):
        raise UsageProblem(
            [f"{option}={name}: the node has a handler {name} already, which is not the toolkit's"],
            hint=(
                f"choose another name, such as {_USUAL}; --set-as-default makes it the default for"
                " pods that name no handler"
            ),
        )


def _unowned(target: Target, adapter: Adapter, observation: Observation) -> tuple[Ownership, ...]:
    """Return the files that run the toolkit but are not owned.

    If another installer's toolkit lies in this place, the handlers belong to that installer:
    nothing is returned. Raises NodeConfigError if a file cannot be parsed.
    """
    if versions.foreign_directory(target.install_dir):
        return ()
    try:
        return planner.unowned(adapter, target.desired, observation, _toolkit(target).rstrip("/"))
    except ConfigError as error:
        raise observe.not_understood(error) from error


def _toolkit(target: Target) -> str:
    """Return the directory of the toolkit as the node names it, with a slash at the end."""
    return f"{target.host.node(target.install_dir)}/toolkit/"
