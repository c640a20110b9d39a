"""The baseline and the expected state of the runtime, to verify a change and detect regressions.

A transaction may stay open for a long time, because its run was killed or its rollback failed.
A difference with another cause must not count as a regression.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Final

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.dataclass import replace
from runtimes.errors import ConfigError
from runtimes.model import Effective, Observation, fingerprint
from toolkit.deadline import Deadline, Timeout
from toolkit.errors import ReloadError, StepError, ToolkitError
from toolkit.log import LOGGER
from toolkit.node import procfs
from toolkit.node.processes import RuntimeProcess
from toolkit.reconcile import planning
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan, must_be_healthy
from toolkit.runtime import health, locate, observe
from toolkit.runtime.expectation import Expected
from toolkit.runtime.health import Health
from toolkit.runtime.locate import Target
from toolkit.runtime.pending_reload import is_pending
from toolkit.settings.options import RestartMode
from toolkit.state import binary_cache, journal
from toolkit.state.record import UNTOLD, Baseline, Operation, Record

_SOON: Final = 5.0
"""Seconds that a query to a runtime which has nothing to load may take."""
_VAIN: Final = "run again after the runtime was restarted or its files were changed"
_OWN: Final = (
    "the host may have its own toolkit, which is found first: use --no-runtime-config to keep that"
)
_LEAST: Final = 1.0


# --- the baseline ---------------------------------------------------------------------------------


def baseline_of(adapter: Adapter, plan: Plan, now: Health | None) -> Baseline:
    """Return the baseline of a change.

    `now` is the runtime's state before the change, None if it was not queried because the change
    does not affect it.
    """
    target, transaction = plan.target, plan.record.open
    in_files = effective(adapter, target, plan.observation)
    if in_files == UNTOLD and transaction is not None:
        # The files cannot be evaluated. The best substitute is what the runtime reported before the
        # open transaction; what it reports now may include changes of that transaction.
        in_files = transaction.baseline.has
    baseline = Baseline(
        files=in_files,
        was_healthy=False,
        identity=_identity(adapter, target, plan.observation),
        boot=procfs.boot_id(),
        dependents=plan.restart_method.dependents if plan.reload_needed else (),
    )
    if now is None:
        return baseline
    return replace(
        baseline,
        has=now.effective,
        was_healthy=not now.problems,
        supports_cri=now.supports_cri,
        has_network=now.supports_cri and not now.network,
    )


def refreshed_baseline(
    adapter: Adapter, target: Target, observation: Observation, baseline: Baseline
) -> Baseline:
    """Return the part of a baseline that is still valid for the node as it is now.

    If others changed the runtime's files or its binary since the baseline was taken, the current
    files say what the runtime has to have. After a reboot, the baseline no longer requires the
    network to be ready, because it may come up later than this program.
    """
    if not baseline.identity:
        return baseline  # It was saved by an older version, which recorded no identity.
    if baseline.boot != procfs.boot_id():
        baseline = replace(baseline, has_network=False, dependents=())
    if baseline.identity == _identity(adapter, target, observation):
        return baseline
    LOGGER.info(
        "the runtime's files or binary changed since the baseline was taken: using the current"
        " files"
    )
    return replace(baseline, has=UNTOLD, files=effective(adapter, target, observation))


def refreshed_baseline_of(
    adapter: Adapter, target: Target, record: Record, baseline: Baseline
) -> Baseline:
    """Return the same, observing the node first; handlers are unknown if it cannot be observed."""
    try:
        owned = journal.ownerships(target.install_dir, record.owned)
        return refreshed_baseline(
            adapter, target, observe.observe(target, adapter, owned), baseline
        )
    except ToolkitError as error:
        LOGGER.debug("%s", error.message)
        return replace(baseline, has=UNTOLD, files=UNTOLD)


def effective(adapter: Adapter, target: Target, observation: Observation) -> Effective:
    """Return the effective configuration of the observed files, UNTOLD if they are not valid."""
    try:
        return adapter.effective(target.desired, observation)
    except ConfigError:
        return UNTOLD  # The configuration is invalid. A revert still restores what it can.


def _identity(adapter: Adapter, target: Target, observation: Observation) -> str:
    """Return an identifier of the runtime's binary and of its files without our keys."""
    owned = {each.path: each for each in observation.owned}
    files = {}
    for path, data in sorted(observation.files.items()):
        if path in target.desired.generated:
            continue  # The distribution regenerates this file at every start.
        try:
            files[path] = fingerprint(
                planner.without_us(adapter, owned[path], data)[0] if path in owned else data
            )
        except (ConfigError, StepError):
            files[path] = fingerprint(data)
    binary = binary_cache.identity(target.host, target.binary)
    return hashlib.sha256(json.dumps([binary, files]).encode()).hexdigest()


# --- the expected state ---------------------------------------------------------------------------


