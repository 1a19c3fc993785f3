"""A session's files with every call counted as use, so that no session expires under one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from codegen_mcp.engine.activity import Activity
from codegen_mcp.engine.artifacts.left_files import LeftFiles
from codegen_mcp.engine.ports import OpenWorkspace
from codegen_mcp.tools.base import FileStat


class TrackedWorkspace:
    """Passes every call on; a destroyed session refuses them and ends streams half-way."""

    def __init__(self, inner: OpenWorkspace, activity: Activity) -> None:
        self._inner = inner
        self._activity = activity

    @property
    def left_files(self) -> LeftFiles:
        """What code left in ``artifacts/``; looked at within a task, which counts itself."""
        return self._inner.left_files

    async def read(self, path: str | bytes, offset: int, length: int) -> tuple[bytes, int]:
        """Pass on."""
        with self._activity.use():
            return await self._inner.read(path, offset, length)

    async def write(
        self, path: str | bytes, data: bytes, *, create_dirs: bool, mode: int | None
    ) -> tuple[int, str]:
        """Pass on."""
        with self._activity.use():
            async with self._activity.files.change():
                return await self._inner.write(path, data, create_dirs=create_dirs, mode=mode)

    async def sha256(self, path: str | bytes) -> tuple[int, str]:
        """Pass on."""
        with self._activity.use():
            return await self._inner.sha256(path)

    async def list(
        self, path: str | bytes, *, recursive: bool, pattern: str, limit: int
    ) -> tuple[Sequence[FileStat], int]:
        """Pass on."""
        with self._activity.use():
            return await self._inner.list(path, recursive=recursive, pattern=pattern, limit=limit)

    async def stat(self, path: str | bytes) -> FileStat:
        """Pass on."""
        with self._activity.use():
            return await self._inner.stat(path)

    async def delete(self, path: str | bytes, *, recursive: bool) -> int:
        """Pass on."""
        with self._activity.use():
            async with self._activity.files.change():
                return await self._inner.delete(path, recursive=recursive)

    async def move(self, source: str | bytes, target: str | bytes, *, overwrite: bool) -> None:
        """Pass on."""
        with self._activity.use():
            async with self._activity.files.change():
                await self._inner.move(source, target, overwrite=overwrite)

    async def make_dir(self, path: str | bytes) -> None:
        """Pass on."""
        with self._activity.use():
            async with self._activity.files.change():
                await self._inner.make_dir(path)

    async def read_chunks(self, path: str | bytes, chunk_bytes: int) -> AsyncIterator[bytes]:
        """Pass on; in use until the last chunk is taken."""
        with self._activity.use():
            async for chunk in self._until_cut(self._inner.read_chunks(path, chunk_bytes)):
                yield chunk

    async def write_chunks(
        self,
        path: str | bytes,
        chunks: AsyncIterator[bytes],
        *,
        create_dirs: bool,
        mode: int | None,
        expected_size: int | None,
        expected_sha256: str | None,
    ) -> tuple[int, str]:
        """Pass on; in use until the last chunk came."""
        with self._activity.use():
            async with AsyncExitStack() as stack:
                # Nothing can be seen of the file before its last chunk.
                return await self._inner.write_chunks(
                    path,
                    self._then(self._until_cut(chunks), stack, self._activity.files.change()),
                    create_dirs=create_dirs,
                    mode=mode,
                    expected_size=expected_size,
                    expected_sha256=expected_sha256,
                )

    async def _then(
        self,
        chunks: AsyncIterator[bytes],
        stack: AsyncExitStack,
        entered: AbstractAsyncContextManager[None],
    ) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk
        await stack.enter_async_context(entered)

    async def _until_cut(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self._activity.check_uncut()
            yield chunk
