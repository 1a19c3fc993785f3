"""Verifies an archive against its manifest, byte by byte, in flat memory.

A header is not interpreted but compared with the one that the entry of that name must have, so
nothing gets through that a writer of this format would not have written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.core.errors import Corrupt, LimitExceeded
from codegen_mcp.engine.checkpoints import tar_format
from codegen_mcp.engine.checkpoints.ahead import read_ahead
from codegen_mcp.engine.checkpoints.archive_difference import check_header, difference, shown
from codegen_mcp.engine.checkpoints.archive_inflate import iter_inflated
from codegen_mcp.engine.checkpoints.archive_source import TarSource
from codegen_mcp.engine.checkpoints.bounds import check_holes
from codegen_mcp.engine.checkpoints.manifest import Manifest
from codegen_mcp.engine.checkpoints.manifest_reader import MAX_PATH_BYTES
from codegen_mcp.engine.checkpoints.tar_format import BLOCK, END, PADDING, TYPE_AT, member_header
from codegen_mcp.engine.checkpoints.tar_sparse import extents, read_map

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["VerifiedArchive", "iter_inflated", "verify_archive"]

_ZEROS = bytes(256 * 1024)
_SMALL_BYTES = 64 * 1024
"""Files up to this are taken whole."""


@dataclass(frozen=True, slots=True)
class VerifiedArchive:
    """What a verified archive holds."""

    inflated_bytes: int
    """Of the tar."""
    size: int
    """Of the archive."""
    members: int


def verify_archive(
    pieces: Iterable[bytes],
    manifest: Manifest,
    number: int,
    *,
    sha256: str | None,
    max_inflated: int,
    ahead: bool = False,
) -> VerifiedArchive:
    """Read a whole archive and compare it with the manifest of the same checkpoint.

    It must hold exactly the files whose source is ``number``; a full one (without a parent) also
    every directory, link and pipe. An incremental one may hold some of those.

    Args:
        pieces: The archive's bytes, however cut.
        manifest: As decoded; of the checkpoint whose archive this is.
        number: Of that checkpoint.
        sha256: What the archive's bytes must have, hexadecimal; None does not compare.
        max_inflated: Most bytes of tar, holes of sparse files included (they are hashed too).
        ahead: Inflate in a second thread, which takes ``pieces``; for what is not small.

    Raises:
        Corrupt: Damaged, or anything else than what the manifest says; names the member.
        LimitExceeded: More than ``max_inflated``, told before it is used.
    """
    outer = hashlib.sha256()
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for piece in pieces:
            outer.update(piece)
            size += len(piece)
            yield piece

    inflated = iter_inflated(counted(), max_inflated)
    with closing(read_ahead(inflated) if ahead else inflated) as bytes_of_tar:
        source = TarSource(bytes_of_tar)
        members = _Members(source, manifest, number, max_inflated)
        while members.next():
            pass
        members.check_complete()
    if sha256 is not None and outer.hexdigest() != sha256:
        raise Corrupt(f"the archive's sha256 is {outer.hexdigest()}, not {sha256}")
    return VerifiedArchive(source.offset, size, members.count)


class _Members:
    def __init__(self, source: TarSource, manifest: Manifest, number: int, limit: int) -> None:
        self.count = 0
        self._source = source
        self._full = not manifest.parent
        self._limit = limit
        self._holes = 0
        self._left: dict[bytes, Entry] = {}
        """What may still come."""
        self._files: set[bytes] = set()
        """Files that did not come yet."""
        for entry in manifest.entries:
            if entry.kind is EntryKind.FILE:
                if entry.source != number:
                    continue
                self._files.add(entry.path)
            self._left[entry.path] = entry

    def next(self) -> bool:
        """Verify one member; False at the end of the archive."""
        source = self._source
        at = source.offset
        raw = source.take(BLOCK, "a header")
        if not raw[0]:
            if raw + source.take(BLOCK, "its end") != END:
                raise Corrupt(f"no header at byte {at}, and no end")
            source.expect_end()
            return False
        before = b""
        name = None
        for kind in (tar_format.LONG_LINK, tar_format.LONG_NAME):
            if raw[TYPE_AT : TYPE_AT + 1] == kind:
                text = self._long_text(raw, at)
                before += raw + text
                name = text.rstrip(b"\0") if kind == tar_format.LONG_NAME else None
                raw = source.take(BLOCK, "a header")
        if name is None:
            name = raw[: tar_format.FIELD].rstrip(b"\0")
        if raw[TYPE_AT : TYPE_AT + 1] == tar_format.TYPES[EntryKind.DIRECTORY]:
            name = name.removesuffix(b"/")
        entry = self._left.pop(name, None)
        if entry is None:
            check_header(raw, at)
            raise Corrupt(
                f"member {shown(name)} at byte {at} occurs twice, is not in the manifest, "
                "or is of another checkpoint's archive"
            )
        self._member(entry, before, raw, at)
        self.count += 1
        return True

    def check_complete(self) -> None:
        """Corrupt when a member is missing."""
        missing = self._left if self._full else self._files
        if missing:
            raise Corrupt(f"{len(missing)} members are missing, among them {shown(min(missing))}")

    def _long_text(self, raw: bytes, at: int) -> bytes:
        try:
            size = tar_format.parse_number(raw[124:136])
        except ValueError:
            size = 0
        if not 0 < size <= MAX_PATH_BYTES + 1:
            raise Corrupt(f"the long name at byte {at} has a length that none may have")
        return self._source.take(size + -size % BLOCK, "a long name")

    def _member(self, entry: Entry, before: bytes, raw: bytes, at: int) -> None:
        places: list[tuple[int, int]] = []
        head = raw
        if entry.sparse and raw[TYPE_AT : TYPE_AT + 1] == tar_format.SPARSE:
            try:
                places, more = read_map(raw, self._block_of_map, entry.size)
            except ValueError as error:
                raise Corrupt(f"sparse member {shown(entry.path)} at byte {at}: {error}") from None
            raw += more
        expected = member_header(entry, places)
        if before + raw != expected:
            check_header(head, at)
            raise Corrupt(
                f"member {shown(entry.path)} at byte {at} is not as the manifest says: "
                + difference(raw, expected[len(before) :])
            )
        if entry.kind is EntryKind.FILE:
            self._content(entry, places)
        elif entry.kind is EntryKind.HARDLINK and entry.target in self._files:
            raise Corrupt(f"hard link {shown(entry.path)} at byte {at} comes before its target")

    def _block_of_map(self) -> bytes:
        return self._source.take(BLOCK, "a sparse file's map")

    def _content(self, entry: Entry, places: list[tuple[int, int]]) -> None:
        source, size, path = self._source, entry.size, entry.path
        at = source.offset
        if not places and size <= _SMALL_BYTES:
            padding = PADDING[size % BLOCK]
            data = source.view(size + len(padding), "a file")
            digest = hashlib.sha256(data[:size])
            ended = data[size:].tobytes() == padding
        else:
            digest = hashlib.sha256()
            stored = 0
            for is_data, length in extents(places or [(0, size)], size):
                if is_data:
                    stored += length
                    for piece in source.stream(length, "a file"):
                        digest.update(piece)
                else:
                    self._hole(length, digest)
            padding = PADDING[stored % BLOCK]
            ended = source.take(len(padding), "a file") == padding
        if digest.digest() != entry.sha256:
            raise Corrupt(
                f"the content of {shown(path)} at byte {at} has the sha256 {digest.hexdigest()}, "
                f"not {entry.sha256.hex()}"
            )
        if not ended:
            raise Corrupt(f"after the content of {shown(path)} at byte {at} are other bytes than 0")
        self._files.discard(path)

    def _hole(self, length: int, digest: _Hash) -> None:
        self._holes += length
        check_holes(self._holes)
        if self._source.offset + self._holes > self._limit:
            raise LimitExceeded(f"with the holes of its files it has more than {self._limit} bytes")
        for start in range(0, length, len(_ZEROS)):
            digest.update(_ZEROS[: length - start])
