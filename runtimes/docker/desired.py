"""The keys to set in `daemon.json`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from pathlib import PurePosixPath
from typing import Any, Final

from runtimes import edits
from runtimes.adapter import DesiredConfig, is_sandbox, no_longer_isolated
from runtimes.docker import schema
from runtimes.edits import DesiredKey, value
from runtimes.errors import UnsupportedSetup
from runtimes.formats import json_editor
from runtimes.model import (
    ABSENT,
    Desired,
    Observation,
    Origin,
    Tree,
)

# Flags that dockerd refuses if the file contains the same option.
_CLASHING: Final = {"--add-runtime": schema.RUNTIMES, "--default-runtime": schema.DEFAULT}


def desired_config(desired: Desired, observation: Observation) -> DesiredConfig:
    """Return the keys of our runtimes, of the default and, if requested, of the CDI feature.

    Raise ConfigError if the file cannot be parsed, and UnsupportedSetup if the daemon's command
    line sets the same options.
    """
    tree = json_editor.tree(observation.data(desired.config) or b"", desired.config)
    schema.refuse_wrong_types(desired, tree)
    path = desired.config
    wanted = list(_obsolete(desired, observation, tree))
    # dockerd treats null as absent, but it is no object that a key could be added to.
    parents = (schema.RUNTIMES, *(("features",) if desired.enable_cdi else ()))
    wanted += [
        DesiredKey(path=path, key=(key,), new={})
        for key in parents
        if key in tree and tree[key] is None
    ]
    wanted += [
        DesiredKey(
            path=path,
            key=(schema.RUNTIMES, h.name),
            new={"path": h.binary, "args": []},
            exact=True,
        )
        for h in desired.handlers
    ]
    if desired.default:
        wanted.append(DesiredKey(path=path, key=(schema.DEFAULT,), new=desired.default))
    if desired.enable_cdi:
        wanted.append(DesiredKey(path=path, key=("features", "cdi"), new=True))
    if observation.binary is None:
        schema.refuse_clashes(desired, observation)
    _refuse_flags(observation.argv, {each.key[0] for each in wanted if each.new is not ABSENT})
    return DesiredConfig(
        keys=tuple(wanted),
        files=(path,),
        warnings=tuple(_warnings(desired, tree)),
        low_level=_low_level(desired, observation, tree),
        origin=_origin(desired, observation, tree),
    )


def _warnings(desired: Desired, tree: Tree) -> Iterator[str]:
    """Yield the warning about a default runtime that isolates containers."""
    default = str(tree.get(schema.DEFAULT) or schema.BUILT_IN)
    entry = schema.runtimes(tree).get(default)
    if entry is None or not desired.default or default in desired.names:
        return
    if is_sandbox(str(entry.get("runtimeType", "")), str(entry.get("path", ""))):
        yield no_longer_isolated(default, desired.default)


def _refuse_flags(argv: Sequence[str], keys: Set[str]) -> None:
    """Raise UnsupportedSetup if the daemon's command line sets a key that we set in the file."""
    for argument in argv[1:]:
        flag = argument.split("=", 1)[0]
        if _CLASHING.get(flag) in keys:
            raise UnsupportedSetup(
                f"dockerd runs with {flag}, so it would not start again with `{_CLASHING[flag]}` in"
                " its configuration file as well",
                hint=(
                    f"remove {flag} from the unit's command line and set `{_CLASHING[flag]}` in the"
                    " file"
                ),
            )


def _obsolete(desired: Desired, observation: Observation, tree: Tree) -> Iterator[DesiredKey]:
    """Yield the removal of runtimes and of a default that we set but that are no longer desired."""
    owned = observation.ownership(desired.config)
    for edit in owned.edits if owned else ():
        is_former = edit.key[:-1] == (schema.RUNTIMES,) and edit.key[-1] not in desired.names
        is_default = edit.key == (schema.DEFAULT,) and not desired.default
        if is_former or is_default:
            yield from edits.reverting_keys(desired.config, tree, edit)


def _recorded_default(desired: Desired, observation: Observation) -> Any:
    """Return the default before our first change; ABSENT if there was none or none is recorded."""
    owned = observation.ownership(desired.config)
    old = [edit.old for edit in owned.edits if edit.key == (schema.DEFAULT,)] if owned else []
    return old[0] if old else ABSENT


def _former_default(desired: Desired, observation: Observation, tree: Tree) -> str:
    """Return the default runtime without our change."""
    default = tree.get(schema.DEFAULT) or schema.BUILT_IN
    first = _recorded_default(desired, observation) if default in desired.names else default
    return str(first) if first not in (ABSENT, None) else schema.BUILT_IN


def _origin(desired: Desired, observation: Observation, tree: Tree) -> Origin:
    """Return the runtimes our handlers stand for: they call their program, but inherit nothing."""
    default = _former_default(desired, observation, tree)
    if _is_ours(desired, default):
        default = schema.BUILT_IN
    path = value(schema.runtimes(tree), (default, "path"))
    calls_it = default == schema.BUILT_IN or (isinstance(path, str) and bool(path))
    return Origin(
        source=default if calls_it else schema.BUILT_IN, default=default if desired.default else ""
    )


def _is_ours(desired: Desired, entry: str) -> bool:
    """Return whether a runtime belongs to this or another NVIDIA installer."""
    return entry in desired.names or entry.startswith("nvidia")


def _low_level(desired: Desired, observation: Observation, tree: Tree) -> tuple[str, ...]:
    """Return the binaries of the runtimes of others, that of the default first."""
    entries = schema.runtimes(tree)
    result = []
    for entry in dict.fromkeys((_former_default(desired, observation, tree), *entries)):
        if _is_ours(desired, entry):
            continue
        binary = value(entries, (entry, "path"))
        if binary is ABSENT and entry == "runc":
            binary = "runc"
        if isinstance(binary, str) and _is_path(binary) and not _is_nvidia(binary):
            result.append(binary)
    return tuple(dict.fromkeys(result or ["runc"]))


def _is_path(binary: str) -> bool:
    """Return whether a JSON string is a valid path: not empty, no NUL, no unpaired surrogate."""
    return (
        bool(binary)
        and "\0" not in binary
        and not any("\ud800" <= char <= "\udfff" for char in binary)
    )


def _is_nvidia(binary: str) -> bool:
    """Return whether a binary is one of the toolkit's runtimes."""
    return PurePosixPath(binary).name.startswith("nvidia-container-runtime")
