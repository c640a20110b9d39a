"""The operations that are disturbed: the state before, the request, and the required result."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tests.faults import trees
from tests.faults.calls import Fault
from tests.faults.site import Run, Site
from tests.faults.trees import Tree
from tests.support import artifacts, binaries, fake_node
from tests.support.availability import Unavailable
from tests.support.fake_node import Node

MERGING: Final = b"""\
# For a containerd that merges: our handlers go into a drop-in, which is imported here.
version = 3

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "registry.k8s.io/pause:3.10"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = true
"""
THEIRS: Final = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
BinaryName = "{toolkit}/nvidia-container-runtime"
SystemdCgroup = true
"""
"""What an earlier installer leaves in a config, whose directory stands at the place of ours."""
CLASS: Final = "gpu"
RELUCTANCE: Final = "0.4"
_PATIENCE: Final = "5"
_WELL: Final[Mapping[str, Any]] = {}
_JUDGE: Final = "2.3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """An operation. Trees are what lies on the node.

    `start` is the template that it begins on, `argv` what is run, with a runtime of the given
    `manner`, and `code` how that ends undisturbed. `old` is there before; `new` is there after, or
    would be, had the runtime taken it up. `other` is what somebody may run in place of `argv` once
    that was disturbed, which leads to `aside`. `revert` leads to `original` from anywhere. `before`
    are kills that come first: then `argv` is the recovery. In a story that `is_brief` the files of
    a version are written undisturbed.
    """

    name: str
    start: Path
    argv: tuple[str, ...]
    old: Tree
    new: Tree
    original: Tree
    other: tuple[str, ...]
    aside: Tree
    revert: tuple[str, ...]
    code: int = 0
    manner: Mapping[str, Any] = field(default_factory=dict)
    before: tuple[Fault, ...] = ()
    is_brief: bool = False

    @property
    def wanted(self) -> Tree:
        """Return what is there once `argv` came to its own end."""
        return self.new if self.code == 0 else self.old

    @property
    def family(self) -> str:
        """Return the name of what states are the same of: of an operation and of its recovery."""
        return self.name.partition(",")[0]


def judge() -> str | None:
    """Return a real containerd that merges; None where there is none."""
    try:
        return str(binaries.find(_JUDGE).path)
    except Unavailable:
        return None


class Library:
    """Makes stories on one site: what one leads to is where another one starts."""

    def __init__(self, site: Site, shelf: Path) -> None:
        self.site = site
        self.shelf = shelf
        self.made: dict[str, Path] = {}
        self.judge = judge()

    def options(self, *, merging: bool, **more: str) -> list[str]:
        """Return the program's options; with `merging` a real containerd judges."""
        asked = {"restart_budget": "0", "reload_timeout": _PATIENCE, **more}
        if merging and self.judge is not None:
            asked |= {"config_source": "command,file", "executable_path": self.judge}
        return self.site.node.options(**asked)

    def template(self, name: str) -> Path:
        return self.shelf / name

    def tree(self, name: str) -> Tree:
        return trees.read(self.template(name))

    def fresh(self, *, merging: bool) -> str:
        """Make a node without us."""
        name = "fresh-merging" if merging else "fresh"
        if name not in self.made:
            config = MERGING if merging and self.judge is not None else fake_node.KUBEADM
            node = fake_node.make_node(self.template(name), config)
            node.pid_file.touch(mode=0o600)
            if not merging:  # with and without hashes that the source names
                artifacts.list_hashes(node.source)
            self.made[name] = node.root
        return name

    def occupied(self) -> str:
        """Make a node where another installer was."""
        name = "occupied"
        if name not in self.made:
            _copy(self.template(self.fresh(merging=False)), self.template(name))
            node = Node(root=self.template(name))
            with node.config.open("ab") as stream:
                stream.write(THEIRS.format(toolkit=self.site.node.toolkit).encode())
            node.toolkit.mkdir(parents=True)
            for program in fake_node.PROGRAMS:
                fake_node.write_program(node.toolkit / program, f"#!/bin/sh\n# theirs: {program}\n")
            self.made[name] = node.root
        return name

    def after(self, name: str, start: str, *argv: str, manner: Mapping[str, Any] = _WELL) -> str:
        """Make the node that a run leaves behind."""
        if name not in self.made:
            self.site.reset(self.template(start), manner)
            done = self.site.run(argv)
            assert done.code == 0, done
            self.keep(name)
        return name

    def renewed(self, start: str) -> str:
        """Make a node whose artifacts are of the next release."""
        name = f"{start}-renewed"
        if name not in self.made:
            _copy(self.template(start), self.template(name))
            node = Node(root=self.template(name))
            shutil.rmtree(node.source)
            fake_node.make_artifacts(node.source, release="2")
            artifacts.list_hashes(node.source)
            self.made[name] = node.root
        return name

    def keep(self, name: str) -> None:
        """Keep what lies on the site as a template."""
        kept = self.template(name)
        self.site.copy_to(kept)
        self.made[name] = kept

    def story(self, name: str, start: str, end: str, *, merging: bool, **more: Any) -> Story:
        """Tell a story of an install; what is not said in `more` follows from that."""
        options = self.options(merging=merging)
        said = {
            "argv": ("-n", *options),
            "original": self.tree(start),
            "other": ("revert", *options),
            "aside": self.tree(start),
            "revert": ("revert", *options),
            **more,
        }
        return Story(
            name=name, start=self.template(start), old=self.tree(start), new=self.tree(end), **said
        )


