"""Make other versions of Python for this machine, from the packages of Debian suites.

`python3 -m tools.pythons 3.13` prints the path of an interpreter. Where it is missing it is made:
what its suite installs is copied together with the C library and the other libraries of that suite,
and the interpreter is made to load those. So it runs on a machine with an older C library, and
programs that it starts are not affected, because nothing is set in the environment.

Making one needs root, mmdebstrap and patchelf; no package of Python. Interpreters are kept in the
cache of the tests (NVIDIA_TOOLKIT_TEST_CACHE chooses another) and must stay where they were made.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.support.nodes import cache
from tools import bare

SUITES: Final[Mapping[str, str]] = {"3.11": "bookworm", "3.13": "trixie", "3.14": "forky"}
"""Which Debian suite has which version of Python."""
# To be changed with what `_make` does, so that what an earlier one made is not used any more.
_FORMAT: Final = "1"
_LIBRARIES: Final = "lib/debian"
_WHEELS: Final = "share/python-wheels"
# Each is a part of Python that loads a library of the suite, or that venv needs.
_USED: Final = "import bz2, ctypes, ensurepip, hashlib, lzma, sqlite3, ssl, venv, zlib"


def main(words: Sequence[str] | None = None) -> int:
    """Print the path of an interpreter of the version that was asked for."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tools.pythons", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("version", choices=SUITES, help=f"one of {', '.join(SUITES)}")
    version = parser.parse_args(words).version
    try:
        sys.stdout.write(f"{interpreter(version)}\n")
    except bare.BareError as error:
        sys.stderr.write(f"tools.pythons: {error}\n")
        return 1
    return 0


def interpreter(version: str) -> Path:
    """Return the path of an interpreter of a version such as 3.13, made where it is missing.

    Raises BareError where it cannot be made.
    """
    suite = SUITES[version]
    name = f"{version}-{bare.digest(_FORMAT, bare.image_name(suite), str(cache()))}"
    final = cache() / "pythons" / name

    def make(directory: Path) -> None:
        if why := _why_not():
            raise bare.BareError(why)
        _make(directory, final, version, bare.image(suite))

    return bare.kept("pythons", name, make) / "bin" / f"python{version}"


def _why_not() -> str:
    if why := bare.why_not():
        return why
    return "" if shutil.which("patchelf") else "patchelf is missing: apt-get install patchelf"


def _make(directory: Path, final: Path, version: str, root: Path) -> None:
    """Copy the Python of a root file system to a directory that will be renamed to `final`."""
    name = f"python{version}"
    program = directory / "bin" / name
    program.parent.mkdir()
    shutil.copy(root / "usr/bin" / name, program)
    shutil.copytree(root / "usr/lib" / name, directory / "lib" / name, symlinks=True)
    shutil.copytree(root / "usr" / _WHEELS, directory / _WHEELS)
    libraries = directory / _LIBRARIES
    libraries.mkdir()
    loader = _loader(program)
    for file in _library_directory(root, loader).glob("*.so*"):
        # Names in /etc/alternatives and the like lead nowhere here.
        if file.is_file():
            shutil.copy(file, libraries / file.name)
    # Debian keeps pip outside, in a directory with an absolute name.
    for file in (directory / "lib" / name).glob("_sysconfigdata_*.py"):
        text = file.read_text(encoding="utf-8")
        pattern = r"('WHEEL_PKG_DIR': ')[^']*'"
        text, count = re.subn(pattern, lambda found: f"{found[1]}{final / _WHEELS}/'", text)
        if count != 1:
            raise bare.BareError(
                f"{file}: it has {count} WHEEL_PKG_DIR, not one: mend tools/pythons.py"
            )
        file.write_text(text, encoding="utf-8")
    # An RPATH, not a RUNPATH: it holds also for the libraries of modules that are loaded later.
    bare.quiet(
        "patchelf", "--set-interpreter", str(final / _LIBRARIES / loader.name),
        "--force-rpath", "--set-rpath", f"$ORIGIN/../{_LIBRARIES}", str(program),
    )  # fmt: skip
    # The loader is named because it is not yet where the interpreter looks for it.
    bare.quiet(str(libraries / loader.name), str(program), "-I", "-B", "-c", _USED)


def _loader(program: Path) -> Path:
    """Return the dynamic loader that a program names, such as /lib64/ld-linux-x86-64.so.2."""
    return Path(bare.quiet("patchelf", "--print-interpreter", str(program)).strip())


def _library_directory(root: Path, loader: Path) -> Path:
    """Return where a root file system has its loader and libraries (usr/lib/x86_64-linux-gnu)."""
    found = [file.parent for file in (root / "usr/lib").glob(f"*-linux-gnu*/{loader.name}")]
    if len(found) != 1:
        raise bare.BareError(f"{root}: {loader.name} is in {len(found)} directories, not in one")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
