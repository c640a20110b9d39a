"""The programs that the handlers run: their directory, and those that a --no-install node lacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from runtimes.model import Desired
from toolkit.errors import UsageProblem
from toolkit.node import trust
from toolkit.node.host import Host
from toolkit.settings.resolve import Settings

BINARIES: Final = MappingProxyType(
    {
        "": "nvidia-container-runtime",
        "nvidia-cdi": "nvidia-container-runtime.cdi",
        "nvidia-legacy": "nvidia-container-runtime.legacy",
    }
)
"""The program of each handler. The name of the main handler, here empty, is a setting."""


def directory(settings: Settings, host: Host, install_dir: Path) -> str:
    """Return the node path of the directory that contains the programs of the handlers."""
    path = settings.toolkit_bin_dir
    return os.path.normpath(path) if path else f"{host.node(install_dir)}/toolkit"


def absent(settings: Settings, host: Host, install_dir: Path) -> dict[str, str]:
    """Return the handlers, apart from the main one, whose program the node lacks, with its path.

    The Debian packages ship `.cdi` and `.legacy` separately, so a node without them is valid: it
    only gets the main handler.
    """
    if not settings.no_install:
        return {}
    toolkit = directory(settings, host, install_dir)
    paths = {handler: f"{toolkit}/{program}" for handler, program in BINARIES.items() if handler}
    return {handler: path for handler, path in paths.items() if host.executable(path) is None}


def lacking(settings: Settings, host: Host, desired: Desired) -> UsageProblem | None:
    """Return an error if --no-install is given and the node lacks a program; else None.

    The programs are those of the main handler and of the default handler, or the hook.
    """
    if not settings.no_install or settings.no_runtime_config:
        return None
    default = BINARIES.get(desired.default or "", BINARIES[""])
    needed = {
        f"{os.path.dirname(desired.hook_binary)}/{default}": "the default handler runs",
        desired.handlers[0].binary: "the handlers run",
    }
    if desired.hook_mode:
        needed = {desired.hook_binary: "the handlers run"}
    for program, what in needed.items():
        if host.executable(program) is None:
            return UsageProblem(
                [f"{program}, which {what}, was not found on the node"],
                hint=(
                    "install it there, name its directory with --toolkit-bin-dir (for example"
                    " /usr/bin), or leave out --no-install"
                ),
            )
    return _distrusted(host, [*needed, *(handler.binary for handler in desired.handlers)])


def _distrusted(host: Host, paths: Sequence[str]) -> UsageProblem | None:
    problems = [problem for path in paths if (problem := trust.place_problem(path, host.root))]
    if not problems:
        return None
    return UsageProblem(
        [f"{problem}, and containers run it as root" for problem in dict.fromkeys(problems)],
        hint="give it to root (chown root:root, chmod go-w), or leave out --no-install",
    )
