"""Objects as files of a directory: ``root/key``. How they are written: ``local_files.py``.

Directories are made with mode 0700, files with 0600. Other files below the root whose names are
keys count as objects; all others are left alone and never listed. Any number of workers may share a
directory. The file system must have hard links and flock(2).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from codegen_mcp.core.errors import NotFound, StoreUnavailable
from codegen_mcp.stores import local_files
from codegen_mcp.stores.base import PIECE_BYTES, ObjectInfo, check_key, check_range, check_small
from codegen_mcp.stores.source import hashed_pieces, open_source
from codegen_mcp.stores.threads import StopFlag, StoreThreads

T = TypeVar("T")

LISTED_AT_ONCE = 512
_FICLONE = 0x40049409
"""ioctl_ficlone(2): _IOW(0x94, 9, int); Python's fcntl names it only from 3.14 on."""


class LocalStore:
    """A directory. It is made, and cleaned of what dead writers left, when opened."""

    name = "local"
    remote = False

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._threads = StoreThreads()
        self._directory = -1

    async def __aenter__(self) -> Self:
        try:
            self._directory = await self._threads.run(self._open)
        except OSError as error:
            await self._threads.aclose()
            raise self._unavailable(error) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def url(self, key: str) -> str:
        """``file:///...``."""
        return (self._root / check_key(key)).as_uri()

    async def put_file(
        self, key: str, path: Path, *, sha256: str, given: bool = False
    ) -> ObjectInfo:
        """Clone where the file system can (Btrfs, XFS), else copy; hashed as it goes by.

        A file that is ``given`` gets a second name, where it is on the same file system. Others
        never: the owner of ``path`` may change them later.
        """

        def keep(stop: StopFlag) -> ObjectInfo | None:
            with open_source(path) as source:
                size = sum(map(len, hashed_pieces(source, sha256, str(path), stop)))
                return local_files.keep(self._directory, key, source, size)

        if given:
            check_key(key)
            kept = await self._run(keep)
            if kept is not None:
                return kept

        def fill(file: int, stop: StopFlag) -> int:
            with open_source(path) as source:
                cloned = _clone(source, file)
                written = 0
                # Of a clone, what was stored is read; else what is read is stored.
                for piece in hashed_pieces(file if cloned else source, sha256, str(path), stop):
                    written += len(piece)
                    if not cloned:
                        _write(file, piece)
                return written

        return await self._create(key, fill)

    async def put_bytes(self, key: str, data: bytes) -> ObjectInfo:
        """Write them."""

        def fill(file: int, stop: StopFlag) -> int:
            _write(file, memoryview(data))
            return len(data)

        check_small(data)
        return await self._create(key, fill)

    async def get(
        self, key: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Read one open file: an object deleted meanwhile is still read to its end."""
        file = -1
        end = 0

        def read(_: StopFlag) -> bytes:
            nonlocal file, end
            if file < 0:
                file = local_files.open_object(self._directory, key)
                end = os.fstat(file).st_size
                if length is not None:
                    end = min(end, offset + length)
            return os.pread(file, min(PIECE_BYTES, max(0, end - offset)), offset)

        check_key(key)
        check_range(offset, length)
        try:
            while piece := await self._find(key, read):
                offset += len(piece)
                yield piece
                if offset == end:  # an object does not grow
                    break
        finally:
            if file >= 0:
                os.close(file)

    async def stat(self, key: str) -> ObjectInfo:
        """Look."""
        check_key(key)
        return await self._find(key, lambda _: local_files.look(self._directory, key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Walk, a few hundred at a time."""
        objects = local_files.objects(self._directory, prefix)
        while batch := await self._run(lambda _: local_files.batches(objects, LISTED_AT_ONCE)):
            for one in batch:
                yield one

    async def delete(self, key: str) -> bool:
        """Remove, with the directories that it leaves empty."""
        check_key(key)
        return await self._run(lambda _: local_files.remove(self._directory, key))

    async def upload_link(
        self, key: str, *, content_type: str, size_bytes: int, expires_s: int
    ) -> str | None:
        """None: files have no links of their own."""
        check_key(key)
        return None

    async def download_link(
        self, key: str, *, file_name: str, content_type: str, expires_s: int
    ) -> str | None:
        """None: files have no links of their own."""
        check_key(key)
        return None

    async def aclose(self) -> None:
        """Wait for what is being written, then close the directory."""
        await self._threads.aclose()
        directory, self._directory = self._directory, -1
        if directory >= 0:
            os.close(directory)

    def _open(self, _: StopFlag) -> int:
        missing = [path for path in (self._root, *self._root.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(0o700, exist_ok=True)
            _sync(path.parent)
        directory = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            local_files.remove_stale(directory)
        except BaseException:
            os.close(directory)
            raise
        return directory

    async def _create(self, key: str, fill: Callable[[int, StopFlag], int]) -> ObjectInfo:
        check_key(key)
        return await self._run(
            lambda stop: local_files.create(self._directory, key, lambda file: fill(file, stop))
        )

    async def _find(self, key: str, work: Callable[[StopFlag], T]) -> T:
        def checked(stop: StopFlag) -> T:
            try:
                return work(stop)
            except local_files.NOT_THERE:
                local_files.check_root(self._directory)
                raise NotFound(f"there is no object {key!r}") from None

        return await self._run(checked)

    async def _run(self, work: Callable[[StopFlag], T]) -> T:
        try:
            return await self._threads.run(work)
        except OSError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: OSError) -> StoreUnavailable:
        return StoreUnavailable(
            f"the object store {str(self._root)!r} cannot be used: {error.strerror}; see to the "
            "directory, its owner and its disk"
        )


def _clone(source: int, file: int) -> bool:
    """Share the blocks, if these two files can."""
    try:
        fcntl.ioctl(file, _FICLONE, source)
    except OSError:
        return False
    return True


def _write(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def _sync(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
