"""The directories to watch: of the files, globs, toolkit and socket that a plan depends on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.cdi import driver
from toolkit.errors import StepError
from toolkit.node.host import Host
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan
from toolkit.settings.layout import InstallDir

Watched = Mapping[str, frozenset[str] | None]
"""Directories, each with the names in it that matter; None for all names."""
_WILD = frozenset("*?[")


def of(context: Context, plan: Plan) -> Watched:
    """Return the directories to watch. For a missing directory, its nearest existing parent."""
    watched: dict[str, frozenset[str] | None] = {}
    for path in _paths(context, plan):
        directory, name = _existing(path)
        known = watched.get(directory, frozenset())
        watched[directory] = None if name is None or known is None else known | {name}
    return watched


def _paths(context: Context, plan: Plan) -> Iterator[Path]:
    """Yield the paths that a plan depends on; `*` stands for every name in a directory."""
    target = plan.target
    host = target.host
    for path in plan.observation.files:
        yield from _with_target(host, host.local(path))
    for pattern in plan.observation.globs:
        yield from (place / "*" for place in _with_target(host, host.local(_fixed(pattern))))
    for handler in () if plan.installs else target.desired.handlers:
        yield from _with_target(host, host.local(handler.binary))
    yield InstallDir(target.install_dir).toolkit
    toolkit = InstallDir(target.install_dir).toolkit
    for directory, _, _ in os.walk(toolkit):
        yield Path(directory) / "*"
    if plan.specification.path:
        yield plan.specification.local
        yield from driver.watched(context.settings, host)
    yield target.socket
    yield context.readiness
    if target.binary is not None:
        yield from _with_target(host, host.local(target.binary))
    if variables := context.settings.env_file:
        # kubelet updates a file of a ConfigMap by replacing a symbolic link in its directory.
        yield Path(variables)
        yield Path(variables).parent / "*"


def _with_target(host: Host, path: Path) -> Iterator[Path]:
    yield path
    try:
        target = host.target(path)
    except (StepError, OSError):
        return
    if target != path:
        yield target


def _fixed(pattern: str) -> str:
    """Return the leading directory of a pattern, up to the first part with a wildcard."""
    parts = []
    for part in pattern.split("/")[:-1]:
        if _WILD & set(part):
            break
        parts.append(part)
    return "/".join(parts) or "/"


def _existing(path: Path) -> tuple[str, str | None]:
    """Return the nearest existing parent, and the name in it that matters; None for `*`."""
    directory, name = path.parent, path.name
    while not directory.is_dir() and directory != directory.parent:
        directory, name = directory.parent, directory.name
    return str(directory), None if name == "*" else name
