"""Uninstall (`revert`): restore the default handler, then the configuration, then remove files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.dataclass import dataclass, replace
from runtimes.edits import leaves
from runtimes.errors import ConfigError
from runtimes.model import ConfigPlan, Observation
from toolkit import redact
from toolkit.artifacts import versions
from toolkit.deadline import Cancellation, Deadline
from toolkit.errors import NodeConfigError, RolledBack, StepError
from toolkit.log import LOGGER
from toolkit.node.processes import RuntimeProcess
from toolkit.reconcile import (
    adopt,
    cdi,
    handler_verification,
    planning,
    preflight,
    readiness,
    transaction,
    verify,
)
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan, restart_method, same_runtime
from toolkit.reconcile.preflight import Blocker, Forecast
from toolkit.runtime import expectation, health, in_use, locate, observe, pending_reload, restart
from toolkit.runtime.locate import Target
from toolkit.settings.layout import RunDir
from toolkit.settings.options import RestartMode
from toolkit.settings.resolve import Settings
from toolkit.state import binary_cache, created_directories, journal, liveness, readiness_record
from toolkit.state.record import Operation, Record

SOON: Final = 5.0
"""Seconds that the runtime gets to become healthy before its handlers are checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The result of a revert: the plan, and whether there was nothing to revert (`was_empty`)."""

    target: Target
    plan: ConfigPlan
    was_empty: bool


def revert(settings: Settings, adapter: Adapter, stop: Cancellation | None = None) -> Removal:
    """Uninstall the toolkit and return what was changed. Raises ToolkitError.

    While containers still use the toolkit's handlers, only the default handler is restored and
    StepError is raised: a container whose handler or binary is removed can no longer be stopped
    cleanly.
    """
    settings = settings.with_runtime_config()  # handlers may be left from before the NRI plugin
    context = Context(
        settings=settings, adapter=adapter, stop=stop or Cancellation(), is_leaving=True
    )
    target = locate.target(settings, adapter, context.stop)
    # A container that a killed run left behind would keep the handlers in use.
    handler_verification.clear(context, target)
    plan = _plan(context, target)
    readiness.withdraw(settings)  # before anything changes: no pod is sent here any more
    if plan is None:
        _clean(context, target, ())
        LOGGER.info("nothing to revert: no changes are recorded for this node")
        return Removal(target=target, plan=ConfigPlan(), was_empty=True)
    is_forced, record = settings.force, plan.record
    if (
        plan.config_plan.is_noop
        and record.open is not None
        and record.open.failure
        and not is_forced
    ):
        # An unfinished rollback restored the files already. It remains to be verified by the
        # runtime.
        transaction.recover(context)
        record = adopt.restored_record(target, journal.load(target.install_dir))
        plan = _view(context, locate.again(target, adapter), record)
    transaction.sweep(context, plan)
    if using := _users(context, plan):
        _remove_default(context, plan)
        raise _in_use(using, "the handlers and their files are kept")
    if not is_forced:
        plan = _with_loaded_handlers(context, plan)
    if plan.reload_needed or plan.is_interrupted:
        record = transaction.carry_out(context, plan)
    _refuse_if_needed(context, plan)
    target = plan.target
    readiness_record.remove(context.readiness)
    # The specification is removed before the files: no container starts if its hook does not exist.
    record, kept_specification = cdi.take_back(
        target.host, target.install_dir, record, even_if_gone=is_forced
    )
    versions.remove(target.install_dir, Path(record.displaced) if record.displaced else None)
    if target.desired.delivery.provided_handlers and not context.settings.no_runtime_config:
        _restart_distribution(context, plan)
    created_directories.note(context.created_directories, record.directories)
    _clean(context, target, record.directories)
    kept = (*plan.config_plan.stayed, *([kept_specification] if kept_specification else ()))
    masked = tuple(map(redact.text, kept))
    return Removal(target=target, plan=replace(plan.config_plan, stayed=masked), was_empty=False)


def forecast(settings: Settings, adapter: Adapter) -> Forecast:
    """Return what a revert would do now, and why it would be refused; nothing is changed.

    The containers that a killed run left behind count as users of the handlers, since a revert
    removes them first. Raises ToolkitError.
    """
    settings = settings.with_runtime_config()
    context = Context(settings=settings, adapter=adapter, stop=Cancellation(), is_leaving=True)
    target = locate.target(settings, adapter, context.stop)
    plan = _plan(context, target)
    if plan is None:
        return Forecast(plan=_empty_plan(context, target))
    unknown = None
    if os.geteuid() == 0 and not settings.force:
        try:
            plan = _with_loaded_handlers(context, plan)
        except StepError as error:
            unknown = error
    found = preflight.forecast(context, planning.with_supervisor(context, plan))
    foreseen = _foreseen(context, found.plan, asks=found.is_complete, unknown=unknown)
    refused = [Blocker(each.message, each.hint) for each in foreseen]
    return replace(found, blocked=(*found.blocked, *refused))


def _foreseen(
    context: Context, plan: Plan, *, asks: bool, unknown: StepError | None
) -> Iterator[StepError]:
    """Yield the errors that a revert would end with, as far as they can be known before.

    Without `asks` the runtime is not asked who uses the handlers: an ordinary user may not do that.
    `unknown` is why it is not known whether the runtime has the handlers.
    """
    is_forced = context.settings.force
    try:
        if asks and (using := _using_before(context, plan)):
            yield _in_use(using, "only the default handler would be restored")
    except StepError as error:
        yield error
    if unknown is not None:
        yield unknown
        return
    if plan.record.toolkit_digest is None:
        return
    with suppress(ConfigError):
        after = plan.files_after
        left = {path: after[path] for path in _not_generated(plan)}
        if plan.record.displaced is None and (remains := _still_runs(context, plan, left)):
            yield remains
            return
        owned = {each.path: after.get(each.path) for each in plan.observation.owned}
        if not is_forced and (referring := _remaining_references(context, plan, owned)):
            yield referring
            return
    if not is_forced and (loaded := _handlers_still_loaded(context, plan)):
        yield loaded


def remove_handlers(context: Context) -> str:
    """Restore the runtime's files but keep the toolkit: the NRI plugin replaces the handlers.

    Returns who still uses the handlers; only the default is restored then. Raises ToolkitError.
    """
    context = replace(context, settings=context.settings.with_runtime_config(), is_leaving=True)
    transaction.recover(context)
    target = locate.target(context.settings, context.adapter, context.stop)
    record = journal.load(target.install_dir)
    if not record.owned and record.open is None:
        return ""
    _require_directories(target, record)
    handler_verification.clear(context, target)
    plan = _view(context, target, record)
    if using := _users(context, plan):
        _remove_default(context, plan)
        return in_use.describe(using, "the toolkit's handlers")
    plan = _with_loaded_handlers(context, plan)
    if plan.reload_needed or plan.is_interrupted:
        if problem := context.budget.retry_refusal(plan.change) or context.budget.restart_refusal():
            raise StepError(f"{problem}: nothing was changed")
        try:
            record = transaction.carry_out(context, plan)
        except RolledBack:
            context.budget.note_failed(plan.change)
            raise
        LOGGER.info("removed the toolkit's handlers: the NRI plugin adds the devices")
    journal.save(target.install_dir, replace(record, owned=(), location=()))
    return ""


def _plan(context: Context, target: Target) -> Plan | None:
    """Return the plan of the uninstall, None if there is nothing to revert. Raises ToolkitError."""
    record = adopt.restored_record(target, journal.load(target.install_dir))
    if record.is_empty and not adopt.are_named(target):
        return None
    same_runtime(record, target)
    is_forced = context.settings.force
    if not is_forced:
        _require_directories(target, record)
    plan = _view(context, target, record)
    if record.toolkit_digest is not None and not is_forced:
        adopt.refuse(target, context.adapter, plan.observation)
    return None if record.is_empty and not plan.adopted else plan


def _restart_distribution(context: Context, plan: Plan) -> None:
    """Restart a distribution that defined handlers for the removed files, so that it drops them.

    The host's own toolkit may still provide handlers of the same name, so their absence is not
    required. Raises StepError or ReloadError; the next revert repeats this step.
    """
    target = locate.supervised(locate.again(plan.target, context.adapter), context.adapter)
    state = (
        health.query(target, context.adapter, timeout=verify.soon(context))
        if target.process is not None
        else None
    )
    remaining = frozenset(target.desired.delivery.provided_handlers) & (
        (state and state.effective.handlers) or frozenset()
    )
    if not remaining:
        return
    method = restart_method(context, target, plan.record, revive=False)
    if method.mode is RestartMode.NONE or method.obstacle:
        LOGGER.warning(
            "handlers remain until the distribution is restarted: %s", ", ".join(sorted(remaining))
        )
        return
    with suppress(StepError):
        context.budget.spend()
    restart.save_launch(target, method)
    deadline = context.deadline()
    context.stats.note_reload(
        restart.perform(target, context.adapter, method, deadline), replaces=method.replaces
    )
    expected = expectation.Expected(
        desired=target.desired, ours=target.desired.names, present=frozenset(), absent=frozenset()
    )
    expectation.confirmed(target, context.adapter, expected, deadline)


def _clean(context: Context, target: Target, directories: tuple[str, ...]) -> None:
    """Remove the state record, temporary files of killed runs, and the created directories.

    Raises StepError if a directory cannot be removed.
    """
    readiness_record.remove(context.readiness)
    liveness.remove(RunDir.of(context.settings.pid_file).agent)
    binary_cache.forget(context.settings)
    context.budget.sweep()
    preflight.sweep(target.install_dir)
    journal.forget(target.install_dir)
    if remaining := created_directories.take_down(context.created_directories, directories):
        raise StepError(f"{', '.join(remaining)} cannot be removed", hint="run revert again")


def _require_directories(target: Target, record: Record) -> None:
    """Raise StepError if the directory of an owned file does not exist, as it may not be mounted.

    Otherwise the file would be treated as removed, and its original would be discarded.
    """
    for owned in (*record.owned, *(record.open.files if record.open else ())):
        directory = target.host.file(owned.path).parent
        while str(directory) in record.directories:
            directory = directory.parent  # An installation created it; it may be gone.
        if not directory.is_dir():
            raise StepError(
                f"{directory}, the directory of {owned.path}, was not found: nothing was changed",
                hint="mount it as during the installation, or use --force if it no longer exists",
            )


def _with_loaded_handlers(context: Context, plan: Plan) -> Plan:
    """Return the plan; `reload_pending` is set if the runtime still has handlers in no file.

    This happens when the files were restored by hand without a restart. Raises StepError if the
    runtime's handlers are unknown, or if it may not be restarted (`--restart-mode none`).
    """
    target, record = plan.target, plan.record
    may_have_handlers = record.owned or record.open is not None or adopt.is_lost(record)
    if plan.reload_needed or not may_have_handlers:
        return plan
    if target.process is None:
        # The change may be the reason why it stopped: see it running before the originals are
        # removed.
        return replace(
            plan,
            reload_pending=record.pending_reload is not None
            and context.mode is not RestartMode.NONE,
        )
    state = health.wait_healthy(target, context.adapter, Deadline(SOON, context.stop))
    if state.problems and state.effective.handlers is None:
        raise StepError(
            f"{'; '.join(state.problems)}: cannot check whether the runtime still has the toolkit's"
            " handlers, so their files are kept",
            hint="run revert again once the runtime is healthy, or use --force",
        )
    absent = verify.expected(context, plan, None).absent
    if not absent & ((state.effective.handlers or frozenset()) | {state.effective.default}):
        return plan
    if context.mode is RestartMode.NONE:
        if record.toolkit_digest is None:
            return plan  # The handlers run the node's own toolkit, which is not removed.
        raise _not_restarted(target.process)
    LOGGER.warning(
        "the runtime still has the toolkit's handlers, but its files no longer define them"
    )
    return replace(plan, reload_pending=True)


def _not_restarted(daemon: RuntimeProcess) -> StepError:
    return StepError(
        f"PID {daemon.pid} was not restarted and still has the toolkit's handlers, so their files"
        " are kept",
        hint="restart the runtime and run revert again, or use --force",
    )


def _refuse_if_needed(context: Context, plan: Plan) -> None:
    """Raise StepError if a container, the runtime or its config still needs the toolkit's files."""
    if plan.record.toolkit_digest is None:
        return  # Without an installed toolkit the handlers run the node's own, which stays.
    target = plan.target
    if plan.record.displaced is None:  # Another installer's toolkit comes back to the same place.
        _refuse_if_running(context, plan)
    if context.settings.force:
        return
    if using := _using(context, plan):
        raise _in_use(using, "they were started during the revert, so the files are kept")
    try:
        current = observe.read(target.host, tuple(owned.path for owned in plan.observation.owned))
    except NodeConfigError as error:
        raise StepError(
            f"{error.message}: the configuration was restored, but the toolkit's files are kept",
            hint="run revert again",
        ) from error
    problem = _remaining_references(context, plan, current) or _handlers_still_loaded(context, plan)
    if problem is not None:
        raise problem


