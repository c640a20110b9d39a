"""Which keys are wanted in which file: in a drop-in where the binary merges deeply, else in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from runtimes import tomldoc
from runtimes.adapter import Wants
from runtimes.containerd.binary import cri_id, has_section
from runtimes.containerd.facts import Facts, told
from runtimes.containerd.handlers import View, built_in_runc
from runtimes.containerd.imports import File, load, patterns, read
from runtimes.containerd.reach import is_merged_by_it, left_to_it, settled
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
from runtimes.edits import Want, given_back, value
from runtimes.errors import NotUnderstood, Unfit
from runtimes.model import ABSENT, EMPTY, Desired, Edit, Key, Observation, Tree


def _refuse_relative_globs(files: Sequence[File], facts: Facts) -> None:
    """Refuse what nobody can follow: 1.6 takes a relative glob from its working directory, 1.7 does not."""
    for file in files if facts.merges is False else ():
        for item in file.tree.get("imports", ()):
            if "*" in item and not item.startswith("/"):
                raise NotUnderstood(
                    file.path,
                    f"its import {item!r} is relative, which containerd 1.6 and 1.7 take differently",
                    hint="write it as an absolute path",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """The file that gets our handlers: its schema version, its content, what we own in it."""

    version: int
    tree: Tree
    edits: tuple[Edit, ...]


def wants(desired: Desired, seen: Observation) -> Wants:
    """Return our handlers and default, in a drop-in where the binary merges deeply, else in place."""
    _refuse_unloadable(desired, seen)
    desired = settled(desired, seen)
    files, _ = load(desired, seen)
    facts = told(seen)
    _refuse_relative_globs(files, facts)
    root = next((file for file in files if file.path == desired.config), None)
    if root is None or root.is_empty:
        version = 1 if desired.legacy else min(facts.newest or 2, 4)
    else:
        version = root.version
    in_drop_in = _is_in_drop_in(desired, files, facts, version)
    others = [file for file in files if not in_drop_in or file.path != desired.drop_in]
    view = View(others, facts, seen, desired, variables(desired, seen))
    notes = list(view.notes)
    if in_drop_in:
        found = _in_drop_in(desired, seen, files, facts, version, view)
    elif desired.reach.is_made_anew:
        found = _without_drop_in(desired, root, files, facts, view)
        notes = list(found.notes)
    else:
        found = _in_place(desired, seen, files, facts, version, view)
    if seen.binary is None:
        notes.append(
            "no containerd binary is known here: only the structure of the files was checked,"
            " not what containerd makes of them"
        )
    elif facts.newest is None:
        notes.append(f"{seen.binary} did not print its defaults, so it cannot judge the change")
    enabling = list(_enabling(desired, files, facts))
    if facts.effective is not None and is_cri_off(facts.effective) and not enabling:
        notes.append(
            "the CRI plugin of this containerd is disabled: Kubernetes cannot use the handlers"
            " (--enable-cri enables it)"
        )
    return replace(
        found,
        wants=(*found.wants, *enabling),
        files=tuple(dict.fromkeys((*found.files, *(want.path for want in enabling)))),
        notes=tuple(notes),
        low_level=view.low_level(),
    )


def _is_in_drop_in(desired: Desired, files: Sequence[File], facts: Facts, version: int) -> bool:
    """Tell whether our keys go into a file of their own: where that is imported, and is merged deeply."""
    merges = facts.merges is True or is_merged_by_it(desired, files)
    imported = desired.reach.imports or desired.reach.is_made_anew
    imported = imported or any(matches(p, desired.drop_in) for file in files for p, _ in file.imports)
    return bool(desired.drop_in) and merges and version > 1 and imported


def _without_drop_in(
    desired: Desired, root: File | None, files: Sequence[File], facts: Facts, view: View
) -> Wants:
    """Return the wish where no file may be ours. Raises Unfit where it cannot come true so."""
    if root is None:
        raise Unfit(
            f"{desired.config} is not there, which its distribution writes when it starts",
            hint="start it first",
        )
    if not desired.reach.makes:
        raise Unfit(
            f"{desired.config} is written anew at each start of its distribution, and what it imports is not"
            " merged with it by this containerd",
            hint="update the distribution to one with containerd 2",
        )
    return left_to_it(desired, files, facts, view)


def _enabling(desired: Desired, files: Sequence[File], facts: Facts) -> Iterator[Want]:
    """Take CRI off the list of disabled plugins, in every file that has it there."""
    for file in files if desired.enable_cri and not desired.reach.is_made_anew else ():
        disabled = file.tree.get("disabled_plugins")
        if isinstance(disabled, list) and (left := [p for p in disabled if p not in OF_CRI]) != disabled:
            yield Want(path=file.path, key=("disabled_plugins",), new=left)


def _refuse_unloadable(desired: Desired, seen: Observation) -> None:
    answer = seen.answers.get("effective")
    if answer is not None and not answer.ok:
        raise NotUnderstood(
            desired.config,
            f"{seen.binary} itself does not load it: {last_line(answer.err)}",
            hint="containerd would not start with this configuration; repair it first",
        )


def _in_place(
    desired: Desired,
    seen: Observation,
    files: Sequence[File],
    facts: Facts,
    version: int,
    view: View,
) -> Wants:
    """Edit the file whose CRI section is in effect: the last one that has it, the root where none has."""
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
    wanted: list[Want] = []
    if fresh_file:
        wanted.append(Want(path=path, key=("version",), new=version, essential=("version",)))
    base: Tree = EMPTY
    source = view.source()
    if source is not None:
        base = view.handlers[source]
    elif not facts.merges and "runtimes" not in table_or_empty(
        target.tree if target else EMPTY, (*cri, "containerd")
    ):
        # 1.x forgets its built-in runc as soon as a file has any `runtimes` table.
        base = built_in_runc(facts, desired)
        wanted.append(Want(path=path, key=(*runtimes, "runc"), new=base, essential=ESSENTIAL))
    there = There(version=version, tree=target.tree if target else EMPTY, edits=_edits(seen, path))
    wanted += _handler_wants(desired, path, runtimes, view, base, there)
    wanted += _default_wants(desired, path, cri, view, base, there)
    if desired.enable_cdi:
        wanted.append(Want(path=path, key=(*cri, "enable_cdi"), new=True))
    return Wants(wants=tuple(wanted), files=(path,))


def _in_drop_in(
    desired: Desired,
    seen: Observation,
    files: Sequence[File],
    facts: Facts,
    version: int,
    view: View,
) -> Wants:
    """Put our keys into a file of our own, in the root file's version, and see that it is imported."""
    path = desired.drop_in
    owned = seen.ownership(path)
    data, root_version = seen.data(path), version
    ours_alone = data is None or (owned is not None and owned.original is None)
    tree = tomldoc.tree(data or b"", path)
    own: File | None = None
    if data is not None and not ours_alone and tree:
        # It counts as what it says, whether the root imports it already or not.
        own = read(path, data)
        version = own.version
        further = tuple(patterns(tree, path))
        if further and all(file.path != path for file in files):
            # Nobody imports it today, so nobody has looked at those.
            raise NotUnderstood(path, f"it would import {further[0]}")
    root = next((f for f in files if f.path == desired.config), None)
    cri: Key = ("plugins", cri_id(own, facts) if own else _drop_in_cri(root, version, facts))
    source = view.source()
    base = view.handlers[source] if source else EMPTY
    wanted: list[Want] = []
    if own is None:
        wanted.append(Want(path=path, key=("version",), new=version, essential=("version",)))
    runtimes = (*cri, "containerd", "runtimes")
    there_ = There(version=version, tree=tree, edits=_edits(seen, path))
    wanted += _handler_wants(desired, path, runtimes, view, base, there_)
    wanted += _default_wants(desired, path, cri, view, base, there_)
    if desired.enable_cdi:
        wanted.append(Want(path=path, key=(*cri, "enable_cdi"), new=True))
    if not desired.reach.is_made_anew:
        wanted += _imports(desired, seen, files, facts, root_version)
    for file in files:
        if file.path != path and file.path not in desired.generated:
            wanted += _spelling_variants(desired, file, facts)
    order = dict.fromkeys([path, *(w.path for w in wanted)])
    return Wants(wants=tuple(wanted), files=tuple(order), fresh=frozenset({path} if ours_alone else ()))


