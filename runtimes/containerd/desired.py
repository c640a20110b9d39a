"""The keys to set and their files: a drop-in if the binary merges files deeply, else in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from runtimes.adapter import DesiredConfig, no_longer_isolated
from runtimes.containerd.binary import Facts, binary_facts, cri_id, has_section, unloadable_file
from runtimes.containerd.distribution import is_merged_by_it, left_to_distribution, with_drop_in
from runtimes.containerd.handlers import HandlersView, built_in_runc
from runtimes.containerd.imports import (
    Dangling,
    File,
    dangling,
    load,
    patterns,
    read,
    read_patterns,
)
from runtimes.containerd.override import refuse_unusable
from runtimes.containerd.schema import (
    BINARY,
    CRI,
    ESSENTIAL,
    OF_CRI,
    import_glob,
    is_cri_off,
    last_line,
    matches,
    table_or_empty,
)
from runtimes.containerd.templates import variables
from runtimes.dataclass import dataclass, replace
from runtimes.edits import DesiredKey, leaves, reverting_keys, value, without
from runtimes.errors import ConfigError, UnsupportedSetup
from runtimes.formats import toml_editor
from runtimes.model import ABSENT, EMPTY, Desired, Edit, Key, Observation, Tree, fingerprint

_RANDOM: Final = (
    "it has no `version` and tables of two schema generations: this containerd takes one of them at"
    " random at each start"
)
_ONE_SCHEMA: Final = (
    f'move the keys of `plugins.cri` to `plugins."{CRI[2]}"` and write `version = 2`,'
    " or let `containerd config migrate` write the file"
)


_OURS_ELSEWHERE: Final = (
    "run `nvidia-toolkit revert`, then install again: the toolkit's keys were written for another"
    " containerd"
)


def _refuse_relative_globs(files: Sequence[File], facts: Facts) -> None:
    """Raise ConfigError for a relative glob in `imports` if the binary is containerd 1.x.

    1.6 resolves it from the working directory of the daemon and 1.7 from that of the file.
    """
    for file in files if facts.merges is False else ():
        for item in file.tree.get("imports", ()):
            if "*" in item and not item.startswith("/"):
                raise ConfigError(
                    file.path,
                    f"its import {item!r} is relative, which containerd 1.6 and 1.7 resolve"
                    " differently",
                    hint="write it as an absolute path",
                )


def _refuse_random(files: Sequence[File], facts: Facts, observation: Observation) -> None:
    """Raise ConfigError for a file from which the binary takes one of two sections at random."""
    for file in files if facts.reads_first_schema else ():
        owned = observation.ownership(file.path)
        data = without(toml_editor, owned, file.data)[0] if owned is not None else file.data
        sections = read(file.path, data).sections if data is not None else ()
        if file.version == 1 and {CRI[1], CRI[2]} <= set(sections):
            raise ConfigError(file.path, _RANDOM, hint=_ONE_SCHEMA)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerFile:
    """The file that gets our handlers: its schema version, its content, and our recorded edits."""

    version: int
    tree: Tree
    edits: tuple[Edit, ...]


def desired_config(desired: Desired, observation: Observation) -> DesiredConfig:
    """Return the keys of our handlers and the default, for a drop-in or for an existing file.

    Raise ConfigError if a file cannot be parsed or edited, and UnsupportedSetup if the distribution
    does not allow the change.
    """
    is_outdated = _is_outdated(desired, observation)
    if is_outdated:
        observation = replace(observation, files={**observation.files, desired.config: None})
    desired = with_drop_in(desired, observation)
    files, _ = load(desired, observation)
    facts = binary_facts(observation)
    if not is_outdated:
        _refuse_unloadable(desired, observation, files, facts)
    _refuse_relative_globs(files, facts)
    stop = dangling(files, observation) if facts.merges else None
    if stop is not None and stop.path == desired.drop_in:
        stop = None  # It is about to be created.
    _refuse_random(files, facts, observation)
    root = next((file for file in files if file.path == desired.config), None)
    if root is None or root.is_empty:
        version = 1 if desired.legacy else min(facts.newest or 2, 4)
    else:
        version = root.version
    in_drop_in = _is_in_drop_in(desired, observation, files, facts, version)
    obsolete = (
        () if in_drop_in or desired.delivery.is_regenerated else _obsolete(desired, observation)
    )
    files = [file for file in files if file.path not in obsolete]
    others = [file for file in files if not in_drop_in or file.path != desired.drop_in]
    view = HandlersView(others, facts, observation, desired, variables(desired, observation))
    _refuse_unusable(desired, view, facts)
    notes: list[str] = []
    if in_drop_in:
        _refuse_unread(desired, files, stop)
        desired_keys = _in_drop_in(desired, observation, files, facts, version, view)
    elif desired.delivery.is_regenerated:
        desired_keys = _without_drop_in(desired, root, files, facts, view)
        notes = list(desired_keys.notes)
    else:
        desired_keys = _in_place(desired, observation, files, facts, version, view)
        desired_keys = _without_obsolete(desired_keys, desired, observation, obsolete)
    notes += _notes(observation, facts)
    enabling = list(_enabling(desired, files, facts))
    if facts.effective is not None and is_cri_off(facts.effective) and not enabling:
        notes.append(
            "the CRI plugin of this containerd is disabled, so Kubernetes cannot use the handlers"
            " (use --enable-cri to enable it)"
        )
    return replace(
        desired_keys,
        keys=(*desired_keys.keys, *enabling),
        files=tuple(dict.fromkeys((*desired_keys.files, *(want.path for want in enabling)))),
        notes=tuple(notes),
        warnings=tuple(_warnings(desired, facts, stop, view)),
        low_level=view.low_level(),
        origin=view.origin(),
        fresh=desired_keys.fresh | ({desired.config} if is_outdated else set()),
    )


def _warnings(
    desired: Desired, facts: Facts, stop: Dangling | None, view: HandlersView
) -> Iterator[str]:
    """Yield warnings about a default handler that isolates pods, and files that are not loaded."""
    if desired.default and view.is_sandbox(view.default):
        yield no_longer_isolated(view.default, desired.default)
    if stop is not None:
        yield f"{stop.file.path}: {stop.words}"
    if facts.drop_in_breaks:
        yield (
            f"{desired.drop_in} of another installer keeps containerd from starting: it is"
            " replaced, and `revert` removes it"
        )


def _notes(observation: Observation, facts: Facts) -> Iterator[str]:
    """Yield the notes on a binary that cannot validate."""
    if observation.binary is None:
        yield (
            "no containerd binary was found: only the structure of the files was checked, the"
            " change was not validated by containerd"
        )
    elif facts.newest is None:
        yield f"{observation.binary} did not print its defaults, so it cannot validate the change"


def _is_in_drop_in(
    desired: Desired, observation: Observation, files: Sequence[File], facts: Facts, version: int
) -> bool:
    """Return whether our keys go into a drop-in: it must be imported and merged deeply."""
    merges = facts.merges is True or is_merged_by_it(desired, files)
    imported = desired.delivery.imports or desired.delivery.is_regenerated
    imported = imported or any(
        matches(p, desired.drop_in) for p in read_patterns(files, observation)
    )
    return bool(desired.drop_in) and merges and version > 1 and imported


def _refuse_unusable(desired: Desired, view: HandlersView, facts: Facts) -> None:
    """Raise UnsupportedSetup if no pod could start with the options that our handlers get."""
    source = view.source()
    base = view.handlers[source] if source is not None else EMPTY
    for handler in desired.handlers[:1]:  # They differ in their program only.
        table = view.copy(handler, base, cri=CRI[2])
        refuse_unusable(desired.override, table, source=source or "runc", dump=facts.effective)


def _without_drop_in(
    desired: Desired, root: File | None, files: Sequence[File], facts: Facts, view: HandlersView
) -> DesiredConfig:
    """Return the desired config if the distribution generates the root config and no drop-in works.

    Raise UnsupportedSetup if the distribution cannot provide what is requested.
    """
    if root is None:
        raise UnsupportedSetup(
            f"{desired.config} not found: its distribution writes it at each start",
            hint="start the distribution first",
        )
    if not desired.delivery.provided_handlers:
        raise UnsupportedSetup(
            f"{desired.config} is rewritten at each start of its distribution, and this containerd"
            " does not merge imported files with it",
            hint="update the distribution to a release with containerd 2",
        )
    return left_to_distribution(desired, files, facts, view)


def _enabling(desired: Desired, files: Sequence[File], facts: Facts) -> Iterator[DesiredKey]:
    """Yield the keys that remove CRI from the disabled plugins, for every file that lists it."""
    for file in files if desired.enable_cri and not desired.delivery.is_regenerated else ():
        disabled = file.tree.get("disabled_plugins")
        if (
            isinstance(disabled, list)
            and (rest := [p for p in disabled if p not in OF_CRI]) != disabled
        ):
            yield DesiredKey(path=file.path, key=("disabled_plugins",), new=rest)


def _is_outdated(desired: Desired, observation: Observation) -> bool:
    """Return whether we created the root config for a newer binary, in a version this one lacks.

    The root config is then written again, as if it did not exist.
    """
    now, without = observation.results.get("effective"), observation.results.get("original")
    owned, data = observation.ownership(desired.config), observation.data(desired.config)
    if now is None or without is None or not without.ok or owned is None or data is None:
        return False
    if owned.original is not None or fingerprint(data) not in owned.written:
        return False
    # containerd 1.6 loads a file with an unknown version and ignores its plugins.
    newest = binary_facts(observation).newest
    return not now.ok or (newest is not None and read(desired.config, data).version > newest)


def _refuse_unloadable(
    desired: Desired, observation: Observation, files: Sequence[File], facts: Facts
) -> None:
    """Raise ConfigError if the node's binary does not load the current files.

    A drop-in of another installer at the path of our drop-in is no reason if everything else is
    loaded: it is replaced.
    """
    answer = observation.results.get("effective")
    without_us = observation.results.get("original")
    if answer is not None and not answer.is_stable:
        if without_us is not None and without_us.ok:
            return  # It is random because of our keys, which the plan moves.
        raise ConfigError(desired.config, _RANDOM, hint=_ONE_SCHEMA)
    if answer is None:
        toml_editor.refuse_1_1((file.path, file.data) for file in files)
    if answer is None or answer.ok:
        return
    path = unloadable_file(desired, observation, files)
    is_drop_in = path != desired.config
    if facts.drop_in_breaks and _is_replaceable(desired, observation) and facts.merges:
        return
    repair = f"remove {path} or repair it first" if is_drop_in else "repair it first"
    if toml_editor.needs_1_1(observation.data(path) or b""):
        repair += f". It is TOML 1.1, which this containerd does not read: {toml_editor.IN_1_0}"
    raise ConfigError(
        path,
        f"{observation.binary} does not load it: {last_line(answer.err)}",
        hint=f"containerd would not start with this configuration; {repair}",
    )


def _is_replaceable(desired: Desired, observation: Observation) -> bool:
    """Return whether the file at our drop-in's path sets only what an installer of NVIDIA sets."""
    tree = toml_editor.tree(observation.data(desired.drop_in) or b"", desired.drop_in)
    for key, _ in leaves(tree):
        inside = key[2:] if key[:1] == ("plugins",) and key[1] in CRI.values() else ()
        is_handler = inside[:2] == ("containerd", "runtimes") and (
            inside[2:3] != () and (inside[2] in desired.names or inside[2].startswith("nvidia"))
        )
        is_ours = inside in {
            ("containerd", "default_runtime_name"),
            ("enable_cdi",),
            ("cdi_spec_dirs",),
        }
        if key != ("version",) and not is_handler and not is_ours:
            return False
    return True


