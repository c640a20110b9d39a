"""All points of all operations: each is reached on a fresh node, and the laws are checked there.

After a fault the next run has to bring the node where it was to be brought, a further one has to
leave it alone, and a revert has to give back what was there before us. States that are byte for
byte the same are brought on once.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from queue import SimpleQueue
from typing import Final, NamedTuple

from tests.faults import laws, stories, trees
from tests.faults.calls import KILL, PERSISTENT, Call, Fault, persistent
from tests.faults.site import Run, Site, sites
from tests.faults.stories import Library, Story

WORKERS: Final = (os.cpu_count() or 2) + 1
"""A run waits for its runtime for about a third of its time."""
_SHOWN: Final = 3
_UNREAD: Final = ("/.toolkit-versions/", "/.nvidia-toolkit/originals")
TORN, LOST, NOT_CONVERGED = "torn", "lost", "not converged"
MOST_MISSED: Final = 0.02
"""The share of points that may be missed twice: a runtime does not always answer in time."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of the faults of one operation; only those count that were reached."""

    story: str
    kills: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    states: int = 0
    missed: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0

    @property
    def reached(self) -> int:
        """Return how many points were reached."""
        return self.kills + self.errors.total()

    def problems(self) -> list[str]:
        """Return what speaks against the operation, and what against the proof itself."""
        told = [f"{kind}: {text}" for kind, text in self.bad]
        if not self.reached:
            told.append(f"{self.story}: no point was reached")
        if len(self.missed) > max(1, self.reached * MOST_MISSED):
            told.append(
                f"{self.story}: {len(self.missed)} points were not reached: {self.missed[:_SHOWN]}"
            )
        return told

    def line(self) -> str:
        errors = " ".join(f"{name} {count}" for name, count in sorted(self.errors.items()))
        return (
            f"{self.story}: {self.kills} kill points, errors: {errors or 'none'};"
            f" {self.states} distinct states, {len(self.missed)} not reached, {len(self.bad)} bad;"
            f" {self.seconds:.0f} s"
        )


class Effort(NamedTuple):
    """How much is done.

    `recoveries` is from how many states of an operation, spread over it, the recovery is killed at
    all of its own points; `all_errors`, that every call gets every error that it can get, and not
    one of them in turn.
    """

    recoveries: int
    all_errors: bool


COMPLETE: Final = Effort(recoveries=2, all_errors=True)
SAMPLED: Final = Effort(recoveries=1, all_errors=False)


