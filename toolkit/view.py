"""What is to be done, and everything that was seen and planned before anything is done."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runtimes.adapter import Adapter
from runtimes.model import Observation, Ownership, Plan, fingerprint
from toolkit import (
    artifacts,
    detect,
    journal,
    log,
    programs,
    recall,
    reload,
    specification,
    strays,
    whereabouts,
)
from toolkit.artifacts import Version
from toolkit.budget import Budget
from toolkit.debts import is_owed
from toolkit.detect import Scene
from toolkit.errors import NodeNotUnderstood, UsageProblem
from toolkit.memory import Job, Record
from toolkit.options import RestartMode
from toolkit.reload import Way
from toolkit.settings import Settings
from toolkit.specification import Specification
from toolkit.stop import Patience, Stop
from toolkit.tally import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What was asked for, the dialect it is asked in, the wish to stop, and an account of what was done.

    `is_leaving` tells that everything of ours is to go.
    """

    settings: Settings
    adapter: Adapter
    stop: Stop
    tally: Tally = field(default_factory=Tally)
    is_leaving: bool = False

    @property
    def mode(self) -> RestartMode:
        """Return how the runtime is to be told."""
        return RestartMode(self.settings.text("restart_mode"))

    @property
    def budget(self) -> Budget:
        """Return how often the runtime may be restarted."""
        return Budget(
            path=Path(self.settings.text("pid_file")).with_name("restarts.json"),
            most=self.settings.count("restart_budget"),
            window=self.settings.seconds("restart_window"),
        )

    @property
    def readiness(self) -> Path:
        """Return where the readiness record lies."""
        return self.settings.readiness

    @property
    def scaffold(self) -> Path:
        """Return where directories are noted that come and go with the record."""
        return Path(self.settings.text("pid_file")).with_name("directories.json")

    def patience(self) -> Patience:
        """Return how long the runtime may take, from now on, to take something up."""
        return Patience(self.settings.seconds("reload_timeout"), self.stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything that was seen and planned, before anything is done.

    `version` is None where the toolkit's source cannot be seen, or is of no
    concern; `source_problem` then says why. `installs` tells that there shall be
    one: without, the handlers name a toolkit that the node has already, and
    `source_problem` says that it does not. `reload_owed` tells that an earlier
    change was written which the running daemon has not read, or that one which
    died shall be started again. `sworn` is what the readiness record says of it,
    where the runtime itself stood for that since. `adopted` are files with keys of
    ours whose record was lost: they count as ours, and are recorded with the next change.
    """

    place: Scene
    record: Record
    seen: Observation
    plan: Plan
    version: Version | None
    source_problem: UsageProblem | None
    way: Way
    reload_owed: bool
    job: Job = Job.INSTALL
    installs: bool = True
    specification: Specification = specification.NONE
    sworn: Mapping[str, Any] | None = None
    adopted: tuple[Ownership, ...] = ()

    @property
    def is_noop(self) -> bool:
        """Tell whether nothing at all has to be done."""
        return self.is_in_place and self.specification.is_settled

    @property
    def is_in_place(self) -> bool:
        """Tell whether the runtime, its files and the toolkit are as wanted: no transaction is needed."""
        installed = self.version is None or self.version.is_installed
        if not self.installs and self.source_problem is not None:
            return False  # it cannot even be done
        if self.adopted or (self.record.artifacts is not None and not self.record.runtime):
            return False  # it is still to be recorded
        return self.plan.is_noop and installed and not self.reload_owed

    @property
    def is_unsettled(self) -> bool:
        """Tell whether an earlier run of this kind was ended before the runtime had given its word."""
        opened = self.record.open
        return opened is not None and opened.job is self.job

    @property
    def reload_needed(self) -> bool:
        """Tell whether the runtime has to take something up."""
        return not self.plan.is_noop or self.reload_owed

    @property
    def change(self) -> str:
        """Return what names the change: its files before and after, the toolkit, and who judges it."""
        files = [[c.path, fingerprint(c.before), fingerprint(c.after)] for c in self.plan.changes]
        toolkit = self.version.digest if self.version is not None else ""
        judge = recall.identity(self.place.host, self.place.binary)
        return fingerprint(json.dumps([files, toolkit, judge]).encode())

    @property
    def files_after(self) -> dict[str, bytes | None]:
        """Return the runtime's files as they are once the plan is carried out."""
        return {**self.seen.files, **{change.path: change.after for change in self.plan.changes}}


@log.under_way("looking at the node")
def view(task: Task) -> View:
    """Look, ask and plan an install; change nothing. Raises ToolkitError."""
    settings, adapter = task.settings, task.adapter
    place = detect.scene(settings, adapter, task.stop)
    record, record_problem = _record(place)
    if record.open is not None:
        paths = tuple(each.path for each in record.open.files)
        record = journal.as_on_disk(record, detect.read(place.host, paths))
    record = strays.recollected(place, record)
    adopted: tuple[Ownership, ...] = ()
    if settings.flag("no_runtime_config"):
        seen, plan = Observation(), Plan(notes=("the runtime is not configured, as asked",))
    else:
        config = place.host.local(place.desired.config)
        whereabouts.check_source(settings, place.host, config, place.binary)
        seen = detect.observe(place, adapter, journal.ownerships(place.install_dir, record.owned))
        strays.refuse_another(place, seen.files)
        adopted = strays.adopted(place, adapter, record, seen)
        seen = replace(seen, owned=(*seen.owned, *adopted))
        plan = detect.plan(place, adapter, seen)
    plan = replace(plan, notes=(*plan.notes, *strays.words(place, adopted)))
    if record_problem:
        plan = replace(plan, notes=(*plan.notes, record_problem))
    version, problem = _toolkit(task, place, plan)
    chosen = way(task, place, record, revive=settings.flag("repair"))
    is_told = not settings.flag("no_runtime_config")
    unmade = bool(plan.unmade) and task.mode is not RestartMode.NONE
    return View(
        place=place,
        record=record,
        seen=seen,
        plan=plan,
        version=version,
        source_problem=problem,
        way=chosen,
        reload_owed=is_told and (unmade or chosen.is_revival(place) or is_owed(place, record, task.mode)),
        installs=not settings.flag("no_install"),
        specification=specification.look(settings, place.host, place.install_dir, record),
        adopted=adopted,
    )


def _toolkit(task: Task, place: Scene, plan: Plan) -> tuple[Version | None, UsageProblem | None]:
    """Return the version that shall be installed, or why there is none."""
    if task.settings.flag("no_install"):
        return None, programs.lacking(task.settings, place.host, place.desired)
    try:
        return artifacts.wanted(task.settings, place.host, place.install_dir, plan.low_level), None
    except UsageProblem as error:
        return None, error


def way(task: Task, place: Scene, record: Record, *, revive: bool) -> Way:
    """Return how the runtime hears of it; `revive` lets one that died, of us perhaps, be started again.

    One that a killed run was about to restart is always started: systemd may have
    refused that (StartLimitBurst), and after the `reset-failed` that was to mend
    it nothing shows any more that nobody stopped it on purpose.
    """
    found = reload.way(place, task.adapter, task.mode)
    is_by_us = record.ends and task.mode is not RestartMode.SIGNAL
    if not (revive or is_by_us) or not found.obstacle or task.mode is RestartMode.NONE:
        return found
    return reload.revival(place, record.unit, task.patience(), even_if_stopped=is_by_us) or found


def _record(place: Scene) -> tuple[Record, str]:
    """Return what is remembered, and why it cannot be read where we may not: a plan goes on without."""
    try:
        record = journal.load(place.install_dir)
    except NodeNotUnderstood as error:
        if os.geteuid() == 0:
            raise
        # That of another run names it, so it is none that was lost.
        blind = Record(runtime=place.desired.runtime)
        return blind, f"{error.message}: what was done before is not known here"
    same_runtime(record, place)
    return record, ""


def same_runtime(record: Record, place: Scene) -> None:
    """Refuse to mix two runtimes in one record, or to settle with one what is open with the other.

    Raises UsageProblem.
    """
    concerned = record.owned or record.open is not None
    # A record that was killed while it was begun names none, and nothing was touched then.
    if concerned and record.runtime not in {"", place.desired.runtime}:
        raise UsageProblem(
            [f"--runtime={place.desired.runtime}: this node was set up for {record.runtime}"],
            hint=f"take that back first: nvidia-toolkit revert --runtime {record.runtime}",
        )


def is_asked(task: Task, found: View) -> bool:
    """Tell whether the runtime has its word in a change that it need not take up, as new files alone are."""
    is_ours = not task.settings.flag("no_runtime_config") and task.mode is not RestartMode.NONE
    return is_ours and found.job is Job.INSTALL
