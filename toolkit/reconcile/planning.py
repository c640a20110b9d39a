"""Compare the node with the settings and compute the plan, without changing anything."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.dataclass import dataclass, replace
from runtimes.errors import ConfigError, NoCgroupDriver, UnsupportedSetup
from runtimes.model import (
    ConfigPlan,
    DeliveryKind,
    Observation,
    Ownership,
    RuntimeName,
    fingerprint,
)
from toolkit import log
from toolkit.artifacts import manifest, programs
from toolkit.artifacts.manifest import Version
from toolkit.cdi import spec
from toolkit.cdi.spec import Specification
from toolkit.errors import NodeConfigError, StepError, ToolkitError, UsageProblem
from toolkit.kube import kubelet
from toolkit.node import mounts, processes
from toolkit.reconcile import adopt, context
from toolkit.runtime import config_paths, locate, observe, restart, visibility
from toolkit.runtime.locate import Target
from toolkit.runtime.pending_reload import is_pending
from toolkit.runtime.restart import RestartMethod
from toolkit.settings.options import RestartMode
from toolkit.state import binary_cache, journal
from toolkit.state.record import Operation, Record

if TYPE_CHECKING:
    from toolkit.runtime.nri_support import NriSupport
    from toolkit.settings.resolve import Settings

_LEAST: Final = 1.0
_OF_ANOTHER: Final = {RuntimeName.CONTAINERD: b"[crio", RuntimeName.CRIO: b"[plugins"}
"""What a file that can be parsed has to contain to be worth the time of `runtimes.recognize`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The observed state of the node and what has to be changed.

    `version` is the toolkit version to install. It is None when the toolkit's source is not
    available (`source_problem` says why) or when nothing is installed. `installs` is false with
    `--no-install`: the handlers then use the toolkit that the node already has, and
    `source_problem` says why it cannot be used. `reload_pending` is true when the running daemon
    has not loaded an earlier change, or when a stopped runtime has to be started. `ready_facts`
    is the content of the readiness record that was written for this plan, None if there is none.
    `adopted` are files that define handlers of the toolkit but are missing from the state file;
    they are treated as owned and recorded with the next change. `nri` says whether the runtime has
    NRI, if the agent runs the NRI plugin. `observed_at` is the time of day before the node was
    observed, in seconds: what changed later may be missing from the plan.
    """

    target: Target
    record: Record
    observation: Observation
    config_plan: ConfigPlan
    version: Version | None
    source_problem: UsageProblem | None
    restart_method: RestartMethod
    reload_pending: bool
    operation: Operation = Operation.INSTALL
    installs: bool = True
    specification: Specification = spec.NONE
    ready_facts: Mapping[str, Any] | None = None
    adopted: tuple[Ownership, ...] = ()
    nri: NriSupport | None = None
    observed_at: float = 0.0

    @property
    def is_noop(self) -> bool:
        """Return whether nothing has to be done."""
        return self.is_in_place and self.specification.needs_nothing

    @property
    def is_in_place(self) -> bool:
        """Return whether runtime, files and toolkit are in sync: no transaction is needed."""
        installed = self.version is None or self.version.is_installed
        if not self.installs and self.source_problem is not None:
            return False  # The node's own toolkit cannot be used.
        if self.adopted or (self.record.toolkit_digest is not None and not self.record.runtime):
            return False  # An installation was found that still has to be recorded.
        return self.config_plan.is_noop and installed and not self.reload_pending

    @property
    def is_done(self) -> bool:
        """Return whether the plan's operation has nothing to do."""
        if self.operation is Operation.REVERT:
            return self.record.is_empty and not self.adopted
        return self.is_noop

    @property
    def is_interrupted(self) -> bool:
        """Return whether an earlier run of the same operation was killed before it committed."""
        transaction = self.record.open
        return transaction is not None and transaction.operation is self.operation

    @property
    def reload_needed(self) -> bool:
        """Return whether the runtime has to load something."""
        return not self.config_plan.is_noop or self.reload_pending

    @property
    def change(self) -> str:
        """Return an identifier of the change: its files before and after, toolkit and binary."""
        files = [
            [c.path, fingerprint(c.before), fingerprint(c.after)] for c in self.config_plan.changes
        ]
        toolkit = self.version.digest if self.version is not None else ""
        binary = binary_cache.identity(self.target.host, self.target.binary)
        return fingerprint(json.dumps([files, toolkit, binary]).encode())

    def invisible(self) -> list[visibility.Invisible]:
        """Return a problem for every installation directory that the runtime would not see."""
        specification = self.specification
        return visibility.check(
            self.target,
            installs=self.installs,
            files=[path for path, data in self.files_after.items() if data is not None],
            specification=(specification.path, specification.local) if specification.path else None,
        )

    @property
    def files_after(self) -> dict[str, bytes | None]:
        """Return the content of the runtime's files after the plan is applied."""
        return {
            **self.observation.files,
            **{change.path: change.after for change in self.config_plan.changes},
        }