def _copy(one: Path, other: Path) -> None:
    subprocess.run(("cp", "-a", str(one), str(other)), check=True)


# --- the stories --------------------------------------------------------------------------------


def install(of: Library) -> Story:
    start = of.fresh(merging=False)
    end = of.after("installed", start, "-n", *of.options(merging=False))
    return of.story("install", start, end, merging=False)


def drop_in(of: Library) -> Story:
    """An install that makes one file and changes another."""
    start = of.fresh(merging=True)
    end = of.after("installed-merging", start, "-n", *of.options(merging=True))
    return of.story("drop-in", start, end, merging=True, is_brief=True)


def upgrade(of: Library) -> Story:
    return _upgrade(of, "upgrade")


def _upgrade(of: Library, name: str, **more: Any) -> Story:
    fresh = of.fresh(merging=False)
    installed = of.after("installed", fresh, "-n", *of.options(merging=False))
    start = of.renewed(installed)
    argv = ("-n", *of.options(merging=False, runtime_class=CLASS))
    end = of.after("upgraded", start, *argv)
    original = of.tree(of.renewed(fresh))
    return of.story(
        name, start, end, merging=False, argv=argv, original=original, aside=original, **more
    )


def take_over(of: Library) -> Story:
    start = of.occupied()
    end = of.after("taken-over", start, "-n", *of.options(merging=False))
    return of.story("take-over", start, end, merging=False)


def revert(of: Library) -> Story:
    end = of.fresh(merging=True)
    start = of.after("installed-merging", end, "-n", *of.options(merging=True))
    return _revert(of, "revert", start, end, merging=True)


def give_back(of: Library) -> Story:
    end = of.occupied()
    start = of.after("taken-over", end, "-n", *of.options(merging=False))
    return _revert(of, "give-back", start, end, merging=False)


def _revert(of: Library, name: str, start: str, end: str, *, merging: bool) -> Story:
    options = of.options(merging=merging)
    return of.story(
        name, start, end, merging=merging, argv=("revert", *options), other=("-n", *options),
        original=of.tree(end), aside=of.tree(start),
    )  # fmt: skip


def refused(of: Library) -> Story:
    """An install that the runtime does not take up."""
    start = of.fresh(merging=False)
    end = of.after("installed", start, "-n", *of.options(merging=False))
    argv = ("-n", *of.options(merging=False, reload_timeout=RELUCTANCE))
    manner = {"sick_if": "nvidia-cdi", "sick": {"handlers": ["runc"]}}
    return of.story(
        "refused install",
        start,
        end,
        merging=False,
        argv=argv,
        code=6,
        manner=manner,
        is_brief=True,
    )


def refused_upgrade(of: Library) -> Story:
    """An upgrade that the runtime does not take up."""
    known = ["runc", "nvidia", "nvidia-cdi", "nvidia-legacy"]
    manner = {"sick_if": f"runtimes[.]{CLASS}", "sick": {"handlers": known}}
    told = _upgrade(of, "refused upgrade", code=6, manner=manner, is_brief=True)
    argv = tuple(
        "--reload-timeout=" + RELUCTANCE if "reload-timeout" in w else w for w in told.argv
    )
    return replace(told, argv=argv)


def refused_revert(of: Library) -> Story:
    """A revert after which the runtime lacks what it had before us."""
    end = of.fresh(merging=False)
    start = of.after("installed", end, "-n", *of.options(merging=False))
    argv = ("revert", *of.options(merging=False, reload_timeout=RELUCTANCE))
    manner = {"sick_if": r"\A(?!(?s:.)*nvidia-cdi)", "sick": {"handlers": ["nvidia"]}}
    told = _revert(of, "refused revert", start, end, merging=False)
    return replace(told, argv=argv, code=6, manner=manner, is_brief=True)


def recovery(story: Story, fault: Fault) -> Story:
    """Return the run after a kill as a story of its own."""
    return replace(
        story, name=f"{story.name}, recovered from {fault}", before=(*story.before, fault)
    )


def begin(site: Site, story: Story) -> None:
    """Bring a site to where a story begins."""
    site.reset(story.start, story.manner)
    for fault in story.before:
        killed: Run = site.run(story.argv, fault)
        assert killed.was_killed, killed
        site.settle()


STORIES: Final = {
    "install": install,
    "drop-in": drop_in,
    "upgrade": upgrade,
    "revert": revert,
    "take-over": take_over,
    "give-back": give_back,
    "refused install": refused,
    "refused upgrade": refused_upgrade,
    "refused revert": refused_revert,
}
