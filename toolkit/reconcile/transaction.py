"""Run a plan as one transaction: begin, install, apply, reload, verify, commit or roll back.

Install, upgrade, repair and uninstall all go through `carry_out`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.dataclass import replace
from runtimes.errors import ConfigError
from runtimes.model import ConfigPlan, FileChange, Ownership
from toolkit.artifacts import versions
from toolkit.deadline import Cancellation, Deadline
from toolkit.errors import ReloadError, RolledBack, StepError, ToolkitError
from toolkit.log import LOGGER
from toolkit.node import command, files
from toolkit.reconcile import adopt, apply, cdi, preflight, readiness, rollback, verify
from toolkit.reconcile.context import Context, RunStats
from toolkit.reconcile.planning import (
    Plan,
    make_plan,
    must_be_healthy,
    same_runtime,
    with_supervisor,
)
from toolkit.runtime import expectation, health, locate, observe, pending_reload, restart
from toolkit.runtime.health import Health
from toolkit.runtime.locate import Target
from toolkit.settings.layout import InstallDir
from toolkit.settings.options import RestartMode
from toolkit.settings.resolve import Settings
from toolkit.state import created_directories, journal, readiness_record
from toolkit.state.record import Baseline, Operation, Record, Transaction

_LOG_TIMEOUT: Final = 5.0

# --- beginning a transaction ----------------------------------------------------------------------


def begin(context: Context, plan: Plan, baseline: Baseline) -> Record:
    """Save the original files and the open transaction to disk before anything is changed.

    Returns the record with the open transaction. Raises ToolkitError, with nothing changed.
    """
    target, install_dir = plan.target, plan.target.install_dir
    snapshots = apply.check(target.host, plan.config_plan.changes)
    readiness_record.remove(context.readiness)
    missing = [
        *map(str, files.missing_directories(install_dir)),
        *map(str, apply.missing_directories(target.host, plan.config_plan.changes)),
    ]
    created_directories.note(context.created_directories, missing)
    directories = {
        *plan.record.directories,
        *created_directories.read(context.created_directories),
        *missing,
    }
    transaction = plan.record.open
    if transaction is None or (
        plan.operation is Operation.REVERT and transaction.operation is not Operation.REVERT
    ):
        # A revert restores the state from before all installations, so it replaces an open one.
        previous = replace(plan.record, open=None)
        transaction = Transaction(operation=plan.operation, previous=previous, baseline=baseline)
    transaction = replace(transaction, failure="")
    record = replace(plan.record, directories=tuple(sorted(directories)), open=transaction)
    try:
        # Saving the originals creates the first of these directories, so the record is written
        # before.
        record = journal.save(install_dir, record)
        created_directories.clear(context.created_directories)
        record = _adopting(target, record, plan.adopted)
        for change in plan.config_plan.changes:
            local, snapshot = target.host.local(change.path), snapshots[change.path]
            previous_files = journal.remember(
                install_dir,
                transaction.files,
                change,
                local=local,
                snapshot=snapshot,
                without_us=change.before,
            )
            transaction = replace(transaction, files=previous_files)
            if plan.operation is Operation.INSTALL:
                owned = journal.remember(
                    install_dir,
                    record.owned,
                    change,
                    local=local,
                    snapshot=snapshot,
                    without_us=_without_us(
                        context.adapter, plan.observation.ownership(change.path), change
                    ),
                )
                record = replace(record, owned=owned)
            elif change.reset_content is not None:
                record = journal.with_content(record, change.path, change.reset_content)
        version = plan.version
        displaced = record.displaced
        if version is not None and not version.is_installed:
            displaced = displaced or versions.foreign_directory(install_dir)
        return journal.save(
            install_dir,
            replace(
                record,
                runtime=target.desired.runtime,
                unit=target.process.unit if target.process is not None else record.unit,
                location=(
                    record.location
                    if target.process is None
                    else locate.location(context.settings, target)
                ),
                toolkit_digest=version.digest if version is not None else record.toolkit_digest,
                displaced=displaced,
                open=transaction,
            ),
        )
    except ToolkitError:
        if plan.record.open is None:
            abandon(context, target, replace(record, open=transaction), transaction)
        raise


def abandon(context: Context, target: Target, record: Record, transaction: Transaction) -> None:
    """Close a transaction that changed nothing. If that fails, the next run closes it."""
    try:
        rollback.close(context, target, record, transaction)
    except (ToolkitError, OSError) as error:
        LOGGER.debug("%s", error)


def _adopting(target: Target, record: Record, adopted: tuple[Ownership, ...]) -> Record:
    """Return the record with the adopted files; their content without our keys is saved first."""
    owned = list(record.owned)
    for each in adopted:
        local = target.host.local(each.path)
        snapshot = files.read(target.host.target(local))
        owned.append(journal.adopt(target.install_dir, each, local=local, snapshot=snapshot))
    for line in adopt.notes(target, adopted):
        LOGGER.warning("%s", line)
    return replace(record, owned=tuple(owned))


def _without_us(adapter: Adapter, owned: Ownership | None, change: FileChange) -> bytes | None:
    """Return a file's content without our keys. Raises NodeConfigError if it cannot be parsed."""
    if change.discards:
        return None
    if owned is None:
        return change.before
    try:
        return planner.without_us(adapter, owned, change.before)[0]
    except ConfigError as error:
        raise observe.not_understood(error) from error


