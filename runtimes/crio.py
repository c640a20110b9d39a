"""The dialect of CRI-O: `crio.conf`, the drop-ins that are all read, and the OCI hook of old.

CRI-O reads *every* file of its drop-in directory, in byte order, and merges
handlers by name: a later table replaces the whole handler. A SIGHUP makes
`/config` show new handlers, but pods are still made with those of the daemon's
start (1.24 to 1.36, cri-o/cri-o#10202), so only a restart takes them up.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from runtimes import edits, tomldoc
from runtimes.adapter import HangUp, Wants
from runtimes.edits import Want, value
from runtimes.errors import NotUnderstood
from runtimes.model import (
    ABSENT,
    EMPTY,
    Answer,
    Desired,
    Edit,
    Look,
    Observation,
    Question,
    Request,
    RuntimeName,
    Tree,
    Usage,
    directory_token,
    token,
)

__all__ = [
    "banner",
    "config_flags",
    "confirmation",
    "executables",
    "form",
    "look",
    "name",
    "on_hangup",
    "questions",
    "removal_verdict",
    "speaks_cri",
    "speaks_first",
    "stone",
    "task_files",
    "trial",
    "unconfirmed",
    "usage",
    "verdict",
    "wants",
]

form: Final = tomldoc
name: Final = RuntimeName.CRIO
executables: Final = frozenset({"crio"})
config_flags: Final[tuple[str, ...]] = ("--config", "-c")
on_hangup: Final[HangUp] = HangUp.FORGETS
speaks_first: Final[bool] = False
speaks_cri: Final[bool] = True
confirmation: Final[Request | None] = Request(path="/config")
banner: Final = (
    "# Written by nvidia-toolkit. It holds only the keys of nvidia-toolkit, which takes it back\n"
    "# with `nvidia-toolkit revert`.\n"
)

_RUNTIME: Final = ("crio", "runtime")
_RUNTIMES: Final = (*_RUNTIME, "runtimes")
_DEFAULT: Final = (*_RUNTIME, "default_runtime")
_HOOKS: Final = frozenset({"nvidia-container-runtime-hook", "nvidia-container-toolkit"})
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def look(desired: Desired, seen: Observation) -> Look:
    """Look at crio.conf, at every file of the drop-in directory, and at the hook."""
    tree = _drop_ins(desired)
    if tree and tree not in seen.globs:
        return Look(globs=(tree,))
    wanted = [desired.config, *seen.globs.get(tree, ())]
    wanted += [path for path in (desired.drop_in, desired.hook) if path]
    return Look(files=tuple(path for path in dict.fromkeys(wanted) if path not in seen.files))


def questions(desired: Desired, seen: Observation) -> tuple[Question, ...]:
    """Ask for the built-in defaults, which `crio config` prints as comments, and for what is in effect."""
    wanted = []
    if "default" not in seen.answers:
        wanted.append(Question(name="default", argv=("config", "--default")))
    if "effective" not in seen.answers:
        wanted.append(_config("effective", desired, seen.files))
    return tuple(wanted)


def wants(desired: Desired, seen: Observation) -> Wants:
    """Return our handlers and default in the drop-in, or in crio.conf where there is none; or the hook."""
    answer = seen.answers.get("effective")
    if answer is not None and not answer.ok:
        raise NotUnderstood(
            desired.config,
            f"{seen.binary} itself does not load its configuration: {_last_line(answer.err)}",
            hint="CRI-O would not start with it; repair it first",
        )
    path = desired.drop_in or desired.config
    view = _handlers(desired, seen, without=desired.drop_in)
    source = _source(desired, seen, view)
    base = view.get(source, EMPTY) if source else EMPTY
    owned = seen.ownership(path)
    fresh = bool(desired.drop_in) and (
        seen.data(path) is None or (owned is not None and owned.original is None)
    )
    wanted: list[Want] = []
    if not desired.hook_mode:
        wanted += _handler_wants(desired, path, base, owned.edits if owned else ())
        wanted += _default_wants(desired, seen, path)
    notes = [] if seen.binary else ["no crio binary is known here: only the files themselves were checked"]
    whole = _hook(desired, seen)
    if desired.hook_mode and owned is not None:
        # Both at once would run the hook twice: the drop-in goes.
        whole = {**whole, path: owned.original}
    if whole.get(desired.hook, b"") is None and desired.hook:
        notes.append(f"{desired.hook} would run the hook a second time: it goes")
    return Wants(
        wants=tuple(wanted),
        files=() if desired.hook_mode else (path,),
        notes=tuple(notes),
        low_level=_low_level(desired, view, source),
        fresh=frozenset({path} if fresh else ()),
        whole=whole,
    )


def trial(desired: Desired, seen: Observation, after: Mapping[str, bytes | None]) -> Question | None:
    """Return the question that has CRI-O's binary merge the candidate files."""
    if seen.binary is None or not _answered(seen, "default"):
        return None
    return _config("candidate", desired, {**seen.files, **after})


