"""Preflight checks: find everything that would make a change fail before anything is changed.

All problems are reported together. A probe file is created in the install directory and removed
again. Nothing is created in the runtime's configuration directories, because the runtime reads
every file there.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from runtimes import distributions, planner
from runtimes.dataclass import dataclass, replace
from runtimes.model import FileChange
from toolkit import log
from toolkit.artifacts import static_wrapper, versions, wrappers
from toolkit.artifacts.manifest import Version
from toolkit.deadline import Deadline
from toolkit.errors import Interrupted, ReloadError, StepError, ToolkitError, UsageProblem
from toolkit.log import LOGGER
from toolkit.node import command, elf, files, lock, mounts, processes, procfs, system
from toolkit.reconcile import apply, planning, verify
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan, must_be_healthy, nri_support_of
from toolkit.runtime import health, locate, visibility
from toolkit.runtime.health import Health
from toolkit.runtime.locate import Target
from toolkit.settings.layout import InstallDir
from toolkit.state import readiness_record
from toolkit.state.record import Baseline, Operation
from toolkit.state.restart_budget import Budget

_MARGIN: Final = 1 << 20
"""Free space, in bytes, that must remain after the toolkit was installed."""
SOON: Final = 5.0
"""Seconds that an unhealthy runtime gets to become healthy."""
_CONFIG_MARGIN: Final = 64 << 10
_NOTE: Final = 4 << 10
"""Bytes that the file of the restart budget may need."""
_PROBE: Final = ".toolkit-probe"
_NOT_ANSWERING: Final = (
    "with --restart-mode none the files are changed and the restart is left to you"
)
_TOO_OFTEN: Final = "find out what changes so often, or use --restart-budget 0 for no limit"
_GENERATED: Final = (
    "add the handlers where this file is generated, and use --no-runtime-config to install the"
    " toolkit alone; or let the runtime read a file that can be changed"
)
_DOCKER: Final = distributions.DOCKER
_LEAST: Final = 1.0
_ALONE: Final = "use --restart-mode auto, which restarts the runtime's unit alone, or --force"
_OWN_IT: Final = (
    "files that a root daemon reads must belong to root: chown root:root FILE, chmod o-w FILE"
)
_FREE_SPACE: Final = "free space there, or choose another directory"
_ANOTHER_PLACE: Final = (
    "make it writable (in a pod, mount it), or choose another --toolkit-install-dir"
)
_ANOTHER_PID_FILE: Final = "make it writable, or choose another directory with --pid-file"
_INSTALL_IT: Final = (
    "install it on the node, or correct the handler of the runtime's configuration that names it"
)
_STATIC_WRAPPERS: Final = (
    "use the image or a package of this program: they have static wrappers for"
    f" {' and '.join(static_wrapper.MACHINES)}"
)
_CORRECT: Final = "correct --runtime-config-override (RUNTIME_CONFIG_OVERRIDE)"
SELINUX: Final = Path("/sys/fs/selinux/enforce")
SEARCH_PATH: Final = command.SEARCH_PATH


class Blocker(NamedTuple):
    """A reason for a run to refuse a plan, a hint, and the exit code of that run.

    An error with several blockers shows one hint: that of the lowest `rank`.
    """

    problem: str
    hint: str = ""
    code: int = StepError.exit_code
    rank: int = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The outcome of a run with a plan: the plan as the run would make it, blockers and warnings.

    `plan` also reloads a runtime that has not loaded its files. `is_complete` is false for an
    ordinary user, who cannot ask the runtime and whose own permissions say nothing about a run.
    """

    plan: Plan
    blocked: tuple[Blocker, ...] = ()
    warnings: tuple[str, ...] = ()
    is_complete: bool = True


def check(context: Context, plan: Plan) -> Baseline:
    """Run all checks and return the baseline of the change.

    Raises StepError with all problems, and Interrupted if the run was asked to stop. Nothing is
    changed then.
    """
    state = _state(context, plan)
    blockers, warnings = _blockers(context, plan, state)
    if blockers:
        hint = min(blockers, key=lambda each: each.rank if each.hint else sys.maxsize).hint
        problems = "; ".join(dict.fromkeys(each.problem for each in blockers))
        raise StepError(f"{problems}: nothing was changed", hint=hint)
    for warning in warnings:
        LOGGER.warning("%s", warning)
    if context.stop.is_requested:
        raise Interrupted(context.stop.signal)
    return verify.baseline_of(context.adapter, plan, state)


