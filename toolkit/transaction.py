"""The order of the steps, written once: remember, write, reload; and the way back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.errors import NotUnderstood
from runtimes.model import FileChange, Observation, Ownership, Plan
from toolkit import apply, artifacts, detect, files, journal, reload, versions
from toolkit.artifacts import Version
from toolkit.detect import Scene
from toolkit.errors import StepFailed, UsageProblem
from toolkit.journal import Record
from toolkit.log import LOGGER
from toolkit.options import RestartMode
from toolkit.reload import Way
from toolkit.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything that was seen and planned, before anything is done.

    `version` is None where the toolkit's source cannot be seen; `source_problem`
    then says why.
    """

    place: Scene
    record: Record
    seen: Observation
    plan: Plan
    version: Version | None
    source_problem: str
    way: Way
    reload_owed: bool

    @property
    def is_noop(self) -> bool:
        """Tell whether nothing at all has to be done."""
        installed = self.version is None or self.version.is_installed
        return self.plan.is_noop and installed and not self.reload_owed

    @property
    def reload_needed(self) -> bool:
        """Tell whether the runtime has to take something up."""
        return not self.plan.is_noop or self.reload_owed


def view(settings: Settings, adapter: Adapter) -> View:
    """Look, ask and plan; change nothing. Raises ToolkitError."""
    place = detect.scene(settings, adapter)
    record = journal.load(place.install_dir)
    if settings.flag("no_runtime_config"):
        seen, plan = Observation(), Plan(notes=("the runtime is not configured, as asked",))
    else:
        seen = detect.observe(place, adapter, journal.ownerships(place.install_dir, record))
        plan = detect.plan(place, adapter, seen)
    version, problem = None, ""
    try:
        version = artifacts.wanted(settings, place.host, place.install_dir, plan.low_level)
    except UsageProblem as error:
        problem = str(error)
    mode = RestartMode(settings.text("restart_mode"))
    return View(
        place=place,
        record=record,
        seen=seen,
        plan=plan,
        version=version,
        source_problem=problem,
        way=reload.way(place, mode),
        reload_owed=_is_owed(place, record, mode),
    )


