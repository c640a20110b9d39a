"""List the hashes of the toolkit's files, so that a node need not read all before it copies one.

    digests.py DIRECTORY TARGET

For each directory with packages' files (DIRECTORY/deb, DIRECTORY/rpm), TARGET gets one of the same
name, with a SHA256SUMS as sha256sum(1) writes it. The program compares the hashes with those of its
copies, so a list that is not true keeps it from installing anything.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_NAME: Final = "SHA256SUMS"


def main() -> None:
    """Write the lists."""
    directory, target = map(Path, sys.argv[1:])
    for source in sorted(each for each in directory.iterdir() if each.is_dir()):
        (target / source.name).mkdir(parents=True, exist_ok=True)
        (target / source.name / _NAME).write_text("".join(lines(source)), encoding="utf-8")


def lines(source: Path) -> Iterator[str]:
    """Yield a line for each file below a directory, by its path; links have none."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != _NAME:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            yield f"{content}  {path.relative_to(source)}\n"


if __name__ == "__main__":
    main()
