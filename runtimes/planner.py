"""Plan the changes of a runtime's configuration files, or their removal, from an observation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from runtimes import edits
from runtimes.adapter import Adapter
from runtimes.dataclass import replace
from runtimes.errors import ConfigError
from runtimes.model import (
    ABSENT,
    BinaryQuery,
    BinaryResult,
    ConfigPlan,
    Desired,
    Edit,
    Effective,
    FileChange,
    Handler,
    Key,
    Observation,
    Ownership,
    Tree,
    fingerprint,
    without_empty_tables,
)

_MOST_LISTED: Final = 6
_PROGRAM: Final = "nvidia-container-runtime"
_DEFAULTS: Final = frozenset({"default_runtime_name", "default_runtime", "default-runtime"})


def plan(adapter: Adapter, desired: Desired, observation: Observation) -> ConfigPlan:
    """Return the changes that bring the configuration to the desired state.

    A file that already has the desired content is not changed. Raise ConfigError if a file cannot
    be parsed or edited, and UnsupportedSetup if the runtime's setup does not allow the change.
    """
    desired_keys = adapter.desired_config(desired, observation)
    changes = []
    for path in desired_keys.files:
        wanted = [want for want in desired_keys.keys if want.path == path]
        if path in desired_keys.fresh:
            is_replaced = path in desired_keys.replaced
            change = _fresh(adapter, path, observation, wanted, discards=is_replaced)
        else:
            change = edits.apply(adapter.form, path, observation.data(path), wanted)
        if change is not None:
            changes.append(change)
    changes += [
        FileChange(path=path, before=observation.data(path), after=data)
        for path, data in desired_keys.whole.items()
        if observation.data(path) != data
    ]
    return ConfigPlan(
        changes=_with_reset_content(adapter, changes),
        notes=(*desired_keys.warnings, *desired_keys.notes),
        warnings=desired_keys.warnings,
        low_level=desired_keys.low_level,
        origin=desired_keys.origin,
        provided=desired_keys.provided,
        pending_restart=desired_keys.pending_restart,
    )


def candidate_query(
    adapter: Adapter, desired: Desired, observation: Observation, config_plan: ConfigPlan
) -> BinaryQuery | None:
    """Return the query that loads the planned files in the node's own binary; None if it cannot."""
    return adapter.candidate_query(
        desired, observation, {change.path: change.after for change in config_plan.changes}
    )


def check(
    adapter: Adapter, desired: Desired, observation: Observation, answer: BinaryResult
) -> None:
    """Raise ConfigError if the effect of the candidate is not exactly what was requested."""
    problems = adapter.candidate_problems(desired, observation, answer)
    if problems:
        raise _refusal(desired, problems)


def check_in_sync(adapter: Adapter, desired: Desired, observation: Observation) -> None:
    """Raise ConfigError if files that contain our keys as desired do not have the desired effect.

    The binary may have been replaced by one that reads them differently.
    """
    problems = adapter.in_sync_problems(desired, observation)
    if problems:
        raise ConfigError(
            desired.config,
            "the keys of nvidia-toolkit are in place but not in effect as they should:"
            f" {_listed(problems)}",
            hint=(
                "check whether a file that is loaded later overrides these keys, and whether the"
                " runtime was replaced by another version; `nvidia-toolkit revert` removes the keys"
            ),
        )


def check_removal(
    adapter: Adapter, desired: Desired, observation: Observation, answer: BinaryResult
) -> None:
    """Raise ConfigError if the runtime would not load the configuration that a removal leaves."""
    problems = adapter.removal_problems(desired, observation, answer)
    if problems:
        raise _refusal(desired, problems)


