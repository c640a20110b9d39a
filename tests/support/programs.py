"""The static programs of deploy/programs, built once for each source and kept in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from deploy.programs import build
from deploy.programs.build import BuildError
from tests.support import images, nodes
from tests.support.availability import Unavailable
from toolkit.artifacts import static_wrapper

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = platform.machine()
_REQUIREMENTS: Final = ROOT / "deploy/programs/requirements.txt"
_CHECKOUT: Final = ROOT / "toolkit/artifacts"


def digest() -> str:
    """Return a name for what the source makes."""
    content = b"".join((ROOT / "deploy/programs" / name).read_bytes() for name in build.SOURCES)
    return hashlib.sha256(content).hexdigest()[:10]


def _wheels() -> Path:
    name = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:10]
    return nodes.cache() / "programs" / f"compiler-{name}"


@cache
def wheels() -> Path:
    """Return a directory with the wheel of the compiler, fetched on first use. Raises NodeError."""
    wanted = _wheels()
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with wanted.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            made = Path(tempfile.mkdtemp(dir=wanted.parent))
            images.fetch(_REQUIREMENTS, made)
            made.rename(wanted)
    return wanted


@cache
def built(*machines: str) -> Path:
    """Return a directory with the programs for machines, as they are released.

    Raises NodeError if their compiler cannot be fetched, and BuildError.
    """
    wanted = nodes.cache() / "programs" / f"{digest()}-{'-'.join(machines)}"
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with wanted.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            _build(wanted, machines)
    return wanted


def _build(wanted: Path, machines: Sequence[str]) -> None:
    made = Path(tempfile.mkdtemp(dir=wanted.parent))
    try:
        build.build(made, machines, wheels=wheels(), programs=build.PROGRAMS)
        made.chmod(0o755)
        made.rename(wanted)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def wrapper() -> bytes:
    """Return the wrapper for this machine, without settings. Raises Unavailable."""
    return program("wrapper")


def program(name: str) -> bytes:
    """Return a program for this machine, without settings. Raises Unavailable.

    It is the released one where its compiler has been fetched, or gcc is missing.
    """
    content = _program(name)
    if isinstance(content, str):
        raise Unavailable(content)
    return content


@cache
def _program(name: str) -> bytes | str:
    """Return a program for this machine, or why it cannot be made."""
    if HERE not in build.MACHINES:
        return f"there are no static programs for {HERE}"
    try:
        if shutil.which("gcc") is None or _wheels().exists():
            return (built(HERE) / f"{name}-{HERE}").read_bytes()
        with tempfile.TemporaryDirectory() as place:
            [path] = build.build(Path(place), [HERE], other="gcc", programs=[name])
            return path.read_bytes()
    except (nodes.NodeError, BuildError) as error:
        # pip repeats itself, on lines of its own.
        reason = str(error).partition("\n")[0]
        return f"the static programs cannot be built (apt-get install gcc): {reason}"


def install() -> None:
    """Put the wrapper into this checkout, as `make programs` does, so that the program uses it."""
    target = static_wrapper.path(HERE, _CHECKOUT)
    content = wrapper()
    if not target.exists() or target.read_bytes() != content:
        spare = target.with_name(f".{target.name}.{os.getpid()}")
        spare.write_bytes(content)
        spare.rename(target)
