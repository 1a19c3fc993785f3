"""Packing: what changes under the reader, what turns stale, what the bytes cost."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from codegen_mcp.core.checkpoint import Entry
from codegen_mcp.engine.checkpoints import archive_codec, archive_groups
from codegen_mcp.engine.checkpoints.archive_reader import verify_archive
from codegen_mcp.engine.checkpoints.archive_writer import ArchiveWriter, Changed
from codegen_mcp.engine.checkpoints.manifest import Manifest
from codegen_mcp.testing.archive_rig import (
    CHECKPOINT,
    ROOMY,
    add_all,
    directory,
    file,
    hardlink,
    pack,
    reading,
    symlink,
)

ROOT = directory(b"workspace")


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def check(spool: io.BytesIO, writer: ArchiveWriter, entries: Sequence[Entry]) -> None:
    """Finish, and find exactly these entries in the file."""
    summary = writer.finish()
    writer.close()
    data = spool.getvalue()
    assert (summary.size, summary.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert summary.inflated_bytes == len(gzip.decompress(data))
    manifest = Manifest(CHECKPOINT, 0, entries)
    found = verify_archive([data], manifest, 1, sha256=summary.sha256, max_inflated=ROOMY)
    assert found.members == summary.members == len(entries)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024 * 1024, 1024 * 1024 + 1, 3_000_000])
@pytest.mark.parametrize("difference", [-1, 1])
def test_a_file_that_gives_more_or_fewer_bytes_is_changed_and_leaves_nothing(
    size: int, difference: int
) -> None:
    if size + difference < 0:
        difference = 2
    spool = io.BytesIO()
    before, after = file(b"workspace/a", noise(700_000)), file(b"workspace/z", noise(2_000_000, 2))
    with ArchiveWriter(spool) as writer:
        add_all(writer, [ROOT, before], {b"workspace/a": noise(700_000)})
        entry = replace(file(b"workspace/m", noise(size)), sha256=b"")
        with pytest.raises(Changed):
            writer.add(entry, reading(noise(size + difference)))
        add_all(writer, [after], {b"workspace/z": noise(2_000_000, 2)})
        added = writer.add(entry, reading(noise(size)))
        check(spool, writer, [ROOT, before, after, added])


@pytest.mark.parametrize("size", [100, 2_000_000])
def test_a_read_that_fails_leaves_nothing_and_its_error_comes_out(size: int) -> None:
    spool = io.BytesIO()
    with ArchiveWriter(spool) as writer:
        writer.add(ROOT)
        given: list[int] = []

        def failing(count: int) -> bytes:
            if given:
                raise PermissionError("gone")
            given.append(count)
            return b"x"

        with pytest.raises(PermissionError, match="gone"):
            writer.add(file(b"workspace/a", noise(size)), failing)
        check(spool, writer, [ROOT])


def test_a_source_may_give_its_bytes_in_small_pieces() -> None:
    content = noise(1_500_000)
    for size in (1000, 1_500_000):
        source = io.BytesIO(content[:size])
        spool = io.BytesIO()
        with ArchiveWriter(spool) as writer:
            entry = file(b"workspace/a", content[:size])
            writer.add(ROOT)
            writer.add(entry, lambda count, source=source: source.read(min(count, 7777)))
            check(spool, writer, [ROOT, entry])


def test_content_of_another_sha256_than_the_entry_has_is_changed() -> None:
    for size in (100, 2_000_000):
        spool = io.BytesIO()
        with ArchiveWriter(spool) as writer:
            writer.add(ROOT)
            with pytest.raises(Changed):
                writer.add(file(b"workspace/a", noise(size)), reading(noise(size, 2)))
            check(spool, writer, [ROOT])


def test_data_where_a_hole_was_told_is_changed() -> None:
    content = bytes(8192) + noise(4096) + bytes(4096)
    entry = file(b"workspace/a", content, sparse=True)
    spool = io.BytesIO()
    with ArchiveWriter(spool) as writer:
        writer.add(ROOT)
        with pytest.raises(Changed):
            writer.add(entry, reading(content), [(0, 8192)])
        with pytest.raises(ValueError, match="outside"):
            writer.add(entry, reading(content), [(8192, 10_000)])
        writer.add(entry, reading(content), [(8192, 4096)])
        check(spool, writer, [ROOT, entry])


def test_holes_cost_no_space_and_odd_or_too_many_segments_are_made_whole() -> None:
    content = bytearray(20_000 * 1024)
    segments = [(at, 1) for at in range(0, len(content), 1024)]
    for at, _ in segments:
        content[at] = 1
    whole = bytes(content)
    entry = file(b"workspace/a", whole, sparse=True)
    spool = io.BytesIO()
    with ArchiveWriter(spool) as writer:
        writer.add(ROOT)
        writer.add(entry, reading(whole), segments)
        check(spool, writer, [ROOT, entry])
    dense = file(b"workspace/b", noise(5000), sparse=True)
    with ArchiveWriter(spool := io.BytesIO()) as writer:
        writer.add(ROOT)
        writer.add(dense, reading(noise(5000)))
        check(spool, writer, [ROOT, dense])
    hole = file(b"workspace/b", bytes(30_000_000), sparse=True)
    assert pack([ROOT, hole], {b"workspace/b": bytes(30_000_000)}).summary.inflated_bytes == 2048


def test_a_name_occurs_once() -> None:
    with ArchiveWriter(io.BytesIO()) as writer:
        writer.add(ROOT)
        with pytest.raises(ValueError, match="already"):
            writer.add(ROOT)
        with pytest.raises(ValueError, match="needs read"):
            writer.add(file(b"workspace/a", b"a"))
        with pytest.raises(ValueError, match="sparse one"):
            writer.add(file(b"workspace/a", b"a"), reading(b"a"), [])


@pytest.mark.parametrize("seed", range(25))
def test_dropped_names_are_gone_and_others_stay_whatever_is_dropped(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [chance.choice([0, 10, 5000, 90_000, 600_000, 1_300_000]) for _ in range(20)]
    contents = {b"workspace/%d" % i: noise(size, i) for i, size in enumerate(sizes)}
    names = list(contents)
    links = [hardlink(b"workspace/of%d" % i, names[i]) for i in range(0, 20, 5)]
    kept = {name: file(name, data) for name, data in contents.items()}
    spool = io.BytesIO()
    with ArchiveWriter(spool) as writer:
        add_all(writer, [ROOT, *kept.values(), *links], contents)
        gone = chance.sample(names, chance.choice([1, 3, 20]))
        writer.drop([*gone, b"workspace/unknown"])
        writer.drop(gone)
        again = gone[: chance.randrange(len(gone) + 1)]
        for name in gone:
            del kept[name]
        fresh = {name: noise(chance.choice([10, 700_000]), 99) for name in again}
        add_all(writer, [file(name, data) for name, data in fresh.items()], fresh)
        kept.update({name: file(name, data) for name, data in fresh.items()})
        kept_links = [link for link in links if link.target in kept]
        check(spool, writer, [ROOT, *kept.values(), *kept_links])


def test_a_dropped_link_stays_away_and_its_target_may_be_something_else_then() -> None:
    first, second = file(b"workspace/a", b"a"), file(b"workspace/b", noise(800_000))
    spool = io.BytesIO()
    with ArchiveWriter(spool) as writer:
        links = [hardlink(b"workspace/l", b"workspace/a"), hardlink(b"workspace/m", b"workspace/a")]
        contents = {b"workspace/a": b"a", b"workspace/b": noise(800_000)}
        add_all(writer, [ROOT, first, *links, second], contents)
        writer.drop([b"workspace/a", b"workspace/l"])
        now = [file(b"workspace/l", b"own"), symlink(b"workspace/a", b"l")]
        add_all(writer, now, {b"workspace/l": b"own"})
        writer.drop([b"workspace/m"])
        check(spool, writer, [ROOT, second, *now])


def test_only_members_with_a_stale_name_are_packed_again() -> None:
    contents = {b"workspace/%02d" % i: noise(600_000, i) for i in range(6)}
    entries = [file(name, data) for name, data in contents.items()]
    whole = pack([ROOT, *entries], contents).data
    spool = io.BytesIO()
    with ArchiveWriter(spool) as writer:
        add_all(writer, [ROOT, *entries], contents)
        writer.drop([b"workspace/03"])
        writer.finish()
    left = spool.getvalue()
    # Each file makes one gzip member here: those before and after are the same bytes.
    assert whole.startswith(left[:1_700_000])
    assert whole.endswith(left[-1_150_000:])
    with tarfile.open(fileobj=io.BytesIO(left)) as tar:
        assert len(tar.getnames()) == 6


def test_members_are_packed_again_in_place_even_when_they_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contents = {b"workspace/%d" % i: bytes(300_000) for i in range(8)}
    contents[b"workspace/large"] = noise(2_000_000)
    contents.update({b"workspace/late%d" % i: noise(300_000, i) for i in range(3)})
    entries = [file(name, data) for name, data in contents.items()]
    spool = io.BytesIO()
    with ArchiveWriter(spool) as writer:
        add_all(writer, [ROOT, *entries], contents)
        small = len(spool.getvalue())
        writer.drop([entries[0].path, entries[2].path, entries[4].path])
        # What stays is stored now, so that nearly a megabyte has to wait for its place.
        monkeypatch.setattr(archive_groups, "deflate", lambda data: gzip.compress(data, 0))
        check(spool, writer, [ROOT, entries[1], entries[3], *entries[5:]])
    assert len(spool.getvalue()) > small + 500_000


def test_an_empty_archive_is_one() -> None:
    spool = io.BytesIO()
    with ArchiveWriter(spool) as writer:
        summary = writer.finish()
    assert gzip.decompress(spool.getvalue()) == bytes(1024)
    assert (summary.members, summary.inflated_bytes) == (0, 1024)


def test_no_thread_is_left_whether_it_was_finished_or_not() -> None:
    before = threading.active_count()
    with ArchiveWriter(io.BytesIO()) as writer:
        add_all(
            writer, [file(b"workspace/a", noise(2_000_000))], {b"workspace/a": noise(2_000_000)}
        )
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_a_disk_that_is_full_is_told() -> None:
    contents = {b"workspace/%d" % i: noise(900_000) for i in range(10)}
    entries = [file(name, data) for name, data in contents.items()]
    with open("/dev/full", "r+b", buffering=0) as full, ArchiveWriter(full) as writer:
        with pytest.raises(OSError, match="No space"):
            add_all(writer, entries, contents)


def test_an_unbuffered_file_serves_as_spool() -> None:
    contents = {b"workspace/%d" % i: noise(400_000, i) for i in range(9)}
    entries = [file(name, data) for name, data in contents.items()]
    with tempfile.TemporaryFile(buffering=0) as spool, ArchiveWriter(spool) as writer:
        add_all(writer, [ROOT, *entries], contents)
        writer.drop([b"workspace/2"])
        summary = writer.finish()
        data = os.pread(spool.fileno(), summary.size + 1, 0)
        assert len(data) == summary.size
        assert hashlib.sha256(data).hexdigest() == summary.sha256


def test_without_igzip_an_archive_differs_in_nothing_but_its_packing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contents = {b"workspace/%d" % i: noise(400_000, i) for i in range(4)}
    entries = [ROOT, *[file(name, data) for name, data in contents.items()]]
    fast = pack(entries, contents)
    monkeypatch.setattr(archive_codec, "_fast", None)
    plain = pack(entries, contents)
    assert gzip.decompress(plain.data) == gzip.decompress(fast.data)
    assert fast.verify().members == plain.verify().members == 5


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[bytes], int]]:
    """Open a new file that holds these bytes."""
    held: list[BinaryIO] = []

    def make(content: bytes) -> int:
        path = tmp_path / str(len(held))
        path.write_bytes(content)
        held.append(path.open("rb"))
        return held[-1].fileno()

    yield make
    for one in held:
        one.close()


def later(writer: ArchiveWriter, entry: Entry, fd: int) -> None:
    writer.add_later(entry.path, entry.mode, entry.mtime_ns, entry.size, fd)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024 * 1024])
@pytest.mark.parametrize("difference", [-1, 1, 1024])
def test_a_file_hashed_later_that_has_more_or_fewer_bytes_leaves_nothing(
    opened: Callable[[bytes], int], size: int, difference: int
) -> None:
    spool = io.BytesIO()
    with ArchiveWriter(spool) as writer:
        entry = file(b"workspace/" + b"m" * 120, noise(size))
        with pytest.raises(Changed):
            later(writer, entry, opened(noise(max(0, size + difference) or 2)))
        later(writer, entry, opened(noise(size)))
        check(spool, writer, [entry])
        assert writer.sha256_of(entry.path) == entry.sha256


def test_files_hashed_later_can_be_dropped_and_come_again_with_other_content(
    opened: Callable[[bytes], int],
) -> None:
    spool = io.BytesIO()
    names = [b"workspace/%d" % i for i in range(40)]
    old = [file(name, noise(60_000, i)) for i, name in enumerate(names)]
    new = [file(name, noise(50_000, 100 + i)) for i, name in enumerate(names)]
    with ArchiveWriter(spool) as writer:
        for i, entry in enumerate(old):
            later(writer, entry, opened(noise(60_000, i)))
        again = [0, 7, 38, 39]  # of groups that are packed, and of the one that is not
        writer.drop([names[i] for i in again])
        for i in again:
            later(writer, new[i], opened(noise(50_000, 100 + i)))
        check(spool, writer, [new[i] if i in again else old[i] for i in range(40)])
        for i, name in enumerate(names):
            assert writer.sha256_of(name) == (new if i in again else old)[i].sha256
