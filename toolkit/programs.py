"""The programs that handlers run: where they lie, and whether a node that brings its own has them."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import Final

from runtimes.model import Desired
from toolkit.errors import UsageProblem
from toolkit.host import Host
from toolkit.settings import Settings

BINARIES: Final = MappingProxyType(
    {
        "": "nvidia-container-runtime",
        "nvidia-cdi": "nvidia-container-runtime.cdi",
        "nvidia-legacy": "nvidia-container-runtime.legacy",
    }
)
"""What each handler runs; the first one's name is a setting."""


def directory(settings: Settings, host: Host, install_dir: Path) -> str:
    """Return the directory, as the node names it, that holds what the handlers run."""
    given = settings.text("toolkit_bin_dir")
    return os.path.normpath(given) if given else f"{host.node(install_dir)}/toolkit"


def absent(settings: Settings, host: Host, install_dir: Path) -> dict[str, str]:
    """Return what the node's own toolkit lacks for the handlers beside the first: their names and paths.

    Packages for Debian bring `.cdi` and `.legacy` apart from the rest, so a node without them is no
    broken one: it has one handler.
    """
    if not settings.flag("no_install"):
        return {}
    toolkit = directory(settings, host, install_dir)
    paths = {handler: f"{toolkit}/{program}" for handler, program in BINARIES.items() if handler}
    return {handler: path for handler, path in paths.items() if host.executable(path) is None}


def lacking(settings: Settings, host: Host, desired: Desired) -> UsageProblem | None:
    """Return why a toolkit that we do not install cannot be made use of; None where it can, or need not."""
    if not settings.flag("no_install") or settings.flag("no_runtime_config"):
        return None
    program = desired.hook_binary if desired.hook_mode else desired.handlers[0].binary
    if host.executable(program) is not None:
        return None
    return UsageProblem(
        [f"{program}, which containers would be started through, is no program on the node"],
        hint="install it there, name its directory with --toolkit-bin-dir (/usr/bin, say),"
        " or leave out --no-install",
    )
