"""What a plan depends on, as directories to watch: files that were read, globs, the toolkit, the socket."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit import driver
from toolkit.errors import StepFailed
from toolkit.host import Host
from toolkit.view import Task, View

Watched = Mapping[str, frozenset[str] | None]
"""Directories, each with the names in it that matter; None are all of them."""
_WILD = frozenset("*?[")


def of(task: Task, found: View) -> Watched:
    """Return what to watch, each directory being one that exists: for what is missing, the one above it."""
    watched: dict[str, frozenset[str] | None] = {}
    for path in _paths(task, found):
        directory, name = _existing(path)
        there = watched.get(directory, frozenset())
        watched[directory] = None if name is None or there is None else there | {name}
    return watched


def _paths(task: Task, found: View) -> Iterator[Path]:
    """Yield the paths that matter; one that ends in a star stands for everything in its directory."""
    place = found.place
    host = place.host
    for path in found.seen.files:
        yield from _with_target(host, host.local(path))
    for pattern in found.seen.globs:
        yield host.local(_fixed(pattern)) / "*"
    for handler in () if found.installs else place.desired.handlers:
        yield from _with_target(host, host.local(handler.binary))
    yield place.install_dir / "toolkit"
    toolkit = place.install_dir / "toolkit"
    for directory, _, _ in os.walk(toolkit):
        yield Path(directory) / "*"
    if found.specification.path:
        yield found.specification.local
        yield from driver.watched(task.settings, host)
    yield place.socket
    yield task.readiness
    if place.binary is not None:
        yield from _with_target(host, host.local(place.binary))
    if variables := task.settings.text("env_file"):
        # A ConfigMap's file is a link to a link that is replaced.
        yield Path(variables)
        yield Path(variables).parent / "*"


def _with_target(host: Host, path: Path) -> Iterator[Path]:
    yield path
    try:
        target = host.target(path)
    except (StepFailed, OSError):
        return
    if target != path:
        yield target


def _fixed(pattern: str) -> str:
    """Return the directory in front of a pattern's first wild part."""
    parts = []
    for part in pattern.split("/")[:-1]:
        if _WILD & set(part):
            break
        parts.append(part)
    return "/".join(parts) or "/"


def _existing(path: Path) -> tuple[str, str | None]:
    """Return the nearest directory that is there and the name in it that matters."""
    directory, name = path.parent, path.name
    while not directory.is_dir() and directory != directory.parent:
        directory, name = directory.parent, directory.name
    return str(directory), None if name == "*" else name
