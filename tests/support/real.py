"""The real runtimes of this run, by name and version; tests add to it, the summary prints it."""

from __future__ import annotations

from typing import Final

USED: Final[set[str]] = set()
