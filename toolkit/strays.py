"""What stands on a node and no record knows: keys of ours whose record was lost, and a record elsewhere.

Handlers whose programs go are worse than none: where the default one is among
them, no container starts any more. So what is ours is ours without a record too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.errors import NotUnderstood
from runtimes.model import Observation, Ownership
from toolkit import artifacts, detect, journal, versions
from toolkit.detect import Scene
from toolkit.errors import StepFailed, UsageProblem
from toolkit.host import same_place
from toolkit.memory import Record

_RUN: Final = re.compile(rb"(/[^\s\"'=:\0]*)/toolkit/nvidia-container-runtime")


def recollected(place: Scene, record: Record) -> Record:
    """Return a record with the toolkit of ours that stands there, where the record was lost."""
    if not is_lost(record) or record.artifacts is not None:
        return record
    return replace(record, artifacts=artifacts.named(place.install_dir / "toolkit") or None)


def is_lost(record: Record) -> bool:
    """Tell whether no run was ever recorded: either there was none, or the record of it was lost."""
    before = record.open.earlier if record.open is not None else record
    return not before.runtime


def adopted(place: Scene, adapter: Adapter, record: Record, seen: Observation) -> tuple[Ownership, ...]:
    """Return the files with keys of ours whose record was lost. Raises NodeNotUnderstood."""
    return _unowned(place, adapter, seen) if is_lost(record) else ()


def words(place: Scene, adopted: Iterable[Ownership]) -> tuple[str, ...]:
    """Return what a person should know of what is adopted."""
    return tuple(
        f"{place.host.local(each.path)} runs the toolkit, and no record has that: its handlers count as ours"
        for each in adopted
    )


def are_named(place: Scene) -> bool:
    """Tell whether the runtime's files name the toolkit at all, which is soon known. Raises ToolkitError."""
    paths = {place.desired.config, place.desired.drop_in, place.desired.hook} - {""}
    toolkit = _toolkit(place).encode()
    return any(toolkit in (data or b"") for data in detect.read(place.host, tuple(paths)).values())


def refuse(place: Scene, adapter: Adapter, seen: Observation) -> None:
    """Refuse to take the toolkit away while a file that is not ours runs it. Raises StepFailed."""
    if found := [str(place.host.local(each.path)) for each in _unowned(place, adapter, seen)]:
        raise StepFailed(
            f"{', '.join(found)} runs the toolkit, and no record has that: nothing was changed",
            hint="take those handlers out by hand and run revert again, or use --even-if-in-use",
        )


def refuse_another(place: Scene, files: Mapping[str, bytes | None]) -> None:
    """Refuse to set up what was set up with another install directory. Raises UsageProblem.

    Its record is the way back from these files, and would be none any more.
    """
    named = {path for data in files.values() for path in _RUN.findall(data or b"")}
    for directory in sorted(named):
        local = place.host.seen(os.fsdecode(directory))
        if same_place(local, place.install_dir) or not os.path.lexists(journal.path(local)):
            continue
        raise UsageProblem(
            [f"--toolkit-install-dir={place.install_dir}: this node was set up with {local}"],
            hint=f"take that back first: nvidia-toolkit revert --toolkit-install-dir {local}",
        )


def _unowned(place: Scene, adapter: Adapter, seen: Observation) -> tuple[Ownership, ...]:
    """Return the files that run our toolkit without being ours.

    What runs the toolkit of another installer, which comes back, is its own.
    """
    if versions.in_the_way(place.install_dir):
        return ()
    try:
        return planner.unowned(adapter, place.desired, seen, _toolkit(place).rstrip("/"))
    except NotUnderstood as error:
        raise detect.not_understood(error) from error


def _toolkit(place: Scene) -> str:
    return f"{place.host.node(place.install_dir)}/toolkit/"
