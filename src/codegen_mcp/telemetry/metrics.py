"""Every Prometheus metric of the worker: names in one table, filled from the hooks.

Labels come from small sets (tool, status, reason, method); an id is never a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import Info as InfoMetric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from codegen_mcp.core.task import EndedBy, TaskStatus
from codegen_mcp.engine.base import Sessions

CONTENT_TYPE = CONTENT_TYPE_LATEST

FAST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds: of what should take milliseconds."""
TASK_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0)
"""Seconds: of code."""


class WorkerMetrics:
    """Implements the engine's and the server's hooks; owns its registry."""

    def __init__(self, *, worker_id: str = "", version: str = "") -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._running = 0
        # What ``labels`` finds, remembered: it costs more than the counting.
        self._task_children: dict[
            tuple[str, TaskStatus, EndedBy | None], tuple[Counter, Histogram, Counter | None]
        ] = {}
        self._call_children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        info = InfoMetric("worker", "Which worker this is.", registry=registry)
        info.info({"worker_id": worker_id, "version": version})

        self._created = Counter(
            "worker_sessions_created",
            "Sessions made, by whether their sandbox was booted ahead.",
            ["pooled"],
            registry=registry,
        )
        self._create_seconds = Histogram(
            "worker_session_create_seconds",
            "Time to make a session.",
            ["pooled"],
            buckets=FAST_BUCKETS,
            registry=registry,
        )
        self._adopted = Counter(
            "worker_sessions_adopted", "Sessions taken over from a dead worker.", registry=registry
        )
        self._destroyed = Counter(
            "worker_sessions_destroyed", "Sessions that ended.", ["reason"], registry=registry
        )
        self._destroy_seconds = Histogram(
            "worker_session_destroy_seconds",
            "Time to end a session.",
            buckets=FAST_BUCKETS,
            registry=registry,
        )
        self._refused = Counter(
            "worker_sessions_refused",
            "Sessions that were asked for and not made.",
            ["reason"],
            registry=registry,
        )
        self._lost = Counter(
            "worker_sandboxes_lost", "Sandboxes that ended by themselves.", registry=registry
        )
        self._boot_seconds = Histogram(
            "worker_sandbox_boot_seconds",
            "Time to boot a sandbox, ahead or on demand.",
            buckets=FAST_BUCKETS,
            registry=registry,
        )
        self._boot_failures = Counter(
            "worker_sandbox_boot_failures", "Sandboxes that did not boot.", registry=registry
        )
        self._hits = Counter(
            "worker_pool_hits", "Sessions that found a sandbox in the pool.", registry=registry
        )
        self._misses = Counter(
            "worker_pool_misses", "Sessions that found none that fits.", registry=registry
        )
        self._tampered = Counter(
            "worker_pool_tampered",
            "Waiting sandboxes that were thrown away, since they were not as they were put by.",
            ["change"],
            registry=registry,
        )
        self._ready = Gauge("worker_pool_depth", "Sandboxes that wait.", registry=registry)
        self._target = Gauge("worker_pool_target", "Sandboxes wanted.", registry=registry)
        self._tasks = Counter(
            "worker_tasks",
            "Tasks that ended; status error: the tool could not do its part.",
            ["tool", "status"],
            registry=registry,
        )
        self._task_seconds = Histogram(
            "worker_task_duration_seconds",
            "Time that tasks ran.",
            ["tool"],
            buckets=TASK_BUCKETS,
            registry=registry,
        )
        self._ended_by = Counter(
            "worker_tasks_ended_by", "Why tasks ended.", ["ended_by"], registry=registry
        )
        self._calls = Counter(
            "worker_rpcs", "Calls that ended, by status.", ["method", "code"], registry=registry
        )
        self._call_seconds = Histogram(
            "worker_rpc_duration_seconds",
            "Time of calls, their streams included.",
            ["method"],
            buckets=FAST_BUCKETS,
            registry=registry,
        )

    def watch(self, sessions: Sessions) -> None:
        """Show this engine's sessions; they are asked at each scrape."""
        self.registry.register(_SessionsNow(sessions, self))

    def render(self) -> bytes:
        """Return the page that Prometheus scrapes (``CONTENT_TYPE``)."""
        return generate_latest(self.registry)

    @property
    def tasks_running(self) -> int:
        """Tasks that run now, those that wait not counted."""
        return self._running

    # The engine's hooks.

    def session_created(self, *, pooled: bool, seconds: float) -> None:
        """Count and time."""
        label = "yes" if pooled else "no"
        self._created.labels(label).inc()
        self._create_seconds.labels(label).observe(seconds)

    def session_adopted(self) -> None:
        """Count."""
        self._adopted.inc()

    def session_destroyed(self, *, reason: str, seconds: float) -> None:
        """Count and time."""
        self._destroyed.labels(reason).inc()
        self._destroy_seconds.observe(seconds)

    def session_refused(self, *, reason: str) -> None:
        """Count."""
        self._refused.labels(reason).inc()

    def sandbox_lost(self) -> None:
        """Count."""
        self._lost.inc()

    def sandbox_booted(self, *, seconds: float) -> None:
        """Time."""
        self._boot_seconds.observe(seconds)

    def boot_failed(self) -> None:
        """Count."""
        self._boot_failures.inc()

    def pool_taken(self, *, hit: bool) -> None:
        """Count."""
        (self._hits if hit else self._misses).inc()

    def pool_tampered(self, *, change: str) -> None:
        """Count."""
        self._tampered.labels(change).inc()

    def pool_depth(self, *, ready: int, target: int) -> None:
        """Set."""
        self._ready.set(ready)
        self._target.set(target)

    def task_started(self, *, tool: str) -> None:
        """Count."""
        self._running += 1

    def task_finished(
        self, *, tool: str, status: TaskStatus, ended_by: EndedBy | None, seconds: float
    ) -> None:
        """Count and time."""
        self._running -= 1
        known = self._task_children.get((tool, status, ended_by))
        if known is None:
            known = (
                self._tasks.labels(tool, "error" if ended_by is None else status.name.lower()),
                self._task_seconds.labels(tool),
                None if ended_by is None else self._ended_by.labels(ended_by.name.lower()),
            )
            self._task_children[tool, status, ended_by] = known
        count, time, cause = known
        count.inc()
        time.observe(seconds)
        if cause is not None:
            cause.inc()

    # The server's hooks.

    def call_finished(self, *, method: str, code: str, seconds: float) -> None:
        """Count and time."""
        known = self._call_children.get((method, code))
        if known is None:
            known = self._calls.labels(method, code), self._call_seconds.labels(method)
            self._call_children[method, code] = known
        count, time = known
        count.inc()
        time.observe(seconds)


