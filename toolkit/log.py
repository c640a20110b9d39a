"""The log on stderr: one line per event, as text or as a JSON object. Results go to stdout instead.

The agent suppresses repeated messages for ten minutes and counts them. The log of a child process
passes through this module as well, so that its messages are counted, too.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, TextIO

# --- the terminal ---------------------------------------------------------------------------------

GREEN: Final = "32"
RED: Final = "31"
YELLOW: Final = "33"
CYAN: Final = "36"
_ERASE: Final = "\r\x1b[K"
_BEAT: Final = 0.1
_LONG: Final = 1.0
_NARROW: Final = 80
_WAIT: Final = r"\bin \d+ s\b"


def is_plain(stream: IO[str]) -> bool:
    """Return whether a stream is no terminal, or a dumb one, so that a line cannot be redrawn."""
    return not stream.isatty() or os.environ.get("TERM") == "dumb"


def is_colourful(stream: IO[str]) -> bool:
    """Return whether a stream gets colours: a terminal, unless NO_COLOR is set (no-color.org)."""
    return not is_plain(stream) and "NO_COLOR" not in os.environ


def coloured(words: str, colour: str, *, wanted: bool) -> str:
    """Return words, with `wanted` in a colour."""
    return f"\x1b[{colour}m{words}\x1b[0m" if wanted else words


def write(stream: TextIO, text: str) -> str:
    """Write text to a standard stream; return why it is lost, empty if a reader closed the pipe.

    What cannot be written is discarded, so that Python does not try it again when it exits.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        return "" if isinstance(error, BrokenPipeError) else error.strerror or str(error)
    return ""


class ProgressHandler(logging.StreamHandler[TextIO]):
    """A handler that writes the log to a terminal, and a progress line below it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._words = ""
        self._since = 0.0
        self._drawn = float("-inf")
        self._is_drawn = False

    def under_way(self, words: str) -> str:
        """Set the text of the progress line, empty for none; return the previous text."""
        self._erase()
        before, self._words, self._since = self._words, words, time.monotonic()
        self._draw()
        return before

    def tick(self, words: str = "") -> None:
        """Redraw the progress line with `words` appended, at most every `_BEAT` seconds."""
        if time.monotonic() - self._drawn >= _BEAT:
            self._draw(words)

    def emit(self, record: logging.LogRecord) -> None:
        """Erase the progress line and write a record."""
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
            self._words = ""  # the terminal is gone

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or _NARROW
        except OSError:
            return _NARROW


# --- the log --------------------------------------------------------------------------------------

LOGGER: Final = logging.getLogger("nvidia-toolkit")
_WINDOW: Final = 600.0
_MOST: Final = 256
_FACTS: Final = "facts"
_PHASE: Final = "phase"
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_phase_now = "cli"
_COLOURS: Final = {logging.WARNING: YELLOW, logging.ERROR: RED}


class Text(logging.Formatter):
    """The text format: the first letter of the level, the phase, the message."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        wanted = self._colour and record.levelno in _COLOURS
        head = coloured(
            f"{record.levelname[0]} {_phase(record)}:",
            _COLOURS.get(record.levelno, ""),
            wanted=wanted,
        )
        return f"{head} {_message(record)}"


class Json(logging.Formatter):
    """The JSON format: an object with time, level, phase, message and the fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line of JSON."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts: dict[str, Any] = getattr(record, _FACTS, {})
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "phase": _phase(record),
            "message": _message(record),
            **facts,
        }
        return json.dumps(line)


class Counted(logging.Filter):
    """A filter that passes a message once in ten minutes, with its number of suppressed repeats."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[int, str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record."""
        # A message that says how long to wait is the same message later.
        message = re.sub(_WAIT, "in N s", record.getMessage())
        key = (record.levelno, _phase(record), message)
        now = time.monotonic()
        since, count = self._seen.pop(key, (-_WINDOW, 0))
        if now - since < _WINDOW:
            self._seen[key] = (since, count + 1)
            return False
        if count:
            record.again = f" (repeated {count} times in the last {now - since:.0f} s)"
        self._seen[key] = (now, 0)
        while len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]
        return True


def start(
    stream: TextIO | None = None,
    *,
    debug: bool,
    as_json: bool = False,
    counted: bool = False,
    phase: str = "cli",
) -> None:
    """Configure the log of this process: to stderr or another stream.

    `debug` includes debug messages, `as_json` selects JSON, `counted` suppresses repeated messages.
    `phase` is the phase of the records until `set_phase` is called.
    """
    set_phase(phase)
    logging.raiseExceptions = False  # errors while writing the log are ignored
    output = stream or sys.stderr
    plain = as_json or is_plain(output)
    handler = logging.StreamHandler(output) if plain else ProgressHandler(output)
    handler.setFormatter(Json() if as_json else Text(colour=is_colourful(output)))
    if counted:
        handler.addFilter(Counted())
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.DEBUG if debug else logging.INFO)


@contextmanager
def under_way(words: str) -> Iterator[None]:
    """Show words on the progress line of a terminal while the block runs."""
    handlers = _progress_handlers()
    before = [handler.under_way(words) for handler in handlers]
    try:
        yield
    finally:
        for handler, previous in zip(handlers, before, strict=True):
            handler.under_way(previous)


def tick(words: str = "") -> None:
    """Redraw the progress line of a terminal, with `words` for the progress."""
    for handler in _progress_handlers():
        handler.tick(words)


def _progress_handlers() -> list[ProgressHandler]:
    return [handler for handler in LOGGER.handlers if isinstance(handler, ProgressHandler)]


def is_json() -> bool:
    """Return whether the log is written as JSON."""
    return any(isinstance(handler.formatter, Json) for handler in LOGGER.handlers)


def relay(line: bytes) -> None:
    """Log a line of JSON from a child process. A line that is not valid is logged as a warning."""
    try:
        fields = json.loads(line)
        level = _LEVELS[fields.pop("level")]
        phase, message = str(fields.pop("phase")), str(fields.pop("message"))
        fields.pop("time", None)
    except (ValueError, KeyError, AttributeError, TypeError):
        LOGGER.warning("%s", line.decode(errors="replace"))
        return
    if LOGGER.isEnabledFor(level):
        record = {"name": LOGGER.name, "levelno": level, "levelname": logging.getLevelName(level)}
        LOGGER.handle(
            logging.makeLogRecord({**record, "msg": message, _PHASE: phase, _FACTS: fields})
        )


def facts(**values: Any) -> dict[str, Any]:
    """Return the `extra` argument of a record whose values become fields of the JSON line."""
    return {_FACTS: values}


def set_phase(name: str) -> None:
    """Set the step of the work that the following records belong to: the field `phase` in JSON."""
    global _phase_now  # noqa: PLW0603
    _phase_now = name


def _phase(record: logging.LogRecord) -> str:
    return str(getattr(record, _PHASE, _phase_now))


def _message(record: logging.LogRecord) -> str:
    return record.getMessage() + str(getattr(record, "again", ""))