# --- entry points ---------------------------------------------------------------------------------

SOON: Final = 5.0
"""Seconds that a runtime which has nothing to load gets to become healthy."""


def converge(
    settings: Settings,
    adapter: Adapter,
    stop: Cancellation | None = None,
    *,
    tally: RunStats | None = None,
    announce: Callable[[Plan], None] | None = None,
    plugin: Sequence[int] | None = None,
) -> Plan:
    """Bring the node in sync with the settings and return the plan that was applied.

    `announce` is called with the plan before it is applied; it is not called if there is nothing to
    do. `plugin` as in `Context`. Raises ToolkitError.
    """
    stop, tally = stop or Cancellation(), tally or RunStats()
    context = Context(settings=settings, adapter=adapter, stop=stop, stats=tally, plugin=plugin)
    recover(context)
    plan = make_plan(context)
    readiness.refuse(context, plan)
    plan.target.answers.keep()
    sweep(context, plan)
    check_runtime = _confirm_in_place if plan.is_in_place else verify.with_missing_handlers
    with context.stats.during("health"):
        plan = check_runtime(context, plan)
    if plan.is_noop:
        LOGGER.log(
            logging.DEBUG if announce else logging.INFO, "nothing to do: the node is in sync"
        )
        return plan
    if announce is not None:
        announce(plan)
    for note in plan.target.notes:
        LOGGER.info("%s", note)
    for warning in plan.config_plan.warnings:
        LOGGER.warning("%s", warning)
    if not plan.is_in_place:
        carry_out(context, plan)
    cdi.update(context, plan)
    LOGGER.info("done: %s", context.stats.words())
    return plan


def carry_out(context: Context, plan: Plan) -> Record:
    """Apply a plan completely or not at all, and return the new record.

    The originals are saved before anything is changed; the toolkit's files are installed before
    the runtime loads handlers that run them; the change is committed only after the runtime
    confirmed it. Raises StepError or Interrupted before anything was changed, RolledBack or
    NotRolledBack afterwards.
    """
    during = context.stats.during
    plan = with_supervisor(context, plan)
    # Before anything else: a container whose handler is removed may not be removable any more.
    _clear_containers(context, plan.target)
    with during("preflight"):
        baseline = preflight.check(context, plan)
    _load_modules()
    with during("begin"):
        record = begin(context, plan, baseline)
    # Whether the runtime may have loaded the change.
    notified = plan.is_interrupted and plan.config_plan.is_noop
    try:
        if record.open is not None and record.open.baseline is not baseline:
            baseline = verify.refreshed_baseline(
                context.adapter, plan.target, plan.observation, record.open.baseline
            )
        with during("install"):
            _install(plan)
        record = _save_pending(plan, record, written=False)
        _count(context, plan)
        restart.save_launch(plan.target, plan.restart_method)
        notified = notified or bool(_reset_changes(plan))
        _load_reset_contents(context, plan)
        with during("apply"):
            originals = plan.record.owned if plan.operation is Operation.REVERT else ()
            apply.changes(
                plan.target.host,
                plan.config_plan.changes,
                plan.target.desired.config,
                give_back=originals,
            )
        record = _save_pending(plan, record, written=True)
        notified = notified or plan.reload_needed
        plan, state = _reload(context, plan, baseline)
        state, verified = _verify_handlers(context, plan, state)
    except Exception as error:
        raise _failed(context, plan, record, error, notified=notified) from error
    with during("commit"):
        return commit(context, plan, record, state, verified)


