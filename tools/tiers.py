"""Run tiers of the test suite: bring what they need, run them, and end with a table.

`python -m tools.tiers` (`make test`) runs every tier but `cluster` that this machine can run. Of
the tiers that take long it runs the tests that are marked `smoke`; where REQUIRE_REAL_RUNTIMES=1 is
set it runs every test of every tier. `python -m tools.tiers nodes` (`make nodes`) runs all tests of
one tier.

A tier is a folder below tests/. As root on Debian or Ubuntu, missing packages are installed with
apt-get; NO_SYSTEM_PACKAGES=1 forbids it.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
_BOOTED: Final = (
    "mmdebstrap",
    "debian-archive-keyring",
    "util-linux",
    "mount",
    "busybox-static",
    "iproute2",
)
# CRI-O is built from its Go module, with Debian's libraries.
_CRIO: Final = (
    "gcc",
    "libc6-dev",
    "libseccomp-dev",
    "pkg-config",
    "conmon",
    "skopeo",
    "runc",
    "podman",
)
_PACKAGES: Final = ("nvidia_toolkit", "runtimes", "toolkit")
_NO_TESTS: Final = 5
_TESTS_FAILED: Final = 1
_MOST_RETRIED: Final = 12
"""Failed tests that are run again alone; if more fail, the machine's load is not the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A folder of tests: what it is for, what it needs of the machine, and how long it takes.

    `packages` are Debian packages without which its tests are skipped, `whole` those that only the
    tests that are not marked `smoke` need. `is_long` tells that `make test` runs its smoke tests.
    """

    name: str
    about: str
    packages: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    needs_root: bool = False
    needs_go: bool = False
    is_long: bool = False

    def obstacle(self) -> str:
        """Return why this machine cannot run the tier at all, with a hint; empty if it can."""
        if self.needs_root and os.geteuid() != 0:
            return f"needs root: sudo make {self.name}"
        if missing := [name for name in self.programs if shutil.which(name) is None]:
            return f"needs {', '.join(missing)}: apt-get install {' '.join(self.packages)}"
        if self.needs_go and shutil.which("go") is None:
            return f"needs Go 1.26 or newer on the PATH, then: make {self.name}"
        return ""


TIERS: Final = (
    Tier(name="unit", about="pure and in-process"),
    Tier(
        name="functional",
        about="the program as processes, against fake runtimes",
        whole=("busybox-static", "dash", "gcc", "llvm", "qemu-user-static", "strace"),
    ),
    Tier(name="project", about="lint, types, import layers, documents", packages=("groff-base",)),
    Tier(name="fuzz", about="hostile input, a fixed number of cases", is_long=True),
    Tier(
        name="conformance",
        about="what real executables make of our configuration",
        packages=_BOOTED,
        programs=("mmdebstrap",),
        needs_root=True,
        is_long=True,
    ),
    Tier(
        name="faults",
        about="kills and errors at system calls",
        packages=("strace", "dash", "util-linux"),
        programs=("strace", "dash"),
        needs_root=True,
        is_long=True,
    ),
    Tier(
        name="nodes",
        about="booted nodes, real runtimes under systemd",
        packages=(*_BOOTED, "strace"),
        whole=_CRIO,
        programs=("mmdebstrap",),
        needs_root=True,
        is_long=True,
    ),
    Tier(
        name="cluster",
        about="chart, image, and a real Kubernetes on a booted node",
        packages=(*_BOOTED, "binutils", "buildah"),
        programs=("mmdebstrap", "buildah"),
        needs_root=True,
        needs_go=True,
        is_long=True,
    ),
)


@dataclass(slots=True, kw_only=True)
class Count:
    """The result of a tier. `seconds` is the sum over its tests; `left` were not asked for.

    `failed` are the node IDs of those that failed; `unsteady` are those that then passed alone.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0
    left: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)


def main(words: Sequence[str] | None = None) -> int:
    """Run the named tiers, or all that this machine can run; return pytest's exit status."""
    began = time.monotonic()
    asked = _options(words)
    whole = bool(asked.tiers) or os.environ.get("REQUIRE_REAL_RUNTIMES") == "1"
    tiers = [tier for tier in TIERS if not asked.tiers or tier.name in asked.tiers]
    if not asked.tiers and not whole:
        # It has no smoke tests: each of its parts is built with Go first.
        tiers = [tier for tier in tiers if tier.name != "cluster"]
    _install(_packages(tiers, whole=whole))
    obstacles = {tier.name: tier.obstacle() for tier in tiers}
    able = [tier for tier in tiers if not obstacles[tier.name]]
    for tier in tiers:
        if obstacles[tier.name]:
            _say(f"{tier.name}: not run: {obstacles[tier.name]}")
    required = os.environ.get("REQUIRE_REAL_RUNTIMES") == "1" or bool(asked.tiers)
    if required and len(able) < len(tiers):
        return 1
    for name in _PACKAGES:  # so that no run of the program compiles its modules for itself
        compileall.compile_dir(ROOT / name, quiet=2)
    _prepare(able, whole=whole)
    prepared = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nvidia-toolkit-tiers-") as scratch:
        code, counts = _run(able, Path(scratch), asked, whole=whole)
    if not asked.tiers and not whole:
        obstacles["cluster"] = "builds Helm and Kubernetes with Go first: make cluster"
    _table(counts, obstacles)
    _say(
        f"{_minutes(time.monotonic() - began)} in all,"
        f" {_minutes(prepared - began)} of it to prepare; {os.cpu_count()} processors"
    )
    total: Counter[str] = sum((count.outcomes for count in counts.values()), Counter())
    _say(f"tests: {total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return code


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiers", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "tiers", nargs="*", metavar="TIER", help=", ".join(tier.name for tier in TIERS)
    )
    parser.add_argument("--jobs", default="2", help="how many test files run at a time")
    asked = parser.parse_args(words)
    if unknown := set(asked.tiers) - {tier.name for tier in TIERS}:
        parser.error(f"no such tier: {', '.join(sorted(unknown))}")
    return asked


# --- what the tiers need ------------------------------------------------------------------------


