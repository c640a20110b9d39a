"""The real promtool, built from Prometheus' Go module: it checks and runs the chart's alerts."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from tests.support import nodes, real, versions
from tests.support.availability import Unavailable

_BUILD_TIME: Final = 1800
_TAGS: Final = "remove_all_sd"
"""Without service discovery, of which most of the build would be: rules need none."""


@cache
def find() -> Path:
    """Return the promtool program, built on first use. Raises Unavailable."""
    home = nodes.cache() / "go" / f"promtool-{versions.PROMETHEUS}"
    home.mkdir(parents=True, exist_ok=True)
    wanted = home / "promtool"
    with home.with_name(f"{home.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            _build(wanted)
    real.USED.add(f"promtool {versions.PROMETHEUS}")
    return wanted


def _build(wanted: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise Unavailable("promtool is not built: it needs Go 1.26 or newer on PATH")
    package = f"github.com/prometheus/prometheus/cmd/promtool@{versions.PROMETHEUS}"
    done = subprocess.run(
        (go, "install", "-trimpath", "-ldflags=-s -w", f"-tags={_TAGS}", package),
        env={**os.environ, "CGO_ENABLED": "0", "GOBIN": str(wanted.parent)},
        capture_output=True, text=True, check=False, timeout=_BUILD_TIME,
    )  # fmt: skip
    if done.returncode != 0:
        raise Unavailable(
            f"promtool {versions.PROMETHEUS} cannot be built here: {done.stderr[-500:]}"
        )


def run(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run promtool in a directory."""
    return subprocess.run(
        (str(find()), *words),
        env={"PATH": nodes.PATH, "HOME": str(home)},
        cwd=home, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
