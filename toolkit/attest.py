"""Whether the node counts as ready: by the runtime's own word, noted in the readiness record."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any, Final

from runtimes import planner
from runtimes.model import fingerprint
from toolkit import detect, health, journal, readiness
from toolkit.debts import is_owed
from toolkit.errors import NotReloaded, StepFailed, UsageProblem
from toolkit.health import Health
from toolkit.log import LOGGER
from toolkit.memory import UNTOLD, Baseline, Job
from toolkit.options import RestartMode
from toolkit.owner import Owner
from toolkit.stop import Patience, Timeout
from toolkit.verify import Expected
from toolkit.view import Task, View, is_asked, view

_SOON: Final = 5.0
_VAIN: Final = "look at the runtime's own log; once it was restarted or its files changed, run again"
_OWN: Final = "a toolkit of the host's own may be found first; to leave it to that: --no-runtime-config"
_LEAST: Final = 1.0


def check(task: Task) -> tuple[View, str]:
    """Look at the node and change nothing but the readiness record.

    Returns what was seen, and why it does not count as ready, if so. Raises ToolkitError.
    """
    found = view(task)
    refuse(task, found)
    is_well = found.is_noop and found.record.open is None
    found = say(task, found, word(task, found) if is_well else None)
    return found, unready(task, found)


def refuse(task: Task, found: View) -> None:
    """Raise the UsageProblem of a node that speaks against the settings, or of a toolkit that cannot be had.

    Handlers that lead nowhere are not ready.
    """
    against = () if task.settings.flag("no_runtime_config") else found.place.against
    if against:
        raise UsageProblem(
            [f"{each.problem}: nothing was changed" for each in against],
            hint="; ".join(dict.fromkeys(each.way_out for each in against)),
        )
    if found.source_problem is None:
        return
    if not found.installs:
        readiness.remove(task.readiness)
    raise found.source_problem


def expected(task: Task, found: View, baseline: Baseline | None) -> Expected:
    """Return what the runtime has to be like once a plan is carried out."""
    desired = found.place.desired
    ours = desired.names | planner.former(found.seen)
    present = task.adapter.defined(desired, found.files_after)
    present |= found.plan.made if found.job is Job.INSTALL else frozenset()
    # A handler that CRI-O's hook mode or `default_runtime` of old stands for has no name to ask for.
    by_name = found.job is Job.INSTALL and not desired.hook_mode and not desired.legacy
    return Expected(
        desired=desired,
        ours=ours,
        present=present,
        absent=desired.names - present - frozenset(desired.reach.makes),
        default=desired.default if by_name else None,
        raised=planner.defaults(found.seen),
        baseline=baseline,
        files=found.files_after,
        cri=_serves_cri(found),
    )


def _serves_cri(found: View) -> bool | None:
    """Tell whether the runtime has to serve CRI where we switch that; None: as before."""
    if found.job is Job.INSTALL:
        return True if found.place.desired.enable_cri else None
    return False if planner.enabled_cri(found.seen) else None


def as_generated(task: Task, found: View) -> View:
    """Return the view with the files as the distribution has written them anew at the start of the runtime.

    Raises NotReloaded where it did not make of them what was to be expected.
    """
    if not found.place.desired.generated or not found.reload_needed or task.mode is RestartMode.NONE:
        return found
    install_dir, is_forced = found.place.install_dir, task.settings.flag("even_if_in_use")
    owned = journal.ownerships(install_dir, journal.load(install_dir).owned, even_if_gone=is_forced)
    seen = detect.observe(found.place, task.adapter, owned)
    if found.job is Job.INSTALL and (unmade := detect.plan(found.place, task.adapter, seen).unmade):
        raise NotReloaded(f"the distribution was started anew, and still {unmade}", hint=_OWN)
    return replace(found, seen=seen)


def word(task: Task, found: View) -> Health | None:
    """Return how the runtime is where it is as wanted, without any waiting; None where it is not."""
    if task.settings.flag("no_runtime_config"):
        return Health(has=UNTOLD)
    if is_owed(found.place, found.record, RestartMode.AUTO):
        return None
    now = health.once(found.place, task.adapter, timeout=soon(task))
    return None if now.ailments or expected(task, found, None).lacking(task.adapter, now) else now


def say(task: Task, found: View, now: Health | None) -> View:
    """Write the readiness record where the runtime is as wanted by its own word; else there is none.

    `now` is that word, asked for after everything else that was seen. Returns the
    view with what the record says, where there is one.
    """
    facts = None
    try:
        facts = None if now is None or found.specification.is_lacking else _sworn(task, found, now)
        if facts is None:
            readiness.remove(task.readiness)
        else:
            readiness.write(task.readiness, facts)
    except StepFailed as error:
        LOGGER.warning("%s; the node is as wanted, but does not count as ready", error.message)
    return replace(found, sworn=facts)


def unready(task: Task, found: View) -> str:
    """Return why the node does not count as ready; empty where the record of it is true."""
    if not found.is_noop:
        return "the node is not as wanted"
    if found.specification.is_lacking:
        return f"the CDI specification waits: {found.specification.waits_for}"
    if found.sworn is not None:
        return readiness.mismatch(task.readiness, dict(found.sworn))
    now = word(task, found)
    if now is None:
        return "the runtime does not say that it is as wanted"
    return readiness.mismatch(task.readiness, _facts(task, found, now, _daemon(task, found)))


def configuration(found: View) -> dict[str, str]:
    """Return the fingerprints of the runtime's files by their path here, once the plan is carried out."""
    host = found.place.host
    return {str(host.local(path)): fingerprint(data) for path, data in sorted(found.files_after.items())}


