"""Validation of a candidate: its dump by the node's binary, against the files without our keys.

The dump of the current files cannot be compared with once our keys are in them. A binary that reads
them differently from the one that they were written for (containerd 1.x takes a whole section from
our drop-in) shows a harm that it took for the state before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtimes import edits
from runtimes.containerd import binary
from runtimes.containerd.binary import binary_facts, dump, parsed
from runtimes.containerd.desired import desired_config
from runtimes.containerd.distribution import merged, with_drop_in
from runtimes.containerd.imports import File, load, patterns
from runtimes.containerd.schema import (
    BINARY,
    CRI,
    OF_CRI,
    is_cri_off,
    last_line,
    matches,
    section_of,
    without_zero_values,
)
from runtimes.containerd.templates import filled_value, variables
from runtimes.dataclass import replace
from runtimes.edits import value, value_text
from runtimes.errors import ConfigError
from runtimes.formats import toml_editor
from runtimes.model import (
    ABSENT,
    EMPTY,
    BinaryQuery,
    BinaryResult,
    Desired,
    Key,
    Observation,
    Tree,
    fingerprint,
)

_ORIGINAL: Final = "original"


def queries(desired: Desired, observation: Observation) -> tuple[BinaryQuery, ...]:
    """Return the next queries; with our keys in the files, also one for the files without them."""
    wanted = binary.queries(desired, observation)
    if wanted or not observation.owned or _ORIGINAL in observation.results:
        return wanted
    query = _query(desired, observation)
    return () if query is None else (query,)


def without_ours(observation: Observation) -> Mapping[str, bytes | None]:
    """Return the owned files without our keys. Raise ConfigError if one cannot be parsed."""
    return {
        owned.path: edits.without(toml_editor, owned, observation.data(owned.path))[0]
        for owned in observation.owned
    }


def _query(desired: Desired, observation: Observation) -> BinaryQuery | None:
    """Return the query; None if these files cannot be loaded without our keys. Cacheable."""
    try:
        query = candidate_query(desired, observation, without_ours(observation))
    except ConfigError:
        return None  # The plan or the removal says why.
    return None if query is None else replace(query, name=_ORIGINAL, is_lasting=True)


def candidate_query(
    desired: Desired, observation: Observation, after: Mapping[str, bytes | None]
) -> BinaryQuery | None:
    """Return the query that loads the candidate files in the node's binary; None if none is usable.

    `after` are the candidate's files by path. Raise ConfigError if one imports files not read
    before.
    """
    if observation.binary is None or binary_facts(observation).newest is None:
        return None
    desired = with_drop_in(desired, observation)
    after = {**after, **merged(desired, observation, after)}
    existing = {p for p, data in {**observation.files, **after}.items() if data is not None}
    patterns = {*observation.globs, *_own_globs(desired, after)}
    globs = {
        pattern: tuple(
            sorted(
                {p for p in observation.globs.get(pattern, ()) if after.get(p, b"") is not None}
                | {p for p in after if p in existing and matches(pattern, p)}
            )
        )
        for pattern in patterns
    }
    candidate = Observation(
        files={**observation.files, **after},
        globs=globs,
        results=observation.results,
        binary=observation.binary,
    )
    files, missing = load(desired, candidate)
    if missing.files or missing.globs:
        raise ConfigError(
            desired.config,
            f"the change would import {(missing.files + missing.globs)[0]}, which containerd does"
            " not load today",
        )
    return dump("candidate", files, binary_facts(observation), variables(desired, observation))


def _own_globs(desired: Desired, after: Mapping[str, bytes | None]) -> set[str]:
    """Return the import patterns of a candidate's root config that match our drop-in."""
    tree = toml_editor.tree(after.get(desired.config) or b"", desired.config)
    return {
        p
        for p in patterns(tree, desired.config)
        if desired.drop_in and "*" in p and matches(p, desired.drop_in)
    }


def candidate_problems(
    desired: Desired, observation: Observation, answer: BinaryResult
) -> list[str]:
    """Return a message for each difference except our keys, and for each missing key.

    The candidate is compared with the dump of the files without our keys.
    """
    if not answer.is_stable:
        return [f"{observation.binary} would load the change differently from start to start"]
    if not answer.ok:
        return [f"{observation.binary} does not load the change: {last_line(answer.err)}"]
    after = parsed(answer.out, "candidate")
    problems = _unrequested(desired, observation, after)
    section = section_of(after)
    if section is not None:
        problems += _missing(desired, section)
        if not problems:
            problems += _overridden(desired, observation, section)
    return problems


def in_sync_problems(desired: Desired, observation: Observation) -> list[str]:
    """Return the same for the current files, which contain our keys already.

    The binary may be another one than the one for which they were written.
    """
    answer, facts = observation.results.get("effective"), binary_facts(observation)
    # What a distribution makes itself is verified with the runtime.
    is_made = desired.delivery.is_regenerated
    if answer is None or not answer.ok or facts.original is None or is_made:
        return []
    return candidate_problems(desired, observation, answer)


