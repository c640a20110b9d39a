"""The dialect of CRI-O: `crio.conf`, the drop-ins that are all read, and the OCI hook of old.

CRI-O reads *every* file of its drop-in directory, in byte order, and merges
handlers by name: a later table replaces the whole handler. A SIGHUP makes
`/config` show new handlers, but pods are still made with those of the daemon's
start (1.24 to 1.36, cri-o/cri-o#10202), so only a restart takes them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtimes import tomldoc
from runtimes.adapter import BANNER, HangUp
from runtimes.crio.files import ESSENTIAL, drop_ins, handlers
from runtimes.crio.judge import (
    effective,
    programs,
    questions,
    removal_verdict,
    running,
    trial,
    unconfirmed,
    verdict,
)
from runtimes.crio.wishes import wants
from runtimes.edits import value
from runtimes.model import Desired, Look, Observation, Request, RuntimeName, Usage

__all__ = [
    "banner",
    "config_flags",
    "confirmation",
    "defined",
    "directory_flags",
    "effective",
    "essential",
    "executables",
    "form",
    "handler_in",
    "look",
    "name",
    "on_hangup",
    "programs",
    "questions",
    "removal_verdict",
    "running",
    "speaks_cri",
    "speaks_first",
    "stone",
    "task_files",
    "trial",
    "unconfirmed",
    "usage",
    "verdict",
    "wants",
]

form: Final = tomldoc
name: Final = RuntimeName.CRIO
executables: Final = frozenset({"crio"})
essential: Final[tuple[str, ...]] = ESSENTIAL
config_flags: Final[tuple[str, ...]] = ("--config", "-c")
directory_flags: Final[tuple[str, ...]] = ("--config-dir", "-d")
on_hangup: Final[HangUp] = HangUp.FORGETS
speaks_first: Final[bool] = False
speaks_cri: Final[bool] = True
confirmation: Final[Request | None] = Request(path="/config")
banner: Final = BANNER


def look(desired: Desired, seen: Observation) -> Look:
    """Look at crio.conf, at every file of the drop-in directory, and at the hook."""
    tree = drop_ins(desired)
    if tree not in seen.globs:
        return Look(globs=(tree,))
    wanted = [desired.config, *seen.globs.get(tree, ())]
    wanted += [path for path in (desired.drop_in, desired.hook) if path]
    return Look(files=tuple(path for path in dict.fromkeys(wanted) if path not in seen.files))


def defined(desired: Desired, files: Mapping[str, bytes | None]) -> frozenset[str]:
    """Return which of our handlers some files define."""
    return desired.names & handlers(desired, Observation(files=files), without="").keys()


def stone(path: str, before: bytes | None, after: bytes | None) -> bytes | None:
    """Return None: a CRI-O that starts anew reads everything anew."""
    return None


def usage(desired: Desired, answers: Mapping[str, str]) -> Usage:
    """Return nothing: CRI tells."""
    return Usage()


def task_files(desired: Desired, seen: Observation) -> tuple[str, ...]:
    """Return nothing: CRI tells."""
    return ()


def handler_in(info: Mapping[str, Any]) -> str:
    """Return the handler that a pod's verbose status names: CRI-O's list of pods leaves it out (1.36.3)."""
    annotations = value(info, ("runtimeSpec", "annotations"))
    named = annotations if isinstance(annotations, Mapping) else {}
    return str(named.get("io.kubernetes.cri-o.RuntimeHandler", ""))
