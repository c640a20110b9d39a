"""What can be wrong with a document or a wish, in words for people."""

from __future__ import annotations


class NotUnderstood(Exception):
    """A file of the node cannot be understood, so nothing may be changed.

    `path` is the file as the daemon sees it, `line` and `column` count from 1
    where they are known, `hint` is the way out.
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
        """Return `path`, `path:line` or `path:line:column`, as far as it is known."""
        return ":".join(str(part) for part in (self.path, self.line, self.column) if part)


class Unfit(Exception):
    """The node's runtime is set up in a way that the wish cannot be fulfilled; nothing may be changed.

    `hint` is the way out.
    """

    def __init__(self, why: str, *, hint: str = "") -> None:
        self.why = why
        self.hint = hint
        super().__init__(why)
