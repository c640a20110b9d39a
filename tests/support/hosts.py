"""A host without Kubernetes: the program and its unit, installed on a node as a package would.

The node's suite has a Python of its own; it and the locked wheels are those from which the image is
built.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Final

from tests.support import images, nodes
from tests.support.nodes import Node

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOY: Final = ROOT / "deploy/systemd"
UNITS: Final = tuple(sorted(each for each in DEPLOY.iterdir() if each.suffix != ".env"))
SUITE: Final = images.SUITE
UNIT: Final = "nvidia-toolkit"
SETTINGS: Final = "/etc/nvidia-toolkit/nvidia-toolkit.env"
_PYTHON: Final = re.compile(r"\./usr/(bin/python3|lib/python3|lib/[^/]+-linux-gnu/lib)")
_LIBRARY: Final = "/usr/lib/nvidia-toolkit"
_PROGRAM: Final = """#!/usr/bin/python3 -I
from toolkit.program import main

main()
"""


def install(node: Node) -> None:
    """Install Python, the program, its unit and its settings file; nothing is started."""
    with tarfile.open(images.base()) as archive:
        for member in archive:
            # What the node has already may be in use.
            is_new = member.isdir() or not os.path.lexists(node.root / member.name)
            if is_new and _PYTHON.match(member.name):
                archive.extract(member, node.root, filter="fully_trusted")
    library = nodes.path(node, _LIBRARY)
    for wheel in images.wheels().glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(library)  # noqa: S202  # locked by their hashes
    for package in ("toolkit", "runtimes"):
        shutil.copytree(
            ROOT / package, library / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    _write(node, "/usr/lib/python3/dist-packages/nvidia-toolkit.pth", f"{_LIBRARY}\n")
    _write(node, "/usr/bin/nvidia-toolkit", _PROGRAM, mode=0o755)
    for unit in UNITS:
        _write(node, f"/usr/lib/systemd/system/{unit.name}", unit.read_text(encoding="utf-8"))
    settings = (DEPLOY / "nvidia-toolkit.env").read_text(encoding="utf-8")
    _write(node, SETTINGS, settings)
    nodes.run(node, ["systemctl", "daemon-reload"])


def _write(node: Node, name: str, text: str, mode: int = 0o644) -> None:
    path = nodes.path(node, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
