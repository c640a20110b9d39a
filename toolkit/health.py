"""How a runtime is, in its own words: whether it is well, and what it has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from runtimes.adapter import Adapter
from runtimes.model import Effective
from toolkit import cri, plugins
from toolkit.detect import Scene
from toolkit.errors import StepFailed
from toolkit.stop import Patience, Timeout

_PAUSE: Final = 0.05
_LEAST: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A runtime as it says itself to be.

    `ailments` say why it is not well, empty where it is. `no_cri` says why it
    does not serve CRI, empty where it does. `network` is why its network is not
    ready, and no ailment: a node may have none yet. `body` is its answer to the
    adapter's `confirmation`.
    """

    has: Effective
    ailments: tuple[str, ...] = ()
    no_cri: str = ""
    network: str = ""
    body: str = ""

    @property
    def speaks_cri(self) -> bool:
        """Tell whether it serves CRI."""
        return not self.no_cri


def look(place: Scene, adapter: Adapter, patience: Patience) -> Health:
    """Return how the runtime is, as soon as it is well or when patience is over.

    A daemon answers on its socket before its CRI is ready, so one look is not enough.
    """
    while True:
        found = once(place, adapter, timeout=patience.allowing(_LEAST))
        if not found.ailments or patience.is_over:
            return found
        patience.pause(_PAUSE)


def once(place: Scene, adapter: Adapter, *, timeout: Timeout) -> Health:
    """Return how the runtime is at this moment; `timeout` is for every question."""
    body = ""
    found = Health(has=Effective(), no_cri="it has none")
    try:
        if adapter.confirmation is not None:
            from toolkit import http  # noqa: PLC0415  # costs 15 ms, and only Docker speaks it

            body = http.get(place.socket, adapter.confirmation.path, timeout=timeout)
        if adapter.speaks_cri:
            return _over_cri(place, adapter, body, timeout=timeout)
        return replace(found, has=adapter.running(None, body), body=body)
    except StepFailed as error:
        return replace(found, ailments=(error.message,), body=body)
    except ValueError as error:
        return replace(found, ailments=(str(error),), body=body)


def _over_cri(place: Scene, adapter: Adapter, body: str, *, timeout: Timeout) -> Health:
    try:
        said = cri.status(place.socket, timeout=timeout)
    except cri.CriFailed as error:
        if error.code != "UNIMPLEMENTED":
            raise
        failure = plugins.cri_failure(place.socket, timeout=timeout)
        if failure:
            why = f"its CRI plugin failed: {failure}"
            return Health(has=Effective(), ailments=(why,), no_cri=why, body=body)
        return Health(has=Effective(), no_cri=error.message, body=body)
    has = adapter.running(said.config, body)
    if said.handlers is not None:
        has = replace(has, handlers=frozenset(said.handlers))
    reasons = [reason for reason in said.reasons if not reason.startswith("NetworkReady")]
    return Health(
        has=has,
        ailments=() if said.runtime_ready else (f"the runtime is not ready: {'; '.join(reasons)}",),
        network="" if said.network_ready else "; ".join(r for r in said.reasons if r not in reasons),
        body=body,
    )
