"""Validation of a candidate by CRI-O's binary, and the effective config of files and daemon."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from runtimes import edits
from runtimes.crio.config_files import (
    DEFAULT,
    RUNTIME,
    RUNTIMES,
    configured_default,
    drop_ins,
    handlers,
    listed,
    table,
)
from runtimes.edits import value
from runtimes.errors import ConfigError
from runtimes.formats import toml_editor
from runtimes.model import (
    ABSENT,
    EMPTY,
    BinaryQuery,
    BinaryResult,
    Desired,
    Effective,
    Observation,
    Tree,
    directory_token,
    token,
)


def queries(desired: Desired, observation: Observation) -> tuple[BinaryQuery, ...]:
    """Return the queries for the built-in defaults and for the effective configuration.

    The defaults are needed because `crio config` prints values that equal them only as comments.
    """
    wanted = []
    if "default" not in observation.results:
        wanted.append(BinaryQuery(name="default", argv=("config", "--default")))
    if "effective" not in observation.results:
        wanted.append(merged("effective", desired, observation.files))
    return tuple(wanted)


def candidate_query(
    desired: Desired, observation: Observation, after: Mapping[str, bytes | None]
) -> BinaryQuery | None:
    """Return the query that merges the candidate files with CRI-O's binary; None if unusable."""
    if observation.binary is None or not answered(observation, "default"):
        return None
    return merged("candidate", desired, {**observation.files, **after})


def candidate_problems(
    desired: Desired, observation: Observation, answer: BinaryResult
) -> list[str]:
    """Return a message for each difference to today's config except our keys, or missing key."""
    if not answer.ok:
        return [f"{observation.binary} does not load the change: {last_line(answer.err)}"]
    before = complete(observation, observation.results["effective"].out)
    after = complete(observation, answer.out)
    former = {e.key[-1] for o in observation.owned for e in o.edits if e.key[:-1] == RUNTIMES}
    allowed = [(*RUNTIMES, handler) for handler in desired.names | former]
    problems = [
        f"{edits.dotted(key)} would change from {edits.value_text(old)} to {edits.value_text(new)}"
        for key, old, new in edits.differences(before, after)
        if key != DEFAULT and not any(key[: len(prefix)] == prefix for prefix in allowed)
    ]
    return problems if desired.hook_mode else problems + _missing(desired, after)


def removal_problems(desired: Desired, observation: Observation, answer: BinaryResult) -> list[str]:
    """Return a message if CRI-O does not load what a removal leaves."""
    if answer.ok:
        return []
    return [f"{observation.binary} does not load what the removal leaves: {last_line(answer.err)}"]


def not_applied(desired: Desired, files: Mapping[str, bytes | None], body: str) -> list[str]:
    """Return messages on differences between the files and the daemon's `/config` in our keys."""
    try:
        daemon = running(None, body)
    except ValueError as error:
        return [str(error)]
    known, default = daemon.handlers or frozenset(), daemon.default
    observation = Observation(files=files, globs={drop_ins(desired): listed(desired, files)})
    wanted = desired.names & handlers(desired, observation, without="").keys()
    problems = [f"CRI-O does not know the handler {handler}" for handler in sorted(wanted - known)]
    problems += [
        f"CRI-O still knows the handler {h}" for h in sorted((desired.names & known) - wanted)
    ]
    expected = configured_default(desired, observation, without="")
    if expected and default != expected:
        problems.append(f"CRI-O's default handler is {default}, not {expected}")
    return problems


def effective(desired: Desired, observation: Observation) -> Effective:
    """Return the config that CRI-O's binary prints for the current files; empty without one."""
    if not answered(observation, "effective") or not answered(observation, "default"):
        return Effective()
    return _effective(complete(observation, observation.results["effective"].out))


def programs(desired: Desired, observation: Observation) -> dict[str, tuple[str, ...]]:
    """Return the program of each handler: its path, or its name, which CRI-O searches on PATH."""
    result: Mapping[str, Any] = handlers(desired, observation, without="")
    if answered(observation, "effective") and answered(observation, "default"):
        result = table(
            complete(observation, observation.results["effective"].out), RUNTIMES, _ANSWER
        )
    named = {
        name: entry.get("runtime_path")
        for name, entry in result.items()
        if isinstance(entry, Mapping)
    }
    return {
        name: (path if isinstance(path, str) and path else name,) for name, path in named.items()
    }


