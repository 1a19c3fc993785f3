"""The HTTP face of a worker: metrics, artifacts, and health for probes that do not speak gRPC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route


def make_app(
    *,
    ready: Callable[[], bool],
    facts: Mapping[str, str] | None = None,
    metrics: Callable[[], bytes] | None = None,
    metrics_type: str = "text/plain",
    routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """Make the application.

    Args:
        ready: Whether the worker takes new work.
        facts: What the worker tells of itself; shown below the word that says whether it is ready.
        metrics: The page that Prometheus scrapes; None serves none.
        metrics_type: Its content type.
        routes: Further ones.
    """

    async def show_metrics(request: Request) -> Response:
        assert metrics is not None
        return Response(metrics(), headers={"content-type": metrics_type})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        if ready():
            return PlainTextResponse("ready\n" + shown_facts)
        return PlainTextResponse("draining\n" + shown_facts, status_code=503)

    shown_facts = "".join(
        f"{name}: {line}\n" for name, text in (facts or {}).items() for line in text.split("\n")
    )
    shown = [Route("/metrics", show_metrics)] if metrics is not None else []
    app = Starlette(routes=[*shown, Route("/healthz", healthz), Route("/readyz", readyz), *routes])
    # A redirect would name whatever host the request did, with the signature of the link in it.
    app.router.redirect_slashes = False
    return app