@log.under_way("checking whether a run would be refused")
def forecast(context: Context, plan: Plan, *, patience: float = SOON) -> Forecast:
    """Return what a run would do with a plan; write nothing, not even a probe file.

    An unhealthy runtime gets `patience` seconds to become healthy. What only the lock or a probe
    file would show is left out; for an ordinary user also what root alone can know.
    """
    is_root = os.geteuid() == 0
    if refusals := _refusals(context, plan):
        return Forecast(plan=plan, blocked=refusals, is_complete=is_root)
    if context.settings.runs_plugin and plan.nri is not None and plan.nri.state != "on":
        blocked = (Blocker(plan.nri.text, plan.nri.hint),) if is_root else ()
        return Forecast(plan=plan, blocked=blocked, is_complete=is_root)
    source = plan.source_problem
    locked = lock.unusable(Path(context.settings.pid_file))
    found = [Blocker(locked, lock.UNUSABLE_HINT)] if locked else []
    found += [] if source is None else [_of_error(problem, source) for problem in source.problems]
    state = None
    if is_root and plan.target.process is not None and _is_asked(context, plan):
        state = health.wait_healthy(plan.target, context.adapter, Deadline(patience, context.stop))
        plan, unloaded = _with_reload(context, plan, state)
        found += unloaded
    if plan.is_in_place:
        found += _of_place(context, plan)
        return Forecast(plan=plan, blocked=tuple(found), is_complete=is_root)
    try:
        blockers, warnings = _blockers(context, plan, state, is_forecast=True)
    except StepError as error:  # of a query to the runtime
        blockers, warnings = [_of_error(error.message, error)], []
    except OSError as error:  # of a place that this user may not see
        blockers, warnings = [Blocker(f"{error.filename}: {error.strerror}")], []
    return Forecast(
        plan=plan, blocked=(*found, *blockers), warnings=tuple(warnings), is_complete=is_root
    )


def _of_place(context: Context, plan: Plan) -> list[Blocker]:
    """Return what makes a run fail that has nothing to change in the runtime's files."""
    if plan.operation is Operation.REVERT:
        return []
    found = [Blocker(*each) for each in plan.invisible()]
    if os.geteuid() == 0 and (problem := _no_process(context, plan)):
        found.insert(0, Blocker(problem))
    return found


def _refusals(context: Context, plan: Plan) -> tuple[Blocker, ...]:
    """Return the conflicts between the settings and the node, for which a run does nothing else."""
    is_checked = plan.operation is Operation.INSTALL and not context.settings.no_runtime_config
    found = plan.target.contradictions if is_checked else ()
    return tuple(Blocker(*each, code=UsageProblem.exit_code) for each in found)


def _of_error(problem: str, error: ToolkitError) -> Blocker:
    return Blocker(problem, error.hint, error.exit_code)


def _is_asked(context: Context, plan: Plan) -> bool:
    """Return whether a run asks the runtime for its state."""
    return plan.reload_needed or must_be_healthy(context, plan)


def _with_reload(context: Context, plan: Plan, state: Health) -> tuple[Plan, list[Blocker]]:
    """Return the plan with the reload that a run adds if the runtime has not loaded its files.

    Also returns why a run fails on a node that is in sync, whose runtime is unhealthy or does not
    load its files.
    """
    if plan.reload_needed:
        return plan, []
    if state.problems:
        why = f"the runtime is unhealthy: {'; '.join(state.problems)}"
        return plan, [
            Blocker(why, f"{plan.target.log_hint}, and start it")
        ] if plan.is_in_place else []
    unmet = verify.expected(context, plan, None).unmet(context.adapter, state)
    if not unmet:
        return plan, []
    try:
        plan = verify.with_pending_reload(context, plan, ReloadError("; ".join(unmet)))
    except ReloadError as error:
        return plan, [_of_error(error.message, error)]
    return planning.with_supervisor(context, plan), []


