"""The study without a workshop: a wish, files as a dict, and what follows from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from runtimes import containerd, planner
from runtimes.adapter import Adapter
from runtimes.errors import NotUnderstood
from runtimes.model import (
    Answer,
    Desired,
    Handler,
    Observation,
    Ownership,
    Plan,
    Question,
    RuntimeName,
)

Files = Mapping[str, bytes]
Ask = Callable[[Question], Answer]

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
        look = ADAPTER.look(wish, seen)
        questions = () if look.files or look.globs or ask is None else ADAPTER.questions(wish, seen)
        if not (look.files or look.globs or questions):
            return seen
        answers = {question.name: ask(question) for question in questions} if ask else {}
        globs = {
            pattern: tuple(sorted(path for path in files if containerd.matches(pattern, path)))
            for pattern in look.globs
        }
        seen = replace(
            seen,
            files={**seen.files, **{path: files.get(path) for path in look.files}},
            globs={**seen.globs, **globs},
            answers={**seen.answers, **answers},
        )
    raise AssertionError("the adapter never has enough")


def plan(wish: Desired, files: Files, ask: Ask | None = None, owned: tuple[Ownership, ...] = ()) -> Plan:
    """Return the plan, judged by the binary where there is one. Raises NotUnderstood."""
    seen = observe(wish, files, ask, owned)
    found = planner.plan(ADAPTER, wish, seen)
    question = None if found.is_noop else planner.trial(ADAPTER, wish, seen, found)
    if question is not None and ask is not None:
        planner.judge(ADAPTER, wish, seen, ask(question))
    return found


def removal(wish: Desired, files: Files, owned: tuple[Ownership, ...], ask: Ask | None = None) -> Plan:
    """Return the plan that takes everything back, judged likewise. Raises NotUnderstood."""
    seen = observe(wish, files, ask, owned)
    found = planner.removal(ADAPTER, seen)
    question = None if found.is_noop else planner.trial(ADAPTER, wish, seen, found)
    if question is not None and ask is not None:
        planner.judge_removal(ADAPTER, wish, seen, ask(question))
    return found


def after(files: Files, found: Plan) -> dict[str, bytes]:
    """Return the files as a plan leaves them."""
    for change in found.changes:
        assert files.get(change.path) == change.before, f"{change.path}: the plan is about other bytes"
    result = {**files, **{change.path: change.after for change in found.changes}}
    return {path: data for path, data in result.items() if data is not None}


def ownership(found: Plan) -> tuple[Ownership, ...]:
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


def refusal(wish: Desired, files: Files, ask: Ask | None = None) -> NotUnderstood | None:
    """Return why a plan is refused, or None where it is not."""
    try:
        plan(wish, files, ask)
    except NotUnderstood as error:
        return error
    return None
