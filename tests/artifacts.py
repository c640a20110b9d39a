"""Stand-ins for the toolkit's files: programs that say that they ran, then are the low-level runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Final

PROGRAMS: Final = (
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime.legacy",
    "nvidia-container-runtime-hook",
    "nvidia-container-cli",
    "nvidia-ctk",
    "nvidia-cdi-hook",
)
LIBRARIES: Final = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")
RAN: Final = "/run/nvidia/ran"
"""Where a stand-in notes that it ran, on the node."""
_STAND_IN: Final = f'#!/bin/sh\necho "${{0##*/}} $*" >> {RAN}\nexec runc "$@"\n'


def make(root: Path) -> Path:
    """Make a toolkit's source below a directory, as its Debian packages lay it out."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/lib64").mkdir(parents=True)
    for name in PROGRAMS:
        (root / "usr/bin" / name).write_text(_STAND_IN, encoding="utf-8")
        (root / "usr/bin" / name).chmod(0o755)
    for name in LIBRARIES:
        (root / "usr/lib64" / f"{name}.17.8").write_bytes(b"a stand-in\n")
        (root / "usr/lib64" / name).symlink_to(f"{name}.17.8")
    return root
