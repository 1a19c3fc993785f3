"""Packs an archive into a file of ours, and leaves out what turned stale meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.engine.checkpoints.archive_block import GROUP_BYTES, PIECE_BYTES, Block
from codegen_mcp.engine.checkpoints.archive_groups import Group, GroupFile
from codegen_mcp.engine.checkpoints.tar_format import (
    BLOCK,
    END,
    PADDING,
    file_header,
    member_header,
)
from codegen_mcp.engine.checkpoints.tar_sparse import extents, sparse_map

_ZEROS = bytes(PIECE_BYTES)

Read = Callable[[int], bytes]
"""The next 1 to n bytes of a file, nothing at its end."""


class Changed(Exception):
    """A file gave other bytes than its entry says; it was not added."""


@dataclass(frozen=True, slots=True)
class ArchiveSummary:
    """What was written."""

    size: int
    """Of the archive, in bytes."""
    sha256: str
    """Of the archive, hexadecimal."""
    inflated_bytes: int
    """Of the tar in it, its end included."""
    members: int
    """How many names it holds."""


class ArchiveWriter:
    """Writes one archive. Not for several threads at once; packs in a second one of its own.

    Any order of names will do, but a name occurs once and a hard link follows its target. Errors
    of the file (disk full) come out of any method as OSError; the writer is useless then. Leave
    it as a context manager, or call ``close``.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Begin at the file's start.

        Args:
            file: Open for reading and writing, seekable, empty, ours alone until ``finish``.
        """
        self._packed = GroupFile(file)
        self._open: Block | None = None
        self._ended = False
        self._where: dict[bytes, Group | None] = {}
        """Live names; None is the open group."""
        self._links: dict[bytes, Entry] = {}
        """Hard links, live or waiting for their target to come again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread; idempotent. The file stays as it is."""
        self._packed.close()

    def add(
        self,
        entry: Entry,
        read: Read | None = None,
        segments: Sequence[tuple[int, int]] | None = None,
    ) -> Entry:
        """Pack one name.

        Args:
            entry: If it has a sha256, the content must have it.
            read: For a file: gives its whole content, holes as zeros, from the start.
            segments: For a sparse file: (offset, length) of each part with data, as SEEK_DATA and
                SEEK_HOLE tell; empty is one hole, None is data throughout. What is not zero
                outside of them is a change.

        Returns:
            The entry, for a file with its sha256.

        Raises:
            Changed: The file is shorter, longer or other than the entry says; the archive is as
                if nothing had been asked. The same holds when ``read`` raises.
            ValueError: The name is in the archive already; a file without ``read``.
        """
        path = entry.path
        if path in self._where:
            raise ValueError(f"{path!r} is in the archive already")
        if entry.kind is EntryKind.FILE:
            if read is None or (segments is not None and not entry.sparse):
                raise ValueError(f"{path!r}: a file needs read, and segments mean a sparse one")
            return self._add_file(entry, read, segments)
        if entry.kind is EntryKind.HARDLINK:
            self._links[path] = entry
        self._put(path, [member_header(entry)])
        return entry

    def add_later(self, path: bytes, mode: int, mtime_ns: int, size: int, fd: int) -> None:
        """Pack a file without holes whose sha256 is told at the end (``sha256_of``).

        Args:
            path: Its name, as that of an entry; mode and mtime_ns as well.
            mode: Permission bits.
            mtime_ns: Since the epoch.
            size: Its bytes, up to PIECE_BYTES.
            fd: It, open for reading; only used until this returns.

        Raises:
            Changed: It is shorter or longer; the archive is as if nothing had been asked.
            ValueError: The name is in the archive already.
        """
        if path in self._where:
            raise ValueError(f"{path!r} is in the archive already")
        header = file_header(path, mode, size, mtime_ns)
        block = self._room(len(header) + size + BLOCK)
        if not block.read(path, header, fd, size):
            raise Changed(f"{path!r} gave other than its {size} bytes")
        self._where[path] = None
        if block.end >= GROUP_BYTES:
            self._seal()

    def sha256_of(self, path: bytes) -> bytes:
        """Tell the sha256 of a file of ``add_later``, 32 bytes; after ``end``."""
        group = self._where[path]
        assert group is not None
        return group.digests[path]

    def drop(self, paths: Collection[bytes]) -> None:
        """Leave out names that are stale; they may be added again. Unknown ones do not matter.

        Hard links to a dropped file are dropped with it and come again with it.
        """
        gone = set(paths)
        for path in gone:
            self._links.pop(path, None)
        gone.update(path for path, entry in self._links.items() if entry.target in gone)
        for path in gone:
            if path not in self._where:
                continue
            group = self._where.pop(path)
            if group is None:
                assert self._open is not None
                self._open.drop(path)
            else:
                group.stale.add(path)

    def end(self) -> None:
        """Pack the rest and wait for all of it; nothing can be added any more. Idempotent."""
        if self._ended:
            return
        self._ended = True
        for path, entry in self._links.items():
            if path not in self._where and entry.target in self._where:
                self._put(path, [member_header(entry)])
        self._room(len(END)).put(b"", [END])
        self._seal()
        self._packed.settle()

    def finish(self) -> ArchiveSummary:
        """End the archive; it lies in the file from its start, and nothing else.

        Raises:
            OSError: The file could not be written; what it holds is no archive.
        """
        self.end()
        size, sha256, inflated = self._packed.finish()
        return ArchiveSummary(size, sha256, inflated, len(self._where))

    def _room(self, size: int) -> Block:
        """Have a block that takes so many bytes."""
        if self._open is not None and not self._open.fits(size):
            self._seal()
        if self._open is None:
            self._open = self._packed.block(size)
        return self._open

    def _put(self, path: bytes, parts: list[bytes]) -> None:
        block = self._room(sum(map(len, parts)))
        block.put(path, parts)
        self._where[path] = None
        if block.end >= GROUP_BYTES:
            self._seal()

    def _seal(self) -> None:
        block, self._open = self._open, None
        if not block:
            return
        group = self._packed.put(block)
        for path in group.lengths:
            if path:
                self._where[path] = group

    def _add_file(
        self, entry: Entry, read: Read, segments: Sequence[tuple[int, int]] | None
    ) -> Entry:
        size = entry.size
        places: list[tuple[int, int]] = []
        if entry.sparse:
            places = sparse_map([(0, size)] if segments is None else segments, size)
        header = member_header(entry, places)
        if size <= PIECE_BYTES and not places:
            content = _exactly(read, size, entry)
            digest = hashlib.sha256(content)
            _check_end(read, entry, digest.digest())
            self._put(entry.path, [header, content, PADDING[size % BLOCK]])
        else:
            digest = hashlib.sha256()
            self._seal()
            with self._packed.stream(entry.path) as stream:
                stream.write(header)
                for is_data, length in extents(places or [(0, size)], size):
                    for start in range(0, length, PIECE_BYTES):
                        piece = _exactly(read, min(PIECE_BYTES, length - start), entry)
                        digest.update(piece)
                        if is_data:
                            stream.write(piece)
                        elif piece != _ZEROS[: len(piece)]:
                            raise Changed(f"{entry.path!r} has data where it had a hole")
                stored = sum(length for _, length in places) if places else size
                stream.write(PADDING[stored % BLOCK])
                _check_end(read, entry, digest.digest())
            self._where[entry.path] = stream.group
        return Entry(
            entry.path,
            entry.kind,
            entry.mode,
            entry.mtime_ns,
            size,
            digest.digest(),
            entry.target,
            entry.source,
            entry.sparse,
        )


def _exactly(read: Read, size: int, entry: Entry) -> bytes:
    piece = read(size) if size else b""
    if len(piece) == size:
        return piece
    pieces, left = [piece], size - len(piece)
    while left > 0 and piece:
        piece = read(left)
        pieces.append(piece)
        left -= len(piece)
    if left:
        raise Changed(f"{entry.path!r} gave other than its {entry.size} bytes")
    return b"".join(pieces)


def _check_end(read: Read, entry: Entry, sha256: bytes) -> None:
    if read(1):
        raise Changed(f"{entry.path!r} is longer than its {entry.size} bytes")
    if entry.sha256 and entry.sha256 != sha256:
        raise Changed(f"{entry.path!r} has another content than before")
