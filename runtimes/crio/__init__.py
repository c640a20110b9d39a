"""The adapter for CRI-O: `crio.conf`, its drop-in directory, and the OCI hook of hook mode.

May import: runtimes.adapter and the layers below it (edits, formats, globs, model, errors).
Start reading at desired.py (the keys to set, what is refused, notes for the user), then validate.py
(the check of a candidate).

CRI-O reads every file of its drop-in directory, in byte order of their names, and merges handlers
by name: a later table replaces the whole handler. After SIGHUP, `/config` shows new handlers, but
pods are still created with the handlers of the daemon's start (1.24 to 1.36, cri-o/cri-o#10202).
New handlers therefore need a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtimes.adapter import BANNER, Adapter, SighupEffect
from runtimes.crio.config_files import ESSENTIAL, drop_ins, handlers
from runtimes.crio.desired import desired_config
from runtimes.crio.validate import (
    candidate_problems,
    candidate_query,
    effective,
    not_applied,
    programs,
    queries,
    removal_problems,
    running,
)
from runtimes.edits import value
from runtimes.formats import toml_editor
from runtimes.model import Desired, FileRequest, Observation, Request, RuntimeName

__all__ = ["ADAPTER"]


def required_files(desired: Desired, observation: Observation) -> FileRequest:
    """Return the files still to read: crio.conf, every drop-in file, and the hook."""
    tree = drop_ins(desired)
    if tree not in observation.globs:
        return FileRequest(globs=(tree,))
    wanted = [desired.config, *observation.globs.get(tree, ())]
    wanted += [path for path in (desired.drop_in, desired.hook) if path]
    return FileRequest(
        files=tuple(path for path in dict.fromkeys(wanted) if path not in observation.files)
    )


def defined(desired: Desired, files: Mapping[str, bytes | None]) -> frozenset[str]:
    """Return which of our handlers the given files define."""
    return desired.names & handlers(desired, Observation(files=files), without="").keys()


def handler_in(info: Mapping[str, Any]) -> str:
    """Return the handler in a pod's verbose status; CRI-O's pod list omits it (as of 1.36.3)."""
    annotations = value(info, ("runtimeSpec", "annotations"))
    named = annotations if isinstance(annotations, Mapping) else {}
    return str(named.get("io.kubernetes.cri-o.RuntimeHandler", ""))


ADAPTER: Final = Adapter(
    name=RuntimeName.CRIO,
    form=toml_editor,
    executables=frozenset({"crio"}),
    banner=BANNER,
    required_keys=ESSENTIAL,
    config_flags=("--config", "-c"),
    directory_flags=("--config-dir", "-d"),
    server_speaks_first=False,
    supports_cri=True,
    on_hangup=SighupEffect.NEEDS_RESTART,
    confirmation=Request(path="/config"),
    required_files=required_files,
    queries=queries,
    desired_config=desired_config,
    candidate_query=candidate_query,
    candidate_problems=candidate_problems,
    removal_problems=removal_problems,
    effective=effective,
    programs=programs,
    running=running,
    defined=defined,
    not_applied=not_applied,
    handler_in=handler_in,
)
