"""The licenses of the packages that a release brings, by the names of SPDX."""

from __future__ import annotations

import email
from collections.abc import Iterable
from email.message import Message
from pathlib import Path
from typing import Final

from toolkit import __version__

OWN: Final = "Apache-2.0"
_SPDX: Final = {"The MIT License (MIT)": "MIT", "BSD-3-Clause": "BSD-3-Clause", "MIT": "MIT"}
"""What metadata older than `License-Expression` (PEP 639) says, and what that is called."""


class LicenseError(Exception):
    """The name of a license is not known. The message says of which package, and what to do."""


def of(metadata: Message) -> str:
    """Return the expression of a package's license. Raises LicenseError if it is not known."""
    if expression := metadata["License-Expression"]:
        return str(expression)
    # Some have the whole text there, which begins with its name.
    said = str(metadata["License"]).partition("\n")[0].strip()
    if said not in _SPDX:
        raise LicenseError(
            f"the license of {metadata['Name']} {metadata['Version']} is called {said}: add what"
            " SPDX calls it to tools/licenses.py"
        )
    return _SPDX[said]


def bundled(home: Path) -> dict[str, tuple[str, list[str]]]:
    """Return the license of each wheel that is unpacked in a directory, and the files with it."""
    found = {}
    for directory in sorted(home.glob("*.dist-info")):
        text = (directory / "METADATA").read_text(encoding="utf-8")
        metadata = email.message_from_string(text)
        files = [
            path.relative_to(home).as_posix()
            for path in sorted(directory.rglob("*"))
            if path.name.startswith(("LICENSE", "NOTICE"))
        ]
        found[directory.name.removesuffix(".dist-info")] = (of(metadata), files)
    return found


def together(expressions: Iterable[str]) -> str:
    """Return one expression for the program and what it brings: AND of each, once, by name."""
    parts = {part for each in expressions for part in each.split(" AND ")}
    return " AND ".join([OWN, *sorted(parts - {OWN})])


def statement(own: str, home: Path, place: str) -> str:
    """Return the text of a package's copyright file: the program's license, and those of others.

    `own` is the text of LICENSE; `home` is the directory with the wheels, and `place` what it is
    when the package is installed.
    """
    lines = [
        f"{own.rstrip()}\n",
        f"nvidia-toolkit {__version__} brings these packages, each with a license of its own:\n",
    ]
    for name, (expression, files) in bundled(home).items():
        lines += [f"{name}: {expression}", *(f"    {place}/{file}" for file in files)]
    return "\n".join(lines) + "\n"