def _blockers(
    context: Context, plan: Plan, state: Health | None, *, is_forecast: bool = False
) -> tuple[list[Blocker], list[str]]:
    """Return everything that makes a change fail, and warnings.

    `state` is the runtime's, None if it does not matter or is not known. With `is_forecast` nothing
    is written, and the permissions of an ordinary user are ignored: a run would be root's.
    """
    target, config_plan = plan.target, plan.config_plan
    is_install = plan.operation is Operation.INSTALL
    knows_all = not is_forecast or os.geteuid() == 0
    fixed, fixed_hint = read_only(plan)
    hint = _system_hint(target) or (fixed_hint if fixed else "")
    found = [Blocker(each, hint, rank=6) for each in _of_files(plan, tries=not is_forecast)]
    found += [Blocker(each, _FREE_SPACE) for each in _of_space(plan)]
    found += [Blocker(each) for each in _of_attributes(plan)]
    distrusted = () if config_plan.is_noop else locate.distrusted_files(target, plan.observation)
    found += [Blocker(f"{each}, so it is not edited", _OWN_IT, rank=5) for each in distrusted]
    if place := locate.distrusted_place(target):
        problem = f"{place}, so nothing is installed in {target.install_dir}"
        found.append(Blocker(problem, _OWN_IT, rank=5))
    if is_install:
        found += [Blocker(each.problem, each.hint, rank=1) for each in plan.invisible()]
        found += _of_toolkit(plan, tries=not is_forecast)
    else:
        found += _not_writable(target.install_dir, _place_hint(target))
    obstacle = plan.restart_method.obstacle if plan.reload_needed else _no_process(context, plan)
    if obstacle and (knows_all or not _is_hidden(target)):
        found.append(Blocker(obstacle, _NOT_ANSWERING, rank=0))
    if unread := _unread(context, plan):
        found.append(Blocker(*unread, rank=2))
    if knows_all:
        found += [
            Blocker(each)
            for each in (_in_use(context, plan), _ended_containers(context, plan))
            if each
        ]
        found += _of_runtime(context, plan, state) if is_install else []
        found += [Blocker(each, _CORRECT, rank=7) for each in _of_override(context, plan)]
    broken, correct_it, warnings = _of_origin(context, plan) if knows_all else ([], "", [])
    found += [Blocker(each, correct_it, rank=8) for each in broken]
    return found, warnings


def _is_hidden(target: Target) -> bool:
    """Return whether a process that an ordinary user does not see may listen on the socket."""
    try:
        os.stat(target.socket)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return target.process is None


def require_nri(context: Context) -> None:
    """Raise StepError if there is no NRI socket to which the plugin could connect."""
    target = locate.target(context.settings, context.adapter, context.stop)
    nri = nri_support_of(context.settings, target)
    if nri.state != "on":
        raise StepError(f"{nri.text}: nothing was changed", hint=nri.hint)


def _of_override(context: Context, plan: Plan) -> list[str]:
    """Return what `--runtime-config-override` names and the node does not have."""
    if (
        plan.operation is not Operation.INSTALL
        or plan.config_plan.is_noop
        or not plan.target.desired.override
    ):
        return []
    from toolkit.runtime import handler_requirements  # noqa: PLC0415  # Only needed with that option.

    return list(handler_requirements.problems(plan.target, timeout=verify.soon(context)))


def _of_origin(context: Context, plan: Plan) -> tuple[list[str], str, list[str]]:
    """Return what the handlers inherit and the node does not have, a hint what to do, and warnings.

    It is only a warning if the handler of the node that lacks it is the default already, or if the
    default stays: no pod that starts today fails because of it.
    """
    origin = plan.config_plan.origin
    if plan.operation is not Operation.INSTALL or plan.config_plan.is_noop or not origin.settings:
        return [], "", []
    from toolkit.runtime import handler_requirements  # noqa: PLC0415  # Only needed if something changes.

    found = list(
        handler_requirements.inherited_problems(plan.target, origin, timeout=verify.soon(context))
    )
    if origin.default not in {"", origin.source}:
        keeps = f"--set-as-default=false, which keeps {origin.default} as the default"
        return found, f"correct the handler {origin.source}, or use {keeps}", []
    return [], "", [f"{problem}: no pod starts through either" for problem in found]


def read_only(plan: Plan) -> tuple[list[str], str]:
    """Return a message for every file of the plan that no user can replace, and a hint."""
    target = plan.target
    fixed = apply.immutable_files(target.host, plan.config_plan.changes)
    return fixed, (_system_hint(target) or _GENERATED) if fixed else ""


def _system_hint(target: Target) -> str:
    """Return the hint for an operating system where the default paths fail, else empty."""
    row = distributions.system(system.os_release(target.host))
    return f"{row.why}: {row.hint}" if row is not None else ""


def _state(context: Context, plan: Plan) -> Health | None:
    """Return the state of the runtime before the change, None if it is not running or not affected.

    New toolkit files alone affect it as well, because an installation with an unhealthy runtime
    must fail. Raises Interrupted if the run was asked to stop before the runtime became healthy.
    """
    if plan.target.process is None or not _is_asked(context, plan):
        return None
    state = health.wait_healthy(plan.target, context.adapter, Deadline(SOON, context.stop))
    if state.problems and context.stop.is_requested:
        raise Interrupted(context.stop.signal)
    if state.problems:
        readiness_record.remove(context.readiness)
    return state


def _unread(context: Context, plan: Plan) -> tuple[str, str] | None:
    """Return why the runtime would not read the file to be written, and a hint, or None."""
    if plan.operation is not Operation.INSTALL:
        return None
    return planning.unread(plan.target, context.adapter, plan.config_plan)


def _no_process(context: Context, plan: Plan) -> str:
    """Return why the runtime that must be healthy was not found, or an empty text."""
    return (
        plan.target.no_process
        if must_be_healthy(context, plan) and plan.target.process is None
        else ""
    )


def _in_use(context: Context, plan: Plan) -> str:
    """Return which pods requested a handler that the installation removes, or an empty text.

    An installation removes handlers that an earlier one added under another name. Raises StepError
    if the runtime cannot be asked, and Interrupted.
    """
    target, adapter = plan.target, context.adapter
    if plan.operation is not Operation.INSTALL:
        return ""
    recorded = planner.recorded(target.desired, [owned.edits for owned in plan.observation.owned])
    removed = adapter.defined(recorded, plan.observation.files) - adapter.defined(
        recorded, plan.files_after
    )
    removed -= plan.config_plan.provided
    if not removed:
        return ""
    from toolkit.runtime import in_use  # noqa: PLC0415  # Only needed if a handler is removed.

    handlers = tuple(handler for handler in recorded.handlers if handler.name in removed)
    target = replace(target, desired=replace(recorded, handlers=handlers))
    using = in_use.using_before(
        target, adapter, plan.observation, context.deadline(), context.stop, by_name=True
    )
    what = f"{', '.join(sorted(removed))}, which would be removed"
    return f"{in_use.describe(using, what)} (stop them first)" if using else ""


def _ended_containers(context: Context, plan: Plan) -> str:
    """Return which running containers would end because SIGHUP also restarts Docker; else empty."""
    method = plan.restart_method
    ends = plan.reload_needed and method.dependents_end and _DOCKER.units[0] in method.dependents
    if not ends or method.obstacle or context.settings.force:
        return ""
    from toolkit.runtime.client import http  # noqa: PLC0415  # Only needed on such a node.

    socket = plan.target.host.target(plan.target.host.below(_DOCKER.sockets[0]))
    try:
        info = json.loads(http.get(socket, "/info", timeout=context.deadline().at_least(_LEAST)))
        count, survive = int(info["ContainersRunning"]), bool(info["LiveRestoreEnabled"])
    except (StepError, ValueError, KeyError, TypeError) as error:
        return (
            f"SIGHUP also restarts docker.service, and its containers are unknown: {error}"
            f" ({_ALONE})"
        )
    if survive or not count:
        return ""
    return (
        f"SIGHUP also restarts docker.service, which ends its {count} running container(s)"
        f" ({_ALONE})"
    )


def sweep(install_dir: Path) -> None:
    """Remove the probe files of a killed run."""
    # If the install directory did not exist, they were created in the nearest directory that did.
    for directory in (install_dir, *install_dir.parents):
        for name in (_PROBE, f"{_PROBE}-renamed"):
            with contextlib.suppress(OSError):
                os.unlink(directory / name)
    versions.sweep_probe(install_dir)


def _of_files(plan: Plan, *, tries: bool) -> list[str]:
    """Return the problems that would keep the runtime's files from being written.

    Without `tries`, no label is set on a probe file.
    """
    target, changes = plan.target, plan.config_plan.changes
    result = apply.unwritable(target.host, changes, is_tried=tries)
    points = mounts.mount_points()
    for change in changes:
        path = target.host.file(change.path)
        if os.path.realpath(path) in points:
            result.append(
                f"{path} is a mount point and cannot be replaced: mount its directory instead"
            )
    result += _labels(target, changes) if tries else []
    result += _owners(target, changes) if tries or os.geteuid() == 0 else []
    return list(dict.fromkeys(result))