def removal(adapter: Adapter, observation: Observation) -> ConfigPlan:
    """Return the changes that revert all our edits.

    A file that still has the content that we wrote gets its original content back. If a file was
    edited since, only our keys are removed from it.
    """
    changes: list[FileChange] = []
    stayed: list[str] = []
    for owned in reversed(observation.owned):
        data = observation.data(owned.path)
        after, names = without_us(adapter, owned, data)
        stayed += [f"{owned.path}: {name}" for name in names]
        if after != data:
            changes.append(FileChange(path=owned.path, before=data, after=after))
    return ConfigPlan(changes=_with_reset_content(adapter, changes), stayed=tuple(stayed))


def without_us(
    adapter: Adapter, owned: Ownership, data: bytes | None
) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the content of a file without our changes (None: no file), and what others changed."""
    return edits.without(adapter.form, owned, data)


def former(observation: Observation) -> frozenset[str]:
    """Return the names of the handlers that we added, according to the recorded edits."""
    keys = [edit.key for owned in observation.owned for edit in owned.edits]
    return frozenset(key[-1] for key in keys if key[-2:-1] == ("runtimes",)) - {"runc"}


def recorded(desired: Desired, known: Iterable[Sequence[Edit]]) -> Desired:
    """Return the desired configuration with the handlers that the recorded edits contain.

    Their names may differ from those in the current settings.
    """
    result = {
        edit.key[-1]: str(binary)
        for file in known
        for edit in file
        if edit.key[-2:-1] == ("runtimes",) and isinstance(edit.new, Mapping)
        for _, binary in edits.leaves(edit.new)
        if is_toolkit_program(str(binary))
    }
    handlers = tuple(Handler(name=name, binary=binary) for name, binary in result.items())
    return replace(desired, handlers=handlers or desired.handlers)


def unowned(
    adapter: Adapter, desired: Desired, observation: Observation, toolkit: str
) -> tuple[Ownership, ...]:
    """Return records for files that use the programs in directory `toolkit` but have no record yet.

    The previous values are unknown, so each record assumes that the handlers and a default that
    names one of them did not exist before. The content that we last wrote is unknown too, so the
    files count as edited since and a removal takes out only these keys. Raise ConfigError if a file
    cannot be parsed.
    """
    result = []
    for path, data in observation.files.items():
        if data is None or observation.ownership(path) is not None or path in desired.generated:
            continue
        if f"{toolkit}/".encode() not in data:
            continue
        if path == desired.hook:
            result.append(
                Ownership(path=path, original=None, written=(fingerprint(data),), edits=())
            )
        elif own_edits := tuple(_unowned_edits(adapter, path, data, toolkit)):
            rest, _ = edits.reverse(adapter.form, path, data, own_edits)
            is_all = _was_created_by_us(adapter, data) and not without_empty_tables(
                adapter.form.tree(rest, path)
            )
            original = None if is_all else rest
            result.append(Ownership(path=path, original=original, written=(), edits=own_edits))
    return tuple(result)


def relocated(
    adapter: Adapter,
    owned: Sequence[Ownership],
    files: Mapping[str, bytes | None],
    *,
    whole: bool = False,
) -> tuple[Ownership, ...]:
    """Return the records with the new places of moved keys, as `containerd config migrate` does.

    A handler that runs our programs is owned wherever it is in a file, and so is a default that
    names it. With `whole`, such a handler is owned even if others changed it since.
    """
    known = [edit for each in owned for edit in each.edits]
    if not any(map(_adds_handler, known)):
        return tuple(owned)
    return tuple(
        _relocated(adapter, each, files.get(each.path), known, whole=whole) for each in owned
    )


def _relocated(
    adapter: Adapter, owned: Ownership, data: bytes | None, known: Sequence[Edit], *, whole: bool
) -> Ownership:
    """Return the record of one file; `known` are the edits of all files."""
    if data is None or data == owned.original or fingerprint(data) in owned.written:
        return owned
    try:
        tree = adapter.form.tree(data, owned.path)
    except ConfigError:
        return owned
    added = {edit.key[-1]: edit for edit in known if _adds_handler(edit)}
    toolkits = {
        str(PurePosixPath(path).parent) for edit in added.values() for path in _programs(edit.new)
    }
    by_key = {edit.key: edit for edit in owned.edits}
    tables = {key: table for toolkit in sorted(toolkits) for key, table in _handlers(tree, toolkit)}
    for key, table in tables.items():
        if whole or key not in by_key:
            first = by_key.get(key, added.get(key[-1]))
            # What ran our programs before us as well is not what was there without us.
            old = ABSENT if first is None or _runs(first.old, toolkits) else first.old
            by_key[key] = Edit(key=key, old=old, new=table, required_keys=adapter.required_keys)
    names = {key[-1] for key in tables}
    former = {edit.key[-1]: edit.old for edit in known}
    for key, item in edits.leaves(tree):
        if key[-1] in _DEFAULTS and isinstance(item, str) and item in names and key not in by_key:
            by_key[key] = Edit(key=key, old=former.get(key[-1], ABSENT), new=item)
    return replace(owned, edits=tuple(by_key.values()))


def _adds_handler(edit: Edit) -> bool:
    return edit.key[-2:-1] == ("runtimes",) and any(True for _ in _programs(edit.new))


def _programs(item: object) -> Iterator[str]:
    """Yield the paths of the toolkit's programs in the table of a handler."""
    for _, leaf in edits.leaves(item) if isinstance(item, Mapping) else ():
        if isinstance(leaf, str) and leaf.startswith("/") and is_toolkit_program(leaf):
            yield leaf


