"""The files that are the source: those that git tracks, or those of an unpacked source archive."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

_LEFT: Final = frozenset({
    ".git", ".hypothesis", ".import_linter_cache", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    ".venv", "__pycache__", "build", "dist", "nvidia_toolkit.egg-info", "wheels",
})  # fmt: skip
"""What tools leave beside the source of an archive that was unpacked, as in .gitignore."""
_ADDED: Final = frozenset({"PKG-INFO", "setup.cfg"})
"""What setuptools adds to a source archive, besides its directory of metadata."""


def listed(root: Path, *, with_new: bool = False) -> list[str]:
    """Return the names of the source's files below a directory, sorted.

    `with_new` adds those that git would track. Raises CalledProcessError if git fails.
    """
    if (root / ".git").exists():
        more = ("--cached", "--others", "--exclude-standard") if with_new else ()
        names = subprocess.run(
            ("git", "-C", str(root), "ls-files", "-z", *more),
            capture_output=True, text=True, check=True,
        ).stdout.split("\0")  # fmt: skip
        return sorted(name for name in names if name and (root / name).is_file())
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return sorted(
        path.as_posix()
        for path in found
        if not _LEFT & set(path.parts) and path.as_posix() not in _ADDED
    )
