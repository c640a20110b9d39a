"""The smallest honest Linux program: an ELF executable that does nothing but end with 0.

It is assembled here, byte by byte, so that a container can be started on a
node that has no image and reaches no registry. Nothing overlaps and no field
is abused: whatever looks at it (a kernel, a security module, a person with
readelf) finds an ordinary static executable.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Mapping
from typing import Final

# `exit` rather than `exit_group`: there is one thread. Its number differs between the two, see unistd.h.
_EXIT_X86_64: Final = bytes.fromhex(
    "31 ff"  # xor edi, edi: the first argument, 0
    "b8 3c 00 00 00"  # mov eax, 60: exit
    "0f 05"  # syscall
)
# Instructions of AArch64 are little endian words whatever the data are.
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
# Where static executables lie by custom: a multiple of every page size, and not below any mmap_min_addr.
_ADDRESS: Final = 0x400000
# The largest page size of the two (AArch64 has kernels with 4, 16 and 64 KiB).
_ALIGNMENT: Final = 0x10000
_EXECUTABLE: Final = 2
_LOADED: Final = 1
_READ_AND_EXECUTE: Final = 4 | 1


def smallest(machine: str | None = None) -> bytes | None:
    """Return the executable for a machine, named as `uname -m` does; for this one where none is named.

    None where nobody assembled one for it. The layout is that of elf(5) and of
    the processor supplements of the System V ABI.
    """
    found = _MACHINES.get(machine or platform.machine())
    if found is None:
        return None
    number, code = found
    before = _HEADER.size + _SEGMENT.size
    header = _HEADER.pack(
        # Magic, 64 bits, little endian, version 1, the System V ABI; the rest is padding.
        b"\x7fELF\x02\x01\x01\x00",
        _EXECUTABLE,
        number,
        1,  # the version once more
        _ADDRESS + before,  # where it begins: the code follows the headers
        _HEADER.size,  # the segments follow this header
        0,  # there are no sections
        0,  # neither machine has flags
        _HEADER.size,
        _SEGMENT.size,
        1,  # one segment
        0,  # the size of a section's header, how many there are, and which one holds their names
        0,
        0,
    )
    size = before + len(code)
    segment = _SEGMENT.pack(
        _LOADED,
        _READ_AND_EXECUTE,
        0,  # the whole file, headers and all: so its place in the file and in memory agree on any page size
        _ADDRESS,
        _ADDRESS,  # the physical address, which nobody reads
        size,
        size,
        _ALIGNMENT,
    )
    return header + segment + code
