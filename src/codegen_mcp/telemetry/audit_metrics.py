"""What metrics tell of the audit log: read when they are scraped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from codegen_mcp.telemetry.audit import AuditLog

RECORDS = ("audit_records", "Records of the audit log that are published with its head.")
HEAD = ("audit_head", "The published end of the audit log: what 'audit verify --head' takes.")
MISSED = ("audit_missed", "Records that could not be written and were given up.")
FAILING = ("audit_failing", "1 while the audit log cannot be written.")


class AuditMetrics(Collector):
    """One audit log's; the head moves once in an interval, so its label has few values a day."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    def describe(self) -> Iterable[Metric]:
        """Name them."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read them."""
        head = self._log.published
        yield GaugeMetricFamily(*RECORDS, value=head.sequence)
        yield InfoMetricFamily(*HEAD, value={"head": str(head)})
        yield CounterMetricFamily(*MISSED, value=self._log.missed)
        yield GaugeMetricFamily(*FAILING, value=int(self._log.failing))
