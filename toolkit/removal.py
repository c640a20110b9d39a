"""Everything of ours taken back: the default first, the configuration next, the files last."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.model import Plan
from toolkit import (
    attest,
    cdi,
    debts,
    detect,
    health,
    journal,
    preflight,
    readiness,
    recall,
    reload,
    scaffold,
    strays,
    transaction,
    usage,
    verify,
    versions,
)
from toolkit.detect import Scene
from toolkit.errors import NodeNotUnderstood, StepFailed
from toolkit.log import LOGGER
from toolkit.memory import Job, Record
from toolkit.options import RestartMode
from toolkit.owner import Owner
from toolkit.settings import Settings
from toolkit.stop import Patience, Stop
from toolkit.view import Task, View, same_runtime, way

_SOON: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What a revert did: the plan, and whether there was nothing of ours at all."""

    place: Scene
    plan: Plan
    was_empty: bool


def revert(settings: Settings, adapter: Adapter, stop: Stop | None = None) -> Removal:
    """Take back everything that is ours. Raises ToolkitError.

    While containers run through our handlers, only the default is taken away:
    a container whose handler or binary is gone could not be stopped any more.
    """
    task = Task(settings=settings, adapter=adapter, stop=stop or Stop(), is_leaving=True)
    place = detect.scene(settings, adapter, task.stop)
    found = _found(task, place)
    if found is None:
        _clean(task, place, ())
        LOGGER.info("nothing to take back: there is no record of anything of ours")
        return Removal(place=place, plan=Plan(), was_empty=True)
    is_forced, record = settings.flag("even_if_in_use"), found.record
    if found.plan.is_noop and record.open is not None and record.open.why and not is_forced:
        # Its files are the old ones already: what is left of the way back is the runtime's word for it.
        transaction.recover(task)
        record = strays.recollected(place, journal.load(place.install_dir))
        found = _view(task, detect.again(place, adapter), record)
    transaction.sweep(task, found)
    if using := _using_before(task, found):
        _take_default_away(task, found)
        raise _in_use(using, "the handlers and their files stay")
    if not is_forced:
        found = _as_it_runs(task, found)
    if found.reload_needed or found.is_unsettled:
        record = transaction.carry_out(task, found)
    _keep_what_is_needed(task, found)
    place = found.place
    readiness.remove(task.readiness)
    # Before the files go: a specification whose hook is gone keeps containers from starting.
    record, stayed = cdi.take_back(place.host, place.install_dir, record, even_if_gone=is_forced)
    versions.remove(place.install_dir, Path(record.replaced) if record.replaced else None)
    if place.desired.reach.makes and not task.settings.flag("no_runtime_config"):
        _have_them_unmade(task, found)
    scaffold.note(task.scaffold, record.directories)
    _clean(task, place, record.directories)
    left = (*found.plan.stayed, *([stayed] if stayed else ()))
    return Removal(place=place, plan=replace(found.plan, stayed=left), was_empty=False)


def _found(task: Task, place: Scene) -> View | None:
    """Return what was seen and is to be taken back; None where nothing is ours. Raises ToolkitError."""
    record = strays.recollected(place, journal.load(place.install_dir))
    if record.is_empty and not strays.are_named(place):
        return None
    same_runtime(record, place)
    is_forced = task.settings.flag("even_if_in_use")
    if not is_forced:
        _see_what_is_ours(place, record)
    found = _view(task, place, record)
    if record.artifacts is not None and not is_forced:
        strays.refuse(place, task.adapter, found.seen)
    return None if record.is_empty and not found.adopted else found


def _have_them_unmade(task: Task, found: View) -> None:
    """Start a distribution anew that made handlers of the files that are gone now, so that it makes none.

    A program of the host's own may still be one. Raises StepFailed; the next revert does it again.
    """
    place = detect.again(found.place, task.adapter)
    now = health.once(place, task.adapter, timeout=attest.soon(task)) if place.owner is not None else None
    made = frozenset(place.desired.reach.makes) & ((now and now.has.handlers) or frozenset())
    if not made:
        return
    chosen = way(task, place, found.record, revive=False)
    if chosen.mode is RestartMode.NONE or chosen.obstacle:
        LOGGER.warning("%s stay until the next start of the distribution", ", ".join(sorted(made)))
        return
    with suppress(StepFailed):
        task.budget.spend()
    patience = task.patience()
    task.tally.told(reload.perform(place, task.adapter, chosen, patience), replaces=chosen.replaces)
    names = place.desired.names
    verify.confirmed(
        place,
        task.adapter,
        verify.Expected(desired=place.desired, ours=names, present=frozenset(), absent=frozenset()),
        patience,
    )


def _clean(task: Task, place: Scene, directories: tuple[str, ...]) -> None:
    """Remove the record, and what a run left that was killed before there was one or after."""
    readiness.remove(task.readiness)
    recall.forget(task.settings)
    preflight.sweep(place.install_dir)
    journal.forget(place.install_dir)
    if left := scaffold.take_down(task.scaffold, directories):
        raise StepFailed(f"{', '.join(left)} cannot be removed", hint="run revert again")


def _see_what_is_ours(place: Scene, record: Record) -> None:
    """Refuse to take a file for one that is gone, where its directory is not seen. Raises StepFailed."""
    for owned in (*record.owned, *(record.open.files if record.open else ())):
        directory = place.host.local(owned.path).parent
        while str(directory) in record.directories:
            directory = directory.parent  # we made it, and somebody may have removed it with its file
        if not directory.is_dir():
            raise StepFailed(
                f"{directory}, where {owned.path} belongs, is not there: nothing was changed",
                hint="mount it as for the installation, or use --even-if-in-use if it is gone for good",
            )