def _remaining_references(
    context: Context, plan: Plan, current: Mapping[str, bytes | None]
) -> StepError | None:
    """Return the error for owned files that refer to the toolkit's files; None if none does.

    Comments do not count, nor do files that did so before the installation.
    """
    host = plan.target.host
    toolkit = f"{host.node(plan.target.install_dir)}/toolkit/"
    originals = {each.path: each.original for each in plan.observation.owned}
    naming = [
        str(host.local(path))
        for path, data in current.items()
        if _refers_to(context.adapter, path, data, toolkit)
        and not _refers_to(context.adapter, path, originals[path], toolkit)
    ]
    if not naming:
        return None
    return StepError(
        f"{', '.join(naming)} was modified and still runs the toolkit, so the toolkit's files"
        " are kept",
        hint="remove those handlers by hand and run revert again, or use --force",
    )


def _refers_to(adapter: Adapter, path: str, data: bytes | None, toolkit: str) -> bool:
    """Return whether keys or values of a file contain a path; if it is not parsable, its bytes."""
    if data is None or toolkit.encode() not in data:
        return False
    try:
        name = ascii(toolkit)[1:-1]  # as in what `ascii` makes of a list
        return any(name in ascii(leaf) for leaf in leaves(adapter.form.tree(data, path)))
    except ConfigError:
        return True