def _refuse_unread(desired: Desired, files: Sequence[File], stop: Dangling | None) -> None:
    """Raise ConfigError if our drop-in is imported only after an import that ends the reading."""
    if stop is None or any(matches(p, desired.drop_in) for p in stop.read):
        return
    if any(matches(p, desired.drop_in) for file in files for p in patterns(file.tree, file.path)):
        raise ConfigError(
            stop.file.path,
            stop.words,
            hint=f"remove {stop.path} from `imports`, or create the file",
        )


def _in_place(
    desired: Desired,
    observation: Observation,
    files: Sequence[File],
    facts: Facts,
    version: int,
    view: HandlersView,
) -> DesiredConfig:
    """Return the keys for the file whose CRI section is effective: the last with it, else root."""
    target = next(
        (f for f in reversed(files) if has_section(f, facts) and not facts.merges),
        next((f for f in files if f.path == desired.config), None),
    )
    path = target.path if target else desired.config
    fresh_file = target is None or target.is_empty
    if target is not None and not fresh_file:
        version = target.version
    cri: Key = ("plugins", cri_id(target, facts) if target and not fresh_file else CRI[version])
    runtimes = (*cri, "containerd", "runtimes")
    wanted: list[DesiredKey] = []
    if fresh_file:
        wanted.append(
            DesiredKey(path=path, key=("version",), new=version, required_keys=("version",))
        )
    base: Tree = EMPTY
    source = view.source()
    if source is not None:
        base = view.handlers[source]
    elif not facts.merges and "runtimes" not in table_or_empty(
        target.tree if target else EMPTY, (*cri, "containerd")
    ):
        # containerd 1.x drops its built-in runc as soon as a file has any `runtimes` table.
        base = built_in_runc(facts, desired)
        wanted.append(
            DesiredKey(path=path, key=(*runtimes, "runc"), new=base, required_keys=ESSENTIAL)
        )
    content = HandlerFile(
        version=version, tree=target.tree if target else EMPTY, edits=_edits(observation, path)
    )
    for edit in content.edits:
        # We wrote it for a binary that read another section of the same file.
        is_elsewhere = (
            edit.key[:1] == ("plugins",)
            and edit.key[1:2] != cri[1:]
            and edit.key[1] in CRI.values()
        )
        given = list(reverting_keys(path, content.tree, edit)) if is_elsewhere else []
        if given and facts.reads_first_schema and version == 1:
            # A header would be left, and an empty table may win as well.
            raise ConfigError(path, _RANDOM, hint=_OURS_ELSEWHERE)
        wanted += given
    wanted += _handler_keys(desired, path, runtimes, view, base, content)
    wanted += _default_keys(desired, path, cri, view, base, content)
    if desired.enable_cdi:
        wanted.append(DesiredKey(path=path, key=(*cri, "enable_cdi"), new=True))
    return DesiredConfig(keys=tuple(wanted), files=(path,))


