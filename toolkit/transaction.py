"""The order of the steps, written once: install, upgrade, repair and revert all go through `carry_out`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from runtimes.adapter import Adapter
from runtimes.model import FileChange, Plan
from toolkit import (
    apply,
    attest,
    before,
    begin,
    cdi,
    debts,
    detect,
    health,
    journal,
    preflight,
    readiness,
    reload,
    scaffold,
    trial,
    undo,
    verify,
    versions,
)
from toolkit.errors import NotReloaded, RolledBack, StepFailed, ToolkitError
from toolkit.health import Health
from toolkit.log import LOGGER
from toolkit.memory import Baseline, Job, Open, Record
from toolkit.options import RestartMode
from toolkit.settings import Settings
from toolkit.stop import Patience, Stop
from toolkit.tally import Tally
from toolkit.view import Task, View, is_asked, same_runtime, view

_SOON: Final = 5.0


def converge(
    settings: Settings,
    adapter: Adapter,
    stop: Stop | None = None,
    *,
    tally: Tally | None = None,
    announce: Callable[[View], None] | None = None,
) -> View:
    """Make the node what is wanted; return what was seen and done. Raises ToolkitError.

    `announce` is called with what was seen, before anything is done about it.
    """
    task = Task(settings=settings, adapter=adapter, stop=stop or Stop(), tally=tally or Tally())
    recover(task)
    found = view(task)
    attest.refuse(task, found)
    found.place.recall.keep()
    sweep(task, found)
    ask = _as_the_runtime_says if found.is_in_place else attest.with_what_it_lacks
    with task.tally.during("ask"):
        found = ask(task, found)
    if found.is_noop:
        LOGGER.log(logging.DEBUG if announce else logging.INFO, "nothing to do: the node is as wanted")
        return found
    if announce is not None:
        announce(found)
    if not found.is_in_place:
        carry_out(task, found)
    cdi.settle(task, found)
    LOGGER.info("done: %s", task.tally.words())
    return found


def carry_out(task: Task, found: View) -> Record:
    """Do what was planned, all of it or nothing.

    The order is the promise: what is about to change is remembered before it
    does; the files that a handler runs are there before the runtime hears of it;
    and it is kept only when the runtime itself says that all is well. Raises
    StepFailed before anything was touched, RolledBack or NotRolledBack after.
    """
    during = task.tally.during
    with during("preflight"):
        baseline = preflight.look_ahead(task, found)
    with during("begin"):
        record = begin.begin(task, found, baseline)
    told = found.is_unsettled and found.plan.is_noop
    try:
        if record.open is not None and record.open.baseline is not baseline:
            baseline = before.still(task.adapter, found.place, found.seen, record.open.baseline)
        with during("install"):
            _install(found)
        record = _owing(found, record, written=False)
        _count(task, found)
        told = told or bool(_stones(found))
        _step_on_stones(task, found)
        with during("apply"):
            former = found.record.owned if found.job is Job.REVERT else ()
            apply.changes(found.place.host, found.plan.changes, found.place.desired.config, give_back=former)
        record = _owing(found, record, written=True)
        told = told or found.reload_needed
        found, now = _take_up(task, found, baseline)
        trial.start(task, found)
    except Exception as error:
        raise _failed(task, found, record, error, told=told) from error
    with during("commit"):
        return _commit(task, found, record, now)


# --- before -------------------------------------------------------------------------------------


def recover(task: Task) -> None:
    """Go on with the way back that an earlier run was killed on. Raises NotRolledBack, UsageProblem.

    What was killed on the way there needs nothing: the same plan is made again.
    """
    install_dir = Path(task.settings.text("toolkit_install_dir")).absolute()
    record = journal.load(install_dir)
    if record.open is None or not record.open.why:
        return
    place = detect.scene(task.settings, task.adapter, task.stop)
    same_runtime(record, place)
    for owned in record.open.files:
        place = replace(place, host=place.host.mapped(str(Path(owned.path).parent), Path(owned.local).parent))
    undo.undo(task, place, record, record.open.why, told=True)


def sweep(task: Task, found: View) -> None:
    """Remove what a killed run left beside the runtime's files and the toolkit."""
    place = found.place
    paths = {place.desired.config, place.desired.drop_in, *(o.path for o in found.record.owned)} - {""}
    apply.sweep(place.host, sorted(paths), place.desired.config)
    preflight.sweep(place.install_dir)
    journal.sweep(place.install_dir)
    if not found.record.is_empty:
        journal.prune(place.install_dir, found.record)
        scaffold.clear(task.scaffold)


