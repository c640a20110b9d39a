"""Observe the runtime's configuration: read its files and run its binary on them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Final

from runtimes import planner
from runtimes.adapter import Adapter
from runtimes.dataclass import replace
from runtimes.errors import ConfigError
from runtimes.model import (
    BinaryQuery,
    BinaryResult,
    Observation,
    Ownership,
    RuntimeName,
    directory_token,
    token,
)
from toolkit.deadline import Deadline
from toolkit.errors import Interrupted, NodeConfigError, StepError
from toolkit.node import command, files
from toolkit.node.host import Host
from toolkit.runtime import locate

_LONGEST_ANSWER: Final = 30.0
LEAST_SECONDS: Final = 5.0
_INCLUDED: Final = "{} includes it: put a file there, or remove it from `imports`"


def observe(
    target: locate.Target, adapter: Adapter, owned: tuple[Ownership, ...], *, whole: bool = False
) -> Observation:
    """Read every file the adapter requests, run its queries on the binary, and return the result.

    `owned` are the files that we changed; with `whole`, a handler in them that runs our programs is
    owned even if others changed it (see `planner.relocated`). Raises NodeConfigError for a file
    that cannot be parsed, and StepError for one that cannot be read.
    """
    argv = target.process.argv if target.process else ()
    observation = Observation(binary=target.binary, argv=argv, owned=owned)
    paths = {path.path: target.host.local(path.path) for path in owned}
    contents = read(target.host, tuple(paths))
    owned = planner.relocated(adapter, owned, contents, whole=whole)
    observation = replace(observation, files=contents, owned=owned)
    try:
        while True:
            request = adapter.required_files(target.desired, observation)
            if request.files or request.globs:
                observation = replace(
                    observation,
                    files={**observation.files, **_requested(target, request.files)},
                    globs={**observation.globs, **{g: target.host.glob(g) for g in request.globs}},
                )
                continue
            questions = adapter.queries(target.desired, observation) if target.binary else ()
            if not questions:
                return observation
            answers = {question.name: ask(target, question) for question in questions}
            observation = replace(observation, results={**observation.results, **answers})
    except ConfigError as error:
        raise not_understood(error) from error


def _requested(target: locate.Target, paths: tuple[str, ...]) -> dict[str, bytes | None]:
    """Return the content of the files that an adapter requests.

    The error about a file that only an import of containerd names says what to do with such a file.
    """
    desired = target.desired
    named = {desired.config, desired.drop_in, *desired.generated}
    result: dict[str, bytes | None] = {}
    for path in paths:
        try:
            result |= read(target.host, (path,))
        except NodeConfigError as error:
            if path in named or desired.runtime != RuntimeName.CONTAINERD:
                raise
            raise NodeConfigError(error.message, hint=_INCLUDED.format(desired.config)) from error
    return result


def read(host: Host, paths: tuple[str, ...]) -> dict[str, bytes | None]:
    """Return the content of files of the node by path, None for a missing file.

    Raises NodeConfigError or StepError for a file that cannot be read.
    """
    return {path: _content(host, path) for path in paths}


def _content(host: Host, path: str) -> bytes | None:
    if host.replaced is not None and path == host.replaced[0]:
        return host.replaced[1]
    snapshot = files.read(host.file(path))
    return snapshot.data if snapshot else None


_KILLED: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def ask(target: locate.Target, question: BinaryQuery) -> BinaryResult:
    """Run the runtime's binary in the node's root, or return the cached result.

    Raises StepError if the binary cannot be run, and Interrupted if it was cut short because the
    program is stopping.
    """
    try:
        return target.answers.get(question) or target.answers.put(question, _ask(target, question))
    except StepError as error:
        if target.stop is not None and target.stop.is_requested:
            raise Interrupted(target.stop.signal) from error
        raise
    except OSError as error:
        raise StepError(
            f"cannot run {target.binary}: {error.strerror}; nothing was changed"
        ) from error


def _ask(target: locate.Target, question: BinaryQuery) -> BinaryResult:
    with (
        command.staged_files(question.files) as (fds, paths),
        command.staged_directories(question.directories) as (directories, directory_paths),
    ):
        marks = {token(i): path for i, path in enumerate(paths)}
        marks |= {directory_token(i): path for i, path in enumerate(directory_paths)}
        for fd, data in zip(fds, question.files, strict=True):
            os.ftruncate(fd, 0)
            os.pwrite(fd, _named(data, marks), 0)
        deadline = Deadline(_LONGEST_ANSWER, target.stop)
        argv = [
            target.binary or "",
            *(_named(word.encode(), marks).decode() for word in question.argv),
        ]
        try:
            results = [
                command.run(
                    argv,
                    root=target.host.root,
                    timeout=deadline.at_least(LEAST_SECONDS),
                    pass_fds=[*fds, *directories],
                )
                for _ in range(question.times)
            ]
        except command.NotStarted as error:
            return BinaryResult(code=-1, out="", err=error.message)
    for result in results:
        _refuse_killed(result)
    result = results[0]
    is_stable = len({(each.code, each.out) for each in results}) == 1
    err = result.err
    for path, name in zip(paths, question.names, strict=False):
        err = err.replace(path, name)
    return BinaryResult(code=result.code, out=result.out, err=err, is_stable=is_stable)


def _refuse_killed(result: command.Result) -> None:
    """Raise StepError if a binary was killed, so that it said nothing about the configuration.

    Behind a shell the exit status is 128 and the signal's number. A crash (SIGSEGV, SIGABRT) is an
    answer.
    """
    number = next((each for each in _KILLED if result.code in {-each, 128 + each}), None)
    if number is not None:
        raise StepError(
            f"`{' '.join(result.argv)}` was ended by {number.name}: the configuration could not be"
            " checked",
            hint=(
                "run again; if the kernel killed it for memory (see dmesg), give the pod or the"
                " node more"
            ),
        )


def not_understood(error: ConfigError) -> NodeConfigError:
    """Return an error of `runtimes` as an error with an exit code. It may quote the file."""
    from toolkit import redact  # noqa: PLC0415  # needed for errors only

    return NodeConfigError(redact.text(str(error)), hint=error.hint)


def _named(data: bytes, marks: Mapping[str, str]) -> bytes:
    for mark, path in marks.items():
        data = data.replace(mark.encode(), path.encode())
    return data
