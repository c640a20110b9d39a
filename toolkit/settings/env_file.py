"""The parser of `--env-file`: NAME=value lines in shell syntax.

The environment of a running process cannot be changed from outside. A file can, so that the agent
can be reconfigured without a restart.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from runtimes.lazy_pattern import lazy_pattern
from toolkit.errors import UsageProblem
from toolkit.node import trust

_LARGEST: Final = 1 << 20
_NAME: Final = lazy_pattern("[A-Za-z_][A-Za-z0-9_]*")


def read(path: Path) -> dict[str, str]:
    """Return the variables of a file: NAME=value, quoted as in a shell, with or without `export`.

    Raises UsageProblem if the file cannot be read, and lists every invalid line.
    """
    try:
        text = trust.read(path, _LARGEST + 1).decode()
    except OSError as error:
        raise UsageProblem([f"--env-file {path} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise UsageProblem([f"--env-file {path} is not valid UTF-8"]) from error
    if len(text) > _LARGEST:
        raise UsageProblem([f"--env-file {path} is larger than {_LARGEST >> 20} MiB"])
    result: dict[str, str] = {}
    problems = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            result |= _assigned(line)
        except ValueError as error:
            problems.append(f"--env-file {path}, line {number}: {error}")
    if problems:
        raise UsageProblem(problems)
    return result


def _assigned(line: str) -> dict[str, str]:
    """Return the variables that a line assigns. Raises ValueError if a word is not NAME=value."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["export"]:
        words = words[1:]
    assigned = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ValueError(f"{word!r} is not NAME=value")
        assigned[name] = value
    return assigned
