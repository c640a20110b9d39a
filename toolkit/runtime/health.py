"""The health and the effective configuration that the running runtime reports."""

from __future__ import annotations

from typing import Final

from runtimes.adapter import Adapter
from runtimes.dataclass import dataclass, replace
from runtimes.model import Effective
from toolkit.deadline import Deadline, Timeout
from toolkit.errors import StepError
from toolkit.runtime.client import cri
from toolkit.runtime.locate import Target

_PAUSE: Final = 0.05
_LEAST: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state that a runtime reports.

    `problems` say why it is unhealthy, empty if it is healthy. `no_cri` says why it does not serve
    CRI, "" if it does. `network` says why its network is not ready, "" if it is; this does not make
    it unhealthy, because a new node may have no network yet. `body` is its response to the
    adapter's `confirmation` request.
    """

    effective: Effective
    problems: tuple[str, ...] = ()
    no_cri: str = ""
    network: str = ""
    body: str = ""

    @property
    def supports_cri(self) -> bool:
        """Return whether the runtime serves CRI."""
        return not self.no_cri


def wait_healthy(target: Target, adapter: Adapter, deadline: Deadline) -> Health:
    """Return the runtime's health as soon as it is healthy, or its last state at the deadline.

    A daemon accepts connections before its CRI is ready, so a single query is not enough.
    """
    while True:
        health_now = query(target, adapter, timeout=deadline.at_least(_LEAST))
        if not health_now.problems or deadline.is_over:
            return health_now
        deadline.pause(_PAUSE)


def query(target: Target, adapter: Adapter, *, timeout: Timeout) -> Health:
    """Return the runtime's health now; `timeout` applies to every request."""
    body = ""
    health_now = Health(effective=Effective(), no_cri="this runtime has no CRI")
    try:
        if adapter.confirmation is not None:
            from toolkit.runtime.client import http  # noqa: PLC0415  # 15 ms, only for Docker

            body = http.get(target.socket, adapter.confirmation.path, timeout=timeout)
        if adapter.supports_cri:
            return _over_cri(target, adapter, body, timeout=timeout)
        return replace(health_now, effective=adapter.running(None, body), body=body)
    except StepError as error:
        return replace(health_now, problems=(error.message,), body=body)
    except ValueError as error:
        return replace(health_now, problems=(str(error),), body=body)


def _over_cri(target: Target, adapter: Adapter, body: str, *, timeout: Timeout) -> Health:
    try:
        status = cri.status(target.socket, timeout=timeout)
    except cri.CriFailed as error:
        if error.code != "UNIMPLEMENTED":
            raise
        failure = cri.cri_failure(target.socket, timeout=timeout)
        if failure:
            why = f"its CRI plugin failed: {failure}"
            return Health(effective=Effective(), problems=(why,), no_cri=why, body=body)
        return Health(effective=Effective(), no_cri=error.message, body=body)
    effective = adapter.running(status.config, body)
    if status.handlers is not None:
        effective = replace(effective, handlers=frozenset(status.handlers))
    reasons = [reason for reason in status.reasons if not reason.startswith("NetworkReady")]
    return Health(
        effective=effective,
        problems=(
            () if status.runtime_ready else (f"the runtime is not ready: {'; '.join(reasons)}",)
        ),
        network=(
            "" if status.network_ready else "; ".join(r for r in status.reasons if r not in reasons)
        ),
        body=body,
    )
