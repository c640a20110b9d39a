"""What the tests on booted nodes share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import artifacts


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return stand-ins for the toolkit's files."""
    return artifacts.make(tmp_path_factory.mktemp("artifacts"))
