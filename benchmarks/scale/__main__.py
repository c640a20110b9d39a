"""Measure roll-outs over many nodes, which are kwok's; all else of the control plane is real.

It prints tables, and nothing fails on a slow machine. Needs root and Go.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks import table
from benchmarks.scale import tables
from benchmarks.scale.phases import PHASES, Fleet, Phase, Storm
from tests.support import api_requests, cluster, helm, kwok, nodes, versions

_PAGE: Final = nodes.CHECKOUT / "docs/rollout.md"
_RAW: Final = nodes.CHECKOUT / "docs/scale.json"
_BROKEN: Final = 0.02


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000, help="default: 1000")
    parser.add_argument(
        "--phases", nargs="+", choices=PHASES, default=[*PHASES], help="default: all"
    )
    parser.add_argument(
        "--lookups", type=int, default=1000, help="pods that ask at once; default: 1000"
    )
    parser.add_argument("--json", type=Path, help="write the raw results of this run into a file")
    parser.add_argument(
        "--write", type=Path, nargs="+", metavar="JSON", help="put these raw results into docs/"
    )
    given = parser.parse_args()
    if given.write:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in given.write]
        table.put(_PAGE, "\n".join(_text(run) for run in runs))
        _RAW.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
        return
    run: dict[str, Any] = {}
    for run in _measured(given.nodes, given.phases, given.lookups):
        if given.json:
            given.json.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(_text(run))


def _measured(count: int, wanted: Collection[str], lookups: int) -> Iterator[dict[str, Any]]:
    """Yield what was measured so far, on a control plane of its own, with plain values alone."""
    run: dict[str, Any] = {
        "nodes": count,
        "broken": math.ceil(count * _BROKEN),
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}",
        "programs": f"Kubernetes {versions.KUBERNETES}, kwok {versions.KWOK},"
        f" Helm {versions.HELM[helm.MAJORS[0]]}",
        "load": [round(os.getloadavg()[1], 1)],
        "phases": [],
        "storms": [],
    }
    nodes.cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=nodes.cache(), prefix="bench-") as place:
        home = Path(place)
        with cluster.alone(home, *api_requests.audit_options(home)) as plane:
            kwok.simulate(plane, count, broken=run["broken"])
            fleet = Fleet(plane, count)
            fleet.settle()
            for phase in fleet.phases(wanted):
                _say(f"{phase.name}: {phase.seconds:g} s, {phase.requests}")
                run["phases"].append(dataclasses.asdict(phase))
                run["load"][1:] = [round(os.getloadavg()[1], 1)]
                yield run
            for storm in fleet.storms(lookups):
                _say(f"{storm.name}: {storm.states}, {storm.requests} requests")
                run["storms"].append(dataclasses.asdict(storm))
                yield run


def _text(run: dict[str, Any]) -> str:
    """Return the tables of a run."""
    first, last = run["load"]
    phases = [Phase(**each) for each in run["phases"]]
    storms = [Storm(**each) for each in run["storms"]]
    said = (
        f"{run['nodes']} nodes. {run['programs']}, all on one"
        f" machine: {run['machine']}; load {first} when it began, {last} when it ended."
    )
    parts = [said, "", tables.phases(phases, run["nodes"]), ""]
    if storms:
        parts += [tables.storms(storms), ""]
    return "\n".join(parts)


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


if __name__ == "__main__":
    main()
