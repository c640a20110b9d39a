"""The way back from a change that failed: the files as they were, the runtime told, its word for it.

Everything needed for it lies in the open transaction, so a run that was killed
on the way back goes on with it. What it needs is removed only when the runtime
is as it was.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Final

from runtimes import planner
from runtimes.errors import NotUnderstood
from runtimes.model import Observation
from toolkit import apply, before, debts, detect, files, journal, log, reload, scaffold, verify, versions
from toolkit.detect import Scene
from toolkit.errors import NotReloaded, NotRolledBack, StepFailed, ToolkitError
from toolkit.journal import directory
from toolkit.log import LOGGER
from toolkit.memory import Open, Record
from toolkit.options import RestartMode
from toolkit.reload import Way
from toolkit.stop import GRACE, Patience
from toolkit.view import Task

_LEFT_TO_YOU: Final = (
    "the runtime may have read the change and was not told of the old files, as asked (restart mode none):"
    " restart it, then run the same again"
)


@log.under_way("taking the change back")
def undo(task: Task, place: Scene, record: Record, why: str, *, told: bool) -> Record:
    """Take the open transaction of a record back, since it failed for the reason given.

    `told` says that the runtime may have read the change. Returns the record
    from before it. Raises NotRolledBack where the node is not as it was; then
    everything that is needed is kept, and the next run tries again.
    """
    opened = record.open
    if opened is None:
        return record
    LOGGER.warning("%s; taking the change back", why)
    task.tally.phase, task.tally.went_back = "undo", True
    try:
        here, patience = _look(task, place)
        restarted = here.owner != place.owner
        is_first = not opened.why
        opened = replace(opened, why=opened.why or why, told=opened.told or told or restarted)
        record = _noted(place, replace(record, open=opened))
        record, is_back = _files_back(task, here, record, patience)
        if opened.files and not opened.told:
            here, opened = _looked_again(task, here, opened)
        if is_back or is_first:
            record = _noted(place, debts.incurred(record, is_written=True))
        if place.desired.reach.makes:
            _toolkit_back(place, record, opened)  # what is there would be made a handler again
        if opened.told and (opened.files or place.desired.reach.makes):
            _settle(task, here, opened, record, patience, is_first=is_first)
        if record.ends and detect.again(here, task.adapter).owner is not None:
            record = replace(record, ends=False)
        artifacts = _toolkit_back(place, record, opened)
        opened = replace(opened, earlier=replace(opened.earlier, artifacts=artifacts))
        return close(task, place, record, opened)
    except (ToolkitError, NotUnderstood, OSError) as error:
        raise _stuck(task, place, opened, str(error)) from error


def _settle(
    task: Task, place: Scene, opened: Open, record: Record, patience: Patience, *, is_first: bool
) -> None:
    """Have the runtime be as it was: told, or, where it may not be, heard. Raises ToolkitError."""
    held = before.still_of(task.adapter, place, record, opened.baseline)
    opened = replace(opened, baseline=held)
    if task.mode is RestartMode.NONE:
        _hear(task, place, opened, record)
    else:
        _tell(task, place, opened, record, patience, is_first=is_first)


def _toolkit_back(place: Scene, record: Record, opened: Open) -> str | None:
    earlier, failed = opened.earlier.artifacts, record.artifacts
    return versions.go_back(place.install_dir, earlier, failed, _path(record.replaced))


def _looked_again(task: Task, place: Scene, opened: Open) -> tuple[Scene, Open]:
    """Return who runs now that the files are back: one that started meanwhile may have read half of them."""
    here = detect.again(place, task.adapter)
    return here, replace(opened, told=here.owner != place.owner)


def close(task: Task, place: Scene, record: Record, opened: Open) -> Record:
    """Let the record be what it was before the transaction; nothing is left of a first install.

    The CDI specification is no part of a transaction: one that was made meanwhile stays ours.
    """
    earlier = replace(
        opened.earlier,
        sequence=record.sequence,
        ends=record.ends,
        specification=record.specification,
        made_of=record.made_of,
        directories=record.directories if record.specification is not None else opened.earlier.directories,
    )
    made = [d for d in record.directories if d not in earlier.directories]
    with contextlib.suppress(StepFailed):  # then a kill right now may leave an empty directory
        scaffold.note(task.scaffold, made)
    if earlier.is_empty:
        journal.forget(place.install_dir)
    else:
        earlier = journal.save(place.install_dir, earlier)
        journal.prune(place.install_dir, earlier)
    scaffold.take_down(task.scaffold, made)
    return earlier


def _noted(place: Scene, record: Record) -> Record:
    """Make durable how far the way back is. A full disk is no reason to leave the node as it is."""
    try:
        return journal.save(place.install_dir, record)
    except ToolkitError as error:
        LOGGER.warning("%s", error.message)
        return record


def _files_back(task: Task, place: Scene, record: Record, patience: Patience) -> tuple[Record, bool]:
    """Put the files back; return the record, and whether one was put back, or had been by a killed run.

    That the runtime is owed the old files is noted before: a kill right after the
    write would leave a runtime with the change that nobody ever tells.
    """
    opened = record.open
    assert opened is not None  # noqa: S101  # only an open transaction is taken back
    root_config = place.desired.config
    apply.sweep(place.host, [each.path for each in opened.files], root_config)
    now = {each.path: _bytes(place, each.path) for each in opened.files}
    owned = journal.ownerships(place.install_dir, opened.files)
    plan = planner.removal(task.adapter, Observation(files=now, owned=owned))
    if opened.told and plan.stones and _is_asked_by_signal(task, place):
        for stone in plan.stones:
            record = journal.also_written(record, stone.path, stone.after or b"")
        record = _noted(place, record)
        apply.changes(place.host, plan.stones, root_config)
        _reload(task, place, None, patience, is_first=True)  # stones replace no process
    if plan.changes:
        record = _noted(place, debts.incurred(record, is_written=False))
    apply.changes(place.host, plan.changes, root_config, give_back=opened.files)
    for name in plan.stayed:
        LOGGER.warning("stays, since somebody edited it meanwhile: %s", name)
    return record, debts.is_unwritten(record)


def _is_asked_by_signal(task: Task, place: Scene) -> bool:
    """Tell whether the runtime is there and reads anew in the same process: only that needs stones."""
    way = reload.way(place, task.adapter, task.mode)
    return way.mode is RestartMode.SIGNAL and not way.replaces and not way.obstacle


def _bytes(place: Scene, path: str) -> bytes | None:
    seen = files.read(place.host.target(place.host.local(path)))
    return seen.data if seen else None


def _tell(
    task: Task, place: Scene, opened: Open, record: Record, patience: Patience, *, is_first: bool
) -> None:
    """Make the runtime take the old files up, where it has not by itself, and see that it is as it was."""
    try:
        if place.owner is None or debts.is_owed(place, record, task.mode):
            _reload(task, place, record.unit, patience, is_first=is_first)
    except StepFailed as error:
        if opened.baseline.was_well:
            raise
        LOGGER.warning("%s, which was not well before either", error.message)
    if opened.baseline.was_well:
        verify.confirmed(place, task.adapter, _as_it_was(task, place, opened), patience)


def _hear(task: Task, place: Scene, opened: Open, record: Record) -> None:
    """See that a runtime which may not be told has the old files by itself. Raises StepFailed."""
    if place.owner is None and task.is_leaving:
        LOGGER.warning("%s: it reads the old files when it starts", place.silence)
        return
    if place.owner is None:
        raise StepFailed(_LEFT_TO_YOU)
    is_older = debts.is_owed(place, record, RestartMode.AUTO)
    baseline = opened.baseline
    if not baseline.was_well and not is_older:
        return
    try:
        now = verify.confirmed(place, task.adapter, _as_it_was(task, place, opened), Patience(0))
    except NotReloaded as error:
        raise StepFailed(f"{_LEFT_TO_YOU} ({error.message})") from error
    known, had = now.has.handlers, baseline.has.handlers
    # One that ran all along has to name its handlers, none of which is new, whatever ours were called.
    if is_older and (known is None or had is None or known - had - (baseline.files.handlers or frozenset())):
        raise StepFailed(_LEFT_TO_YOU)


def _as_it_was(task: Task, place: Scene, opened: Open) -> verify.Expected:
    """Return what a runtime is like that is as it was before the change."""
    ours, baseline = place.desired.names, opened.baseline
    had, said = baseline.has.handlers, baseline.files.handlers
    # What something else had taken out of the files already is gone once these are read.
    stay = (had or frozenset()) & (_defined(task, place, opened) if said is None else said)
    return verify.Expected(
        desired=place.desired,
        ours=ours - stay,
        present=ours & stay,
        absent=frozenset() if had is None and said is None else ours.difference(had or (), said or ()),
        baseline=baseline,
    )


def _defined(task: Task, place: Scene, opened: Open) -> frozenset[str]:
    """Return which handlers of ours the files name: nobody else can say it where no binary can be asked."""
    desired = place.desired
    paths = {desired.config, desired.drop_in, *(each.path for each in opened.files)} - {""}
    return task.adapter.defined(desired, {path: _bytes(place, path) for path in paths})


def _reload(task: Task, place: Scene, unit: str | None, patience: Patience, *, is_first: bool) -> None:
    way = _way(task, place, unit, patience)
    if way.replaces and (way.unit is not None or place.owner is not None):
        _count(task, is_first=is_first or place.owner is None)
    task.tally.told(reload.perform(place, task.adapter, way, patience), replaces=way.replaces)


def _count(task: Task, *, is_first: bool) -> None:
    """Note a restart that is about to happen; the first of a way back goes beyond the budget, and a start.

    The runtime has the change until then. A later run must not restart it on and
    on, be it that the budget is used up or that nothing can be noted. Raises StepFailed.
    """
    is_free = is_first or not task.budget.most
    if not is_free and (refusal := task.budget.refusal()):
        raise StepFailed(refusal)
    try:
        task.budget.spend()
    except StepFailed as error:
        if not is_free:
            raise
        LOGGER.warning("%s: this restart is not counted", error.message)


def _way(task: Task, here: Scene, unit: str | None, patience: Patience) -> Way:
    """Return how the runtime is told. One that is dead is started again, or waited for."""
    found = reload.way(here, task.adapter, task.mode)
    if not found.obstacle:
        return found
    ours_to_start = task.mode is not RestartMode.SIGNAL
    again = reload.revival(here, unit, patience, even_if_stopped=ours_to_start)
    return again or Way(mode=RestartMode.SIGNAL, unit=None, replaces=True)


def _look(task: Task, place: Scene) -> tuple[Scene, Patience]:
    """Return who owns the socket now, and how long the rest of the way back may take.

    It is looked for once: one that hangs costs seconds each time. They are part
    of that where the pod is about to be killed.
    """
    if task.stop.is_wished:
        patience = _patience(task)
        return detect.again(place, task.adapter, timeout=GRACE / 2), patience
    here = detect.again(place, task.adapter)
    return here, _patience(task)


def _patience(task: Task) -> Patience:
    """Return how long all of the way back may take: less where the pod is about to be killed."""
    seconds = task.settings.seconds("reload_timeout")
    return Patience(min(seconds, GRACE)) if task.stop.is_wished else Patience(seconds, task.stop)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _stuck(task: Task, place: Scene, opened: Open, what: str) -> NotRolledBack:
    kept = directory(place.install_dir)
    files_then = ", ".join(
        f"{place.host.local(each.path)} was {kept / 'originals' / each.original}"
        if each.original
        else f"{place.host.local(each.path)} was not there"
        for each in opened.files
    )
    lines = f"{opened.why}; taking that back failed: {what}"
    where = f" ({files_then})" if files_then else ""
    return NotRolledBack(
        f"{lines}; everything is kept in {kept}{where}",
        hint="see that the runtime can start (its own log says what it lacks), then run the same again:"
        " it goes on with taking the change back; or put these files back by hand",
    )
