"""What all tests share: real runtimes are named in the summary, and may be required.

With REQUIRE_REAL_RUNTIMES=1 (as in .ci/run) a test of a real runtime that is
skipped counts as failed: a green run must not mean that nothing was tried.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import kubernetes, real
from tests.kubernetes import Certificates

_REAL = ("node", "binary", "faults")
_LONGEST = "test_sick_nodes.py"

# A slow machine is no failure. A check that is repeated tries the same cases, a person at a desk new ones.
settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest: nobody shall wait for it alone at the end."""
    items.sort(key=lambda item: item.path.name != _LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    required = os.environ.get("REQUIRE_REAL_RUNTIMES") == "1"
    if required and report.skipped and any(item.get_closest_marker(mark) for mark in _REAL):
        report.outcome = "failed"
        reason = call.excinfo.value if call.excinfo else "no reason given"
        report.longrepr = f"skipped, but real runtimes are required here: {reason}"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand on what a worker used, where several share the work."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["used"] = sorted(real.USED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    real.USED.update(getattr(node, "workeroutput", {}).get("used", ()))


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
