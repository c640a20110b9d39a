"""One line per event on stderr: the story. The answer goes to stdout and is not logged.

A line is for people, or one JSON object. The same words are not said over and
over: within ten minutes they are counted. What a child process has to tell
passes through here as well, so that it is counted too.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

from toolkit import terminal

LOGGER: Final = logging.getLogger("nvidia-toolkit")
_WINDOW: Final = 600.0
_MOST: Final = 256
_FACTS: Final = "facts"
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_COLOURS: Final = {logging.WARNING: terminal.YELLOW, logging.ERROR: terminal.RED}


class Text(logging.Formatter):
    """A line for people: the level's letter, the phase, what happened."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        wanted = self._colour and record.levelno in _COLOURS
        head = terminal.painted(
            f"{record.levelname[0]} {_phase(record)}:", _COLOURS.get(record.levelno, ""), wanted=wanted
        )
        return f"{head} {_said(record)}"


class Json(logging.Formatter):
    """A line for programs: one object with time, level, phase, message and whatever belongs to it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts: dict[str, Any] = getattr(record, _FACTS, {})
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "phase": _phase(record),
            "message": _said(record),
            **facts,
        }
        return json.dumps(line)


class Counted(logging.Filter):
    """Lets the same words through once in ten minutes, and says then how often they were said since."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[tuple[int, str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is news."""
        key = (record.levelno, _phase(record), record.getMessage())
        now = time.monotonic()
        since, count = self._told.pop(key, (-_WINDOW, 0))
        if now - since < _WINDOW:
            self._told[key] = (since, count + 1)
            return False
        if count:
            record.again = f" (and {count} times more in the last {now - since:.0f} s)"
        self._told[key] = (now, 0)
        while len(self._told) > _MOST:
            del self._told[next(iter(self._told))]
        return True


def start(stream: TextIO | None = None, *, debug: bool, as_json: bool = False, counted: bool = False) -> None:
    """Send the story to stderr, or to another stream; once per process.

    `counted` keeps a process that stays from saying the same over and over.
    """
    logging.raiseExceptions = False  # a log that cannot be written is not worth another one
    told = stream or sys.stderr
    is_plain = as_json or terminal.is_plain(told)
    handler = logging.StreamHandler(told) if is_plain else terminal.Story(told)
    handler.setFormatter(Json() if as_json else Text(colour=terminal.is_colourful(told)))
    if counted:
        handler.addFilter(Counted())
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.DEBUG if debug else logging.INFO)


@contextmanager
def under_way(words: str) -> Iterator[None]:
    """Say to a person at a terminal what is under way, as long as it is."""
    stories = _stories()
    before = [story.under_way(words) for story in stories]
    try:
        yield
    finally:
        for story, said in zip(stories, before, strict=True):
            story.under_way(said)


def beat(words: str = "") -> None:
    """Show a person at a terminal that what is under way goes on, and with `words` how far it is."""
    for story in _stories():
        story.beat(words)


def _stories() -> list[terminal.Story]:
    return [handler for handler in LOGGER.handlers if isinstance(handler, terminal.Story)]


def is_json() -> bool:
    """Tell whether the story is told to programs."""
    return any(isinstance(handler.formatter, Json) for handler in LOGGER.handlers)


def relay(line: bytes) -> None:
    """Tell on what a child process told as a JSON line; what is none is told as it is."""
    try:
        said = json.loads(line)
        level = _LEVELS[said.pop("level")]
        phase, message = str(said.pop("phase")), str(said.pop("message"))
        said.pop("time", None)
    except (ValueError, KeyError, AttributeError, TypeError):
        LOGGER.warning("%s", line.decode(errors="replace"))
        return
    if LOGGER.isEnabledFor(level):
        fields = {"name": LOGGER.name, "levelno": level, "levelname": logging.getLevelName(level)}
        LOGGER.handle(logging.makeLogRecord({**fields, "msg": message, "module": phase, _FACTS: said}))


def facts(**values: Any) -> dict[str, Any]:
    """Return the `extra` of a record that a program shall find as fields of its own."""
    return {_FACTS: values}


def _phase(record: logging.LogRecord) -> str:
    return record.module


def _said(record: logging.LogRecord) -> str:
    return record.getMessage() + str(getattr(record, "again", ""))
