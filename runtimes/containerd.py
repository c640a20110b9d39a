"""The dialect of containerd: schema versions, the CRI section, imports, and what its dump says.

Two facts shape it. containerd 1.x replaces a whole plugin section by that of
the last file that has it, while 2.0 and later merge deeply; so a drop-in with
only our keys is right for the one and deadly for the other, and the node's
binary is *asked* which it is. And `config dump` prints what a binary would run
with, so it is the judge of every candidate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Final

from runtimes import edits, tomldoc
from runtimes.adapter import Wants
from runtimes.edits import Want, value
from runtimes.errors import NotUnderstood
from runtimes.model import (
    ABSENT,
    EMPTY,
    Answer,
    Desired,
    Edit,
    Handler,
    Key,
    Look,
    Observation,
    Question,
    RuntimeName,
    Tree,
    token,
)

form: Final = tomldoc
name: Final = RuntimeName.CONTAINERD
executables: Final = frozenset({"containerd"})
banner: Final = (
    "# Written by nvidia-toolkit. It holds only the keys of nvidia-toolkit, which takes it back\n"
    "# with `nvidia-toolkit revert`.\n"
)

_CRI: Final = {
    1: "cri",
    2: "io.containerd.grpc.v1.cri",
    3: "io.containerd.cri.v1.runtime",
    4: "io.containerd.cri.v1.runtime",
}
_BINARY: Final = "BinaryName"
_RUNC_TYPES: Final = ("io.containerd.runc.", "io.containerd.runtime.v1.")
_ZERO: Final = ("", 0, False, [], {})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What the node's binary said about itself; None where it was not asked or did not answer."""

    newest: int | None
    imports: tuple[str, ...]
    merges: bool | None
    effective: Tree | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """One file of the configuration in load order, with the imports it names as (pattern, files)."""

    path: str
    data: bytes
    tree: Tree
    version: int
    imports: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def cri(self) -> str:
        return _CRI[self.version]

    @property
    def is_empty(self) -> bool:
        return not self.tree


# --- what to look at ----------------------------------------------------------------------------


def look(desired: Desired, seen: Observation) -> Look:
    """Follow the imports from the root config on, as containerd does."""
    _, missing = _load(desired, seen)
    drop_in = (desired.drop_in,) if desired.drop_in else ()
    globs = (_import_glob(desired.drop_in),) if desired.drop_in else ()
    return Look(
        files=tuple(p for p in (*missing.files, *drop_in) if p not in seen.files),
        globs=tuple(g for g in (*missing.globs, *globs) if g not in seen.globs),
    )


def questions(desired: Desired, seen: Observation) -> tuple[Question, ...]:
    """Ask for the defaults first, then how imports merge and what is in effect today."""
    if "default" not in seen.answers:
        return (Question(name="default", argv=("config", "default")),)
    if not seen.answers["default"].ok:
        return ()
    facts = _facts(seen)
    wanted = []
    if "merge" not in seen.answers:
        wanted.append(_merge_probe(facts.newest or 2))
    if "effective" not in seen.answers:
        files, _ = _load(desired, seen)
        wanted.append(_dump("effective", files, facts))
    return tuple(wanted)


def _load(desired: Desired, seen: Observation) -> tuple[list[_File], Look]:
    """Return the files in load order (breadth first), and what has to be looked at to go on."""
    files: list[_File] = []
    queue, done = [desired.config], {desired.config}
    unseen: list[str] = []
    unglobbed: list[str] = []
    while queue:
        path = queue.pop(0)
        if path not in seen.files:
            unseen.append(path)
            continue
        data = seen.data(path)
        if data is None:
            continue
        tree = tomldoc.tree(data, path)
        imports = []
        for pattern in _patterns(tree, path, seen if path == desired.config else None):
            if "*" not in pattern:
                found: tuple[str, ...] = (pattern,)
            elif pattern in seen.globs:
                found = seen.globs[pattern]
            else:
                unglobbed.append(pattern)
                continue
            imports.append((pattern, found))
            queue += [p for p in found if p not in done]
            done.update(found)
        files.append(
            _File(path=path, data=data, tree=tree, version=_version(tree, path), imports=tuple(imports))
        )
    return files, Look(files=tuple(unseen), globs=tuple(unglobbed))


