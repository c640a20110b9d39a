"""Everything of ours taken back: the default first, the configuration next, the files last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from runtimes import edits
from runtimes.adapter import Adapter
from runtimes.model import Desired, Handler, Observation, Ownership, Plan
from toolkit import apply, detect, files, journal, reload, transaction, verify, versions
from toolkit.detect import Scene
from toolkit.errors import StepFailed
from toolkit.journal import Record
from toolkit.log import LOGGER
from toolkit.options import RestartMode
from toolkit.reload import Way
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
    transaction.same_runtime(record, place)
    owned = journal.ownerships(place.install_dir, record)
    place = replace(place, desired=_as_recorded(place.desired, owned))
    apply.sweep(place.host, [o.path for o in owned], place.desired.config)
    found = _view(settings, adapter, place, record, detect.observe(place, adapter, owned))
    if using := _using(settings, adapter, found):
        _take_default_away(settings, adapter, found)
        raise _in_use(using, "the handlers and their files stay")
    record = _take_configuration_back(settings, adapter, found, owned)
    _keep_what_is_needed(settings, adapter, found)
    versions.remove(place.install_dir, Path(record.replaced) if record.replaced else None)
    journal.forget(place.install_dir)
    for directory in reversed(record.directories):
        with contextlib.suppress(OSError):  # somebody put something into it: then it stays
            os.rmdir(directory)
    return Removal(place=place, plan=found.plan, was_empty=False)


def _as_recorded(desired: Desired, owned: tuple[Ownership, ...]) -> Desired:
    """Return the wish with the handlers that were really set up, whatever they are called now."""
    recorded = {
        edit.key[-1]: str(binary)
        for o in owned
        for edit in o.edits
        if edit.key[-2:-1] == ("runtimes",) and isinstance(edit.new, Mapping)
        for _, binary in edits.leaves(edit.new)
        if "/toolkit/nvidia-container-runtime" in str(binary)
    }
    handlers = tuple(Handler(name=name, binary=binary) for name, binary in recorded.items())
    return replace(desired, handlers=handlers or desired.handlers)


def _keep_what_is_needed(settings: Settings, adapter: Adapter, found: View) -> None:
    """Refuse to take the files from under a runtime or a configuration that still runs them."""
    if settings.flag("even_if_in_use"):
        return
    place = found.place
    if using := _using(settings, adapter, found):
        raise _in_use(using, "they were started meanwhile, so the files stay")
    toolkit = f"{place.host.node(place.install_dir)}/toolkit/".encode()
    still = [
        str(place.host.local(o.path))
        for o in found.record.owned
        if (seen := files.read(place.host.target(place.host.local(o.path)))) and toolkit in seen.data
    ]
    original = {o.path for o in found.seen.owned if o.original is not None and toolkit in o.original}
    still = [path for path in still if path not in {str(place.host.local(p)) for p in original}]
    if still:
        raise StepFailed(
            f"{', '.join(still)} was edited since and still runs the toolkit, whose files stay",
            hint="take that out by hand and run revert again, or use --even-if-in-use",
        )
    told = transaction.is_told(adapter, found.way)
    # A daemon that is older than our last write never read us, or, where that took us out, still has us.
    is_older = transaction.is_owed(place, found.record, RestartMode.AUTO)
    has_us = is_older if found.plan.is_noop else not is_older
    if place.owner is not None and not told and has_us:
        raise StepFailed(
            f"PID {place.owner.pid} was not told and still has our handlers, so their files stay",
            hint="restart the runtime and run revert again, or use --even-if-in-use",
        )


def _view(settings: Settings, adapter: Adapter, place: Scene, record: Record, seen: Observation) -> View:
    mode = RestartMode(settings.text("restart_mode"))
    return View(
        place=place,
        record=record,
        seen=seen,
        plan=detect.removal(place, adapter, seen),
        version=None,
        source_problem="",
        way=_way(place, adapter, record, mode),
        reload_owed=transaction.is_owed(place, record, mode),
    )


def _way(place: Scene, adapter: Adapter, record: Record, mode: RestartMode) -> Way:
    """Return how the runtime hears of it: one that died, of us perhaps, is started again."""
    found = reload.way(place, adapter, mode)
    if not found.obstacle or mode is RestartMode.NONE:
        return found
    return reload.revival(place, record.unit) or found


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
    if found.reload_needed:
        record = transaction.owing(record, place, adapter)
    record = journal.save(place.install_dir, record)
    transaction.step_on_stones(settings, adapter, found)
    for change in plan.changes:
        ours = next(o for o in record.owned if o.path == change.path)
        original = next(o.original for o in owned if o.path == change.path)
        if change.after == original:
            apply.give_back(place.host, change, ours, place.desired.config)
        else:
            apply.changes(place.host, [change], place.desired.config)
    transaction.take_up(settings, adapter, found, over_cri=record.had_cri)
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


def _in_use(using: tuple[str, ...], what: str) -> StepFailed:
    who = "1 container still uses" if len(using) == 1 else f"{len(using)} containers still use"
    return StepFailed(
        f"{who} our handlers: {', '.join(sorted(using)[:5])}; {what}",
        hint="end them and run revert again, or use --even-if-in-use: they could then not be stopped cleanly",
    )
