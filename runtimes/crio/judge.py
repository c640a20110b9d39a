"""What CRI-O's own binary makes of its files, today and with a candidate."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from runtimes import edits, tomldoc
from runtimes.crio.files import DEFAULT, RUNTIME, RUNTIMES, drop_ins, handlers, listed, said_default, table
from runtimes.edits import value
from runtimes.errors import NotUnderstood
from runtimes.model import (
    ABSENT,
    EMPTY,
    Answer,
    Desired,
    Effective,
    Observation,
    Question,
    Tree,
    directory_token,
    token,
)


def questions(desired: Desired, seen: Observation) -> tuple[Question, ...]:
    """Ask for the built-in defaults, which `crio config` prints as comments, and for what is in effect."""
    wanted = []
    if "default" not in seen.answers:
        wanted.append(Question(name="default", argv=("config", "--default")))
    if "effective" not in seen.answers:
        wanted.append(merged("effective", desired, seen.files))
    return tuple(wanted)


def trial(desired: Desired, seen: Observation, after: Mapping[str, bytes | None]) -> Question | None:
    """Return the question that has CRI-O's binary merge the candidate files."""
    if seen.binary is None or not answered(seen, "default"):
        return None
    return merged("candidate", desired, {**seen.files, **after})


def verdict(desired: Desired, seen: Observation, answer: Answer) -> list[str]:
    """Compare the candidate's configuration with today's: only our keys may differ."""
    if not answer.ok:
        return [f"{seen.binary} does not load the change: {last_line(answer.err)}"]
    before = complete(seen, seen.answers["effective"].out)
    after = complete(seen, answer.out)
    formerly = {e.key[-1] for o in seen.owned for e in o.edits if e.key[:-1] == RUNTIMES}
    ours = [(*RUNTIMES, handler) for handler in desired.names | formerly]
    problems = [
        f"{edits.spell(key)} would change from {old!r} to {new!r}"
        for key, old, new in edits.differences(before, after)
        if key != DEFAULT and not any(key[: len(prefix)] == prefix for prefix in ours)
    ]
    return problems if desired.hook_mode else problems + _missing(desired, after)


def removal_verdict(desired: Desired, seen: Observation, answer: Answer) -> list[str]:
    """Say whether CRI-O loads what a removal leaves."""
    if answer.ok:
        return []
    return [f"{seen.binary} does not load what the removal leaves: {last_line(answer.err)}"]


def unconfirmed(desired: Desired, files: Mapping[str, bytes | None], body: str) -> list[str]:
    """Return where the running daemon differs from the files in what is ours."""
    try:
        now = running(None, body)
    except ValueError as error:
        return [str(error)]
    known, default = now.handlers or frozenset(), now.default
    seen = Observation(files=files, globs={drop_ins(desired): listed(desired, files)})
    wanted = desired.names & handlers(desired, seen, without="").keys()
    problems = [f"CRI-O does not know the handler {handler}" for handler in sorted(wanted - known)]
    problems += [f"CRI-O still knows the handler {h}" for h in sorted((desired.names & known) - wanted)]
    said = said_default(desired, seen, without="")
    if said and default != said:
        problems.append(f"CRI-O's default handler is {default}, not {said}")
    return problems


def effective(desired: Desired, seen: Observation) -> Effective:
    """Return what CRI-O's binary makes of the files as they are."""
    if not answered(seen, "effective") or not answered(seen, "default"):
        return Effective()
    return _effective(complete(seen, seen.answers["effective"].out))


def programs(desired: Desired, seen: Observation) -> dict[str, tuple[str, ...]]:
    """Return the programs that the handlers name; one without a path is searched by the handler's name."""
    found: Mapping[str, Any] = handlers(desired, seen, without="")
    if answered(seen, "effective") and answered(seen, "default"):
        found = table(complete(seen, seen.answers["effective"].out), RUNTIMES, _ANSWER)
    named = {name: entry.get("runtime_path") for name, entry in found.items() if isinstance(entry, Mapping)}
    return {name: (path if isinstance(path, str) and path else name,) for name, path in named.items()}


def running(config: Tree | None, body: str) -> Effective:
    """Return what the daemon's `/config` says. Raises ValueError."""
    try:
        tree = tomllib.loads(body)
        runtime = tree["crio"]["runtime"]
        _ = frozenset(runtime["runtimes"]), runtime["default_runtime"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"CRI-O's answer cannot be read ({error!r})") from error
    return _effective(tree)


def _effective(tree: Tree) -> Effective:
    handlers, default = value(tree, RUNTIMES), value(tree, DEFAULT)
    image = value(tree, ("crio", "image", "pause_image"))
    names = frozenset(handlers if isinstance(handlers, Mapping) else EMPTY)
    by_systemd = value(tree, ("crio", "runtime", "cgroup_manager")) in ("systemd", ABSENT)
    return Effective(
        handlers=names,
        default=default if isinstance(default, str) else None,
        sandbox_image=image if isinstance(image, str) else None,
        by_systemd=names if by_systemd else frozenset(),
    )


def merged(question: str, desired: Desired, files: Mapping[str, bytes | None]) -> Question:
    """Stage crio.conf and the drop-in directory and have the binary merge them."""
    directory = desired.directory
    staged = {
        str(PurePosixPath(path).relative_to(directory)): files.get(path) or b""
        for path in listed(desired, files)
    }
    return Question(
        name=question,
        argv=("--config", token(0), "--config-dir", directory_token(0), "config"),
        files=(files.get(desired.config) or b"",),
        names=(desired.config,),
        directories=(staged,),
    )


def answered(seen: Observation, question: str) -> bool:
    """Tell whether a question was answered."""
    answer = seen.answers.get(question)
    return answer is not None and answer.ok


# Keys of [crio.runtime] that `crio config` prints behind the handlers: TOML takes them for the last one's.
_ANSWER: Final = "CRI-O's answer"
_STRAYS: Final = ("disable_hostport_mapping", "hostnetwork_disable_selinux", "timezone")


def complete(seen: Observation, printed: str) -> dict[str, Any]:
    """Return what `crio config` printed with the built-in values that it prints as comments.

    Raises NotUnderstood for what CRI-O does not print.
    """
    tree = _straight(printed)
    defaults = _straight(seen.answers["default"].out)
    handlers = value(tree, RUNTIMES)
    result = edits.overlaid(defaults, tree)
    if isinstance(handlers, Mapping) and handlers:
        result["crio"]["runtime"]["runtimes"] = dict(handlers)
    return result


def _straight(printed: str) -> dict[str, Any]:
    tree = tomldoc.tree(printed.encode(), _ANSWER)
    runtime: Any = table(tree, RUNTIME, _ANSWER)
    for name, handler in table(tree, RUNTIMES, _ANSWER).items():
        if not isinstance(handler, dict):
            raise NotUnderstood(_ANSWER, f"its handler {name} is not a table")
        for stray in _STRAYS:
            if stray in handler:
                runtime.setdefault(stray, handler.pop(stray))
    return tree


def _missing(desired: Desired, after: Tree) -> list[str]:
    problems = []
    for handler in desired.handlers:
        path = value(after, (*RUNTIMES, handler.name, "runtime_path"))
        if path != handler.binary:
            problems.append(f"the handler {handler.name} would run {path!r}, not {handler.binary}")
    default = value(after, DEFAULT)
    if desired.default and default != desired.default:
        problems.append(f"the default handler would be {default!r}, not {desired.default}")
    return problems


def last_line(text: str) -> str:
    """Return the last line that a failed CRI-O said."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