def expected(context: Context, plan: Plan, baseline: Baseline | None) -> Expected:
    """Return the state that the runtime must have after a plan was applied.

    Without a baseline nothing is checked for regressions.
    """
    desired = plan.target.desired
    handlers = desired.names | planner.former(plan.observation)
    present = context.adapter.defined(desired, plan.files_after)
    present |= plan.config_plan.provided if plan.operation is Operation.INSTALL else frozenset()
    # With CRI-O's hook mode, and with containerd's old `default_runtime` table, the default handler
    # has no name that the runtime could report.
    by_name = plan.operation is Operation.INSTALL and not desired.hook_mode and not desired.legacy
    return Expected(
        desired=desired,
        ours=handlers,
        present=present,
        absent=desired.names - present - frozenset(desired.delivery.provided_handlers),
        default=desired.default if by_name else None,
        raised=planner.defaults(plan.observation),
        baseline=baseline,
        files=plan.files_after,
        cri=_serves_cri(plan),
        without_us=context.adapter.effective_without_us(desired, plan.observation),
        is_removal=plan.operation is Operation.REVERT,
    )


def handlers(context: Context, plan: Plan) -> frozenset[str]:
    """Return the toolkit's handlers that the runtime has once the plan is applied."""
    return (
        frozenset() if context.settings.no_runtime_config else expected(context, plan, None).present
    )


def _serves_cri(plan: Plan) -> bool | None:
    """Return whether the runtime must serve CRI if the plan turns it on or off; None: as before."""
    if plan.operation is Operation.INSTALL:
        return True if plan.target.desired.enable_cri else None
    return False if planner.enabled_cri(plan.observation) else None


def as_generated(context: Context, plan: Plan) -> Plan:
    """Return the plan with the files as the distribution regenerated them when it was restarted.

    Raises ReloadError if the distribution did not define the expected handlers.
    """
    if (
        not plan.target.desired.generated
        or not plan.reload_needed
        or context.mode is RestartMode.NONE
    ):
        return plan
    install_dir, is_forced = plan.target.install_dir, context.settings.force
    owned = journal.ownerships(install_dir, journal.load(install_dir).owned, even_if_gone=is_forced)
    observation = observe.observe(plan.target, context.adapter, owned)
    if plan.operation is Operation.INSTALL and (
        pending_restart := planning.compute(
            plan.target, context.adapter, observation
        ).pending_restart
    ):
        raise ReloadError(f"the distribution was restarted, but {pending_restart}", hint=_OWN)
    return replace(plan, observation=observation)


def runtime_state(context: Context, plan: Plan) -> Health | None:
    """Return the state of a healthy runtime that has loaded its files, else None; do not wait."""
    if context.settings.no_runtime_config:
        return Health(effective=UNTOLD)
    if is_pending(plan.target, plan.record, RestartMode.AUTO):
        return None
    state = health.query(plan.target, context.adapter, timeout=soon(context))
    return (
        None
        if state.problems or expected(context, plan, None).unmet(context.adapter, state)
        else state
    )


def configuration(plan: Plan) -> dict[str, str]:
    """Return the fingerprints of the runtime's files after the plan, by their local paths.

    Probes open these paths. Raises StepError for a file that cannot be opened here.
    """
    host = plan.target.host
    return {
        str(host.opened(path)): fingerprint(data) for path, data in sorted(plan.files_after.items())
    }


def with_missing_handlers(context: Context, plan: Plan) -> Plan:
    """Return the plan; `reload_pending` is set if a healthy runtime has not loaded its files.

    Raises ReloadError if reloading the same files did not help before.
    """
    if plan.reload_needed or plan.target.process is None or not must_be_healthy(context, plan):
        return plan
    state = health.query(plan.target, context.adapter, timeout=soon(context))
    unmet = [] if state.problems else expected(context, plan, None).unmet(context.adapter, state)
    return with_pending_reload(context, plan, ReloadError("; ".join(unmet))) if unmet else plan


def with_pending_reload(context: Context, plan: Plan, error: StepError) -> Plan:
    """Return the plan with `reload_pending` set, as the runtime has not loaded its files (`error`).

    Raises ReloadError if the same process was already reloaded with the same files without effect.
    """
    if context.budget.was_ineffective(_mark(plan, plan.target.process)):
        raise ReloadError(
            f"{error.message}; reloading the same files did not help",
            hint=f"{plan.target.log_hint}; {_VAIN}",
        ) from error
    LOGGER.warning("%s", error.message)
    return replace(plan, reload_pending=True)


def record_ineffective_restart(context: Context, plan: Plan) -> None:
    """Save that reloading did not help, so no run repeats it with the same files and process."""
    target = locate.again(plan.target, context.adapter)
    with contextlib.suppress(StepError):  # The restart budget still limits the attempts.
        context.budget.record_ineffective_restart(_mark(plan, target.process))


def _mark(plan: Plan, daemon: RuntimeProcess | None) -> str:
    """Return an identifier of the runtime's files together with its process."""
    process = [daemon.pid, daemon.start_ticks] if daemon is not None else None
    return fingerprint(json.dumps([configuration(plan), process]).encode())


def soon(context: Context) -> Timeout:
    """Return the timeout of a single query, shorter once the run was asked to stop."""
    return Deadline(_SOON, context.stop).at_least(_LEAST)
