"""Between the wire and the core: artifacts and pages of them."""

from __future__ import annotations

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as pb
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.engine.artifacts.base import ArtifactInfo


def metadata(info: ArtifactInfo, download_url: str) -> pb.ArtifactMetadata:
    """One artifact."""
    return pb.ArtifactMetadata(
        artifact_id=info.artifact_id,
        task_id=info.task_id,
        name=info.name,
        content_type=info.content_type,
        size_bytes=info.size_bytes,
        checksum_sha256=info.sha256,
        labels=info.labels,
        session_id=info.session_id,
        created_at_ms=info.created_at_ms,
        download_url=download_url,
    )


def token(last: ArtifactInfo) -> str:
    """Name the place after an artifact; others that come or go do not move it."""
    return f"{last.created_at_ms}.{last.artifact_id}"


def position(text: str) -> tuple[int, str] | None:
    """Read a page token.

    Raises:
        InvalidRequest: It is not one of ours.
    """
    if not text:
        return None
    created_at, dot, artifact_id = text.partition(".")
    if not dot or not (created_at.isascii() and created_at.isdecimal()) or len(created_at) > 20:
        raise InvalidRequest(f"page_token {text[:80]!r} is not one that this worker gave")
    return int(created_at), artifact_id
