"""Files too large for memory: read and written chunk by chunk, one open file throughout."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Protocol

from codegen_mcp.core.errors import InvalidRequest, WrongState
from codegen_mcp.core.paths import Parts, join_path, show_path
from codegen_mcp.engine.workspace_errors import reporting
from codegen_mcp.engine.workspace_read import read_range
from codegen_mcp.engine.workspace_threads import FileThreads, Stop
from codegen_mcp.engine.workspace_tree import Tree, open_regular
from codegen_mcp.engine.workspace_write import Draft


class _Stream(Protocol):
    def discard(self) -> None: ...


class OpenStreams:
    """Streams that wait for their reader or writer; closed with the workspace."""

    def __init__(self) -> None:
        self._open: set[_Stream] = set()

    def add(self, stream: _Stream) -> None:
        """Remember one."""
        self._open.add(stream)

    def drop(self, stream: _Stream) -> None:
        """Close one."""
        self._open.discard(stream)
        stream.discard()

    def check(self, stream: _Stream) -> None:
        """Raises WrongState when the workspace was closed meanwhile."""
        if stream not in self._open:
            raise WrongState("the session ended while the file was streamed")

    def close(self) -> None:
        """Close all; no thread may be using one."""
        while self._open:
            self._open.pop().discard()


class _OpenFile:
    """A descriptor that is closed once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def discard(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


async def read_stream(
    tree: Tree, parts: Parts, chunk_bytes: int, threads: FileThreads, streams: OpenStreams
) -> AsyncGenerator[bytes, None]:
    """Yield the file's bytes to its end; a file that is replaced meanwhile stays the old one."""
    path = join_path(parts)
    with reporting(path):
        fd = open_regular(tree, parts)[0]
    async with aclosing(stream_open(fd, path, chunk_bytes, threads, streams)) as chunks:
        async for chunk in chunks:
            yield chunk


async def stream_open(
    fd: int, path: bytes, chunk_bytes: int, threads: FileThreads, streams: OpenStreams
) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of an open file to its end; the descriptor is this one's to close."""
    file = _OpenFile(fd)
    streams.add(file)
    try:
        offset = 0
        while True:
            streams.check(file)
            with reporting(path):
                data = await threads.run(partial(read_range, file.fd, offset, chunk_bytes))
            if not data:
                return
            offset += len(data)
            yield data
    finally:
        streams.drop(file)


async def write_stream(
    tree: Tree,
    parts: Parts,
    chunks: AsyncIterator[bytes],
    threads: FileThreads,
    streams: OpenStreams,
    *,
    create_dirs: bool,
    mode: int | None,
    expected_size: int | None,
    expected_sha256: str | None,
) -> tuple[int, str]:
    """Append every chunk to a nameless file, compare, publish; (length on disk, sha256)."""
    path = join_path(parts)
    with reporting(path):
        draft = Draft(tree, parts, create_dirs=create_dirs, mode=mode)
    streams.add(draft)
    try:
        async for chunk in chunks:
            streams.check(draft)
            if expected_size is not None and draft.size + len(chunk) > expected_size:
                raise _unexpected(path, "size", f"more than {expected_size}", expected_size)
            with reporting(path):
                await threads.run(partial(_append, draft, chunk))
        streams.check(draft)
        if expected_size is not None and draft.size != expected_size:
            raise _unexpected(path, "size", draft.size, expected_size)
        if expected_sha256 and draft.sha256 != expected_sha256.lower():
            raise _unexpected(path, "sha256", draft.sha256, expected_sha256)
        with reporting(path):
            return await threads.run(lambda stop: draft.publish())
    finally:
        streams.drop(draft)


def _append(draft: Draft, chunk: bytes, stop: Stop) -> None:
    stop.check()
    draft.append(chunk)


def _unexpected(path: bytes, what: str, got: object, expected: object) -> InvalidRequest:
    return InvalidRequest(
        f"{show_path(path)} was not written: its {what} is {got}, but {expected} was announced; "
        "send it again"
    )
