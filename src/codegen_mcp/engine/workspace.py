"""The files of one session, for tools and streams (implements ``tools.base.Workspace``).

The workspace is hostile: whatever runs in the session may swap, link, truncate or lock anything
at any moment, and the worker is often root. Every path goes through ``core.paths`` and then
through openat2(2) below a descriptor of the workspace directory that was opened when the session
was made. Up to 1 MiB is done in the event loop, more and whole trees in threads.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from pathlib import Path

from codegen_mcp.core.errors import InvalidRequest, WrongState
from codegen_mcp.core.paths import Parts, join_path, parse_path
from codegen_mcp.engine import workspace_delete, workspace_list, workspace_read, workspace_write
from codegen_mcp.engine.artifacts.left_files import LeftFiles
from codegen_mcp.engine.workspace_dirs import make_dirs, remove_made
from codegen_mcp.engine.workspace_errors import reporting
from codegen_mcp.engine.workspace_glob import compile_glob
from codegen_mcp.engine.workspace_move import move_entry
from codegen_mcp.engine.workspace_streams import OpenStreams, read_stream, write_stream
from codegen_mcp.engine.workspace_threads import FileThreads, Stop
from codegen_mcp.engine.workspace_tree import INLINE_BYTES, Tree, open_regular
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.openat2 import DIRECTORY, open_beneath
from codegen_mcp.sandbox.volumes.base import VolumeUsage
from codegen_mcp.tools.base import FileStat

_INLINE_LIST_S = 0.002


class SessionWorkspace:
    """Files below one directory. Close it before the volume is unmounted.

    Args:
        root: The session's ``workspace`` directory as it is now; it may be renamed later.
        identity: Who owns what is written; None is the worker itself (not root).
        executor: Borrowed for long work; None makes own threads at first need.
        max_file_bytes: The longest file that may be written; None is what the disk holds.
        usage: Of a volume whose size only the worker watches; None where the kernel enforces it.
    """

    def __init__(
        self,
        root: Path,
        identity: HostIdentity | None,
        *,
        executor: ThreadPoolExecutor | None = None,
        max_file_bytes: int | None = None,
        usage: Callable[[], VolumeUsage] | None = None,
    ) -> None:
        self._root = root
        fd = os.open(root, DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._held = Tree(fd, identity, max_file_bytes, usage)
        self._threads = FileThreads(executor)
        self._streams = OpenStreams()
        self._closed = False
        self.left_files = LeftFiles(self._tree, self._threads, self._streams)
        """What code left in ``artifacts/``."""

    @property
    def root(self) -> Path:
        """Where the directory is now, as last told by ``moved``."""
        return self._root

    def moved(self, root: Path) -> None:
        """Note the directory's new path; the held descriptor stays valid."""
        self._root = root

    def limit_files(self, max_file_bytes: int | None) -> None:
        """Change the longest file that may be written."""
        self._held.max_file_bytes = max_file_bytes

    def close(self) -> None:
        """Refuse further calls, stop what runs, and close every stream and descriptor.

        Idempotent. What runs in a thread ends at its next step, the descriptors after it.
        """
        if not self._closed:
            self._closed = True
            self._threads.close(self._release)

    async def aclose(self) -> None:
        """Close, and return when nothing of it is open any more."""
        self.close()
        await self._threads.idle()

    def _release(self) -> None:
        self._streams.close()
        os.close(self._held.fd)

    async def read(self, path: str | bytes, offset: int, length: int) -> tuple[bytes, int]:
        """Read up to ``length`` bytes (at most 64 MiB) from ``offset``; (data, file size)."""
        parts = parse_path(path)
        workspace_read.check_range(offset, length)
        with reporting(join_path(parts)):
            fd, found = open_regular(self._tree(), parts)
            try:
                length = min(length, max(found.st_size - offset, 0))
                if length <= INLINE_BYTES:
                    data = workspace_read.read_range(fd, offset, length) if length else b""
                else:
                    data = await self._threads.run(
                        partial(workspace_read.read_range, fd, offset, length)
                    )
            finally:
                os.close(fd)
        return data, found.st_size

    async def write(
        self, path: str | bytes, data: bytes, *, create_dirs: bool, mode: int | None
    ) -> tuple[int, str]:
        """Replace the whole file atomically; (length, sha256) as on disk.

        The mode is ``mode`` (at most 0o777), else that of the file that was there, else 0644.
        """
        parts = parse_path(path)
        tree = self._tree()
        with reporting(join_path(parts)):
            if len(data) <= INLINE_BYTES:
                return workspace_write.write_file(
                    tree, parts, data, create_dirs=create_dirs, mode=mode
                )
            return await self._threads.run(
                lambda stop: workspace_write.write_file(
                    tree, parts, data, create_dirs=create_dirs, mode=mode, stop=stop
                )
            )

    async def sha256(self, path: str | bytes) -> tuple[int, str]:
        """(size, sha256) of a file as it is read now."""
        parts = parse_path(path)
        with reporting(join_path(parts)):
            fd, found = open_regular(self._tree(), parts)
            try:
                if found.st_size <= INLINE_BYTES:
                    return workspace_read.hash_file(fd, limit=INLINE_BYTES)
                return await self._threads.run(partial(workspace_read.hash_file, fd))
            finally:
                os.close(fd)

    async def list(
        self, path: str | bytes, *, recursive: bool, pattern: str, limit: int
    ) -> tuple[Sequence[FileStat], int]:
        """(the first ``limit`` entries by path bytes, total that matched).

        ``pattern`` is a glob as ``workspace_glob`` describes. Links are shown, never followed;
        ``path`` itself may be a link that stays inside.
        """
        parts = parse_path(path, root_allowed=True)
        listing = workspace_list.Listing(parts, recursive, compile_glob(pattern), limit)
        tree = self._tree()
        with reporting(join_path(parts)):
            try:
                return workspace_list.list_tree(tree, listing, Stop(), budget_s=_INLINE_LIST_S)
            except workspace_list.TooLongInline:
                return await self._threads.run(partial(workspace_list.list_tree, tree, listing))

    async def stat(self, path: str | bytes) -> FileStat:
        """Stat without following a final link; ``.`` is the workspace."""
        parts = parse_path(path, root_allowed=True)
        raw = join_path(parts)
        with reporting(raw):
            fd = open_beneath(self._tree().fd, raw, os.O_PATH | os.O_NOFOLLOW)
            try:
                return workspace_list.describe_open(fd, raw)
            finally:
                os.close(fd)

    async def delete(self, path: str | bytes, *, recursive: bool) -> int:
        """Remove a file, a link (not what it points to) or a directory; how many entries went."""
        parts = parse_path(path)
        tree = self._tree()
        with reporting(join_path(parts)):
            if workspace_delete.delete_one(tree, parts, must_be_empty=not recursive):
                return 1
            return await self._threads.run(partial(workspace_delete.delete_tree, tree, parts))

    async def move(self, source: str | bytes, target: str | bytes, *, overwrite: bool) -> None:
        """Rename; a link is moved itself. ``target`` is the new name, not a directory to enter."""
        source_parts, target_parts = parse_path(source), parse_path(target)
        move_entry(self._tree(), source_parts, target_parts, overwrite=overwrite)

    async def make_dir(self, path: str | bytes) -> None:
        """Make a directory and its parents; one that exists is fine."""
        parts = parse_path(path, root_allowed=True)
        made: list[Parts] = []
        tree = self._tree()
        with reporting(join_path(parts)):
            try:
                make_dirs(tree, parts, made)
            except BaseException:
                remove_made(tree, made)
                raise

    async def read_chunks(self, path: str | bytes, chunk_bytes: int) -> AsyncIterator[bytes]:
        """Stream the file that ``path`` is now to its end, ``chunk_bytes`` at a time."""
        if not 1 <= chunk_bytes <= workspace_read.MAX_READ_BYTES:
            raise InvalidRequest(
                f"chunk_bytes {chunk_bytes!r} is not between 1 and {workspace_read.MAX_READ_BYTES}"
            )
        parts = parse_path(path)
        async with aclosing(
            read_stream(self._tree(), parts, chunk_bytes, self._threads, self._streams)
        ) as chunks:
            async for chunk in chunks:
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
        """Write a stream atomically; (length, sha256) as on disk.

        Nothing is left of a stream that fails, is cancelled or does not match what is expected.
        """
        parts = parse_path(path)
        return await write_stream(
            self._tree(),
            parts,
            chunks,
            self._threads,
            self._streams,
            create_dirs=create_dirs,
            mode=mode,
            expected_size=expected_size,
            expected_sha256=expected_sha256,
        )

    def _tree(self) -> Tree:
        if self._closed:
            raise WrongState("the session's workspace is closed; the session has ended")
        return self._held