@log.under_way("inspecting the node")
def make_plan(context: context.Context) -> Plan:
    """Observe the node and return an installation's plan; change nothing. Raises ToolkitError."""
    observed_at = time.time()
    settings, adapter = context.settings, context.adapter
    target = locate.target(settings, adapter, context.stop)
    if context.config_content is not None:
        replaced = (target.desired.config, context.config_content)
        target = replace(target, host=replace(target.host, replaced=replaced))
    record, record_problem = _record(target)
    if record.open is not None:
        paths = tuple(each.path for each in record.open.files)
        record = journal.without_unwritten(record, observe.read(target.host, paths))
    record = adopt.restored_record(target, record)
    adopted: tuple[Ownership, ...] = ()
    if settings.no_runtime_config:
        note = f"the runtime is not configured ({settings.origins['no_runtime_config']})"
        observation, plan = (
            Observation(),
            ConfigPlan(notes=(note, *_remaining(settings, target, record))),
        )
    else:
        try:
            observation, adopted, plan = _observed(settings, target, adapter, record)
        except NodeConfigError as error:
            _refuse_another_file(settings, target, error)
            raise
    plan = _with_absence(settings, target, plan)
    if target.host.replaced is not None:
        note = f"standard input was read in place of {target.host.local(target.desired.config)}"
        plan = replace(plan, notes=(note, *plan.notes))
    plan = replace(plan, notes=(*plan.notes, *adopt.notes(target, adopted)))
    if record_problem:
        plan = replace(plan, notes=(*plan.notes, record_problem))
    version, problem = _toolkit(context, target, plan)
    method = restart_method(context, target, record, revive=settings.ignore_unhealthy)
    is_configured = not settings.no_runtime_config
    pending_restart = bool(plan.pending_restart) and context.mode is not RestartMode.NONE
    made = Plan(
        observed_at=observed_at,
        target=target,
        record=record,
        observation=observation,
        config_plan=plan,
        version=version,
        source_problem=problem,
        restart_method=method,
        reload_pending=is_configured
        and (
            pending_restart or method.is_revival(target) or is_pending(target, record, context.mode)
        ),
        installs=not settings.no_install,
        specification=spec.observe(settings, target.host, target.install_dir, record),
        adopted=adopted,
        nri=nri_support_of(settings, target) if settings.runs_plugin else None,
    )
    return with_supervisor(context, made)


def unread(target: Target, adapter: Adapter, plan: ConfigPlan) -> tuple[str, str] | None:
    """Return why the running daemon would not read the changed root config, and a hint, or None."""
    is_template = target.desired.delivery.kind is DeliveryKind.TEMPLATE
    if target.process is None or plan.is_noop or is_template:
        return None
    given = processes.argument(target.process, adapter.config_flags)
    problem = config_paths.unread(target.host, adapter, given, target.desired.config)
    return (problem, config_paths.unread_hint(adapter, given)) if problem else None


def _observed(
    settings: Settings, target: Target, adapter: Adapter, record: Record
) -> tuple[Observation, tuple[Ownership, ...], ConfigPlan]:
    """Return the observation of the runtime's files, the adopted ones, and their changes.

    Raises ToolkitError.
    """
    config = target.host.local(target.desired.config)
    config_paths.check_source(settings, target.host, config, target.binary)
    observation = observe.observe(
        target, adapter, journal.ownerships(target.install_dir, record.owned)
    )
    data = observation.data(target.desired.config)
    if _OF_ANOTHER.get(target.desired.runtime, b"\0") in (data or b""):
        _refuse_another_file(settings, target)
    adopt.refuse_another(target, observation.files)
    adopted = adopt.adopted(target, adapter, record, observation)
    observation = replace(observation, owned=(*observation.owned, *adopted))
    plan = compute(target, adapter, observation)
    adopt.refuse_taken_name(target, adapter, observation, settings.by("runtime_class"))
    return observation, adopted, plan


