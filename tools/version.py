"""The version where it is repeated: `python -m tools.version` writes it, a test compares it.

`toolkit/__init__.py` has the version. The chart, the Dockerfile and the page that builds the image
repeat it; the manual page and the manifests are generated from the program and from the chart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from toolkit import __version__

ROOT: Final = Path(__file__).resolve().parents[1]
PLACES: Final[Mapping[str, str]] = {
    "deploy/helm/nvidia-toolkit/Chart.yaml": r'(?m)(?<=^version: )\S+|(?<=^appVersion: ")[^"]+',
    "Dockerfile": r"(?m)(?<=^ARG VERSION=).*$",
    "docs/install.md": r"(?<=nvidia-toolkit:)\d+\.\d+\.\d+\S*",
    "docs/gpu-operator.md": r"(?m)(?<=toolkit\.version=)\S+$|(?<=^    version: )\S+$",
}
"""Files, and an expression for each place of the version in them."""


def updated(text: str, places: str, version: str = __version__) -> str:
    """Return a text with the version at its places. Raises ValueError if it has none."""
    text, count = re.subn(places, lambda _: version, text)
    if count == 0:
        raise ValueError(f"no place for the version: {places}")
    return text


def main() -> None:
    """Write the version into every file."""
    for name, places in PLACES.items():
        path = ROOT / name
        path.write_text(updated(path.read_text(encoding="utf-8"), places), encoding="utf-8")


if __name__ == "__main__":
    main()