def running(config: Tree | None, body: str) -> Effective:
    """Return the config in the daemon's `/config`. Raise ValueError if it cannot be parsed."""
    try:
        tree = tomllib.loads(body)
        runtime = tree["crio"]["runtime"]
        _ = frozenset(runtime["runtimes"]), runtime["default_runtime"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"CRI-O's answer cannot be read ({error!r})") from error
    return _effective(tree)


def _effective(tree: Tree) -> Effective:
    """Return the effective configuration of a parsed configuration."""
    handlers, default = value(tree, RUNTIMES), value(tree, DEFAULT)
    image = value(tree, ("crio", "image", "pause_image"))
    names = frozenset(handlers if isinstance(handlers, Mapping) else EMPTY)
    by_systemd = value(tree, ("crio", "runtime", "cgroup_manager")) in ("systemd", ABSENT)
    return Effective(
        handlers=names,
        default=default if isinstance(default, str) else None,
        sandbox_image=image if isinstance(image, str) else None,
        systemd_cgroup=names if by_systemd else frozenset(),
    )


def merged(question: str, desired: Desired, files: Mapping[str, bytes | None]) -> BinaryQuery:
    """Return the query that merges crio.conf and the drop-ins with the binary from staged files."""
    directory = desired.directory
    staged = {
        str(PurePosixPath(path).relative_to(directory)): files.get(path) or b""
        for path in listed(desired, files)
    }
    return BinaryQuery(
        name=question,
        argv=("--config", token(0), "--config-dir", directory_token(0), "config"),
        files=(files.get(desired.config) or b"",),
        names=(desired.config,),
        directories=(staged,),
    )


def answered(observation: Observation, question: str) -> bool:
    """Return whether a query was run and succeeded."""
    answer = observation.results.get(question)
    return answer is not None and answer.ok


_ANSWER: Final = "CRI-O's answer"
# Keys of [crio.runtime] that `crio config` prints after the handlers' tables, so that in TOML they
# belong to the last handler.
_MISPLACED: Final = ("disable_hostport_mapping", "hostnetwork_disable_selinux", "timezone")


def complete(observation: Observation, printed: str) -> dict[str, Any]:
    """Return the output of `crio config` with the built-in values, which it prints as comments.

    Raise ConfigError if the output cannot be parsed.
    """
    tree = _corrected(printed)
    defaults = _corrected(observation.results["default"].out)
    handlers = value(tree, RUNTIMES)
    result = edits.overlaid(defaults, tree)
    if isinstance(handlers, Mapping) and handlers:
        result["crio"]["runtime"]["runtimes"] = dict(handlers)
    return result


def _corrected(printed: str) -> dict[str, Any]:
    """Return the output of `crio config` with the misplaced keys moved to [crio.runtime]."""
    tree = toml_editor.tree(printed.encode(), _ANSWER)
    runtime: Any = table(tree, RUNTIME, _ANSWER)
    for name, handler in table(tree, RUNTIMES, _ANSWER).items():
        if not isinstance(handler, dict):
            raise ConfigError(_ANSWER, f"its handler {name} is not a table")
        for key in _MISPLACED:
            if key in handler:
                runtime.setdefault(key, handler.pop(key))
    return tree


def _missing(desired: Desired, after: Tree) -> list[str]:
    """Return a message for each of our keys that would not be effective."""
    problems = []
    for handler in desired.handlers:
        path = value(after, (*RUNTIMES, handler.name, "runtime_path"))
        if path != handler.binary:
            problems.append(f"the handler {handler.name} would run {path!r}, not {handler.binary}")
    default = value(after, DEFAULT)
    if desired.default and default != desired.default:
        problems.append(
            f"the default handler would be {edits.value_text(default)}, not {desired.default}"
        )
    return problems


def last_line(text: str) -> str:
    """Return the last line of CRI-O's error output that is not blank."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no error message"
