"""Where what answers on the socket is another runtime than the settings say."""

from __future__ import annotations

from runtimes import registry
from runtimes.adapter import Adapter
from toolkit import owner
from toolkit.errors import Contradiction
from toolkit.settings import Settings


def answered(settings: Settings, adapter: Adapter, error: owner.NoOwner) -> tuple[Contradiction, ...]:
    """Return that another runtime than the adapter's answers on the socket, where that is so."""
    if not isinstance(error, owner.Stranger):
        return ()
    found = error.found
    others = registry.ADAPTERS.items()
    other = next((name for name, each in others if owner.looks_like(found, each.executables)), None)
    if other is None:
        return ()
    socket = settings.text("socket")
    return (
        Contradiction(
            f"{settings.by('runtime')}={adapter.name}: {socket} is answered by {other}"
            f" (PID {found.pid}, {found.executable})",
            f"say --runtime={other}, or name the socket of {adapter.name}",
        ),
    )
