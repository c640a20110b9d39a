"""Roll back a failed change: restore the files, make the runtime load them, verify that it did.

Everything needed for a rollback is saved in the open transaction, so the next run can continue a
rollback that was killed. The saved files are removed only after the runtime is verified.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from runtimes import planner
from runtimes.dataclass import replace
from runtimes.errors import ConfigError
from runtimes.model import Observation
from toolkit import log
from toolkit.artifacts import versions
from toolkit.deadline import GRACE, Deadline
from toolkit.errors import NotRolledBack, ReloadError, StepError, ToolkitError
from toolkit.log import LOGGER
from toolkit.node import files
from toolkit.reconcile import apply, verify
from toolkit.reconcile.context import Context
from toolkit.runtime import expectation, locate, pending_reload, restart
from toolkit.runtime.locate import Target
from toolkit.runtime.restart import RestartMethod
from toolkit.settings.layout import InstallDir
from toolkit.settings.options import RestartMode
from toolkit.state import created_directories, journal
from toolkit.state.record import Record, Transaction

_LEAST: Final = 1.0
_LEFT_TO_YOU: Final = (
    "the runtime may have loaded the change and was not restarted with the old files"
    " (--restart-mode none): restart it, then run the same command again"
)


@log.under_way("rolling back the change")
def undo(context: Context, target: Target, record: Record, why: str, *, notified: bool) -> Record:
    """Roll back the open transaction of a record, which failed for the reason `why`.

    `notified` says that the runtime may have loaded the change. Returns the record from before the
    transaction. Raises NotRolledBack if the previous state could not be restored; everything that
    is needed is kept then, and the next run tries again.
    """
    transaction = record.open
    if transaction is None:
        return record
    LOGGER.warning("%s; rolling back the change", why)
    context.stats.phase, context.stats.rolled_back = "rollback", True
    try:
        current, deadline = _locate(context, target)
        is_restarted = current.process != target.process
        is_first = not transaction.failure
        transaction = replace(
            transaction,
            failure=transaction.failure or why,
            notified=transaction.notified or notified or is_restarted,
        )
        record = _save(target, replace(record, open=transaction))
        record, is_restored = restore_files(context, current, record, deadline)
        if transaction.files and not transaction.notified:
            current, transaction = _locate_again(context, current, transaction)
        if is_restored or is_first:
            record = _save(target, pending_reload.add(record, is_written=True))
        if target.desired.delivery.provided_handlers:
            # The distribution defines handlers for the toolkit that it finds when it is restarted.
            _restore_toolkit(target, record, transaction)
        if transaction.notified and (
            transaction.files or target.desired.delivery.provided_handlers
        ):
            _restore_runtime(context, current, transaction, record, deadline, is_first=is_first)
        if record.restarting and locate.again(current, context.adapter).process is not None:
            record = replace(record, restarting=False)
        digest = _restore_toolkit(target, record, transaction)
        transaction = replace(
            transaction, previous=replace(transaction.previous, toolkit_digest=digest)
        )
        return close(context, target, record, transaction)
    except (ToolkitError, ConfigError, OSError) as error:
        raise _not_rolled_back(target, transaction, str(error)) from error


def _restore_runtime(
    context: Context,
    target: Target,
    transaction: Transaction,
    record: Record,
    deadline: Deadline,
    *,
    is_first: bool,
) -> None:
    """Make the runtime load the old files, or check that it did with `--restart-mode none`.

    `is_first` says that this is the first attempt to roll back. Raises ToolkitError.
    """
    baseline = verify.refreshed_baseline_of(context.adapter, target, record, transaction.baseline)
    transaction = replace(transaction, baseline=baseline)
    if context.mode is RestartMode.NONE:
        _check_runtime(context, target, transaction, record)
    else:
        _reload_runtime(context, target, transaction, record, deadline, is_first=is_first)


def _restore_toolkit(target: Target, record: Record, transaction: Transaction) -> str | None:
    """Switch back to the previous toolkit version and return its digest, None if there was none."""
    previous, failed = transaction.previous.toolkit_digest, record.toolkit_digest
    return versions.switch_back(target.install_dir, previous, failed, _path(record.displaced))


def _locate_again(
    context: Context, target: Target, transaction: Transaction
) -> tuple[Target, Transaction]:
    """Locate the runtime after its files were restored.

    A runtime that was started meanwhile may have loaded some of the changed files, so the
    transaction then counts as loaded.
    """
    current = locate.again(target, context.adapter)
    return current, replace(transaction, notified=current.process != target.process)


def close(context: Context, target: Target, record: Record, transaction: Transaction) -> Record:
    """Close a transaction: save the record from before it, or remove that of a first installation.

    The CDI specification is not part of the transaction. If one was generated, it stays recorded.
    """
    previous = transaction.previous
    has_specification = record.specification is not None
    previous = replace(
        previous,
        sequence=record.sequence,
        restarting=record.restarting,
        specification=record.specification,
        specification_source=record.specification_source,
        directories=record.directories if has_specification else previous.directories,
    )
    created = [path for path in record.directories if path not in previous.directories]
    with contextlib.suppress(StepError):  # If the run is killed now, an empty directory may remain.
        created_directories.note(context.created_directories, created)
    if previous.is_empty:
        journal.forget(target.install_dir)
    else:
        previous = journal.save(target.install_dir, previous)
        journal.prune(target.install_dir, previous)
    created_directories.take_down(context.created_directories, created)
    return previous


def _save(target: Target, record: Record) -> Record:
    """Save the rollback's progress. A full disk only causes a warning: the rollback continues."""
    try:
        return journal.save(target.install_dir, record)
    except ToolkitError as error:
        LOGGER.warning("%s", error.message)
        return record


