"""Artifacts over HTTP: PUT once, GET and HEAD with ranges, each by a signed link."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from codegen_mcp.core import errors
from codegen_mcp.engine.artifacts.base import ArtifactInfo, Artifacts
from codegen_mcp.http.artifact_links import PATH, ArtifactLinks
from codegen_mcp.http.disposition import attachment
from codegen_mcp.http.ranges import Unsatisfiable, if_range, none_match, parse_range

log = structlog.get_logger()

SILENCE_S = 60.0
"""An upload of which nothing came for so long is given up."""
SLOWEST_BYTES_PER_S = 16 * 1024
"""So is one that is slower than this on the whole, SILENCE_S aside: its room is reserved."""

STATUS: Mapping[type[errors.WorkerError], int] = {
    errors.InvalidRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.Conflict: 409,
    errors.LimitExceeded: 413,
    errors.Unavailable: 503,
    errors.Full: 507,
}
"""Anything else is 500."""


Guard = Callable[[Mapping[str, str], str, str], Awaitable[None]]
"""Of headers (names in lower case), artifact and peer; raises where a link is not enough."""


def artifact_route(artifacts: Artifacts, links: ArtifactLinks, guard: Guard | None = None) -> Route:
    """Make the route of all links.

    Args:
        artifacts: What is served.
        links: Made every link that is accepted.
        guard: Asked about each request whose link is good.
    """

    async def serve(request: Request) -> Response:
        artifact_id = request.path_params["artifact_id"]
        try:
            # A name given twice might mean one thing here and another elsewhere.
            query = dict(request.query_params)
            if len(query) != len(request.query_params.multi_items()):
                query = {}
            grant = links.check(request.method, artifact_id, query)
            if guard is not None:
                peer = "" if request.client is None else f"{request.client[0]}:{request.client[1]}"
                await guard(request.headers, artifact_id, peer)
            if grant.size_bytes is not None:
                return await _take(request, artifacts, artifact_id, grant.size_bytes)
            return await _give(request, artifacts, await artifacts.get(artifact_id))
        except errors.WorkerError as error:
            return _refusal(error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except TimeoutError:
            return PlainTextResponse(
                f"nothing came for {SILENCE_S:g} s, or too little; send it again\n",
                status_code=408,
                headers={"connection": "close"},
            )

    return Route(PATH + "{artifact_id}", serve, methods=["PUT", "GET", "HEAD"])


async def _take(
    request: Request, artifacts: Artifacts, artifact_id: str, size_bytes: int
) -> Response:
    length = request.headers.get("content-length")
    if length is not None and int(length) > size_bytes:  # the server has checked that it is one
        raise errors.LimitExceeded(
            f"{length} bytes are more than the {size_bytes} that were announced"
        )
    if length is not None and int(length) < size_bytes:
        raise errors.InvalidRequest(
            f"{length} bytes are fewer than the {size_bytes} that were announced"
        )
    if request.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise errors.InvalidRequest("send the bytes as they are, without a Content-Encoding")
    async with contextlib.aclosing(_body(request)) as data:
        sha256 = await artifacts.receive(artifact_id, data)
    return Response(status_code=200, headers={"etag": f'"{sha256}"'})


async def _body(request: Request) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    until = loop.time() + SILENCE_S
    async with contextlib.aclosing(request.stream()) as pieces:
        while True:
            async with asyncio.timeout(SILENCE_S):
                piece = await anext(pieces, None)
            if piece is None:
                return
            until += len(piece) / SLOWEST_BYTES_PER_S
            if loop.time() > until:
                raise TimeoutError
            if piece:
                yield piece


async def _give(request: Request, artifacts: Artifacts, info: ArtifactInfo) -> Response:
    etag = f'"{info.sha256}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "content-disposition": attachment(info.name),
        "content-type": info.content_type,
        # Whatever it holds, it must never act as a page of this origin.
        "content-security-policy": "sandbox; default-src 'none'",
        "x-content-type-options": "nosniff",
    }
    if not none_match(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers={k: headers[k] for k in ("etag", "cache-control")})
    status, offset, length = 200, 0, info.size_bytes
    if request.method == "GET" and if_range(request.headers.get("if-range"), etag):
        try:
            wanted = parse_range(request.headers.get("range"), info.size_bytes)
        except Unsatisfiable:
            return PlainTextResponse(
                f"the artifact has {info.size_bytes} bytes\n",
                status_code=416,
                headers={"content-range": f"bytes */{info.size_bytes}", "etag": etag},
            )
        if wanted is not None:
            status, (offset, length) = 206, wanted
            headers["content-range"] = f"bytes {offset}-{offset + length - 1}/{info.size_bytes}"
    headers["content-length"] = str(length)
    if request.method == "HEAD" or not length:
        return Response(status_code=status, headers=headers)
    pieces = artifacts.read(info.artifact_id, offset=offset, length=length)
    first = await anext(pieces)  # what cannot be read at all is said by the status
    return StreamingResponse(_pieces(first, pieces), status_code=status, headers=headers)


async def _pieces(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Give all; an error ends the connection before the announced length came."""
    async with contextlib.aclosing(rest):  # type: ignore[type-var]
        yield first
        async for piece in rest:
            yield piece


def _refusal(error: errors.WorkerError) -> Response:
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    if status == 500:
        log.error("http.artifact_failed", reason=error.reason, exc_info=error)
    text = error.message if status != 500 or isinstance(error, errors.Corrupt) else "internal error"
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = f"{error.retry_after_s:.0f}"
    return PlainTextResponse(text + "\n", status_code=status, headers=headers)
