"""The gzip members of an archive: packed by a second thread, kept or cut down at the end."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO, Self

from codegen_mcp.core.errors import Corrupt
from codegen_mcp.engine.checkpoints.archive_codec import deflate, deflater
from codegen_mcp.engine.checkpoints.archive_inflate import iter_inflated

_PENDING = 4
"""Blocks that wait for the thread at most: bounds memory."""
_COPY_BYTES = 1024 * 1024


@dataclass(slots=True)
class Group:
    """One gzip member, which holds whole tar members."""

    lengths: dict[bytes, int]
    """Tar bytes of each name in it, in order. The empty name is the archive's end."""
    stale: set[bytes] = field(default_factory=set)
    offset: int = 0
    size: int = 0

    @property
    def inflated(self) -> int:
        """Its tar bytes without those of stale names."""
        return sum(n for path, n in self.lengths.items() if path not in self.stale)


class GroupFile:
    """A file of groups. One thread of its own packs and writes; it starts when it is needed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._groups: list[Group] = []
        self._thread: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()
        self._end = 0
        """Of what was written; only the thread touches this, the file and the hash."""
        self._hash = hashlib.sha256()

    def close(self) -> None:
        """Stop the thread; idempotent."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def put(self, members: Mapping[bytes, list[bytes]]) -> Group:
        """Pack the parts of some members into one group."""
        group = Group({path: sum(map(len, parts)) for path, parts in members.items()})
        data = b"".join([part for parts in members.values() for part in parts])

        def pack() -> None:
            group.offset = self._end
            self._write(deflate(data))
            group.size = self._end - group.offset

        self.submit(pack)
        self._groups.append(group)
        return group

    def stream(self, path: bytes) -> Stream:
        """Begin a group of one member that is written by pieces."""
        return Stream(self, path)

    def submit(self, work: Callable[[], None]) -> None:
        """Have the thread do something, after what was asked before."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "archive")
        while len(self._pending) >= _PENDING:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(work))

    def settle(self) -> None:
        """Wait until all is written. Raises what went wrong."""
        while self._pending:
            self._pending.popleft().result()

    def finish(self) -> tuple[int, str, int]:
        """Leave out stale members. Returns size, sha256 and inflated size of the archive."""
        self.settle()
        self.close()
        first = next((i for i, group in enumerate(self._groups) if group.stale), None)
        if first is not None:
            self._compact(first)
        self._file.truncate(self._end)
        self._file.flush()
        if first is not None:
            self._file.seek(0)
            self._hash = hashlib.file_digest(self._file, "sha256")  # type: ignore[arg-type]
        return self._end, self._hash.hexdigest(), sum(group.inflated for group in self._groups)

    def _write(self, data: bytes) -> None:
        self._write_all(data)
        self._hash.update(data)
        self._end += len(data)

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:  # An unbuffered file may take less.
            view = view[self._file.write(view) :]

    def _compact(self, first: int) -> None:
        """Move what stays to the front, in place: nothing is written over that is still to read."""
        end = self._groups[first].offset
        waiting: deque[bytes] = deque()
        for piece, consumed in self._kept(first):
            waiting.append(piece)
            while waiting and end + len(waiting[0]) <= consumed:
                end = self._write_at(end, waiting.popleft())
        while waiting:
            end = self._write_at(end, waiting.popleft())
        self._end = end

    def _write_at(self, offset: int, data: bytes) -> int:
        self._file.seek(offset)
        self._write_all(data)
        return offset + len(data)

    def _kept(self, first: int) -> Iterator[tuple[bytes, int]]:
        """Each piece that stays, and up to where the file was read then."""
        for group in self._groups[first:]:
            consumed = group.offset + group.size
            if not group.stale:
                for start in range(group.offset, consumed, _COPY_BYTES):
                    size = min(_COPY_BYTES, consumed - start)
                    yield self._read(start, size), start + size
            elif group.inflated:
                yield deflate(self._without_stale(group)), consumed

    def _without_stale(self, group: Group) -> bytes:
        total = sum(group.lengths.values())
        packed = [self._read(group.offset, group.size)]
        data = memoryview(b"".join(iter_inflated(packed, total)))
        kept, at = [], 0
        for path, length in group.lengths.items():
            if path not in group.stale:
                kept.append(data[at : at + length])
            at += length
        return b"".join(kept)

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        pieces = []
        while size:
            pieces.append(self._file.read(size))
            if not pieces[-1]:
                raise Corrupt(f"the spooled archive lost {size} bytes after byte {offset}")
            size -= len(pieces[-1])
        return b"".join(pieces)


class Stream:
    """A group of one member under way; an exception in its block undoes it."""

    def __init__(self, owner: GroupFile, path: bytes) -> None:
        self.group = Group({path: 0})
        self._owner = owner
        self._path = path
        self._deflater = deflater()
        owner.settle()
        self._before = owner._end, owner._hash.copy()
        self.group.offset = owner._end

    def write(self, data: bytes) -> None:
        """Take the next bytes of the member."""
        self.group.lengths[self._path] += len(data)
        self._owner.submit(lambda: self._owner._write(self._deflater.compress(data)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        owner = self._owner
        if kind is None:
            owner.submit(lambda: owner._write(self._deflater.flush()))
            owner.settle()
            self.group.size = owner._end - self.group.offset
            owner._groups.append(self.group)
            return
        owner.settle()
        owner._end, owner._hash = self._before
        owner._file.seek(owner._end)
        owner._file.truncate()
