"""The results as Markdown, for the page about roll-outs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.scale.phases import Phase, Storm
from tests.support import api_requests

_CLIENTS = ("controllers", "scheduler", "kubelets", "helm", api_requests.PROGRAM)
_PHASES = (
    "phase",
    "duration",
    "most nodes not ready",
    "requests per node",
    "objects written per node",
    "most requests in a second",
    "API server: memory, processor",
)


def phases(found: Sequence[Phase], count: int) -> str:
    """Return two tables for a fleet of `count` nodes: what each phase took, and who asked."""
    first = [
        (
            each.name,
            _duration(each.seconds),
            str(each.unavailable),
            f"{sum(each.requests.values()) / count:.1f}",
            f"{sum(each.written.values()) / count:.1f}",
            str(each.busiest),
            f"{each.memory:.0f} MB, {each.cpu:.0f} s",
        )
        for each in found
    ]
    second = [
        (
            each.name,
            *(f"{each.requests.get(client, 0) / count:.2f}" for client in _CLIENTS),
            f"{_others(each) / count:.2f}",
        )
        for each in found
    ]
    return "\n".join(
        [
            *_table(_PHASES, first),
            "",
            "Who sends the requests, per node:",
            "",
            *_table(("phase", *_CLIENTS, "others"), second),
        ]
    )


def storms(found: Sequence[Storm]) -> str:
    """Return a table of the lookups."""
    header = (
        "pods that look up their DaemonSet",
        "got an answer",
        "requests",
        "most in a second",
        "median, slowest",
    )
    rows = [
        (
            f"{each.pods} {each.name}",
            f"{each.pods - each.states.get('unknown', 0)}",
            str(each.requests),
            str(each.busiest),
            f"{each.median:.2f} s, {each.slowest:.2f} s",
        )
        for each in found
    ]
    return "\n".join(_table(header, rows))


def _others(phase: Phase) -> int:
    return sum(number for client, number in phase.requests.items() if client not in _CLIENTS)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    align = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, align, *rows)]
