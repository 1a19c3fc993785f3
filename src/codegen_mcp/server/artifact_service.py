"""ArtifactService: files that outlive their session. Their bytes travel over HTTP."""

from __future__ import annotations

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as pb
from codegen_mcp._proto.codegen.v1 import artifact_service_pb2_grpc
from codegen_mcp.core.errors import NotImplementedYet
from codegen_mcp.engine.artifacts.base import ArtifactInfo, Artifacts
from codegen_mcp.server import convert_artifacts as convert
from codegen_mcp.server.convert import not_negative
from codegen_mcp.server.interceptors import Context

MAX_PAGE = 100
"""An artifact's labels may have 16 KiB, and a page must fit into a message."""


class ArtifactService(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Answers for the artifacts of one worker; refuses each call where there are none."""

    def __init__(self, artifacts: Artifacts | None = None) -> None:
        self._kept = artifacts

    async def GetUploadURL(self, request: pb.UploadRequest, context: Context) -> pb.UploadResponse:
        """Announce an upload and get its link."""
        ticket = await self._artifacts.begin_upload(
            session_id=request.session_id,
            task_id=request.task_id,
            name=request.artifact_name,
            content_type=request.content_type,
            size_bytes=request.size_bytes,
        )
        return pb.UploadResponse(
            upload_url=ticket.upload_url,
            artifact_id=ticket.artifact_id,
            expires_at_ms=ticket.expires_at_ms,
        )

    async def RecordArtifact(
        self, request: pb.ArtifactMetadata, context: Context
    ) -> pb.ArtifactResponse:
        """Check what was uploaded and make it an artifact."""
        _, url = await self._artifacts.record(
            request.artifact_id,
            task_id=request.task_id,
            name=request.name,
            content_type=request.content_type,
            size_bytes=request.size_bytes,
            sha256=request.checksum_sha256,
            labels=request.labels,
        )
        return pb.ArtifactResponse(recorded=True, download_url=url)

    async def ListArtifacts(
        self, request: pb.ListArtifactsRequest, context: Context
    ) -> pb.ListArtifactsResponse:
        """One page, or one artifact by its id."""
        if request.artifact_id:
            return await self._page([await self._artifacts.get(request.artifact_id)])
        size = min(not_negative("page_size", request.page_size) or MAX_PAGE, MAX_PAGE)
        found = await self._artifacts.list(
            request.session_id,
            task_id=request.task_id,
            before=convert.position(request.page_token),
            limit=size + 1,
        )
        page = await self._page(list(found[:size]))
        if len(found) > size:
            page.next_page_token = convert.token(found[size - 1])
        return page

    async def DeleteArtifact(
        self, request: pb.DeleteArtifactRequest, context: Context
    ) -> pb.DeleteArtifactResponse:
        """Delete one; whether there was one."""
        return pb.DeleteArtifactResponse(deleted=await self._artifacts.delete(request.artifact_id))

    @property
    def _artifacts(self) -> Artifacts:
        if self._kept is None:
            raise NotImplementedYet(
                "this worker keeps no artifacts; take files out with WorkspaceFiles.Download"
            )
        return self._kept

    async def _page(self, infos: list[ArtifactInfo]) -> pb.ListArtifactsResponse:
        return pb.ListArtifactsResponse(
            artifacts=[
                convert.metadata(info, await self._artifacts.download_link(info)) for info in infos
            ]
        )
