"""Everything that could keep a change from being done, looked at before anything is touched.

All findings are told together. A probe file is made in the install directory and
removed again; directories of the runtime's configuration are only looked at, for
their files are live.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from runtimes import distributions, planner
from runtimes.model import FileChange, ReachKind
from toolkit import (
    apply,
    before,
    elf,
    files,
    health,
    machine,
    owner,
    process,
    readiness,
    versions,
    whereabouts,
)
from toolkit.budget import Budget
from toolkit.detect import Scene
from toolkit.errors import Interrupted, StepFailed
from toolkit.health import Health
from toolkit.memory import Baseline, Job
from toolkit.stop import Patience
from toolkit.view import Task, View, is_asked

_MARGIN: Final = 1 << 20
_SOON: Final = 5.0
_CONFIG_MARGIN: Final = 64 << 10
_NOTE: Final = 4 << 10
_PROBE: Final = ".toolkit-probe"
_NOT_ANSWERING: Final = "with --restart-mode none a runtime that does not answer is left to you"
_TOO_OFTEN: Final = "find out what makes it change so often; --restart-budget 0 restarts it all the same"
_SELINUX: Final = Path("/sys/fs/selinux/enforce")
_SEARCHED: Final = process.SEARCH_PATH


def look_ahead(task: Task, found: View) -> Baseline:
    """Look at everything that could keep the change from being done, and at how the runtime is now.

    Everything that is found is told together. Raises StepFailed, with nothing
    touched, and Interrupted where stopping is wished already.
    """
    place, plan = found.place, found.plan
    problems = [*_of_files(place, plan.changes), *_of_room(found)]
    problems += _of_toolkit(found) if found.job is Job.INSTALL else _writable(place.install_dir)
    obstacle = found.way.obstacle if found.reload_needed else _absence(task, found)
    now = _now(task, found)
    problems += [problem for problem in (obstacle, _unread(task, found), _in_use(task, found)) if problem]
    problems += _of_runtime(task, found, now) if found.job is Job.INSTALL else []
    if problems:
        too_often = _TOO_OFTEN if any("--restart-budget" in problem for problem in problems) else ""
        hint = _NOT_ANSWERING if obstacle else too_often or _way_here(place)
        raise StepFailed(f"{'; '.join(problems)}: nothing was changed", hint=hint)
    if task.stop.is_wished:
        raise Interrupted(task.stop.signal)
    return before.taken(task.adapter, found, now)


def _way_here(place: Scene) -> str:
    """Return what to do on an operating system on which the defaults do not work; empty on others."""
    row = distributions.system(machine.os_release(place.host))
    return f"{row.why}: {row.way}" if row is not None else ""


def _now(task: Task, found: View) -> Health | None:
    """Return how the runtime is before the change; None where it is not concerned or not there.

    New files alone concern it as well: there is no success beside a sick runtime.
    """
    concerned = found.reload_needed or is_asked(task, found)
    if not concerned or found.place.owner is None:
        return None
    now = health.look(found.place, task.adapter, Patience(_SOON, task.stop))
    if now.ailments and task.stop.is_wished:
        raise Interrupted(task.stop.signal)  # it had no time to become well
    if now.ailments:
        readiness.remove(task.readiness)
    return now


def _unread(task: Task, found: View) -> str:
    """Return why the runtime would not read what is to be written; empty where it may."""
    place = found.place
    is_template = place.desired.reach.kind is ReachKind.TEMPLATE
    if place.owner is None or found.job is not Job.INSTALL or found.plan.is_noop or is_template:
        return ""
    given = owner.argument(place.owner, task.adapter.config_flags)
    return whereabouts.unread(place.host, task.adapter, given, place.desired.config)


def _absence(task: Task, found: View) -> str:
    """Return why a runtime that has its word cannot be asked; empty where it can."""
    return found.place.silence if is_asked(task, found) and found.place.owner is None else ""


def _in_use(task: Task, found: View) -> str:
    """Return who asked for a handler that an install takes away, a former one say; empty where nobody did.

    Raises StepFailed where that cannot be known, and Interrupted.
    """
    place, adapter = found.place, task.adapter
    if found.job is not Job.INSTALL:
        return ""
    former = planner.recorded(place.desired, [owned.edits for owned in found.seen.owned])
    gone = adapter.defined(former, found.seen.files) - adapter.defined(former, found.files_after)
    gone -= found.plan.made
    if not gone:
        return ""
    from toolkit import usage  # noqa: PLC0415  # only where a handler goes

    handlers = tuple(handler for handler in former.handlers if handler.name in gone)
    place = replace(place, desired=replace(former, handlers=handlers))
    using = usage.using_before(place, adapter, found.seen, task.patience(), task.stop, by_name=True)
    what = f"{', '.join(sorted(gone))}, which would go"
    return f"{usage.words(using, what)} (end them first)" if using else ""


def sweep(install_dir: Path) -> None:
    """Remove what a run left that was killed while it looked."""
    # It may have been there when the directory itself was not.
    for directory in (install_dir, *install_dir.parents):
        for name in (_PROBE, f"{_PROBE}-renamed"):
            with contextlib.suppress(OSError):
                os.unlink(directory / name)


def _of_files(place: Scene, changes: tuple[FileChange, ...]) -> list[str]:
    """Return, in words, what would keep the runtime's files from being changed."""
    found = apply.obstacles(place.host, changes)
    mounts = mount_points()
    for change in changes:
        path = place.host.target(place.host.local(change.path))
        if os.path.realpath(path) in mounts:
            found.append(f"{path} is mounted by itself and cannot be replaced: mount its directory")
    found += _labels(place, changes)
    return list(dict.fromkeys(found))


