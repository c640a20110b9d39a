"""For how long a runtime does not answer while it takes a change up, as measured, for whoever plans one.

The numbers are the longest of each runtime in docs/compatibility.md, which
says where they come from (`python -m benchmarks.silence`). What was not
measured is not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

RESTARTED: Final[Mapping[str, float]] = MappingProxyType({"containerd.service": 0.111, "crio.service": 0.151})
"""In seconds, by the runtime's systemd unit, where systemd is asked to restart it."""

SIGNALLED: Final[Mapping[str, float]] = MappingProxyType({"containerd.service": 5.2, "docker.service": 0.007})
"""In seconds, by the runtime's unit, where it gets a SIGHUP; containerd's is that of `RestartSec=5`."""


def words(seconds: float) -> str:
    """Say a length of time as roughly as it is known."""
    if seconds < 0.05:
        return "less than 0.1 s"
    return f"about {seconds:.0f} s" if seconds >= 1 else f"about {seconds:.1f} s"
