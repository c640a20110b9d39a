"""What a distribution makes of the files: which drop-in it reads, what it merges, its own handlers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from runtimes import edits, tomldoc
from runtimes.adapter import Wants
from runtimes.containerd.facts import Facts
from runtimes.containerd.handlers import View
from runtimes.containerd.imports import File, load
from runtimes.containerd.schema import BINARY, CRI, matches, section_of
from runtimes.edits import value
from runtimes.errors import Unfit
from runtimes.model import EMPTY, Desired, Handler, Observation, Tree


def settled(desired: Desired, seen: Observation) -> Desired:
    """Return the wish with the drop-in that gets into effect; with none where no file of ours would."""
    reach = desired.reach
    if not reach.is_made_anew:
        return desired
    files, _ = load(desired, seen)
    patterns = [pattern for file in files for pattern, _ in file.imports]
    for path in (desired.drop_in, *reach.drop_ins):
        if path and any(matches(pattern, path) for pattern in patterns):
            return replace(desired, drop_in=path)
    if any(file.path == reach.merges_into for file in files):
        return desired
    return replace(desired, drop_in="")


def is_merged_by_it(desired: Desired, files: Sequence[File]) -> bool:
    """Tell whether the distribution itself merges drop-ins into what the daemon reads."""
    return any(file.path == desired.reach.merges_into for file in files)


def merged(desired: Desired, seen: Observation, after: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """Return the generated file as it will be once the distribution has merged our drop-in into it."""
    path, drop_in = desired.reach.merges_into, after.get(desired.drop_in)
    data = seen.data(path)
    if data is None or drop_in is None:
        return {}
    document = tomldoc.parse(data, path)
    for key, item in edits.leaves(tomldoc.tree(drop_in, desired.drop_in)):
        if key[0] == "plugins":
            document = tomldoc.put(document, key, item)
    return {path: document.encode()}


def left_to_it(desired: Desired, files: Sequence[File], facts: Facts, view: View) -> Wants:
    """Return the wish that is fulfilled without a file of ours: the distribution makes the handlers.

    Raises Unfit where it does not do all that is wanted.
    """
    reach = desired.reach
    ours = next((h for h in desired.handlers if h.name == reach.makes[0]), None)
    if ours is None:
        raise _refusal(
            desired, f"it makes no handler {desired.handlers[0].name}", "leave --runtime-class away"
        )
    if str(PurePosixPath(ours.binary).parent) != reach.looks_in:
        raise _refusal(
            desired,
            f"it looks for the toolkit in {reach.looks_in} and not in {PurePosixPath(ours.binary).parent}",
            f"use --toolkit-install-dir={PurePosixPath(reach.looks_in).parent}",
        )
    section = _section(files, facts)
    default = value(section, ("containerd", "default_runtime_name"))
    if desired.default and default != desired.default:
        raise _refusal(
            desired,
            f"the default handler cannot be made {desired.default}",
            f"use --set-as-default=false; once that is done, {reach.default_step}",
        )
    if desired.enable_cdi and not section.get("enable_cdi"):
        raise _refusal(desired, "CDI cannot be enabled", "use --enable-cdi-in-runtime=false")
    made = [name for name in reach.makes if name in desired.names]
    others = sorted(desired.names - set(made))
    notes = [f"the handlers {' and '.join(made)} are made by the distribution itself at its next start"]
    notes += [f"the handler {name} is made by nobody here" for name in others]
    return Wants(
        wants=(),
        files=(),
        notes=(*view.notes, *notes),
        low_level=view.low_level(),
        made=frozenset({ours.name}),
        unmade=_unmade(ours, files),
    )


def _unmade(ours: Handler, files: Sequence[File]) -> str:
    """Say what the files lack of a handler that the distribution makes; empty where it has."""
    tables = [
        table
        for file in files
        for cri in dict.fromkeys(CRI.values())
        if isinstance(
            table := value(file.tree, ("plugins", cri, "containerd", "runtimes", ours.name)), Mapping
        )
    ]
    options: Any = tables[-1].get("options", EMPTY) if tables else EMPTY
    binary = options.get(BINARY) if isinstance(options, Mapping) else None
    if binary == ours.binary:
        return ""
    return f"the handler {ours.name} runs {binary or 'nothing yet'}, and {ours.binary} after the next start"


def _section(files: Sequence[File], facts: Facts) -> Tree:
    """Return the CRI section in effect, as the binary says or, where none is known, as the files do."""
    if facts.effective is not None:
        return section_of(facts.effective) or EMPTY
    found: Tree = EMPTY
    for file in files:
        found = edits.overlaid(found, value(file.tree, ("plugins", file.cri)) or EMPTY)
    return found


def _refusal(desired: Desired, why: str, hint: str) -> Unfit:
    return Unfit(
        f"{desired.config} is written anew at each start of its distribution, no drop-in of ours would be"
        f" merged with it, and {why}",
        hint=hint,
    )