def _handler_wants(
    desired: Desired, path: str, runtimes: Key, view: View, base: Tree, there: There
) -> Iterator[Want]:
    for edit in there.edits:
        # A handler of ours that is no longer wanted, under its former name say, goes.
        obsolete = edit.key[-1] not in desired.names and edit.essential == ESSENTIAL
        if obsolete and edit.key[-1] != "runc":
            yield from given_back(path, there.tree, edit)
    for handler in desired.handlers:
        key = (*runtimes, handler.name)
        made = any(edit.key == key and edit.old is ABSENT for edit in there.edits)
        new = view.copy(handler, view.base_for(handler, base, path=path, made=made), cri=runtimes[1])
        # A handler that was there before us keeps the keys that it alone has.
        current = value(there.tree, key)
        if isinstance(current, Mapping) and not made:
            new = _without_variants(current, new)
        yield Want(path=path, key=key, new=new, exact=made, essential=ESSENTIAL)


def _default_wants(
    desired: Desired, path: str, cri: Key, view: View, base: Tree, there: There
) -> Iterator[Want]:
    containerd = (*cri, "containerd")
    if desired.default and desired.legacy and there.version == 1:
        handler = next(h for h in desired.handlers if h.name == desired.default)
        yield Want(
            path=path,
            key=(*containerd, "default_runtime"),
            new=view.copy(handler, base, cri=cri[1]),
        )
        return
    key = (*containerd, "default_runtime_name")
    if desired.default:
        yield Want(path=path, key=key, new=desired.default)
        return
    for edit in there.edits:
        if edit.key == key:
            yield from given_back(path, there.tree, edit)


