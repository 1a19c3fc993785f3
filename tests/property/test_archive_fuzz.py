"""Whatever bytes come in, only a typed error comes out, or exactly what the manifest says.

A sample runs by default; with ``--soak`` each test goes on for minutes.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen_mcp.core.errors import Corrupt, LimitExceeded, WrongState
from codegen_mcp.engine.checkpoints.archive_reader import verify_archive
from codegen_mcp.engine.checkpoints.manifest import Manifest, decode_manifest, encode_manifest
from codegen_mcp.testing.archive_rig import (
    CHECKPOINT,
    directory,
    fifo,
    file,
    hardlink,
    pack,
    symlink,
)

SOAK_S = 150.0 if os.environ.get("CODEGEN_TEST_SOAK") else 0.0
LIMIT = 4 * 1024 * 1024
TYPED = (Corrupt, LimitExceeded, WrongState)
SAMPLE = settings(
    max_examples=250,
    deadline=1000,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

CONTENTS = {
    b"workspace/a": b"hello",
    b"workspace/holes": bytes(4096) + b"x" * 4096 + bytes(4096),
    b"workspace/" + b"n" * 120: b"long",
    b"workspace/empty": b"",
}
PACKED = pack(
    [
        directory(b"workspace"),
        *[file(path, data, sparse=b"holes" in path) for path, data in CONTENTS.items()],
        hardlink(b"workspace/h", b"workspace/a"),
        symlink(b"workspace/s", b"t" * 120),
        fifo(b"workspace/p"),
        directory(b"venv"),
    ],
    CONTENTS,
)
TAR = gzip.decompress(PACKED.data)
BLOCKS = [TAR[at : at + 512] for at in range(0, len(TAR), 512)]
LINES = gzip.decompress(encode_manifest(PACKED.manifest)).decode().split("\n")[:-1]


def go_on(sample: Callable[[], None]) -> None:
    """Run once, and in a soak until the time is up."""
    end = time.monotonic() + SOAK_S
    sample()
    while time.monotonic() < end:
        sample()


def takes(data: bytes) -> None:
    """Verify; what is taken is what Python finds in it, and it took neither time nor memory."""
    tracemalloc.start()
    try:
        verify_archive([data], PACKED.manifest, 1, sha256=None, max_inflated=LIMIT)
    except TYPED:
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * LIMIT
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        found = {os.fsencode(member.name): member for member in tar}
        assert set(found) == {entry.path for entry in PACKED.manifest.entries}
        for path, content in CONTENTS.items():
            reader = tar.extractfile(found[path])
            assert reader is not None
            assert reader.read() == content


def mended(block: bytes) -> bytes:
    """A block with the checksum that it would have as a header."""
    total = sum(block[:148]) + sum(block[156:512]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


EDITS = st.tuples(
    st.sampled_from(["set", "mend", "drop", "double", "swap", "insert", "type", "field"]),
    st.integers(0, len(BLOCKS) - 1),
    st.integers(0, 511),
    st.binary(min_size=1, max_size=24)
    | st.sampled_from([b"\xff" * 12, b"\x80" + bytes(11), b"77777777777\0", b"../..", b"/"]),
)


def edited(edits: list[tuple[str, int, int, bytes]]) -> bytes:
    blocks = list(BLOCKS)
    for how, index, at, data in edits:
        if not blocks:
            break
        index %= len(blocks)
        block = blocks[index]
        if how in ("set", "mend"):
            block = (block[:at] + data + block[at + len(data) :])[:512].ljust(512, b"\0")
            blocks[index] = mended(block) if how == "mend" else block
        elif how == "type":
            blocks[index] = mended(block[:156] + b"012345678LKSxgVMDN"[at % 18 :][:1] + block[157:])
        elif how == "field":
            start = (0, 100, 124, 136, 157, 386, 398, 482, 483)[at % 9]
            blocks[index] = mended((block[:start] + data + block[start + len(data) :])[:512])
        elif how == "drop":
            del blocks[index]
        elif how == "double":
            blocks.insert(index, block)
        elif how == "insert":
            blocks.insert(index, (data * 512)[:512])
        else:
            other = (index + 1 + at) % len(blocks)
            blocks[index], blocks[other] = blocks[other], block
    return b"".join(blocks)


def test_an_edited_tar_is_refused_or_says_the_same() -> None:
    @given(st.lists(EDITS, max_size=6))
    @SAMPLE
    def sample(edits: list[tuple[str, int, int, bytes]]) -> None:
        takes(gzip.compress(edited(edits), 0))

    go_on(sample)


def test_edited_or_random_gzip_is_refused_or_says_the_same() -> None:
    @given(
        st.binary(max_size=300),
        st.lists(st.tuples(st.integers(0, len(PACKED.data)), st.binary(max_size=8)), max_size=4),
        st.booleans(),
    )
    @SAMPLE
    def sample(noise: bytes, edits: list[tuple[int, bytes]], framed: bool) -> None:
        data = PACKED.data
        for at, put in edits:
            data = data[:at] + put + data[at + len(put) :]
        takes(data + noise)
        if framed:
            body = zlib.compress(noise)[2:-4]
            takes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + noise[:8])
        takes(noise)

    go_on(sample)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["workspace", "workspace/a", "f", "d", "h", "a" * 64, "\ud800", 2**70]),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def reads(data: bytes) -> Manifest | None:
    tracemalloc.start()
    try:
        manifest = decode_manifest(data, expected_checkpoint=CHECKPOINT, max_bytes=LIMIT)
    except TYPED:
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * LIMIT
    # What is taken can be written, and read again as the same.
    assert decode_manifest(encode_manifest(manifest)) == manifest
    return manifest


def test_an_edited_manifest_is_refused_or_is_one() -> None:
    places = st.tuples(st.integers(0, len(LINES) - 1), st.integers(0, 9), JSON)

    @given(st.lists(places, max_size=3), st.lists(st.integers(0, len(LINES) - 1), max_size=2))
    @SAMPLE
    def sample(edits: list[tuple[int, int, object]], doubled: list[int]) -> None:
        values = [json.loads(line) for line in LINES]
        for line, at, value in edits:
            if isinstance(values[line], dict):
                names = list(values[line])
                values[line][names[at % len(names)]] = value
            elif isinstance(values[line], list):
                values[line][at : at + 1] = [value]
        values += [values[line] for line in doubled]
        reads(gzip.compress("".join(json.dumps(value) + "\n" for value in values).encode(), 0))

    go_on(sample)


def test_any_bytes_as_a_manifest_are_refused_or_are_one() -> None:
    whole = "\n".join(LINES).encode() + b"\n"

    @given(
        st.binary(max_size=300),
        st.lists(st.tuples(st.integers(0, len(whole)), st.binary(max_size=8)), max_size=4),
    )
    @SAMPLE
    def sample(noise: bytes, edits: list[tuple[int, bytes]]) -> None:
        data = whole
        for at, put in edits:
            data = data[:at] + put + data[at + len(put) :]
        reads(gzip.compress(data, 0))
        reads(gzip.compress(noise, 0))
        reads(noise)

    go_on(sample)