def verdict(desired: Desired, seen: Observation, answer: Answer) -> list[str]:
    """Compare the candidate's configuration with today's: only our keys may differ."""
    if not answer.ok:
        return [f"{seen.binary} does not load the change: {_last_line(answer.err)}"]
    before = _complete(seen, seen.answers["effective"].out)
    after = _complete(seen, answer.out)
    formerly = {e.key[-1] for o in seen.owned for e in o.edits if e.key[:-1] == _RUNTIMES}
    ours = [(*_RUNTIMES, handler) for handler in desired.names | formerly]
    problems = [
        f"{edits.spell(key)} would change from {old!r} to {new!r}"
        for key, old, new in edits.differences(before, after)
        if key != _DEFAULT and not any(key[: len(prefix)] == prefix for prefix in ours)
    ]
    return problems if desired.hook_mode else problems + _missing(desired, after)


def removal_verdict(desired: Desired, seen: Observation, answer: Answer) -> list[str]:
    """Say whether CRI-O loads what a removal leaves."""
    if answer.ok:
        return []
    return [f"{seen.binary} does not load what the removal leaves: {_last_line(answer.err)}"]


def unconfirmed(desired: Desired, files: Mapping[str, bytes | None], body: str) -> list[str]:
    """Return where the running daemon differs from the files in what is ours."""
    try:
        runtime = tomllib.loads(body)["crio"]["runtime"]
        known, default = set(runtime["runtimes"]), runtime["default_runtime"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"CRI-O's answer cannot be read ({error!r})"]
    seen = Observation(files=files, globs={_drop_ins(desired): _listed(desired, files)})
    wanted = desired.names & _handlers(desired, seen, without="").keys()
    problems = [f"CRI-O does not know the handler {handler}" for handler in sorted(wanted - known)]
    problems += [f"CRI-O still knows the handler {h}" for h in sorted((desired.names & known) - wanted)]
    said = _said_default(desired, seen, without="")
    if said and default != said:
        problems.append(f"CRI-O's default handler is {default}, not {said}")
    return problems


def stone(path: str, before: bytes | None, after: bytes | None) -> bytes | None:
    """Return None: a CRI-O that starts anew reads everything anew."""
    return None


def usage(desired: Desired, answers: Mapping[str, str]) -> Usage:
    """Return nothing: CRI tells."""
    return Usage()


def task_files(desired: Desired, seen: Observation) -> tuple[str, ...]:
    """Return nothing: CRI tells."""
    return ()


# --- the files ----------------------------------------------------------------------------------


def _drop_ins(desired: Desired) -> str:
    return f"{PurePosixPath(desired.drop_in).parent}/**" if desired.drop_in else ""


def _listed(desired: Desired, files: Mapping[str, bytes | None]) -> tuple[str, ...]:
    """Return the drop-ins among some files, in the order in which CRI-O reads them."""
    if not desired.drop_in:
        return ()
    directory = PurePosixPath(desired.drop_in).parent
    found = [
        p for p, data in files.items() if data is not None and PurePosixPath(p).is_relative_to(directory)
    ]
    return tuple(sorted(found, key=lambda p: PurePosixPath(p).parts))


