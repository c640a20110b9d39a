"""What `/healthz`, `/readyz` and `/metrics` say of a process that stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from toolkit.log import LOGGER

if TYPE_CHECKING:
    from toolkit.exporter import Exporter


class Pages:
    """The pages by what was reported last, and for how many seconds a round has gone on (0: none does)."""

    def __init__(self, report: Callable[[], Mapping[str, Any]], busy: Callable[[], float]) -> None:
        self._report = report
        self._busy = busy
        self._exporter: Exporter | None = None

    @property
    def fd(self) -> int:
        """Return what can be waited for; negative where nothing is served."""
        return -1 if self._exporter is None else self._exporter.fd

    def serve(self) -> None:
        """Answer whoever waits."""
        if self._exporter is not None:
            self._exporter.serve()

    def listen(self, address: str) -> None:
        """Serve at an address from now on; at none where it is empty."""
        if self._exporter is not None and self._exporter.address != address:
            self._exporter.server_close()
            self._exporter = None
        if not address or self._exporter is not None:
            return
        from toolkit.exporter import Exporter  # noqa: PLC0415  # only where it is wanted

        answers = {"/healthz": self._health, "/readyz": self._ready, "/metrics": self._metrics}
        try:
            self._exporter = Exporter(address, answers)
        except OSError as error:
            LOGGER.error("metrics cannot be served on %s: %s", address, error.strerror)

    def _health(self) -> tuple[int, str]:
        seconds = self._busy()
        if seconds > self._report()["orders"]["bound"]:
            return 503, f"a round has gone on for {seconds:.0f} s\n"
        return 200, "ok\n"

    def _ready(self) -> tuple[int, str]:
        report = self._report()
        return (200, "ready\n") if report["ready"] else (503, f"not ready: {report['unready']}\n")

    def _metrics(self) -> tuple[int, str]:
        text = self._report().get("metrics", "")
        return (200, text) if text else (503, "no round has ended yet\n")
