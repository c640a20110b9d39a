"""Find dangling references: the programs of handlers and OCI hooks, and our link to the toolkit.

Containers that use one fail to start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from toolkit.errors import ToolkitError
from toolkit.node import command, files
from toolkit.node.host import Host
from toolkit.settings.layout import InstallDir

HOOK_DIRECTORIES: Final = ("/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d")


def handlers(
    host: Host, runtime: str, programs: Mapping[str, Sequence[str]], search_path: str | None
) -> list[dict[str, Any]]:
    """Return the handlers whose program does not exist or cannot be executed.

    `search_path` is the daemon's PATH, for programs without a directory.
    """
    location = search_path or command.SEARCH_PATH
    return [
        {"runtime": runtime, "handler": handler, "program": program, "problem": problem}
        for handler, paths in sorted(programs.items())
        for program in paths
        if (problem := _problem(host, program, location))
    ]


def hooks(host: Host, also: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Return the OCI hook files whose program does not exist, and those that cannot be read.

    `also` are the local paths of further directories.
    """
    visited: dict[tuple[int, int], None] = {}
    result = []
    for directory in (*(host.below(location) for location in HOOK_DIRECTORIES), *also):
        for path in _json_files(directory):
            try:
                status = path.stat()
                is_new = (status.st_dev, status.st_ino) not in visited
                visited[status.st_dev, status.st_ino] = None
                problem = _hook(host, path) if is_new else None
            except OSError as error:
                problem = {"program": None, "problem": f"cannot be read: {error.strerror}"}
            if problem:
                result.append({"file": host.node(path), **problem})
    return result


def link(install_dir: Path) -> str:
    """Return the missing target of our link to the toolkit, or "" if the target exists."""
    path = InstallDir(install_dir).toolkit
    try:
        return os.readlink(path) if path.is_symlink() and not path.exists() else ""
    except OSError:
        return ""


def _json_files(directory: Path) -> Iterator[Path]:
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
    except OSError:
        return
    yield from (directory / name for name in names)


def _hook(host: Host, path: Path) -> dict[str, Any] | None:
    try:
        snapshot = files.read(host.target(path))
        program = json.loads(snapshot.data)["hook"]["path"] if snapshot else None
    except ToolkitError as error:
        return {"program": None, "problem": error.message}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return {"program": None, "problem": f"is not a valid OCI hook: {error!r}"}
    if not isinstance(program, str):
        return None if snapshot is None else {"program": None, "problem": "has no hook program"}
    problem = _problem(host, program, command.SEARCH_PATH)
    return {"program": program, "problem": problem} if problem else None


def _problem(host: Host, program: str, search_path: str) -> str:
    """Return why a program on the node cannot be executed.

    Returns "" if it can, and if we do not have permission to check.
    """
    if "\0" in program:
        return "is not a valid path"
    try:
        if host.executable(program, search_path):
            return ""
        if not program.startswith("/"):
            return f"is not on the search path {search_path}"
        path = host.target(host.below(program))
        status = os.stat(path)
    except PermissionError:
        return ""
    except (OSError, ToolkitError):
        return "does not exist"
    is_runnable = path.is_file() and status.st_mode & 0o111
    return "" if is_runnable else "is not executable"