# --- the change itself --------------------------------------------------------------------------


def _install(found: View) -> None:
    """Put the version in its place, where one is wanted that is not there yet. Raises StepFailed."""
    if found.version is not None and not found.version.is_installed:
        like = found.plan.low_level[0] if found.plan.low_level else ""
        versions.install(found.version, found.place.install_dir, found.place.host, like=like)
        LOGGER.info("installed the toolkit at %s", found.place.install_dir / "toolkit")


def _owing(found: View, record: Record, *, written: bool) -> Record:
    """Note that the runtime owes its word: a kill anywhere below leaves that to the next run.

    Nobody can have read all of the files before they are written.
    """
    if not found.reload_needed:
        return record
    ends = written and found.way.replaces and found.way.mode is not RestartMode.NONE
    owing = debts.incurred(record, is_written=written, by=found.place.owner, ends=ends)
    return journal.save(found.place.install_dir, owing)


def _stones(found: View) -> tuple[FileChange, ...]:
    """Return what a daemon that is not started anew has to read on the way."""
    return found.plan.stones if found.way.mode is RestartMode.SIGNAL else ()


def _step_on_stones(task: Task, found: View) -> None:
    """Have a daemon that reloads read what tells it of keys that are about to go. Raises ToolkitError."""
    if stones := _stones(found):
        apply.changes(found.place.host, stones, found.place.desired.config)
        _take_up(task, replace(found, plan=Plan(changes=stones)), None)


def _count(task: Task, found: View) -> None:
    """Note the restart that is to come, before there is anything to restart for.

    One that cannot be counted could come again and again, so then there is none; but
    to take us away is done once, and to start what is down silences nobody. Raises StepFailed.
    """
    if not found.reload_needed or not found.way.replaces:
        return
    try:
        task.budget.spend()
    except StepFailed as error:
        is_counted = found.job is Job.INSTALL and not found.way.is_revival(found.place)
        if is_counted and task.budget.most:
            raise
        LOGGER.warning("%s: this restart is not counted", error.message)


def _take_up(task: Task, found: View, baseline: Baseline | None) -> tuple[View, Health | None]:
    """Make the runtime take the plan's files up, and see that it did.

    Returns the view as it is then, and its health; None where it may not be told. Raises ToolkitError.
    """
    if not found.reload_needed:
        return found, _word_of(task, found, baseline)
    if found.way.mode is RestartMode.NONE:
        LOGGER.info("the runtime has not been told, as asked (restart mode none)")
        return found, None
    patience = task.patience()
    with task.tally.during("reload"):
        seconds = reload.perform(found.place, task.adapter, found.way, patience)
    task.tally.told(seconds, replaces=found.way.replaces)
    found = attest.as_generated(task, found)
    with task.tally.during("verify"):
        now = verify.confirmed(found.place, task.adapter, attest.expected(task, found, baseline), patience)
    LOGGER.info("the runtime took the change up within %.1f s", seconds)
    return found, now


def _word_of(task: Task, found: View, baseline: Baseline | None) -> Health | None:
    """See that a runtime which has nothing to take up is well with what is new. Raises NotReloaded.

    An earlier run may have told it, and been killed then: it has more time for that.
    """
    is_left_alone = task.mode is RestartMode.NONE or task.settings.flag("no_runtime_config")
    was_well = found.is_unsettled and baseline is not None and baseline.was_well
    if is_left_alone or not (was_well or is_asked(task, found)):
        return None
    patience = task.patience() if found.is_unsettled else Patience(_SOON, task.stop)
    expected = attest.expected(task, found, baseline)
    with task.tally.during("verify"):
        return verify.confirmed(found.place, task.adapter, expected, patience)


