"""Boot a real node for a test, or raise Unavailable with the reason why this machine cannot.

Apart from the fixtures, whose module pytest must be the first to import.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.support import binaries, nodes, real, versions
from tests.support.availability import Unavailable
from tests.support.nodes import Node


@contextmanager
def booted(
    suite: str,
    about: str = "",
    *,
    units: Sequence[str] = ("containerd",),
    packages: Sequence[str] = (),
) -> Iterator[Node]:
    """Boot a node, and note that its containerd was used. Raises Unavailable if there can be none.

    `suite` may also be a release line of containerd that no suite has, for example 2.4: it is put
    on a node of the newest suite. `packages` are Debian packages that it has besides.
    """
    line = suite if suite in versions.CONTAINERD else ""
    if reason := nodes.why_not():
        raise Unavailable(reason)
    with nodes.boot(nodes.SUITES[-1] if line else suite, units=units, packages=packages) as node:
        if line:
            binaries.put_on(node, line)
        version = nodes.run(node, ("containerd", "--version")).stdout.split()[2]
        real.USED.add(f"containerd {version}{about and ' '}{about} on a booted {node.suite} node")
        yield node
