"""A file of variables, as a shell would read them: what an environment that cannot change does not hold."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Final

from toolkit.errors import UsageProblem

_LARGEST: Final = 1 << 20
_NAME: Final = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def read(path: Path) -> dict[str, str]:
    """Return the variables of a file: lines of NAME=value, quoted as in a shell, with or without `export`.

    Raises UsageProblem that names every line which is none.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(_LARGEST + 1).decode()
    except OSError as error:
        raise UsageProblem([f"--env-file {path} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise UsageProblem([f"--env-file {path} is no text"]) from error
    if len(text) > _LARGEST:
        raise UsageProblem([f"--env-file {path} is too large"])
    found: dict[str, str] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found |= _assigned(line)
        except ValueError as error:
            problems.append(f"--env-file {path}, line {number}: {error}")
    if problems:
        raise UsageProblem(problems)
    return found


def _assigned(line: str) -> dict[str, str]:
    """Return what a line assigns. Raises ValueError."""
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
