"""The beginning of a transaction: what is about to change made durable, and how to get back."""

from __future__ import annotations

from dataclasses import replace

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.errors import NotUnderstood
from runtimes.model import FileChange, Ownership
from toolkit import apply, detect, files, journal, readiness, scaffold, strays, undo, versions
from toolkit.detect import Scene
from toolkit.errors import ToolkitError
from toolkit.log import LOGGER
from toolkit.memory import Baseline, Job, Open, Record
from toolkit.view import Task, View


def begin(task: Task, found: View, baseline: Baseline) -> Record:
    """Make durable what is about to change, and how to get back. Raises StepFailed with nothing changed."""
    place, install_dir = found.place, found.place.install_dir
    now = apply.check(place.host, found.plan.changes)
    readiness.remove(task.readiness)
    made = [
        *map(str, files.missing_directories(install_dir)),
        *map(str, apply.missing_directories(place.host, found.plan.changes)),
    ]
    scaffold.note(task.scaffold, made)
    ours = {*found.record.directories, *scaffold.noted(task.scaffold), *made}
    opened = found.record.open
    if opened is None or (found.job is Job.REVERT and opened.job is not Job.REVERT):
        # A revert leads to before all of it, so what an earlier install left open is of no concern any more.
        earlier = replace(found.record, open=None)
        opened = Open(job=found.job, earlier=earlier, baseline=baseline)
    opened = replace(opened, why="")
    record = replace(found.record, directories=tuple(sorted(ours)), open=opened)
    try:
        # Keeping the originals makes the first of those directories: they have to be known before.
        record = journal.save(install_dir, record)
        scaffold.clear(task.scaffold)
        record = _adopting(place, record, found.adopted)
        for change in found.plan.changes:
            local, seen = place.host.local(change.path), now[change.path]
            before = journal.remember(
                install_dir, opened.files, change, local=local, seen=seen, without_us=change.before
            )
            opened = replace(opened, files=before)
            if found.job is Job.INSTALL:
                owned = journal.remember(
                    install_dir,
                    record.owned,
                    change,
                    local=local,
                    seen=seen,
                    without_us=_without_us(task.adapter, found.seen.ownership(change.path), change),
                )
                record = replace(record, owned=owned)
            elif change.stone is not None:
                record = journal.also_written(record, change.path, change.stone)
        version = found.version
        replaced = record.replaced
        if version is not None and not version.is_installed:
            replaced = replaced or versions.in_the_way(install_dir)
        return journal.save(
            install_dir,
            replace(
                record,
                runtime=place.desired.runtime,
                unit=place.owner.unit if place.owner is not None else record.unit,
                artifacts=version.digest if version is not None else record.artifacts,
                replaced=replaced,
                open=opened,
            ),
        )
    except ToolkitError:
        if found.record.open is None:
            abandon(task, place, replace(record, open=opened), opened)
        raise


def abandon(task: Task, place: Scene, record: Record, opened: Open) -> None:
    """Forget a transaction that changed nothing. Where even that fails, the next run does it."""
    try:
        undo.close(task, place, record, opened)
    except (ToolkitError, OSError) as error:
        LOGGER.debug("%s", error)


def _adopting(place: Scene, record: Record, adopted: tuple[Ownership, ...]) -> Record:
    """Return the record with files of ours whose own was lost; what they are without us is kept first."""
    owned = list(record.owned)
    for each in adopted:
        local = place.host.local(each.path)
        seen = files.read(place.host.target(local))
        owned.append(journal.adopt(place.install_dir, each, local=local, seen=seen))
    for line in strays.words(place, adopted):
        LOGGER.warning("%s", line)
    return replace(record, owned=tuple(owned))


def _without_us(adapter: Adapter, owned: Ownership | None, change: FileChange) -> bytes | None:
    """Return what a file would be now if we had never been."""
    if owned is None:
        return change.before
    try:
        return planner.without_us(adapter, owned, change.before)[0]
    except NotUnderstood as error:
        raise detect.not_understood(error) from error