def _handlers_still_loaded(context: Context, plan: Plan) -> StepError | None:
    """Return the error for a runtime that keeps the handlers without a restart, or None."""
    is_loaded = restart.takes_effect(context.adapter, plan.restart_method)
    # A process that is older than the last write of an earlier run still has what was there before:
    # the handlers, if that write removed them, and none if it added them.
    is_older = pending_reload.is_pending(plan.target, plan.record, RestartMode.AUTO)
    has_handlers = is_older if plan.config_plan.is_noop else not is_older
    if plan.target.process is not None and not is_loaded and has_handlers:
        return _not_restarted(plan.target.process)
    return None


def _refuse_if_running(context: Context, plan: Plan) -> None:
    """Raise StepError if the runtime's files still have a toolkit handler, even with `--force`.

    As the default handler it would keep every container from starting. With `--force`, files that
    cannot be read are ignored.
    """
    try:
        current = observe.read(plan.target.host, _not_generated(plan))
        remains = _still_runs(context, plan, current)
    except (NodeConfigError, StepError, ConfigError) as error:
        LOGGER.debug("%s", error)
        return
    if remains is not None:
        raise remains


def _not_generated(plan: Plan) -> tuple[str, ...]:
    """Return the runtime's files that last.

    The root config of a distribution that makes the handlers itself loses them at its next start.
    """
    desired = plan.target.desired
    made = {desired.config} if desired.delivery.is_regenerated else set()
    return tuple(set(plan.observation.files) - made)