def _load_modules() -> None:
    """Load what may be needed once something was changed.

    A module that cannot be loaded then (its package is being upgraded, no descriptor is left) would
    end the rollback.
    """
    import ctypes  # noqa: F401, PLC0415
    import shutil  # noqa: F401, PLC0415

    from toolkit import redact  # noqa: F401, PLC0415
    from toolkit.reconcile import handler_verification  # noqa: F401, PLC0415
    from toolkit.runtime.supervision import launch, launch_file, unit_log  # noqa: F401, PLC0415

    command.load()


def _clear_containers(context: Context, target: Target) -> None:
    """Remove the containers that a killed run may have left behind, if there is a runtime."""
    if target.process is not None:
        from toolkit.reconcile import handler_verification  # noqa: PLC0415  # slow; for a change only

        handler_verification.clear(context, target)


# --- cleaning up after killed runs --------------------------------------------------------------


def recover(context: Context) -> None:
    """Continue a rollback that an earlier run did not finish. Raises NotRolledBack, UsageProblem.

    A run that was killed before it failed needs no recovery: this run computes the same plan again.
    """
    install_dir = Path(context.settings.toolkit_install_dir).absolute()
    record = journal.load(install_dir)
    if record.open is None or not record.open.failure:
        return
    target = locate.target(context.settings, context.adapter, context.stop)
    same_runtime(record, target)
    _load_modules()
    _clear_containers(context, target)
    for owned in record.open.files:
        target = replace(
            target, host=target.host.mapped(str(Path(owned.path).parent), Path(owned.local).parent)
        )
    rollback.undo(context, target, record, record.open.failure, notified=True)


def sweep(context: Context, plan: Plan) -> None:
    """Remove the temporary files of killed runs beside the runtime's files and the toolkit."""
    target = plan.target
    paths, owned = {target.desired.config, target.desired.drop_in} - {""}, plan.record.owned
    open_files = plan.record.open.files if plan.record.open is not None else ()
    apply.sweep(
        target.host, sorted(paths), target.desired.config, owned=owned, open_files=open_files
    )
    if target.process is not None:
        restart.forget_launch(target)
    preflight.sweep(target.install_dir)
    journal.sweep(target.install_dir)
    if not plan.record.is_empty:
        journal.prune(target.install_dir, plan.record)
        created_directories.clear(context.created_directories)


# --- the steps ----------------------------------------------------------------------------------


def _install(plan: Plan) -> None:
    """Install the toolkit version of the plan if it is not installed yet. Raises StepError."""
    if plan.version is not None and not plan.version.is_installed:
        like = plan.config_plan.low_level[0] if plan.config_plan.low_level else ""
        versions.install(plan.version, plan.target.install_dir, plan.target.host, like=like)
        LOGGER.info("installed the toolkit at %s", InstallDir(plan.target.install_dir).toolkit)


def _save_pending(plan: Plan, record: Record, *, written: bool) -> Record:
    """Save that the runtime has to load the change, so the next run knows it if this one is killed.

    `written` says whether the files are written already. Before that no daemon can have loaded
    them.
    """
    if not plan.reload_needed:
        return record
    ends = (
        written
        and plan.restart_method.replaces
        and plan.restart_method.mode is not RestartMode.NONE
    )
    pending = pending_reload.add(record, is_written=written, by=plan.target.process, ends=ends)
    return journal.save(plan.target.install_dir, pending)


