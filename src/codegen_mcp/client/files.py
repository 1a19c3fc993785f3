"""Files of a session: ``sandbox.files``."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import IO, Literal, overload

from codegen_mcp._proto.codegen.v1 import tools_pb2, workspace_files_pb2
from codegen_mcp.client.connection import Connection
from codegen_mcp.client.errors import NotFoundException, make_error
from codegen_mcp.client.results import EntryInfo, WriteInfo
from codegen_mcp.client.task_runner import TaskRunner

INLINE_BYTES = 1024 * 1024
"""What is larger goes through the streaming service."""
CHUNK_BYTES = 512 * 1024


class Files:
    """Reads and writes below the workspace; every path is relative to it."""

    def __init__(self, connection: Connection, runner: TaskRunner) -> None:
        self._connection = connection
        self._runner = runner

    @overload
    async def read(self, path: str, format: Literal["text"] = ...) -> str: ...
    @overload
    async def read(self, path: str, format: Literal["bytes"]) -> bytes: ...
    @overload
    async def read(self, path: str, format: Literal["stream"]) -> AsyncIterator[bytes]: ...
    async def read(
        self, path: str, format: Literal["text", "bytes", "stream"] = "text"
    ) -> str | bytes | AsyncIterator[bytes]:
        """Read a file of any size: as text (UTF-8, strict), bytes, or a stream of bytes.

        Raises:
            NotFoundException: There is none.
            InvalidArgumentException: The path leaves the workspace, or is no file.
            UnicodeDecodeError: It is not UTF-8 and text was asked for.
        """
        if format == "stream":
            return self._download(path)
        data = b"".join([chunk async for chunk in self._download(path)])
        return data.decode() if format == "text" else data

    async def write(
        self, path: str, data: str | bytes | IO[bytes], *, mode: int | None = None
    ) -> WriteInfo:
        """Write a whole file, atomically; parents are made.

        Returns:
            Length and sha256 of what is on disk; a difference to what was sent raises.
        """
        if isinstance(data, str):
            data = data.encode()
        if isinstance(data, bytes) and len(data) <= INLINE_BYTES:
            request = tools_pb2.FsWriteRequest(
                path=path, data=data, create_dirs=True, mode=mode or 0
            )
            result = await self._runner.execute(tools_pb2.ToolRequest(fs_write=request))
            done = result.typed_response.fs_write
            return _checked(
                WriteInfo(path=done.path, size=done.bytes_written, sha256=done.sha256),
                len(data),
                hashlib.sha256(data).hexdigest(),
            )
        return await self._upload(path, data, mode)

    async def list(self, path: str = "", *, depth: int | None = 1) -> list[EntryInfo]:
        """List a directory; ``depth`` None is everything below. Links are not followed."""
        request = tools_pb2.FsListRequest(path=path, recursive=depth != 1)
        result = await self._runner.execute(tools_pb2.ToolRequest(fs_list=request))
        answer = result.typed_response.fs_list
        if answer.total_count > len(answer.files):
            raise make_error(
                "RESOURCE_EXHAUSTED",
                f"{path!r} has {answer.total_count} entries, more than one answer holds; "
                "list its subdirectories one by one",
                reason="LIMIT_EXCEEDED",
            )
        base = path.strip("/").count("/") + 1 if path.strip("/. ") else 0
        return [
            _entry(file)
            for file in answer.files
            if depth is None or file.path.count("/") - base < depth
        ]

    async def exists(self, path: str) -> bool:
        """Whether there is a file, directory or link of that name."""
        try:
            await self.get_info(path)
        except NotFoundException:
            return False
        return True

    async def get_info(self, path: str) -> EntryInfo:
        """Stat one entry, without following a link."""
        value = await self._runner.call("fs.stat", {"path": path})
        return EntryInfo(
            path=value["path"],
            name=value["path"].rpartition("/")[2],
            type="dir" if value["kind"] == "directory" else "file",
            size=value["size_bytes"],
            modified_time_ms=value["modified_time_ms"],
            mode=value["mode"],
            link_target=value.get("link_target") or "",
        )

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that is in it."""
        await self._runner.call("fs.delete", {"path": path, "recursive": True})

    async def rename(self, old_path: str, new_path: str) -> EntryInfo:
        """Move inside the workspace; an existing file is replaced."""
        await self._runner.call(
            "fs.move", {"source": old_path, "target": new_path, "overwrite": True}
        )
        return await self.get_info(new_path)

    async def _download(self, path: str) -> AsyncIterator[bytes]:
        request = workspace_files_pb2.DownloadRequest(session_id=self._runner.session_id, path=path)
        digest, size, summary = hashlib.sha256(), 0, None
        async for chunk in self._connection.stream(aiter(self._connection.files.Download(request))):
            if chunk.HasField("summary"):
                summary = chunk.summary
            else:
                digest.update(chunk.data)
                size += len(chunk.data)
                yield chunk.data
        if summary is None or (summary.size, summary.sha256) != (size, digest.hexdigest()):
            raise make_error("DATA_LOSS", f"download of {path!r} does not match its summary")

    async def _upload(self, path: str, data: bytes | IO[bytes], mode: int | None) -> WriteInfo:
        digest = hashlib.sha256()
        size = 0

        async def chunks() -> AsyncIterator[workspace_files_pb2.UploadChunk]:
            nonlocal size
            yield workspace_files_pb2.UploadChunk(
                header=workspace_files_pb2.UploadHeader(
                    session_id=self._runner.session_id,
                    path=path,
                    create_dirs=True,
                    mode=mode or 0,
                )
            )
            start = 0
            while True:
                if isinstance(data, bytes):
                    piece, start = data[start : start + CHUNK_BYTES], start + CHUNK_BYTES
                else:
                    piece = data.read(CHUNK_BYTES)
                if not piece:
                    break
                digest.update(piece)
                size += len(piece)
                yield workspace_files_pb2.UploadChunk(data=piece)
            yield workspace_files_pb2.UploadChunk(
                end=workspace_files_pb2.UploadEnd(size=size, sha256=digest.hexdigest())
            )

        summary = await self._connection.call(self._connection.files.Upload(chunks()))
        written = WriteInfo(path=summary.path, size=summary.size, sha256=summary.sha256)
        return _checked(written, size, digest.hexdigest())


def _checked(written: WriteInfo, size: int, sha256: str) -> WriteInfo:
    if (written.size, written.sha256) != (size, sha256):
        raise make_error("DATA_LOSS", f"what is on disk as {written.path!r} is not what was sent")
    return written


def _entry(file: tools_pb2.FileInfo) -> EntryInfo:
    return EntryInfo(
        path=file.path,
        name=file.name,
        type="dir" if file.is_directory else "file",
        size=file.size_bytes,
        modified_time_ms=file.modified_time_ms,
        mode=file.mode,
        link_target=file.link_target,
        path_bytes=file.path_bytes,
    )
