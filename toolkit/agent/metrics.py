"""The Prometheus metrics of a report. Only children import it, as the library needs much memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from toolkit.agent import counters
from toolkit.agent.report import SyncReport
from toolkit.state.readiness_record import STARTED

PREFIX: Final = "nvidia_toolkit"
_GOOD: Final = (counters.IN_SYNC, counters.CHANGED)
_COUNTERS: Final = {
    "repairs": "Syncs that repaired the node after something else changed it.",
    "restarts": "Restarts of the container runtime by this program.",
    "reloads": "Changes that the container runtime loaded without a restart.",
    "restarts_avoided": "Syncs in which the container runtime did not have to be restarted.",
    "rollbacks": "Changes that were rolled back because they failed.",
    "runtime_unavailable_seconds": (
        "Seconds in which the runtime did not answer because of restarts."
    ),
}


class MetricsCollector(Collector):
    """The metrics of one report; `restarts_remaining` as `exposition` takes it."""

    def __init__(self, report: SyncReport, restarts_remaining: int | None) -> None:
        self._report = report
        self._restarts_remaining = restarts_remaining

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        report, counts = self._report, self._report["counts"]
        last = counts["last"]
        yield _gauge(
            "in_sync",
            "Whether the node is in sync.",
            float(report["outcome"] in _GOOD),
        )
        yield _gauge("ready", "Whether the node is ready.", report["ready"])
        if "driver" in report:
            text = (
                "Whether the driver is loaded. Without it the handlers start containers without"
                " GPUs."
            )
            yield _gauge("driver_loaded", text, report["driver"])
        yield _gauge("last_sync_timestamp_seconds", "When the last sync ended.", last["time"])
        yield _gauge("last_sync_duration_seconds", "How long the last sync took.", last["seconds"])
        yield _gauge("last_sync_exit_code", "The exit code of the last sync.", report["code"])
        outcomes = CounterMetricFamily(f"{PREFIX}_syncs", "Syncs by outcome.", labels=["outcome"])
        for outcome, count in counts["outcomes"].items():
            outcomes.add_metric([outcome.replace(" ", "_")], count)
        yield outcomes
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"{PREFIX}_{name}", text, value=counts[name])
        yield _gauge(
            "last_restart_unavailable_seconds",
            "How long the runtime did not answer during the last restart.",
            counts["silent_last"],
        )
        if self._restarts_remaining is not None:
            yield _gauge(
                "restart_budget_remaining",
                "Restarts of the runtime that the restart budget still allows within its window.",
                self._restarts_remaining,
            )
        yield self._handlers()
        yield from self._checks()
        yield InfoMetricFamily(PREFIX, "Versions in use.", value=dict(counts["versions"]))

    def _handlers(self) -> Metric:
        verified = GaugeMetricFamily(
            f"{PREFIX}_handler_verified",
            "Whether a container was started through the handler, with the runtime and the files in"
            " use.",
            labels=["handler"],
        )
        for handler, result in self._report.get("verified", {}).items():
            verified.add_metric([handler], float(result == STARTED))
        return verified

    def _checks(self) -> Iterator[Metric]:
        failed = CounterMetricFamily(
            f"{PREFIX}_checks_failed", "Failed checks by name.", labels=["check"]
        )
        now = GaugeMetricFamily(
            f"{PREFIX}_check_failing", "Whether a check failed in the last sync.", labels=["check"]
        )
        for check, count in self._report["counts"]["failed"].items():
            failed.add_metric([check], count)
            now.add_metric([check], float(check == self._report["check"]))
        yield failed
        yield now


def exposition(report: SyncReport, *, restarts_remaining: int | None = None) -> str:
    """Return the metrics of a report in Prometheus' text format.

    `restarts_remaining` is what the restart budget still allows, None if it has no limit.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MetricsCollector(report, restarts_remaining))
    return generate_latest(registry).decode()


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=float(value))