def _as_it_runs(task: Task, found: View) -> View:
    """Return the view in which the runtime has to be told, where its files are clean and it is not.

    Somebody may have put the files back by hand, and it still runs with what was
    there before. Raises StepFailed where it does not say.
    """
    place, record = found.place, found.record
    may_have_them = record.owned or record.open is not None or strays.is_lost(record)
    if found.reload_needed or not may_have_them:
        return found
    if place.owner is None:
        # It may be our change that it died of: see it run again before what leads back is gone.
        return replace(found, reload_owed=record.owed_since is not None and task.mode is not RestartMode.NONE)
    now = health.look(place, task.adapter, Patience(_SOON, task.stop))
    if now.ailments and now.has.handlers is None:
        raise StepFailed(
            f"{'; '.join(now.ailments)}: whether it still has our handlers is not known, so their files stay",
            hint="run revert again once the runtime is well, or use --even-if-in-use",
        )
    absent = attest.expected(task, found, None).absent
    if not absent & ((now.has.handlers or frozenset()) | {now.has.default}):
        return found
    if task.mode is RestartMode.NONE:
        if record.artifacts is None:
            return found  # what its handlers run is the node's own, and stays
        raise _not_told(place.owner)
    LOGGER.warning("the runtime still has our handlers, though its files do not name them any more")
    return replace(found, reload_owed=True)


def _not_told(daemon: Owner) -> StepFailed:
    return StepFailed(
        f"PID {daemon.pid} was not told and still has our handlers, so their files stay",
        hint="restart the runtime and run revert again, or use --even-if-in-use",
    )


def _keep_what_is_needed(task: Task, found: View) -> None:
    """Refuse to take the files from under a runtime or a configuration that still runs them."""
    if task.settings.flag("even_if_in_use") or found.record.artifacts is None:
        return  # what the handlers run may be the node's own, and stays
    place = found.place
    if using := _using(task, found):
        raise _in_use(using, "they were started meanwhile, so the files stay")
    toolkit = f"{place.host.node(place.install_dir)}/toolkit/".encode()
    try:
        now = detect.read(place.host, tuple(owned.path for owned in found.seen.owned))
    except NodeNotUnderstood as error:
        raise StepFailed(
            f"{error.message}: it was given back, the files stay", hint="run revert again"
        ) from error
    still = [str(place.host.local(path)) for path, data in now.items() if data and toolkit in data]
    original = {o.path for o in found.seen.owned if o.original is not None and toolkit in o.original}
    still = [path for path in still if path not in {str(place.host.local(p)) for p in original}]
    if still:
        raise StepFailed(
            f"{', '.join(still)} was edited since and still runs the toolkit, whose files stay",
            hint="take that out by hand and run revert again, or use --even-if-in-use",
        )
    told = reload.is_told(task.adapter, found.way)
    # A daemon that is older than our last write never read us, or, where that took us out, still has us.
    is_older = debts.is_owed(place, found.record, RestartMode.AUTO)
    has_us = is_older if found.plan.is_noop else not is_older
    if place.owner is not None and not told and has_us:
        raise _not_told(place.owner)


def _view(task: Task, place: Scene, record: Record) -> View:
    opened = record.open
    if opened is not None:
        paths = tuple(each.path for each in opened.files)
        record = journal.as_on_disk(record, detect.read(place.host, paths))
    # A change that is being taken back may be what the runtime still has, though no file names it any more.
    named = record.owned or (opened.files if opened is not None else ())
    is_forced = task.settings.flag("even_if_in_use")
    owned = journal.ownerships(place.install_dir, record.owned, even_if_gone=is_forced)
    seen = detect.observe(place, task.adapter, owned)
    adopted = strays.adopted(place, task.adapter, record, seen)
    seen = replace(seen, owned=(*seen.owned, *adopted))
    known = (*(each.edits for each in named), *(each.edits for each in adopted))
    place = replace(place, desired=planner.recorded(place.desired, known))
    return View(
        place=place,
        record=record,
        seen=seen,
        plan=detect.removal(place, task.adapter, seen),
        version=None,
        source_problem=None,
        way=way(task, place, record, revive=True),
        reload_owed=debts.is_owed(place, record, task.mode),
        job=Job.REVERT,
        adopted=adopted,
    )


def _take_default_away(task: Task, found: View) -> None:
    """Leave the handlers, but let no new container use them without asking for them."""
    place = replace(found.place, desired=replace(found.place.desired, default=None))
    plan = detect.plan(place, task.adapter, found.seen)
    if not plan.is_noop:
        transaction.carry_out(task, replace(found, place=place, plan=plan, job=Job.INSTALL))


def _using(task: Task, found: View) -> tuple[str, ...]:
    if task.settings.flag("even_if_in_use"):
        return ()
    return usage.using(found.place, task.adapter, found.seen, task.patience())


def _using_before(task: Task, found: View) -> tuple[str, ...]:
    if task.settings.flag("even_if_in_use"):
        return ()
    return usage.using_before(found.place, task.adapter, found.seen, task.patience(), task.stop)


def _in_use(using: tuple[str, ...], what: str) -> StepFailed:
    return StepFailed(
        f"{usage.words(using, 'our handlers')}; {what}",
        hint="end them and run revert again, or use --even-if-in-use: they could then not be stopped cleanly",
    )