class _SessionsNow(Collector):
    """Gauges that are read when they are scraped."""

    def __init__(self, sessions: Sessions, metrics: WorkerMetrics) -> None:
        self._sessions = sessions
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Name the gauges without asking the engine."""
        return [GaugeMetricFamily(name, text) for name, text in _NOW]

    def collect(self) -> Iterator[Metric]:
        """Ask the engine."""
        room = self._sessions.capacity()
        running = self._metrics.tasks_running
        tasks = sum(view.active_tasks for view in room.sessions)
        values = (
            room.active,
            room.total,
            sum(view.usage.disk_bytes for view in room.sessions),
            sum(view.usage.memory_bytes for view in room.sessions),
            sum(view.usage.pids for view in room.sessions),
            running,
            max(0, tasks - running),
        )
        for (name, text), value in zip(_NOW, values, strict=True):
            yield GaugeMetricFamily(name, text, value=value)


_NOW = (
    ("worker_sessions_active", "Sessions now."),
    ("worker_sessions_capacity", "Sessions that this worker holds at most."),
    ("worker_workspace_size_bytes", "Disk that all sessions use, environments included."),
    ("worker_sessions_memory_bytes", "Memory that all sessions use."),
    ("worker_sessions_processes", "Processes and threads of all sessions."),
    ("worker_tasks_running", "Tasks that run."),
    ("worker_tasks_queued", "Tasks that wait."),
)