def _still_runs(
    context: Context, plan: Plan, current: Mapping[str, bytes | None]
) -> StepError | None:
    """Return the error for files that have a toolkit handler; None if there are none.

    Raises ConfigError for a file that cannot be read.
    """
    target = plan.target
    toolkit = f"{target.host.node(target.install_dir)}/toolkit"
    found = dict(planner.running(context.adapter, current, toolkit))
    for owned in plan.observation.owned:  # What was there before us stays.
        if owned.original is not None and current.get(owned.path) == owned.original:
            found.pop(owned.path, None)
    if not found:
        return None
    where = ", ".join(
        f"{target.host.local(p)} ({', '.join(sorted(n))})" for p, n in sorted(found.items())
    )
    return StepError(
        f"{where} still runs the toolkit, so the toolkit's files are kept",
        hint="remove those handlers by hand, also as the default, and run revert again",
    )


def _empty_plan(context: Context, target: Target) -> Plan:
    """Return the plan of a revert that has nothing to revert. The node's files are not read."""
    return Plan(
        target=target,
        record=Record(),
        observation=Observation(),
        config_plan=ConfigPlan(),
        version=None,
        source_problem=None,
        restart_method=restart_method(context, target, Record(), revive=True),
        reload_pending=False,
        operation=Operation.REVERT,
    )


