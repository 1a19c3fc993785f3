"""Archives that are damaged or made to harm: every one is refused with a typed error."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
import zlib
from dataclasses import replace

import pytest

from codegen_mcp.core.errors import Corrupt, LimitExceeded
from codegen_mcp.engine.checkpoints.archive_inflate import PIECE_BYTES, iter_inflated
from codegen_mcp.engine.checkpoints.archive_reader import verify_archive
from codegen_mcp.engine.checkpoints.manifest import Manifest
from codegen_mcp.testing.archive_rig import (
    CHECKPOINT,
    ROOMY,
    Packed,
    directory,
    fifo,
    file,
    hardlink,
    pack,
    symlink,
)

HOLES = bytes(8192) + b"data" * 1024 + bytes(8192) + b"tail"
MANY = b"".join(b"\1" * 4096 + bytes(4096) for _ in range(8))
LONG = b"workspace/" + b"n" * 150
CONTENTS = {
    b"workspace/a": b"hello" * 20,
    b"workspace/d/b": b"b" * 700,
    b"workspace/holes": HOLES,
    b"workspace/many": MANY,
    LONG: b"long",
    b"workspace/empty": b"",
}
PACKED = pack(
    [
        directory(b"workspace"),
        file(b"workspace/a", CONTENTS[b"workspace/a"]),
        directory(b"workspace/d"),
        file(b"workspace/d/b", CONTENTS[b"workspace/d/b"]),
        file(b"workspace/holes", HOLES, sparse=True),
        file(b"workspace/many", MANY, sparse=True),
        file(LONG, b"long"),
        file(b"workspace/empty", b""),
        hardlink(b"workspace/h", b"workspace/a"),
        symlink(b"workspace/s", b"a"),
        fifo(b"workspace/p"),
    ],
    CONTENTS,
)
TAR = gzip.decompress(PACKED.data)
END = len(TAR) - 1024


def place(path: bytes) -> tuple[int, int]:
    """Where a member begins and ends, its long name included, as Python's tarfile sees it."""
    with tarfile.open(fileobj=io.BytesIO(TAR)) as tar:
        members = tar.getmembers()
        for i, member in enumerate(members):
            if member.name.encode() == path:
                return member.offset, members[i + 1].offset if i + 1 < len(members) else END
    raise AssertionError(path)


def header(path: bytes) -> int:
    with tarfile.open(fileobj=io.BytesIO(TAR)) as tar:
        member = tar.getmember(path.decode())
        return member.offset + (1024 if len(path) > 100 else 0)


