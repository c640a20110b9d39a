"""What a report says, in the words of Prometheus. Only a short-lived process pays for the library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from toolkit import standing

PREFIX: Final = "nvidia_toolkit"
_GOOD: Final = (standing.IN_SYNC, standing.CHANGED)
_COUNTERS: Final = {
    "repairs": "Times that the node was brought back to what is wanted after something else changed it.",
    "restarts": "Restarts of the container runtime that this program made.",
    "reloads": "Times that the container runtime took a change up in place.",
    "restarts_avoided": "Rounds in which the container runtime did not have to be restarted.",
    "rollbacks": "Changes that were taken back because they failed.",
    "silent_seconds": "Seconds that the container runtime did not answer because this program restarted it.",
}


class Standing(Collector):
    """The metrics of one report."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        report, counts = self._report, self._report["counts"]
        last = counts["last"]
        yield _gauge(
            "in_sync",
            "Whether the node is as wanted.",
            float(report["outcome"] in _GOOD),
        )
        yield _gauge("ready", "Whether the readiness record is true.", report["ready"])
        if "driver" in report:
            text = "Whether the driver is loaded; without it the handlers run containers without a GPU."
            yield _gauge("driver_loaded", text, report["driver"])
        yield _gauge("last_round_timestamp_seconds", "When the last round ended.", last["time"])
        yield _gauge("last_round_duration_seconds", "How long the last round took.", last["seconds"])
        outcomes = CounterMetricFamily(f"{PREFIX}_rounds", "Rounds by how they ended.", labels=["outcome"])
        for outcome, count in counts["outcomes"].items():
            outcomes.add_metric([outcome.replace(" ", "_")], count)
        yield outcomes
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"{PREFIX}_{name}", text, value=counts[name])
        yield _gauge(
            "runtime_silent_seconds",
            "How long the last restart kept the runtime silent.",
            counts["silent_last"],
        )
        yield from self._checks()
        yield InfoMetricFamily(PREFIX, "What is in use.", value=dict(counts["versions"]))

    def _checks(self) -> Iterator[Metric]:
        failed = CounterMetricFamily(f"{PREFIX}_checks_failed", "Failed checks by name.", labels=["check"])
        now = GaugeMetricFamily(f"{PREFIX}_check_failing", "The check that fails now.", labels=["check"])
        for check, count in self._report["counts"]["failed"].items():
            failed.add_metric([check], count)
            now.add_metric([check], float(check == self._report["check"]))
        yield failed
        yield now


def exposition(report: Mapping[str, Any]) -> str:
    """Return the metrics of a report in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Standing(report))
    return generate_latest(registry).decode()


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=float(value))
