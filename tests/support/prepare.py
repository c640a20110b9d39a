"""Make what the tests of some tiers need, in the cache, before their time is measured.

`python -m tests.support.prepare TIER...` makes root file systems and builds; what exists is left
alone. What cannot be made is said, and its tests are skipped. Without `--whole` only what smoke
tests need is made, which takes no Go.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from tests.support import (
    api_schemas,
    binaries,
    cluster,
    crio,
    distros,
    helm,
    images,
    kwok,
    nodes,
    programs,
    promtool,
    versions,
)
from tools import packages

_Part = tuple[str, Callable[[], object]]
_BOOTED: Final = frozenset({"conformance", "nodes", "cluster"})


def main(words: Sequence[str] | None = None) -> None:
    """Make everything that the tiers need, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.prepare")
    parser.add_argument("tiers", nargs="*", default=sorted(_BOOTED))
    parser.add_argument(
        "--whole", action="store_true", help="what all tests need, and not the smoke tests"
    )
    asked = parser.parse_args(words)
    parts = dict(_parts(set(asked.tiers), whole=asked.whole))
    if not parts:
        return
    _say(f"cache: {nodes.cache()}")
    for what, make in parts.items():
        _make(what, make)


def _parts(tiers: set[str], *, whole: bool) -> Iterator[_Part]:
    """Yield what is to be made, by name; the same may come twice."""
    if tiers & _BOOTED:
        if reason := nodes.why_not():
            _say(f"no nodes: {reason}")
        else:
            yield from ((f"node {suite}", partial(nodes.image, suite)) for suite in nodes.SUITES)
        lines = binaries.LINES if whole else binaries.SUITES
        yield from ((f"containerd {line}", partial(binaries.find, line)) for line in lines)
    if not whole:
        return
    if tiers & _BOOTED:
        yield "the compiler of the static programs", programs.wheels
        yield "the static wrapper of this checkout", programs.install
        yield from ((name, partial(binaries.toolkit, name)) for name in binaries.TOOLKIT_PROGRAMS)
    if "nodes" in tiers:
        yield "CRI-O", _crio
        yield "the stand-in of k3s", distros.agent
    if "cluster" in tiers:
        yield from ((f"helm {major}", partial(helm.find, major)) for major in helm.MAJORS)
        yield "promtool", promtool.find
        yield f"Kubernetes {cluster.VERSION}", cluster.programs
        yield "the schemas of Kubernetes' APIs", api_schemas.prepare
        yield f"kwok {versions.KWOK}", kwok.find
        yield "node trixie for packages", partial(nodes.image, "trixie", nodes.FOR_PACKAGES)
        yield "nfpm", packages.nfpm
    if tiers & {"nodes", "cluster"}:
        yield "the image's base", images.base
        yield "the image's wheels", images.wheels


def _crio() -> object:
    if reason := crio.why_not():
        raise RuntimeError(reason)
    return None


def _make(what: str, make: Callable[[], object]) -> None:
    began = time.monotonic()
    try:
        make()
    except Exception as error:  # noqa: BLE001
        # The tests decide what it means.
        _say(f"{what}: not to be had: {error}")
    else:
        _say(f"{what}: there ({time.monotonic() - began:.1f} s)")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
