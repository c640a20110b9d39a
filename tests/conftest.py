"""What all tests share: tiers by folder, a report per tier, real runtimes that may be required.

With REQUIRE_REAL_RUNTIMES=1 (as in .ci/run) a test of a real runtime that is skipped counts as
failed: a green run must not mean that nothing was tried.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings

from tests.support import kubernetes, real
from tests.support.availability import Unavailable
from tests.support.kubernetes import Certificates

_LEFT: Final = pytest.StashKey[dict[str, int]]()
"""How many tests of each tier `--smoke` left out."""
_NONE_LEFT: Final[dict[str, int]] = {}
_ROOT: Final = Path(__file__).resolve().parents[1]
_REAL_TIERS: Final = frozenset({"conformance", "nodes", "cluster", "faults"})
_REAL_MARKS: Final = ("node", "binary", "faults")
# These take longest, so they begin: nobody has to wait for one of them alone at the end.
_FIRST: Final = ("test_unhealthy_nodes.py", "test_cluster_node.py", "test_points.py")

# A slow machine is no failure. A repeated check tries the same cases, a person at a desk new ones.
settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("here")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers", "folders below tests/")
    group.addoption(
        "--smoke", default="", help="tiers (comma separated) of which only smoke tests run"
    )
    group.addoption(
        "--tier-report", default="", help="write what became of each tier's tests to this file"
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background process ignores these, and so would every program that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    path = config.getoption("--tier-report")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_TierReport(Path(path)), "tier-report")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; of the tiers in `--smoke` keep the smoke tests."""
    items.sort(key=lambda item: item.path.name not in _FIRST)
    smoke = set(filter(None, config.getoption("--smoke").split(",")))
    left = [item for item in items if _tier(item) in smoke and not item.get_closest_marker("smoke")]
    if left:
        items[:] = [item for item in items if item not in set(left)]
        config.hook.pytest_deselected(items=left)
    config.stash[_LEFT] = dict(Counter(_tier(item) for item in left))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    skip_unavailable(call)
    report = yield
    required = os.environ.get("REQUIRE_REAL_RUNTIMES") == "1"
    is_real = _tier(item) in _REAL_TIERS or any(
        item.get_closest_marker(mark) for mark in _REAL_MARKS
    )
    # `make test` has installed every program that a test declares, wherever all is required.
    lacks_program = "is not installed: apt-get install" in str(report.longrepr)
    if required and report.skipped and (is_real or lacks_program):
        report.outcome = "failed"
        reason = call.excinfo.value if call.excinfo else "no reason given"
        report.longrepr = f"skipped, but real runtimes are required here: {reason}"
    return report


def skip_unavailable(call: pytest.CallInfo[None]) -> None:
    """Make a skip of what a test ended with, if that is that something real is not to be had."""
    if call.excinfo is not None and isinstance(reason := call.excinfo.value, Unavailable):
        skipped = pytest.skip.Exception(str(reason)).with_traceback(reason.__traceback__)
        call.excinfo = pytest.ExceptionInfo.from_exception(skipped)


class _TierReport:
    """Counts tests by tier, and writes the counts where the tests of a run end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tiers: dict[str, dict[str, Any]] = {}

    def _of(self, name: str) -> dict[str, Any]:
        empty: dict[str, Any] = {
            "outcomes": {},
            "seconds": 0.0,
            "left": 0,
            "reasons": {},
            "failed": [],
        }
        return self._tiers.setdefault(name, empty)

    def leave(self, left: Mapping[str, int]) -> None:
        """Take over how many tests of each tier were left out."""
        for name, number in left.items():
            self._of(name)["left"] = number

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tier = self._of(report.nodeid.split("/")[1])
        tier["seconds"] += report.duration
        is_last_word = report.when == "call" or report.failed or report.skipped
        if not is_last_word:
            return
        tier["outcomes"][report.outcome] = tier["outcomes"].get(report.outcome, 0) + 1
        if report.failed:
            tier["failed"].append(report.nodeid)
        if report.skipped:
            reason = (
                report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            )
            reason = reason.removeprefix("Skipped: ")
            tier["reasons"][reason] = tier["reasons"].get(reason, 0) + 1

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        left = session.config.stash.get(_LEFT, _NONE_LEFT)
        self.leave(left)
        self._path.write_text(json.dumps(self._tiers), encoding="utf-8")


def _tier(item: pytest.Item) -> str:
    """Return the folder below tests/ in which a test lies."""
    parts = item.path.relative_to(_ROOT).parts
    return parts[1] if len(parts) > 2 else ""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand on what a worker used, where several share the work."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["used"] = sorted(real.USED)
        output["left"] = session.config.stash.get(_LEFT, _NONE_LEFT)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    real.USED.update(output.get("used", ()))
    node.config.stash[_LEFT] = output.get("left", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("real runtimes")
    for name in sorted(real.USED) or ["none was used in this run"]:
        terminalreporter.write_line(f"  {name}")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Return what servers and who asks them know each other by."""
    return kubernetes.make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def account(tmp_path: Path, certificates: Certificates) -> Path:
    """Return a service account."""
    return kubernetes.make_account(tmp_path / "serviceaccount", certificates)