def restore_files(
    context: Context, target: Target, record: Record, deadline: Deadline
) -> tuple[Record, bool]:
    """Restore the files of the open transaction.

    Returns the record, and whether a file was restored by this run or by one that was killed. The
    pending reload is saved before the files are written; otherwise a run that is killed after the
    write would leave a runtime that never loads the old files. Raises ToolkitError or ConfigError.
    """
    transaction = record.open
    assert transaction is not None  # noqa: S101  # Only an open transaction is rolled back.
    root_config = target.desired.config
    apply.sweep(target.host, (), root_config, owned=record.owned, open_files=transaction.files)
    current = {each.path: _bytes(target, each.path) for each in transaction.files}
    owned = journal.ownerships(target.install_dir, transaction.files)
    plan = planner.removal(context.adapter, Observation(files=current, owned=owned))
    if transaction.notified and plan.reset_contents and _reloads_in_place(context, target):
        for reset in plan.reset_contents:
            record = journal.with_content(record, reset.path, reset.after or b"")
        record = _save(target, record)
        apply.changes(target.host, plan.reset_contents, root_config)
        _reload(context, target, None, deadline, is_first=True)  # A reload in place is not counted.
    if plan.changes:
        record = _save(target, pending_reload.add(record, is_written=False))
    apply.changes(target.host, plan.changes, root_config, give_back=transaction.files)
    for name in plan.stayed:
        from toolkit import redact  # noqa: PLC0415  # rarely needed

        LOGGER.warning("kept, because it was modified meanwhile: %s", redact.text(name))
    return record, pending_reload.is_unwritten(record)


def _reloads_in_place(context: Context, target: Target) -> bool:
    """Return whether the runtime reloads in the same process, which keeps removed keys."""
    restart_method = restart.restart_method(
        target, context.adapter, context.mode, target.supervisor
    )
    return (
        restart_method.mode is RestartMode.SIGNAL
        and not restart_method.replaces
        and not restart_method.obstacle
    )


def _bytes(target: Target, path: str) -> bytes | None:
    snapshot = files.read(target.host.file(path))
    return snapshot.data if snapshot else None


def _reload_runtime(
    context: Context,
    target: Target,
    transaction: Transaction,
    record: Record,
    deadline: Deadline,
    *,
    is_first: bool,
) -> None:
    """Make the runtime load the old files if it has not, and verify it if it was healthy before.

    Raises StepError or ReloadError if it was healthy before and is not now.
    """
    try:
        if target.process is None or pending_reload.is_pending(target, record, context.mode):
            _reload(context, target, record.unit, deadline, is_first=is_first)
    except StepError as error:
        if transaction.baseline.was_healthy:
            raise
        LOGGER.warning("%s; the runtime was unhealthy before the change as well", error.message)
    if transaction.baseline.was_healthy:
        expectation.confirmed(
            target, context.adapter, _previous_state(context, target, transaction), deadline
        )
    restart.confirm_dependents(target, transaction.baseline.dependents, deadline)


def _check_runtime(
    context: Context, target: Target, transaction: Transaction, record: Record
) -> None:
    """Check that a runtime which must not be restarted has loaded the old files by itself.

    Raises StepError if it has not, or if that is unknown.
    """
    if target.process is None and context.is_leaving:
        LOGGER.warning("%s; it loads the old files when it starts", target.no_process)
        return
    if target.process is None:
        raise StepError(_LEFT_TO_YOU)
    is_older = pending_reload.is_pending(target, record, RestartMode.AUTO)
    baseline = transaction.baseline
    if not baseline.was_healthy and not is_older:
        return
    expected = _previous_state(context, target, transaction)
    try:
        state = expectation.confirmed(target, context.adapter, expected, Deadline(0))
    except ReloadError as error:
        raise StepError(f"{_LEFT_TO_YOU} ({error.message})") from error
    known, known_before = state.effective.handlers, baseline.has.handlers
    in_files = baseline.files.handlers or frozenset()
    # A process that is older than the restored files may have loaded the change. It has not if it
    # reports its handlers and none of them is new.
    if is_older and (known is None or known_before is None or known - known_before - in_files):
        raise StepError(_LEFT_TO_YOU)


