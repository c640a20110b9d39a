"""Go through all points of all operations, or of those that are named, and tell what came of it."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time

from tests.faults.campaign import (
    COMPLETE,
    LOST,
    NOT_CONVERGED,
    SAMPLED,
    TORN,
    WORKERS,
    Tally,
    campaign,
)
from tests.faults.stories import STORIES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "operation", nargs="*", metavar="OPERATION", help=f"one of {', '.join(STORIES)}"
    )
    parser.add_argument(
        "--sampled", action="store_true", help="one error per call, as pytest does it"
    )
    parser.add_argument("--workers", type=int, default=WORKERS)
    options = parser.parse_args()
    # So that what was made is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    tallies: list[Tally] = []
    with campaign(SAMPLED if options.sampled else COMPLETE, workers=options.workers) as all_of_it:
        for name in options.operation or STORIES:
            story = STORIES[name](all_of_it.library)
            for work in (all_of_it.kills, all_of_it.errors):
                tallies.append(work(story))
                _tell(tallies[-1], all_of_it.team[0].node.root)
    bad = [kind for tally in tallies for kind, _ in tally.bad]
    problems = [problem for tally in tallies for problem in tally.problems()]
    kills, errors = sum(t.kills for t in tallies), sum(t.errors.total() for t in tallies)
    found = ", ".join(f"{bad.count(kind)} {kind}" for kind in (TORN, LOST, NOT_CONVERGED))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(each.ru_utime + each.ru_stime for each in used)
    _say(f"{time.monotonic() - began:.0f} s, {cpu:.0f} s of them on a processor")
    _say(f"{kills} kill points, {errors} injected errors: {found}")
    return 1 if problems else 0


def _tell(tally: Tally, root: object) -> None:
    _say(tally.line())
    for text in [*tally.problems(), *(f"not reached: {text}" for text in tally.missed)]:
        _say("  " + text.replace(f"{root}/", "/").replace("\n", " | "))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
