"""Files and artifacts as resources: ``workspace://SESSION/PATH`` and ``artifact://ID``."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, unquote, urlsplit

from mcp_types import (
    BlobResourceContents,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as artifacts_pb
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.coordinator.mcp import artifacts
from codegen_mcp.coordinator.mcp.budget import json_size
from codegen_mcp.coordinator.mcp.call import Call
from codegen_mcp.coordinator.mcp.config import MAX_BLOB_BYTES, MAX_EVENT_BYTES
from codegen_mcp.coordinator.mcp.file_tools import do, workspace_uri
from codegen_mcp.coordinator.mcp.media import OCTETS, as_text, guessed_type
from codegen_mcp.coordinator.mcp.sessions import Chosen
from codegen_mcp.coordinator.mcp.words import size
from codegen_mcp.core.errors import InvalidRequest, LimitExceeded, NotFound, WorkerError
from codegen_mcp.server.closing import closing

WORKSPACE, ARTIFACT = "workspace", "artifact"
FILES_LISTED = 500
"""Of one session; a page is one session."""
TEMPLATES = ListResourceTemplatesResult(
    resource_templates=[
        ResourceTemplate(
            name="workspace-file",
            title="File of a session",
            uri_template="workspace://{session_id}/{+path}",
            description="A file of one of your sessions; a path that ends in / lists a directory.",
        ),
        ResourceTemplate(
            name="artifact",
            title="Artifact",
            uri_template="artifact://{artifact_id}",
            description="A file that code left in artifacts/; it outlives its session.",
        ),
    ]
)


class Resources:
    """What a server offers to read: files of sessions and artifacts."""

    templates = TEMPLATES

    async def list_page(self, call: Call, cursor: str) -> ListResourcesResult:
        """See ``list_page``."""
        return await list_page(call, cursor)

    async def read(self, call: Call, uri: str) -> ReadResourceResult:
        """See ``read``."""
        return await read(call, uri)


async def list_page(call: Call, cursor: str) -> ListResourcesResult:
    """Artifacts first, then the files of one session a page."""
    kind, _, token = cursor.partition(":")
    if kind in ("", "a"):
        page = await call.unary(
            artifacts.LIST,
            artifacts_pb.ListArtifactsRequest(page_size=artifacts.PAGE, page_token=token),
            artifacts_pb.ListArtifactsResponse,
        )
        after = f"a:{page.next_page_token}" if page.next_page_token else "s:"
        found = [_artifact(one) for one in page.artifacts]
        if found or page.next_page_token:
            return ListResourcesResult(resources=found, next_cursor=after)
        token = ""
    elif kind != "s":
        raise InvalidRequest(f"cursor {cursor[:80]!r} is not one of this server")
    sessions = await call.unary(
        "SessionManagement/ListSessions",
        sessions_pb.ListSessionsRequest(page_size=1, page_token=token),
        sessions_pb.ListSessionsResponse,
    )
    listed = [
        one for session in sessions.sessions for one in await _files(call, session.session_id)
    ]
    return ListResourcesResult(
        resources=listed,
        next_cursor=f"s:{sessions.next_page_token}" if sessions.next_page_token else None,
    )


async def read(call: Call, uri: str) -> ReadResourceResult:
    """Read one.

    Raises:
        NotFound: There is no such thing, or it is another's.
        LimitExceeded: It is too large for a message; says how to get it.
    """
    parts = urlsplit(uri)
    if parts.scheme == WORKSPACE and parts.netloc:
        return await _read_file(call, uri, parts.netloc, unquote(parts.path.removeprefix("/")))
    if parts.scheme == ARTIFACT and parts.netloc and not parts.path.strip("/"):
        found = await artifacts.find(call, parts.netloc)
        if found.size_bytes > MAX_BLOB_BYTES:
            raise _too_large(found.name, found.size_bytes, found.download_url)
        return _contents(uri, await artifacts.bytes_of(call, found), found.content_type)
    raise NotFound(
        f"there is no resource {uri[:200]!r}; use workspace://SESSION_ID/PATH or "
        "artifact://ARTIFACT_ID"
    )


async def _read_file(call: Call, uri: str, session_id: str, path: str) -> ReadResourceResult:
    if not path or path.endswith("/"):
        got, _ = await do(
            call, "fs.list", {"path": path.rstrip("/")}, Chosen(session_id=session_id)
        )
        base = workspace_uri(session_id, "")
        entries = [
            {
                "uri": base + quote(one["path"]) + ("/" if one["is_directory"] else ""),
                "size": one["size_bytes"],
            }
            for one in got.answer["files"][:FILES_LISTED]
        ]
        text = json.dumps({"entries": entries, "total_count": got.answer["total_count"]})
        return ReadResourceResult(
            contents=[TextResourceContents(uri=uri, mime_type="application/json", text=text)]
        )
    data = bytearray()
    request = files_pb.DownloadRequest(session_id=session_id, path=path, length=MAX_BLOB_BYTES + 1)
    async with closing(call.gateway.download(call.principal, request)) as chunks:
        async for chunk in chunks:
            data += chunk.data
    if len(data) > MAX_BLOB_BYTES:
        raise _too_large(path, None, "")
    return _contents(uri, bytes(data), guessed_type(path, bytes(data[:32])))


def _contents(uri: str, data: bytes, kind: str) -> ReadResourceResult:
    text = as_text(data, cut=False)
    if text is not None and json_size(text) < MAX_EVENT_BYTES - 16 * 1024:
        kind = "text/plain" if kind == OCTETS else kind
        return ReadResourceResult(
            contents=[TextResourceContents(uri=uri, mime_type=kind, text=text)]
        )
    blob = base64.b64encode(data).decode("ascii")
    return ReadResourceResult(contents=[BlobResourceContents(uri=uri, mime_type=kind, blob=blob)])


async def _files(call: Call, session_id: str) -> list[Resource]:
    arguments = {"recursive": True, "limit": FILES_LISTED}
    try:
        got, _ = await do(call, "fs.list", arguments, Chosen(session_id=session_id))
    except WorkerError:  # it ended meanwhile, or cannot be looked at now
        return []
    return [
        Resource(
            name=one["path"],
            uri=workspace_uri(session_id, one["path"]),
            mime_type=guessed_type(one["path"]),
            size=one["size_bytes"],
        )
        for one in got.answer["files"]
        if not one["is_directory"] and not one.get("link_target")
    ]


def _artifact(found: artifacts_pb.ArtifactMetadata) -> Resource:
    one = artifacts.item(found)
    return Resource(name=one.name, uri=one.uri, mime_type=one.content_type, size=one.size_bytes)


def _too_large(name: str, total: int | None, url: str) -> LimitExceeded:
    has = f"has {size(total)}" if total is not None else f"has more than {size(MAX_BLOB_BYTES)}"
    other = f"fetch {url}" if url else "read it in parts with fs_read"
    return LimitExceeded(
        f"{name[:200]!r} {has}, at most {size(MAX_BLOB_BYTES)} fit into a message; {other}"
    )
