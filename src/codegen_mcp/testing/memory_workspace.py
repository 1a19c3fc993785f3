"""A workspace in a dictionary: the second implementation of ``tools.base.Workspace``.

It has files and directories, no links and no other kinds, and no quota but ``max_bytes``.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from codegen_mcp.core.errors import (
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PathEscape,
    WrongState,
)
from codegen_mcp.tools.base import FileStat


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, or a directory where data is None."""

    data: bytes | None
    mode: int
    mtime_ns: int


class MemoryWorkspace:
    """Files by their normal path."""

    def __init__(
        self, max_bytes: int = 1 << 30, entries: Mapping[bytes, Entry] | None = None
    ) -> None:
        self._entries: dict[bytes, Entry] = dict(entries or {})
        self._max_bytes = max_bytes

    @property
    def entries(self) -> Mapping[bytes, Entry]:
        """A copy of what it holds now."""
        return dict(self._entries)

    @property
    def used_bytes(self) -> int:
        """Bytes in all files."""
        return sum(len(entry.data or b"") for entry in self._entries.values())

    async def read(self, path: str | bytes, offset: int, length: int) -> tuple[bytes, int]:
        """Slice."""
        data = self._file(path)
        return data[offset : offset + length], len(data)

    async def write(
        self, path: str | bytes, data: bytes, *, create_dirs: bool, mode: int | None
    ) -> tuple[int, str]:
        """Replace."""
        name = normal(path)
        if name in self._entries and self._entries[name].data is None:
            raise WrongState(f"{path!r} is a directory; name a file")
        if self.used_bytes + len(data) > self._max_bytes:
            raise LimitExceeded(f"the workspace holds at most {self._max_bytes} bytes")
        parent = os.path.dirname(name)
        if parent and parent not in self._entries:
            if not create_dirs:
                raise NotFound(f"{os.fsdecode(parent)!r} does not exist; set create_dirs")
            await self.make_dir(parent)
        bits = self._entries[name].mode if name in self._entries else stat.S_IFREG | 0o644
        bits = stat.S_IFREG | mode if mode is not None else bits
        self._entries[name] = Entry(data, bits, time.time_ns())
        return len(data), hashlib.sha256(data).hexdigest()

    async def sha256(self, path: str | bytes) -> tuple[int, str]:
        """Hash."""
        data = self._file(path)
        return len(data), hashlib.sha256(data).hexdigest()

    async def list(
        self, path: str | bytes, *, recursive: bool, pattern: str, limit: int
    ) -> tuple[Sequence[FileStat], int]:
        """Filter."""
        prefix = normal(path) + b"/" if normal(path) else b""
        if prefix and prefix[:-1] not in self._entries:
            raise NotFound(f"{path!r} does not exist")
        found = [
            self._stat(name)
            for name in sorted(self._entries)
            if name.startswith(prefix)
            and (recursive or b"/" not in name[len(prefix) :])
            and (not pattern or fnmatch.fnmatch(os.fsdecode(os.path.basename(name)), pattern))
        ]
        return found[:limit], len(found)

    async def stat(self, path: str | bytes) -> FileStat:
        """Look up."""
        name = normal(path)
        if name not in self._entries:
            raise NotFound(f"{path!r} does not exist")
        return self._stat(name)

    async def delete(self, path: str | bytes, *, recursive: bool) -> int:
        """Drop."""
        await self.stat(path)
        name = normal(path)
        below = [other for other in self._entries if other.startswith(name + b"/")]
        if below and not recursive:
            raise WrongState(f"{path!r} is not empty; set recursive")
        for other in [name, *below]:
            del self._entries[other]
        return 1 + len(below)

    async def move(self, source: str | bytes, target: str | bytes, *, overwrite: bool) -> None:
        """Rename."""
        await self.stat(source)
        old, new = normal(source), normal(target)
        if new in self._entries and not overwrite:
            raise WrongState(f"{target!r} exists; set overwrite")
        for name in [name for name in self._entries if name == old or name.startswith(old + b"/")]:
            self._entries[new + name[len(old) :]] = self._entries.pop(name)

    async def make_dir(self, path: str | bytes) -> None:
        """Add it and its parents."""
        name = normal(path)
        while name and name not in self._entries:
            self._entries[name] = Entry(None, stat.S_IFDIR | 0o755, time.time_ns())
            name = os.path.dirname(name)

    async def read_chunks(self, path: str | bytes, chunk_bytes: int) -> AsyncIterator[bytes]:
        """Slice by slice."""
        data = self._file(path)
        for start in range(0, len(data), chunk_bytes):
            yield data[start : start + chunk_bytes]

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
        """Join, then replace."""
        normal(path)
        data = b"".join([chunk async for chunk in chunks])
        digest = hashlib.sha256(data).hexdigest()
        if expected_size not in {None, len(data)} or expected_sha256 not in {None, digest}:
            raise InvalidRequest(f"{path!r}: {len(data)} bytes with sha256 {digest} came")
        return await self.write(path, data, create_dirs=create_dirs, mode=mode)

    def _file(self, path: str | bytes) -> bytes:
        entry = self._entries.get(normal(path))
        if entry is None:
            raise NotFound(f"{path!r} does not exist")
        if entry.data is None:
            raise WrongState(f"{path!r} is a directory; name a file")
        return entry.data

    def _stat(self, name: bytes) -> FileStat:
        entry = self._entries[name]
        return FileStat(
            path=name,
            kind="directory" if entry.data is None else "file",
            size=len(entry.data or b""),
            mtime_ns=entry.mtime_ns,
            mode=entry.mode,
        )


def normal(path: str | bytes) -> bytes:
    """Drop ``.`` and empty parts.

    Raises:
        PathEscape: It is absolute or has ``..``.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise InvalidRequest(f"{path!r} has a NUL")
    parts = [part for part in raw.split(b"/") if part not in {b"", b"."}]
    if raw.startswith(b"/") or b".." in parts:
        raise PathEscape(f"{path!r} leaves the workspace; use a path relative to it without '..'")
    return b"/".join(parts)
