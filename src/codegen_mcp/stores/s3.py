"""Objects in a bucket of S3, or of a service that speaks its protocol, through obstore.

How objects are created: ``s3_upload.py``. Requests are signed and carry a SHA-256 of what they
send; 5xx answers and broken connections are tried again with backoff. Opening it sends nothing: a
worker starts while its store is away.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import obstore

from codegen_mcp.core.clock import Clock, SystemClock
from codegen_mcp.core.errors import InvalidRequest, NotFound, StoreUnavailable
from codegen_mcp.stores.base import (
    PIECE_BYTES,
    ObjectInfo,
    check_key,
    check_range,
    check_small,
    is_key,
)
from codegen_mcp.stores.s3_config import S3Config
from codegen_mcp.stores.s3_requests import S3Requests, info
from codegen_mcp.stores.s3_sign import presign
from codegen_mcp.stores.s3_upload import create_large, create_small
from codegen_mcp.stores.source import hashed_pieces, open_source
from codegen_mcp.stores.threads import StopFlag, StoreThreads

_CONTENT_TYPE = re.compile(r"[!-~]+(?:[ \t]+[!-~]+)*")


class S3Store:
    """A bucket, or a prefix in one."""

    name = "s3"
    remote = True

    def __init__(self, config: S3Config, *, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._requests = S3Requests(config)
        self._threads = StoreThreads()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def url(self, key: str) -> str:
        """``s3://bucket/prefix/key``."""
        return f"{self._config.url}/{check_key(key)}"

    async def put_file(
        self, key: str, path: Path, *, sha256: str, given: bool = False
    ) -> ObjectInfo:
        """In one request up to ``single_bytes``, in parts above; the stored size is looked up."""
        check_key(key)

        def read(stop: StopFlag) -> tuple[int, bytes]:
            with open_source(path) as source:
                size = os.fstat(source).st_size
                if size > self._config.single_bytes:
                    return size, b""
                data = b"".join(map(bytes, hashed_pieces(source, sha256, str(path), stop)))
                return len(data), data

        size, data = await self._threads.run(read)
        if size > self._config.single_bytes:
            await self._uninterrupted(key, path, sha256, size)
        else:
            await create_small(self._requests, key, data)
        stored = await self._requests.head(key)
        if stored.size != size:
            await self._requests.delete(key)
            raise StoreUnavailable(
                f"{self.url(key)!r} had {stored.size} bytes after storing {size}; it was removed"
            )
        return stored

    async def put_bytes(self, key: str, data: bytes) -> ObjectInfo:
        """In one request."""
        await create_small(self._requests, check_key(key), bytes(check_small(data)))
        return ObjectInfo(key=key, size=len(data))

    async def get(
        self, key: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """One request; what breaks on the way is asked for again from there."""
        check_key(key)
        check_range(offset, length)
        window: tuple[int, int] | None = None
        if offset or length is not None:
            # A range that has nothing in it is an error of the service (416).
            size = (await self._requests.head(key)).size
            window = (offset, size if length is None else min(size, offset + length))
            if window[0] >= window[1]:
                return
        async with self._requests.answered(key):
            found = await obstore.get_async(
                self._requests.store, key, options={"range": window} if window else {}
            )
        left = found.range[1] - found.range[0]
        stream = found.stream(min_chunk_size=PIECE_BYTES)
        while left:
            async with self._requests.answered(key):
                chunk = bytes(await anext(stream, b""))
            if not chunk or len(chunk) > left:
                raise StoreUnavailable(f"{self.url(key)!r} ended early; read it again")
            left -= len(chunk)
            for start in range(0, len(chunk), PIECE_BYTES):
                yield chunk[start : start + PIECE_BYTES]

    async def stat(self, key: str) -> ObjectInfo:
        """HEAD."""
        return await self._requests.head(check_key(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """ListObjectsV2 from the prefix's directory on; the service sorts by the keys' bytes."""
        directory = prefix.rpartition("/")[0]
        if directory and not is_key(directory):
            return
        stream = obstore.list(self._requests.store, directory or None, chunk_size=1000)
        while True:
            async with self._requests.answered(""):
                batch = await anext(stream, None)
            if batch is None:
                return
            for meta in batch:
                key = meta["path"]
                if key.startswith(prefix):
                    if is_key(key):
                        yield info(key, meta)
                elif key > prefix:
                    return

    async def delete(self, key: str) -> bool:
        """HEAD, then DELETE: of two callers at the same moment both may be told there was one."""
        try:
            await self._requests.head(check_key(key))
        except NotFound:
            return False
        await self._requests.delete(key)
        return True

    async def upload_link(
        self, key: str, *, content_type: str, size_bytes: int, expires_s: int
    ) -> str | None:
        """A link for PUT with exactly this Content-Type and Content-Length.

        Until it expires, a second PUT of as many bytes replaces the first: read the sha256.

        Raises:
            InvalidRequest: The content type, size or time.
        """
        check_key(key)
        if not _CONTENT_TYPE.fullmatch(content_type) or size_bytes < 0:
            raise InvalidRequest(
                f"content type {content_type[:120]!r} of {size_bytes} bytes cannot be uploaded"
            )
        return presign(
            self._config,
            "PUT",
            key,
            expires_s=expires_s,
            now_ms=self._clock.unix_ms(),
            headers={"content-length": str(size_bytes), "content-type": content_type},
        )

    async def download_link(
        self, key: str, *, file_name: str, content_type: str, expires_s: int
    ) -> str | None:
        """A link for GET; browsers save it under ``file_name`` (RFC 6266, RFC 8187).

        Raises:
            InvalidRequest: The content type or time.
        """
        check_key(key)
        if not _CONTENT_TYPE.fullmatch(content_type):
            raise InvalidRequest(f"content type {content_type[:120]!r} is not valid")
        name = quote(file_name, safe="")
        return presign(
            self._config,
            "GET",
            key,
            expires_s=expires_s,
            now_ms=self._clock.unix_ms(),
            query={
                "response-content-disposition": f"attachment; filename*=UTF-8''{name}",
                "response-content-type": content_type,
            },
        )

    async def aclose(self) -> None:
        """Wait for files that are being read; connections are obstore's and close when idle."""
        await self._threads.aclose()

    async def _uninterrupted(self, key: str, path: Path, sha256: str, size: int) -> None:
        """A large upload that removes what it began also when its caller is cancelled."""
        stop = StopFlag()
        upload = asyncio.ensure_future(
            create_large(self._requests, key, path, sha256=sha256, size=size, stop=stop)
        )
        try:
            await asyncio.shield(upload)
        except asyncio.CancelledError:
            stop.set()
            while not upload.done():
                try:
                    await asyncio.wait([upload])
                except asyncio.CancelledError:
                    continue
            if not upload.cancelled():
                upload.exception()
            raise
