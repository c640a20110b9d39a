"""Programs of another architecture, by an emulator that one process and its children alone have.

The kernel keeps the formats of binfmt_misc per user namespace (Linux 6.7 and newer), so QEMU is
registered in a new one, in which every user and group of this machine has its own number. Nothing
on the machine changes, and all of it ends with the last process.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

MACHINES: Final[Mapping[str, str]] = {"amd64": "x86_64", "arm64": "aarch64"}
"""Architectures as uname(1) and QEMU name them."""
BINFMT: Final = Path("/proc/sys/fs/binfmt_misc")
FORMATS: Final = Path("/usr/lib/binfmt.d")
"""Where the package qemu-user-static describes what it runs, as binfmt.d(5) says."""
_ALL: Final = "0 0 4294967295\n"
# $0 is a descriptor to write to once the namespace is there, $1 the description of the emulator.
_SCRIPT: Final = f"""
set -e
echo >"/dev/fd/$0"
read -r _
mount -t binfmt_misc binfmt_misc {BINFMT}
grep '^:' "$1" >{BINFMT}/register
shift
exec "$@" </dev/null
"""


class EmulationError(Exception):
    """No emulator can be registered. The message says why, and what to do."""


def is_needed(architecture: str) -> bool:
    """Return whether this process cannot run programs of an architecture as it is."""
    machine = MACHINES[architecture]
    return machine != os.uname().machine and not (BINFMT / f"qemu-{machine}").exists()


def emulator(architecture: str) -> Path:
    """Return the description of an architecture's emulator. Raises EmulationError without it."""
    described = FORMATS / f"qemu-{MACHINES[architecture]}.conf"
    if not described.exists():
        raise EmulationError(
            f"this machine runs no programs for {architecture}: apt-get install qemu-user-static"
        )
    return described


def check(architecture: str) -> None:
    """Try whether an architecture's programs could be run. Raises EmulationError if not."""
    emulator(architecture)
    if os.geteuid() != 0:
        raise EmulationError("an emulator for one process is registered by root alone")
    done = run(("true",), architecture)
    if done.returncode != 0:
        raise EmulationError(
            f"the emulator for {architecture} cannot be registered for one process, which takes"
            f" Linux 6.7 or newer ({done.stderr.strip()}): register it for the whole machine, with"
            " systemctl restart systemd-binfmt"
        )


def run(
    argv: Sequence[str],
    architecture: str,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    is_captured: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program where those of an architecture run as well; root alone can.

    `timeout` is in seconds. Without `is_captured` its output is that of this process. Raises
    EmulationError where the emulator is not installed.
    """
    described = emulator(architecture)
    reading, writing = os.pipe()
    words = ("unshare", "--user", "--mount", "--", "sh", "-c", _SCRIPT, str(writing))
    captured = subprocess.PIPE if is_captured else None
    with subprocess.Popen(
        (*words, str(described), *argv), stdin=subprocess.PIPE, stdout=captured, stderr=captured,
        cwd=cwd, env=env, pass_fds=(writing,), text=True,
    ) as process:  # fmt: skip
        os.close(writing)
        with open(reading, encoding="ascii") as ready:
            is_there = ready.readline() == "\n"
            if is_there:
                # Only another process may give the numbers of all users and groups.
                for name in ("uid_map", "gid_map"):
                    Path(f"/proc/{process.pid}/{name}").write_text(_ALL, encoding="ascii")
        try:
            out, err = process.communicate("\n" if is_there else "", timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
