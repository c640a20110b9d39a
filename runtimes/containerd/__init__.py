"""The dialect of containerd: schema versions, the CRI section, imports, and what its dump says.

Two facts shape it. containerd 1.x replaces a whole plugin section by that of
the last file that has it, while 2.0 and later merge deeply; so a drop-in with
only our keys is right for the one and deadly for the other, and the node's
binary is *asked* which it is. And `config dump` prints what a binary would run
with, so it is the judge of every candidate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtimes import tomldoc
from runtimes.adapter import BANNER, HangUp
from runtimes.containerd.binary import questions
from runtimes.containerd.facts import told
from runtimes.containerd.imports import load
from runtimes.containerd.judge import removal_verdict, trial, verdict
from runtimes.containerd.running import effective, programs, running
from runtimes.containerd.schema import CRI, ESSENTIAL, import_glob, matches
from runtimes.containerd.wishes import wants
from runtimes.edits import value
from runtimes.model import ABSENT, EMPTY, Desired, Look, Observation, Request, RuntimeName, Usage

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
    "matches",
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
name: Final = RuntimeName.CONTAINERD
executables: Final = frozenset({"containerd"})
essential: Final[tuple[str, ...]] = ESSENTIAL
config_flags: Final[tuple[str, ...]] = ("--config", "-c")
directory_flags: Final[tuple[str, ...]] = ()
on_hangup: Final[HangUp] = HangUp.ENDS
speaks_first: Final[bool] = True
speaks_cri: Final[bool] = True
confirmation: Final[Request | None] = None
banner: Final = BANNER


def look(desired: Desired, seen: Observation) -> Look:
    """Follow the imports from the root config on, as containerd does."""
    _, missing = load(desired, seen)
    reach = desired.reach
    drop_ins = [path for path in (desired.drop_in, *reach.drop_ins) if path]
    others = [path for path in (reach.rendered, reach.merges_into) if path]
    globs = [import_glob(path) for path in drop_ins]
    return Look(
        files=tuple(p for p in dict.fromkeys((*missing.files, *drop_ins, *others)) if p not in seen.files),
        globs=tuple(g for g in dict.fromkeys((*missing.globs, *globs)) if g not in seen.globs),
    )


def unconfirmed(desired: Desired, files: Mapping[str, bytes | None], body: str) -> tuple[str, ...]:
    """Return nothing: containerd is not asked over HTTP."""
    return ()


def defined(desired: Desired, files: Mapping[str, bytes | None]) -> frozenset[str]:
    """Return which of our handlers some files define; what a distribution generates does not count."""
    trees = [
        tomldoc.tree(data, path)
        for path, data in files.items()
        if data is not None and path not in desired.generated
    ]
    return frozenset(
        handler
        for handler in desired.names
        for tree in trees
        for cri in CRI.values()
        if value(tree, ("plugins", cri, "containerd", "runtimes", handler)) is not ABSENT
    )


def stone(path: str, before: bytes | None, after: bytes | None) -> bytes | None:
    """Return None: a containerd that starts anew reads everything anew."""
    return None


def usage(desired: Desired, answers: Mapping[str, str]) -> Usage:
    """Return nothing: CRI and the shims' own notes tell."""
    return Usage()


def task_files(desired: Desired, seen: Observation) -> tuple[str, ...]:
    """Return where the runc shims note which binary their containers run through."""
    state = (told(seen).effective or EMPTY).get("state", "/run/containerd")
    return (f"{state}/io.containerd.runtime.v2.task/*/*/runtime",)


def handler_in(info: Mapping[str, Any]) -> str:
    """Return the handler that a pod's verbose status names; empty where it names none."""
    return str(info.get("runtimeHandler") or "")
