from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from codegen_mcp.core.session import SessionConfig
from codegen_mcp.core.task import EndedBy, TaskStatus
from codegen_mcp.engine.hooks import EngineHooks
from codegen_mcp.server.hooks import ServerHooks
from codegen_mcp.telemetry.metrics import WorkerMetrics
from codegen_mcp.testing.memory_engine import MemorySessions


def samples(metrics: WorkerMetrics) -> dict[str, float]:
    return {
        sample.name
        + "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_metrics_are_hooks_of_the_engine_and_the_server():
    engine: EngineHooks = WorkerMetrics()
    server: ServerHooks = WorkerMetrics()
    assert engine
    assert server


async def test_sessions_are_counted_when_they_are_asked_for():
    sessions = MemorySessions(3)
    metrics = WorkerMetrics(worker_id="w", version="1")
    metrics.watch(sessions)
    view = await sessions.create(SessionConfig())
    await sessions.workspace(view.session_id).write("f", b"x" * 10, create_dirs=False, mode=None)
    shown = samples(metrics)
    assert shown["worker_sessions_active"] == 1
    assert shown["worker_sessions_capacity"] == 3
    assert shown["worker_workspace_size_bytes"] == 10
    assert shown["worker_info{version=1}{worker_id=w}"] == 1


def test_every_event_has_its_metric():
    metrics = WorkerMetrics()
    metrics.session_created(pooled=True, seconds=0.01)
    metrics.session_adopted()
    metrics.session_destroyed(reason="idle", seconds=0.1)
    metrics.session_refused(reason="FULL")
    metrics.sandbox_lost()
    metrics.sandbox_booted(seconds=0.05)
    metrics.boot_failed()
    metrics.pool_taken(hit=True)
    metrics.pool_taken(hit=False)
    metrics.pool_depth(ready=2, target=4)
    metrics.task_started(tool="echo")
    metrics.task_finished(
        tool="echo", status=TaskStatus.SUCCESS, ended_by=EndedBy.EXIT, seconds=0.2
    )
    metrics.task_started(tool="fs.read")
    metrics.task_finished(tool="fs.read", status=TaskStatus.FAILURE, ended_by=None, seconds=0.1)
    metrics.call_finished(method="/m", code="OK", seconds=0.001)
    shown = samples(metrics)
    for name in (
        "worker_sessions_created_total{pooled=yes}",
        "worker_session_create_seconds_count{pooled=yes}",
        "worker_sessions_adopted_total",
        "worker_sessions_destroyed_total{reason=idle}",
        "worker_session_destroy_seconds_count",
        "worker_sessions_refused_total{reason=FULL}",
        "worker_sandboxes_lost_total",
        "worker_sandbox_boot_seconds_count",
        "worker_sandbox_boot_failures_total",
        "worker_pool_hits_total",
        "worker_pool_misses_total",
        "worker_tasks_total{status=success}{tool=echo}",
        "worker_tasks_total{status=error}{tool=fs.read}",
        "worker_task_duration_seconds_count{tool=echo}",
        "worker_tasks_ended_by_total{ended_by=exit}",
        "worker_rpcs_total{code=OK}{method=/m}",
        "worker_rpc_duration_seconds_count{method=/m}",
    ):
        assert shown[name] == 1, name
    assert (shown["worker_pool_depth"], shown["worker_pool_target"]) == (2, 4)
    assert metrics.tasks_running == 0


@pytest.mark.parametrize("number", [1, 2])
def test_two_workers_in_one_process_do_not_share_counters(number):
    metrics = WorkerMetrics()
    metrics.sandbox_lost()
    assert samples(metrics)["worker_sandboxes_lost_total"] == 1
