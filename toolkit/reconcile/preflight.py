"""Preflight checks: find everything that would make a change fail before anything is changed.

All problems are reported together. A probe file is created in the install directory and removed
again. Nothing is created in the runtime's configuration directories, because the runtime reads
every file there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from runtimes import distributions, planner
from runtimes.model import FileChange
from toolkit.artifacts import versions
from toolkit.deadline import Deadline
from toolkit.errors import Interrupted, StepError
from toolkit.log import LOGGER
from toolkit.node import command, elf, files, mounts, processes, procfs, system
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
_CORRECT: Final = "correct --runtime-config-override (RUNTIME_CONFIG_OVERRIDE)"
SELINUX: Final = Path("/sys/fs/selinux/enforce")
SEARCH_PATH: Final = command.SEARCH_PATH


def check(context: Context, plan: Plan) -> Baseline:
    """Run all checks and return the baseline of the change.

    Raises StepError with all problems, and Interrupted if the run was asked to stop. Nothing is
    changed then.
    """
    target, config_plan = plan.target, plan.config_plan
    problems = [*_of_files(target, config_plan.changes), *_of_space(plan), *_of_attributes(plan)]
    distrusted = () if config_plan.is_noop else locate.distrusted_files(target, plan.observation)
    problems += [f"{problem}, so it is not edited" for problem in distrusted]
    if place := locate.distrusted_place(target):
        problems.append(f"{place}, so nothing is installed in {target.install_dir}")
    invisible = plan.invisible() if plan.operation is Operation.INSTALL else []
    problems += [each.problem for each in invisible]
    problems += (
        _of_toolkit(plan) if plan.operation is Operation.INSTALL else _writable(target.install_dir)
    )
    obstacle = plan.restart_method.obstacle if plan.reload_needed else _no_process(context, plan)
    state = _state(context, plan)
    unread, unread_hint = _unread(context, plan) or ("", "")
    others = (unread, _in_use(context, plan), _ended_containers(context, plan))
    problems += [problem for problem in (obstacle, *others) if problem]
    problems += _of_runtime(context, plan, state) if plan.operation is Operation.INSTALL else []
    unusable = _of_override(context, plan)
    problems += unusable
    broken, correct_it = _of_origin(context, plan)
    problems += broken
    if problems:
        fixed, way_out = read_only(plan)
        hints = [
            _NOT_ANSWERING if obstacle else "",
            invisible[0].hint if invisible else "",
            unread_hint,
            _TOO_OFTEN if any("--restart-budget" in problem for problem in problems) else "",
            _CORRECT if problems == unusable else "",
            correct_it if problems == broken else "",
            _OWN_IT if distrusted or place else _system_hint(target) or (way_out if fixed else ""),
        ]
        hint = next((each for each in hints if each), "")
        raise StepError(f"{'; '.join(problems)}: nothing was changed", hint=hint)
    if context.stop.is_requested:
        raise Interrupted(context.stop.signal)
    return verify.baseline_of(context.adapter, plan, state)


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


def _of_origin(context: Context, plan: Plan) -> tuple[list[str], str]:
    """Return what the handlers inherit and the node does not have, and a hint what to do.

    It is only logged if the handler of the node that lacks it is the default already, or if the
    default stays: no pod that starts today fails because of it.
    """
    origin = plan.config_plan.origin
    if plan.operation is not Operation.INSTALL or plan.config_plan.is_noop or not origin.settings:
        return [], ""
    from toolkit.runtime import handler_requirements  # noqa: PLC0415  # Only needed if something changes.

    found = list(
        handler_requirements.inherited_problems(plan.target, origin, timeout=verify.soon(context))
    )
    if origin.default not in {"", origin.source}:
        keeps = f"--set-as-default=false, which keeps {origin.default} as the default"
        return found, f"correct the handler {origin.source}, or use {keeps}"
    for problem in found:
        LOGGER.warning("%s: no pod starts through either", problem)
    return [], ""


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
    is_affected = plan.reload_needed or must_be_healthy(context, plan)
    if not is_affected or plan.target.process is None:
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


def _of_files(target: Target, changes: tuple[FileChange, ...]) -> list[str]:
    """Return the problems that would keep the runtime's files from being written."""
    result = apply.unwritable(target.host, changes)
    points = mounts.mount_points()
    for change in changes:
        path = target.host.file(change.path)
        if os.path.realpath(path) in points:
            result.append(
                f"{path} is a mount point and cannot be replaced: mount its directory instead"
            )
    result += _labels(target, changes)
    result += _owners(target, changes)
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


def _of_toolkit(plan: Plan) -> list[str]:
    """Return the problems that would keep the toolkit from being installed or from working."""
    target, version = plan.target, plan.version
    if problems := _writable(target.install_dir):
        return problems
    if version is not None and not version.is_installed:
        problems += _probe(target)
        if immovable := versions.immovable_reason(target.install_dir):
            problems.append(immovable)
    if not plan.config_plan.is_noop and plan.installs:
        problems += _missing_low_level_runtime(
            target, plan.config_plan.low_level[0] if plan.config_plan.low_level else "runc"
        )
    return problems


def _of_runtime(context: Context, plan: Plan, state: Health | None) -> list[str]:
    """Return why the runtime must not be changed now: no restart budget left, or unhealthy."""
    is_restarted = (
        plan.reload_needed
        and plan.restart_method.replaces
        and not plan.restart_method.is_revival(plan.target)
    )
    problems = _of_budget(context.budget, plan.change) if is_restarted else []
    if state is not None and state.problems and not context.settings.ignore_unhealthy:
        why = "; ".join(state.problems)
        hint = "use --ignore-unhealthy to continue anyway"
        problems.append(f"the runtime is already unhealthy: {why} ({hint})")
    return problems


def _of_budget(budget: Budget, change: str) -> list[str]:
    """Return why the runtime may not be restarted: budget used up, or its file not writable."""
    if not budget.most:
        return []
    if refusal := budget.retry_refusal(change) or budget.restart_refusal():
        return [refusal]
    if budget.path.is_dir():
        return [f"{budget.path}, the file that counts restarts, is a directory"]
    directory = budget.path.parent
    return _writable(directory) or mounts.space(directory, _NOTE)


# --- single checks ------------------------------------------------------------------------------


def _writable(directory: Path) -> list[str]:
    problem = files.writable(directory)
    return [problem] if problem else []


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
    if not enforced or files.writable(target.install_dir):
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
