"""Objects in a dictionary: for tests and for trying things out; gone with the process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

from codegen_mcp.core.clock import Clock, SystemClock
from codegen_mcp.core.errors import AlreadyExists, NotFound
from codegen_mcp.stores.base import PIECE_BYTES, ObjectInfo, check_key, check_range, check_small
from codegen_mcp.stores.source import hashed_pieces, open_source
from codegen_mcp.stores.threads import StopFlag, StoreThreads


class MemoryStore:
    """A store as the interface says, except that nothing outlives the process."""

    name = "memory"
    remote = False

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._objects: dict[str, tuple[ObjectInfo, bytes]] = {}
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
        """``memory:key``."""
        return f"memory:{check_key(key)}"

    async def put_file(
        self, key: str, path: Path, *, sha256: str, given: bool = False
    ) -> ObjectInfo:
        """Read it whole: the one store whose memory use is what it holds."""
        self._check_absent(key)

        def read(stop: StopFlag) -> bytes:
            with open_source(path) as source:
                data = bytearray()
                for piece in hashed_pieces(source, sha256, str(path), stop):
                    data += piece
                return bytes(data)

        return self._create(key, await self._threads.run(read))

    async def put_bytes(self, key: str, data: bytes) -> ObjectInfo:
        """Keep a copy."""
        return self._create(key, bytes(check_small(data)))

    async def get(
        self, key: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Slices of what there was at the first piece."""
        check_range(offset, length)
        data = self._find(key)[1]
        end = len(data) if length is None else min(len(data), offset + length)
        for start in range(offset, end, PIECE_BYTES):
            yield data[start : min(end, start + PIECE_BYTES)]

    async def stat(self, key: str) -> ObjectInfo:
        """Look it up."""
        return self._find(key)[0]

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Those there were at the first one."""
        for key in sorted(key for key in self._objects if key.startswith(prefix)):
            if found := self._objects.get(key):
                yield found[0]

    async def delete(self, key: str) -> bool:
        """Forget it."""
        return self._objects.pop(check_key(key), None) is not None

    async def upload_link(
        self, key: str, *, content_type: str, size_bytes: int, expires_s: int
    ) -> str | None:
        """None: no address leads here."""
        check_key(key)
        return None

    async def download_link(
        self, key: str, *, file_name: str, content_type: str, expires_s: int
    ) -> str | None:
        """None: no address leads here."""
        check_key(key)
        return None

    async def aclose(self) -> None:
        """The objects stay as long as this one does."""
        await self._threads.aclose()

    def _create(self, key: str, data: bytes) -> ObjectInfo:
        self._check_absent(key)
        info = ObjectInfo(key=key, size=len(data), modified_ms=self._clock.unix_ms())
        self._objects[key] = (info, data)
        return info

    def _check_absent(self, key: str) -> None:
        if check_key(key) in self._objects:
            raise AlreadyExists(f"there is an object {key!r} already")

    def _find(self, key: str) -> tuple[ObjectInfo, bytes]:
        try:
            return self._objects[check_key(key)]
        except KeyError:
            raise NotFound(f"there is no object {key!r}") from None
