"""What to raise where something real, which a test needs, is not to be had on this machine."""

from __future__ import annotations


class Unavailable(Exception):
    """A program, a root file system or a right that this machine lacks; the message says why.

    The test that needs it is skipped (tests/conftest.py). Benchmarks and tools go on without it,
    or end with the message.
    """
