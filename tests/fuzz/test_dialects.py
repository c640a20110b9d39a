"""The three dialects from bytes to plan and back: any files on the node, any binary's answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runtimes.model import BinaryResult
from tests.fuzz import nodes, seeds
from tests.fuzz.nodes import Node
from tests.fuzz.strategies import CONTAINERD, CRIO, DOCKER, HOOKS, Files, budget

_TRUE_OR_NOT = st.booleans()
_DEFAULTS = st.sampled_from(["nvidia", "nvidia", None])
_DEEP = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\nconf_dir = "/probe/root"\n'


def _said(texts: Files) -> st.SearchStrategy[BinaryResult]:
    good = texts.map(lambda data: BinaryResult(code=0, out=data.decode(errors="replace"), err=""))
    bad = st.builds(
        BinaryResult,
        code=st.just(1),
        out=st.just(""),
        err=st.sampled_from(["", "\n\n", "no\nyes\n \n"]),
    )
    return st.one_of(good, good, good, good, bad)


def _answers(
    questions: tuple[str, ...], texts: Files
) -> st.SearchStrategy[Mapping[str, BinaryResult]]:
    """Return answers to some of the questions; the rest is answered as a binary does."""
    some = st.dictionaries(st.sampled_from(questions), _said(texts), max_size=len(questions))
    one = st.dictionaries(st.sampled_from(questions), _said(texts), max_size=1)
    none: dict[str, BinaryResult] = {}
    return st.one_of(st.just(none), one, one, some)


def _files(paths: tuple[str, ...], texts: Files) -> st.SearchStrategy[dict[str, bytes]]:
    first = st.fixed_dictionaries({paths[0]: texts}, optional=dict.fromkeys(paths[1:], texts))
    return st.one_of(first, first, st.fixed_dictionaries({}, optional=dict.fromkeys(paths, texts)))


def _nodes(**more: st.SearchStrategy[Any]) -> st.SearchStrategy[Node]:
    return st.builds(
        Node, default=_DEFAULTS, drop_in=_TRUE_OR_NOT, cdi=st.sampled_from([None, True]), **more
    )


_MERGES = st.sampled_from([_DEEP, "version = 2\n"]).map(
    lambda out: {"merge": BinaryResult(code=0, out=out, err="")}
)
_CONTAINERD = _nodes(
    files=_files(nodes.CONTAINERD.paths, CONTAINERD),
    legacy=_TRUE_OR_NOT,
    annotations=st.sampled_from([(), ("cdi.k8s.io/*",)]),
)
_CONTAINERD_ASKED = _nodes(
    files=_files(nodes.CONTAINERD.paths, CONTAINERD),
    binary=st.just(True),  # noqa: FBT003 - a value of a field
    answers=st.builds(
        lambda merges, others: {**others, **merges},
        _MERGES,
        _answers(("default", "merge", "effective", "first schema", "candidate"), CONTAINERD),
    ),
)
_CRIO_FILES = _files(nodes.CRIO.paths, CRIO)
_CRIO = _nodes(
    files=st.builds(
        lambda files, hooks: {**files, **hooks},
        _CRIO_FILES,
        st.fixed_dictionaries({}, optional={nodes.CRIO.wish.hook: HOOKS}),
    ),
    hook_mode=_TRUE_OR_NOT,
)
_CRIO_ASKED = _nodes(
    files=_CRIO_FILES,
    binary=st.just(True),  # noqa: FBT003 - a value of a field
    answers=_answers(("default", "effective", "candidate"), CRIO),
)
_DOCKER = _nodes(
    files=_files(nodes.DOCKER.paths, DOCKER),
    argv=st.lists(
        st.sampled_from(["dockerd", "-D", "--config-file", "--add-runtime=a=b"]), max_size=3
    ).map(tuple),
    answers=st.sampled_from([{}, {"candidate": BinaryResult(code=0, out="", err="")}]),
)


@budget(120)
@given(_CONTAINERD)
def test_containerd_without_a_binary(node: Node) -> None:
    nodes.check(nodes.CONTAINERD, node)


@budget(120)
@given(_CONTAINERD_ASKED)
def test_containerd_with_a_binary_that_says_anything(node: Node) -> None:
    nodes.check(nodes.CONTAINERD, node)


@budget(100)
@given(_CRIO)
def test_crio_without_a_binary(node: Node) -> None:
    nodes.check(nodes.CRIO, node)


@budget(100)
@given(_CRIO_ASKED)
def test_crio_with_a_binary_that_says_anything(node: Node) -> None:
    nodes.check(nodes.CRIO, node)


@budget(200)
@given(_DOCKER)
def test_docker(node: Node) -> None:
    nodes.check(nodes.DOCKER, node)


def test_the_seeds_are_worth_mutating() -> None:
    """Each dialect accepts and changes most of its seeds: else only the readers are tested."""
    kinds = (
        (nodes.CONTAINERD, seeds.CONTAINERD_FILES),
        (nodes.CRIO, seeds.CRIO_FILES),
        (nodes.DOCKER, seeds.DOCKER_FILES),
    )
    for of, files in kinds:
        found = [
            nodes.plan(of, node, node.files)
            for data in files
            for node in [Node(files={of.paths[0]: data})]
        ]
        assert sum(each is not None and not each.is_noop for each in found) * 3 > len(files) * 2
