"""What containerd says of its own plugins: a CRI that failed is told from one that is switched off."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from toolkit import protowire
from toolkit.stop import Timeout

_METHOD: Final = "/containerd.services.introspection.v1.Introspection/Plugins"
_FILTER: Final = "type==io.containerd.grpc.v1,id==cri"
# Fields of PluginsResponse, Plugin and google.rpc.Status (api/services/introspection/v1, 1.6 to 2.3).
_PLUGINS, _INIT_ERROR, _MESSAGE = 1, 7, 2


def cri_failure(socket: Path, *, timeout: Timeout) -> str:
    """Return why a containerd's CRI plugin failed to load.

    Empty where it did not, where it is switched off, and where the socket is
    not containerd's or does not answer in time.
    """
    # It brings h2 along.
    from toolkit import rpc  # noqa: PLC0415

    try:
        said = rpc.unary(socket, _METHOD, protowire.encode([(1, _FILTER)]), timeout=timeout)
        plugins = protowire.decode(said).messages(_PLUGINS)
        return next((text for plugin in plugins if (text := plugin.message(_INIT_ERROR).text(_MESSAGE))), "")
    except (rpc.CallFailed, protowire.Malformed, OSError):
        return ""
