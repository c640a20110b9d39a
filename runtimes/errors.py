"""Errors in a node's configuration or in the requested change, with messages for users."""

from __future__ import annotations


class ConfigError(Exception):
    """A configuration file cannot be parsed or safely edited; nothing may be changed.

    `path` is the file as the daemon sees it. `line` and `column`, where known, count from 1.
    `hint` tells the user how to fix the problem.
    """

    def __init__(
        self,
        path: str,
        why: str,
        *,
        line: int | None = None,
        column: int | None = None,
        hint: str = "",
    ) -> None:
        self.path = path
        self.why = why
        self.line = line
        self.column = column
        self.hint = hint
        super().__init__(f"{self.where}: {why}")

    @property
    def where(self) -> str:
        """Return `path`, `path:line` or `path:line:column`, depending on what is known."""
        return ":".join(str(part) for part in (self.path, self.line, self.column) if part)


class UnsupportedSetup(Exception):
    """The node's runtime setup does not support the requested change; nothing may be changed.

    `hint` tells the user how to fix the problem.
    """

    def __init__(self, why: str, *, hint: str = "") -> None:
        self.why = why
        self.hint = hint
        super().__init__(why)


class NoCgroupDriver(UnsupportedSetup):
    """No handler and no kubelet shows the cgroup driver that our handlers must use."""
