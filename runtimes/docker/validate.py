"""Validation of a candidate by dockerd, and the effective configuration of file and daemon."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from runtimes.docker import schema
from runtimes.formats import json_editor
from runtimes.model import (
    EMPTY,
    BinaryQuery,
    BinaryResult,
    Desired,
    Effective,
    Observation,
    Tree,
    token,
)


def candidate_query(
    desired: Desired, observation: Observation, after: Mapping[str, bytes | None]
) -> BinaryQuery | None:
    """Return the query that validates the candidate with the daemon's flags; None if no binary."""
    data = after.get(desired.config)
    if observation.binary is None or data is None:
        return None
    argv = (*_own_flags(observation.argv), "--validate", "--config-file", token(0))
    return BinaryQuery(name="candidate", argv=argv, files=(data,), names=(desired.config,))


def candidate_problems(
    desired: Desired, observation: Observation, answer: BinaryResult
) -> list[str]:
    """Return a message if dockerd would not start with the candidate.

    dockerd before 23.0 has no `--validate`; then there is no message. That only our keys differ is
    checked when the file is edited. Raise ConfigError if dockerd would not start with the file of
    today.
    """
    if answer.ok:
        schema.refuse_null_runtimes(desired, observation)
    return _problems(desired, observation, answer)


def _problems(desired: Desired, observation: Observation, answer: BinaryResult) -> list[str]:
    if answer.ok:
        return []
    schema.refuse_clashes(desired, observation)
    if "unknown flag: --validate" in answer.err:
        return []
    return [f"{observation.binary} refuses the change: {schema.last_line(answer.err)}"]


def removal_problems(desired: Desired, observation: Observation, answer: BinaryResult) -> list[str]:
    """Return a message if dockerd would not start with what a removal leaves."""
    return _problems(desired, observation, answer)


def not_applied(desired: Desired, files: Mapping[str, bytes | None], body: str) -> list[str]:
    """Return messages on the differences between the file and the daemon's `/info` in our keys."""
    try:
        daemon = running(None, body)
    except ValueError as error:
        return [str(error)]
    known, default = daemon.handlers or frozenset(), daemon.default
    tree = json_editor.tree(files.get(desired.config) or b"", desired.config)
    wanted = defined(desired, files)
    problems = [
        f"dockerd does not know the handler {handler}" for handler in sorted(wanted - known)
    ]
    problems += [
        f"dockerd still knows the handler {handler}"
        for handler in sorted((desired.names & known) - wanted)
    ]
    expected = tree.get(schema.DEFAULT) or schema.BUILT_IN
    if default != expected:
        problems.append(f"dockerd's default handler is {default}, not {expected}")
    return problems


def effective(desired: Desired, observation: Observation) -> Effective:
    """Return the config in the file, with the built-in runc but without containerd's shims."""
    tree = json_editor.tree(observation.data(desired.config) or b"", desired.config)
    schema.refuse_wrong_types(desired, tree)
    handlers = frozenset(schema.runtimes(tree)) | {schema.BUILT_IN}
    return Effective(
        handlers=schema.named(handlers), default=tree.get(schema.DEFAULT) or schema.BUILT_IN
    )


def programs(desired: Desired, observation: Observation) -> dict[str, tuple[str, ...]]:
    """Return the program of each runtime in the file; one that uses a containerd shim has none."""
    tree = json_editor.tree(observation.data(desired.config) or b"", desired.config)
    schema.refuse_wrong_types(desired, tree)
    named = {
        handler: (entry or EMPTY).get("path") for handler, entry in schema.runtimes(tree).items()
    }
    return {handler: (path,) for handler, path in named.items() if isinstance(path, str) and path}


def running(config: Tree | None, body: str) -> Effective:
    """Return the configuration in the daemon's `/info`. Raise ValueError if it cannot be parsed."""
    try:
        info = json.loads(body)
        return Effective(
            handlers=schema.named(info["Runtimes"]),
            default=str(info["DefaultRuntime"]),
            systemd_cgroup=frozenset(
                info["Runtimes"] if info.get("CgroupDriver") == "systemd" else ()
            ),
            version=str(info.get("ServerVersion", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"dockerd's answer cannot be read ({error!r})") from error


def defined(desired: Desired, files: Mapping[str, bytes | None]) -> frozenset[str]:
    """Return which of our handlers the given files define."""
    tree = json_editor.tree(files.get(desired.config) or b"", desired.config)
    return desired.names & {
        handler for handler, entry in schema.runtimes(tree).items() if entry is not None
    }


def _own_flags(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the daemon's flags except `--config-file`.

    With them, dockerd also refuses options that are set both in the file and on the command line.
    """
    flags = []
    arguments = iter(argv[1:])
    for argument in arguments:
        if argument == "--config-file":
            next(arguments, None)
        elif not argument.startswith("--config-file="):
            flags.append(argument)
    return tuple(flags)