def _reset_changes(plan: Plan) -> tuple[FileChange, ...]:
    """Return the changes that a daemon reloading in place must load first, to drop removed keys."""
    return plan.config_plan.reset_contents if plan.restart_method.mode is RestartMode.SIGNAL else ()


def _load_reset_contents(context: Context, plan: Plan) -> None:
    """Make a daemon that reloads in place drop the keys that are about to be removed.

    Such a daemon keeps the value of a key that disappears from its file, so the key is first set to
    a neutral value and loaded. Raises ToolkitError.
    """
    if resets := _reset_changes(plan):
        apply.changes(plan.target.host, resets, plan.target.desired.config)
        _reload(context, replace(plan, config_plan=ConfigPlan(changes=resets)), None)


def _count(context: Context, plan: Plan) -> None:
    """Count the coming restart in the restart budget, before any file is written.

    Raises StepError if the counter cannot be written: uncounted restarts could repeat forever. An
    uninstall and the start of a stopped runtime go on with a warning, because neither is repeated
    by a loop of pods and the latter interrupts nothing.
    """
    if not plan.reload_needed or not plan.restart_method.replaces:
        return
    try:
        context.budget.spend()
    except StepError as error:
        is_counted = plan.operation is Operation.INSTALL and not plan.restart_method.is_revival(
            plan.target
        )
        if is_counted and context.budget.most:
            raise
        LOGGER.warning("%s; this restart is not counted in the restart budget", error.message)


def _reload(context: Context, plan: Plan, baseline: Baseline | None) -> tuple[Plan, Health | None]:
    """Make the runtime load the plan's files and verify that it did.

    Returns the plan, with the files as the distribution generated them, and the runtime's health,
    which is None if it was not restarted or reloaded (`--restart-mode none`). Raises ToolkitError.
    """
    if not plan.reload_needed:
        return plan, _confirm_unchanged(context, plan, baseline)
    if plan.restart_method.mode is RestartMode.NONE:
        LOGGER.info(
            "the runtime was not restarted (--restart-mode none): restart it to load the change"
        )
        return plan, None
    deadline = context.deadline()
    with context.stats.during("reload"):
        seconds = restart.perform(plan.target, context.adapter, plan.restart_method, deadline)
    context.stats.note_reload(seconds, replaces=plan.restart_method.replaces)
    plan = verify.as_generated(context, plan)
    with context.stats.during("verify"):
        state = expectation.confirmed(
            plan.target, context.adapter, verify.expected(context, plan, baseline), deadline
        )
        restart.confirm_dependents(plan.target, _dependents(plan, baseline), deadline)
    LOGGER.info("the runtime loaded the change within %.1f s", seconds)
    return plan, state


def _dependents(plan: Plan, baseline: Baseline | None) -> tuple[str, ...]:
    """Return the units that ran before the change and depend on the runtime's."""
    recorded = baseline.dependents if baseline is not None else ()
    return tuple(sorted({*plan.restart_method.dependents, *recorded}))


def _confirm_unchanged(context: Context, plan: Plan, baseline: Baseline | None) -> Health | None:
    """Verify that a runtime which has nothing to load is healthy, and return its state.

    An earlier run may have restarted it and been killed; then it gets the whole reload timeout.
    Returns None if the runtime is not managed. Raises ReloadError.
    """
    is_left_alone = context.mode is RestartMode.NONE or context.settings.no_runtime_config
    was_healthy = plan.is_interrupted and baseline is not None and baseline.was_healthy
    if is_left_alone or not (was_healthy or must_be_healthy(context, plan)):
        return None
    deadline = context.deadline() if plan.is_interrupted else Deadline(SOON, context.stop)
    expected = verify.expected(context, plan, baseline)
    with context.stats.during("verify"):
        state = expectation.confirmed(plan.target, context.adapter, expected, deadline)
        if plan.is_interrupted:
            restart.confirm_dependents(plan.target, _dependents(plan, baseline), deadline)
        return state


