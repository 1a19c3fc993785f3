"""ArtifactService: registered, so that a client hears why it is refused."""

from __future__ import annotations

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as pb
from codegen_mcp._proto.codegen.v1 import artifact_service_pb2_grpc
from codegen_mcp.core.errors import NotImplementedYet
from codegen_mcp.server.interceptors import Context

NO_ARTIFACTS = "this worker keeps no artifacts; take files out with WorkspaceFiles.Download"


class ArtifactService(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Refuses each call."""

    async def GetUploadURL(self, request: pb.UploadRequest, context: Context) -> pb.UploadResponse:
        """Refuse."""
        raise NotImplementedYet(NO_ARTIFACTS)

    async def RecordArtifact(
        self, request: pb.ArtifactMetadata, context: Context
    ) -> pb.ArtifactResponse:
        """Refuse."""
        raise NotImplementedYet(NO_ARTIFACTS)

    async def ListArtifacts(
        self, request: pb.ListArtifactsRequest, context: Context
    ) -> pb.ListArtifactsResponse:
        """Refuse."""
        raise NotImplementedYet(NO_ARTIFACTS)

    async def DeleteArtifact(
        self, request: pb.DeleteArtifactRequest, context: Context
    ) -> pb.DeleteArtifactResponse:
        """Refuse."""
        raise NotImplementedYet(NO_ARTIFACTS)
