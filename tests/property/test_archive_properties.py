"""Any tree that Linux can have comes out of its archive and manifest as it went in."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.engine.checkpoints.archive_writer import ArchiveWriter
from codegen_mcp.engine.checkpoints.manifest import Manifest, decode_manifest, encode_manifest
from codegen_mcp.engine.checkpoints.tar_format import number, parse_number
from codegen_mcp.engine.checkpoints.tar_sparse import extents, sparse_map
from codegen_mcp.testing.archive_rig import CHECKPOINT, Packed, add_all, pack

NAMES = (
    st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"\0", b"0").replace(b"/", b"_"))
    | st.sampled_from([b"a", b"\xff", b" ", b"-", b"a" * 100, b"n" * 255, "\u00fc".encode()])
).filter(lambda name: name not in (b".", b".."))
MODES = st.integers(0, 0o7777)
TIMES = (
    st.integers(-(2**62), 2**62)
    | st.integers(-(2**63) * 10**9, 2**63 * 10**9 - 1)
    | st.sampled_from([0, -1, 8**11 * 10**9 - 1, 8**11 * 10**9])
)
CONTENTS = st.binary(max_size=2000) | st.builds(
    lambda part, times: part * times,
    st.sampled_from([b"\0", b"ab", bytes(4096) + b"x" * 4096, bytes(range(256))]),
    st.integers(0, 300),
)
LINKS = st.binary(min_size=1, max_size=300).map(lambda raw: raw.replace(b"\0", b"0"))


@dataclass
class Tree:
    entries: list[Entry]
    contents: dict[bytes, bytes]

    def pack(self) -> Packed:
        return pack(self.entries, self.contents)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    entries = [Entry(b"workspace", EntryKind.DIRECTORY, draw(MODES), draw(TIMES))]
    contents: dict[bytes, bytes] = {}
    names = {b"workspace"}
    kinds = st.lists(st.sampled_from([*EntryKind, EntryKind.FILE]), max_size=12)
    for kind in draw(kinds):
        parents = [entry.path for entry in entries if entry.kind is EntryKind.DIRECTORY]
        path = draw(st.sampled_from(parents)) + b"/" + draw(NAMES)
        if path in names or (kind is EntryKind.HARDLINK and not contents):
            continue
        entry = Entry(path, kind, draw(MODES), draw(TIMES))
        if kind is EntryKind.FILE:
            data = contents[path] = draw(CONTENTS)
            digest = hashlib.sha256(data).digest()
            sparse = draw(st.booleans())
            entry = replace(entry, size=len(data), sha256=digest, source=1, sparse=sparse)
        elif kind is EntryKind.SYMLINK:
            entry = replace(entry, target=draw(LINKS))
        elif kind is EntryKind.HARDLINK:
            entry = replace(entry, target=draw(st.sampled_from(list(contents))))
        names.add(path)
        entries.append(entry)
    return Tree(entries, contents)


def as_tarfile_reads(data: bytes) -> dict[bytes, tuple[tarfile.TarInfo, bytes]]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() or member.issparse() else None
            found[os.fsencode(member.name)] = (member, content.read() if content else b"")
    return found


@given(trees())
@settings(max_examples=80, deadline=None)
def test_what_goes_in_comes_out(tree: Tree) -> None:
    packed = tree.pack()
    assert list(packed.manifest.entries) == tree.entries
    assert decode_manifest(encode_manifest(packed.manifest)) == packed.manifest
    verified = packed.verify(sha256=packed.summary.sha256)
    assert verified.inflated_bytes == len(gzip.decompress(packed.data))
    found = as_tarfile_reads(packed.data)
    assert list(found) == [entry.path for entry in tree.entries]
    for entry in tree.entries:
        member, content = found[entry.path]
        assert content == tree.contents.get(entry.path, b"")
        assert (member.mode, member.mtime) == (entry.mode, entry.mtime_ns // 10**9)
        assert os.fsencode(member.linkname) == entry.target


@given(trees())
@settings(max_examples=12, deadline=None)
def test_gnu_tar_extracts_what_went_in(tree: Tree) -> None:
    # A directory may not shut us out; times that this file system cannot have are left alone.
    entries = [
        replace(entry, mode=0o755) if entry.kind is EntryKind.DIRECTORY else entry
        for entry in tree.entries
        if len(entry.path) < 3000
    ]
    packed = pack(entries, tree.contents)
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            ["tar", "-xzpm", "--no-same-owner", "-C", directory, "-f", "-"],
            input=packed.data,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        assert done.returncode == 0, done.stderr
        root = os.fsencode(directory)
        for entry in entries:
            place = os.path.join(root, entry.path)
            if entry.kind is EntryKind.FILE:
                with open(place, "rb") as content:
                    assert content.read() == tree.contents[entry.path]
            elif entry.kind is EntryKind.SYMLINK:
                assert os.readlink(place) == entry.target
            elif entry.kind is EntryKind.HARDLINK:
                assert os.path.samefile(place, os.path.join(root, entry.target))


@given(trees(), st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_dropped_and_added_again_leaves_an_archive_as_if_packed_so(
    tree: Tree, data: st.DataObject
) -> None:
    files = list(tree.contents)
    gone = data.draw(st.lists(st.sampled_from(files), unique=True)) if files else []
    again = data.draw(st.lists(st.sampled_from(gone), unique=True)) if gone else []
    contents = dict(tree.contents)
    spool = io.BytesIO()
    with ArchiveWriter(spool) as writer:
        add_all(writer, tree.entries, contents)
        if data.draw(st.booleans()):
            writer._seal()  # As if a gzip member had been full here.
        writer.drop(gone)
        kept: Sequence[Entry] = [
            entry
            for entry in tree.entries
            if (entry.path not in gone and (not entry.target or entry.target not in gone))
            or (entry.kind is EntryKind.HARDLINK and entry.target in again)
            or entry.kind is EntryKind.SYMLINK
        ]  # fmt: skip
        fresh = []
        for path in again:
            contents[path] = data.draw(CONTENTS)
            old = next(entry for entry in tree.entries if entry.path == path)
            digest = hashlib.sha256(contents[path]).digest()
            fresh.append(replace(old, size=len(contents[path]), sha256=digest))
        add_all(writer, fresh, contents)
        summary = writer.finish()
    manifest = Manifest(CHECKPOINT, 0, [*kept, *fresh])
    Packed(spool.getvalue(), manifest, summary).verify(sha256=summary.sha256)
    assert set(as_tarfile_reads(spool.getvalue())) == {entry.path for entry in manifest.entries}


@given(st.integers(-(2**88), 2**88 - 1))
def test_a_number_of_twelve_bytes_is_read_as_it_was_written_and_as_python_reads_it(
    value: int,
) -> None:
    field = number(value)
    assert len(field) == 12
    assert parse_number(field) == value
    assert tarfile.nti(field) == value  # type: ignore[attr-defined]


@given(st.binary(min_size=12, max_size=12))
def test_no_other_field_is_a_number(field: bytes) -> None:
    try:
        value = parse_number(field)
    except ValueError:
        return
    assert number(value) == field


@given(st.data(), st.integers(0, 100_000))
def test_a_sparse_map_covers_its_segments_with_whole_blocks_in_order(
    data: st.DataObject, size: int
) -> None:
    pairs = data.draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size)), max_size=12))
    segments = [(min(pair), max(pair) - min(pair)) for pair in pairs]
    places = sparse_map(segments, size)
    covered = bytearray(size)
    at = 0
    for offset, length in places:
        assert at <= offset <= size
        assert length or (offset, length) == places[-1] == (size, 0)
        assert offset % 512 == 0 or not length
        assert length % 512 == 0 or offset + length == size
        covered[offset : offset + length] = b"\1" * length
        at = offset + length
    assert at == size
    for offset, length in segments:
        assert all(covered[offset : offset + length])
    assert sum(length for _, length in extents(places, size)) == size
    assert sum(n for is_data, n in extents(places, size) if is_data) == sum(covered)
    assert sparse_map(places, size) == places
