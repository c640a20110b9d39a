"""What decides which modules the image has: deploy/image is no package, so it is loaded here."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Any, Final

IMAGE: Final = Path(__file__).resolve().parents[2] / "deploy/image"


def load(name: str) -> Any:
    """Return a module of the directory that makes the image."""
    spec = importlib.util.spec_from_file_location(f"image_{name}", IMAGE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


REACH: Final = load("reach")
BYTECODE: Final = load("bytecode")


def library(*packages: Path) -> Any:
    """Return the library of this interpreter, with directories of packages."""
    stdlib, platform = (Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
    return REACH.Library([stdlib, platform / "lib-dynload", *packages])


def own(directory: Path) -> list[str]:
    """Return the program's own modules below a directory."""
    return [
        ".".join(path.relative_to(directory).with_suffix("").parts).removesuffix(".__init__")
        for name in ("runtimes", "toolkit")
        for path in (directory / name).rglob("*.py")
    ]
