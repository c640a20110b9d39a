"""Find out whether the runtime on this node has NRI, and whether it is switched on.

Nothing connects to the NRI socket for that: the runtime would log a plugin that does not register.
"""

from __future__ import annotations

import contextlib
import stat
from enum import StrEnum
from pathlib import Path
from typing import Final

from runtimes.dataclass import dataclass
from runtimes.model import RuntimeName
from toolkit.errors import StepError
from toolkit.node.host import Host
from toolkit.runtime.client import cri
from toolkit.settings.resolve import Settings

_SOON: Final = 5.0
_SOCKET: Final = "/var/run/nri/nri.sock"
_FIRST_CRIO: Final = (1, 26)
_SWITCH: Final = {
    RuntimeName.CONTAINERD: (
        "set `disable = false` in [plugins.'io.containerd.nri.v1.nri'] of its"
        " configuration (containerd 1.7 also needs `enable_cdi = true`), and restart it"
    ),
    RuntimeName.CRIO: "set `enable_nri = true` in [crio.nri] of its configuration, and restart it",
}
_NEEDED: Final = (
    "the NRI plugin needs containerd 2.0 or newer (1.7 if NRI is switched on), or CRI-O 1.26"
)
_NOT_MOUNTED: Final = (
    "mount the directory of the runtime's NRI socket, or name the socket with --nri-socket"
)


class NriState(StrEnum):
    """The state of NRI in a runtime: switched on or off, or not there at all."""

    ON = "on"
    OFF = "off"
    NONE = "none"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class NriSupport:
    """The state of NRI in a runtime, a sentence about it, and a hint if it is not on."""

    state: NriState
    text: str
    hint: str = ""


def look_up(
    settings: Settings, host: Host, runtime: RuntimeName, endpoint: Path | None
) -> NriSupport:
    """Return whether a runtime has NRI. `endpoint` is its socket, None if nothing answers there."""
    socket = _existing(settings, host)
    if socket is not None and settings.runs_plugin and str(socket) != settings.nri_socket:
        text = f"{settings.nri_socket} does not exist in this container, but on the node"
        return NriSupport(state=NriState.UNKNOWN, text=text, hint=_NOT_MOUNTED)
    if socket is not None:
        return NriSupport(state=NriState.ON, text=f"NRI is on: {socket}")
    has_nri = None if endpoint is None else _has_nri(runtime, endpoint)
    missing = f"its socket {settings.nri_socket} does not exist"
    if has_nri:
        text = f"NRI is off in this {runtime}: {missing}"
        return NriSupport(state=NriState.OFF, text=text, hint=_SWITCH[runtime])
    if has_nri is None:
        text = f"NRI is not known to be on: {missing}"
        return NriSupport(state=NriState.UNKNOWN, text=text, hint=_NOT_MOUNTED)
    return NriSupport(state=NriState.NONE, text=f"this {runtime} has no NRI", hint=_NEEDED)


def _existing(settings: Settings, host: Host) -> Path | None:
    """Return the local path of the NRI socket, None if there is none."""
    paths = [Path(settings.nri_socket)]
    if not settings.is_given("nri_socket"):
        with contextlib.suppress(StepError):  # a path that is not mounted here
            paths.append(host.file(_SOCKET))
    for path in paths:
        try:
            if stat.S_ISSOCK(path.stat().st_mode):
                return path
        except OSError:
            continue
    return None


def _has_nri(runtime: RuntimeName, endpoint: Path) -> bool | None:
    """Return whether the runtime has NRI, on or off; None if that is unknown."""
    if runtime is RuntimeName.DOCKER:
        return False
    if runtime is RuntimeName.CONTAINERD and cri.has_nri(endpoint, timeout=_SOON):
        return True
    try:
        version = cri.version(endpoint, timeout=_SOON)
    except StepError:
        return None
    numbers = tuple(int(part) for part in version.lstrip("v").split(".")[:2] if part.isdecimal())
    return runtime is RuntimeName.CRIO and numbers >= _FIRST_CRIO
