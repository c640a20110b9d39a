"""The pages `/healthz`, `/readyz` and `/metrics` of the agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from toolkit.agent.report import SyncReport
from toolkit.log import LOGGER

if TYPE_CHECKING:
    from toolkit.agent.http_server import Exporter
    from toolkit.agent.nri import Plugin


class Pages:
    """The pages, generated from the last report and the state of the agent.

    `report` returns the last report, `unhealthy` why the agent is not healthy, empty if it is, and
    `plugin` the NRI plugin, None if there is none.
    """

    def __init__(
        self,
        report: Callable[[], SyncReport],
        unhealthy: Callable[[], str],
        plugin: Callable[[], Plugin | None],
    ) -> None:
        self._report = report
        self._unhealthy = unhealthy
        self._plugin = plugin
        self._exporter: Exporter | None = None

    @property
    def fd(self) -> int:
        """Return the descriptor of the listening socket; negative if there is none."""
        return -1 if self._exporter is None else self._exporter.fd

    def serve(self) -> None:
        """Accept and answer a waiting client, if there is one."""
        if self._exporter is not None:
            self._exporter.serve()

    def listen(self, address: str) -> None:
        """Listen on an address instead of the current one; on none if it is empty.

        An error is logged: the agent continues without the pages.
        """
        if self._exporter is not None and self._exporter.address != address:
            self._exporter.server_close()
            self._exporter = None
        if not address or self._exporter is not None:
            return
        from toolkit.agent.http_server import Exporter  # noqa: PLC0415  # for --metrics-address

        answers = {"/healthz": self._health, "/readyz": self._ready, "/metrics": self._metrics}
        try:
            self._exporter = Exporter(address, answers)
        except OSError as error:
            LOGGER.error("metrics cannot be served on %s: %s", address, error.strerror)

    def _health(self) -> tuple[int, str]:
        problem = self._unhealthy()
        return (503, f"{problem}\n") if problem else (200, "ok\n")

    def _ready(self) -> tuple[int, str]:
        report = self._report()
        return (200, "ready\n") if report["ready"] else (503, f"not ready: {report['unready']}\n")

    def _metrics(self) -> tuple[int, str]:
        text = self._report().get("metrics", "")
        plugin = self._plugin()
        if text and plugin is not None:
            text += plugin.metrics()
        return (200, text) if text else (503, "no sync has finished yet\n")
