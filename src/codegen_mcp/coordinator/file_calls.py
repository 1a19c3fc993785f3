"""WorkspaceFiles by routing: pieces are passed on as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as pb
from codegen_mcp.coordinator import refusals
from codegen_mcp.coordinator.calls import SessionCalls
from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.coordinator.routes import Held
from codegen_mcp.core.errors import InvalidRequest, WorkerError


class FileFace:
    """Sends and fetches the files of principals' sessions."""

    def __init__(self, calls: SessionCalls) -> None:
        self._calls = calls

    async def upload(
        self, principal: Principal, chunks: AsyncIterator[pb.UploadChunk]
    ) -> pb.UploadSummary:
        """Write a file; its pieces come once, so a link that breaks under them ends the upload."""
        first = await anext(chunks, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidRequest("an upload begins with its header; nothing was written")
        taken = False

        async def pieces() -> AsyncGenerator[pb.UploadChunk, None]:
            nonlocal taken
            yield first
            async for chunk in chunks:
                taken = True
                yield chunk

        async def work(held: Held) -> pb.UploadSummary:
            async with aclosing(pieces()) as parts:
                try:
                    return await held.link.upload(parts, epoch=held.row.epoch)
                except WorkerError as error:
                    if taken and not refusals.is_broken(error):
                        raise Spoilt(error) from error
                    raise

        try:
            return await self._calls.attempt(
                principal, first.header.session_id, work, what="an upload", repeatable=False
            )
        except Spoilt as spoilt:
            raise spoilt.error from spoilt.error.__cause__

    async def download(
        self, principal: Principal, request: pb.DownloadRequest
    ) -> AsyncGenerator[pb.DownloadChunk, None]:
        """Read a file; begun again where nothing of it was passed on yet."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._calls.wait_s
        began = False
        while True:
            held = await self._calls.held(principal, request.session_id)
            stream = held.link.download(request, epoch=held.row.epoch)
            try:
                async with aclosing(cast("AsyncGenerator[pb.DownloadChunk, None]", stream)):
                    async for chunk in stream:
                        began = True
                        yield chunk
                return
            except WorkerError as error:
                if began or loop.time() >= give_up:
                    raise
                await self._calls.after(held, error, uses=True)


class Spoilt(Exception):
    """An upload was refused after pieces of it were used up: it cannot be sent again."""

    def __init__(self, error: WorkerError) -> None:
        super().__init__(str(error))
        self.error = error