class Campaign:
    """Two sites, the stories told on them, and what is known by now."""

    def __init__(self, team: Sequence[Site], shelf: Path, effort: Effort) -> None:
        self.team = team
        self.effort = effort
        self.library = Library(team[0], shelf)
        self.loader = laws.Loader(team[0].node)
        self.seen: set[str] = set()
        self.lock = threading.Lock()
        self.free: SimpleQueue[Site] = SimpleQueue()
        for site in team:
            self.free.put(site)

    # --- over all points ------------------------------------------------------------------------

    def kills(self, story: Story, *, every: int = 1) -> Tally:
        """Kill an operation at calls that change something, and its recovery from some of these.

        `every` is the distance between two such calls: 1 is the whole campaign, and with more the
        recovery is not killed.
        """
        tally, began = Tally(story=f"{story.name}, killed"), time.monotonic()
        calls = self.calls(story, tally)
        fresh: list[Fault] = []
        self._each(tally, _kills(story, calls)[::every], self._kill, story, fresh)
        order = {str(call): index for index, call in enumerate(calls)}
        fresh.sort(key=lambda fault: order[str(fault.call)])
        recoveries = 1 if story.is_brief else self.effort.recoveries
        for fault in _spread(fresh, recoveries) if every == 1 else ():
            again = stories.recovery(story, fault)
            self._each(tally, _kills(again, self.calls(again, tally)), self._kill, again, [])
        tally.seconds = time.monotonic() - began
        return tally

    def errors(self, story: Story) -> Tally:
        """Let every call of an operation fail, once or from there on."""
        tally, began = Tally(story=f"{story.name}, refused a call"), time.monotonic()
        calls = self.calls(story, tally)
        tree = str(self.team[0].node.root)
        faults = list(_refusals(calls, tree, all_of_them=self.effort.all_errors))
        for error in PERSISTENT:
            faults += persistent(calls, error)[:: 1 if self.effort.all_errors else len(PERSISTENT)]
        self._each(tally, [f for f in faults if _is_told(story, f.call)], self._refuse, story, [])
        tally.seconds = time.monotonic() - began
        return tally

    def calls(self, story: Story, tally: Tally) -> list[Call]:
        """Return the calls of an undisturbed operation; none if it does not come to its end."""
        site = self.free.get()
        try:
            stories.begin(site, story)
            done, calls = site.listed(story.argv)
            differences = trees.differences(site.tree(), story.wanted)
            if done.code != story.code or differences:
                told = f"undisturbed: {'; '.join(differences[:_SHOWN])} ({done})"
                tally.bad.append((NOT_CONVERGED, f"{story.name}: {told}"))
                return []
            return calls
        finally:
            self.free.put(site)

    def as_users_start_it(self, story: Story) -> tuple[list[str], list[str]]:
        """Return what an operation changes, in order: as run here, and as `python -m toolkit`."""
        site = self.free.get()
        try:
            stories.begin(site, story)
            _, ours = site.listed(story.argv)
            stories.begin(site, story)
            _, theirs = site.listed_for_real(story.argv)
            return _changes(ours), _changes(theirs)
        finally:
            self.free.put(site)

    def _each(
        self,
        tally: Tally,
        faults: Iterable[Fault],
        one: Callable[[Site, Story, Fault, Tally], bool | None],
        story: Story,
        fresh: list[Fault],
    ) -> None:
        def work(fault: Fault) -> None:
            site = self.free.get()
            try:
                is_new = one(site, story, fault, tally)
            finally:
                self.free.put(site)
            with self.lock:
                if is_new is None:
                    tally.missed.append(f"{story.name}: {fault}")
                elif fault.error == KILL:
                    tally.kills += 1
                else:
                    tally.errors[fault.error + ("+" if fault.later else "")] += 1
                if is_new:
                    tally.states += 1
                    fresh.append(fault)

        with ThreadPoolExecutor(len(self.team)) as pool:
            list(pool.map(work, faults))

    # --- one point ------------------------------------------------------------------------------

    # Each tells whether it led to a state that is new; None where the point was not reached.

    def _kill(self, site: Site, story: Story, fault: Fault, tally: Tally) -> bool | None:
        run = self._disturbed(site, story, fault, tally)
        if not run.was_killed:
            return None
        tree = self._not_torn(site, story, fault, tally)
        if not self._is_new(site, story, tree):
            return False
        self._brought_on(site, story, fault, tally)
        if self._first(trees.key(trees.without_partial(tree), story.family, "aside")):
            self._turned_aside(site, story, fault, tally)
        return True

    def _refuse(self, site: Site, story: Story, fault: Fault, tally: Tally) -> bool | None:
        run = self._disturbed(site, story, fault, tally)
        is_reached = site.reached(fault)
        problems = [laws.improper(run)]
        tree = self._not_torn(site, story, fault, tally)
        problems += _lost(story, fault, run, tree)
        _complain(tally, story, fault, LOST, [*problems, str(run)] if any(problems) else [])
        if not self._is_new(site, story, tree):
            return False if is_reached else None
        self._brought_on(site, story, fault, tally)
        return True if is_reached else None

    def _disturbed(self, site: Site, story: Story, fault: Fault, tally: Tally) -> Run:
        """Run an operation with a fault; once more where it ended before it came to it."""
        stories.begin(site, story)
        run = site.run(story.argv, fault)
        if not site.reached(fault):
            stories.begin(site, story)
            run = site.run(story.argv, fault)
        site.settle()
        return run

    def _not_torn(self, site: Site, story: Story, fault: Fault, tally: Tally) -> trees.Tree:
        tree = site.tree()
        problems = list(laws.torn(story, site.node, tree, site.has()))
        problems += [laws.too_ready(story, tree, site.pid()), self.loader.problem(tree)]
        _complain(tally, story, fault, TORN, problems)
        return tree

    def _is_new(self, site: Site, story: Story, tree: trees.Tree) -> bool:
        untold = laws.untold(tree, site.has(), site.node)
        return self._first(trees.key(tree, story.family, untold))

    def _first(self, state: str) -> bool:
        with self.lock:
            is_new = state not in self.seen
            self.seen.add(state)
            return is_new

    # --- and what comes after -------------------------------------------------------------------

    def _brought_on(self, site: Site, story: Story, fault: Fault, tally: Tally) -> None:
        """Run the same again, and where the runtime did not want it, once more when it does."""
        problems = list(_ended(site, story.argv, story.code, story.wanted))
        if story.code != 0:
            site.tell({})
            problems += _ended(site, story.argv, 0, story.new)
        if self._first(trees.key(site.tree(), story.family, "at its end")):
            problems += _is_at_rest(site, story)
        _complain(tally, story, fault, NOT_CONVERGED, problems)

    def _turned_aside(self, site: Site, story: Story, fault: Fault, tally: Tally) -> None:
        """Reach the same point anew, and run the opposite."""
        if not self._disturbed(site, story, fault, tally).was_killed:
            return
        site.tell({})
        problems = list(_ended(site, story.other, 0, story.aside))
        _complain(
            tally,
            story,
            fault,
            NOT_CONVERGED,
            [f"by `{story.other[0]}`", *problems] if problems else [],
        )


