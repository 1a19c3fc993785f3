"""Archives and manifests for tests, made out of plain values by the real writer."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.engine.checkpoints.archive_reader import VerifiedArchive, verify_archive
from codegen_mcp.engine.checkpoints.archive_writer import ArchiveSummary, ArchiveWriter
from codegen_mcp.engine.checkpoints.manifest import Manifest

SESSION = "ses_" + "5" * 32
CHECKPOINT = f"{SESSION}.1.1"
ROOMY = 64 * 1024 * 1024
MTIME_NS = 1_700_000_000_123_456_789


@dataclass(frozen=True)
class Packed:
    """An archive with what it was made of."""

    data: bytes
    manifest: Manifest
    summary: ArchiveSummary

    def verify(
        self, data: bytes | None = None, *, limit: int = ROOMY, sha256: str | None = None
    ) -> VerifiedArchive:
        """Verify the archive, or other bytes in its place."""
        return verify_archive(
            [self.data if data is None else data],
            self.manifest,
            1,
            sha256=sha256,
            max_inflated=limit,
        )


def directory(path: bytes, mode: int = 0o755) -> Entry:
    """One directory."""
    return Entry(path, EntryKind.DIRECTORY, mode, MTIME_NS)


def file(path: bytes, content: bytes, *, mode: int = 0o644, sparse: bool = False) -> Entry:
    """One file of checkpoint 1."""
    digest = hashlib.sha256(content).digest()
    return Entry(path, EntryKind.FILE, mode, MTIME_NS, len(content), digest, b"", 1, sparse)


def symlink(path: bytes, target: bytes) -> Entry:
    """One symbolic link."""
    return Entry(path, EntryKind.SYMLINK, 0o777, MTIME_NS, target=target)


def hardlink(path: bytes, target: bytes) -> Entry:
    """One further name of a file."""
    return Entry(path, EntryKind.HARDLINK, 0o644, MTIME_NS, target=target)


def fifo(path: bytes) -> Entry:
    """One named pipe."""
    return Entry(path, EntryKind.FIFO, 0o600, MTIME_NS)


def reading(content: bytes) -> Callable[[int], bytes]:
    """Read a file's bytes from memory."""
    return io.BytesIO(content).read


def data_of(content: bytes, block: int = 4096) -> list[tuple[int, int]]:
    """(offset, length) of the blocks of a content that are not zero, as SEEK_DATA would tell."""
    return [
        (at, min(block, len(content) - at))
        for at in range(0, len(content), block)
        if content[at : at + block].strip(b"\0")
    ]


def add_all(
    writer: ArchiveWriter, entries: Iterable[Entry], contents: Mapping[bytes, bytes]
) -> list[Entry]:
    """Add entries, without the sha256 that they have."""
    added = []
    for entry in entries:
        if entry.kind is EntryKind.FILE:
            content = contents[entry.path]
            segments = data_of(content) if entry.sparse else None
            plain = replace(entry, sha256=b"")
            added.append(writer.add(plain, reading(content), segments))
        else:
            added.append(writer.add(entry))
    return added


def pack(entries: Sequence[Entry], contents: Mapping[bytes, bytes]) -> Packed:
    """Pack a full checkpoint."""
    file = io.BytesIO()
    with ArchiveWriter(file) as writer:
        added = add_all(writer, entries, contents)
        summary = writer.finish()
    return Packed(file.getvalue(), Manifest(CHECKPOINT, 0, tuple(added)), summary)
