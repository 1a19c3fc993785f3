"""The gzip members of an archive: packed by further threads, kept or cut down at the end."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO, Self

from codegen_mcp.core.errors import Corrupt
from codegen_mcp.engine.checkpoints.archive_block import CAPACITY, Block
from codegen_mcp.engine.checkpoints.archive_codec import deflate, deflater
from codegen_mcp.engine.checkpoints.archive_inflate import iter_inflated

_PACKERS = 2
"""Packing takes longer than all the rest."""
_PENDING = 3
"""Blocks under way at most: bounds memory."""
_COPY_BYTES = 1024 * 1024


@dataclass(slots=True)
class Group:
    """One gzip member, which holds whole tar members."""

    lengths: dict[bytes, int]
    """Tar bytes of each name in it, in order. The empty name is the archive's end."""
    digests: dict[bytes, bytes] = field(default_factory=dict)
    """sha256 of the files that were read into its block; there once it is packed."""
    stale: set[bytes] = field(default_factory=set)
    offset: int = 0
    size: int = 0

    @property
    def inflated(self) -> int:
        """Its tar bytes without those of stale names."""
        return sum(n for path, n in self.lengths.items() if path not in self.stale)


class GroupFile:
    """A file of groups. Threads of its own pack them; they start when they are needed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._groups: list[Group] = []
        self._packers: list[ThreadPoolExecutor] = []
        self._turn = 0
        self._pending: deque[tuple[Group, Future[bytes]]] = deque()
        """In the order in which they are written."""
        self._end = 0
        """Of what was written."""
        self._hash = hashlib.sha256()
        self._free: list[Block] = []

    def close(self) -> None:
        """Stop the threads; idempotent."""
        for packer in self._packers:
            packer.shutdown(cancel_futures=True)
        self._packers.clear()
        self._free.clear()

    def block(self, size: int) -> Block:
        """Have an empty block that takes at least so many bytes."""
        if size > CAPACITY:
            return Block(size)
        return self._free.pop() if self._free else Block()

    def put(self, block: Block) -> Group:
        """Hash and pack the members of a block, which is not the caller's any more."""
        group = Group(dict(block.lengths))

        def pack() -> bytes:
            group.digests = block.hash()
            packed = deflate(block.tar())
            if block.capacity == CAPACITY:
                block.clear()
                self._free.append(block)
            return packed

        self._turn = (self._turn + 1) % _PACKERS
        self.submit(group, pack, self._turn)
        self._groups.append(group)
        return group

    def stream(self, path: bytes) -> Stream:
        """Begin a group of one member that is written by pieces."""
        return Stream(self, path)

    def submit(self, group: Group, pack: Callable[[], bytes], packer: int = 0) -> None:
        """Write what ``pack`` gives behind what was asked before; one packer keeps its order."""
        while len(self._packers) <= packer:
            self._packers.append(ThreadPoolExecutor(1, "archive"))
        while self._pending and (len(self._pending) >= _PENDING or self._pending[0][1].done()):
            self._write_next()
        self._pending.append((group, self._packers[packer].submit(pack)))

    def settle(self) -> None:
        """Wait until all is written. Raises what went wrong."""
        while self._pending:
            self._write_next()

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

    def _write_next(self) -> None:
        group, packed = self._pending.popleft()
        data = packed.result()
        if not group.size:
            group.offset = self._end
        self._write_all(data)
        self._hash.update(data)
        self._end += len(data)
        group.size += len(data)

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

    def write(self, data: bytes) -> None:
        """Take the next bytes of the member."""
        self.group.lengths[self._path] += len(data)
        self._owner.submit(self.group, lambda: self._deflater.compress(data))

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
            owner.submit(self.group, self._deflater.flush)
            owner.settle()
            owner._groups.append(self.group)
            return
        owner.settle()
        owner._end, owner._hash = self._before
        owner._file.seek(owner._end)
        owner._file.truncate()