def is_toolkit_program(path: str) -> bool:
    """Return whether a handler's program is one of the toolkit, in any directory."""
    return PurePosixPath(path).name.startswith(_PROGRAM)


def _runs(item: object, toolkits: Iterable[str]) -> bool:
    return any(str(PurePosixPath(path).parent) in toolkits for path in _programs(item))


def running(
    adapter: Adapter, files: Mapping[str, bytes | None], toolkit: str
) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield each file with handlers that run the programs in directory `toolkit`, and their names.

    Raise ConfigError if a file that contains the directory cannot be parsed.
    """
    for path, data in files.items():
        if data is None or f"{toolkit}/".encode() not in data:
            continue
        if names := frozenset(
            key[-1] for key, _ in _handlers(adapter.form.tree(data, path), toolkit)
        ):
            yield path, names


def defaults(observation: Observation) -> frozenset[str]:
    """Return the names of all handlers that we made the default, by the recorded edits."""
    result = [
        edit for owned in observation.owned for edit in owned.edits if edit.key[-1] in _DEFAULTS
    ]
    return frozenset(edit.new for edit in result if isinstance(edit.new, str))


def enabled_cri(observation: Observation) -> bool:
    """Return whether the recorded edits enabled CRI; a full removal then disables it again."""
    return any(
        edit.key == ("disabled_plugins",) for owned in observation.owned for edit in owned.edits
    )


def regressions(
    own_handlers: frozenset[str],
    default: str | None,
    before: Sequence[Effective],
    now: Effective,
    *,
    raised: frozenset[str] = frozenset(),
) -> list[str]:
    """Return a message for each handler, default or image that a daemon lost by a change.

    `before` are the configurations to compare with: that of the daemon, and that of its files,
    which others may have edited and which our restart loads as well. `own_handlers` are the
    handlers that may appear or disappear. `default` is the requested default; None means that the
    default must not change, unless it was one of our handlers or one of `raised`, which we made the
    default before.
    """
    problems = []
    known = [baseline.handlers for baseline in before if baseline.handlers is not None]
    if known and now.handlers is not None:
        gone = frozenset.intersection(*known) - own_handlers - now.handlers
        problems += [
            f"the handler {handler} is missing; it existed before" for handler in sorted(gone)
        ]
    defaults = {baseline.default for baseline in before if baseline.default is not None}
    if default is not None and now.default not in (default, None):
        problems.append(f"the default handler is {now.default}, not {default}")
    must_stay = default is None and defaults and not defaults & (own_handlers | raised)
    if must_stay and now.default is not None and now.default not in defaults:
        problems.append(
            f"the default handler is {now.default}, but was {', '.join(sorted(defaults))} before"
        )
    images = {baseline.sandbox_image for baseline in before if baseline.sandbox_image is not None}
    if images and now.sandbox_image is not None and now.sandbox_image not in images:
        problems.append(
            f"the sandbox image is {now.sandbox_image}, but was {', '.join(sorted(images))} before"
        )
    return problems


def _unowned_edits(adapter: Adapter, path: str, data: bytes, toolkit: str) -> Iterator[Edit]:
    """Yield the edits that would have set the keys of a file that use the toolkit's programs."""
    tree = adapter.form.tree(data, path)
    names = set()
    for key, table in _handlers(tree, toolkit):
        names.add(key[-1])
        yield Edit(key=key, old=ABSENT, new=table, required_keys=adapter.required_keys)
    for key, item in edits.leaves(tree) if names else ():
        if key[-1] in _DEFAULTS and isinstance(item, str) and item in names:
            yield Edit(key=key, old=ABSENT, new=item)
        elif _was_created_by_us(adapter, data) and key == ("version",):
            yield Edit(key=key, old=ABSENT, new=item, required_keys=key)
        elif _was_created_by_us(adapter, data) and key[-1] == "enable_cdi":
            yield Edit(key=key, old=ABSENT, new=item)