def _patterns(tree: Tree, path: str, seen: Observation | None) -> Iterator[str]:
    imports = tree.get("imports", [])
    if not isinstance(imports, list) or not all(isinstance(item, str) for item in imports):
        raise NotUnderstood(path, "its `imports` is not an array of strings")
    if "imports" not in tree and seen is not None:
        imports = _facts(seen).imports
    for item in imports:
        yield str(PurePosixPath(path).parent / item)


def _version(tree: Tree, path: str) -> int:
    version = tree.get("version", 1)
    if type(version) is not int or version not in _CRI:
        known = ", ".join(map(str, _CRI))
        raise NotUnderstood(
            path,
            f"it has schema version {version!r}, which is not known (known: {known})",
            hint="a newer nvidia-toolkit may know it",
        )
    return version


# --- what the binary says -----------------------------------------------------------------------


def _facts(seen: Observation) -> _Facts:
    default = _answer_tree(seen, "default")
    probe = _answer_tree(seen, "merge")
    merges = None
    if probe is not None:
        # The probe's root names a CNI directory and its drop-in only a handler.
        merges = any("/probe/root" in str(item) for _, item in edits.leaves(probe))
    newest = (default or EMPTY).get("version")
    return _Facts(
        newest=newest if isinstance(newest, int) else None,
        imports=tuple((default or EMPTY).get("imports", ())),
        merges=merges,
        effective=_answer_tree(seen, "effective"),
    )


def _answer_tree(seen: Observation, question: str) -> Tree | None:
    answer = seen.answers.get(question)
    return _parsed(answer.out, question) if answer is not None and answer.ok else None


@lru_cache(maxsize=16)
def _parsed(out: str, question: str) -> Tree:
    return MappingProxyType(tomldoc.tree(out.encode(), f"containerd's answer ({question})"))


def _merge_probe(newest: int) -> Question:
    version = min(newest, 4)
    cri = f'plugins."{_CRI[version]}"'
    root = f'version = {version}\nimports = ["{token(1)}"]\n[{cri}.cni]\nconf_dir = "/probe/root"\n'
    drop_in = f'version = {version}\n[{cri}.containerd.runtimes.probe]\nruntime_type = "io.containerd.runc.v2"\n'
    argv = ("--config", token(0), "config", "dump")
    return Question(name="merge", argv=argv, files=(root.encode(), drop_in.encode()))


def _dump(question: str, files: Sequence[_File], facts: _Facts) -> Question:
    """Stage a configuration with its imports and have the binary load it."""
    staged = {file.path: index for index, file in enumerate(files)}
    argv = ("--config", token(0), "config", "dump")
    if not files:
        text = f"version = {min(facts.newest or 2, 4)}\nimports = []\n"
        return Question(name=question, argv=argv, files=(text.encode(),))
    data = []
    for file in files:
        document = tomldoc.parse(file.data, file.path)
        if file.imports or "imports" in file.tree or (file is files[0] and facts.imports):
            targets = [p for _, found in file.imports for p in found]
            names = [token(staged[p]) if p in staged else p for p in targets if p != file.path]
            document = tomldoc.put(document, ("imports",), names)
            if file.is_empty:
                document = tomldoc.put(document, ("version",), min(facts.newest or 2, 4))
        data.append(document.encode())
    return Question(name=question, argv=argv, files=tuple(data))


# --- what is wanted -----------------------------------------------------------------------------


