"""What a change is held against: how the runtime was before it, for as long as that says anything.

A transaction may be open for long: its run was killed, or its way back is stuck.
What somebody else changes meanwhile is no harm that we did.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.errors import NotUnderstood
from runtimes.model import Effective, Observation, fingerprint
from toolkit import detect, journal, kernel, recall
from toolkit.detect import Scene
from toolkit.errors import StepFailed, ToolkitError
from toolkit.health import Health
from toolkit.log import LOGGER
from toolkit.memory import UNTOLD, Baseline, Record
from toolkit.view import View


def taken(adapter: Adapter, found: View, now: Health | None) -> Baseline:
    """Return how the runtime is before a change; `now` is its own word, None where it is not concerned."""
    place, opened = found.place, found.record.open
    effective = _effective(adapter, place, found.seen)
    if effective == UNTOLD and opened is not None:
        # What the runtime has may be of a change that a killed run took back: before it, the files said this.
        effective = opened.baseline.has
    baseline = Baseline(
        files=effective, was_well=False, of=_mark(adapter, place, found.seen), boot=kernel.boot_id()
    )
    if now is None:
        return baseline
    return replace(
        baseline,
        has=now.has,
        was_well=not now.ailments,
        speaks_cri=now.speaks_cri,
        has_network=now.speaks_cri and not now.network,
    )


def still(adapter: Adapter, place: Scene, seen: Observation, baseline: Baseline) -> Baseline:
    """Return what of a baseline holds for a node that was seen anew.

    Where somebody changed what the runtime reads, or its program, since then, its
    files today say what it has to have. Whether the network was ready says nothing
    after another boot: it may come up later than we do.
    """
    if not baseline.of:
        return baseline  # of a version before this one
    if baseline.boot != kernel.boot_id():
        baseline = replace(baseline, has_network=False)
    if baseline.of == _mark(adapter, place, seen):
        return baseline
    LOGGER.info("the node was changed by others since this change was begun: its files today count")
    return replace(baseline, has=UNTOLD, files=_effective(adapter, place, seen))


def still_of(adapter: Adapter, place: Scene, record: Record, baseline: Baseline) -> Baseline:
    """Return the same of a node whose files were given back, or could not even be read."""
    try:
        owned = journal.ownerships(place.install_dir, record.owned)
        return still(adapter, place, detect.observe(place, adapter, owned), baseline)
    except ToolkitError as error:
        LOGGER.debug("%s", error.message)
        return replace(baseline, has=UNTOLD, files=UNTOLD)


def _effective(adapter: Adapter, place: Scene, seen: Observation) -> Effective:
    try:
        return adapter.effective(place.desired, seen)
    except NotUnderstood:
        return UNTOLD  # somebody broke it since, and a revert gives it back as far as it can


def _mark(adapter: Adapter, place: Scene, seen: Observation) -> str:
    """Return what names the runtime's program, and its files as they would be if we had never been."""
    owned = {each.path: each for each in seen.owned}
    files = {}
    for path, data in sorted(seen.files.items()):
        if path in place.desired.generated:
            continue  # a distribution writes it anew at every start
        try:
            files[path] = fingerprint(
                planner.without_us(adapter, owned[path], data)[0] if path in owned else data
            )
        except (NotUnderstood, StepFailed):
            files[path] = fingerprint(data)
    program = recall.identity(place.host, place.binary)
    return hashlib.sha256(json.dumps([program, files]).encode()).hexdigest()
