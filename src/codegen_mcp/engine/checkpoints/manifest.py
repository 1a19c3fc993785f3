"""A checkpoint's manifest: every name of the session then, as JSON lines in gzip.

The first line is an object, each further one an array: path, kind, mode, mtime_ns; then for a file
size, sha256, source and 1 if it is sparse, for a link its target.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from codegen_mcp.core.checkpoint import FORMAT, Entry, EntryKind
from codegen_mcp.engine.checkpoints.archive_codec import deflater
from codegen_mcp.engine.checkpoints.bounds import MAX_MANIFEST_BYTES, check_manifest_bytes
from codegen_mcp.engine.checkpoints.manifest_reader import MAX_LINE_BYTES, read_manifest

MAX_REMOVED = 1000
PIECE_BYTES = 1024 * 1024
"""Packed at a time: the text of names that are no UTF-8 is six times as long as they are."""
_quoted = json.encoder.encode_basestring_ascii


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint holds."""

    checkpoint: str
    """Its id."""
    parent: int
    """Number of the checkpoint it builds on; 0 is none."""
    entries: Sequence[Entry]
    """Directories before what is in them, hard links after their targets."""
    removed: Sequence[bytes] = ()
    """Names gone since the parent: the first ones, when there are more than MAX_REMOVED or
    their text is longer than half a line."""


def encode_manifest(manifest: Manifest) -> bytes:
    """Write a manifest; equal ones give equal bytes (of one version of the compressor).

    Raises:
        LimitExceeded: It is longer than ``decode_manifest`` reads.
    """
    removed: list[str] = []
    room = MAX_LINE_BYTES // 2
    for path in manifest.removed[:MAX_REMOVED]:
        removed.append(_text(path))
        room -= len(_quoted(removed[-1])) + 1
        if room < 0:
            removed.pop()
            break
    head = {
        "format": FORMAT,
        "checkpoint": manifest.checkpoint,
        "parent": manifest.parent,
        "entries": len(manifest.entries),
        "bytes": sum(entry.size for entry in manifest.entries),
        "removed": removed,
    }
    packer = deflater()
    packed: list[bytes] = []
    size = 0
    lines = (_line(entry) for entry in manifest.entries)
    for piece in _pieces(chain([json.dumps(head, separators=(",", ":"))], lines)):
        size += len(piece)
        check_manifest_bytes(size)
        packed.append(packer.compress(piece))
    return b"".join([*packed, packer.flush()])


def _pieces(lines: Iterable[str]) -> Iterator[bytes]:
    """Yield lines, each ended, many at a time."""
    begun: list[str] = []
    length = 0
    for line in lines:
        begun.append(line)
        length += len(line)
        if length >= PIECE_BYTES:
            yield "\n".join([*begun, ""]).encode("ascii")
            begun, length = [], 0
    if begun:
        yield "\n".join([*begun, ""]).encode("ascii")


def decode_manifest(
    data: bytes, *, expected_checkpoint: str | None = None, max_bytes: int = MAX_MANIFEST_BYTES
) -> Manifest:
    """Read a manifest strictly; what comes out is whole and safe to walk.

    Args:
        data: The object's bytes.
        expected_checkpoint: Id that it must have; None takes any.
        max_bytes: How much it may inflate to.

    Raises:
        Corrupt: Damaged, or not what a writer of this format gives; says which line.
        LimitExceeded: It inflates to more than ``max_bytes``.
        WrongState: A newer format.
    """
    head, entries = read_manifest(data, expected_checkpoint, max_bytes)
    return Manifest(head.checkpoint, head.parent, tuple(entries), head.removed)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _line(entry: Entry) -> str:
    kind = entry.kind
    start = f'[{_quoted(_text(entry.path))},"{kind.value}",{entry.mode:d},{entry.mtime_ns:d}'
    if kind is EntryKind.FILE:
        sparse = ",1" if entry.sparse else ""
        return f'{start},{entry.size:d},"{entry.sha256.hex()}",{entry.source:d}{sparse}]'
    if entry.target:
        return f"{start},{_quoted(_text(entry.target))}]"
    return start + "]"
