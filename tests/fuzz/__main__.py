"""Fuzz for some minutes: `python -m tests.fuzz --minutes 15`, with the tests' properties."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

# More examples a round than in the tests, and no time to minimize them: it goes into more examples.
os.environ.setdefault("FUZZ_SCALE", "5")
_HERE: Final = Path(__file__).resolve().parent
_LONGEST: Final = 3000
_CHECKOUT: Final = _HERE.parents[1]


class Findings:
    """What went wrong, each place in the code once, and how often each property ran."""

    def __init__(self, keep: Path | None) -> None:
        self._keep = keep
        self.runs: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.found: dict[str, str] = {}

    def watched(self, name: str, inner: Callable[..., None]) -> Callable[..., None]:
        """Return a property that counts its runs and notes a failure instead of raising it."""
        # It is loaded late: FUZZ_SCALE has to be set before.
        from hypothesis.errors import HypothesisException  # noqa: PLC0415

        @functools.wraps(inner)
        def watch(*args: Any, **kwargs: Any) -> None:
            self.runs[name] += 1
            try:
                inner(*args, **kwargs)
            except HypothesisException:
                raise
            except Exception as error:  # noqa: BLE001 - whatever comes out is a finding
                self._note(name, error, args or kwargs)

        return watch

    def turn(self, name: str, test: Callable[[], None]) -> None:
        """Run a property once; where its own inputs cannot be made, that is a finding as well."""
        try:
            test()
        except Exception as error:  # noqa: BLE001 - the other properties shall go on
            self._note(name, error, None)

    def _note(self, name: str, error: Exception, case: object) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [
            f
            for f in frames
            if f.filename.startswith(str(_CHECKOUT)) and "site-packages" not in f.filename
        ]
        place = (
            f"{Path(ours[-1].filename).relative_to(_CHECKOUT)}:{ours[-1].lineno}" if ours else "?"
        )
        key = f"{name}: {type(error).__name__} at {place}"
        if key in self.found:
            return
        self.found[key] = f"{error}"[:_LONGEST]
        text = f"{key}\n{''.join(traceback.format_exception(error))}\n{case!r}\n"
        print(f"FOUND {key}: {self.found[key][:300]}\n  {case!r}"[:_LONGEST], flush=True)  # noqa: T201
        if self._keep is not None:
            (self._keep / f"{len(self.found)}.txt").write_text(
                text, encoding="utf-8", errors="backslashreplace"
            )

    def report(self, how: str) -> None:
        """Print how often each property ran, what was found, and a last line."""
        for name, count in self.runs.items():
            print(f"{count:9} runs {self.seconds[name]:8.1f} s  {name}")  # noqa: T201
        for key, error in self.found.items():
            print(f"FOUND {key}: {error[:200]}")  # noqa: T201
        print(f"fuzz: {sum(self.runs.values())} runs {how}, {len(self.found)} findings")  # noqa: T201


def properties() -> dict[str, Any]:
    """Return every property that the tests state, by its name."""
    found: dict[str, Any] = {}
    for path in sorted(_HERE.glob("test_*.py")):
        module = _imported(path.stem)
        for name, test in vars(module).items():
            if getattr(test, "is_hypothesis_test", False) and not getattr(test, "pytestmark", ()):
                found[name.removeprefix("test_")] = test
    return found


def pathological() -> list[str]:
    """Return the kinds of inputs that are long in one way: measured once, larger than in tests."""
    kinds: dict[str, object] = _imported("pathological").KINDS
    return list(kinds)


def _bounds(kind: str) -> None:
    _imported("test_bounds").test_time_and_memory_grow_with_the_input(kind)


def _imported(name: str) -> ModuleType:
    __import__(f"tests.fuzz.{name}")
    return sys.modules[f"tests.fuzz.{name}"]


def main() -> int:
    """Run all properties in turns until the time is over; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", default="", help="a part of the names of the properties to run")
    parser.add_argument("--keep", type=Path, help="a directory for what is found")
    chosen = parser.parse_args()
    if chosen.keep:
        chosen.keep.mkdir(parents=True, exist_ok=True)
    findings = Findings(chosen.keep)
    tests = {name: test for name, test in properties().items() if chosen.only in name}
    for name, test in tests.items():
        test.hypothesis.inner_test = findings.watched(name, test.hypothesis.inner_test)
    started = time.monotonic()
    for kind in pathological() if chosen.only in "bounds" else ():
        findings.watched(f"bounds_of_{kind}", _bounds)(kind)
    rounds = _rounds(tests, findings, until=started + chosen.minutes * 60)
    findings.report(f"in {(time.monotonic() - started) / 60:.1f} minutes and {rounds} rounds")
    return 1 if findings.found else 0


def _rounds(tests: Mapping[str, Any], findings: Findings, *, until: float) -> int:
    """Run all properties in turns until the time is over; return the number of their turns."""
    rounds = 0
    while tests and time.monotonic() < until:
        rounds += 1
        for name, test in tests.items():
            before = time.process_time()
            if time.monotonic() < until:
                findings.turn(name, test)
            findings.seconds[name] += time.process_time() - before
    return rounds


if __name__ == "__main__":
    sys.exit(main())
