"""Nodes made of bytes: files as a dict, a binary that says anything, and the plan for them."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Final

import tomlkit

from runtimes import edits, globs, planner
from runtimes.adapter import Adapter
from runtimes.containerd import ADAPTER as containerd
from runtimes.crio import ADAPTER as crio
from runtimes.docker import ADAPTER as docker
from runtimes.errors import ConfigError, UnsupportedSetup
from runtimes.model import (
    BinaryQuery,
    BinaryResult,
    ConfigPlan,
    Desired,
    Edit,
    FileChange,
    Handler,
    Key,
    Observation,
    Ownership,
    RuntimeName,
    fingerprint,
)
from tests.fuzz import laws
from toolkit.artifacts import toolkit_config, wrappers

Files = Mapping[str, bytes]
Ask = Callable[[BinaryQuery], BinaryResult]
_ROUNDS: Final = 50
_TOOLKIT: Final = "/usr/local/nvidia/toolkit"
HANDLERS: Final = (
    Handler(name="nvidia", binary=f"{_TOOLKIT}/nvidia-container-runtime"),
    Handler(name="nvidia-cdi", binary=f"{_TOOLKIT}/nvidia-container-runtime.cdi"),
    Handler(name="nvidia-legacy", binary=f"{_TOOLKIT}/nvidia-container-runtime.legacy"),
)
_CRI: Final = ("cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")
_OURS: Final = tuple(handler.name for handler in HANDLERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A dialect, how its files are read, the wish, where files lie, and the changeable keys."""

    adapter: Adapter
    read: laws.Read
    wish: Desired
    paths: tuple[str, ...]
    may_change: tuple[Key, ...]
    comment: bytes


