"""What the node's own binary said about itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from runtimes import edits, tomldoc
from runtimes.model import EMPTY, Observation, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the node's binary said about itself; None where it was not asked or did not answer."""

    newest: int | None
    merges: bool | None
    effective: Tree | None
    reads_first_schema: bool | None = None


def told(seen: Observation) -> Facts:
    """Return what the answers so far say about the binary."""
    default = _answer_tree(seen, "default")
    probe = _answer_tree(seen, "merge")
    merges = None
    if probe is not None:
        # The probe's root names a CNI directory and its drop-in only a handler.
        merges = any("/probe/root" in str(item) for _, item in edits.leaves(probe))
    newest = (default or EMPTY).get("version")
    first = _answer_tree(seen, "first schema")
    return Facts(
        newest=newest if type(newest) is int and newest > 0 else None,
        merges=merges,
        effective=_answer_tree(seen, "effective"),
        reads_first_schema=None if first is None else "/probe" in str(first),
    )


def _answer_tree(seen: Observation, question: str) -> Tree | None:
    answer = seen.answers.get(question)
    return parsed(answer.out, question) if answer is not None and answer.ok else None


@lru_cache(maxsize=16)
def parsed(out: str, question: str) -> Tree:
    """Return an answer as plain values; many parts of the plan read the same one."""
    return MappingProxyType(tomldoc.tree(out.encode(), f"containerd's answer ({question})"))