def _lost(story: Story, fault: Fault, run: Run, tree: trees.Tree) -> Iterator[str]:
    """Yield what an end with an exit code does not keep of what the code promises."""
    if run.code == 0 and story.code != 0:
        yield "exit 0 although the runtime does not have the change"
    elif run.code == 0:
        settled = [d for d in trees.differences(tree, story.new) if not d.startswith(trees.MEMORY)]
        yield from _unforgiven(fault, settled)  # the memory may lag: the next run settles it
    elif fault.later or (run.code == 4 and _is_half_way(story, tree)):
        return  # the next run has to go on
    elif run.code != 7:
        yield from _unforgiven(fault, trees.differences(tree, story.old))
    elif story.code == 0:
        yield "a fault that was gone at once was no reason to leave the node as it was"


def _is_half_way(story: Story, tree: trees.Tree) -> bool:
    """Return whether a revert restored the configuration: then it goes on, without going back."""
    files = (trees.CONFIG, trees.DROP_IN)
    return story.argv[0] == "revert" and all(
        tree.get(path) == story.new.get(path) for path in files
    )


def _unforgiven(fault: Fault, differences: Iterable[str]) -> Iterator[str]:
    """Yield differences except those of a refused removal: the next run has to remove that."""
    removed = fault.call.about if fault.call.name in {"unlink", "unlinkat", "rmdir"} else None
    emptied = (
        "" if fault.call.writes else fault.call.about
    )  # it is opened so that what is in it can be removed
    for difference in differences:
        if fault.later and difference.endswith(".nvidia-toolkit-new is there"):
            continue  # its removal is refused as well
        stays = difference.removesuffix(" is there")
        if (removed is None or f"/{stays}/" not in f"{removed}/") and not _is_unused(
            stays, emptied
        ):
            yield difference


def _is_unused(stays: str, emptied: str) -> bool:
    """Return whether the rest is from a directory that was not emptied and is never read."""
    is_ours = any(name in emptied for name in _UNREAD)
    within = any(emptied.endswith(f"/{parent}") for parent in PurePath(stays).parents)
    return is_ours and (within or f"/{stays}/" in f"{emptied}/")


def _ended(site: Site, argv: Sequence[str], code: int, wanted: trees.Tree) -> Iterator[str]:
    run = site.run(argv)
    site.settle()
    if run.code != code:
        yield f"exit {code} was to come: {run}"
        return
    if differences := trees.differences(site.tree(), wanted):
        yield from (*differences[:_SHOWN], f"{len(differences)} differences in all", str(run))


def _is_at_rest(site: Site, story: Story) -> Iterator[str]:
    """Yield what a further run changes, and what a revert does not give back."""
    before, starts = site.traces(), site.starts()
    again = site.run(story.argv)
    changed = sorted(set(before.items()) ^ set(site.traces().items()))
    if again.code != 0 or changed or site.starts() != starts:
        yield (
            f"a further run does not leave it alone: {sorted({name for name, _ in changed})}"
            f" ({again})"
        )
    if story.argv[0] != "revert":
        yield from _ended(site, story.revert, 0, story.original)


def _complain(tally: Tally, story: Story, fault: Fault, kind: str, problems: Iterable[str]) -> None:
    told = [problem for problem in problems if problem]
    if told:
        shown = "; ".join([*told[:_SHOWN], *(told[-1:] if len(told) > _SHOWN else [])])
        tally.bad.append((kind, f"{story.name}: {fault}: {shown}"))


def _is_told(story: Story, call: Call) -> bool:
    """Tell whether a story is disturbed at a call."""
    return not (story.is_brief and ".partial/" in call.about)


def _kills(story: Story, calls: Iterable[Call]) -> list[Fault]:
    return [Fault(call=call, error=KILL) for call in calls if call.writes and _is_told(story, call)]


def _spread(faults: Sequence[Fault], count: int) -> Sequence[Fault]:
    step = max(1, len(faults) // count)
    return faults[step // 2 :: step][:count]


def _refusals(calls: Sequence[Call], tree: str, *, all_of_them: bool) -> Iterator[Fault]:
    for index, call in enumerate(calls):
        errors = call.refusals(tree)
        chosen = errors if all_of_them else errors[index % len(errors) :][:1]
        yield from (Fault(call=call, error=error) for error in chosen)


def _changes(calls: Iterable[Call]) -> list[str]:
    return [f"{c.name} {c.about}" for c in calls if c.writes and not c.about.startswith("pipe:")]


@contextmanager
def campaign(effort: Effort = COMPLETE, *, workers: int = WORKERS) -> Iterator[Campaign]:
    """Make everything that is needed, and take it away again."""
    with sites(workers) as team:
        shelf = team[0].home / "shelf"
        shelf.mkdir()
        yield Campaign(team, shelf, effort)
