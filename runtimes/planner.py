"""Wants and an observation make a plan; ownership and an observation make a removal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final

from runtimes import edits
from runtimes.adapter import Adapter
from runtimes.errors import NotUnderstood
from runtimes.model import (
    ABSENT,
    Answer,
    Desired,
    Edit,
    Effective,
    FileChange,
    Handler,
    Key,
    Observation,
    Ownership,
    Plan,
    Question,
    Tree,
    fingerprint,
)

_MOST_LISTED: Final = 6
_PROGRAM: Final = "nvidia-container-runtime"
_DEFAULTS: Final = frozenset({"default_runtime_name", "default_runtime", "default-runtime"})


def plan(adapter: Adapter, desired: Desired, seen: Observation) -> Plan:
    """Return what would have to change for the wish to come true.

    Where a document already says what is wanted, its bytes stay as they are.
    Raises NotUnderstood.
    """
    found = adapter.wants(desired, seen)
    changes = []
    for path in found.files:
        wanted = [want for want in found.wants if want.path == path]
        if path in found.fresh:
            change = _fresh(adapter, path, seen, wanted)
        else:
            change = edits.apply(adapter.form, path, seen.data(path), wanted)
        if change is not None:
            changes.append(change)
    changes += [
        FileChange(path=path, before=seen.data(path), after=data)
        for path, data in found.whole.items()
        if seen.data(path) != data
    ]
    return Plan(
        changes=_with_stones(adapter, changes),
        notes=found.notes,
        low_level=found.low_level,
        made=found.made,
        unmade=found.unmade,
    )


def trial(adapter: Adapter, desired: Desired, seen: Observation, found: Plan) -> Question | None:
    """Return the question that loads a plan's candidate in the node's own binary."""
    return adapter.trial(desired, seen, {change.path: change.after for change in found.changes})


def judge(adapter: Adapter, desired: Desired, seen: Observation, answer: Answer) -> None:
    """Refuse a candidate whose effect is not exactly what was asked. Raises NotUnderstood."""
    problems = adapter.verdict(desired, seen, answer)
    if problems:
        raise _refusal(desired, problems)


def judge_removal(adapter: Adapter, desired: Desired, seen: Observation, answer: Answer) -> None:
    """Refuse a removal that would leave a configuration which does not load. Raises NotUnderstood."""
    problems = adapter.removal_verdict(desired, seen, answer)
    if problems:
        raise _refusal(desired, problems)


def removal(adapter: Adapter, seen: Observation) -> Plan:
    """Return what gives every file back as it was before us.

    A file that still has the bytes that we wrote gets its original bytes; from
    one that somebody edited since only our keys are taken.
    """
    changes: list[FileChange] = []
    stayed: list[str] = []
    for owned in reversed(seen.owned):
        data = seen.data(owned.path)
        after, names = without_us(adapter, owned, data)
        stayed += [f"{owned.path}: {name}" for name in names]
        if after != data:
            changes.append(FileChange(path=owned.path, before=data, after=after))
    return Plan(changes=_with_stones(adapter, changes), stayed=tuple(stayed))


def without_us(
    adapter: Adapter, owned: Ownership, data: bytes | None
) -> tuple[bytes | None, tuple[str, ...]]:
    """Return what a file would hold without us (None: it would not be there), and what stayed of others."""
    return edits.without(adapter.form, owned, data)


def former(seen: Observation) -> frozenset[str]:
    """Return the names of handlers that are or were ours by the record."""
    keys = [edit.key for owned in seen.owned for edit in owned.edits]
    return frozenset(key[-1] for key in keys if key[-2:-1] == ("runtimes",)) - {"runc"}


def recorded(desired: Desired, known: Iterable[Sequence[Edit]]) -> Desired:
    """Return the wish with the handlers that edits of files really set up, whatever they are called now."""
    found = {
        edit.key[-1]: str(binary)
        for file in known
        for edit in file
        if edit.key[-2:-1] == ("runtimes",) and isinstance(edit.new, Mapping)
        for _, binary in edits.leaves(edit.new)
        if PurePosixPath(str(binary)).name.startswith(_PROGRAM)
    }
    handlers = tuple(Handler(name=name, binary=binary) for name, binary in found.items())
    return replace(desired, handlers=handlers or desired.handlers)


def unowned(adapter: Adapter, desired: Desired, seen: Observation, toolkit: str) -> tuple[Ownership, ...]:
    """Return the files that run the programs of a toolkit without being ours, with what is ours in them.

    What was under it nobody knows: without us there are no such handlers, and no
    default that names one. What else we once wrote nobody knows either, so these
    files count as edited since. Raises NotUnderstood.
    """
    found = []
    for path, data in seen.files.items():
        if data is None or seen.ownership(path) is not None or path in desired.generated:
            continue
        if f"{toolkit}/".encode() not in data:
            continue
        if path == desired.hook:
            found.append(Ownership(path=path, original=None, written=(fingerprint(data),), edits=()))
        elif ours := tuple(_unowned(adapter, path, data, toolkit)):
            rest, _ = edits.reverse(adapter.form, path, data, ours)
            is_all = _is_by_us(adapter, data) and not edits.solid(adapter.form.tree(rest, path))
            original = None if is_all else rest
            found.append(Ownership(path=path, original=original, written=(), edits=ours))
    return tuple(found)


def defaults(seen: Observation) -> frozenset[str]:
    """Return the names that we made the default one by the record: of handlers of ours or of others."""
    found = [edit for owned in seen.owned for edit in owned.edits if edit.key[-1] in _DEFAULTS]
    return frozenset(edit.new for edit in found if isinstance(edit.new, str))


def enabled_cri(seen: Observation) -> bool:
    """Tell whether we enabled CRI by the record, so that it goes off where everything is taken back."""
    return any(edit.key == ("disabled_plugins",) for owned in seen.owned for edit in owned.edits)


def unwell(
    ours: frozenset[str],
    default: str | None,
    before: Sequence[Effective],
    now: Effective,
    *,
    raised: frozenset[str] = frozenset(),
) -> list[str]:
    """Return where a daemon, asked after a change, does not have what it had, in words.

    `before` is what it had and what its files said then: somebody else may have
    edited them, and a restart of ours takes that up too. `ours` are the names
    of handlers that may come and go, and `default` the one asked for; None: it
    stays, unless it was ours or is among those that we `raised` to it.
    """
    problems = []
    known = [had.handlers for had in before if had.handlers is not None]
    if known and now.handlers is not None:
        gone = frozenset.intersection(*known) - ours - now.handlers
        problems += [f"the handler {handler}, which was there before, is gone" for handler in sorted(gone)]
    defaults = {had.default for had in before if had.default is not None}
    if default is not None and now.default not in (default, None):
        problems.append(f"the default handler is {now.default}, not {default}")
    stays = default is None and defaults and not defaults & (ours | raised)
    if stays and now.default is not None and now.default not in defaults:
        problems.append(f"the default handler is {now.default}, and was {', '.join(sorted(defaults))}")
    images = {had.sandbox_image for had in before if had.sandbox_image is not None}
    if images and now.sandbox_image is not None and now.sandbox_image not in images:
        problems.append(f"the sandbox image is {now.sandbox_image}, and was {', '.join(sorted(images))}")
    return problems


def _unowned(adapter: Adapter, path: str, data: bytes, toolkit: str) -> Iterator[Edit]:
    tree = adapter.form.tree(data, path)
    names = set()
    for key, table in _handlers(tree, toolkit):
        names.add(key[-1])
        yield Edit(key=key, old=ABSENT, new=table, essential=adapter.essential)
    for key, item in edits.leaves(tree) if names else ():
        if key[-1] in _DEFAULTS and isinstance(item, str) and item in names:
            yield Edit(key=key, old=ABSENT, new=item)
        elif _is_by_us(adapter, data) and key == ("version",):
            yield Edit(key=key, old=ABSENT, new=item, essential=key)
        elif _is_by_us(adapter, data) and key[-1] == "enable_cdi":
            yield Edit(key=key, old=ABSENT, new=item)


def _is_by_us(adapter: Adapter, data: bytes) -> bool:
    """Tell whether a file was made by us, whoever has written into it since."""
    return bool(adapter.banner) and data.startswith(adapter.banner.encode())


def _handlers(tree: Tree, toolkit: str, at: Key = ()) -> Iterator[tuple[Key, Tree]]:
    """Yield the tables of handlers, or of a default one, that run the programs of a toolkit."""
    for name, item in tree.items():
        key = (*at, name)
        if not isinstance(item, Mapping):
            continue
        programs = [PurePosixPath(leaf) for _, leaf in edits.leaves(item) if isinstance(leaf, str)]
        is_handler = at[-1:] == ("runtimes",) or name in _DEFAULTS
        if is_handler and any(str(p.parent) == toolkit and p.name.startswith(_PROGRAM) for p in programs):
            yield key, item
        elif not is_handler:
            yield from _handlers(item, toolkit, key)


def _with_stones(adapter: Adapter, changes: Sequence[FileChange]) -> tuple[FileChange, ...]:
    return tuple(replace(c, stone=adapter.stone(c.path, c.before, c.after)) for c in changes)


def _fresh(adapter: Adapter, path: str, seen: Observation, wanted: Sequence[edits.Want]) -> FileChange | None:
    """Write a file of ours from nothing; one that somebody edited since is edited like any other."""
    data, owned = seen.data(path), seen.ownership(path)
    if data is not None and (owned is None or fingerprint(data) not in owned.written):
        return edits.apply(adapter.form, path, data, wanted)
    made = edits.apply(adapter.form, path, adapter.banner.encode(), wanted)
    if made is None or made.after == data:
        return None
    return FileChange(path=path, before=data, after=made.after, edits=made.edits)


def _refusal(desired: Desired, problems: Sequence[str]) -> NotUnderstood:
    listed = "; ".join(problems[:_MOST_LISTED])
    more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
    return NotUnderstood(
        desired.config,
        f"the change is refused: {listed}{more}",
        hint="nothing was written; a file that is read later may have the last word, else please report this",
    )
