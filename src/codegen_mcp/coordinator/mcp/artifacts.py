"""Artifacts for models: small images to look at, everything else as links."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import structlog
from mcp_types import ContentBlock, ImageContent, ResourceLink

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as pb
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp.coordinator.mcp.answers import ArtifactAnswer, ArtifactItem, ArtifactsAnswer
from codegen_mcp.coordinator.mcp.arguments import ArtifactListArguments
from codegen_mcp.coordinator.mcp.budget import fitting
from codegen_mcp.coordinator.mcp.call import Call, Reply
from codegen_mcp.coordinator.mcp.media import IMAGE_TYPES, as_text, image_type
from codegen_mcp.coordinator.mcp.tasks import run
from codegen_mcp.coordinator.mcp.words import paragraphs, shown_name, size
from codegen_mcp.core.errors import NotFound, WorkerError
from codegen_mcp.tools.artifact_get import ArtifactGetArguments

log = structlog.get_logger()

PAGE = 50
LIST = "ArtifactService/ListArtifacts"


def artifact_uri(artifact_id: str) -> str:
    """Name of an artifact as a resource."""
    return f"artifact://{artifact_id}"


def item(found: pb.ArtifactMetadata) -> ArtifactItem:
    """Facts of one."""
    return ArtifactItem(
        artifact_id=found.artifact_id,
        name=found.name,
        content_type=found.content_type,
        size_bytes=found.size_bytes,
        uri=artifact_uri(found.artifact_id),
        session_id=found.session_id,
        task_id=found.task_id,
        created_at_ms=found.created_at_ms,
    )


def link(one: ArtifactItem) -> ResourceLink:
    """A link that a client may follow."""
    return ResourceLink(name=one.name, uri=one.uri, mime_type=one.content_type, size=one.size_bytes)


def image(data: bytes, content_type: str) -> ImageContent:
    """An image to look at."""
    return ImageContent(data=base64.b64encode(data).decode("ascii"), mime_type=content_type)


async def of_task(call: Call, session_id: str, task_id: str) -> Sequence[ArtifactItem]:
    """What a task left; nothing where that cannot be told now: its result matters more."""
    try:
        page = await call.unary(
            LIST,
            pb.ListArtifactsRequest(session_id=session_id, task_id=task_id, page_size=PAGE),
            pb.ListArtifactsResponse,
        )
    except WorkerError as error:
        log.info("mcp.artifacts_not_listed", reason=error.reason)
        return []
    return [item(found) for found in page.artifacts]


async def blocks(
    call: Call, session_id: str, found: Sequence[ArtifactItem]
) -> tuple[ContentBlock, ...]:
    """Images as long as they fit into the budget together; links for the rest."""
    shown: list[ContentBlock] = []
    room = call.config.image_bytes
    for one in found:
        if one.content_type in IMAGE_TYPES and one.size_bytes <= room:
            try:
                data = await _read(call, session_id, one.artifact_id)
            except WorkerError as error:  # its session has just ended, for example
                log.info("mcp.image_not_read", reason=error.reason)
                data = b""
            if kind := image_type(data):
                shown.append(image(data, kind))
                room -= len(data)
                continue
        shown.append(link(one))
    return tuple(shown)


async def artifact_list(call: Call, arguments: ArtifactListArguments) -> Reply:
    """One page, newest first."""
    page = await call.unary(
        LIST,
        pb.ListArtifactsRequest(
            session_id=arguments.session_id,
            task_id=arguments.task_id,
            page_size=PAGE,
            page_token=arguments.page,
        ),
        pb.ListArtifactsResponse,
    )
    items = tuple(item(found) for found in page.artifacts)
    return Reply(
        value=ArtifactsAnswer(artifacts=items, next_page=page.next_page_token),
        text=paragraphs(
            *(
                f"{one.artifact_id}  {one.name}  {one.content_type}  {size(one.size_bytes)}"
                for one in items
            ),
            "" if items else "(no artifacts)",
            f"more: page={page.next_page_token!r}" if page.next_page_token else "",
        ),
    )


async def artifact_get(call: Call, arguments: ArtifactGetArguments) -> Reply:
    """Show one: an image as such, text that fits, else where its bytes are."""
    found = await find(call, arguments.artifact_id)
    one = item(found)
    facts: dict[str, Any] = {
        **one.model_dump(),
        "sha256": found.checksum_sha256,
        "download_url": found.download_url,
    }
    head = f"{one.name} ({one.content_type}, {size(one.size_bytes)})"
    limit = max(call.config.image_bytes, call.config.form_bytes)
    if one.size_bytes > limit:
        notice = "It is too large to be shown; follow the link, or let code in a session read it."
        return Reply(
            value=ArtifactAnswer(**facts, notice=notice),
            text=paragraphs(head, notice, found.download_url),
            blocks=(link(one),),
        )
    data = await bytes_of(call, found)
    kind = image_type(data)
    if kind and len(data) <= call.config.image_bytes:
        return Reply(value=ArtifactAnswer(**facts), text=head, blocks=(image(data, kind),))
    kept = fitting(data, call.config.form_bytes)
    text = as_text(kept, cut=len(kept) < len(data))
    if text is None:
        notice = "It is not text; follow the link, or let code in a session read it."
        return Reply(
            value=ArtifactAnswer(**facts, notice=notice),
            text=paragraphs(head, notice, found.download_url),
            blocks=(link(one),),
        )
    cut = len(data) - len(text.encode())
    notice = (
        f"{cut:,} bytes at its end are not shown; follow the link for all of it." if cut else ""
    )
    return Reply(
        value=ArtifactAnswer(**facts, contents=text, notice=notice),
        text=paragraphs(text, f"[{head}]", notice),
        blocks=(link(one),) if cut else (),
    )


async def find(call: Call, artifact_id: str) -> pb.ArtifactMetadata:
    """Facts of one of the caller's.

    Raises:
        NotFound: There is none, or it is another's.
    """
    missing = NotFound(
        f"there is no artifact {artifact_id[:80]!r} (any more); see "
        f"{shown_name(call.config, 'artifact.list')}",
        reason="ARTIFACT_NOT_FOUND",
    )
    try:
        page = await call.unary(
            LIST, pb.ListArtifactsRequest(artifact_id=artifact_id), pb.ListArtifactsResponse
        )
    except NotFound as error:
        raise missing from error
    # A worker that knows no such filter answers with all there are.
    found = next((one for one in page.artifacts if one.artifact_id == artifact_id), None)
    if found is None:
        raise missing
    return found


async def bytes_of(call: Call, found: pb.ArtifactMetadata) -> bytes:
    """Its bytes, by way of its own session while that lives, else of the caller's."""
    session_id = found.session_id
    try:
        await call.unary(
            "SessionManagement/GetSessionStatus",
            sessions_pb.SessionStatusRequest(session_id=session_id),
            sessions_pb.SessionStatusResponse,
        )
    except NotFound:
        session_id = (await call.sessions.any("")).session_id
    return await _read(call, session_id, found.artifact_id)


async def _read(call: Call, session_id: str, artifact_id: str) -> bytes:
    got = await run(call, session_id, "artifact.get", {"artifact_id": artifact_id})
    got.check()
    data = got.answer.get("data", b"")
    return base64.b64decode(data) if isinstance(data, str) else bytes(data)