def _refuse_another_file(
    settings: Settings, target: Target, error: NodeConfigError | None = None
) -> None:
    """Raise an error that says what the root config is if it is none of this runtime.

    `error` is why it cannot be parsed, None if it can. Raises UsageProblem for a file of another
    runtime, NodeConfigError for a template.
    """
    from runtimes import recognize  # noqa: PLC0415  # only needed for such a file

    runtime, path = target.desired.runtime, target.desired.config
    if target.desired.delivery.kind is DeliveryKind.TEMPLATE:
        return
    try:
        data = observe.read(target.host, (path,))[path]
    except ToolkitError:
        return
    other = recognize.runtime_of(data or b"")
    option = f"{settings.by('config')}={target.host.local(path)}"
    if other is not None and other is not runtime:
        raise UsageProblem(
            [f"{option}: this is a configuration of {other}, and the runtime is {runtime}"],
            hint=f"use --runtime={other}, or name the configuration of {runtime} with --config",
        )
    if error is not None and recognize.is_template(data or b""):
        raise NodeConfigError(
            f"{error.message}: this is a template that was not rendered",
            hint="name the rendered file with --config, or render the template first",
        ) from error


def _with_absence(settings: Settings, target: Target, plan: ConfigPlan) -> ConfigPlan:
    """Return the plan with a note if the root config that the settings name does not exist.

    It may be misspelt: a similar name that exists is also logged as a warning. Where the plan would
    not create it, because our keys get into a drop-in, there is a note only if something changes.
    """
    path = target.desired.config
    if plan.is_noop or not settings.is_given("config"):
        return plan
    is_created = any(each.path == path and each.before is None for each in plan.changes)
    # CRI-O's path on the node is the usual one, whatever it was named.
    local = target.host.local(path) if is_created else Path(os.path.abspath(settings.config))
    if not is_created and os.path.lexists(local):
        return plan
    meant = _meant(local)
    created = " and would be created" if is_created else ""
    note = f"{settings.by('config')}={local}: does not exist{created}{meant}"
    warnings = (*plan.warnings, note) if meant else plan.warnings
    return replace(plan, notes=(note, *plan.notes), warnings=warnings)


def _meant(path: Path) -> str:
    """Return the end of a message with a path that exists and is similar to one that does not."""
    from toolkit import suggest  # noqa: PLC0415  # only needed for a file that does not exist

    parent = mounts.nearest(path.parent)
    first, *rest = path.relative_to(parent).parts
    try:
        # A copy beside it (`config.toml.bak`) is not meant.
        copy = first if Path(first).suffix else f"{first}/"
        others = [name for name in os.listdir(parent) if not name.startswith(copy)]
    except OSError:
        return ""
    others = [name for name in others if parent.joinpath(name, *rest).exists()]
    found = suggest.nearest(first, others)
    return f"; did you mean {parent.joinpath(found, *rest)}?" if found else ""


def _remaining(settings: Settings, target: Target, record: Record) -> tuple[str, ...]:
    """Return a note about the handlers of earlier runs, which the NRI plugin replaces."""
    if not settings.runs_plugin or not record.owned:
        return ()
    paths = ", ".join(str(target.host.local(owned.path)) for owned in record.owned)
    return (
        f"{paths} has handlers of an earlier run, which the agent removes once no pod uses them",
    )


def nri_support_of(settings: Settings, target: Target) -> NriSupport:
    """Return whether the runtime has NRI."""
    from toolkit.runtime import nri_support  # noqa: PLC0415  # only needed for the plugin

    endpoint = target.socket if target.process is not None else None
    return nri_support.look_up(settings, target.host, target.desired.runtime, endpoint)


def with_supervisor(context: context.Context, plan: Plan) -> Plan:
    """Return the plan with the method for the runtime's supervisor, if it has to load something.

    Only then the node's systemd is asked.
    """
    target = plan.target
    if not plan.reload_needed or target.process is None or context.mode is RestartMode.NONE:
        return plan
    if target.supervisor is None:
        target = locate.supervised(target, context.adapter, context.deadline().at_least(_LEAST))
    method = restart.restart_method(target, context.adapter, context.mode, target.supervisor)
    return replace(plan, target=target, restart_method=method)


def _toolkit(
    context: context.Context, target: Target, plan: ConfigPlan
) -> tuple[Version | None, UsageProblem | None]:
    """Return the version to install, or the reason why there is none."""
    if context.settings.no_install:
        return None, programs.lacking(context.settings, target.host, target.desired)
    try:
        return (
            manifest.desired_version(
                context.settings, target.host, target.install_dir, plan.low_level
            ),
            None,
        )
    except UsageProblem as error:
        return None, error