def _in_order(desired: Desired, files: Mapping[str, bytes | None]) -> list[tuple[str, Tree]]:
    order = [desired.config, *_listed(desired, files)]
    return [
        (path, tomldoc.tree(data, path))
        for path in dict.fromkeys(order)
        if (data := files.get(path)) is not None
    ]


def _handlers(desired: Desired, seen: Observation, *, without: str) -> dict[str, Tree]:
    """Return the handlers that the files define, the last definition of each."""
    found: dict[str, Tree] = {}
    for path, tree in _in_order(desired, seen.files):
        if path == without:
            continue
        for handler, table in _table(tree, _RUNTIMES, path).items():
            if not isinstance(table, Mapping):
                raise NotUnderstood(path, f"its handler {handler} is not a table")
            found[handler] = table
    return found


def _said_default(desired: Desired, seen: Observation, *, without: str) -> str:
    said = ""
    for path, tree in _in_order(desired, seen.files):
        if path != without:
            said = str(_table(tree, _RUNTIME, path).get("default_runtime", said))
    return said


def _table(tree: Tree, key: tuple[str, ...], path: str) -> Tree:
    for length in range(1, len(key) + 1):
        found = value(tree, key[:length])
        if found is ABSENT:
            return EMPTY
        if not isinstance(found, Mapping):
            raise NotUnderstood(path, f"its `{'.'.join(key[:length])}` is not a table")
    table = value(tree, key)
    return table if isinstance(table, Mapping) else EMPTY


def _source(desired: Desired, seen: Observation, view: dict[str, Tree]) -> str | None:
    """Return the name of the handler that ours inherit from; the built-in ones are added to the view."""
    built_in = value(_complete(seen, ""), _RUNTIMES) if _answered(seen, "default") else EMPTY
    for handler, table in (built_in if isinstance(built_in, Mapping) else EMPTY).items():
        view.setdefault(handler, {k: v for k, v in table.items() if v not in ("", [], {}, False, 0)})
    said = _said_default(desired, seen, without=desired.drop_in)
    remembered = [e.old for o in seen.owned for e in o.edits if e.key == _DEFAULT]
    default = value(_complete(seen, ""), _DEFAULT) if _answered(seen, "default") else ""
    for candidate in (said, *remembered, default, "crun", "runc"):
        if not isinstance(candidate, str) or candidate not in view or _is_ours(desired, candidate):
            continue
        if view[candidate].get("runtime_type", "oci") in ("oci", ""):
            return candidate
    return None


def _is_ours(desired: Desired, handler: str) -> bool:
    return handler in desired.names or handler.startswith("nvidia")


def _low_level(desired: Desired, view: Mapping[str, Tree], source: str | None) -> tuple[str, ...]:
    found = []
    for handler in dict.fromkeys(([source] if source else []) + list(view)):
        table = view[handler]
        if _is_ours(desired, handler) or table.get("runtime_type", "oci") not in ("oci", ""):
            continue
        binary = str(table.get("runtime_path") or handler)
        if not PurePosixPath(binary).name.startswith("nvidia-container-runtime"):
            found.append(binary)
    return tuple(dict.fromkeys(found or ["runc"]))


# --- what is wanted -----------------------------------------------------------------------------


def _handler_wants(desired: Desired, path: str, base: Tree, owned: Sequence[Edit]) -> list[Want]:
    inherited = {
        k: v for k, v in base.items() if k not in ("runtime_path", "runtime_type", "inherit_default_runtime")
    }
    wanted = [
        Want(path=path, key=edit.key, new=edit.old, exact=True)
        for edit in owned
        if edit.key[:-1] == _RUNTIMES and edit.key[-1] not in desired.names
    ]
    for handler in desired.handlers:
        new = {"runtime_path": handler.binary, "runtime_type": "oci", **inherited}
        key = (*_RUNTIMES, handler.name)
        made = any(edit.key == key and edit.old is ABSENT for edit in owned)
        wanted.append(Want(path=path, key=key, new=new, exact=made, essential=("runtime_path",)))
    return wanted


