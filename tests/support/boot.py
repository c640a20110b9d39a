"""Boot a real node for a test, or skip with the reason why this machine cannot.

Apart from the fixtures, whose module pytest must be the first to import.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.support import nodes, real
from tests.support.nodes import Node


@contextmanager
def booted(
    suite: str, about: str = "", *, units: Sequence[str] = ("containerd",)
) -> Iterator[Node]:
    """Boot a node, or skip if that is impossible; note that its containerd was used for it."""
    if reason := nodes.why_not():
        pytest.skip(reason)
    with nodes.boot(suite, units=units) as node:
        version = nodes.run(node, ("containerd", "--version")).stdout.split()[2]
        real.USED.add(f"containerd {version}{about and ' '}{about} on a booted {suite} node")
        yield node
