"""Make what the tests of real runtimes need, in the cache, before their time is measured.

`python -m tests.prepare` makes root file systems and builds; what exists is left
alone, and what cannot be made is said: its tests will be skipped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import pytest

from tests import binaries, cluster, crio, distros, helm, images, nodes


def main() -> None:
    """Make everything, one after the other."""
    _say(f"cache: {nodes.cache()}")
    if reason := nodes.why_not():
        _say(f"no nodes: {reason}")
    else:
        for suite in nodes.SUITES:
            _make(f"node {suite}", partial(nodes.image, suite))
    for line in binaries.LINES:
        _make(f"containerd {line}", partial(binaries.find, line))
    for program in binaries.TOOLKIT_PROGRAMS:
        _make(program, partial(binaries.toolkit, program))
    _make("CRI-O", _crio)
    _make("the stand-in of k3s", distros.agent)
    _make("helm", helm.find)
    _make(f"Kubernetes {cluster.VERSION}", cluster.programs)
    _make("the image's base", images.base)
    _make("the image's wheels", images.wheels)


def _crio() -> object:
    if reason := crio.why_not():
        raise RuntimeError(reason)
    return None


def _make(what: str, make: Callable[[], object]) -> None:
    began = time.monotonic()
    try:
        make()
    except (Exception, pytest.skip.Exception) as error:  # noqa: BLE001  # the tests decide what it means
        _say(f"{what}: not to be had: {error}")
    else:
        _say(f"{what}: there ({time.monotonic() - began:.1f} s)")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