def wants(desired: Desired, seen: Observation) -> Wants:
    """Return our handlers and default, in a drop-in where the binary merges deeply, else in place."""
    files, _ = _load(desired, seen)
    facts = _facts(seen)
    _refuse_unloadable(desired, seen)
    root = next((file for file in files if file.path == desired.config), None)
    if root is None or root.is_empty:
        version = 1 if desired.legacy else min(facts.newest or 2, 4)
    else:
        version = root.version
    in_drop_in = bool(desired.drop_in) and facts.merges is True and version > 1
    others = [file for file in files if not in_drop_in or file.path != desired.drop_in]
    view = _View(others, facts, seen, desired)
    notes = list(view.notes)
    if in_drop_in:
        found = _in_drop_in(desired, seen, files, facts, version, view)
    else:
        found = _in_place(desired, seen, files, facts, version, view)
    if seen.binary is None:
        notes.append(
            "no containerd binary is known here: only the structure of the files was checked,"
            " not what containerd makes of them"
        )
    elif facts.newest is None:
        notes.append(f"{seen.binary} did not print its defaults, so it cannot judge the change")
    if facts.effective is not None and _section_of(facts.effective) is None:
        notes.append("the CRI plugin of this containerd is disabled: Kubernetes cannot use the handlers")
    return Wants(
        wants=found.wants,
        files=found.files,
        notes=tuple(notes),
        low_level=view.low_level(),
        fresh=found.fresh,
    )


