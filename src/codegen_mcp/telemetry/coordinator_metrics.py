"""Every Prometheus metric of a coordinator.

Labels come from small sets (method, status, state); no id of a session, task or caller is a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client import Info as InfoMetric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from codegen_mcp.telemetry.metrics import FAST_BUCKETS


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetNumbers:
    """The workers together, at one moment."""

    linked: int
    """Reachable."""
    unlinked: int
    """Registered, and not reachable now."""
    draining: int
    """Of those reachable."""
    places: int
    """Sessions that all of them take."""
    occupied: int


class CoordinatorMetrics:
    """Implements the server's hooks; owns its registry."""

    def __init__(self, fleet: Callable[[], FleetNumbers], *, name: str, version: str) -> None:
        """``fleet`` is asked at each scrape."""
        self.registry = CollectorRegistry()
        self._children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        info = InfoMetric("coordinator", "Which coordinator this is.", registry=self.registry)
        info.info({"name": name, "version": version})
        self._calls = Counter(
            "coordinator_grpc_calls",
            "Calls that ended.",
            ["method", "code"],
            registry=self.registry,
        )
        self._call_seconds = Histogram(
            "coordinator_grpc_call_seconds",
            "Time of calls, with the worker's part.",
            ["method"],
            buckets=FAST_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_Fleet(fleet))

    def render(self) -> bytes:
        """The page that Prometheus scrapes."""
        return generate_latest(self.registry)

    def call_finished(self, *, method: str, code: str, seconds: float) -> None:
        """Count a call."""
        known = self._children.get((method, code))
        if known is None:
            name = method.rpartition(".")[2]
            known = (self._calls.labels(name, code), self._call_seconds.labels(name))
            self._children[method, code] = known
        counter, histogram = known
        counter.inc()
        histogram.observe(seconds)


class _Fleet(Collector):
    """Reads the live view when it is asked."""

    def __init__(self, fleet: Callable[[], FleetNumbers]) -> None:
        self._fleet = fleet

    def describe(self) -> Iterable[Metric]:
        """Name nothing ahead."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Count workers and places."""
        numbers = self._fleet()
        workers = GaugeMetricFamily(
            "coordinator_workers", "Workers that are registered.", labels=["state"]
        )
        workers.add_metric(["serving"], numbers.linked - numbers.draining)
        workers.add_metric(["draining"], numbers.draining)
        workers.add_metric(["unreachable"], numbers.unlinked)
        yield workers
        yield GaugeMetricFamily(
            "coordinator_session_places", "Sessions that all take.", value=numbers.places
        )
        yield GaugeMetricFamily(
            "coordinator_sessions", "Sessions that all have.", value=numbers.occupied
        )
