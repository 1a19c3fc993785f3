"""Artifacts: files that outlive their session. ``sandbox.artifacts``."""

from __future__ import annotations

import asyncio
import builtins
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from codegen_mcp._proto.codegen.v1 import artifact_service_pb2 as pb
from codegen_mcp.client import transfer
from codegen_mcp.client.access import link_headers
from codegen_mcp.client.connection import Connection
from codegen_mcp.client.errors import make_error
from codegen_mcp.client.results import ArtifactInfo

DEFAULT_TYPE = "application/octet-stream"


class Artifacts:
    """Uploads, lists and downloads artifacts of one session; by id, those of any."""

    def __init__(self, connection: Connection, session_id: str = "") -> None:
        """Bind to a session; without one nothing can be uploaded, and ``list`` lists all."""
        self._connection = connection
        self.session_id = session_id

    async def upload(
        self,
        data: str | bytes | os.PathLike[str] | IO[bytes],
        name: str | None = None,
        *,
        content_type: str = "",
        labels: Mapping[str, str] | None = None,
        task_id: str = "",
    ) -> ArtifactInfo:
        """Store bytes as an artifact; what was recorded was compared by length and sha256.

        Args:
            data: Text, bytes, the path of a local file, or an open file, from where it stands.
            name: File name; needed unless ``data`` is a path.
            content_type: Media type; empty is application/octet-stream.
            labels: Strings to find it by.
            task_id: Task that it belongs to.

        Raises:
            StateException: The worker serves no links. NotEnoughSpaceException: A quota.
            DataLossException: Other bytes arrived than were sent.
        """
        if isinstance(data, os.PathLike):
            path = Path(data)
            with await asyncio.to_thread(path.open, "rb") as file:
                return await self._upload(file, name or path.name, content_type, labels, task_id)
        if not name:
            raise make_error("INVALID_ARGUMENT", "give the artifact a name")
        if isinstance(data, str):
            data = data.encode()
        if isinstance(data, bytes):
            data = io.BytesIO(data)
        return await self._upload(data, name, content_type, labels, task_id)

    async def list(self, *, task_id: str = "") -> builtins.list[ArtifactInfo]:
        """List the recorded ones, newest first."""
        found: builtins.list[ArtifactInfo] = []
        token = ""
        while True:
            page = await self._ask(
                pb.ListArtifactsRequest(
                    session_id=self.session_id, task_id=task_id, page_token=token
                )
            )
            found.extend(_info(one) for one in page.artifacts)
            token = page.next_page_token
            if not token:
                return found

    async def get_info(self, artifact_id: str) -> ArtifactInfo:
        """Look one up, with a fresh link. NotFoundException when there is none."""
        if not artifact_id:
            raise make_error("INVALID_ARGUMENT", "artifact_id is empty")
        page = await self._ask(pb.ListArtifactsRequest(artifact_id=artifact_id))
        return _info(page.artifacts[0])

    async def download(self, artifact_id: str) -> bytes:
        """Read one whole, into memory."""
        buffer = io.BytesIO()
        await self._download(await self.get_info(artifact_id), buffer)
        return buffer.getvalue()

    async def download_to(self, artifact_id: str, path: str | os.PathLike[str]) -> ArtifactInfo:
        """Write one to a local file, which is replaced when all of it came and was right."""
        info = await self.get_info(artifact_id)
        target = Path(path)
        with tempfile.NamedTemporaryFile("wb", dir=target.parent, delete=False) as file:
            try:
                await self._download(info, file)
                file.flush()
                os.replace(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise
        return info

    async def delete(self, artifact_id: str) -> bool:
        """Delete one; False when there was none."""
        answer = await self._connection.call(
            self._connection.artifacts.DeleteArtifact(
                pb.DeleteArtifactRequest(artifact_id=artifact_id)
            )
        )
        return answer.deleted

    async def _ask(self, request: pb.ListArtifactsRequest) -> pb.ListArtifactsResponse:
        return await self._connection.call(self._connection.artifacts.ListArtifacts(request))

    async def _upload(
        self,
        file: IO[bytes],
        name: str,
        content_type: str,
        labels: Mapping[str, str] | None,
        task_id: str,
    ) -> ArtifactInfo:
        start = file.tell()
        size = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        ticket = await self._connection.call(
            self._connection.artifacts.GetUploadURL(
                pb.UploadRequest(
                    session_id=self.session_id,
                    task_id=task_id,
                    artifact_name=name,
                    content_type=content_type,
                    size_bytes=size,
                )
            )
        )
        sha256 = await transfer.put(
            ticket.upload_url,
            file,
            size,
            content_type or DEFAULT_TYPE,
            headers=link_headers(ticket.upload_url, self._connection.address),
        )
        await self._connection.call(
            self._connection.artifacts.RecordArtifact(
                pb.ArtifactMetadata(
                    artifact_id=ticket.artifact_id,
                    task_id=task_id,
                    name=name,
                    content_type=content_type,
                    size_bytes=size,
                    checksum_sha256=sha256,
                    labels=labels or {},
                )
            )
        )
        return await self.get_info(ticket.artifact_id)

    async def _download(self, info: ArtifactInfo, file: IO[bytes]) -> None:
        if not info.download_url:
            raise make_error(
                "FAILED_PRECONDITION",
                "the worker serves no links; set its HTTP_PORT",
                reason="NO_LINKS",
            )
        headers = link_headers(info.download_url, self._connection.address)
        found = await transfer.get(info.download_url, file.write, headers=headers)
        if found != (info.size, info.sha256):
            raise make_error(
                "DATA_LOSS", f"what came for {info.artifact_id!r} is not what was recorded"
            )


def _info(message: pb.ArtifactMetadata) -> ArtifactInfo:
    return ArtifactInfo(
        artifact_id=message.artifact_id,
        name=message.name,
        content_type=message.content_type,
        size=message.size_bytes,
        sha256=message.checksum_sha256,
        session_id=message.session_id,
        task_id=message.task_id,
        labels=dict(message.labels),
        created_at_ms=message.created_at_ms,
        download_url=message.download_url,
    )
