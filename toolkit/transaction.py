"""The order of the steps, written once: look, remember, write, reload, ask, settle."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from runtimes import planner
from runtimes.adapter import Adapter, HangUp
from runtimes.errors import NotUnderstood
from runtimes.model import FileChange, Observation, Ownership, Plan
from toolkit import apply, artifacts, detect, files, journal, owner, reload, verify, versions
from toolkit.artifacts import Version
from toolkit.detect import Scene
from toolkit.errors import NodeNotUnderstood, StepFailed, UsageProblem
from toolkit.journal import Record
from toolkit.log import LOGGER
from toolkit.options import RestartMode
from toolkit.reload import Way
from toolkit.settings import Settings

_GRACE: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything that was seen and planned, before anything is done.

    `version` is None where the toolkit's source cannot be seen, or is of no
    concern; `source_problem` then says why. `reload_owed` tells that an earlier
    change was written which the running daemon has not read.
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
    record, record_problem = _record(place)
    if settings.flag("no_runtime_config"):
        seen, plan = Observation(), Plan(notes=("the runtime is not configured, as asked",))
    else:
        seen = detect.observe(place, adapter, journal.ownerships(place.install_dir, record))
        plan = detect.plan(place, adapter, seen)
    if record_problem:
        plan = replace(plan, notes=(*plan.notes, record_problem))
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
        way=reload.way(place, adapter, mode),
        reload_owed=is_owed(place, record, mode),
    )


def _record(place: Scene) -> tuple[Record, str]:
    """Return what is remembered, and why it cannot be read where we may not: a plan goes on without."""
    try:
        record = journal.load(place.install_dir)
    except NodeNotUnderstood as error:
        if os.geteuid() == 0:
            raise
        return Record(), f"{error.message}: what was done before is not known here"
    same_runtime(record, place)
    return record, ""


def same_runtime(record: Record, place: Scene) -> None:
    """Refuse to mix two runtimes in one record. Raises UsageProblem."""
    if record.owned and record.runtime != place.desired.runtime:
        raise UsageProblem(
            [f"--runtime={place.desired.runtime}: this node was set up for {record.runtime}"],
            hint=f"take that back first: nvidia-toolkit revert --runtime {record.runtime}",
        )


def converge(settings: Settings, adapter: Adapter) -> View:
    """Make the node what is wanted; return what was seen and done. Raises ToolkitError."""
    found = view(settings, adapter)
    if found.version is None:
        artifacts.wanted(settings, found.place.host, found.place.install_dir, ())
    place = found.place
    paths = {place.desired.config, place.desired.drop_in, *(o.path for o in found.record.owned)} - {""}
    apply.sweep(place.host, sorted(paths), place.desired.config)
    if found.is_noop:
        _settle_what_is_owed(settings, adapter, found)
        LOGGER.info("nothing to do: the node is as wanted")
        return found
    carry_out(settings, adapter, found)
    return found


def _settle_what_is_owed(settings: Settings, adapter: Adapter, found: View) -> None:
    """Let a runtime that was started since an unfinished change say that it has it. Raises NotReloaded."""
    if found.record.owed_since is None or found.way.mode is RestartMode.NONE:
        return
    timeout = settings.seconds("reload_timeout")
    over_cri = found.record.had_cri
    verify.confirmed(found.place, adapter, found.seen.files, timeout=timeout, over_cri=over_cri)
    journal.save(found.place.install_dir, journal.settled(found.record))


def carry_out(settings: Settings, adapter: Adapter, found: View) -> Record:
    """Do what was planned. Raises ToolkitError.

    The order is the promise: what is ours is remembered before it changes; the
    files that a handler runs are there before the runtime hears of it; and it
    is settled only when the runtime took it up.
    """
    place = found.place
    _preflight(found)
    record = _begin(found, adapter)
    if found.version is not None and not found.version.is_installed:
        versions.install(found.version, place.install_dir)
        LOGGER.info("installed the toolkit at %s", place.install_dir / "toolkit")
    if found.reload_needed:
        # From now on it is owed: a kill anywhere below leaves it to the next run.
        record = journal.save(place.install_dir, owing(record, place, adapter))
    step_on_stones(settings, adapter, found)
    apply.changes(place.host, found.plan.changes, place.desired.config)
    take_up(settings, adapter, found, over_cri=record.had_cri)
    owed = None if is_told(adapter, found.way) else record.owed_since
    return journal.save(place.install_dir, journal.settled(record, owed_since=owed))


def owing(record: Record, place: Scene, adapter: Adapter) -> Record:
    """Return the record from which on the runtime owes its word, and whether it has to give it over CRI."""
    before = record.owed_since is not None and record.had_cri
    return replace(record, owed_since=time.time(), had_cri=before or verify.has_cri(place, adapter))


def is_told(adapter: Adapter, way: Way) -> bool:
    """Tell whether a way makes the runtime use a change, and not merely read it."""
    forgets = adapter.on_hangup is HangUp.FORGETS and way.mode is RestartMode.SIGNAL
    return way.mode is not RestartMode.NONE and not forgets


def step_on_stones(settings: Settings, adapter: Adapter, found: View) -> None:
    """Have a daemon that reloads read what tells it of keys that are about to go. Raises ToolkitError."""
    if not found.plan.stones or found.way.mode is not RestartMode.SIGNAL:
        return
    apply.changes(found.place.host, found.plan.stones, found.place.desired.config)
    take_up(settings, adapter, replace(found, plan=Plan(changes=found.plan.stones)), over_cri=False)


def take_up(settings: Settings, adapter: Adapter, found: View, *, over_cri: bool) -> None:
    """Make the runtime take the plan's files up, and see that it did. Raises ToolkitError."""
    if not found.reload_needed:
        return
    if found.way.mode is RestartMode.NONE:
        LOGGER.info("the runtime has not been told, as asked (restart mode none)")
        return
    timeout = settings.seconds("reload_timeout")
    seconds = reload.perform(found.place, adapter, found.way, timeout=timeout)
    now = {**found.seen.files, **{change.path: change.after for change in found.plan.changes}}
    verify.confirmed(found.place, adapter, now, timeout=timeout, over_cri=over_cri)
    LOGGER.info("the runtime took the change up within %.1f s", seconds)


