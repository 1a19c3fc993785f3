"""A whole artifact in memory, for a tool."""

from __future__ import annotations

from codegen_mcp.core.errors import LimitExceeded
from codegen_mcp.engine.artifacts.base import Artifacts
from codegen_mcp.tools.base import ArtifactContent


async def read_content(artifacts: Artifacts, artifact_id: str, max_bytes: int) -> ArtifactContent:
    """Read it.

    Raises:
        NotFound, Corrupt: As ``Artifacts``.
        LimitExceeded: It is longer; the message has a link to it.
    """
    info = await artifacts.get(artifact_id)
    if info.size_bytes > max_bytes:
        link = await artifacts.download_link(info)
        where = f"download it from {link}" if link else "set HTTP_PORT to get a link to it"
        raise LimitExceeded(
            f"artifact {artifact_id!r} has {info.size_bytes} bytes and at most {max_bytes} fit "
            f"into an answer; {where}"
        )
    data = b"".join([piece async for piece in artifacts.read(artifact_id)])
    return ArtifactContent(
        artifact_id=artifact_id, name=info.name, content_type=info.content_type, data=data
    )
