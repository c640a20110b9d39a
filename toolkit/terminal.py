"""What a person at a terminal sees and a program does not: colours, and a line that says what is under way.

The line stands below the story, goes before anything else is told, and leaves
nothing behind: what is kept of a terminal reads as if it had been piped. It has
no thread of its own. Whoever waits, or goes through many files, makes it beat.
"""

from __future__ import annotations

import logging
import os
import time
from typing import IO, Final, TextIO

GREEN: Final = "32"
RED: Final = "31"
YELLOW: Final = "33"
CYAN: Final = "36"
_ERASE: Final = "\r\x1b[K"
_BEAT: Final = 0.1
_LONG: Final = 1.0
_NARROW: Final = 80


def is_plain(stream: IO[str]) -> bool:
    """Tell whether a stream is none that lines can be drawn on: a file, a pipe, a terminal that is dumb."""
    return not stream.isatty() or os.environ.get("TERM") == "dumb"


def is_colourful(stream: IO[str]) -> bool:
    """Tell whether a stream wants colours: a terminal does, unless NO_COLOR is there (no-color.org)."""
    return not is_plain(stream) and "NO_COLOR" not in os.environ


def painted(words: str, colour: str, *, wanted: bool) -> str:
    """Return words in a colour, where colours are wanted."""
    return f"\x1b[{colour}m{words}\x1b[0m" if wanted else words


class Story(logging.StreamHandler[TextIO]):
    """The story on a terminal, with a line below it while something takes its time."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._words = ""
        self._since = 0.0
        self._drawn = float("-inf")
        self._is_drawn = False

    def under_way(self, words: str) -> str:
        """Say from now on what is under way; empty: nothing is. Returns what was said before."""
        self._erase()
        before, self._words, self._since = self._words, words, time.monotonic()
        self._draw()
        return before

    def beat(self, words: str = "") -> None:
        """Draw the line anew, with `words` behind it, if it is old enough for that."""
        if time.monotonic() - self._drawn >= _BEAT:
            self._draw(words)

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a record in place of the line."""
        self._erase()
        super().emit(record)

    def _draw(self, words: str = "") -> None:
        if not self._words:
            return
        self._drawn, self._is_drawn = time.monotonic(), True
        took = self._drawn - self._since
        line = f"  {self._words}{words} ..." + (f" {took:.0f} s" if took >= _LONG else "")
        self._write(f"{_ERASE}{line[: self._width() - 1]}")

    def _erase(self) -> None:
        if self._is_drawn:
            self._write(_ERASE)
        self._is_drawn = False

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            self._words = ""  # nobody looks any more

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or _NARROW
        except OSError:
            return _NARROW
