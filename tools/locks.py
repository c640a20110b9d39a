"""The image's locked wheels: `python -m tools.locks` rewrites every requirements.txt, with hashes.

The program's are those of constraints.txt, which the tests run with; each for amd64 and arm64.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PLATFORMS: Final = ("manylinux2014_x86_64", "manylinux2014_aarch64")
WRITER: Final = "cyclonedx-python-lib"
COMPILER: Final = "ziglang"
_HEADS: Final = {
    "requirements.txt": (
        "# The image's wheels, for amd64 and arm64: the versions of constraints.txt. `make lock`"
        " writes it."
    ),
    "deploy/image/requirements.txt": (
        "# What writes the image's bill of materials, while it is built. `make lock` writes it."
    ),
    "deploy/programs/requirements.txt": (
        "# The compiler of the static programs. `make lock` writes it."
    ),
}


def main() -> None:
    """Write them all."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.findall(
        r'"([\w-]+[><=][^"]+)"', text.split("dependencies = [", 1)[1].split("]", 1)[0]
    )
    for name, wanted in (
        ("requirements.txt", needed),
        ("deploy/image/requirements.txt", [WRITER]),
        ("deploy/programs/requirements.txt", [COMPILER]),
    ):
        lines = [_HEADS[name], *locked(wanted)]
        (ROOT / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def locked(wanted: Sequence[str]) -> list[str]:
    """Return wheels and what they need in turn, with a hash for each platform."""
    found: dict[tuple[str, str], set[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for platform in PLATFORMS:
            subprocess.run(
                (sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:",
                 "--disable-pip-version-check", f"--platform={platform}", f"--dest={scratch}",
                 f"--constraint={ROOT / 'constraints.txt'}", *wanted),
                check=True,
            )  # fmt: skip
        for wheel in Path(scratch).glob("*.whl"):
            name, version, *_ = wheel.name.split("-")
            known = found.setdefault((name.lower().replace("_", "-"), version), set())
            known.add(hashlib.sha256(portable(wheel).read_bytes()).hexdigest())
    return [
        " \\\n".join(
            [f"{name}=={version}", *(f"    --hash=sha256:{each}" for each in sorted(hashes))]
        )
        for (name, version), hashes in sorted(found.items())
    ]


def portable(wheel: Path) -> Path:
    """Return the wheel without machine code in place of one for a single Python, if there is one.

    The image may have another Python than this one. pip takes the wheel whose hash is listed.
    """
    name, version, python, abi, _ = wheel.name.split("-")
    if python != abi:
        return wheel
    target = wheel.parent / "portable"
    done = subprocess.run(
        (sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--no-deps",
         "--disable-pip-version-check", "--platform=any", "--implementation=py", "--abi=none",
         f"--dest={target}", f"{name}=={version}"),
        check=False,
    )  # fmt: skip
    return next(target.glob(f"{name}-{version}-*.whl")) if done.returncode == 0 else wheel


if __name__ == "__main__":
    main()
