"""One line per event on stderr: the story. The answer goes to stdout and is not logged."""

from __future__ import annotations

import logging
import sys
from typing import Final

LOGGER: Final = logging.getLogger("nvidia-toolkit")


def start(*, debug: bool) -> None:
    """Send the story to stderr, once per process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname).1s %(message)s"))
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.DEBUG if debug else logging.INFO)