def _previous_state(
    context: Context, target: Target, transaction: Transaction
) -> expectation.Expected:
    """Return the state of the runtime that the rollback has to reach: the one before the change."""
    handlers, baseline = target.desired.names, transaction.baseline
    loaded, in_files = baseline.has.handlers, baseline.files.handlers
    defined = _defined(context, target, transaction) if in_files is None else in_files
    # A handler that the runtime still had, but that was removed from the files before the change,
    # is gone once the files are loaded.
    remaining = (loaded or frozenset()) & defined
    is_unknown = loaded is None and in_files is None
    return expectation.Expected(
        desired=target.desired,
        ours=handlers - remaining,
        present=handlers & remaining,
        absent=frozenset() if is_unknown else handlers.difference(loaded or (), in_files or ()),
        baseline=baseline,
    )


def _defined(context: Context, target: Target, transaction: Transaction) -> frozenset[str]:
    """Return the toolkit's handlers that the files define, if the binary cannot be asked."""
    desired = target.desired
    paths = {desired.config, desired.drop_in, *(each.path for each in transaction.files)} - {""}
    return context.adapter.defined(desired, {path: _bytes(target, path) for path in paths})


def _reload(
    context: Context, target: Target, unit: str | None, deadline: Deadline, *, is_first: bool
) -> None:
    """Restart or reload the runtime, or start it if stopped. Raises StepError or ReloadError."""
    target = locate.supervised(target, context.adapter, deadline.at_least(_LEAST))
    restart_method = _restart_method(context, target, unit, deadline)
    if restart_method.replaces and (restart_method.unit is not None or target.process is not None):
        _count(context, is_first=is_first or target.process is None)
    try:
        restart.save_launch(target, restart_method)
    except StepError as error:
        # The runtime has the failed change until it is restarted, which is worse.
        LOGGER.warning("%s; if this run is killed, the runtime may stay down", error.message)
    context.stats.note_reload(
        restart.perform(target, context.adapter, restart_method, deadline),
        replaces=restart_method.replaces,
    )


def _count(context: Context, *, is_first: bool) -> None:
    """Count a restart that is about to happen in the restart budget.

    The first restart of a rollback, and the start of a stopped runtime, are allowed even if the
    budget is used up, because the runtime has the failed change until then. Later attempts are not,
    or runs that are started again and again would restart it forever. Raises StepError if the
    budget is used up or the counter cannot be written.
    """
    is_free = is_first or not context.budget.most
    if not is_free and (refusal := context.budget.restart_refusal()):
        raise StepError(refusal)
    try:
        context.budget.spend()
    except StepError as error:
        if not is_free:
            raise
        LOGGER.warning("%s; this restart is not counted in the restart budget", error.message)


def _restart_method(
    context: Context, target: Target, unit: str | None, deadline: Deadline
) -> RestartMethod:
    """Return how to make the runtime load the old files; a stopped one is started or waited for."""
    method = restart.restart_method(target, context.adapter, context.mode, target.supervisor)
    if not method.obstacle:
        return method
    if target.process is not None and method.warning:
        raise StepError(method.obstacle)
    may_start = context.mode is not RestartMode.SIGNAL
    start = restart.start_stopped(target, unit, deadline, even_if_stopped=may_start)
    return start or RestartMethod(mode=RestartMode.SIGNAL, unit=None, replaces=True)


def _locate(context: Context, target: Target) -> tuple[Target, Deadline]:
    """Locate the process that owns the socket now, and return the deadline of the whole rollback.

    The process is located only once, because a runtime that hangs costs seconds each time. After a
    request to stop, that time counts against the deadline.
    """
    if context.stop.is_requested:
        deadline = deadline_of(context)
        return locate.again(target, context.adapter, timeout=GRACE / 2), deadline
    current = locate.again(target, context.adapter)
    return current, deadline_of(context)


def deadline_of(context: Context) -> Deadline:
    """Return a rollback's deadline; shorter after a request to stop, before the pod is killed."""
    seconds = context.settings.reload_timeout
    return (
        Deadline(min(seconds, GRACE))
        if context.stop.is_requested
        else Deadline(seconds, context.stop)
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _not_rolled_back(target: Target, transaction: Transaction, what: str) -> NotRolledBack:
    """Return the error of a failed rollback; it names the saved original of every file."""
    saved = InstallDir(target.install_dir).state
    originals = ", ".join(
        (
            f"{target.host.local(each.path)} was saved as {saved / 'originals' / each.original}"
            if each.original
            else f"{target.host.local(each.path)} did not exist"
        )
        for each in transaction.files
    )
    where = f" ({originals})" if originals else ""
    return NotRolledBack(
        f"{transaction.failure}; rollback failed: {what}; everything needed is kept in"
        f" {saved}{where}",
        hint=(
            f"make sure that the runtime can start ({target.log_hint}), then run the same command"
            " again to continue the rollback; or restore these files by hand"
        ),
    )