def with_what_it_lacks(task: Task, found: View) -> View:
    """Return the view in which a well runtime that lacks what its files say is told of them too.

    Raises NotReloaded where that would not help.
    """
    if found.reload_needed or found.place.owner is None or not is_asked(task, found):
        return found
    now = health.once(found.place, task.adapter, timeout=soon(task))
    lacks = [] if now.ailments else expected(task, found, None).lacking(task.adapter, now)
    return to_be_told(task, found, NotReloaded("; ".join(lacks))) if lacks else found


def to_be_told(task: Task, found: View, error: NotReloaded) -> View:
    """Return the view in which a runtime that lacks what its files say is told of them anew.

    Raises NotReloaded where that very process was, and it did not help.
    """
    if task.budget.was_in_vain(_mark(found, found.place.owner)):
        raise NotReloaded(
            f"{error.message}; telling it of the same files did not help", hint=_VAIN
        ) from error
    LOGGER.warning("%s", error.message)
    return replace(found, reload_owed=True)


def note_vain(task: Task, found: View) -> None:
    """Remember that telling it did not help: no run tries it again with these files and this process."""
    here = detect.again(found.place, task.adapter)
    with contextlib.suppress(StepFailed):  # then it is the budget that ends it
        task.budget.note_vain(_mark(found, here.owner))


def _mark(found: View, daemon: Owner | None) -> str:
    """Return what names the runtime's files together with its process."""
    process = [daemon.pid, daemon.started] if daemon is not None else None
    return fingerprint(json.dumps([configuration(found), process]).encode())


def soon(task: Task) -> Timeout:
    """Return how long a question that nothing waits for may take, less where stopping is wished."""
    return Patience(_SOON, task.stop).allowing(_LEAST)


def _sworn(task: Task, found: View, now: Health) -> dict[str, Any] | None:
    """Return what a readiness record says; None where nobody stands for it.

    What a process says is asked for between two looks at who that is: one that
    was started meanwhile may have other handlers. The first look is that of the
    view, where the same process answers still; else both are made anew.
    """
    here = _daemon(task, found)
    if here == found.place.owner or task.settings.flag("no_runtime_config"):
        return _facts(task, found, now, here)
    before, again = here, word(task, found)
    if again is None or _daemon(task, found) != before:
        LOGGER.warning("the runtime did not stay as it was, so the node does not count as ready yet")
        return None
    return _facts(task, found, again, before)


def _daemon(task: Task, found: View) -> Owner | None:
    if task.settings.flag("no_runtime_config"):
        return None
    return detect.again(found.place, task.adapter, timeout=soon(task)).owner


def _facts(task: Task, found: View, now: Health, daemon: Owner | None) -> dict[str, Any]:
    """Return what the readiness record says of a node that is as wanted."""
    digest = found.version.digest if found.version is not None else found.record.artifacts
    files = configuration(found)
    if found.specification.path:
        files[str(found.specification.local)] = found.specification.content
    return readiness.facts(found.place.desired.runtime, daemon, now.has, digest, files)