def _of_room(found: View) -> list[str]:
    """Return, in words, which file systems are too small for all that would lie on them."""
    place, version, changes = found.place, found.version, found.plan.changes
    needs: list[tuple[Path, int]] = []
    for change in changes:
        path = place.host.target(place.host.local(change.path))
        needs.append((path.parent, len(change.after or b"") + _CONFIG_MARGIN))
        needs.append((place.install_dir, len(change.before or b"") + _CONFIG_MARGIN))  # kept for the way back
    if version is not None and not version.is_installed:
        needs.append((place.install_dir, versions.room_needed(version, place.install_dir) + _MARGIN))
    sums: dict[int, tuple[Path, int]] = {}
    for directory, needed in needs:
        first, sum_so_far = sums.get(_device(directory), (directory, 0))
        sums[_device(directory)] = (first, sum_so_far + needed)
    return [problem for directory, needed in sums.values() for problem in _space(directory, needed)]


def _device(directory: Path) -> int:
    """Return the number of the file system that a directory lies on, or will lie on."""
    seen = files.status(_nearest(directory))
    return seen.st_dev if seen is not None else 0


def _of_toolkit(found: View) -> list[str]:
    """Return, in words, what would keep the toolkit from being installed or from working."""
    place, version = found.place, found.version
    if problems := _writable(place.install_dir):
        return problems
    if version is not None and not version.is_installed:
        problems += _probe(place)
    if not found.plan.is_noop and found.installs:
        problems += _low_level(place, found.plan.low_level[0] if found.plan.low_level else "runc")
    return problems


def _of_runtime(task: Task, found: View, now: Health | None) -> list[str]:
    """Return, in words, why the runtime should be left alone."""
    is_silenced = found.reload_needed and found.way.replaces and not found.way.is_revival(found.place)
    problems = _of_budget(task.budget, found.change) if is_silenced else []
    if now is not None and now.ailments and not task.settings.flag("repair"):
        ailments = "; ".join(now.ailments)
        problems.append(f"the runtime is not well already: {ailments} (--repair goes on all the same)")
    return problems


def _of_budget(budget: Budget, change: str) -> list[str]:
    """Return, in words, why the runtime may not be restarted: too often, or it could not be counted."""
    if not budget.most:
        return []
    if refusal := budget.put_off(change) or budget.refusal():
        return [refusal]
    if budget.path.is_dir():
        return [f"{budget.path}, where restarts are counted, is a directory"]
    directory = budget.path.parent
    return _writable(directory) or _space(directory, _NOTE)


# --- one thing each -----------------------------------------------------------------------------


def _writable(directory: Path) -> list[str]:
    problem = files.writable(directory)
    return [problem] if problem else []


def _space(directory: Path, needed: int) -> list[str]:
    there = _nearest(directory)
    try:
        room = os.statvfs(there)
    except OSError as error:
        return [f"{there} cannot be looked at: {error.strerror}"]
    free = room.f_bavail * room.f_frsize
    if free < needed:
        return [f"{there} has {free >> 10} KiB of room, and {needed >> 10} KiB are needed"]
    if room.f_files and not room.f_favail:
        return [f"{there} has no inodes left"]
    return []


def _probe(place: Scene) -> list[str]:
    """Write, rename and run a file where the toolkit will lie."""
    directory = _nearest(place.install_dir)
    probe, renamed = directory / _PROBE, directory / f"{_PROBE}-renamed"
    program = elf.smallest()
    try:
        sweep(place.install_dir)
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
        with open(fd, "wb") as stream:
            stream.write(program or b"")
        os.rename(probe, renamed)
    except OSError as error:
        return [f"files in {directory} cannot be written and renamed: {error.strerror}"]
    else:
        return _runs(place, renamed) if program is not None else []
    finally:
        for path in (probe, renamed):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _runs(place: Scene, probe: Path) -> list[str]:
    host = place.host
    node_path = host.node(probe)
    is_seen = host.is_here or (os.geteuid() == 0 and host.below(node_path).exists())
    flags = os.statvfs(probe).f_flag
    try:
        done = process.run([node_path if is_seen else str(probe)], root=host.root if is_seen else None)
    except StepFailed as error:
        why = "its file system is mounted noexec" if flags & os.ST_NOEXEC else error.message
        return [f"no program can be run in {probe.parent}: {why}"]
    return [] if done.ok else [f"no program can be run in {probe.parent}: a probe ended with {done.code}"]


def _low_level(place: Scene, name: str) -> list[str]:
    """Look for what our handlers pass containers on to, as the runtime itself would."""
    paths = owner.search_path(place.owner) if place.owner is not None else None
    searched = f"{paths}:{_SEARCHED}" if paths else _SEARCHED
    if place.host.executable(name, searched) is not None:
        return []
    return [f"the low-level runtime {name}, which our handlers pass containers on to, is not on the node"]


def _labels(place: Scene, changes: tuple[FileChange, ...]) -> Iterator[str]:
    """Try whether a file of ours may get the label that the file it replaces has."""
    try:
        enforced = _SELINUX.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return
    if not enforced or files.writable(place.install_dir):
        return
    probe = _nearest(place.install_dir) / _PROBE
    for change in changes:
        label = files.label(place.host.target(place.host.local(change.path)))
        if label is None:
            continue
        try:
            probe.touch()
            os.setxattr(probe, files.LABEL, label)
        except OSError as error:
            yield f"the SELinux label {label.decode(errors='replace')} cannot be set ({error}): {change.path}"
        finally:
            with contextlib.suppress(OSError):
                os.unlink(probe)


def _nearest(directory: Path) -> Path:
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    return directory


def mount_points() -> set[str]:
    """Return where something is mounted in our namespace; mountinfo writes odd characters in octal."""
    try:
        lines = (
            Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        )
    except OSError:
        return set()
    return {re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split(" ")[4]) for line in lines}