def _obsolete(desired: Desired, observation: Observation) -> tuple[str, ...]:
    """Return our drop-ins that were not edited, for a binary that needs no drop-in.

    containerd 1.x would take the whole CRI section from them. They were written for a later
    version.
    """
    return tuple(
        owned.path
        for owned in observation.owned
        if owned.original is None
        and owned.path != desired.config
        and observation.data(owned.path) is not None
        and fingerprint(observation.data(owned.path)) in owned.written
    )


def _without_obsolete(
    desired_keys: DesiredConfig, desired: Desired, observation: Observation, obsolete: Sequence[str]
) -> DesiredConfig:
    """Return the desired config with the removal of obsolete drop-ins and of our import of them."""
    if not obsolete:
        return desired_keys
    tree = toml_editor.tree(observation.data(desired.config) or b"", desired.config)
    given = [
        want
        for edit in _edits(observation, desired.config)
        if edit.key == ("imports",)
        for want in reverting_keys(desired.config, tree, edit)
    ]
    return replace(
        desired_keys,
        keys=(*desired_keys.keys, *given),
        files=tuple(dict.fromkeys((*desired_keys.files, *(want.path for want in given)))),
        whole={**desired_keys.whole, **dict.fromkeys(obsolete)},
    )


def _in_drop_in(
    desired: Desired,
    observation: Observation,
    files: Sequence[File],
    facts: Facts,
    version: int,
    view: HandlersView,
) -> DesiredConfig:
    """Return the keys for our drop-in, in the root config's schema version, and for its import."""
    path = desired.drop_in
    # A file that keeps containerd from starting is generated again, whatever it contains.
    owned = None if facts.drop_in_breaks else observation.ownership(path)
    data, root_version = None if facts.drop_in_breaks else observation.data(path), version
    created_by_us = data is None or (owned is not None and owned.original is None)
    tree = toml_editor.tree(data or b"", path)
    existing: File | None = None
    if data is not None and not created_by_us and tree:
        # The file belongs to others, so its own schema version applies, even if it is not imported
        # yet.
        existing = next((file for file in files if file.path == path), None) or read(path, data)
        version = existing.version
        further = tuple(patterns(tree, path))
        if further and all(file.path != path for file in files):
            # The file is not imported yet, so the files that it imports have not been read.
            raise ConfigError(
                path,
                f"it imports {further[0]}, which containerd does not load today",
                hint="remove `imports` from that file, or set another path with --drop-in-config",
            )
    root = next((f for f in files if f.path == desired.config), None)
    cri: Key = (
        "plugins",
        cri_id(existing, facts) if existing else _drop_in_cri(root, version, facts),
    )
    source = view.source()
    base = view.handlers[source] if source else EMPTY
    wanted: list[DesiredKey] = []
    if existing is None:
        wanted.append(
            DesiredKey(path=path, key=("version",), new=version, required_keys=("version",))
        )
    runtimes = (*cri, "containerd", "runtimes")
    content = HandlerFile(version=version, tree=tree, edits=owned.edits if owned else ())
    wanted += _handler_keys(desired, path, runtimes, view, base, content)
    wanted += _default_keys(desired, path, cri, view, base, content)
    if desired.enable_cdi:
        wanted.append(DesiredKey(path=path, key=(*cri, "enable_cdi"), new=True))
    if not desired.delivery.is_regenerated:
        wanted += _imports(desired, observation, files, facts, root_version)
    for file in files:
        if file.path != path and file.path not in desired.generated:
            wanted += _spelling_variants(desired, file, facts)
    order = dict.fromkeys([path, *(w.path for w in wanted)])
    return DesiredConfig(
        keys=tuple(wanted),
        files=tuple(order),
        fresh=frozenset({path} if created_by_us else ()),
        replaced=frozenset({path} if facts.drop_in_breaks else ()),
    )