def summed(block: bytes) -> bytes:
    total = sum(block[:148]) + sum(block[156:512]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


def changed(path: bytes, at: int, field: bytes) -> bytes:
    """The tar with one field of one header changed and its checksum made right."""
    start = header(path)
    block = TAR[start : start + 512]
    block = summed(block[:at] + field + block[at + len(field) :])
    return TAR[:start] + block + TAR[start + 512 :]


def named(name: bytes, path: bytes = b"workspace/a") -> bytes:
    return changed(path, 0, name.ljust(100, b"\0"))


def without(path: bytes) -> bytes:
    start, end = place(path)
    return TAR[:start] + TAR[end:]


def inserted(member: bytes, before: bytes = b"workspace/a") -> bytes:
    at = place(before)[0]
    return TAR[:at] + member + TAR[at:]


def member(path: bytes) -> bytes:
    start, end = place(path)
    return TAR[start:end]


def made(name: str, kind: bytes, format_: int = tarfile.GNU_FORMAT, **facts: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info.tobuf(format_, errors="surrogateescape")


def number(value: int) -> bytes:
    return b"%011o\0" % value


FIRST_PLACE, SECOND_PLACE, MAP_END, REAL_SIZE = 386, 410, 482, 483
MANY_MAP = header(b"workspace/many") + 512

HOSTILE: dict[str, tuple[bytes, str]] = {
    "a name that climbs out": (named(b"workspace/../../etc/passwd"), "not in the manifest"),
    "a name that climbs within": (named(b"workspace/d/../a"), "not in the manifest"),
    "an absolute name": (named(b"/workspace/a"), "not in the manifest"),
    "a name with a dot": (named(b"./workspace/a"), "not in the manifest"),
    "a doubled slash": (named(b"workspace//a"), "not in the manifest"),
    "a file's name with a slash": (named(b"workspace/a/"), "not in the manifest"),
    "an empty name": (changed(b"workspace/a", 0, bytes(100)), "no header"),
    "an unknown name": (named(b"workspace/unknown"), "not in the manifest"),
    "bytes after a name's NUL": (named(b"workspace/a\0x"), "not in the manifest"),
    "a directory without a slash": (
        named(b"workspace/d", b"workspace/d"),
        "name 'workspace/d', not 'workspace/d/'",
    ),
    "a link where a file must be": (changed(b"workspace/a", 156, b"2"), "type '2', not '0'"),
    "a link and then the file": (
        inserted(made("workspace/a", b"2", linkname="/etc")),
        "not as the manifest says",
    ),
    "a file where a link must be": (changed(b"workspace/s", 156, b"0"), "type"),
    "a link elsewhere": (changed(b"workspace/s", 157, b"/etc/passwd"), "link '/etc/passwd'"),
    "a hard link elsewhere": (changed(b"workspace/h", 157, b"workspace/d/b"), "link"),
    "a hard link to a directory": (changed(b"workspace/h", 157, b"workspace/d\0"), "link"),
    "a hard link before its target": (
        TAR[: place(b"workspace/a")[0]]
        + member(b"workspace/h")
        + TAR[place(b"workspace/a")[0] : place(b"workspace/h")[0]]
        + TAR[place(b"workspace/h")[1] :],
        "before its target",
    ),
    "a block device": (inserted(made("workspace/x", b"4")), "type b'4'"),
    "a character device": (inserted(made("workspace/x", b"3")), "type b'3'"),
    "a device under a file's name": (changed(b"workspace/a", 156, b"3"), "type b'3'"),
    "a contiguous file": (changed(b"workspace/a", 156, b"7"), "type b'7'"),
    "an old tar's file": (changed(b"workspace/a", 156, b"\0"), "type"),
    "a header of pax": (
        inserted(made("workspace/" + "x" * 200, b"0", tarfile.PAX_FORMAT)),
        "type b'x'",
    ),
    "a global header of pax": (inserted(made("g", b"g")), "type b'g'"),
    "a label": (inserted(made("label", b"V")), "type b'V'"),
    "a part of another volume": (inserted(made("m", b"M")), "type b'M'"),
    "a list of names": (inserted(made("names", b"D")), "type b'D'"),
    "a member twice": (inserted(member(b"workspace/d/b"), b"workspace/empty"), "occurs twice"),
    "a directory twice": (inserted(member(b"workspace/d"), b"workspace/empty"), "occurs twice"),
    "a missing file": (without(b"workspace/d/b"), "missing.*'workspace/d/b'"),
    "a missing empty file": (without(b"workspace/empty"), "missing"),
    "a missing directory": (without(b"workspace/d"), "missing"),
    "a missing link": (without(b"workspace/h"), "missing"),
    "a missing pipe": (without(b"workspace/p"), "missing"),
    "a larger size": (changed(b"workspace/a", 124, number(101)), "size"),
    "a size beyond the end": (changed(b"workspace/a", 124, number(8**11 - 1)), "size"),
    "a size that is no number": (changed(b"workspace/a", 124, b"0000000014x\0"), "size"),
    "a size with spaces": (changed(b"workspace/a", 124, b"        144\0"), "size"),
    "a negative size": (changed(b"workspace/a", 124, b"\xff" * 12), "size"),
    "a size in base 256": (changed(b"workspace/a", 124, b"\x80" + bytes(10) + b"\x64"), "size"),
    "a size that overflows": (changed(b"workspace/a", 124, b"\x80" + b"\xff" * 11), "size"),
    "a pipe with content": (changed(b"workspace/p", 124, number(512)), "size"),
    "a directory with content": (changed(b"workspace/d", 124, number(512)), "size"),
    "another mode": (changed(b"workspace/a", 100, b"0004755\0"), "mode '0004755'"),
    "another owner": (changed(b"workspace/a", 108, b"0000000\0"), "uid"),
    "another group": (changed(b"workspace/a", 116, b"0000000\0"), "gid"),
    "another time": (changed(b"workspace/a", 136, number(1)), "mtime"),
    "a user's name": (changed(b"workspace/a", 265, b"root"), "rest"),
    "a prefix": (changed(b"workspace/a", 345, b"/etc"), "rest"),
    "another magic": (changed(b"workspace/a", 257, b"ustar\x0000"), "magic"),
    "a device number": (changed(b"workspace/p", 329, b"0000001\0"), "rest"),
    "a wrong checksum": (
        TAR[: header(b"workspace/a") + 148] + b"000000\0 " + TAR[header(b"workspace/a") + 156 :],
        "wrong checksum",
    ),
    "other content": (TAR.replace(b"hello", b"hallo", 1), "content of 'workspace/a'"),
    "other content in a sparse file": (TAR.replace(b"datadata", b"datAdata", 1), "content of"),
    "padding that is not zero": (
        TAR[: place(b"workspace/a")[1] - 1] + b"x" + TAR[place(b"workspace/a")[1] :],
        "other bytes than 0",
    ),
    "a long name's record cut to nothing": (
        inserted(made("././@LongLink", b"L", size=0), LONG),
        "length that none may have",
    ),
    "a long name as long as memory": (
        inserted(made("././@LongLink", b"L", size=2**40), LONG),
        "length that none may have",
    ),
    "a long name for a short one": (
        inserted(made("././@LongLink", b"L", size=12) + b"workspace/a\0".ljust(512, b"\0")),
        "not as the manifest says",
    ),
    "a long name twice": (inserted(member(LONG)[:1024], LONG), "type b'L'"),
    "a long link before a file": (
        inserted(made("././@LongLink", b"K", size=2) + b"x\0".ljust(512, b"\0")),
        "not as the manifest says",
    ),
    "a long name and no member": (TAR[:END] + member(LONG)[:1024] + TAR[END:], "checksum"),
    "one block of zeros and more": (inserted(bytes(512)), "no end"),
    "no end": (TAR[:END], "ends at byte"),
    "half an end": (TAR[: END + 512], "ends at byte"),
    "an end of three blocks": (TAR + bytes(512), "follow the archive's end"),
    "a member after the end": (TAR + member(b"workspace/a") + bytes(1024), "follow"),
    "two tars": (TAR + TAR, "follow"),
    "only an end": (bytes(1024), "missing"),
    "a dense file where a sparse one must be": (
        changed(b"workspace/holes", 156, b"0"),
        "type '0', not 'S'",
    ),
    "a sparse file where a dense one must be": (changed(b"workspace/a", 156, b"S"), "type 'S'"),
    "a map that overlaps": (
        changed(b"workspace/holes", SECOND_PLACE, number(8192)),
        "overlaps or leaves",
    ),
    "a map that goes backwards": (
        changed(b"workspace/holes", FIRST_PLACE, number(409_600)),
        "overlaps or leaves",
    ),
    "a map that leaves the file": (
        changed(b"workspace/holes", SECOND_PLACE + 12, number(1024)),
        "overlaps or leaves",
    ),
    "a map with a negative place": (
        changed(b"workspace/holes", FIRST_PLACE, b"\xff" * 11 + b"\0"),
        "overlaps or leaves",
    ),
    "a map with a negative length": (
        changed(b"workspace/holes", FIRST_PLACE + 12, b"\xff" * 11 + b"\0"),
        "overlaps or leaves",
    ),
    "a map of halves of blocks": (
        changed(b"workspace/holes", FIRST_PLACE + 12, number(4000)),
        "whole blocks",
    ),
    "a map that says less": (
        changed(b"workspace/holes", FIRST_PLACE + 12, number(3584)),
        "size",
    ),
    "a map with letters": (
        changed(b"workspace/holes", FIRST_PLACE, b"0000002000x\0"),
        "number",
    ),
    "a map that is empty": (changed(b"workspace/holes", FIRST_PLACE, bytes(96)), "whole blocks"),
    "a map that goes on": (changed(b"workspace/holes", MAP_END, b"\1"), "number"),
    "a map that ends early": (changed(b"workspace/many", MAP_END, b"\0"), "whole blocks"),
    "another real size": (changed(b"workspace/holes", REAL_SIZE, number(10**9)), "rest"),
    "a map's block with more": (
        TAR[: MANY_MAP + 510] + b"x" + TAR[MANY_MAP + 511 :],
        "other records of long names, or another sparse map",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_tar_is_refused_that_has(case: str) -> None:
    data, message = HOSTILE[case]
    assert data != TAR
    with pytest.raises(Corrupt, match=message):
        PACKED.verify(gzip.compress(data, 1))


def test_the_tar_that_the_cases_are_made_of_is_taken() -> None:
    assert PACKED.verify(gzip.compress(TAR, 1)).members == 11


GZIP: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "text": (b"hello world, this is no archive", "damaged"),
    "an uncompressed tar": (TAR, "damaged"),
    "two archives": (PACKED.data * 2, "follow the archive's end"),
    "zeros behind": (PACKED.data + bytes(100), "damaged|follow|too early"),
    "text behind": (PACKED.data + b"more", "damaged|too early"),
    "an empty gzip member behind": (PACKED.data + gzip.compress(b""), "holds 0 bytes"),
    "an empty gzip member before": (gzip.compress(b"") + PACKED.data, "holds 0 bytes"),
    "a gzip member of part of a block": (gzip.compress(TAR[:-1]), "multiple of 512"),
    "raw deflate": (zlib.compress(TAR), "damaged"),
    "no trailer": (PACKED.data[:-8], "too early"),
    "a wrong crc": (PACKED.data[:-8] + bytes(4) + PACKED.data[-4:], "damaged"),
    "a wrong length": (PACKED.data[:-4] + b"\1\2\3\4", "damaged"),
}


@pytest.mark.parametrize("case", GZIP)
def test_no_gzip_stream_of_ours_is_refused(case: str) -> None:
    data, message = GZIP[case]
    with pytest.raises(Corrupt, match=message):
        PACKED.verify(data)


def test_a_tar_cut_at_any_block_is_refused() -> None:
    for end in range(0, len(TAR), 512):
        with pytest.raises(Corrupt):
            PACKED.verify(gzip.compress(TAR[:end], 0))


def test_an_archive_cut_anywhere_is_refused() -> None:
    for end in range(len(PACKED.data)):
        with pytest.raises(Corrupt):
            PACKED.verify(PACKED.data[:end])


def test_a_flipped_bit_anywhere_in_the_tar_is_found() -> None:
    for at in range(0, len(TAR), 37):
        flipped = bytearray(TAR)
        flipped[at] ^= 1 << at % 8
        with pytest.raises(Corrupt):
            PACKED.verify(gzip.compress(flipped, 0))


def test_a_flipped_bit_anywhere_in_the_archive_is_found() -> None:
    sha256 = PACKED.summary.sha256
    for at in range(len(PACKED.data)):
        flipped = bytearray(PACKED.data)
        flipped[at] ^= 1 << at % 8
        # Without the sha256 as well, but for the bytes of a gzip header that mean nothing.
        with pytest.raises(Corrupt):
            PACKED.verify(bytes(flipped), sha256=sha256)


def test_another_sha256_is_told() -> None:
    with pytest.raises(Corrupt, match="sha256"):
        PACKED.verify(sha256="0" * 64)


@pytest.mark.parametrize("size", [1, 7, 512, 65536, 10**9])
def test_it_does_not_matter_how_the_bytes_are_cut(size: int) -> None:
    pieces = [PACKED.data[at : at + size] for at in range(0, len(PACKED.data), size)]
    found = verify_archive(
        [b"", *pieces, b""],
        PACKED.manifest,
        1,
        sha256=PACKED.summary.sha256,
        max_inflated=ROOMY,
    )
    assert found.members == 11


def bomb() -> Packed:
    """Sixty-four megabytes of zeros in a file, and nearly nothing of an archive."""
    size = 64 * 1024 * 1024
    entries = [directory(b"workspace"), file(b"workspace/bomb", bytes(size))]
    return pack(entries, {b"workspace/bomb": bytes(size)})


def test_a_bomb_is_refused_while_counting_and_before_memory_is_used() -> None:
    packed = bomb()
    assert len(packed.data) < 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded):
            packed.verify(limit=32 * 1024 * 1024)
        with pytest.raises(Corrupt):
            packed.verify(b"".join([gzip.compress(bytes(2**25))] * 4), limit=2**28)
        packed.verify(limit=packed.summary.inflated_bytes)
        assert tracemalloc.get_traced_memory()[1] < 40 * 1024 * 1024
    finally:
        tracemalloc.stop()
    with pytest.raises(LimitExceeded):
        packed.verify(limit=packed.summary.inflated_bytes - 1)


def test_holes_count_because_they_are_hashed() -> None:
    hole = replace(file(b"workspace/h", b"", sparse=True), size=2**62)
    manifest = Manifest(CHECKPOINT, 0, [directory(b"workspace"), hole])
    small = pack(
        [directory(b"workspace"), file(b"workspace/h", bytes(1024), sparse=True)],
        {b"workspace/h": bytes(1024)},
    )
    tar = bytearray(gzip.decompress(small.data))
    size = (2**62 | 1 << 95).to_bytes(12, "big")
    tar[512 + 386 : 512 + 398] = size
    tar[512 + 483 : 512 + 495] = size
    tar[512:1024] = summed(bytes(tar[512:1024]))
    with pytest.raises(LimitExceeded, match="holes"):
        verify_archive([gzip.compress(tar)], manifest, 1, sha256=None, max_inflated=ROOMY)


def test_pieces_that_are_inflated_are_bounded() -> None:
    pieces = list(iter_inflated([bomb().data], ROOMY + 4096))
    assert max(map(len, pieces)) <= PIECE_BYTES
    assert sum(map(len, pieces)) == ROOMY + 2048


def incremental() -> Packed:
    old = replace(file(b"workspace/old", b"old"), source=1)
    new = replace(file(b"workspace/new", b"new"), source=2)
    listed = [directory(b"workspace"), old, new, hardlink(b"workspace/h", b"workspace/old")]
    packed = pack([listed[0], new, listed[3]], {b"workspace/new": b"new"})
    return replace(packed, manifest=Manifest(CHECKPOINT[:-1] + "2", 1, listed))


def test_an_incremental_archive_holds_its_files_and_what_else_it_likes() -> None:
    packed = incremental()

    def verified(number: int) -> int:
        return verify_archive(
            [packed.data], packed.manifest, number, sha256=None, max_inflated=ROOMY
        ).members

    assert verified(2) == 3
    with pytest.raises(Corrupt, match=r"'workspace/new'.*another checkpoint"):
        verified(1)


def test_an_incremental_archive_lacks_no_file_of_its_own() -> None:
    packed = incremental()
    bare = pack([directory(b"workspace")], {})
    with pytest.raises(Corrupt, match=r"missing.*'workspace/new'"):
        verify_archive([bare.data], packed.manifest, 2, sha256=None, max_inflated=ROOMY)