def removal_problems(desired: Desired, observation: Observation, answer: BinaryResult) -> list[str]:
    """Return a message if the binary rejects what a removal leaves, or its default is missing."""
    if not answer.ok:
        return [
            f"{observation.binary} does not load what the removal leaves: {last_line(answer.err)}"
        ]
    section = section_of(parsed(answer.out, "candidate"))
    untouched = all(
        fingerprint(data) in owned.written or data == owned.original
        for owned in observation.owned
        for data in (observation.data(owned.path),)
    )
    if section is None or untouched:
        return []
    default = value(section, ("containerd", "default_runtime_name"))
    handlers = value(section, ("containerd", "runtimes"))
    if isinstance(default, str) and isinstance(handlers, Mapping) and default not in handlers:
        return [f"the default handler {default} would not exist"]
    return []


def _unrequested(desired: Desired, observation: Observation, after: Tree) -> list[str]:
    """Return a message for each difference between two dumps that does not belong to our keys."""
    before = binary_facts(observation).without_us or EMPTY
    # Handlers that we added under a former name may disappear.
    former = {
        e.key[-1]
        for owned in observation.owned
        for e in owned.edits
        if e.key[-2:-1] == ("runtimes",)
    }
    allowed: list[Key] = [("imports",)]
    for cri in set(CRI.values()):
        containerd: Key = ("plugins", cri, "containerd")
        allowed += [
            (*containerd, "runtimes", handler) for handler in desired.names | former - {"runc"}
        ]
        allowed.append((*containerd, "default_runtime_name"))
        if desired.enable_cdi:
            allowed.append(("plugins", cri, "enable_cdi"))
        if desired.legacy:
            allowed.append((*containerd, "default_runtime"))
    if desired.enable_cri and is_cri_off(before):
        # Enabling the plugin also adds all its default settings to the dump.
        allowed += [("disabled_plugins",), *(("plugins", cri) for cri in OF_CRI)]
    return [
        f"{edits.dotted(key)} would change from {value_text(old)} to {value_text(new)}"
        for key, old, new in edits.differences(
            without_zero_values(before), without_zero_values(after)
        )
        if not any(key[: len(prefix)] == prefix for prefix in allowed)
    ]


def _not_overridden(desired: Desired, handler: str, table: Tree) -> list[str]:
    """Return a message for each key of `override` without effect, such as an unknown one."""
    result = {
        tuple(part.lower() for part in key): item
        for key, item in edits.leaves(without_zero_values(table))
    }
    return [
        f"the handler {handler} would have no {edits.dotted(key)} = {value_text(item)}"
        " (--runtime-config-override)"
        for key, item in edits.leaves(without_zero_values(desired.override))
        if result.get(tuple(part.lower() for part in key)) != item
    ]


def _overridden(desired: Desired, observation: Observation, section: Tree) -> list[str]:
    """Return a message for each key of our handlers that another file sets to another value.

    Keys that the dump does not have are ignored: later schema versions rename or drop some.
    """
    files, _ = load(desired, observation)
    values = variables(desired, observation)
    problems = []
    for wanted in desired_config(desired, observation).keys:
        place = wanted.key[2:] if wanted.key[:1] == ("plugins",) else wanted.key
        is_handler = (
            place[:2] == ("containerd", "runtimes")
            and place[2:3] != ()
            and place[2] in desired.names
        )
        if not is_handler or wanted.new is ABSENT:
            continue
        for rest, item in edits.leaves({place[-1]: filled_value(wanted.new, values)}):
            key = (*place[:-1], *rest)
            effective = value(section, key)
            if effective in (ABSENT, item) or not (item or effective):
                continue
            if (
                isinstance(item, list)
                and isinstance(effective, list)
                and set(item) <= set(effective)
            ):
                continue
            others = [f for f in files if f.path != wanted.path and _sets(f, key, effective)]
            by = f" by {others[-1].path}" if others else ""
            name = edits.dotted(key[3:])
            problems.append(
                f"{name} of the handler {key[2]} would be {value_text(effective)}{by}, not"
                f" {value_text(item)}"
            )
    return problems


def _sets(file: File, key: Key, item: Any) -> bool:
    """Return whether a file sets a key of a CRI section to a value."""
    return any(value(file.tree, ("plugins", cri, *key)) == item for cri in CRI.values())


def _missing(desired: Desired, section: Tree) -> list[str]:
    """Return a message for each of our keys that would not be effective."""
    problems = []
    for handler in desired.handlers:
        table = value(section, ("containerd", "runtimes", handler.name))
        if not isinstance(table, Mapping):
            problems.append(f"the handler {handler.name} would not be in effect")
            continue
        options = table.get("options") or EMPTY
        binaries = {k: v for k, v in options.items() if k.lower() == BINARY.lower()}
        if binaries != {BINARY: handler.binary}:
            problems.append(
                f"the handler {handler.name} would run {value_text(binaries)}, not {handler.binary}"
            )
        if not table.get("runtime_type"):
            problems.append(f"the handler {handler.name} would have no runtime_type")
        problems += _not_overridden(desired, handler.name, table)
    default = value(section, ("containerd", "default_runtime_name"))
    if desired.default and not desired.legacy and default != desired.default:
        problems.append(
            f"the default handler would be {value_text(default)}, not {desired.default}"
        )
    return problems
