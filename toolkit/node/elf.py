"""A minimal static ELF executable that exits with status 0.

It is assembled here, byte by byte, so that a container can be started on a node that has no image
and cannot reach a registry. All headers are regular: kernels, security modules and readelf accept
the file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Final

# `exit` suffices instead of `exit_group`, since there is one thread. Its number depends on the
# machine.
_EXIT_X86_64: Final = bytes.fromhex(
    "31 ff"  # xor edi, edi: the first argument, 0
    "b8 3c 00 00 00"  # mov eax, 60: exit
    "0f 05"  # syscall
)
# Instructions of AArch64 are always little-endian words.
_EXIT_AARCH64: Final = struct.pack(
    "<3I",
    0xD2800000,  # movz x0, #0: the first argument
    0xD2800BA8,  # movz x8, #93: exit
    0xD4000001,  # svc #0
)
# The machine's number in an ELF header (EM_X86_64, EM_AARCH64), and its code.
_MACHINES: Final[Mapping[str, tuple[int, bytes]]] = {
    "x86_64": (62, _EXIT_X86_64),
    "aarch64": (183, _EXIT_AARCH64),
}
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
# The usual address of static executables: a multiple of every page size, and above mmap_min_addr.
_ADDRESS: Final = 0x400000
# The largest page size of the two (AArch64 has kernels with 4, 16 and 64 KiB).
_ALIGNMENT: Final = 0x10000
_EXECUTABLE: Final = 2
_LOADED: Final = 1
_READ_AND_EXECUTE: Final = 4 | 1


def minimal(machine: str | None = None) -> bytes | None:
    """Return the executable for a machine, named as by `uname -m`; default: this process's machine.

    Return None for a machine that is not supported. The layout is that of elf(5) and of the
    processor supplements of the System V ABI.
    """
    result = _MACHINES.get(machine or os.uname().machine)
    if result is None:
        return None
    number, code = result
    before = _HEADER.size + _SEGMENT.size
    header = _HEADER.pack(
        # Magic, 64 bits, little endian, version 1, the System V ABI; the rest is padding.
        b"\x7fELF\x02\x01\x01\x00",
        _EXECUTABLE,
        number,
        1,  # version 1 again
        _ADDRESS + before,  # entry point: the code follows the headers
        _HEADER.size,  # offset of the program headers, which follow this header
        0,  # no section headers
        0,  # no flags on either machine
        _HEADER.size,
        _SEGMENT.size,
        1,  # one segment
        0,  # size and number of section headers, and the index of the one with the names: none
        0,
        0,
    )
    size = before + len(code)
    segment = _SEGMENT.pack(
        _LOADED,
        _READ_AND_EXECUTE,
        0,  # offset 0: the whole file is loaded, so offset and address agree for every page size
        _ADDRESS,
        _ADDRESS,  # the physical address, which Linux ignores
        size,
        size,
        _ALIGNMENT,
    )
    return header + segment + code
