"""The adapter for Docker: `daemon.json`, the options that dockerd refuses, and its HTTP API.

May import: runtimes.adapter and the layers below it (edits, formats, globs, model, errors).
Start reading at desired.py (the keys to set, what is refused, notes for the user), then validate.py
(the check of a candidate).

dockerd applies `runtimes` and `default-runtime` on SIGHUP without a restart, but refuses to start
if an option is set both in the file and on its command line. A reload may therefore succeed while
the next boot fails, so the plan also checks the command line of the running daemon.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from runtimes import edits
from runtimes.adapter import Adapter, SighupEffect
from runtimes.docker import schema
from runtimes.docker.desired import desired_config
from runtimes.docker.validate import (
    candidate_problems,
    candidate_query,
    defined,
    effective,
    not_applied,
    programs,
    removal_problems,
    running,
)
from runtimes.edits import DesiredKey
from runtimes.formats import json_editor
from runtimes.model import Desired, FileRequest, Observation, Request, RuntimeName, Usage

__all__ = ["ADAPTER"]


_LIST: Final = "/containers/json"


def required_files(desired: Desired, observation: Observation) -> FileRequest:
    """Return `daemon.json`, the only file, if it has not been read yet."""
    return FileRequest(files=() if desired.config in observation.files else (desired.config,))


def reset_content(path: str, before: bytes | None, after: bytes | None) -> bytes | None:
    """Return `after` with neutral values for `runtimes` and `default-runtime` if it removes them.

    Return None if it removes neither.

    On SIGHUP dockerd applies the keys in the file and keeps its values of keys that are missing
    (seen with 20.10, 26.1 and 28.5). Without `runtimes` and `default-runtime` in the file, it would
    use our handlers until its next restart.
    """
    old, new = json_editor.tree(before or b"", path), json_editor.tree(after or b"", path)
    neutral = {schema.RUNTIMES: {}, schema.DEFAULT: schema.BUILT_IN}
    wanted = [
        DesiredKey(path=path, key=(key,), new=item)
        for key, item in neutral.items()
        if old.get(key) is not None and new.get(key) is None
    ]
    change = edits.apply(json_editor, path, after or b"", wanted)
    return change.after if change else None


def usage(desired: Desired, answers: Mapping[str, str]) -> Usage:
    """Return the running containers that use our handlers, and the requests still needed.

    The first request lists the running containers, and one for each of them shows its runtime.
    Raise ValueError if a reply cannot be parsed.
    """
    if _LIST not in answers:
        return Usage(requests=(Request(path=_LIST),))
    try:
        return _usage(desired, answers)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"dockerd's answer cannot be read ({error!r})") from error


def _usage(desired: Desired, answers: Mapping[str, str]) -> Usage:
    """Return the usage according to the list of containers and the replies on each of them."""
    details = {
        f"/containers/{item['Id']}/json": (
            str((item.get("Names") or [""])[0]).lstrip("/") or item["Id"][:12]
        )
        for item in json.loads(answers[_LIST])
    }
    using = [
        name
        for path, name in details.items()
        if path in answers and _runtime_of(answers[path]) in desired.names
    ]
    missing = tuple(Request(path=path) for path in details if path not in answers)
    return Usage(requests=missing, using=tuple(using))


def _runtime_of(answer: str) -> Any:
    """Return the runtime of a container; None if the reply is null, because it has exited."""
    container = json.loads(answer)
    return container["HostConfig"]["Runtime"] if container else None


ADAPTER: Final = Adapter(
    name=RuntimeName.DOCKER,
    form=json_editor,
    executables=frozenset({"dockerd"}),
    config_flags=("--config-file",),
    server_speaks_first=False,
    supports_cri=False,
    on_hangup=SighupEffect.RELOADS,
    confirmation=Request(path="/info"),
    required_files=required_files,
    desired_config=desired_config,
    candidate_query=candidate_query,
    candidate_problems=candidate_problems,
    removal_problems=removal_problems,
    effective=effective,
    programs=programs,
    running=running,
    defined=defined,
    not_applied=not_applied,
    reset_content=reset_content,
    usage=usage,
)