def _was_created_by_us(adapter: Adapter, data: bytes) -> bool:
    """Return whether this program created a file, even if others have edited it since."""
    return bool(adapter.banner) and data.startswith(adapter.banner.encode())


def _handlers(tree: Tree, toolkit: str, at: Key = ()) -> Iterator[tuple[Key, Tree]]:
    """Yield the tables of handlers, or of the default handler, that use a toolkit's programs."""
    for name, item in tree.items():
        key = (*at, name)
        if not isinstance(item, Mapping):
            continue
        programs = [PurePosixPath(leaf) for _, leaf in edits.leaves(item) if isinstance(leaf, str)]
        is_handler = at[-1:] == ("runtimes",) or name in _DEFAULTS
        if is_handler and any(
            str(p.parent) == toolkit and p.name.startswith(_PROGRAM) for p in programs
        ):
            yield key, item
        elif not is_handler:
            yield from _handlers(item, toolkit, key)


def _with_reset_content(adapter: Adapter, changes: Sequence[FileChange]) -> tuple[FileChange, ...]:
    return tuple(
        replace(c, reset_content=adapter.reset_content(c.path, c.before, c.after)) for c in changes
    )


def _fresh(
    adapter: Adapter,
    path: str,
    observation: Observation,
    wanted: Sequence[edits.DesiredKey],
    *,
    discards: bool = False,
) -> FileChange | None:
    """Generate a file that contains only our keys; if others edited it since, edit it in place.

    With `discards`, generate it in any case.
    """
    data, owned = observation.data(path), observation.ownership(path)
    if (
        data is not None
        and not discards
        and (owned is None or fingerprint(data) not in owned.written)
    ):
        return edits.apply(adapter.form, path, data, wanted)
    change = edits.apply(adapter.form, path, adapter.banner.encode(), wanted)
    if change is None or change.after == data:
        return None
    return FileChange(
        path=path, before=data, after=change.after, edits=change.edits, discards=discards
    )


def _refusal(desired: Desired, problems: Sequence[str]) -> ConfigError:
    if any("--runtime-config-override" in problem for problem in problems):
        hint = "nothing was written; correct --runtime-config-override (RUNTIME_CONFIG_OVERRIDE)"
    else:
        hint = (
            "nothing was written; check whether a file that is loaded later overrides these keys,"
            " otherwise please report this"
        )
    return ConfigError(desired.config, f"the change is refused: {_listed(problems)}", hint=hint)


def _listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
    return "; ".join(problems[:_MOST_LISTED]) + more
