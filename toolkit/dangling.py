"""References that lead nowhere: a handler's program, an OCI hook's, our own link. Containers then fail."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from toolkit import files, process
from toolkit.errors import ToolkitError
from toolkit.host import Host

HOOK_DIRECTORIES: Final = ("/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d")


def handlers(
    host: Host, runtime: str, programs: Mapping[str, Sequence[str]], search_path: str | None
) -> list[dict[str, Any]]:
    """Return the handlers whose program is not there or cannot be run.

    `search_path` is the daemon's own, for programs that are named without a directory.
    """
    place = search_path or process.SEARCH_PATH
    return [
        {"runtime": runtime, "handler": handler, "program": program, "problem": problem}
        for handler, named in sorted(programs.items())
        for program in named
        if (problem := _problem(host, program, place))
    ]


def hooks(host: Host, also: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Return the OCI hook files whose program is not there, and those that cannot be read.

    `also` are further directories, as they are seen here.
    """
    seen: dict[tuple[int, int], None] = {}
    found = []
    for directory in (*(host.below(place) for place in HOOK_DIRECTORIES), *also):
        for path in _listed(directory):
            try:
                status = path.stat()
                is_new = (status.st_dev, status.st_ino) not in seen
                seen[status.st_dev, status.st_ino] = None
                problem = _hook(host, path) if is_new else None
            except OSError as error:
                problem = {"program": None, "problem": f"cannot be read: {error.strerror}"}
            if problem:
                found.append({"file": host.node(path), **problem})
    return found


def link(install_dir: Path) -> str:
    """Return where our link to the toolkit points in vain; empty where it does not."""
    path = install_dir / "toolkit"
    try:
        return os.readlink(path) if path.is_symlink() and not path.exists() else ""
    except OSError:
        return ""


def _listed(directory: Path) -> Iterator[Path]:
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
    except OSError:
        return
    yield from (directory / name for name in names)


def _hook(host: Host, path: Path) -> dict[str, Any] | None:
    try:
        seen = files.read(host.target(path))
        program = json.loads(seen.data)["hook"]["path"] if seen else None
    except ToolkitError as error:
        return {"program": None, "problem": error.message}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return {"program": None, "problem": f"is no OCI hook: {error!r}"}
    if not isinstance(program, str):
        return None if seen is None else {"program": None, "problem": "names no program"}
    problem = _problem(host, program, process.SEARCH_PATH)
    return {"program": program, "problem": problem} if problem else None


def _problem(host: Host, program: str, search_path: str) -> str:
    """Return why a program of the node cannot be run; empty where it can be, or where we may not see it."""
    if "\0" in program:
        return "is no path"
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