def _default_wants(desired: Desired, seen: Observation, path: str) -> list[Want]:
    if desired.default:
        return [Want(path=path, key=_DEFAULT, new=desired.default)]
    data = seen.data(path)
    if data is None or value(tomldoc.tree(data, path), _DEFAULT) not in desired.names:
        return []
    owned = seen.ownership(path)
    old = [edit.old for edit in owned.edits if edit.key == _DEFAULT] if owned else []
    return [Want(path=path, key=_DEFAULT, new=old[0] if old else ABSENT)]


def _hook(desired: Desired, seen: Observation) -> dict[str, bytes | None]:
    """Return what the hook file shall hold: ours in hook mode; in config mode none of ours."""
    if not desired.hook:
        return {}
    data = seen.data(desired.hook)
    if desired.hook_mode:
        return {desired.hook: _hook_text(desired)}
    return {desired.hook: None} if data is not None and _is_our_hook(data) else {}


def _hook_text(desired: Desired) -> bytes:
    program = PurePosixPath(desired.hook_binary)
    content = {
        "version": "1.0.0",
        "hook": {
            "path": str(program),
            "args": [program.name, "prestart"],
            "env": [f"PATH={program.parent}:{_PATH}"],
        },
        "when": {"always": True, "commands": [".*"]},
        "stages": ["prestart"],
    }
    return json.dumps(content, indent=2).encode() + b"\n"


def _is_our_hook(data: bytes) -> bool:
    """Tell whether a hook file runs the toolkit's hook, whoever wrote it."""
    try:
        path = json.loads(data)["hook"]["path"]
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(path, str) and PurePosixPath(path).name in _HOOKS


# --- what the binary says -----------------------------------------------------------------------


def _config(question: str, desired: Desired, files: Mapping[str, bytes | None]) -> Question:
    """Stage crio.conf and the drop-in directory and have the binary merge them."""
    root = files.get(desired.config)
    listed = _listed(desired, files)
    directory = PurePosixPath(desired.drop_in).parent if desired.drop_in else PurePosixPath("/")
    staged = {str(PurePosixPath(p).relative_to(directory)): files.get(p) or b"" for p in listed}
    argv = ("--config", token(0), "--config-dir", directory_token(0) if desired.drop_in else "", "config")
    return Question(
        name=question,
        argv=argv,
        files=(root or b"",),
        names=(desired.config,),
        directories=(staged,) if desired.drop_in else (),
    )


def _answered(seen: Observation, question: str) -> bool:
    answer = seen.answers.get(question)
    return answer is not None and answer.ok


def _complete(seen: Observation, printed: str) -> dict[str, Any]:
    """Return what `crio config` printed with the built-in values that it prints as comments."""
    tree = tomllib.loads(printed)
    defaults = tomllib.loads(seen.answers["default"].out)
    handlers = value(tree, _RUNTIMES)
    result = _over(defaults, tree)
    if isinstance(handlers, Mapping) and handlers:
        result["crio"]["runtime"]["runtimes"] = dict(handlers)
    return result


def _over(below: Tree, above: Tree) -> dict[str, Any]:
    result = dict(below)
    for key, item in above.items():
        under = result.get(key)
        both = isinstance(item, Mapping) and isinstance(under, Mapping)
        result[key] = _over(under, item) if both and under is not None else item
    return result


def _missing(desired: Desired, after: Tree) -> list[str]:
    problems = []
    for handler in desired.handlers:
        path = value(after, (*_RUNTIMES, handler.name, "runtime_path"))
        if path != handler.binary:
            problems.append(f"the handler {handler.name} would run {path!r}, not {handler.binary}")
    default = value(after, _DEFAULT)
    if desired.default and default != desired.default:
        problems.append(f"the default handler would be {default!r}, not {desired.default}")
    return problems


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