def _failed(task: Task, found: View, record: Record, error: Exception, *, told: bool) -> ToolkitError:
    """Take the change back and return what is to be told."""
    opened = record.open
    why = error.message if isinstance(error, ToolkitError) else f"{error!r}"
    LOGGER.debug("the change failed", exc_info=error)
    is_unread = isinstance(error, NotReloaded)
    others = apply.overwritten(found.place.host, found.plan.changes) if is_unread else ()
    if others:
        why = f"{', '.join(others)} was changed by somebody else before the runtime read it: {why}"
    if isinstance(error, NotReloaded) and task.stop.is_wished:
        why = f"interrupted by {task.stop.signal.name if task.stop.signal else 'a signal'}: {why}"
    if opened is not None and found.job is Job.REVERT and not opened.baseline.was_well:
        # There is nothing to go back to: without us is what was asked for.
        return error if isinstance(error, ToolkitError) else StepFailed(why)
    hint = error.hint if isinstance(error, ToolkitError) else "please report this"
    if opened is not None and _is_untouched(found, opened, record):
        begin.abandon(task, found.place, record, opened)
        if isinstance(error, NotReloaded) and not task.stop.is_wished:
            attest.note_vain(task, found)
        return StepFailed(f"{why}; no file was changed", hint=hint)
    failed = task.tally.phase
    undo.undo(task, found.place, record, why, told=told)
    if told and found.job is Job.INSTALL and not others and not task.stop.is_wished:
        with contextlib.suppress(StepFailed):  # then it is the budget alone that holds it up
            task.budget.note_failed(found.change)
    task.tally.phase = failed
    return RolledBack(f"{why}; everything was taken back, the node is as it was", hint=hint)


def _is_untouched(found: View, opened: Open, record: Record) -> bool:
    """Tell whether a transaction was about the runtime's word alone."""
    is_installed = found.version is None or found.version.is_installed
    return is_installed and not opened.files and opened.earlier.artifacts == record.artifacts


# --- after --------------------------------------------------------------------------------------


def _commit(task: Task, found: View, record: Record, now: Health | None) -> Record:
    """Let the change stay. What was kept for the way back goes.

    The node is as wanted: that this cannot be noted is told, and the next run notes it.
    """
    install_dir = found.place.install_dir
    is_told = reload.is_told(task.adapter, found.way) and not task.settings.flag("no_runtime_config")
    owed = None if is_told else record.owed_since
    settled = journal.settled(record, found.files_after, owed_since=owed)
    for attempt in (1, 2):
        try:
            record = journal.save(install_dir, settled)
            break
        except StepFailed as error:
            LOGGER.warning("%s (attempt %d of 2); the change itself is done", error.message, attempt)
    after = replace(found, record=record)
    sweep(task, after)
    if found.version is not None:
        former = found.record.open.earlier if found.record.open is not None else found.record
        versions.tidy(install_dir, found.version.digest, former.artifacts)
    if found.job is Job.INSTALL:
        # What is owed is not in use yet, whatever the runtime says.
        attest.say(task, after, (now or attest.word(task, after)) if owed is None else None)
    return record


def _as_the_runtime_says(task: Task, found: View) -> View:
    """See that the runtime has what its files say, and settle what a killed run left unsettled.

    Returns the view in which the runtime has to be told, where it does not have
    it. Raises NotReloaded where it is not well or was told so before, and RolledBack where that comes
    of a change that was never settled.
    """
    if task.settings.flag("no_runtime_config") or found.way.mode is RestartMode.NONE:
        return attest.say(task, found, attest.word(task, found))
    record = found.record
    unsettled = record.open is not None or record.owed_since is not None
    patience = task.patience() if unsettled else Patience(_SOON, task.stop)
    opened, adapter = record.open, task.adapter
    baseline = before.still(adapter, found.place, found.seen, opened.baseline) if opened is not None else None
    wanted = attest.expected(task, found, baseline)
    subject = verify.NOT_TAKEN_UP if unsettled else verify.NOT_AS_WANTED
    try:
        now = verify.confirmed(found.place, task.adapter, wanted, patience, subject=subject)
    except NotReloaded as error:
        readiness.remove(task.readiness)
        if record.open is not None:
            raise _failed(task, found, record, error, told=True) from error
        if health.once(found.place, task.adapter, timeout=attest.soon(task)).ailments:
            raise
        return attest.to_be_told(task, found, error)
    if unsettled:
        # The killed run may have been on its way to another version than this one.
        digest = found.version.digest if found.version is not None else record.artifacts
        _commit(task, found, replace(record, artifacts=digest), now)
        return found
    return attest.say(task, found, now)
