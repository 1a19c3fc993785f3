"""A checkpoint's manifest: every name of the session then, as JSON lines in gzip.

The first line is an object, each further one an array: path, kind, mode, mtime_ns; then for a file
size, sha256, source and 1 if it is sparse, for a link its target.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from codegen_mcp.core.checkpoint import FORMAT, Entry, EntryKind
from codegen_mcp.engine.checkpoints.archive_codec import deflate
from codegen_mcp.engine.checkpoints.manifest_reader import MAX_LINE_BYTES, read_manifest

MAX_REMOVED = 1000
MAX_INFLATED_BYTES = 512 * 1024 * 1024
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
    """Write a manifest; equal ones give equal bytes (of one version of the compressor)."""
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
    lines = [json.dumps(head, separators=(",", ":"))]
    lines += [_line(entry) for entry in manifest.entries]
    lines.append("")
    return deflate("\n".join(lines).encode("ascii"))


def decode_manifest(
    data: bytes, *, expected_checkpoint: str | None = None, max_bytes: int = MAX_INFLATED_BYTES
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
