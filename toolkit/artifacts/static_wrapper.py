"""The static program that is a wrapper where the node may have no shell.

It is compiled from deploy/programs (docs/internals/wrappers.md says why, and how it finds its
settings). Images and packages contain it beside this module; a checkout and a wheel do not.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from runtimes.dataclass import dataclass

MACHINES: Final = ("x86_64", "aarch64")
"""The machines that there is a program for, as `uname -m` names them."""
LONGEST: Final = 4096
"""Bytes that a text looked for in a container's configuration can have (LONGEST in wrapper.c)."""
_SEGMENT_SIZE: Final = 56
_LOADED: Final = 1
# Of elf(5): `e_phoff` and `e_phnum`; `p_type` of a segment, and its `p_filesz` and `p_memsz`.
_TABLE: Final = struct.Struct("<32xQ16xH")
_TYPE: Final = struct.Struct("<I")
_SIZES: Final = struct.Struct("<QQ")
_SIZES_OFFSET: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """The behaviour of a wrapper, as a program or as a script.

    It executes `real` with variables that it sets, and with values put before those of others. If
    `low_level` is not None and none of `signs` exists, it executes that program instead, unless it
    `refuses` a container that requests GPUs, also by an annotation with one of `prefixes`.
    """

    real: str
    sets: tuple[tuple[str, str], ...] = ()
    prepends: tuple[tuple[str, str], ...] = ()
    low_level: str | None = None
    signs: tuple[str, ...] = ()
    refuses: bool = False
    prefixes: tuple[str, ...] = ()


def template(machine: str | None = None) -> bytes | None:
    """Return the program without settings for a machine; None if there is none.

    The default is the machine of this process. The file is part of this program's installation.
    """
    try:
        return path(machine or os.uname().machine).read_bytes()
    except FileNotFoundError:
        return None


def path(machine: str, directory: Path = Path(__file__).parent) -> Path:
    """Return the path of the program for a machine: beside this module."""
    return directory / f"wrapper-{machine}"


def render(wrapper: Wrapper, program: bytes) -> bytes | None:
    """Return a program with the settings of a wrapper; None if they cannot be expressed.

    The settings are texts of one letter and a value (wrapper.c lists them), each ended by a zero.
    """
    texts = [("D", sign) for sign in wrapper.signs]
    if wrapper.low_level is not None:
        texts.append(("L", wrapper.low_level))
    if wrapper.refuses:
        patterns = [f'"{prefix}' for prefix in wrapper.prefixes]
        if any(len(each.encode()) > LONGEST or "\n" in each for each in patterns):
            return None
        texts += [("R", ""), *(("A", pattern) for pattern in patterns)]
    texts += [("S", f"{name}={value}") for name, value in wrapper.sets]
    texts += [("P", f"{name}={value}") for name, value in wrapper.prepends]
    texts.append(("X", wrapper.real))
    if any("\0" in value for _, value in texts):
        return None
    return append(program, "".join(f"{letter}{value}\0" for letter, value in texts).encode())


def append(program: bytes, settings: bytes) -> bytes:
    """Return a program with settings at its end, as part of its only loaded segment.

    The program ends with an empty list of settings, a zero, which is replaced.
    """
    result = bytearray(program[:-1] + settings + b"\0")
    table, count = _TABLE.unpack_from(result)
    for offset in range(table, table + count * _SEGMENT_SIZE, _SEGMENT_SIZE):
        if _TYPE.unpack_from(result, offset)[0] == _LOADED:
            _SIZES.pack_into(result, offset + _SIZES_OFFSET, len(result), len(result))
    return bytes(result)
