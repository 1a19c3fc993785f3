"""Format 1 as it was first written: it is read for ever, and written the same.

The files are never made anew. A format that differs gets a number and files of its own.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.engine.checkpoints.archive_reader import verify_archive
from codegen_mcp.engine.checkpoints.manifest import Manifest, decode_manifest, encode_manifest
from codegen_mcp.testing.archive_rig import pack

GOLDEN = Path(__file__).parents[2] / "golden" / "checkpoint_format_1"
CHECKPOINT = "ses_0123456789abcdef0123456789abcdef.1.1"
SECOND_NS = 1_000_000_000
NOON_NS = 1_767_268_800 * SECOND_NS + 5
"""The first of January 2026, twelve o'clock UTC, and five nanoseconds."""
DEEP = b"workspace/deep/" + b"x" * 120
CONTENTS = {
    b"workspace/main.py": b"print('hello')\n",
    b"workspace/empty": b"",
    b"workspace/\xff.bin": bytes(range(256)) * 3,
    b"workspace/holes": bytes(65536) + b"end of holes",
    b"workspace/mostly holes": b"".join(
        bytes(4096) + bytes([i + 1]) * 4096 for i in range(30)
    ) + bytes(4096),
    DEEP: "\u00fcber".encode(),
    b"venv/pyvenv.cfg": b"home = /usr/bin\n",
}  # fmt: skip


def file(path: bytes, mode: int = 0o644, *, sparse: bool = False) -> Entry:
    content = CONTENTS[path]
    digest = hashlib.sha256(content).digest()
    return Entry(path, EntryKind.FILE, mode, NOON_NS, len(content), digest, b"", 1, sparse)


ENTRIES = (
    Entry(b"workspace", EntryKind.DIRECTORY, 0o755, NOON_NS),
    file(b"workspace/main.py", 0o755),
    file(b"workspace/empty", 0),
    file(b"workspace/\xff.bin"),
    file(b"workspace/holes", sparse=True),
    file(b"workspace/mostly holes", sparse=True),
    Entry(b"workspace/deep", EntryKind.DIRECTORY, 0o1777, -SECOND_NS - 1),
    file(DEEP),
    Entry(b"workspace/again", EntryKind.HARDLINK, 0o644, NOON_NS, target=DEEP),
    Entry(b"workspace/link", EntryKind.SYMLINK, 0o777, NOON_NS, target=b"/nowhere/" + b"y" * 100),
    Entry(b"workspace/pipe", EntryKind.FIFO, 0o600, 8**11 * SECOND_NS),
    Entry(b"venv", EntryKind.DIRECTORY, 0o755, NOON_NS),
    file(b"venv/pyvenv.cfg"),
)
MANIFEST = Manifest(CHECKPOINT, 0, ENTRIES, (b"workspace/removed", b"workspace/\xfe"))


def read(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def test_the_manifest_is_read_as_what_was_written() -> None:
    assert decode_manifest(read("manifest.gz"), expected_checkpoint=CHECKPOINT) == MANIFEST


def test_the_manifest_is_written_the_same() -> None:
    assert gzip.decompress(encode_manifest(MANIFEST)) == gzip.decompress(read("manifest.gz"))


def test_the_archive_is_verified_against_the_manifest() -> None:
    archive = read("archive.tar.gz")
    found = verify_archive(
        [archive],
        decode_manifest(read("manifest.gz")),
        1,
        sha256="3fe349f15fd5f4eac947bf732a186dc620f2af291c791568a73f692562a4fe38",
        max_inflated=1024 * 1024,
    )
    assert (found.members, found.size) == (len(ENTRIES), len(archive))


def test_the_archive_is_written_the_same() -> None:
    assert gzip.decompress(pack(ENTRIES, CONTENTS).data) == gzip.decompress(read("archive.tar.gz"))