def _of_attributes(plan: Plan) -> list[str]:
    """Return a problem for each of this program's files that even root cannot replace or remove."""
    install_dir = InstallDir(plan.target.install_dir)
    paths = [install_dir.state, install_dir.originals, install_dir.record, install_dir.versions]
    if plan.operation is Operation.REVERT:
        paths += [*install_dir.originals.glob("*"), *install_dir.versions.rglob("*")]
        owned = plan.record.specification
        paths += [Path(owned.local), Path(owned.local).parent] if owned is not None else []
    return [
        problem for path in paths if not path.is_symlink() and (problem := files.attribute(path))
    ]


def _of_space(plan: Plan) -> list[str]:
    """Return a problem for every file system without enough space for all files written to it."""
    target, version, changes = plan.target, plan.version, plan.config_plan.changes
    needs: list[tuple[Path, int]] = []
    for change in changes:
        path = target.host.file(change.path)
        needs.append((path.parent, len(change.after or b"") + _CONFIG_MARGIN))
        # The original is saved in the install directory.
        needs.append((target.install_dir, len(change.before or b"") + _CONFIG_MARGIN))
    if version is not None and not version.is_installed:
        needs.append(
            (target.install_dir, versions.room_needed(version, target.install_dir) + _MARGIN)
        )
    sums: dict[int, tuple[Path, int]] = {}
    for directory, needed in needs:
        first, sum_so_far = sums.get(mounts.device(directory), (directory, 0))
        sums[mounts.device(directory)] = (first, sum_so_far + needed)
    return [
        problem
        for directory, needed in sums.values()
        for problem in mounts.space(directory, needed)
    ]


def _of_toolkit(plan: Plan, *, tries: bool) -> list[Blocker]:
    """Return what would keep the toolkit from being installed or from working.

    Without `tries`, no probe file is written and run.
    """
    target, version = plan.target, plan.version
    if found := _not_writable(target.install_dir, _place_hint(target), is_tried=tries):
        return found
    if version is not None and not version.is_installed:
        problems = _probe(target) if tries else _noexec(target)
        if tries and (immovable := versions.immovable_reason(target.install_dir)):
            problems.append(immovable)
        hint = _place_hint(target)
        found += [Blocker(each, hint, rank=6) for each in problems]
        found += [Blocker(each, _STATIC_WRAPPERS) for each in _missing_shell(target, version)]
    if not plan.config_plan.is_noop and plan.installs:
        name = plan.config_plan.low_level[0] if plan.config_plan.low_level else "runc"
        found += [Blocker(each, _INSTALL_IT) for each in _missing_low_level_runtime(target, name)]
    return found


def _of_runtime(context: Context, plan: Plan, state: Health | None) -> list[Blocker]:
    """Return why the runtime must not be changed now: no restart budget left, or unhealthy."""
    is_restarted = (
        plan.reload_needed
        and plan.restart_method.replaces
        and not plan.restart_method.is_revival(plan.target)
    )
    found = _of_budget(context.budget, plan.change) if is_restarted else []
    if state is not None and state.problems and not context.settings.ignore_unhealthy:
        why = "; ".join(state.problems)
        hint = "use --ignore-unhealthy to continue anyway"
        found.append(Blocker(f"the runtime is already unhealthy: {why} ({hint})"))
    return found


def _of_budget(budget: Budget, change: str) -> list[Blocker]:
    """Return why the runtime may not be restarted: budget used up, or its file not writable."""
    if not budget.most:
        return []
    if refusal := budget.retry_refusal(change) or budget.restart_refusal():
        return [Blocker(refusal, _TOO_OFTEN, rank=3)]
    if os.path.isdir(budget.path):
        problem = f"{budget.path}, the file that counts restarts, is a directory"
        return [Blocker(problem, "remove that directory", rank=3)]
    directory = budget.path.parent
    problems = _not_writable(directory, _ANOTHER_PID_FILE)
    return problems or [Blocker(each, _FREE_SPACE) for each in mounts.space(directory, _NOTE)]


# --- single checks ------------------------------------------------------------------------------


def _not_writable(directory: Path, hint: str, *, is_tried: bool = True) -> list[Blocker]:
    """Return why a directory cannot be written to; `is_tried` as in `files.writable`."""
    problem = files.writable(directory, is_tried=is_tried)
    return [Blocker(problem, hint, rank=6)] if problem else []


def _place_hint(target: Target) -> str:
    """Return what to do where nothing can be installed in the install directory."""
    return _system_hint(target) or _ANOTHER_PLACE


