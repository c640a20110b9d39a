"""The dialect of Docker: `daemon.json`, what dockerd refuses, and what its API says.

dockerd takes `runtimes` and `default-runtime` up on SIGHUP without a restart,
but refuses to *start* when an option stands both in the file and on its command
line. So a reload may work and the next reboot fail: the command line of the
running daemon is part of what is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from runtimes import edits, jsondoc
from runtimes.adapter import HangUp, Wants
from runtimes.edits import Want, value
from runtimes.errors import NotUnderstood, Unfit
from runtimes.model import (
    ABSENT,
    EMPTY,
    Answer,
    Desired,
    Effective,
    Look,
    Observation,
    Question,
    Request,
    RuntimeName,
    Tree,
    Usage,
    token,
)

__all__ = [
    "banner",
    "config_flags",
    "confirmation",
    "defined",
    "directory_flags",
    "effective",
    "essential",
    "executables",
    "form",
    "handler_in",
    "look",
    "name",
    "on_hangup",
    "programs",
    "questions",
    "removal_verdict",
    "running",
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

form: Final = jsondoc
name: Final = RuntimeName.DOCKER
executables: Final = frozenset({"dockerd"})
banner: Final = ""
on_hangup: Final[HangUp] = HangUp.RELOADS
speaks_first: Final[bool] = False
speaks_cri: Final[bool] = False
confirmation: Final[Request | None] = Request(path="/info")
essential: Final[tuple[str, ...]] = ()
config_flags: Final[tuple[str, ...]] = ("--config-file",)
directory_flags: Final[tuple[str, ...]] = ()

_RUNTIMES: Final = "runtimes"
_DEFAULT: Final = "default-runtime"
_BUILT_IN: Final = "runc"
# What a dockerd lists among its runtimes whatever its file says; 20.10 forgets one of them on SIGHUP.
_ALIAS: Final = "io.containerd."
_LIST: Final = "/containers/json"
# Flags that dockerd refuses beside the same option in the file.
_CLASHING: Final = {"--add-runtime": _RUNTIMES, "--default-runtime": _DEFAULT}


def look(desired: Desired, seen: Observation) -> Look:
    """There is one file."""
    return Look(files=() if desired.config in seen.files else (desired.config,))


def questions(desired: Desired, seen: Observation) -> tuple[Question, ...]:
    """Ask nothing: dockerd takes half a second to say a word, and the plan does not depend on it."""
    return ()


def wants(desired: Desired, seen: Observation) -> Wants:
    """Return our runtimes, the default, and the CDI feature where it is asked for."""
    tree = jsondoc.tree(seen.data(desired.config) or b"", desired.config)
    _refuse_wrong_types(desired, tree)
    _refuse_flags(seen.argv)
    path = desired.config
    wanted = list(_obsolete(desired, seen, tree))
    wanted += [
        Want(path=path, key=(_RUNTIMES, h.name), new={"path": h.binary, "args": []}, exact=True)
        for h in desired.handlers
    ]
    if desired.default:
        wanted.append(Want(path=path, key=(_DEFAULT,), new=desired.default))
    if desired.enable_cdi:
        wanted.append(Want(path=path, key=("features", "cdi"), new=True))
    return Wants(wants=tuple(wanted), files=(path,), low_level=_low_level(desired, seen, tree))


def trial(desired: Desired, seen: Observation, after: Mapping[str, bytes | None]) -> Question | None:
    """Return the question that has dockerd validate the candidate, with the flags that it runs with."""
    data = after.get(desired.config)
    if seen.binary is None or data is None:
        return None
    argv = (*_own_flags(seen.argv), "--validate", "--config-file", token(0))
    return Question(name="candidate", argv=argv, files=(data,), names=(desired.config,))


def verdict(desired: Desired, seen: Observation, answer: Answer) -> list[str]:
    """Say whether dockerd would start with the candidate; that only our keys differ is proved on the text.

    A dockerd before 23.0 cannot validate, and says so.
    """
    if answer.ok or "unknown flag: --validate" in answer.err:
        return []
    return [f"{seen.binary} refuses the change: {_last_line(answer.err)}"]


def removal_verdict(desired: Desired, seen: Observation, answer: Answer) -> list[str]:
    """Say whether dockerd would start with what a removal leaves."""
    return verdict(desired, seen, answer)


def unconfirmed(desired: Desired, files: Mapping[str, bytes | None], body: str) -> list[str]:
    """Return where the running daemon differs from the file in what is ours; empty when it took it up."""
    try:
        now = running(None, body)
    except ValueError as error:
        return [str(error)]
    known, default = now.handlers or frozenset(), now.default
    tree = jsondoc.tree(files.get(desired.config) or b"", desired.config)
    wanted = defined(desired, files)
    problems = [f"dockerd does not know the handler {handler}" for handler in sorted(wanted - known)]
    problems += [
        f"dockerd still knows the handler {handler}" for handler in sorted((desired.names & known) - wanted)
    ]
    said = tree.get(_DEFAULT) or _BUILT_IN
    if default != said:
        problems.append(f"dockerd's default handler is {default}, not {said}")
    return problems


def effective(desired: Desired, seen: Observation) -> Effective:
    """Return what the file says; the built-in handlers are no part of it."""
    tree = jsondoc.tree(seen.data(desired.config) or b"", desired.config)
    _refuse_wrong_types(desired, tree)
    handlers = frozenset(tree.get(_RUNTIMES, EMPTY)) | {_BUILT_IN}
    return Effective(handlers=_named(handlers), default=tree.get(_DEFAULT) or _BUILT_IN)


def programs(desired: Desired, seen: Observation) -> dict[str, tuple[str, ...]]:
    """Return the programs that the file's runtimes name; those of a containerd shim name none."""
    tree = jsondoc.tree(seen.data(desired.config) or b"", desired.config)
    _refuse_wrong_types(desired, tree)
    named = {handler: entry.get("path") for handler, entry in tree.get(_RUNTIMES, EMPTY).items()}
    return {handler: (path,) for handler, path in named.items() if isinstance(path, str) and path}


