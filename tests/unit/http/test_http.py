from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import pytest

from codegen_mcp.http.app import make_app
from codegen_mcp.http.server import HttpServer
from codegen_mcp.telemetry.metrics import CONTENT_TYPE, WorkerMetrics


async def get(port: int, path: str) -> tuple[int, str, str]:
    def fetch() -> tuple[int, str, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.headers["content-type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], error.read().decode()

    return await asyncio.to_thread(fetch)


async def test_metrics_and_health_are_served_and_readiness_follows_the_worker():
    ready = True
    metrics = WorkerMetrics(worker_id="w")
    app = make_app(metrics=metrics.render, metrics_type=CONTENT_TYPE, ready=lambda: ready)
    async with HttpServer(app, host="127.0.0.1", port=0) as server:
        page = await get(server.port, "/metrics")
        health = await get(server.port, "/healthz")
        before = await get(server.port, "/readyz")
        ready = False
        after = await get(server.port, "/readyz")
        nothing = await get(server.port, "/none")
    assert page[:2] == (200, CONTENT_TYPE)
    assert "worker_info" in page[2]
    assert health[0] == 200
    assert (before[0], after[0], nothing[0]) == (200, 503, 404)


async def test_a_taken_port_is_said_so():
    app = make_app(metrics=bytes, metrics_type=CONTENT_TYPE, ready=lambda: True)
    async with HttpServer(app, host="127.0.0.1", port=0) as server:
        with pytest.raises(OSError, match="choose another METRICS_PORT"):
            async with HttpServer(app, host="127.0.0.1", port=server.port):
                pass
