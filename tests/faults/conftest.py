"""A site for the tests of this package that need one node."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.faults.calls import Call
from tests.faults.site import Site, sites
from tests.faults.stories import Library


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A site and what stories on it begin with."""

    site: Site
    library: Library

    def options(self, **more: str) -> list[str]:
        return self.library.options(merging=False, **more)

    def begin(self, template: str | None = None) -> None:
        """Put the site back to a node without us, or to another template."""
        name = template or self.library.fresh(merging=False)
        self.site.reset(self.library.template(name), {})

    def call(self, name: str, about: str) -> Call:
        """Return an install's first call from here on with a name and paths that match."""
        template = self.site.home / "before-the-listing"
        self.site.copy_to(template)
        done, calls = self.site.listed(["-n", *self.options()])
        assert done.code == 0, done
        self.site.reset(template, {})
        shutil.rmtree(template)
        return next(c for c in calls if c.name == name and re.search(about, c.about))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with sites(1) as (site,):
        shelf = site.home / "shelf"
        shelf.mkdir()
        yield Bench(site=site, library=Library(site, shelf))