def _handler_keys(
    desired: Desired, path: str, runtimes: Key, view: HandlersView, base: Tree, content: HandlerFile
) -> Iterator[DesiredKey]:
    """Yield the tables of our handlers, and the removal of those that are not desired any more."""
    for edit in content.edits:
        # A handler that we added but that is not desired any more, such as one with a former name,
        # is removed. The built-in runc, which we may have had to write down, stays.
        obsolete = edit.key[-1] not in desired.names and edit.required_keys == ESSENTIAL
        if obsolete and edit.key[-1] != "runc":
            yield from reverting_keys(path, content.tree, edit)
    for handler in desired.handlers:
        key = (*runtimes, handler.name)
        created = any(edit.key == key and edit.old is ABSENT for edit in content.edits)
        new = view.copy(
            handler, view.base_for(handler, base, path=path, made=created), cri=runtimes[1]
        )
        # A handler that existed before our first change keeps its additional keys.
        current = value(content.tree, key)
        if isinstance(current, Mapping) and not created:
            new = _without_variants(current, new)
        yield DesiredKey(path=path, key=key, new=new, exact=created, required_keys=ESSENTIAL)


def _default_keys(
    desired: Desired, path: str, cri: Key, view: HandlersView, base: Tree, content: HandlerFile
) -> Iterator[DesiredKey]:
    """Yield the key of the default handler, or its former value if none is requested any more."""
    containerd = (*cri, "containerd")
    if desired.default and desired.legacy and content.version == 1:
        handler = next(h for h in desired.handlers if h.name == desired.default)
        yield DesiredKey(
            path=path,
            key=(*containerd, "default_runtime"),
            new=view.copy(handler, base, cri=cri[1]),
        )
        return
    key = (*containerd, "default_runtime_name")
    if desired.default:
        yield DesiredKey(path=path, key=key, new=desired.default)
        return
    for edit in content.edits:
        if edit.key == key:
            yield from reverting_keys(path, content.tree, edit)