def _refuse_unloadable(desired: Desired, seen: Observation) -> None:
    answer = seen.answers.get("effective")
    if answer is not None and not answer.ok:
        raise NotUnderstood(
            desired.config,
            f"{seen.binary} itself does not load it: {_last_line(answer.err)}",
            hint="containerd would not start with this configuration; repair it first",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _There:
    """The file that gets our handlers: its schema version, its content, what we own in it."""

    version: int
    tree: Tree
    edits: tuple[Edit, ...]


class _View:
    """The handlers as the files say, the default one, and what ours inherit."""

    def __init__(self, files: Sequence[_File], facts: _Facts, seen: Observation, desired: Desired) -> None:
        self.notes: list[str] = []
        self._facts = facts
        self._desired = desired
        self.handlers: dict[str, Any] = {}
        default: Any = ABSENT
        for file in files:
            section = value(file.tree, ("plugins", _cri_id(file, facts)))
            if not isinstance(section, Mapping):
                continue
            containerd = _table(section, "containerd", file.path)
            if facts.merges:
                self.handlers = _deep(self.handlers, _table(containerd, "runtimes", file.path))
                default = containerd.get("default_runtime_name", default)
            else:
                self.handlers = dict(_table(containerd, "runtimes", file.path))
                default = containerd.get("default_runtime_name", ABSENT)
        for handler, table in self.handlers.items():
            if not isinstance(table, Mapping):
                raise NotUnderstood(desired.config, f"its handler {handler} is not a table")
        self.default = self._default(default, seen)

    def _default(self, default: Any, seen: Observation) -> str:
        remembered = [
            edit.old
            for owned in seen.owned
            for edit in owned.edits
            if edit.key[-1] == "default_runtime_name"
        ]
        for candidate in (default, *remembered):
            if isinstance(candidate, str) and candidate and candidate not in self._desired.names:
                return candidate
        return "runc"

    def source(self) -> str | None:
        """Return the name of the handler that ours are a copy of, or None where only the built-in one is left."""
        for candidate in dict.fromkeys((self.default, "runc", "crun")):
            table = self.handlers.get(candidate)
            if table is None or candidate in self._desired.names:
                continue
            kind = table.get("runtime_type") or self._desired.runtime_type
            if str(kind).startswith(_RUNC_TYPES):
                return candidate
        return None

    def copy(self, handler: Handler, base: Tree, *, version: int) -> dict[str, Any]:
        """Return a handler of ours: the base's options with only the binary changed."""
        table = {k: v for k, v in base.items() if k.lower() not in ("runtime_type", "options")}
        kind = base.get("runtime_type") or self._desired.runtime_type
        options = dict(base.get("options") or {})
        binaries = [_BINARY, "Runtime"] if version == 1 else [_BINARY]
        lowered = {b.lower() for b in binaries}
        options = {k: v for k, v in options.items() if k.lower() not in lowered}
        options = {**dict.fromkeys(binaries, handler.binary), **options}
        if self._desired.annotations:
            known = list(table.get("container_annotations", ()))
            table["container_annotations"] = known + [
                a for a in self._desired.annotations if a not in known
            ]
        return {"runtime_type": kind, **table, "options": options}

    def low_level(self) -> tuple[str, ...]:
        """Return the binaries that the handlers of others run, the default's first."""
        names = dict.fromkeys((self.source() or "runc", *self.handlers))
        found = []
        for handler in names:
            table = self.handlers.get(handler, EMPTY)
            if handler in self._desired.names:
                continue
            if not str(table.get("runtime_type") or _RUNC_TYPES[0]).startswith(_RUNC_TYPES):
                continue
            options = table.get("options")
            named = [v for k, v in (options or EMPTY).items() if k.lower() in ("binaryname", "runtime")]
            found.append(next((str(v) for v in named if v), "runc"))
        return tuple(dict.fromkeys(found))


def _in_place(
    desired: Desired, seen: Observation, files: Sequence[_File], facts: _Facts, version: int, view: _View
) -> Wants:
    """Edit the file whose CRI section is in effect: the last one that has it, the root where none has."""
    target = next(
        (f for f in reversed(files) if _has_section(f, facts) and not facts.merges),
        next((f for f in files if f.path == desired.config), None),
    )
    path = target.path if target else desired.config
    fresh_file = target is None or target.is_empty
    if target is not None and not fresh_file:
        version = target.version
    cri: Key = ("plugins", _cri_id(target, facts) if target and not fresh_file else _CRI[version])
    runtimes = (*cri, "containerd", "runtimes")
    wanted: list[Want] = []
    if fresh_file:
        wanted.append(Want(path=path, key=("version",), new=version, essential=("version",)))
    base: Tree = EMPTY
    source = view.source()
    if source is not None:
        base = view.handlers[source]
    elif not facts.merges and "runtimes" not in value_or_empty(target, (*cri, "containerd")):
        # 1.x forgets its built-in runc as soon as a file has any `runtimes` table.
        base = _built_in_runc(facts, desired)
        wanted.append(Want(path=path, key=(*runtimes, "runc"), new=base, essential=("runtime_type",)))
    there = _There(version=version, tree=target.tree if target else EMPTY, edits=_edits(seen, path))
    wanted += _handler_wants(desired, path, runtimes, view, base, there)
    wanted += _default_wants(desired, path, cri, view, base, there)
    if desired.enable_cdi:
        wanted.append(Want(path=path, key=(*cri, "enable_cdi"), new=True))
    return Wants(wants=tuple(wanted), files=(path,))


def _in_drop_in(
    desired: Desired, seen: Observation, files: Sequence[_File], facts: _Facts, version: int, view: _View
) -> Wants:
    """Put our keys into a file of our own, in the root file's version, and see that it is imported."""
    path = desired.drop_in
    owned = seen.ownership(path)
    there = next((f for f in files if f.path == path), None)
    data = seen.data(path)
    ours_alone = data is None or (owned is not None and owned.original is None)
    if data is not None and not ours_alone:
        tree = tomldoc.tree(data, path)
        version = _version(tree, path) if tree else version
    root = next((f for f in files if f.path == desired.config), None)
    own = there if there is not None and not ours_alone else None
    cri: Key = ("plugins", _cri_id(own, facts) if own else _drop_in_cri(root, version, facts))
    source = view.source()
    base = view.handlers[source] if source else EMPTY
    wanted: list[Want] = [Want(path=path, key=("version",), new=version, essential=("version",))]
    runtimes = (*cri, "containerd", "runtimes")
    tree = tomldoc.tree(data or b"", path)
    there_ = _There(version=version, tree=tree, edits=_edits(seen, path))
    wanted += _handler_wants(desired, path, runtimes, view, base, there_)
    if desired.default:
        key = (*cri, "containerd", "default_runtime_name")
        wanted.append(Want(path=path, key=key, new=desired.default))
    if desired.enable_cdi:
        wanted.append(Want(path=path, key=(*cri, "enable_cdi"), new=True))
    wanted += _imports(desired, seen, files, facts, version)
    for file in files:
        if file.path != path:
            wanted += _spelling_variants(desired, file, facts)
    order = dict.fromkeys([path, *(w.path for w in wanted)])
    return Wants(
        wants=tuple(wanted), files=tuple(order), fresh=frozenset({path} if ours_alone else ())
    )


def _handler_wants(
    desired: Desired, path: str, runtimes: Key, view: _View, base: Tree, there: _There
) -> Iterator[Want]:
    for edit in there.edits:
        # A handler of ours that is no longer wanted, under its former name say, goes.
        obsolete = edit.key[-1] not in desired.names and edit.essential == ("runtime_type",)
        if obsolete and edit.key[-1] != "runc":
            yield Want(path=path, key=edit.key, new=edit.old, exact=True)
    for handler in desired.handlers:
        key = (*runtimes, handler.name)
        new = view.copy(handler, base, version=there.version)
        # A handler that was there before us keeps the keys that it alone has.
        made = any(edit.key == key and edit.old is ABSENT for edit in there.edits)
        current = value(there.tree, key)
        if isinstance(current, Mapping) and not made:
            new = _without_variants(current, new)
        yield Want(path=path, key=key, new=new, exact=made, essential=("runtime_type",))


def _default_wants(
    desired: Desired, path: str, cri: Key, view: _View, base: Tree, there: _There
) -> Iterator[Want]:
    containerd = (*cri, "containerd")
    if desired.default and desired.legacy and there.version == 1:
        handler = next(h for h in desired.handlers if h.name == desired.default)
        yield Want(
            path=path,
            key=(*containerd, "default_runtime"),
            new=view.copy(handler, base, version=there.version),
        )
        return
    key = (*containerd, "default_runtime_name")
    if desired.default:
        yield Want(path=path, key=key, new=desired.default)
    elif value(there.tree, key) in desired.names:
        old = [edit.old for edit in there.edits if edit.key == key]
        yield Want(path=path, key=key, new=old[0] if old else ABSENT)


def _imports(
    desired: Desired, seen: Observation, files: Sequence[_File], facts: _Facts, version: int
) -> Iterator[Want]:
    root = next((f for f in files if f.path == desired.config), None)
    patterns = [pattern for file in files for pattern, _ in file.imports]
    if root is not None and any(matches(p, desired.drop_in) for p in patterns):
        return
    if root is None or root.is_empty:
        yield Want(path=desired.config, key=("version",), new=version, essential=("version",))
    known = list(root.tree.get("imports", facts.imports)) if root else list(facts.imports)
    glob = _import_glob(desired.drop_in)
    if any(matches(p, desired.drop_in) for p in known):
        glob = ""
    elif any(p != desired.drop_in and p not in {f.path for f in files} for p in seen.globs.get(glob, ())):
        # Other files lie there which containerd does not read today: a wide glob would wake them.
        drop_in = PurePosixPath(desired.drop_in)
        glob = str(drop_in.parent / f"{drop_in.stem}*{drop_in.suffix}")
    yield Want(path=desired.config, key=("imports",), new=[*known, glob] if glob else known)


def _spelling_variants(desired: Desired, file: _File, facts: _Facts) -> Iterator[Want]:
    """Drop `binaryName` and the like from foreign definitions of our handlers: it could win over ours."""
    runtimes = ("plugins", _cri_id(file, facts), "containerd", "runtimes")
    for handler in desired.handlers:
        options = value(file.tree, (*runtimes, handler.name, "options"))
        for key in options if isinstance(options, Mapping) else ():
            if key.lower() == _BINARY.lower() and key != _BINARY:
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


def _built_in_runc(facts: _Facts, desired: Desired) -> Tree:
    """Return the runc that containerd has when no file defines one, without what is zero anyway."""
    section = _section_of(facts.effective) if facts.effective is not None else None
    table = value(section or EMPTY, ("containerd", "runtimes", "runc"))
    if not isinstance(table, Mapping):
        return {"runtime_type": desired.runtime_type}
    return _solid(table) or {"runtime_type": desired.runtime_type}


# --- the judge ----------------------------------------------------------------------------------


def trial(
    desired: Desired, seen: Observation, after: Mapping[str, bytes | None]
) -> Question | None:
    """Return the question that has the node's binary load the candidate files."""
    if seen.binary is None or _facts(seen).newest is None:
        return None
    globs = {
        pattern: tuple(
            sorted(
                {p for p in found if after.get(p, b"") is not None}
                | {p for p, data in after.items() if data is not None and matches(pattern, p)}
            )
        )
        for pattern, found in {**seen.globs, **_new_globs(desired, after)}.items()
    }
    candidate = Observation(
        files={**seen.files, **after}, globs=globs, answers=seen.answers, binary=seen.binary
    )
    files, missing = _load(desired, candidate)
    if missing.files or missing.globs:
        raise NotUnderstood(desired.config, f"it would import {(missing.files + missing.globs)[0]}")
    return _dump("candidate", files, _facts(seen))


def _new_globs(desired: Desired, after: Mapping[str, bytes | None]) -> dict[str, tuple[str, ...]]:
    """Return the narrow glob that a candidate's root may name and nobody has looked at."""
    tree = tomldoc.tree(after.get(desired.config) or b"", desired.config)
    drop_in = desired.drop_in
    return {
        p: (drop_in,) if after.get(drop_in, b"") is not None else ()
        for p in _patterns(tree, desired.config, None)
        if drop_in and "*" in p and matches(p, drop_in)
    }


def verdict(desired: Desired, seen: Observation, answer: Answer) -> list[str]:
    """Compare the candidate's dump with today's: only our keys may differ, and all of them must be there."""
    if not answer.ok:
        return [f"{seen.binary} does not load the change: {_last_line(answer.err)}"]
    before = _facts(seen).effective or EMPTY
    after = _parsed(answer.out, "candidate")
    problems = _unasked(desired, before, after)
    section = _section_of(after)
    if section is not None:
        problems += _missing(desired, section)
    return problems


def removal_verdict(desired: Desired, seen: Observation, answer: Answer) -> list[str]:
    """Say whether the binary loads what a removal leaves, with a default handler that exists."""
    if not answer.ok:
        return [f"{seen.binary} does not load what the removal leaves: {_last_line(answer.err)}"]
    section = _section_of(_parsed(answer.out, "candidate"))
    if section is None:
        return []
    default = value(section, ("containerd", "default_runtime_name"))
    handlers = value(section, ("containerd", "runtimes"))
    if isinstance(default, str) and isinstance(handlers, Mapping) and default not in handlers:
        return [f"the default handler {default} would not exist"]
    return []


def _unasked(desired: Desired, before: Tree, after: Tree) -> list[str]:
    allowed: list[Key] = [("imports",)]
    for cri in set(_CRI.values()):
        containerd: Key = ("plugins", cri, "containerd")
        allowed += [(*containerd, "runtimes", handler) for handler in desired.names]
        allowed.append((*containerd, "default_runtime_name"))
        if desired.enable_cdi:
            allowed.append(("plugins", cri, "enable_cdi"))
        if desired.legacy:
            allowed.append((*containerd, "default_runtime"))
    return [
        f"{edits.spell(key)} would change from {_word(old)} to {_word(new)}"
        for key, old, new in edits.differences(_solid(before), _solid(after))
        if not any(key[: len(prefix)] == prefix for prefix in allowed)
    ]


def _missing(desired: Desired, section: Tree) -> list[str]:
    problems = []
    for handler in desired.handlers:
        table = value(section, ("containerd", "runtimes", handler.name))
        if not isinstance(table, Mapping):
            problems.append(f"the handler {handler.name} would not be in effect")
            continue
        options = table.get("options") or EMPTY
        binaries = {k: v for k, v in options.items() if k.lower() == _BINARY.lower()}
        if binaries != {_BINARY: handler.binary}:
            problems.append(f"the handler {handler.name} would run {binaries}, not {handler.binary}")
        if not table.get("runtime_type"):
            problems.append(f"the handler {handler.name} would have no runtime_type")
    default = value(section, ("containerd", "default_runtime_name"))
    if desired.default and not desired.legacy and default != desired.default:
        problems.append(f"the default handler would be {_word(default)}, not {desired.default}")
    return problems


def task_files(desired: Desired, seen: Observation) -> tuple[str, ...]:
    """Return where the runc shims note which binary their containers run through."""
    state = (_facts(seen).effective or EMPTY).get("state", "/run/containerd")
    return (f"{state}/io.containerd.runtime.v2.task/*/*/runtime",)


# --- small words --------------------------------------------------------------------------------


def _edits(seen: Observation, path: str) -> tuple[Edit, ...]:
    owned = seen.ownership(path)
    return owned.edits if owned else ()


def _cri_id(file: _File, facts: _Facts) -> str:
    """Return the id of the CRI section that counts in a file.

    A version 2 file may carry the id of version 3 as well (AKS does): then
    containerd 2.x keeps only the latter and 1.x only the former.
    """
    new = _CRI[3]
    if file.version == 2 and (facts.newest or 2) >= 3 and new in value_or_empty(file, ("plugins",)):
        return new
    return file.cri


def _drop_in_cri(root: _File | None, version: int, facts: _Facts) -> str:
    if root is not None and not root.is_empty:
        return _cri_id(root, facts)
    return _CRI[version]


def _has_section(file: _File, facts: _Facts) -> bool:
    return isinstance(value(file.tree, ("plugins", _cri_id(file, facts))), Mapping)


def value_or_empty(file: _File | None, key: Key) -> Tree:
    """Return the table at a key of a file, or an empty one."""
    found = value(file.tree, key) if file is not None else ABSENT
    return found if isinstance(found, Mapping) else EMPTY


def _section_of(dump: Tree) -> Tree | None:
    plugins = dump.get("plugins", EMPTY)
    for cri in (_CRI[3], _CRI[2], _CRI[1]):
        section = plugins.get(cri)
        if isinstance(section, Mapping) and "containerd" in section:
            return section
    return None


def _table(holder: Tree, key: str, path: str) -> Tree:
    found = holder.get(key, EMPTY)
    if not isinstance(found, Mapping):
        raise NotUnderstood(path, f"its `{key}` is not a table")
    return found


def _deep(one: Tree, other: Tree) -> dict[str, Any]:
    result = dict(one)
    for key, item in other.items():
        below = result.get(key)
        both = isinstance(item, Mapping) and isinstance(below, Mapping)
        result[key] = _deep(below, item) if both else item
    return result


def _solid(tree: Tree) -> dict[str, Any]:
    """Return a tree without what is zero: containerd does not tell it from what is absent."""
    result = {}
    for key, item in tree.items():
        solid = _solid(item) if isinstance(item, Mapping) else item
        if solid not in _ZERO:
            result[key] = solid
    return result


def _import_glob(drop_in: str) -> str:
    path = PurePosixPath(drop_in)
    return str(path.parent / f"*{path.suffix}")


def matches(pattern: str, path: str) -> bool:
    """Tell whether an import pattern names a path, as Go's `filepath.Match` does."""
    if "*" not in pattern:
        return pattern == path
    text = "".join("[^/]*" if c == "*" else "[^/]" if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch(text, path) is not None


def _word(item: Any) -> str:
    return "nothing" if item is ABSENT else repr(item)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("containerd: ") if lines else "it said nothing"
