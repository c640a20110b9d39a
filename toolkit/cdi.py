"""The CDI specification made, made again, and taken back. The runtime's own files are never touched here.

It comes after the transaction: the hook that it names is there by then, and a
driver that is not there yet, or that nvidia-ctk cannot make sense of, is no
reason to take the runtime's configuration back, which is right without it. A
runtime reads the directory of specifications by itself, so it need not be told.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from runtimes.model import fingerprint
from toolkit import apply, attest, ctk, driver, files, journal, specification
from toolkit.errors import StepFailed, ToolkitError
from toolkit.host import Host
from toolkit.log import LOGGER
from toolkit.memory import Owned, Record
from toolkit.specification import Specification
from toolkit.stop import Patience
from toolkit.view import Task, View

_LONGEST: Final = 120.0
"""How many seconds nvidia-ctk may take: a driver that nobody keeps awake wakes each GPU for it."""
_LEAST: Final = 5.0


class NotSpecified(StepFailed):
    """The specification could not be made; the runtime and its files are as wanted all the same."""


def settle(task: Task, found: View) -> None:
    """Make the specification where it is due, take back the one that is not wanted any more.

    Whether the node counts as ready is said anew then. Raises NotSpecified.
    """
    if found.specification.is_settled:
        return
    place = found.place
    with task.tally.during("specification"):
        try:
            record = journal.load(place.install_dir)
            if found.specification.is_stale:
                record, _ = take_back(place.host, place.install_dir, record)
            if specification.look(task.settings, place.host, place.install_dir, record).is_due:
                record = _made(task, place.host, place.install_dir, record)
        except (ToolkitError, OSError) as error:
            raise _not_specified(error) from error
        now = specification.look(task.settings, place.host, place.install_dir, record)
        if record.owed_since is None:
            after = replace(found, record=record, specification=now)
            attest.say(task, after, attest.word(task, after))


def _not_specified(error: ToolkitError | OSError) -> NotSpecified:
    why, hint = (error.message, error.hint) if isinstance(error, ToolkitError) else (str(error), "")
    return NotSpecified(
        f"the CDI specification was not made: {why}; the runtime and its files are as wanted", hint=hint
    )


def take_back(
    host: Host, install_dir: Path, record: Record, *, even_if_gone: bool = False
) -> tuple[Record, str]:
    """Put back what stood in the specification's place; what somebody else wrote there since stays.

    Returns the record, and the path of the file where it stayed. Raises StepFailed; where what stood
    there is gone, only if `even_if_gone` does not let the file go without it.
    """
    owned = record.specification
    if owned is None:
        return record, ""
    local = _place(host, owned)
    files.sweep(local, None)
    seen = files.read(local)
    stayed = ""
    if seen is not None and fingerprint(seen.data) in owned.written:
        before = _before(install_dir, owned, even_if_gone=even_if_gone)
        if before is None:
            files.remove(local)
        else:
            files.put(local, before, dress=apply.dress_of(owned))
        LOGGER.info("%s %s", "removed" if before is None else "gave back", local)
    elif seen is not None:
        stayed = str(local)
        LOGGER.warning("stays, since somebody edited it meanwhile: %s", local)
    return journal.save(install_dir, replace(record, specification=None, made_of="")), stayed


def _before(install_dir: Path, owned: Owned, *, even_if_gone: bool) -> bytes | None:
    try:
        return journal.original(install_dir, owned)
    except StepFailed as error:
        if not even_if_gone:
            raise
        LOGGER.warning("%s: ours goes all the same", error.message)
        return None


def _place(host: Host, owned: Owned) -> Path:
    """Return where the file is seen: its directory need not be mounted as it was when the file was made."""
    local = Path(owned.local)
    return local if local.parent.is_dir() else host.target(host.below(owned.path))


def _made(task: Task, host: Host, install_dir: Path, record: Record) -> Record:
    """Make the specification; a kill at any point leaves the old file or the new one. Raises StepFailed."""
    settings = task.settings
    tools = specification.tools(settings, host, install_dir)
    ctk.see(host, tools)
    patience = Patience(_LONGEST, task.stop).allowing(_LEAST)
    roots = driver.roots(settings, host)
    if roots is None:
        raise StepFailed(f"the driver's root {settings.text('driver_root')} is not there")
    if specification.wants_nodes(settings) and driver.missing_control_nodes(roots):
        ctk.make_control_nodes(tools, roots, timeout=patience)
        LOGGER.info("made the driver's device nodes below %s", roots.named[1])
    found = specification.look(settings, host, install_dir, record)
    data = ctk.specification(host, tools, roots, settings.text("cdi_kind"), timeout=patience)
    if specification.mark(settings, host, install_dir) != found.made_of:
        raise StepFailed(
            "the driver or its devices changed meanwhile", hint="run again when they are at rest"
        )
    return _put(install_dir, record, found, data)


def _put(install_dir: Path, record: Record, found: Specification, data: bytes) -> Record:
    now = files.read(found.local)
    made = [str(directory) for directory in files.missing_directories(found.local.parent)]
    if now is not None and record.specification is None:
        journal.keep(install_dir, now.data)
    record = journal.save(
        install_dir,
        replace(
            record,
            directories=tuple(sorted({*record.directories, *made})),
            specification=_owned(record.specification, found, now, data),
            made_of=found.made_of,
        ),
    )
    if now is None or now.data != data:
        files.make_directory(found.local.parent)
        files.put(found.local, data)
        LOGGER.info("%s the CDI specification %s", "made" if now is None else "made anew", found.local)
    return record


def _owned(before: Owned | None, found: Specification, now: files.Seen | None, data: bytes) -> Owned:
    """Return what is remembered of the file: until it is written, what is there may be ours as well."""
    mark = fingerprint(data)
    if before is not None and now is not None:
        earlier = tuple(known for known in before.written if known == fingerprint(now.data))
        return replace(before, local=str(found.local), written=(mark, *earlier))
    # What the boot took with it, or somebody else, is not to come back.
    original = fingerprint(now.data) if now else None
    return replace(journal.dressed(found.path, found.local, now), original=original, written=(mark,))
