"""What the tests on booted nodes share."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from tests.support import artifacts, programs
from tests.support.availability import Unavailable


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return stand-ins for the toolkit's files."""
    return artifacts.make(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="session", autouse=True)
def wrapper() -> None:
    """Have the program install static wrappers, as from the image, if they can be built here."""
    is_required = os.environ.get("REQUIRE_REAL_RUNTIMES") == "1"
    with contextlib.nullcontext() if is_required else contextlib.suppress(Unavailable):
        programs.install()
