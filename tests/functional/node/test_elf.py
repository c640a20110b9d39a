"""The smallest program: it runs here; for the other machine, independent readers parse it."""

from __future__ import annotations

import platform
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support import fake_node
from toolkit.node import elf

MACHINES = {"x86_64": 62, "aarch64": 183}
QEMU = "qemu-aarch64-static"


def made(machine: str) -> bytes:
    data = elf.minimal(machine)
    assert data is not None
    return data


def written(directory: Path, data: bytes) -> str:
    program = directory / "smallest"
    program.write_bytes(data)
    program.chmod(0o755)
    return str(program)


@pytest.mark.skipif(
    platform.machine() not in MACHINES, reason="nobody assembled one for this machine"
)
def test_runs_here_and_says_nothing(tmp_path: Path) -> None:
    data = elf.minimal()
    assert data is not None
    done = subprocess.run([written(tmp_path, data)], capture_output=True, check=False, timeout=10)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@fake_node.needs_program(QEMU, package="qemu-user-static")
def test_runs_on_an_emulated_aarch64(tmp_path: Path) -> None:
    program = written(tmp_path, made("aarch64"))
    assert subprocess.run([QEMU, program], check=False, timeout=20).returncode == 0


@pytest.mark.parametrize(("machine", "number"), MACHINES.items())
def test_header_and_segment(machine: str, number: int) -> None:
    data = made(machine)
    magic, bits, order, version, abi = struct.unpack_from("<4s4B", data)
    assert (magic, bits, order, version, abi) == (b"\x7fELF", 2, 1, 1, 0)
    assert data[8:16] == bytes(8)
    kind, of, again = struct.unpack_from("<HHI", data, 16)
    assert (kind, of, again) == (2, number, 1)
    entry, segments, sections = struct.unpack_from("<3Q", data, 24)
    flags, size, segment_size, count, *rest = struct.unpack_from("<I6H", data, 48)
    assert (segments, sections, flags, size, segment_size, count) == (64, 0, 0, 64, 56, 1)
    assert rest == [0, 0, 0]
    load, access, offset, address, physical, in_file, in_memory, align = struct.unpack_from(
        "<2I6Q", data, 64
    )
    # Nothing of it can be written to, and all of it is one segment.
    assert (load, access, offset) == (1, 5, 0)
    assert in_file == in_memory == len(data)
    assert address == physical
    # The kernel refuses what is not congruent, on any of the page sizes.
    assert align == 65536
    assert (address - offset) % align == 0
    assert entry == address + 64 + 56
    assert len(data) < 140


def test_instructions_of_aarch64() -> None:
    words = struct.unpack("<3I", made("aarch64")[120:])

    def moved(word: int) -> tuple[int, int, int]:
        """Read a `movz xN, #V, lsl #16*H`: sf opc 100101 hw imm16 Rd."""
        assert word >> 23 == 0b1_10_100101
        return word & 31, word >> 5 & 0xFFFF, word >> 21 & 3

    assert moved(words[0]) == (0, 0, 0)
    # 93 is exit in the table that all newer machines of Linux share.
    assert moved(words[1]) == (8, 93, 0)
    # An exception of the class SVC: 11010100 000 imm16 000 01.
    assert words[2] >> 21 == 0b11010100_000
    assert (words[2] >> 5 & 0xFFFF, words[2] & 31) == (0, 1)


@fake_node.needs_program("llvm-mc", package="llvm")
@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        ("x86_64", ["xorl\t%edi, %edi", "movl\t$60, %eax", "syscall"]),
        ("aarch64", ["mov\tx0, #0", "mov\tx8, #93", "svc\t#0"]),
    ],
)
def test_instructions_as_a_disassembler_reads_them(machine: str, wanted: list[str]) -> None:
    code = " ".join(f"{byte:#04x}" for byte in made(machine)[120:])
    done = subprocess.run(
        ["llvm-mc", "--disassemble", f"--triple={machine}"],
        input=code, capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    lines = [line.split("//")[0].split("#  ")[0].strip() for line in done.stdout.splitlines()]
    assert [line for line in lines if line and not line.startswith(".")] == wanted


@pytest.mark.parametrize("machine", ["riscv64", "i686", "armv7l"])
def test_no_program_for_other_machines(machine: str) -> None:
    assert elf.minimal(machine) is None
