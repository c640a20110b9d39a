"""The interface of an adapter: the files and queries it needs, the keys it wants, its checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Final, TypeAlias

from runtimes.dataclass import dataclass, field
from runtimes.edits import DesiredKey, Format
from runtimes.model import (
    BinaryQuery,
    BinaryResult,
    Desired,
    Effective,
    FileRequest,
    Observation,
    Origin,
    Request,
    RuntimeName,
    Tree,
    Usage,
)

Files: TypeAlias = Mapping[str, bytes | None]
"""The content of files by path; None where a file does not exist."""

BANNER: Final = (
    "# Written by nvidia-toolkit. It holds only the keys of nvidia-toolkit, which takes it back\n"
    "# with `nvidia-toolkit revert`.\n"
)
"""The comment at the top of every TOML file that this program creates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredConfig:
    """The keys and files that an adapter wants, in the order of writing, and notes for the user.

    `low_level` are the binaries of the other handlers, the default handler's first.
    """

    keys: tuple[DesiredKey, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """Notes that a run logs as well, because pods notice the change or files are not read."""
    low_level: tuple[str, ...] = ()
    origin: Origin = field(default_factory=Origin)
    fresh: frozenset[str] = frozenset()
    """Files that contain only our keys: they are generated as a whole and not edited."""
    replaced: frozenset[str] = frozenset()
    """Files of `fresh` whose content keeps the runtime from starting: replaced, not restored."""
    whole: Mapping[str, bytes | None] = field(default_factory=dict)
    """The exact content of files by path; None removes the file."""
    provided: frozenset[str] = frozenset()
    """Handlers that the distribution itself creates and that must exist after its next start."""
    pending_restart: str = ""
    """A message on what the next start of the distribution changes; empty if it changes nothing."""


def is_sandbox(kind: str, program: str) -> bool:
    """Return whether a handler isolates pods (kata, gVisor), by runtime type and program."""
    names = {kind.lower(), PurePosixPath(program).name.lower()}
    return any(name.startswith("kata") or "runsc" in name or ".kata" in name for name in names)


def no_longer_isolated(default: str, new: str) -> str:
    """Return the warning that a default handler that isolates pods is replaced."""
    return (
        f"the default handler {default} isolates pods: with {new} as the default, pods without a"
        f" RuntimeClass are no longer isolated (--set-as-default=false keeps {default})"
    )


class SighupEffect(StrEnum):
    """The effect of SIGHUP on a runtime's daemon."""

    TERMINATES = "terminates"
    """The process exits; its supervisor starts it again."""
    RELOADS = "reloads"
    """The process keeps running and uses the new handlers."""
    NEEDS_RESTART = "needs restart"
    """The process reads and reports the new handlers but does not use them before a restart."""


def _none(desired: Desired, observation: Observation) -> tuple[()]:
    return ()


def _applied(desired: Desired, files: Files, body: str) -> tuple[()]:
    return ()


def _no_reset(path: str, before: bytes | None, after: bytes | None) -> None:
    return None


def _no_usage(desired: Desired, answers: Mapping[str, str]) -> Usage:
    return Usage()


def _unknown(desired: Desired, observation: Observation) -> Effective:
    return Effective()


def _no_handler(info: Mapping[str, Any]) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The knowledge of one runtime's configuration, as values and functions.

    An adapter performs no I/O and does not edit files. It asks for files and query results, and
    returns the keys that the planner then writes.
    """

    name: RuntimeName
    form: Format
    executables: frozenset[str]
    """The possible base names of the daemon's executable."""
    banner: str = ""
    """The comment at the top of a file that we create; empty if the format has no comments."""
    required_keys: tuple[str, ...] = ()
    """The keys without which the table of a handler is not valid."""
    config_flags: tuple[str, ...]
    """The command-line flags that set the daemon's root config."""
    directory_flags: tuple[str, ...] = ()
    """The command-line flags that set the daemon's drop-in directory; empty if it has none."""
    server_speaks_first: bool
    """Whether the daemon sends data on a new connection before the client does."""
    supports_cri: bool
    """Whether the daemon serves the CRI API."""
    on_hangup: SighupEffect
    confirmation: Request | None = None
    """The request that shows whether the running daemon applied a change; None if there is none."""

    required_files: Callable[[Desired, Observation], FileRequest]
    """Return the files and globs to read next; empty if the observation is complete."""
    queries: Callable[[Desired, Observation], tuple[BinaryQuery, ...]] = _none
    """Return the queries to the node's binary that have no result yet."""
    desired_config: Callable[[Desired, Observation], DesiredConfig]
    """Return the keys to set. Raise ConfigError or UnsupportedSetup if that is not possible."""
    candidate_query: Callable[[Desired, Observation, Files], BinaryQuery | None]
    """Return the query that loads the candidate files; None if the binary cannot validate them."""
    candidate_problems: Callable[[Desired, Observation, BinaryResult], Sequence[str]]
    """Return a message for every unrequested or missing effect of the candidate."""
    removal_problems: Callable[[Desired, Observation, BinaryResult], Sequence[str]]
    """Return a message for every effect of a removal that would break the runtime."""
    in_sync_problems: Callable[[Desired, Observation], Sequence[str]] = _none
    """Return the same for the current files, if they contain our keys as desired."""
    effective: Callable[[Desired, Observation], Effective]
    """Return the configuration with which the daemon would start, as its binary reports it."""
    effective_without_us: Callable[[Desired, Observation], Effective] = _unknown
    """Return the configuration that the daemon would have without our keys; empty if unknown."""
    programs: Callable[[Desired, Observation], Mapping[str, Sequence[str]]]
    """Return the programs of the effective handlers, by handler: paths, or names to search on PATH.

    Without a result of the binary, return the programs that the files name. Raise ConfigError if a
    file cannot be parsed.
    """
    running: Callable[[Tree | None, str], Effective]
    """Return the configuration of the running daemon.

    The arguments are the configuration in CRI's verbose status and the reply to `confirmation`.
    Raise ValueError if the reply cannot be parsed.
    """
    defined: Callable[[Desired, Files], frozenset[str]]
    """Return which of our handlers the given files define."""
    not_applied: Callable[[Desired, Files, str], Sequence[str]] = _applied
    """Return messages on the differences between the files and the reply to `confirmation`."""
    reset_content: Callable[[str, bytes | None, bytes | None], bytes | None] = _no_reset
    """Return the content to load between an old and a new one, so the daemon drops removed keys."""
    usage: Callable[[Desired, Mapping[str, str]], Usage] = _no_usage
    """Return the containers that use our handlers, and the requests still needed to know them all.

    The second argument are the replies so far, by path.
    """
    task_files: Callable[[Desired, Observation], Sequence[str]] = _none
    """Return globs of the files that contain the binary path of each running container."""
    handler_in: Callable[[Mapping[str, Any]], str] = _no_handler
    """Return the handler in a pod's verbose status; empty if it contains none."""
