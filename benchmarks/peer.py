"""The other installer and the toolkit's real programs: built once with Go, kept in the cache.

`python -m benchmarks.peer` fetches and builds them; nothing else here fetches anything.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support import artifacts, nodes, versions

VERSION: Final = versions.TOOLKIT
NAME: Final = "nvidia-ctk-installer"
PROGRAMS: Final = (
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime.legacy",
    "nvidia-container-runtime-hook",
    "nvidia-ctk",
    "nvidia-cdi-hook",
)
"""What Go alone builds; nvidia-container-cli and the libraries are C, and stand-ins here."""
_MODULE: Final = "github.com/NVIDIA/nvidia-container-toolkit/cmd"
_BUILD_TIME: Final = 900


def found(name: str = NAME) -> Path | None:
    """Return a program that was built before, or None."""
    path = _home(name) / name
    return path if path.exists() else None


def why_not() -> str:
    """Return why there is nobody to compare with; empty where there is."""
    missing = [name for name in (NAME, *PROGRAMS) if found(name) is None]
    if not missing:
        return ""
    return (
        f"{', '.join(missing)} {VERSION} not built: `make peer` does that, with Go and its module"
        " proxy"
    )


def source(place: Path) -> Path:
    """Make a toolkit's source below a directory, of real programs where they were built."""
    made = artifacts.make(place)
    for name in PROGRAMS:
        if real := found(name):
            shutil.copyfile(real, made / "usr/bin" / name)
    return made


def build(name: str) -> Path:
    """Return a program, built on first use; a lock keeps two runs from building it at once.

    Raises RuntimeError where it cannot be.
    """
    home = _home(name)
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if present := found(name):
            return present
        go = shutil.which("go")
        if go is None:
            raise RuntimeError("Go is not installed")
        done = subprocess.run(
            # As its makers do: without symbols.
            (go, "install", "-ldflags=-s -w", f"{_MODULE}/{name}@{VERSION}"),
            env={**os.environ, "GOBIN": str(home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=_BUILD_TIME,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name} cannot be built: {done.stderr[-500:]}")
    return home / name


def _home(name: str) -> Path:
    return nodes.cache() / "go" / f"{name}-{VERSION}"


def main() -> None:
    """Build what is not there yet."""
    for name in (NAME, *PROGRAMS):
        try:
            sys.stdout.write(f"{build(name)}\n")
        except RuntimeError as error:
            sys.exit(f"the comparison will be skipped: {error}")


if __name__ == "__main__":
    main()
