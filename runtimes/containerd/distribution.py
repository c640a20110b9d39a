"""Distributions that generate the root config: their drop-ins, merge and own handlers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from runtimes import edits
from runtimes.adapter import DesiredConfig
from runtimes.containerd.binary import Facts
from runtimes.containerd.handlers import HandlersView
from runtimes.containerd.imports import File, load, read_patterns
from runtimes.containerd.schema import BINARY, CRI, matches, section_of
from runtimes.dataclass import replace
from runtimes.edits import value
from runtimes.errors import UnsupportedSetup
from runtimes.formats import toml_editor
from runtimes.model import EMPTY, Desired, Handler, Observation, Tree


def with_drop_in(desired: Desired, observation: Observation) -> Desired:
    """Return the desired configuration with the drop-in that the root config imports.

    `drop_in` is empty in the result if the distribution would read no drop-in of this program.
    """
    delivery = desired.delivery
    if not delivery.is_regenerated:
        return desired
    files, _ = load(desired, observation)
    patterns = read_patterns(files, observation)
    for path in (desired.drop_in, *delivery.drop_ins):
        if path and any(matches(pattern, path) for pattern in patterns):
            return replace(desired, drop_in=path)
    if any(file.path == delivery.merges_into for file in files):
        return desired
    return replace(desired, drop_in="")


def is_merged_by_it(desired: Desired, files: Sequence[File]) -> bool:
    """Return whether the distribution itself merges drop-ins into a file that the daemon reads."""
    return any(file.path == desired.delivery.merges_into for file in files)


def merged(
    desired: Desired, observation: Observation, after: Mapping[str, bytes | None]
) -> dict[str, bytes]:
    """Return the generated file with our drop-in merged in, as the distribution will write it."""
    path, drop_in = desired.delivery.merges_into, after.get(desired.drop_in)
    data = observation.data(path)
    if data is None or drop_in is None:
        return {}
    document = toml_editor.parse(data, path)
    for key, item in edits.leaves(toml_editor.tree(drop_in, desired.drop_in)):
        if key[0] == "plugins":
            document = toml_editor.put(document, key, item)
    return {path: document.encode()}


def left_to_distribution(
    desired: Desired, files: Sequence[File], facts: Facts, view: HandlersView
) -> DesiredConfig:
    """Return the desired config without keys or files, since the distribution creates the handlers.

    Raise UnsupportedSetup if the distribution does not do everything that is requested.
    """
    delivery = desired.delivery
    provided = next((h for h in desired.handlers if h.name == delivery.provided_handlers[0]), None)
    if provided is None:
        raise _refusal(
            desired,
            f"it does not provide the handler {desired.handlers[0].name}",
            "omit --runtime-class, and NVIDIA_RUNTIME_NAME",
        )
    if str(PurePosixPath(provided.binary).parent) != delivery.search_dir:
        raise _refusal(
            desired,
            f"it searches for the toolkit in {delivery.search_dir}, not in"
            f" {PurePosixPath(provided.binary).parent}",
            f"use --toolkit-install-dir={PurePosixPath(delivery.search_dir).parent}",
        )
    section = _section(files, facts)
    default = value(section, ("containerd", "default_runtime_name"))
    if desired.default and default != desired.default:
        raise _refusal(
            desired,
            f"the default handler cannot be set to {desired.default}",
            "use --set-as-default=false (NVIDIA_RUNTIME_SET_AS_DEFAULT=false); after the"
            f" installation, {delivery.default_step}",
        )
    if desired.enable_cdi and not section.get("enable_cdi"):
        raise _refusal(
            desired,
            "CDI cannot be enabled",
            "use --enable-cdi-in-runtime=false (RUNTIME_ENABLE_CDI=false)",
        )
    names = [name for name in delivery.provided_handlers if name in desired.names]
    others = sorted(desired.names - set(names))
    notes = [f"the distribution creates the handlers {' and '.join(names)} at its next start"]
    notes += [f"the distribution does not provide the handler {name}" for name in others]
    return DesiredConfig(
        keys=(),
        files=(),
        notes=tuple(notes),
        low_level=view.low_level(),
        provided=frozenset({provided.name}),
        pending_restart=_pending_restart(provided, files),
    )


def _pending_restart(handler: Handler, files: Sequence[File]) -> str:
    """Return a message on what the next start changes for a provided handler; empty if nothing."""
    tables = [
        table
        for file in files
        for cri in dict.fromkeys(CRI.values())
        if isinstance(
            table := value(file.tree, ("plugins", cri, "containerd", "runtimes", handler.name)),
            Mapping,
        )
    ]
    options: Any = tables[-1].get("options", EMPTY) if tables else EMPTY
    binary = options.get(BINARY) if isinstance(options, Mapping) else None
    if binary == handler.binary:
        return ""
    return (
        f"the handler {handler.name} runs {binary or 'nothing yet'}; after the next start it runs"
        f" {handler.binary}"
    )


def _section(files: Sequence[File], facts: Facts) -> Tree:
    """Return the effective CRI section, from the binary's dump or, without one, from the files."""
    if facts.effective is not None:
        return section_of(facts.effective) or EMPTY
    result: Tree = EMPTY
    for file in files:
        result = edits.overlaid(result, value(file.tree, ("plugins", file.cri)) or EMPTY)
    return result


def _refusal(desired: Desired, why: str, hint: str) -> UnsupportedSetup:
    """Return the error for a request that the distribution cannot fulfil and no drop-in can add."""
    return UnsupportedSetup(
        f"{desired.config} is rewritten at each start of its distribution, which would not merge a"
        f" drop-in of nvidia-toolkit, and {why}",
        hint=hint,
    )