def _imports(
    desired: Desired, seen: Observation, files: Sequence[File], facts: Facts, version: int
) -> Iterator[Want]:
    root = next((f for f in files if f.path == desired.config), None)
    patterns = [pattern for file in files for pattern, _ in file.imports]
    if root is not None and any(matches(p, desired.drop_in) for p in patterns):
        return
    if root is None or root.is_empty:
        yield Want(path=desired.config, key=("version",), new=version, essential=("version",))
    known = list(root.tree.get("imports", [])) if root else []
    glob = import_glob(desired.drop_in)
    if any(matches(p, desired.drop_in) for p in known):
        glob = ""
    elif any(p != desired.drop_in and p not in {f.path for f in files} for p in seen.globs.get(glob, ())):
        # Other files lie there which containerd does not read today: a wide glob would wake them.
        drop_in = PurePosixPath(desired.drop_in)
        glob = str(drop_in.parent / f"{drop_in.stem}*{drop_in.suffix}")
    yield Want(path=desired.config, key=("imports",), new=[*known, glob] if glob else known)


def _spelling_variants(desired: Desired, file: File, facts: Facts) -> Iterator[Want]:
    """Drop `binaryName` and the like from foreign definitions of our handlers: it could win over ours."""
    runtimes = ("plugins", cri_id(file, facts), "containerd", "runtimes")
    for handler in desired.handlers:
        options = value(file.tree, (*runtimes, handler.name, "options"))
        for key in options if isinstance(options, Mapping) else ():
            if key.lower() == BINARY.lower() and key != BINARY:
                yield Want(path=file.path, key=(*runtimes, handler.name, "options", key), new=ABSENT)


def _without_variants(current: Tree, new: dict[str, Any]) -> dict[str, Any]:
    """Return the wanted handler with other spellings of its keys marked to go."""
    result = dict(new)
    for table, wanted in ((current, result), (current.get("options", EMPTY), result["options"])):
        lowered = {key.lower(): key for key in wanted}
        for key in table if isinstance(table, Mapping) else ():
            if lowered.get(key.lower(), key) != key:
                wanted[key] = ABSENT
    return result


def _edits(seen: Observation, path: str) -> tuple[Edit, ...]:
    owned = seen.ownership(path)
    return owned.edits if owned else ()


def _drop_in_cri(root: File | None, version: int, facts: Facts) -> str:
    if root is not None and not root.is_empty:
        return cri_id(root, facts)
    return CRI[version]