def _verify_handlers(
    context: Context, plan: Plan, state: Health | None
) -> tuple[Health | None, dict[str, str] | None]:
    """Start a container through each handler once the runtime has loaded the plan's files.

    Returns the runtime's state, and the result for each handler; None for a runtime that has not
    loaded them (`--restart-mode none`, and CRI-O after SIGHUP), and for a revert. Raises StepError
    if a handler is at fault.
    """
    is_loaded = not plan.reload_needed or restart.takes_effect(context.adapter, plan.restart_method)
    if plan.operation is not Operation.INSTALL or not is_loaded:
        return state, None
    if state is None:
        state = verify.runtime_state(context, plan)
    if state is None:
        return None, None
    if not verify.handlers(context, plan):
        return state, {}
    from toolkit.reconcile import handler_verification  # noqa: PLC0415

    with context.stats.during("smoke_test"):
        return state, handler_verification.verified(context, plan, state)


def _failed(
    context: Context, plan: Plan, record: Record, error: Exception, *, notified: bool
) -> ToolkitError:
    """Roll the failed change back and return the error to raise.

    `notified` says that the runtime may have loaded the change. A change that touched no file is
    only closed. A failed uninstall of an unhealthy runtime is not rolled back.
    """
    transaction = record.open
    why = error.message if isinstance(error, ToolkitError) else f"{error!r}"
    LOGGER.debug("the change failed", exc_info=error)
    is_not_loaded = isinstance(error, ReloadError)
    overwritten = (
        apply.overwritten(plan.target.host, plan.config_plan.changes) if is_not_loaded else ()
    )
    if overwritten:
        why = f"{', '.join(overwritten)} was modified before the runtime loaded it: {why}"
    if isinstance(error, ReloadError) and context.stop.is_requested:
        why = (
            f"interrupted by {context.stop.signal.name if context.stop.signal else 'a signal'}:"
            f" {why}"
        )
    if (
        transaction is not None
        and plan.operation is Operation.REVERT
        and not transaction.baseline.was_healthy
    ):
        # Rolling back would restore an unhealthy runtime, and the uninstall was asked for.
        return error if isinstance(error, ToolkitError) else StepError(why)
    is_of_node = isinstance(error, ToolkitError | OSError)
    hint = getattr(error, "hint", "") if is_of_node else "please report this"
    if transaction is not None and _is_untouched(plan, transaction, record):
        abandon(context, plan.target, record, transaction)
        if isinstance(error, ReloadError) and not context.stop.is_requested:
            verify.record_ineffective_restart(context, plan)
        return StepError(f"{why}; no file was changed", hint=hint)
    failed_phase, failed_at = context.stats.phase, time.time()
    rollback.undo(context, plan.target, record, why, notified=notified)
    if (
        notified
        and plan.operation is Operation.INSTALL
        and not overwritten
        and not context.stop.is_requested
    ):
        with contextlib.suppress(StepError):  # The restart budget still limits the attempts.
            context.budget.note_failed(plan.change)
    context.stats.phase = failed_phase
    if notified and not context.stop.is_requested and (said := _log(context, plan, failed_at)):
        why = f"{why}; {said}"
    return RolledBack(
        f"{why}; the change was rolled back and the node is in its previous state", hint=hint
    )


def _log(context: Context, plan: Plan, failed_at: float) -> str:
    """Return what the log of the runtime's unit says about why it did not start, "" if nothing.

    Ask after the rollback, because the runtime is down until then. A distribution's unit has the
    lines of other programs as well, so its log is not quoted.
    """
    process = plan.target.process
    since = context.stats.began.get("reload")
    if (
        context.stats.phase != "reload"
        or since is None
        or process is None
        or process.unit is None
        or plan.target.desired.delivery.is_regenerated
    ):
        return ""
    from toolkit.runtime.supervision import unit_log  # noqa: PLC0415  # Only needed after a failure.

    said = unit_log.cause(
        plan.target.host,
        process.unit,
        since=since,
        until=failed_at,
        without=process.pid,
        timeout=_LOG_TIMEOUT,
    )
    return f"the log of {process.unit} says: {said}" if said else ""


