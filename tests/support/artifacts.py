"""The toolkit's files: stand-ins that report each call and become runc; or the real ones."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support import binaries
from toolkit.artifacts import manifest

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
_LISTER: Final = Path(__file__).resolve().parent.parent.parent / "deploy/image/digests.py"
_STAND_IN: Final = f"""#!/bin/sh
[ "$1" = --version ] && exec echo "${{0##*/}} version 1"
echo "${{0##*/}} $*" >> {RAN}
exec runc "$@"
"""


def make_real(root: Path, programs: Sequence[str] = binaries.TOOLKIT_PROGRAMS) -> Path:
    """Make a toolkit's source of real programs, without nvidia-container-cli and its libraries."""
    make(root)
    for program in programs:
        place = root / "usr/bin" / program
        place.unlink()
        shutil.copyfile(binaries.toolkit(program), place)
        place.chmod(0o755)
    return root


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


def list_hashes(source: Path) -> None:
    """Write the hashes of a toolkit's files into its source, as the image does."""
    lines = runpy.run_path(str(_LISTER))["lines"](source)
    (source / manifest.SUMS).write_text("".join(lines), encoding="utf-8")