def _view(context: Context, target: Target, record: Record) -> Plan:
    """Observe the node and return the plan that removes all owned keys. Raises ToolkitError."""
    opened = record.open
    if opened is not None:
        paths = tuple(each.path for each in opened.files)
        record = journal.without_unwritten(record, observe.read(target.host, paths))
    # The runtime may still have the handlers of a change that is being rolled back, even if no file
    # defines them any more.
    named = record.owned or (opened.files if opened is not None else ())
    is_forced = context.settings.force
    owned = journal.ownerships(target.install_dir, record.owned, even_if_gone=is_forced)
    try:
        observation = observe.observe(target, context.adapter, owned, whole=is_forced)
    except NodeConfigError as error:
        if not _is_files_only(target, record):
            raise
        LOGGER.warning("%s: ignored, because the installation did not change it", error.message)
        observation = Observation()
    adopted = adopt.adopted(target, context.adapter, record, observation)
    observation = replace(observation, owned=(*observation.owned, *adopted))
    known = (*(each.edits for each in named), *(each.edits for each in adopted))
    target = replace(target, desired=planner.recorded(target.desired, known))
    return Plan(
        target=target,
        record=record,
        observation=observation,
        config_plan=planning.compute_removal(target, context.adapter, observation),
        version=None,
        source_problem=None,
        restart_method=restart_method(context, target, record, revive=True),
        reload_pending=pending_reload.is_pending(target, record, context.mode),
        operation=Operation.REVERT,
        adopted=adopted,
    )


def _is_files_only(target: Target, record: Record) -> bool:
    """Return whether an installation changed no file of the runtime, and none names the toolkit.

    A file that cannot be read cannot be checked.
    """
    if record.owned or record.open is not None or adopt.is_lost(record):
        return False
    try:
        return not adopt.are_named(target)
    except NodeConfigError:
        return True


def _remove_default(context: Context, plan: Plan) -> None:
    """Restore the default handler and keep the others, so that new containers do not use them."""
    target = replace(plan.target, desired=replace(plan.target.desired, default=None))
    config_plan = planning.compute(target, context.adapter, plan.observation)
    if not config_plan.is_noop:
        transaction.carry_out(
            context,
            replace(plan, target=target, config_plan=config_plan, operation=Operation.INSTALL),
        )


def _using(context: Context, plan: Plan) -> tuple[str, ...]:
    """Return the containers using the toolkit's handlers; none with `--force`. Raises StepError."""
    if context.settings.force:
        return ()
    return in_use.using(plan.target, context.adapter, plan.observation, context.deadline())


def _users(context: Context, plan: Plan) -> tuple[str, ...]:
    """Return who uses the handlers before any change, without what a killed run left behind.

    Raises as `_using_before` does.
    """
    using = _using_before(context, plan)
    if using:
        # A runtime that was just started may not have answered when those were to be removed; now
        # it has.
        handler_verification.clear(context, plan.target)
        using = _using_before(context, plan)
    return using


def _using_before(context: Context, plan: Plan) -> tuple[str, ...]:
    """Return the same before any change. Raises StepError, or Interrupted if asked to stop."""
    if context.settings.force:
        return ()
    return in_use.using_before(
        plan.target, context.adapter, plan.observation, context.deadline(), context.stop
    )


def _in_use(using: tuple[str, ...], what: str) -> StepError:
    users = in_use.describe(using, "the toolkit's handlers")
    return StepError(
        f"{users}; {what}",
        hint=(
            "stop them and run revert again, or use --force (they can then no longer be stopped"
            " cleanly)"
        ),
    )
