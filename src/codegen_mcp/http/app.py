"""The HTTP face of a worker: metrics, and health for probes that do not speak gRPC."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


def make_app(
    *, metrics: Callable[[], bytes], metrics_type: str, ready: Callable[[], bool]
) -> Starlette:
    """Make the application.

    Args:
        metrics: The page that Prometheus scrapes.
        metrics_type: Its content type.
        ready: Whether the worker takes new work.
    """

    async def show_metrics(request: Request) -> Response:
        return Response(metrics(), headers={"content-type": metrics_type})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        if ready():
            return PlainTextResponse("ready\n")
        return PlainTextResponse("draining\n", status_code=503)

    return Starlette(
        routes=[
            Route("/metrics", show_metrics),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )
