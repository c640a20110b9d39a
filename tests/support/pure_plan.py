"""The pure part alone: a desired configuration, files as a dict, and the plan that follows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.containerd import ADAPTER as containerd
from runtimes.containerd import schema
from runtimes.errors import ConfigError
from runtimes.model import (
    BinaryQuery,
    BinaryResult,
    ConfigPlan,
    Desired,
    Handler,
    Observation,
    Ownership,
    RuntimeName,
)

Files = Mapping[str, bytes]
Ask = Callable[[BinaryQuery], BinaryResult]

CONFIG: Final = "/etc/containerd/config.toml"
DROP_IN: Final = "/etc/containerd/conf.d/99-nvidia.toml"
TOOLKIT: Final = "/usr/local/nvidia/toolkit"
HANDLERS: Final = (
    Handler(name="nvidia", binary=f"{TOOLKIT}/nvidia-container-runtime"),
    Handler(name="nvidia-cdi", binary=f"{TOOLKIT}/nvidia-container-runtime.cdi"),
    Handler(name="nvidia-legacy", binary=f"{TOOLKIT}/nvidia-container-runtime.legacy"),
)
ADAPTER: Final[Adapter] = containerd

_WISH: Final = Desired(
    runtime=RuntimeName.CONTAINERD,
    config=CONFIG,
    drop_in=DROP_IN,
    handlers=HANDLERS,
    default="nvidia",
    systemd_cgroup=True,  # As a kubelet says, where no handler does.
)
_ROUNDS: Final = 50


def desired(**changed: Any) -> Desired:
    """Return the wish that the installer has by default, with what a test changes."""
    return replace(_WISH, **changed)


def observe(
    wish: Desired, files: Files, ask: Ask | None = None, owned: tuple[Ownership, ...] = ()
) -> Observation:
    """Look at whatever the adapter wants to have looked at, among `files` only."""
    seen = Observation(binary="/usr/bin/containerd" if ask else None, owned=owned)
    seen = replace(seen, files={record.path: files.get(record.path) for record in owned})
    for _ in range(_ROUNDS):
        look = ADAPTER.required_files(wish, seen)
        questions = () if look.files or look.globs or ask is None else ADAPTER.queries(wish, seen)
        if not (look.files or look.globs or questions):
            return seen
        answers = {question.name: ask(question) for question in questions} if ask else {}
        globs = {
            pattern: tuple(sorted(path for path in files if schema.matches(pattern, path)))
            for pattern in look.globs
        }
        seen = replace(
            seen,
            files={**seen.files, **{path: files.get(path) for path in look.files}},
            globs={**seen.globs, **globs},
            results={**seen.results, **answers},
        )
    raise AssertionError("the adapter never has enough")


def plan(
    wish: Desired, files: Files, ask: Ask | None = None, owned: tuple[Ownership, ...] = ()
) -> ConfigPlan:
    """Return the plan, judged by the binary where there is one. Raises NotUnderstood."""
    seen = observe(wish, files, ask, owned)
    found = planner.plan(ADAPTER, wish, seen)
    question = None if found.is_noop else planner.candidate_query(ADAPTER, wish, seen, found)
    if question is not None and ask is not None:
        planner.check(ADAPTER, wish, seen, ask(question))
    return found


def removal(
    wish: Desired, files: Files, owned: tuple[Ownership, ...], ask: Ask | None = None
) -> ConfigPlan:
    """Return the plan that takes everything back, judged likewise. Raises NotUnderstood."""
    seen = observe(wish, files, ask, owned)
    found = planner.removal(ADAPTER, seen)
    question = None if found.is_noop else planner.candidate_query(ADAPTER, wish, seen, found)
    if question is not None and ask is not None:
        planner.check_removal(ADAPTER, wish, seen, ask(question))
    return found


def after(files: Files, found: ConfigPlan) -> dict[str, bytes]:
    """Return the files as a plan leaves them."""
    for change in found.changes:
        assert files.get(change.path) == change.before, (
            f"{change.path}: the plan is about other bytes"
        )
    result = {**files, **{change.path: change.after for change in found.changes}}
    return {path: data for path, data in result.items() if data is not None}


def ownership(found: ConfigPlan) -> tuple[Ownership, ...]:
    """Return what is owned once a first plan is in effect."""
    return tuple(
        Ownership(
            path=change.path,
            original=change.before,
            written=(hashlib.sha256(change.after or b"").hexdigest(),),
            edits=change.edits,
        )
        for change in found.changes
    )


def refusal(wish: Desired, files: Files, ask: Ask | None = None) -> ConfigError | None:
    """Return why a plan is refused, or None where it is not."""
    try:
        plan(wish, files, ask)
    except ConfigError as error:
        return error
    return None