def converge(settings: Settings, adapter: Adapter) -> View:
    """Make the node what is wanted; return what was seen and done. Raises ToolkitError.

    The order is the promise: what is ours is remembered before it changes; the
    files that a handler runs are there before the runtime hears of it.
    """
    found = view(settings, adapter)
    if found.version is None:
        artifacts.wanted(settings, found.place.host, found.place.install_dir, ())
    place = found.place
    paths = {place.desired.config, place.desired.drop_in, *(o.path for o in found.record.owned)} - {""}
    apply.sweep(place.host, sorted(paths), place.desired.config)
    if found.is_noop:
        LOGGER.info("nothing to do: the node is as wanted")
        return found
    _preflight(found)
    record = _begin(found, adapter)
    if found.version is not None and not found.version.is_installed:
        versions.install(found.version, found.place.install_dir)
        LOGGER.info("installed the toolkit at %s", found.place.install_dir / "toolkit")
    apply.changes(found.place.host, found.plan.changes, found.place.desired.config)
    _reload(settings, adapter, found)
    journal.save(found.place.install_dir, journal.settled(record))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What a revert did, or would have to leave: the plan, and what of others stayed."""

    place: Scene
    plan: Plan
    was_empty: bool


def revert(settings: Settings, adapter: Adapter) -> Removal:
    """Take back everything that is ours: first the configuration, then the files. Raises ToolkitError."""
    place = detect.scene(settings, adapter)
    record = journal.load(place.install_dir)
    if record.is_empty:
        LOGGER.info("nothing to take back: there is no record of anything of ours")
        return Removal(place=place, plan=Plan(), was_empty=True)
    owned = journal.ownerships(place.install_dir, record)
    seen = detect.observe(place, adapter, owned)
    plan = detect.removal(place, adapter, seen)
    mode = RestartMode(settings.text("restart_mode"))
    chosen = reload.way(place, mode)
    _refuse_if_in_use(settings, adapter, place, seen)
    needed = not plan.is_noop or _is_owed(place, record, mode)
    obstacles = apply.obstacles(place.host, plan.changes)
    _stop_for([*obstacles, *([chosen.obstacle] if needed and chosen.obstacle else [])])
    apply.check(place.host, plan.changes)
    record = journal.save(place.install_dir, replace(record, reload_pending=needed))
    _give_back(place, record, owned, plan)
    if needed and chosen.mode is not RestartMode.NONE:
        reload.perform(place, chosen, adapter.executables, timeout=settings.seconds("reload_timeout"))
    replaced = Path(record.replaced) if record.replaced else None
    versions.remove(place.install_dir, replaced)
    journal.forget(place.install_dir)
    for directory in reversed(record.directories):
        with contextlib.suppress(OSError):  # somebody put something into it: then it stays
            os.rmdir(directory)
    return Removal(place=place, plan=plan, was_empty=False)


def _preflight(found: View) -> None:
    """Look at everything that could keep the change from being done, before anything is touched."""
    problems = apply.obstacles(found.place.host, found.plan.changes)
    problem = files.writable(found.place.install_dir)
    problems += [problem] if problem else []
    if found.reload_needed and found.way.obstacle:
        problems.append(found.way.obstacle)
    _stop_for(problems)


def _stop_for(problems: Sequence[str]) -> None:
    if problems:
        raise StepFailed(f"{'; '.join(problems)}: nothing was changed")


def _begin(found: View, adapter: Adapter) -> Record:
    """Make durable what is about to change, and how to get back."""
    place, install_dir = found.place, found.place.install_dir
    now = apply.check(place.host, found.plan.changes)
    record = found.record
    for change in found.plan.changes:
        record = journal.remember(
            install_dir,
            record,
            change,
            local=place.host.local(change.path),
            seen=now[change.path],
            without_us=_without_us(adapter, found.seen.ownership(change.path), change),
        )
    made = [
        *files.missing_directories(install_dir),
        *apply.missing_directories(place.host, found.plan.changes),
    ]
    known = [d for d in record.directories if d not in map(str, made)]
    version = found.version
    replaced = record.replaced
    if version is not None and not version.is_installed:
        replaced = replaced or versions.in_the_way(install_dir)
    return journal.save(
        install_dir,
        replace(
            record,
            runtime=place.desired.runtime,
            directories=(*known, *map(str, made)),
            artifacts=version.digest if version is not None else record.artifacts,
            replaced=replaced,
            reload_pending=record.reload_pending or found.reload_needed,
        ),
    )


def _without_us(adapter: Adapter, owned: Ownership | None, change: FileChange) -> bytes | None:
    """Return what a file would be now if we had never been."""
    if owned is None:
        return change.before
    try:
        return planner.without_us(adapter, owned, change.before)[0]
    except NotUnderstood as error:
        raise detect.not_understood(error) from error


def _reload(settings: Settings, adapter: Adapter, found: View) -> None:
    if not found.reload_needed:
        return
    if found.way.mode is RestartMode.NONE:
        LOGGER.info("the runtime has not been told, as asked (restart mode none)")
        return
    seconds = reload.perform(
        found.place, found.way, adapter.executables, timeout=settings.seconds("reload_timeout")
    )
    LOGGER.info("the runtime took the change up within %.1f s", seconds)


def _give_back(place: Scene, record: Record, owned: tuple[Ownership, ...], plan: Plan) -> None:
    for change in plan.changes:
        ours = next(o for o in record.owned if o.path == change.path)
        original = next(o.original for o in owned if o.path == change.path)
        if change.after == original:
            apply.give_back(place.host, change, ours, place.desired.config)
        else:
            apply.changes(place.host, [change], place.desired.config)


def _is_owed(place: Scene, record: Record, mode: RestartMode) -> bool:
    """Tell whether a change of ours was written which the daemon is too old to have read."""
    if not record.reload_pending or place.owner is None or mode is RestartMode.NONE:
        return False
    times = [
        status.st_mtime
        for owned in record.owned
        if (status := files.status(place.host.local(owned.path))) is not None
    ]
    return not times or place.owner.started <= max(times) + 1


def _refuse_if_in_use(settings: Settings, adapter: Adapter, place: Scene, seen: Observation) -> None:
    if settings.flag("even_if_in_use"):
        return
    binaries = {handler.binary for handler in place.desired.handlers}
    using = []
    for pattern in adapter.task_files(place.desired, seen):
        for path in place.host.glob(pattern):
            with contextlib.suppress(OSError):
                if place.host.local(path).read_text(encoding="utf-8").strip() in binaries:
                    using.append(Path(path).parent.name)
    if using:
        count = f"{len(using)} container{'s' if len(using) > 1 else ''}"
        raise StepFailed(
            f"{count} still run through our handlers: {', '.join(sorted(using)[:5])}",
            hint="end them first, or use --even-if-in-use: they could then not be stopped cleanly",
        )
