"""Everything of ours taken back: the default first, the configuration next, the files last."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from runtimes.adapter import Adapter
from runtimes.model import Observation, Ownership, Plan
from toolkit import apply, detect, journal, reload, transaction, verify, versions
from toolkit.detect import Scene
from toolkit.errors import StepFailed
from toolkit.journal import Record
from toolkit.log import LOGGER
from toolkit.options import RestartMode
from toolkit.settings import Settings
from toolkit.transaction import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What a revert did: the plan, and whether there was nothing of ours at all."""

    place: Scene
    plan: Plan
    was_empty: bool


def revert(settings: Settings, adapter: Adapter) -> Removal:
    """Take back everything that is ours. Raises ToolkitError.

    While containers run through our handlers, only the default is taken away:
    a container whose handler or binary is gone could not be stopped any more.
    """
    place = detect.scene(settings, adapter)
    record = journal.load(place.install_dir)
    if record.is_empty:
        LOGGER.info("nothing to take back: there is no record of anything of ours")
        return Removal(place=place, plan=Plan(), was_empty=True)
    owned = journal.ownerships(place.install_dir, record)
    found = _view(settings, adapter, place, record, detect.observe(place, adapter, owned))
    if using := _using(settings, adapter, found):
        _take_default_away(settings, adapter, found)
        raise _in_use(using)
    record = _take_configuration_back(settings, adapter, found, owned)
    if using := _using(settings, adapter, found):
        raise _in_use(using)  # started while we were at it; the files stay until it ends
    versions.remove(place.install_dir, Path(record.replaced) if record.replaced else None)
    journal.forget(place.install_dir)
    for directory in reversed(record.directories):
        with contextlib.suppress(OSError):  # somebody put something into it: then it stays
            os.rmdir(directory)
    return Removal(place=place, plan=found.plan, was_empty=False)


def _view(settings: Settings, adapter: Adapter, place: Scene, record: Record, seen: Observation) -> View:
    mode = RestartMode(settings.text("restart_mode"))
    return View(
        place=place,
        record=record,
        seen=seen,
        plan=detect.removal(place, adapter, seen),
        version=None,
        source_problem="",
        way=reload.way(place, adapter, mode),
        reload_owed=transaction.is_owed(place, record, mode),
    )


def _take_default_away(settings: Settings, adapter: Adapter, found: View) -> None:
    """Leave the handlers, but let no new container use them without asking for them."""
    place = replace(found.place, desired=replace(found.place.desired, default=None))
    plan = detect.plan(place, adapter, found.seen)
    if not plan.is_noop:
        transaction.carry_out(settings, adapter, replace(found, place=place, plan=plan))


def _take_configuration_back(
    settings: Settings, adapter: Adapter, found: View, owned: tuple[Ownership, ...]
) -> Record:
    place, plan = found.place, found.plan
    obstacles = apply.obstacles(place.host, plan.changes)
    transaction.stop_for(obstacles, found.way.obstacle if found.reload_needed else "")
    apply.check(place.host, plan.changes)
    record = _with_stones(found)
    record = journal.save(place.install_dir, replace(record, reload_pending=found.reload_needed))
    transaction.step_on_stones(settings, adapter, found)
    for change in plan.changes:
        ours = next(o for o in record.owned if o.path == change.path)
        original = next(o.original for o in owned if o.path == change.path)
        if change.after == original:
            apply.give_back(place.host, change, ours, place.desired.config)
        else:
            apply.changes(place.host, [change], place.desired.config)
    transaction.take_up(settings, adapter, found)
    return record


def _with_stones(found: View) -> Record:
    """Return the record in which what a file holds on the way counts as written by us."""
    record = found.record
    for stone in found.plan.stones:
        record = journal.also_written(record, stone.path, stone.after or b"")
    return record


def _using(settings: Settings, adapter: Adapter, found: View) -> tuple[str, ...]:
    if settings.flag("even_if_in_use") or found.place.owner is None:
        return ()
    timeout = settings.seconds("reload_timeout")
    return verify.using(found.place, adapter, found.seen, timeout=timeout)


def _in_use(using: tuple[str, ...]) -> StepFailed:
    who = "1 container still runs" if len(using) == 1 else f"{len(using)} containers still run"
    return StepFailed(
        f"{who} through our handlers: {', '.join(sorted(using)[:5])}; the handlers and their files stay",
        hint="end them and run revert again, or use --even-if-in-use: they could then not be stopped cleanly",
    )
