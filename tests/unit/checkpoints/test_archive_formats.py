"""GNU tar and Python read every archive, and read the same in it."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.testing.archive_rig import (
    Packed,
    directory,
    fifo,
    file,
    hardlink,
    pack,
    symlink,
)

LONG = b"workspace/" + b"/".join([b"d" * 200] * 3)
CONTENTS = {
    b"workspace/a.py": b"print(1)\n",
    b"workspace/empty": b"",
    b"workspace/exactly": b"x" * 512,
    b"workspace/\xff\xfe not utf-8\n\t": b"odd",
    b"workspace/" + b"n" * 90: b"one hundred",
    b"workspace/" + b"n" * 91: b"one more",
    LONG + b"/deep": b"deep",
    b"workspace/large": bytes(range(256)) * 12000,
    b"workspace/holes": b"\0" * 8192 + b"data" * 1024 + b"\0" * 100_000 + b"end",
    b"workspace/many": b"".join(b"\0" * 4096 + b"%04096d" % i for i in range(60)) + bytes(5000),
    b"workspace/hole": bytes(70_000),
}
SPARSE = {b"workspace/holes", b"workspace/many", b"workspace/hole"}


@pytest.fixture(scope="module")
def packed() -> Packed:
    deep = [LONG[: len(b"workspace/") + 201 * n + 200] for n in range(3)]
    entries = [directory(b"workspace", 0o700), *[directory(path) for path in deep]]
    entries += [file(path, data, sparse=path in SPARSE) for path, data in CONTENTS.items()]
    entries += [
        hardlink(b"workspace/again", b"workspace/a.py"),
        hardlink(b"workspace/deep again", LONG + b"/deep"),
        symlink(b"workspace/link", b"../outside\xff"),
        symlink(b"workspace/" + b"l" * 120, b"t" * 300),
        fifo(b"workspace/pipe"),
        Entry(b"workspace/suid", EntryKind.FIFO, 0o7777, -1),
        Entry(b"workspace/old", EntryKind.FIFO, 0o0, -5_000_000_000_000_000_000),
        Entry(b"workspace/far", EntryKind.FIFO, 0o644, 9_000_000_000 * 10**9),
        directory(b"venv"),
        file(b"venv/python", b"#!"),
    ]
    return pack(entries, {**CONTENTS, b"venv/python": b"#!"})


def test_our_own_reader_takes_it(packed: Packed) -> None:
    verified = packed.verify(sha256=packed.summary.sha256)
    assert verified.size == packed.summary.size == len(packed.data)
    assert verified.inflated_bytes == packed.summary.inflated_bytes
    assert verified.members == packed.summary.members == len(packed.manifest.entries)
    assert packed.summary.sha256 == hashlib.sha256(packed.data).hexdigest()


def test_pythons_tarfile_reads_each_fact_and_content(packed: Packed) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed.data), mode="r:gz") as tar:
        found = {os.fsencode(member.name): member for member in tar}
        assert list(found) == [entry.path for entry in packed.manifest.entries]
        for entry in packed.manifest.entries:
            member = found[entry.path]
            assert (member.mode, member.uid, member.gid) == (entry.mode, 1000, 1000)
            assert member.mtime == entry.mtime_ns // 10**9
            assert os.fsencode(member.linkname) == entry.target
            assert member.isdir() == (entry.kind is EntryKind.DIRECTORY)
            assert member.isfifo() == (entry.kind is EntryKind.FIFO)
            assert member.issym() == (entry.kind is EntryKind.SYMLINK)
            assert member.islnk() == (entry.kind is EntryKind.HARDLINK)
            assert member.issparse() == entry.sparse
            if entry.kind is EntryKind.FILE:
                content = tar.extractfile(member)
                assert content is not None
                assert hashlib.sha256(content.read()).digest() == entry.sha256


def test_gnu_tar_lists_every_name_without_a_word_of_warning(packed: Packed, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(packed.data)
    done = subprocess.run(
        ["tar", "--list", "-z", "--null", "--quoting-style=literal", "-f", archive],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    listed = done.stdout
    for entry in packed.manifest.entries:
        assert entry.path in listed
    assert listed.count(b"workspace/") == len(packed.manifest.entries) - 2


def test_gnu_tar_extracts_content_kinds_links_and_holes(packed: Packed, tmp_path: Path) -> None:
    target = tmp_path / "tree"
    target.mkdir()
    done = subprocess.run(
        ["tar", "-xz", "--no-same-owner", "-p", "-C", target, "-f", "-"],
        input=packed.data,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    # What a tar warns of is true: two of the times are beyond what is plausible.
    assert done.returncode == 0, done.stderr
    root = os.fsencode(target)
    for entry in packed.manifest.entries:
        place = os.path.join(root, entry.path)
        if entry.kind is EntryKind.FILE:
            with open(place, "rb") as content:
                assert hashlib.sha256(content.read()).digest() == entry.sha256
        elif entry.kind is EntryKind.SYMLINK:
            assert os.readlink(place) == entry.target
        elif entry.kind is EntryKind.HARDLINK:
            assert os.path.samefile(place, os.path.join(root, entry.target))
        if entry.kind is not EntryKind.SYMLINK:
            assert os.lstat(place).st_mode & 0o7777 == entry.mode
    assert os.stat(os.path.join(root, b"workspace/hole")).st_blocks == 0
    os.chmod(os.path.join(root, b"workspace"), 0o755)


def test_gnu_tar_writes_the_same_sparse_members_where_it_sees_the_same_holes(
    tmp_path: Path,
) -> None:
    content = b"\0" * 65536 + b"data" * 1024 + b"\0" * 65536
    (tmp_path / "workspace").mkdir()
    with open(tmp_path / "workspace/holes", "wb") as holes:
        holes.truncate(len(content))
        holes.seek(65536)
        holes.write(b"data" * 1024)
    if os.stat(tmp_path / "workspace/holes").st_blocks * 512 >= len(content):
        pytest.skip("this file system keeps no holes")
    theirs = subprocess.run(
        ["tar", "--format=gnu", "--sparse", "-cf", "-", "workspace/holes"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    ).stdout
    entries = [directory(b"workspace"), file(b"workspace/holes", content, sparse=True)]
    ours = pack(entries, {b"workspace/holes": content}).data
    with tarfile.open(fileobj=io.BytesIO(ours)) as tar:
        member = tar.getmember("workspace/holes")
        with tarfile.open(fileobj=io.BytesIO(theirs)) as other:
            their = other.getmember("workspace/holes")
            assert member.sparse == their.sparse
            assert member.size == their.size
