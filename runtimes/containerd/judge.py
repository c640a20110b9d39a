"""The verdict on a candidate: the binary's dump of it beside the dump of today."""

from __future__ import annotations

from collections.abc import Mapping

from runtimes import edits, tomldoc
from runtimes.containerd.binary import dump
from runtimes.containerd.facts import parsed, told
from runtimes.containerd.imports import load, patterns
from runtimes.containerd.reach import merged, settled
from runtimes.containerd.schema import (
    BINARY,
    CRI,
    OF_CRI,
    is_cri_off,
    last_line,
    matches,
    section_of,
    solid,
    word,
)
from runtimes.containerd.templates import variables
from runtimes.edits import value
from runtimes.errors import NotUnderstood
from runtimes.model import EMPTY, Answer, Desired, Key, Observation, Question, Tree, fingerprint


def trial(desired: Desired, seen: Observation, after: Mapping[str, bytes | None]) -> Question | None:
    """Return the question that has the node's binary load the candidate files."""
    if seen.binary is None or told(seen).newest is None:
        return None
    desired = settled(desired, seen)
    after = {**after, **merged(desired, seen, after)}
    there = {p for p, data in {**seen.files, **after}.items() if data is not None}
    patterns = {*seen.globs, *_own_globs(desired, after)}
    globs = {
        pattern: tuple(
            sorted(
                {p for p in seen.globs.get(pattern, ()) if after.get(p, b"") is not None}
                | {p for p in after if p in there and matches(pattern, p)}
            )
        )
        for pattern in patterns
    }
    candidate = Observation(
        files={**seen.files, **after}, globs=globs, answers=seen.answers, binary=seen.binary
    )
    files, missing = load(desired, candidate)
    if missing.files or missing.globs:
        raise NotUnderstood(desired.config, f"it would import {(missing.files + missing.globs)[0]}")
    return dump("candidate", files, told(seen), variables(desired, seen))


def _own_globs(desired: Desired, after: Mapping[str, bytes | None]) -> set[str]:
    """Return the patterns of a candidate's root that name our drop-in and that nobody has looked at yet."""
    tree = tomldoc.tree(after.get(desired.config) or b"", desired.config)
    return {
        p
        for p in patterns(tree, desired.config)
        if desired.drop_in and "*" in p and matches(p, desired.drop_in)
    }


def verdict(desired: Desired, seen: Observation, answer: Answer) -> list[str]:
    """Compare the candidate's dump with today's: only our keys may differ, and all of them must be there."""
    if not answer.ok:
        return [f"{seen.binary} does not load the change: {last_line(answer.err)}"]
    after = parsed(answer.out, "candidate")
    problems = _unasked(desired, seen, after)
    section = section_of(after)
    if section is not None:
        problems += _missing(desired, section)
    return problems


def removal_verdict(desired: Desired, seen: Observation, answer: Answer) -> list[str]:
    """Say whether the binary loads what a removal leaves, with a default handler that exists."""
    if not answer.ok:
        return [f"{seen.binary} does not load what the removal leaves: {last_line(answer.err)}"]
    section = section_of(parsed(answer.out, "candidate"))
    untouched = all(
        fingerprint(data) in owned.written or data == owned.original
        for owned in seen.owned
        for data in (seen.data(owned.path),)
    )
    if section is None or untouched:
        return []
    default = value(section, ("containerd", "default_runtime_name"))
    handlers = value(section, ("containerd", "runtimes"))
    if isinstance(default, str) and isinstance(handlers, Mapping) and default not in handlers:
        return [f"the default handler {default} would not exist"]
    return []


def _unasked(desired: Desired, seen: Observation, after: Tree) -> list[str]:
    before = told(seen).effective or EMPTY
    # What was ours under a name that is not wanted any more may go.
    formerly = {e.key[-1] for owned in seen.owned for e in owned.edits if e.key[-2:-1] == ("runtimes",)}
    allowed: list[Key] = [("imports",)]
    for cri in set(CRI.values()):
        containerd: Key = ("plugins", cri, "containerd")
        allowed += [(*containerd, "runtimes", handler) for handler in desired.names | formerly - {"runc"}]
        allowed.append((*containerd, "default_runtime_name"))
        if desired.enable_cdi:
            allowed.append(("plugins", cri, "enable_cdi"))
        if desired.legacy:
            allowed.append((*containerd, "default_runtime"))
    if desired.enable_cri and is_cri_off(before):
        # With the plugin itself comes all that it has by default.
        allowed += [("disabled_plugins",), *(("plugins", cri) for cri in OF_CRI)]
    return [
        f"{edits.spell(key)} would change from {word(old)} to {word(new)}"
        for key, old, new in edits.differences(solid(before), solid(after))
        if not any(key[: len(prefix)] == prefix for prefix in allowed)
    ]


def _not_overridden(desired: Desired, handler: str, table: Tree) -> list[str]:
    """Say which keys that were to win over the inherited ones are not in effect, as one that nobody knows."""
    found = {tuple(part.lower() for part in key): item for key, item in edits.leaves(solid(table))}
    return [
        f"the handler {handler} would have no {edits.spell(key)} = {word(item)} (--runtime-config-override)"
        for key, item in edits.leaves(solid(desired.override))
        if found.get(tuple(part.lower() for part in key)) != item
    ]


def _missing(desired: Desired, section: Tree) -> list[str]:
    problems = []
    for handler in desired.handlers:
        table = value(section, ("containerd", "runtimes", handler.name))
        if not isinstance(table, Mapping):
            problems.append(f"the handler {handler.name} would not be in effect")
            continue
        options = table.get("options") or EMPTY
        binaries = {k: v for k, v in options.items() if k.lower() == BINARY.lower()}
        if binaries != {BINARY: handler.binary}:
            problems.append(f"the handler {handler.name} would run {binaries}, not {handler.binary}")
        if not table.get("runtime_type"):
            problems.append(f"the handler {handler.name} would have no runtime_type")
        problems += _not_overridden(desired, handler.name, table)
    default = value(section, ("containerd", "default_runtime_name"))
    if desired.default and not desired.legacy and default != desired.default:
        problems.append(f"the default handler would be {word(default)}, not {desired.default}")
    return problems
