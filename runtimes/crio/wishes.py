"""Which keys are wanted in which file, and what ours inherit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from runtimes import tomldoc
from runtimes.adapter import Wants
from runtimes.crio.files import DEFAULT, ESSENTIAL, RUNTIME, RUNTIMES, handlers, is_ours, said_default
from runtimes.crio.hook import hook_file
from runtimes.crio.judge import answered, complete, last_line
from runtimes.edits import Want, given_back, value, without
from runtimes.errors import NotUnderstood, Unfit
from runtimes.model import ABSENT, EMPTY, Desired, Edit, Observation, Tree


def wants(desired: Desired, seen: Observation) -> Wants:
    """Return our handlers and default in the drop-in, or in crio.conf where there is none; or the hook."""
    view = handlers(desired, seen, without=desired.drop_in)
    answer = seen.answers.get("effective")
    if answer is not None and not answer.ok:
        raise NotUnderstood(
            desired.config,
            f"{seen.binary} itself does not load its configuration: {last_line(answer.err)}",
            hint="CRI-O would not start with it; repair it first",
        )
    _refuse_unread_hooks(desired, seen)
    path = desired.drop_in or desired.config
    model = _model(desired, seen, view)
    base = view.get(model, EMPTY) if model else EMPTY
    owned = seen.ownership(path)
    fresh = bool(desired.drop_in) and (
        seen.data(path) is None or (owned is not None and owned.original is None)
    )
    wanted: list[Want] = []
    if not desired.hook_mode:
        tree = tomldoc.tree(seen.data(path) or b"", path)
        wanted += _handler_wants(desired, path, base, owned.edits if owned else (), tree)
        wanted += _default_wants(desired, seen, path, tree)
    notes = [] if seen.binary else ["no crio binary is known here: only the files themselves were checked"]
    whole = hook_file(desired, seen)
    if desired.hook_mode and owned is not None:
        # Both at once would run the hook twice: the drop-in goes.
        whole = {**whole, path: without(tomldoc, owned, seen.data(path))[0]}
    if whole.get(desired.hook, b"") is None and desired.hook:
        notes.append(f"{desired.hook} would run the hook a second time: it goes")
    return Wants(
        wants=tuple(wanted),
        files=() if desired.hook_mode else (path,),
        notes=tuple(notes),
        low_level=_low_level(desired, view, model),
        fresh=frozenset({path} if fresh else ()),
        whole=whole,
    )


def _refuse_unread_hooks(desired: Desired, seen: Observation) -> None:
    """Refuse a hook where CRI-O would not read it: OpenShift has its hooks below /run. Raises Unfit."""
    if not desired.hook_mode or not answered(seen, "effective") or not answered(seen, "default"):
        return
    read = value(complete(seen, seen.answers["effective"].out), (*RUNTIME, "hooks_dir"))
    directory = str(PurePosixPath(desired.hook).parent)
    if isinstance(read, list) and read and directory not in read:
        raise Unfit(
            f"CRI-O reads no hooks in {directory}, only in {', '.join(map(str, read))}",
            hint=f"use --hooks-dir={read[-1]}",
        )


def _model(desired: Desired, seen: Observation, view: dict[str, Tree]) -> str | None:
    """Return the name of the handler that ours inherit from; the built-in ones are added to the view."""
    built_in = value(complete(seen, ""), RUNTIMES) if answered(seen, "default") else EMPTY
    for handler, table in (built_in if isinstance(built_in, Mapping) else EMPTY).items():
        view.setdefault(handler, {k: v for k, v in table.items() if v not in ("", [], {}, False, 0)})
    said = said_default(desired, seen, without=desired.drop_in)
    remembered = [e.old for o in seen.owned for e in o.edits if e.key == DEFAULT]
    default = value(complete(seen, ""), DEFAULT) if answered(seen, "default") else ""
    for candidate in (said, *remembered, default, "crun", "runc"):
        if not isinstance(candidate, str) or candidate not in view or is_ours(desired, candidate):
            continue
        if view[candidate].get("runtime_type", "oci") in ("oci", ""):
            return candidate
    return None


def _low_level(desired: Desired, view: Mapping[str, Tree], model: str | None) -> tuple[str, ...]:
    found = []
    for handler in dict.fromkeys(([model] if model else []) + list(view)):
        table = view[handler]
        if is_ours(desired, handler) or table.get("runtime_type", "oci") not in ("oci", ""):
            continue
        binary = str(table.get("runtime_path") or handler)
        # A wrapper cannot run what no path can be.
        if (
            binary
            and "\0" not in binary
            and not PurePosixPath(binary).name.startswith("nvidia-container-runtime")
        ):
            found.append(binary)
    return tuple(dict.fromkeys(found or ["runc"]))


def _handler_wants(desired: Desired, path: str, base: Tree, owned: Sequence[Edit], tree: Tree) -> list[Want]:
    inherited = {
        k: v for k, v in base.items() if k not in ("runtime_path", "runtime_type", "inherit_default_runtime")
    }
    wanted = [
        want
        for edit in owned
        if edit.key[:-1] == RUNTIMES and edit.key[-1] not in desired.names
        for want in given_back(path, tree, edit)
    ]
    for handler in desired.handlers:
        new = {"runtime_path": handler.binary, "runtime_type": "oci", **inherited}
        key = (*RUNTIMES, handler.name)
        made = any(edit.key == key and edit.old is ABSENT for edit in owned)
        wanted.append(Want(path=path, key=key, new=new, exact=made, essential=ESSENTIAL))
    return wanted


def _default_wants(desired: Desired, seen: Observation, path: str, tree: Tree) -> Iterator[Want]:
    if desired.default:
        yield Want(path=path, key=DEFAULT, new=desired.default)
        return
    owned = seen.ownership(path)
    for edit in owned.edits if owned else ():
        if edit.key == DEFAULT:
            yield from given_back(path, tree, edit)
