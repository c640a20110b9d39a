"""Generate, regenerate and remove the CDI specification.

This runs after the transaction: the hook that the specification names is installed by then, and a
driver that is missing or that nvidia-ctk cannot handle is no reason to roll back the runtime's
configuration, which is valid without a specification. The runtime needs no restart, because it
watches the directory of specifications.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from runtimes.dataclass import replace
from runtimes.model import fingerprint
from toolkit.cdi import driver, nvidia_ctk, spec
from toolkit.cdi.spec import Specification
from toolkit.deadline import Deadline
from toolkit.errors import StepError, ToolkitError
from toolkit.log import LOGGER
from toolkit.node import files, trust
from toolkit.node.host import Host
from toolkit.reconcile import apply, readiness, verify
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan
from toolkit.state import journal
from toolkit.state.record import Owned, Record

_LONGEST: Final = 120.0
"""Seconds that nvidia-ctk may take: without the persistence daemon, every GPU is initialized."""
_LEAST: Final = 5.0
_OWNERS: Final = "chown root:root and chmod go-w the directory, or choose another --cdi-output-dir"


class NotSpecified(StepError):
    """The specification could not be generated; the runtime and its files are in sync."""


def update(context: Context, plan: Plan) -> None:
    """Generate the specification if it is due, and remove one that is no longer wanted.

    The readiness record is updated afterwards. Raises NotSpecified.
    """
    if plan.specification.needs_nothing:
        return
    target = plan.target
    with context.stats.during("cdi"):
        try:
            record = journal.load(target.install_dir)
            if plan.specification.is_stale:
                record, _ = take_back(target.host, target.install_dir, record)
            if spec.observe(context.settings, target.host, target.install_dir, record).is_due:
                record = _generate(context, target.host, target.install_dir, record)
        except (ToolkitError, OSError) as error:
            raise _not_specified(error) from error
        specification = spec.observe(context.settings, target.host, target.install_dir, record)
        if record.pending_reload is None:
            after = replace(plan, record=record, specification=specification)
            readiness.write_readiness(context, after, verify.runtime_state(context, after))


def _not_specified(error: ToolkitError | OSError) -> NotSpecified:
    why, hint = (error.message, error.hint) if isinstance(error, ToolkitError) else (str(error), "")
    return NotSpecified(
        f"the CDI specification was not made: {why}; the runtime and its files are in sync",
        hint=hint,
    )


def take_back(
    host: Host, install_dir: Path, record: Record, *, even_if_gone: bool = False
) -> tuple[Record, str]:
    """Remove the generated specification and restore the file that it replaced.

    A specification that was modified since is kept. Returns the record, and the path of the file if
    it was kept. Raises StepError if a file cannot be written, or if the saved original is missing
    and `even_if_gone` is false.
    """
    owned = record.specification
    if owned is None:
        return record, ""
    local = _local_path(host, owned)
    files.sweep(local, None)
    snapshot = files.read(local)
    kept = ""
    if snapshot is not None and fingerprint(snapshot.data) in owned.written:
        original = _original(install_dir, owned, even_if_gone=even_if_gone)
        if original is None:
            files.remove(local)
        else:
            files.put(local, original, metadata=apply.metadata_of(owned))
        LOGGER.info("%s %s", "removed" if original is None else "restored", local)
    elif snapshot is not None:
        kept = str(local)
        LOGGER.warning("kept, because it was modified meanwhile: %s", local)
    return (
        journal.save(install_dir, replace(record, specification=None, specification_source="")),
        kept,
    )


def _original(install_dir: Path, owned: Owned, *, even_if_gone: bool) -> bytes | None:
    """Return the content of the file that the specification replaced, None if there was none."""
    try:
        return journal.original(install_dir, owned)
    except StepError as error:
        if not even_if_gone:
            raise
        LOGGER.warning("%s; the generated file is removed anyway", error.message)
        return None


def _local_path(host: Host, owned: Owned) -> Path:
    """Return the local path of the file; its directory may be mounted elsewhere than before."""
    local = Path(owned.local)
    return local if local.parent.is_dir() else host.target(host.below(owned.path))


def _generate(context: Context, host: Host, install_dir: Path, record: Record) -> Record:
    """Generate the specification and return the new record; the file is replaced atomically.

    Raises StepError if the driver is missing, changes meanwhile, or nvidia-ctk fails.
    """
    settings = context.settings
    tools = spec.tools(settings, host, install_dir)
    nvidia_ctk.require(host, tools)
    deadline = Deadline(_LONGEST, context.stop).at_least(_LEAST)
    roots = driver.roots(settings, host)
    if roots is None:
        raise StepError(f"the driver root {settings.driver_root} was not found")
    if spec.wants_nodes(settings) and driver.missing_control_nodes(host, roots):
        nvidia_ctk.make_control_nodes(tools, roots, timeout=deadline)
        LOGGER.info("created the driver's device nodes in %s", roots.named[1])
    specification = spec.observe(settings, host, install_dir, record)
    data = nvidia_ctk.specification(
        host, tools, roots, settings.cdi_kind, mode=driver.mode(host), timeout=deadline
    )
    if spec.dependencies(settings, host, install_dir) != specification.made_of:
        raise StepError(
            "the driver or its devices changed while the specification was generated",
            hint="run again when they no longer change",
        )
    return _put(install_dir, record, specification, data)


def _put(install_dir: Path, record: Record, specification: Specification, data: bytes) -> Record:
    """Save the record, then write the specification if its content changed; return the record.

    Raises StepError, also if other users control the directory of the specification.
    """
    if problem := trust.place_problem(specification.local.parent):
        raise StepError(problem, hint=_OWNERS)
    current = files.read(specification.local)
    missing = [
        str(directory) for directory in files.missing_directories(specification.local.parent)
    ]
    if current is not None and record.specification is None:
        journal.keep(install_dir, current.data)
    record = journal.save(
        install_dir,
        replace(
            record,
            directories=tuple(sorted({*record.directories, *missing})),
            specification=_owned(record.specification, specification, current, data),
            specification_source=specification.made_of,
        ),
    )
    if current is None or current.data != data:
        files.make_directory(specification.local.parent)
        files.put(specification.local, data)
        action = "generated" if current is None else "regenerated"
        LOGGER.info("%s the CDI specification %s", action, specification.local)
    return record


def _owned(
    recorded: Owned | None,
    specification: Specification,
    current: files.FileSnapshot | None,
    data: bytes,
) -> Owned:
    """Return the specification's record; until `data` is written, current content is owned too."""
    digest = fingerprint(data)
    if recorded is not None and current is not None:
        previous = tuple(known for known in recorded.written if known == fingerprint(current.data))
        return replace(recorded, local=str(specification.local), written=(digest, *previous))
    # If the file is missing (a reboot clears /run, or it was removed), there is no original to
    # restore.
    original = fingerprint(current.data) if current else None
    return replace(
        journal.with_metadata(specification.path, specification.local, current),
        original=original,
        written=(digest,),
    )
