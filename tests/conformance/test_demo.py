"""The demonstration against real containerds: run by root, kept inside, leaving nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support import binaries, fake_node
from tests.support.fake_node import CHECKOUT

DEMO: Final = CHECKOUT / "examples/demo"
OUTSIDE: Final = (
    "/opt/containerd",
    "/run/containerd",
    "/run/nri",
    "/var/run/nri",
    "/var/lib/containerd",
)
"""Where a containerd leaves files that is not kept inside."""


def traces() -> dict[str, tuple[str, ...]]:
    """Return what lies where a containerd would leave something."""
    return {name: tuple(sorted(map(str, Path(name).rglob("*")))) for name in OUTSIDE}


@pytest.mark.binary
@fake_node.needs_root
@pytest.mark.parametrize("line", binaries.LINES)
def test_it_shows_the_whole_job_with_a_real_containerd(line: str) -> None:
    binary = binaries.find(line)
    path = binary.root / binary.path.lstrip("/")
    before = traces()
    done = subprocess.run(
        [sys.executable, str(DEMO), f"--containerd={path}"],
        env={"PATH": "/nonexistent", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=115,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert re.fullmatch(rf"Shown in .* \(runtime: containerd {re.escape(line)}\..*\)\.", last)
    root = done.stdout.split()[4].rstrip(";")
    assert not os.path.lexists(root)
    assert root not in Path("/proc/self/mounts").read_text(encoding="utf-8")
    assert traces() == before