def _imports(
    desired: Desired, observation: Observation, files: Sequence[File], facts: Facts, version: int
) -> Iterator[DesiredKey]:
    """Yield the keys that make the root config import the drop-in; nothing if it already does."""
    root = next((f for f in files if f.path == desired.config), None)
    if root is not None and any(
        matches(p, desired.drop_in) for p in read_patterns(files, observation)
    ):
        return
    if root is None or root.is_empty:
        yield DesiredKey(
            path=desired.config, key=("version",), new=version, required_keys=("version",)
        )
    known = list(root.tree.get("imports", [])) if root else []
    glob = import_glob(desired.drop_in)
    if any(matches(p, desired.drop_in) for p in known):
        glob = ""
    elif any(
        p != desired.drop_in and p not in {f.path for f in files}
        for p in observation.globs.get(glob, ())
    ):
        # The directory contains other files that containerd does not load today. A wide glob would
        # load them too.
        drop_in = PurePosixPath(desired.drop_in)
        glob = str(drop_in.parent / f"{drop_in.stem}*{drop_in.suffix}")
    stop = dangling(files, observation) if facts.merges else None
    place = stop.index if stop is not None and stop.file is root else len(known)
    items = [*known[:place], glob, *known[place:]] if glob else known
    yield DesiredKey(path=desired.config, key=("imports",), new=items)


