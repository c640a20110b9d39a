"""The help of a command: a page with what a person needs, or all options.

A name stands on a line of its own with its meaning below, so that it is readable on a narrow
terminal. Which options a command shows is a matter of the help alone: every command accepts all of
them, so that the same options can be given to `plan`, `run` and `status`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from toolkit.settings.options import SETTINGS, grouped

_INDENT: Final = "      "
_OF_AGENT: Final = frozenset(
    {"on_drift", "check_interval", "on_exit", "grace_period", "daemonset", "metrics_address"}
)
_OF_SELECTION: Final = frozenset(
    {
        "runtime", "allow_non_kubelet_runtime", "socket", "config", "drop_in_config",
        "drop_in_config_host_path", "host_root", "toolkit_install_dir", "nri_socket", "log_format",
        "debug", "env_file",
    }
)  # fmt: skip
_OF_REVERT: Final = _OF_SELECTION | {
    "executable_path", "config_source", "restart_mode", "reload_timeout", "ignore_unhealthy",
    "restart_budget", "restart_window", "force", "pid_file", "readiness_file", "config_mode",
    "hooks_dir", "hook_filename", "cdi_output_dir", "node_label", "node_condition", "events",
}  # fmt: skip
_ALL: Final = frozenset(row.name for row in SETTINGS)
_SHOWN: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "run": _ALL,
        "plan": _ALL - _OF_AGENT,
        "status": _ALL - _OF_AGENT,
        "diagnose": _ALL - _OF_AGENT,
        "revert": _OF_REVERT,
        "detect": _OF_SELECTION,
    }
)
_COMMON: Final = frozenset(row.name for row in SETTINGS if row.is_common)


def sections(command: str, *, is_full: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield headings and the settings below them that the help of a command shows.

    Without `is_full` these are the few that are often needed, under one heading.
    """
    shown = _SHOWN.get(command, _ALL)
    if not is_full:
        names = tuple(
            row.name for _, rows in grouped() for row in rows if row.name in shown & _COMMON
        )
        yield "Common options", names
        return
    for title, rows in grouped():
        if names := tuple(row.name for row in rows if row.name in shown):
            yield title, names


def paragraph(text: str, width: int) -> str:
    """Return a text in lines that are at most `width` columns wide."""
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)) + "\n"


def entries(records: Iterable[tuple[str, str]], width: int) -> str:
    """Return names and their meanings as text that is at most `width` columns wide."""
    lines: list[str] = []
    for names, meaning in records:
        lines += textwrap.wrap(
            names, width, initial_indent="  ", subsequent_indent=_INDENT, break_on_hyphens=False,
            break_long_words=False,
        )  # fmt: skip
        lines += textwrap.wrap(
            meaning, width, initial_indent=_INDENT, subsequent_indent=_INDENT,
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
    return "\n".join(lines) + "\n"