def _named(handlers: Iterable[str]) -> frozenset[str]:
    return frozenset(handler for handler in handlers if not handler.startswith(_ALIAS))


def running(config: Tree | None, body: str) -> Effective:
    """Return what the daemon's `/info` says. Raises ValueError."""
    try:
        info = json.loads(body)
        return Effective(
            handlers=_named(info["Runtimes"]),
            default=str(info["DefaultRuntime"]),
            by_systemd=frozenset(info["Runtimes"] if info.get("CgroupDriver") == "systemd" else ()),
            version=str(info.get("ServerVersion", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"dockerd's answer cannot be read ({error!r})") from error


def defined(desired: Desired, files: Mapping[str, bytes | None]) -> frozenset[str]:
    """Return which of our handlers some files define."""
    tree = jsondoc.tree(files.get(desired.config) or b"", desired.config)
    return desired.names & frozenset(tree.get(_RUNTIMES, EMPTY))


def stone(path: str, before: bytes | None, after: bytes | None) -> bytes | None:
    """Return a file that names what the next one leaves out.

    On SIGHUP dockerd takes up keys that are there and keeps what it has for
    those that are not (20.10, 26.1 and 28.5 do so): without `runtimes` and
    `default-runtime` it would go on with ours until it is started again.
    """
    old, new = jsondoc.tree(before or b"", path), jsondoc.tree(after or b"", path)
    neutral = {_RUNTIMES: {}, _DEFAULT: _BUILT_IN}
    wanted = [
        Want(path=path, key=(key,), new=item)
        for key, item in neutral.items()
        if key in old and key not in new
    ]
    change = edits.apply(jsondoc, path, after or b"", wanted)
    return change.after if change else None


def usage(desired: Desired, answers: Mapping[str, str]) -> Usage:
    """Ask for the running containers, then for the runtime of each. Raises ValueError."""
    if _LIST not in answers:
        return Usage(requests=(Request(path=_LIST),))
    try:
        return _usage(desired, answers)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"dockerd's answer cannot be read ({error!r})") from error


def _usage(desired: Desired, answers: Mapping[str, str]) -> Usage:
    details = {
        f"/containers/{item['Id']}/json": str((item.get("Names") or [""])[0]).lstrip("/") or item["Id"][:12]
        for item in json.loads(answers[_LIST])
    }
    using = [
        name
        for path, name in details.items()
        if path in answers and _runtime_of(answers[path]) in desired.names
    ]
    missing = tuple(Request(path=path) for path in details if path not in answers)
    return Usage(requests=missing, using=tuple(using))


def _runtime_of(answer: str) -> Any:
    container = json.loads(answer)
    return container["HostConfig"]["Runtime"] if container else None  # null: it has ended meanwhile


def task_files(desired: Desired, seen: Observation) -> tuple[str, ...]:
    """Return nothing: the daemon itself says what runs."""
    return ()


def handler_in(info: Mapping[str, Any]) -> str:
    """Return nothing: Docker has no pods."""
    return ""


# --- small words --------------------------------------------------------------------------------


def _refuse_wrong_types(desired: Desired, tree: Tree) -> None:
    for key in (_RUNTIMES, "features"):
        if key in tree and not isinstance(tree[key], Mapping):
            raise NotUnderstood(
                desired.config,
                f"its `{key}` is not an object but {json.dumps(tree[key])}",
                hint="dockerd would refuse it too; repair or remove that key",
            )
    if not isinstance(tree.get(_DEFAULT, ""), str):
        raise NotUnderstood(
            desired.config,
            f"its `{_DEFAULT}` is not a string but {json.dumps(tree[_DEFAULT])}",
            hint="dockerd would refuse it too; repair or remove that key",
        )
    for handler, entry in tree.get(_RUNTIMES, EMPTY).items():
        if not isinstance(entry, Mapping):
            raise NotUnderstood(
                desired.config,
                f"its runtime {handler} is not an object but {json.dumps(entry)}",
                hint="dockerd would refuse it too; repair or remove that entry",
            )


def _refuse_flags(argv: Sequence[str]) -> None:
    for word in argv[1:]:
        flag = word.split("=", 1)[0]
        if flag in _CLASHING:
            raise Unfit(
                f"dockerd was started with {flag}, and would not start again with `{_CLASHING[flag]}`"
                " in its configuration file too",
                hint=f"take {flag} out of the unit's command line and put it into the file",
            )


def _obsolete(desired: Desired, seen: Observation, tree: Tree) -> Iterator[Want]:
    owned = seen.ownership(desired.config)
    for edit in owned.edits if owned else ():
        is_former = edit.key[:1] == (_RUNTIMES,) and edit.key[-1] not in desired.names
        is_default = edit.key == (_DEFAULT,) and not desired.default
        if is_former or is_default:
            yield from edits.given_back(desired.config, tree, edit)


def _remembered_default(desired: Desired, seen: Observation) -> Any:
    owned = seen.ownership(desired.config)
    old = [edit.old for edit in owned.edits if edit.key == (_DEFAULT,)] if owned else []
    return old[0] if old else ABSENT


def _low_level(desired: Desired, seen: Observation, tree: Tree) -> tuple[str, ...]:
    """Return the binaries of the runtimes of others, the default's first."""
    entries = tree.get(_RUNTIMES, EMPTY)
    remembered = _remembered_default(desired, seen)
    default = tree.get(_DEFAULT, "runc")
    first = remembered if default in desired.names else default
    found = []
    for entry in dict.fromkeys((str(first) if first is not ABSENT else "runc", *entries)):
        if entry in desired.names or entry.startswith("nvidia"):
            continue
        binary = value(entries, (entry, "path"))
        if binary is ABSENT and entry == "runc":
            binary = "runc"
        if isinstance(binary, str) and _is_path(binary) and not _is_nvidia(binary):
            found.append(binary)
    return tuple(dict.fromkeys(found or ["runc"]))


def _is_path(binary: str) -> bool:
    """Tell whether something could be run at all: JSON may hold what no path can be."""
    return bool(binary) and "\0" not in binary and not any("\ud800" <= sign <= "\udfff" for sign in binary)


def _is_nvidia(binary: str) -> bool:
    return PurePosixPath(binary).name.startswith("nvidia-container-runtime")


def _own_flags(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the daemon's own flags but for the file: with them dockerd finds what stands in both."""
    flags = []
    words = iter(argv[1:])
    for word in words:
        if word == "--config-file":
            next(words, None)
        elif not word.startswith("--config-file="):
            flags.append(word)
    return tuple(flags)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