CONTAINERD: Final = Dialect(
    adapter=containerd,
    read=laws.read_toml,
    wish=Desired(
        runtime=RuntimeName.CONTAINERD,
        config="/etc/containerd/config.toml",
        drop_in="/etc/containerd/conf.d/99-nvidia.toml",
        handlers=HANDLERS,
        default="nvidia",
        systemd_cgroup=True,
    ),
    paths=(
        "/etc/containerd/config.toml",
        "/etc/containerd/conf.d/99-nvidia.toml",
        "/etc/containerd/conf.d/10-other.toml",
    ),
    may_change=(
        ("version",),
        ("imports",),
        *(("plugins", cri, "enable_cdi") for cri in _CRI),
        *(
            ("plugins", cri, "containerd", key)
            for cri in _CRI
            for key in ("default_runtime_name", "default_runtime")
        ),
        *(
            ("plugins", cri, "containerd", "runtimes", name)
            for cri in _CRI
            for name in (*_OURS, "runc")
        ),
    ),
    comment=b"\n# mine\n",
)
CRIO: Final = Dialect(
    adapter=crio,
    read=laws.read_toml,
    wish=Desired(
        runtime=RuntimeName.CRIO,
        config="/etc/crio/crio.conf",
        drop_in="/etc/crio/crio.conf.d/99-nvidia.toml",
        directory="/etc/crio/crio.conf.d",
        hook="/usr/share/containers/oci/hooks.d/oci-nvidia-hook.json",
        hook_binary=f"{_TOOLKIT}/nvidia-container-runtime-hook",
        handlers=HANDLERS,
        default="nvidia",
    ),
    paths=(
        "/etc/crio/crio.conf",
        "/etc/crio/crio.conf.d/99-nvidia.toml",
        "/etc/crio/crio.conf.d/10-crio.conf",
        "/etc/crio/crio.conf.d/sub/é\u2028",
    ),
    may_change=(
        ("crio", "runtime", "default_runtime"),
        *(("crio", "runtime", "runtimes", name) for name in _OURS),
    ),
    comment=b"\n# mine\n",
)
DOCKER: Final = Dialect(
    adapter=docker,
    read=laws.read_json,
    wish=Desired(
        runtime=RuntimeName.DOCKER,
        config="/etc/docker/daemon.json",
        drop_in="",
        handlers=HANDLERS,
        default="nvidia",
    ),
    paths=("/etc/docker/daemon.json",),
    may_change=(
        ("default-runtime",),
        ("features", "cdi"),
        *(("runtimes", name) for name in _OURS),
    ),
    comment=b"\n ",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What is on a node, what is wanted of it, and what its binary says."""

    files: Mapping[str, bytes]
    default: str | None = "nvidia"
    drop_in: bool = True
    cdi: bool | None = None
    legacy: bool = False
    annotations: tuple[str, ...] = ()
    hook_mode: bool = False
    argv: tuple[str, ...] = ()
    answers: Mapping[str, BinaryResult] = field(default_factory=dict)
    """By the question's name."""
    binary: bool = False

    def wish(self, of: Dialect) -> Desired:
        return replace(
            of.wish,
            default=self.default,
            drop_in=of.wish.drop_in if self.drop_in else "",
            enable_cdi=self.cdi,
            legacy=self.legacy,
            annotations=self.annotations,
            hook_mode=self.hook_mode,
        )

    def ask(self, question: BinaryQuery) -> BinaryResult:
        """Answer as was drawn; else as a binary does that merges all staged files deeply."""
        return self.answers.get(question.name) or _merged(question)


def _merged(question: BinaryQuery) -> BinaryResult:
    directories = [data for each in question.directories for _, data in sorted(each.items())]
    tree: dict[str, Any] = {} if question.files else {"version": 3}
    try:
        for data in (*question.files, *directories):
            tree = laws.overlaid(tree, laws.read_toml(data))
        return BinaryResult(code=0, out=tomlkit.dumps(tree), err="")
    except (ValueError, RecursionError) as error:
        return BinaryResult(code=1, out="", err=str(error))


def observe(
    of: Dialect, node: Node, files: Files, owned: tuple[Ownership, ...] = ()
) -> Observation:
    """Look at whatever the adapter wants to have looked at, among some files only."""
    wish = node.wish(of)
    seen = Observation(
        binary="/usr/bin/x" if node.binary or node.answers else None, argv=node.argv, owned=owned
    )
    seen = replace(seen, files={each.path: files.get(each.path) for each in owned})
    for _ in range(_ROUNDS):
        look = of.adapter.required_files(wish, seen)
        if look.files or look.globs:
            assert not any("\0" in path or not path for path in (*look.files, *look.globs)), look
            seen = replace(
                seen,
                files={**seen.files, **{path: files.get(path) for path in look.files}},
                globs={
                    **seen.globs,
                    **{pattern: _globbed(pattern, files) for pattern in look.globs},
                },
            )
            continue
        questions = of.adapter.queries(wish, seen) if seen.binary else ()
        if not questions:
            return seen
        seen = replace(seen, results={**seen.results, **{q.name: node.ask(q) for q in questions}})
    raise AssertionError("the adapter never has enough")


def _globbed(pattern: str, files: Files) -> tuple[str, ...]:
    if pattern.endswith("/**"):
        inside = [p for p in files if PurePosixPath(p).is_relative_to(pattern.removesuffix("/**"))]
        return tuple(sorted(inside, key=lambda p: PurePosixPath(p).parts))
    there = (*files, *{posixpath.dirname(path) for path in files})
    return tuple(sorted(path for path in there if globs.matches(pattern, path)))


def plan(
    of: Dialect, node: Node, files: Files, owned: tuple[Ownership, ...] = ()
) -> ConfigPlan | None:
    """Return the plan as the program makes it, or None where the node is refused."""
    wish = node.wish(of)
    with laws.bounded():
        try:
            seen = observe(of, node, files, owned)
            _told(of, wish, seen)
            found = planner.plan(of.adapter, wish, seen)
            question = (
                None if found.is_noop else planner.candidate_query(of.adapter, wish, seen, found)
            )
            if question is not None and seen.binary:
                planner.check(of.adapter, wish, seen, node.ask(question))
        except (ConfigError, UnsupportedSetup):
            return None
    return found


def _told(of: Dialect, wish: Desired, seen: Observation) -> None:
    """Have the adapter say what else it says of the files. Raises NotUnderstood."""
    of.adapter.effective(wish, seen)
    of.adapter.defined(wish, seen.files)
    of.adapter.task_files(wish, seen)
    of.adapter.programs(wish, seen)


def removal(
    of: Dialect, node: Node, files: Files, owned: tuple[Ownership, ...]
) -> ConfigPlan | None:
    """Return the plan that takes everything back, or None where the node is refused."""
    with laws.bounded():
        try:
            return planner.removal(of.adapter, observe(of, node, files, owned))
        except ConfigError:
            return None


def check(of: Dialect, node: Node) -> None:
    """Check all laws of a plan on a node."""
    found = plan(of, node, node.files)
    if found is None:
        return
    for change in found.changes:
        if change.path != of.wish.hook:
            _polite(of, node, change)
            laws.remembered(change.edits)
    runnable(found)
    files = after(node.files, found)
    owned = tuple(_owned(change) for change in found.changes)
    again = plan(of, node, files, owned)
    assert again is not None, "the second plan is refused"
    assert again.is_noop, f"the second plan: {again}"
    back = removal(of, node, files, owned)
    if back is None:
        assert all(each.path in files for each in owned), "what was written cannot be taken back"
        return
    assert after(files, back) == node.files, "the removal gives something else"
    _humble(of, node, files, owned)


def _polite(of: Dialect, node: Node, change: FileChange) -> None:
    """Check that a change is one of our keys only."""
    if change.after is None:
        return
    before, now = of.read(change.before or b""), of.read(change.after)
    rest = laws.without(before, of.may_change), laws.without(now, of.may_change)
    assert laws.alike(*rest), f"{change.path}: other keys changed"
    names = {name: item for name, item in before.items() if name not in now}
    assert not laws.solid(names), f"{change.path}: {names} is gone"
    if of.adapter is containerd:
        old, new = before.get("imports", []), now.get("imports", [])
        assert new[: len(old)] == old, f"{change.path}: an import is gone"
    if of.adapter is docker and node.default:
        assert now["default-runtime"] == node.default


def runnable(found: ConfigPlan) -> None:
    """Check that wrappers and the toolkit's configuration can name the binaries that run."""
    for binary in found.low_level:
        wrappers.render(wrappers.describe("nvidia-container-runtime", _TOOLKIT, low_level=binary))
        assert binary.replace("\0", ""), "there is no binary"
        assert "\0" not in binary, f"{binary!r} is no binary"
    asked: dict[Key, object] = {("nvidia-container-runtime", "runtimes"): list(found.low_level)}
    toolkit_config.configuration(None, "/x/config.toml", asked)


def _humble(of: Dialect, node: Node, files: Files, owned: tuple[Ownership, ...]) -> None:
    """Check that a file which somebody edited since keeps that, and loses what is ours."""
    edited = dict(files)
    for each in owned:
        if each.path in files and each.path != of.wish.hook and each.edits:
            edited[each.path] = files[each.path] + of.comment
    back = removal(of, node, edited, owned)
    if back is None:
        return
    left = after(edited, back)
    for each in owned:
        if each.edits:
            was, now = of.read(each.original or b""), of.read(left.get(each.path, b""))
            assert laws.alike(laws.solid(now), laws.solid(was)), f"{each.path}: {back.stayed}"


def after(files: Files, found: ConfigPlan) -> dict[str, bytes]:
    """Return the files as a plan leaves them."""
    for change in found.changes:
        assert files.get(change.path) == change.before, (
            f"{change.path}: the plan is about other bytes"
        )
    result = {**files, **{change.path: change.after for change in found.changes}}
    return {path: data for path, data in result.items() if data is not None}


def _owned(change: FileChange) -> Ownership:
    return Ownership(
        path=change.path,
        original=change.before,
        written=(fingerprint(change.after),),
        edits=change.edits,
    )


def taken_back(of: Dialect, files: Sequence[bytes], remembered: Sequence[Edit]) -> None:
    """Take edits of any record out of any file: words, or another file that can be read."""
    path = of.wish.config
    for data in files:
        owned = Ownership(path=path, original=None, written=(), edits=tuple(remembered))
        with laws.bounded():
            try:
                left, _ = edits.without(of.adapter.form, owned, data)
            except ConfigError:
                continue
        if left is not None:
            of.read(left)