def _noexec(target: Target) -> list[str]:
    """Return that no program can be run where the toolkit will be installed, by its mount alone."""
    directory = mounts.nearest(target.install_dir)
    is_here = target.host.is_here and visibility.of_runtime(target) is None
    if is_here and os.statvfs(directory).f_flag & os.ST_NOEXEC:
        return [f"no program can be run in {directory}: its file system is mounted noexec"]
    return []


def _probe(target: Target) -> list[str]:
    """Write, rename and run a probe file where the toolkit will be installed; return problems."""
    directory = mounts.nearest(target.install_dir)
    probe, renamed = directory / _PROBE, directory / f"{_PROBE}-renamed"
    program = elf.minimal()
    try:
        sweep(target.install_dir)
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
        with open(fd, "wb") as stream:
            stream.write(program or b"")
        os.rename(probe, renamed)
    except OSError as error:
        return [f"files in {directory} cannot be written and renamed: {error.strerror}"]
    else:
        return _runs(target, renamed) if program is not None else []
    finally:
        for path in (probe, renamed):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _runs(target: Target, probe: Path) -> list[str]:
    """Run the probe program as the runtime would, else as the node would; return the problems."""
    host = target.host
    node_path = host.node(probe)
    failed = f"no program can be run in {probe.parent}"
    seen = visibility.of_runtime(target) if os.geteuid() == 0 else None
    root: Path | None = None
    if (
        seen is not None
        and target.process is not None
        and seen.is_same_place(node_path, host.target(probe))
    ):
        root = seen.root
        directory = os.path.dirname(node_path)
        failed = (
            f"{target.desired.runtime} (PID {target.process.pid}) can run no program in {directory}"
        )
    elif not host.is_here and os.geteuid() == 0 and host.below(node_path).exists():
        root = host.root
    program = node_path if root is not None else str(probe)
    flags = os.statvfs(f"{root or ''}{program}").f_flag
    try:
        result = command.run([program], root=root)
    except StepError as error:
        why = "its file system is mounted noexec" if flags & os.ST_NOEXEC else error.message
        return [f"{failed}: {why}"]
    return [] if result.ok else [f"{failed}: the probe program exited with {result.code}"]


def _missing_shell(target: Target, version: Version) -> list[str]:
    """Return a problem if wrappers are scripts and the node has no shell for them."""
    if not any(wrappers.is_script(entry.content) for entry in version.entries):
        return []
    host = visibility.of_runtime(target) or target.host
    if host.executable(wrappers.SHELL) is not None:
        return []
    return [f"the node has no {wrappers.SHELL}, which the toolkit's wrappers need"]


def _missing_low_level_runtime(target: Target, name: str) -> list[str]:
    """Search for the low-level runtime in the runtime's own PATH; return a problem if not found."""
    paths = processes.search_path(target.process) if target.process is not None else None
    searched = f"{paths}:{SEARCH_PATH}" if paths else SEARCH_PATH
    host = visibility.of_runtime(target) or target.host
    if host.executable(name, searched) is not None:
        return []
    return [
        (
            f"the low-level runtime {name}, which the toolkit's handlers call, was not found on the"
            " node"
        )
    ]


def _owners(target: Target, changes: tuple[FileChange, ...]) -> Iterator[str]:
    """Yield a problem for every file whose owner and group cannot be given to a new file."""
    if procfs.capabilities("CapEff") & procfs.CAP_CHOWN:
        return
    groups = {os.getegid(), *os.getgroups()}
    for change in changes:
        with contextlib.suppress(OSError):
            found = os.stat(target.host.file(change.path))
            if found.st_uid != os.geteuid() or found.st_gid not in groups:
                yield (
                    f"{change.path} belongs to user {found.st_uid} and group {found.st_gid}, and"
                    " this process may not give a new file to them (a pod needs `privileged:"
                    " true`, or the capability CHOWN)"
                )


def _labels(target: Target, changes: tuple[FileChange, ...]) -> Iterator[str]:
    """Yield a problem for every file whose SELinux label cannot be set on a new file."""
    try:
        enforced = SELINUX.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return
    if not enforced or files.writable(target.install_dir) is not None:
        return
    probe = mounts.nearest(target.install_dir) / _PROBE
    for change in changes:
        label = files.label(target.host.file(change.path))
        if label is None:
            continue
        try:
            probe.touch()
            os.setxattr(probe, files.LABEL, label)
        except OSError as error:
            yield (
                f"the SELinux label {label.decode(errors='replace')} cannot be set ({error}):"
                f" {change.path}"
            )
        finally:
            with contextlib.suppress(OSError):
                os.unlink(probe)