def is_owed(place: Scene, record: Record, mode: RestartMode) -> bool:
    """Tell whether a change of ours was written which the running daemon is too old to have read."""
    if record.owed_since is None or place.owner is None or mode is RestartMode.NONE:
        return False
    return owner.age(place.owner) >= time.time() - record.owed_since - _GRACE


def stop_for(problems: Sequence[str], reload_problem: str) -> None:
    """Raise StepFailed with everything that stands in the way, where anything does.

    `reload_problem` is what keeps the runtime from being told; empty where nothing does.
    """
    everything = [*problems, *([reload_problem] if reload_problem else [])]
    if everything:
        hint = "with --restart-mode none a runtime that does not answer is left to you"
        raise StepFailed(f"{'; '.join(everything)}: nothing was changed", hint=hint if reload_problem else "")


def _preflight(found: View) -> None:
    """Look at everything that could keep the change from being done, before anything is touched."""
    problems = apply.obstacles(found.place.host, found.plan.changes)
    problem = files.writable(found.place.install_dir)
    problems += [problem] if problem else []
    stop_for(problems, found.way.obstacle if found.reload_needed else "")


def _begin(found: View, adapter: Adapter) -> Record:
    """Make durable what is about to change, and how to get back."""
    place, install_dir = found.place, found.place.install_dir
    now = apply.check(place.host, found.plan.changes)
    made = [
        *files.missing_directories(install_dir),
        *apply.missing_directories(place.host, found.plan.changes),
    ]
    known = [d for d in found.record.directories if d not in map(str, made)]
    record = replace(found.record, directories=(*known, *map(str, made)))
    if made:
        # Keeping the originals makes the first of them: they have to be known before.
        record = journal.save(install_dir, record)
    for change in found.plan.changes:
        record = journal.remember(
            install_dir,
            record,
            change,
            local=place.host.local(change.path),
            seen=now[change.path],
            without_us=_without_us(adapter, found.seen.ownership(change.path), change),
        )
    version = found.version
    replaced = record.replaced
    if version is not None and not version.is_installed:
        replaced = replaced or versions.in_the_way(install_dir)
    return journal.save(
        install_dir,
        replace(
            record,
            runtime=place.desired.runtime,
            unit=place.owner.unit if place.owner is not None else record.unit,
            artifacts=version.digest if version is not None else record.artifacts,
            replaced=replaced,
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