def _is_untouched(plan: Plan, transaction: Transaction, record: Record) -> bool:
    """Return whether a transaction only restarted the runtime and changed no file or toolkit."""
    is_installed = plan.version is None or plan.version.is_installed
    is_same_toolkit = transaction.previous.toolkit_digest == record.toolkit_digest
    return is_installed and not transaction.files and is_same_toolkit


# --- committing ---------------------------------------------------------------------------------


def commit(
    context: Context,
    plan: Plan,
    record: Record,
    state: Health | None,
    verified: Mapping[str, str] | None,
) -> Record:
    """Close the transaction, remove what was saved for a rollback, and return the new record.

    The change is complete at this point. A record that cannot be saved is only logged; the next run
    saves it. `state` is the runtime's state, None if it has to be queried, and `verified` the
    result for each handler, None if it is not known.
    """
    install_dir = plan.target.install_dir
    is_loaded = (
        restart.takes_effect(context.adapter, plan.restart_method)
        and not context.settings.no_runtime_config
    )
    pending = None if is_loaded else record.pending_reload
    settled = journal.close_transaction(record, plan.files_after, pending=pending)
    for attempt in (1, 2):
        try:
            record = journal.save(install_dir, settled)
            break
        except StepError as error:
            LOGGER.warning(
                "%s (attempt %d of 2); the change itself is done", error.message, attempt
            )
    after = replace(plan, record=record)
    sweep(context, after)
    if plan.version is not None:
        previous = plan.record.open.previous if plan.record.open is not None else plan.record
        versions.remove_old(install_dir, plan.version.digest, previous.toolkit_digest)
    if plan.operation is Operation.INSTALL:
        # A change that the runtime still has to load is not in use yet.
        now = (state or verify.runtime_state(context, after)) if pending is None else None
        readiness.write_readiness(context, after, now, verified)
    return record


def _not_confirmed(context: Context, plan: Plan, error: StepError) -> Plan:
    """Return the plan with a reload for a healthy runtime that has not loaded its files (`error`).

    Raises `error` if the runtime is unhealthy.
    """
    if health.query(plan.target, context.adapter, timeout=verify.soon(context)).problems:
        raise error
    return verify.with_pending_reload(context, plan, error)


def _confirm_in_place(context: Context, plan: Plan) -> Plan:
    """Verify that the runtime has loaded its files, and commit what a killed run left open.

    Returns the plan; `reload_pending` is set if a healthy runtime has not loaded its files. Raises
    ReloadError if the runtime is unhealthy or if a restart with the same files did not help, and
    RolledBack if the runtime does not confirm a change that was never committed.
    """
    if context.settings.no_runtime_config or plan.restart_method.mode is RestartMode.NONE:
        return readiness.write_readiness(context, plan, verify.runtime_state(context, plan))
    record = plan.record
    is_uncommitted = record.open is not None or record.pending_reload is not None
    deadline = context.deadline() if is_uncommitted else Deadline(SOON, context.stop)
    transaction, adapter = record.open, context.adapter
    baseline = None
    if transaction is not None:
        baseline = verify.refreshed_baseline(
            adapter, plan.target, plan.observation, transaction.baseline
        )
    expected = verify.expected(context, plan, baseline)
    subject = expectation.NOT_TAKEN_UP if is_uncommitted else expectation.NOT_AS_WANTED
    verified = None
    try:
        state = expectation.confirmed(
            plan.target, context.adapter, expected, deadline, subject=subject
        )
        if baseline is not None:
            restart.confirm_dependents(plan.target, baseline.dependents, deadline)
        if transaction is not None:
            _, verified = _verify_handlers(context, plan, state)
    except StepError as error:
        readiness_record.remove(context.readiness)
        if transaction is not None:
            raise _failed(context, plan, record, error, notified=True) from error
        return _not_confirmed(context, plan, error)
    if is_uncommitted:
        # The killed run may have been installing another version than this one.
        digest = plan.version.digest if plan.version is not None else record.toolkit_digest
        commit(context, plan, replace(record, toolkit_digest=digest), state, verified)
        return plan
    return readiness.write_readiness(context, plan, state)