def _packages(tiers: Sequence[Tier], *, whole: bool) -> list[str]:
    """Return the Debian packages that are missing for some tiers."""
    if shutil.which("dpkg-query") is None:
        return []
    wanted = dict.fromkeys(
        name for tier in tiers for name in (*tier.packages, *(tier.whole if whole else ()))
    )
    shown = subprocess.run(
        ("dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *wanted),
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    installed = {line.split()[0] for line in shown.splitlines() if line.endswith(" installed")}
    return [name for name in wanted if name not in installed]


def _install(missing: Sequence[str]) -> None:
    """Install Debian packages where that is allowed; what fails is said and left to the tiers."""
    if not missing or shutil.which("apt-get") is None:
        return
    if os.geteuid() != 0 or os.environ.get("NO_SYSTEM_PACKAGES") == "1":
        _say(f"not installed, so some tests are skipped: {' '.join(missing)}")
        return
    _say(f"apt-get install {' '.join(missing)} (NO_SYSTEM_PACKAGES=1 forbids it)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ("apt-get", "install", "--yes", "-qq", "--no-install-recommends", *missing)
    for command in (("apt-get", "update", "-qq"), install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            _say(
                f"{' '.join(command[:2])} failed ({last[0] if last else done.returncode}); going on"
                " without"
            )
            return


def _prepare(tiers: Sequence[Tier], *, whole: bool) -> None:
    """Put what the tiers' tests need into the cache, so that no test waits for it."""
    words = [sys.executable, "-m", "tests.support.prepare", *(tier.name for tier in tiers)]
    subprocess.run([*words, *(["--whole"] if whole else [])], cwd=ROOT, check=True)


# --- the run ------------------------------------------------------------------------------------


def _run(
    tiers: Sequence[Tier], scratch: Path, asked: argparse.Namespace, *, whole: bool
) -> tuple[int, dict[str, Count]]:
    """Run the tests, several files at a time; those that measure time come at the end."""
    counts = {tier.name: Count() for tier in tiers}
    folders = [f"tests/{tier.name}" for tier in tiers]
    smoke = "" if whole else ",".join(tier.name for tier in tiers if tier.is_long)
    selected = [*folders, *([f"--smoke={smoke}"] if smoke else [])]
    runs: tuple[tuple[str, list[str]], ...] = (
        (
            "not timing",
            ["--numprocesses", asked.jobs, "--dist=loadfile", "--no-loadscope-reorder"],
        ),
        # They wait more than they work: two files at a time use a third of two processors.
        ("timing", ["--numprocesses", "1" if asked.jobs == "1" else "2", "--dist=loadfile"]),
    )
    if all(tier.name == "unit" for tier in tiers):
        runs = runs[:1]  # it measures no time
    elif os.environ.get("NO_TIMING") == "1":
        _say("tests that measure time are left out: NO_TIMING=1")
        runs = runs[:1]
    worst = 0
    for number, (marks, options) in enumerate(runs):
        code, report = _pytest([*selected, "-m", marks, *options], scratch / f"{number}.json")
        _add(counts, report)
        failed = [test for told in report.values() for test in told["failed"]]
        if code == _TESTS_FAILED and 0 < len(failed) <= _MOST_RETRIED:
            code = _again(failed, counts, scratch / f"{number}-again.json")
        worst = max(worst, code)
    return worst, counts


def _again(failed: Sequence[str], counts: dict[str, Count], path: Path) -> int:
    """Run failed tests again, alone: one that passes now is unsteady, which the table tells.

    Return pytest's exit status.
    """
    _say(f"failed beside others, so run again alone: {' '.join(failed)}")
    code, report = _pytest(failed, path)
    still = [test for told in report.values() for test in told["failed"]]
    for test in set(failed) - set(still) if report else ():
        count = counts[test.split("/")[1]]
        count.outcomes["failed"] -= 1
        count.outcomes["passed"] += 1
        count.unsteady.append(test)
    return code


def _pytest(words: Sequence[str], path: Path) -> tuple[int, dict[str, Any]]:
    """Run pytest; return its exit status, 0 if there were no tests, and the report on the tiers."""
    argv = [sys.executable, "-m", "pytest", *words, f"--tier-report={path}"]
    # What is compiled is kept, whatever is set: each worker would compile all tests again.
    environment = {**os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    code = subprocess.run(argv, cwd=ROOT, env=environment, check=False).returncode
    report: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return (0 if code == _NO_TESTS else code), report


def _add(counts: dict[str, Count], report: dict[str, Any]) -> None:
    for name, told in report.items():
        count = counts.setdefault(name, Count())
        count.outcomes.update(told["outcomes"])
        count.seconds += told["seconds"]
        count.left += told["left"]
        count.reasons.update(told["reasons"])


# --- what is said -------------------------------------------------------------------------------


def _table(counts: dict[str, Count], obstacles: dict[str, str]) -> None:
    _say("")
    _say(f"{'tier':12}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for tier in TIERS:
        if tier.name in counts:
            count = counts[tier.name]
            numbers = "".join(
                f"{count.outcomes[name]:>8}" for name in ("passed", "failed", "skipped")
            )
            left = f"  {count.left} more: make {tier.name}" if count.left else ""
            _say(f"{tier.name:12}{numbers}{count.seconds:>9.0f}{left}")
        elif obstacles.get(tier.name):
            _say(f"{tier.name:12}{'not run':>8}: {obstacles[tier.name]}")
    reasons = [
        (name, number, reason)
        for name, count in counts.items()
        for reason, number in sorted(count.reasons.items())
    ]
    if reasons:
        _say("skipped:")
    for name, number, reason in reasons:
        _say(f"  {number} in {name}: {reason}")
    if unsteady := [test for count in counts.values() for test in sorted(count.unsteady)]:
        _say("unsteady (failed beside others, passed alone; to be mended):")
    for test in unsteady:
        _say(f"  {test}")


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