def restart_method(
    context: context.Context, target: Target, record: Record, *, revive: bool
) -> RestartMethod:
    """Return how to make the runtime load a change; with `revive`, a failed runtime is started.

    A runtime that a killed run was about to restart is started in any case: systemd may have
    refused that restart (StartLimitBurst), and after `reset-failed` systemd no longer shows that
    the unit failed.
    """
    method = restart.restart_method(target, context.adapter, context.mode, target.supervisor)
    was_restarting = record.restarting and context.mode is not RestartMode.SIGNAL
    if not (revive or was_restarting) or not method.obstacle or context.mode is RestartMode.NONE:
        return method
    units = (record.unit,) if record.unit else locate.usual_units(target)
    started = (
        restart.start_stopped(target, unit, context.deadline(), even_if_stopped=was_restarting)
        for unit in units
    )
    return next((each for each in started if each is not None), method)


def _record(target: Target) -> tuple[Record, str]:
    """Return the state record, and why it could not be read if permission was denied.

    Without permission the plan is computed with an empty record, so that `plan` works for users
    other than root. Raises NodeConfigError if the record is damaged, and for root whenever it
    cannot be read.
    """
    try:
        record = journal.load(target.install_dir)
    except NodeConfigError as error:
        if os.geteuid() == 0 or not isinstance(error.__cause__, PermissionError):
            raise
        # A record that names the runtime is not treated as lost (see `adopt.is_lost`).
        unreadable = Record(runtime=target.desired.runtime)
        return unreadable, f"{error.message}: the changes of earlier runs are unknown"
    same_runtime(record, target)
    return record, ""


def same_runtime(record: Record, target: Target) -> None:
    """Raise UsageProblem if the record belongs to another runtime than the target.

    One record cannot hold the changes, or the open transaction, of two runtimes.
    """
    in_use = record.owned or record.open is not None
    # A run that was killed at the start of its transaction named no runtime and changed nothing.
    if in_use and record.runtime not in {"", target.desired.runtime}:
        raise UsageProblem(
            [f"--runtime={target.desired.runtime}: this node was set up for {record.runtime}"],
            hint=f"revert that first: nvidia-toolkit revert --runtime {record.runtime}",
        )


def must_be_healthy(context: context.Context, plan: Plan) -> bool:
    """Return whether the runtime must be healthy with nothing to load (new toolkit files only)."""
    is_managed = not context.settings.no_runtime_config and context.mode is not RestartMode.NONE
    return is_managed and plan.operation is Operation.INSTALL


def compute(target: locate.Target, adapter: Adapter, observation: Observation) -> ConfigPlan:
    """Return the changes of an installation, validated by the node's own binary.

    Raises NodeConfigError if a file of the node cannot be parsed or the result is not valid, and
    StepError if this setup is not supported.
    """
    try:
        desired = target.desired
        try:
            config_plan = planner.plan(adapter, desired, observation)
        except NoCgroupDriver:
            driver = kubelet.cgroup_driver(target.host.root)
            if driver is None:
                raise
            desired = replace(desired, systemd_cgroup=driver == "systemd")
            config_plan = planner.plan(adapter, desired, observation)
        if config_plan.is_noop:
            planner.check_in_sync(adapter, target.desired, observation)
        else:
            query = planner.candidate_query(adapter, target.desired, observation, config_plan)
            if query is not None:
                planner.check(adapter, target.desired, observation, observe.ask(target, query))
    except ConfigError as error:
        raise observe.not_understood(error) from error
    except UnsupportedSetup as error:
        raise StepError(f"{error.why}: nothing was changed", hint=error.hint) from error
    return replace(config_plan, notes=(*target.notes, *config_plan.notes))


def compute_removal(
    target: locate.Target, adapter: Adapter, observation: Observation
) -> ConfigPlan:
    """Return the changes that remove all owned keys, validated by the node's own binary.

    Raises NodeConfigError as `compute` does.
    """
    try:
        config_plan = planner.removal(adapter, observation)
        if not config_plan.is_noop:
            query = planner.candidate_query(adapter, target.desired, observation, config_plan)
            if query is not None:
                planner.check_removal(
                    adapter, target.desired, observation, observe.ask(target, query)
                )
    except ConfigError as error:
        raise observe.not_understood(error) from error
    return config_plan