def _spelling_variants(desired: Desired, file: File, facts: Facts) -> Iterator[DesiredKey]:
    """Yield removals of `binaryName` and other spellings from others' definitions of our handlers.

    containerd ignores the case of keys, so such a key could override our `BinaryName`.
    """
    runtimes = ("plugins", cri_id(file, facts), "containerd", "runtimes")
    for handler in desired.handlers:
        options = value(file.tree, (*runtimes, handler.name, "options"))
        for key in options if isinstance(options, Mapping) else ():
            if key.lower() == BINARY.lower() and key != BINARY:
                yield DesiredKey(
                    path=file.path, key=(*runtimes, handler.name, "options", key), new=ABSENT
                )


def _without_variants(current: Tree, new: dict[str, Any]) -> dict[str, Any]:
    """Return the table `new` with ABSENT for each key of `current` that differs only in case."""
    result = dict(new)
    for table, wanted in ((current, result), (current.get("options", EMPTY), result["options"])):
        lowered = {key.lower(): key for key in wanted}
        for key in table if isinstance(table, Mapping) else ():
            if lowered.get(key.lower(), key) != key:
                wanted[key] = ABSENT
    return result


def _edits(observation: Observation, path: str) -> tuple[Edit, ...]:
    """Return our recorded edits of a file."""
    owned = observation.ownership(path)
    return owned.edits if owned else ()


def _drop_in_cri(root: File | None, version: int, facts: Facts) -> str:
    """Return the CRI section's id for a new drop-in: that of the root config, if it has content."""
    if root is not None and not root.is_empty:
        return cri_id(root, facts)
    return CRI[version]
