"""WorkspaceFiles: files of any size, in pieces, with their length and digest at the end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator

from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2_grpc
from codegen_mcp.core.errors import InvalidRequest, NotFound
from codegen_mcp.core.limits import MIB
from codegen_mcp.engine.base import Sessions
from codegen_mcp.server.caller_gate import CallerGate
from codegen_mcp.server.closing import closing
from codegen_mcp.server.convert import MAX_CHUNK_BYTES, not_negative
from codegen_mcp.server.interceptors import Context, bind_ids
from codegen_mcp.server.parts import write_part
from codegen_mcp.server.revival import Revival
from codegen_mcp.tools.base import Workspace

REFUSED_BYTES = 64 * MIB
REFUSED_S = 1.0
"""How much a caller may go on sending after its upload was refused, and for how long."""


class FilesService(workspace_files_pb2_grpc.WorkspaceFilesServicer):
    """Streams files in and out of workspaces."""

    def __init__(self, sessions: Sessions, gate: CallerGate, revival: Revival) -> None:
        self._sessions = sessions
        self._gate = gate
        self._revival = revival

    async def Upload(
        self, request_iterator: AsyncIterator[pb.UploadChunk], context: Context
    ) -> pb.UploadSummary:
        """Write one file atomically."""
        try:
            header = await first_header(request_iterator)
            bind_ids(header)
            self._gate.check_session(header.session_id)
            workspace = await self._workspace(header.session_id)
            size, sha256 = await workspace.write_chunks(
                header.path,
                checked_data(request_iterator),
                create_dirs=header.create_dirs,
                mode=header.mode or None,
                expected_size=header.size if header.HasField("size") else None,
                expected_sha256=header.sha256.lower() if header.HasField("sha256") else None,
            )
            return pb.UploadSummary(path=header.path, size=size, sha256=sha256)
        except Exception:
            await let_finish(request_iterator)
            raise

    async def _workspace(self, session_id: str) -> Workspace:
        """The files of a session; one that is gone is restored where it asked for that."""
        try:
            return self._sessions.workspace(session_id)
        except NotFound:
            if not await self._revival.restore(session_id):
                raise
            return self._sessions.workspace(session_id)

    async def Download(self, request: pb.DownloadRequest, context: Context) -> pb.DownloadChunk:  # type: ignore[override]  # the last message; others are written
        """Read one file as it was when it was opened."""
        skip = not_negative("offset", request.offset) or 0
        left = not_negative("length", request.length)
        workspace = self._sessions.workspace(request.session_id)
        digest, sent = hashlib.sha256(), 0
        async with closing(workspace.read_chunks(request.path, MAX_CHUNK_BYTES)) as chunks:
            async for chunk in chunks:
                piece = chunk[skip:] if skip else chunk
                skip -= len(chunk) - len(piece)
                if left is not None:
                    piece = piece[:left]
                    left -= len(piece)
                if piece:
                    digest.update(piece)
                    sent += len(piece)
                    await write_part(context, pb.DownloadChunk(data=piece))
                if left == 0:
                    break
        return pb.DownloadChunk(summary=pb.DownloadSummary(size=sent, sha256=digest.hexdigest()))


async def let_finish(parts: AsyncIterator[pb.UploadChunk]) -> None:
    """Take what a refused caller still sends, for a while.

    A grpc.aio client whose stream is ended under a send reports INTERNAL in place of our status.
    """
    left = REFUSED_BYTES
    with contextlib.suppress(Exception):
        async with asyncio.timeout(REFUSED_S):
            async for part in parts:
                left -= len(part.data)
                if left < 0:
                    return


async def first_header(parts: AsyncIterator[pb.UploadChunk]) -> pb.UploadHeader:
    """Take the header.

    Raises:
        InvalidRequest: The stream begins otherwise.
    """
    async for part in parts:
        if part.WhichOneof("part") == "header":
            return part.header
        break
    raise InvalidRequest("an upload begins with its header; nothing was written")


async def checked_data(parts: AsyncIterator[pb.UploadChunk]) -> AsyncIterator[bytes]:
    """Pass the data on; return only when all of it came, as the end says.

    Raises:
        InvalidRequest: A piece is too large, something is out of order, the stream stopped before
            its end, or the end names other bytes than came.
    """
    digest, size = hashlib.sha256(), 0
    end: pb.UploadEnd | None = None
    async for part in parts:
        kind = part.WhichOneof("part")
        if end is not None:
            raise InvalidRequest("something follows the end of the upload; nothing was written")
        if kind == "end":
            end = part.end
        elif kind != "data":
            raise InvalidRequest(f"an upload goes on with data, not {kind}; nothing was written")
        elif len(part.data) > MAX_CHUNK_BYTES:
            raise InvalidRequest(
                f"a piece has {len(part.data)} bytes; send at most {MAX_CHUNK_BYTES}"
            )
        elif part.data:
            digest.update(part.data)
            size += len(part.data)
            yield part.data
    if end is None:
        raise InvalidRequest(
            f"the upload stopped after {size} bytes without its end; nothing was written",
            reason="UPLOAD_INCOMPLETE",
        )
    if end.size != size or end.sha256.lower() != digest.hexdigest():
        raise InvalidRequest(
            f"{size} bytes with sha256 {digest.hexdigest()} came, but the end says {end.size} and "
            f"{end.sha256[:64]!r}; nothing was written, send it again",
            reason="UPLOAD_MISMATCH",
        )
