"""Manifests: what is written is read, and nothing else."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.core.errors import Corrupt, LimitExceeded, WrongState
from codegen_mcp.engine.checkpoints.manifest import Manifest, decode_manifest, encode_manifest
from codegen_mcp.testing.archive_rig import (
    CHECKPOINT,
    SESSION,
    directory,
    fifo,
    file,
    hardlink,
    symlink,
)

SECOND = f"{SESSION}.1.2"
MANIFEST = Manifest(
    SECOND,
    1,
    (
        directory(b"workspace"),
        file(b"workspace/a", b"hello"),
        replace(file(b"workspace/b", bytes(8192), sparse=True), source=2, mtime_ns=-1),
        directory(b"workspace/d"),
        hardlink(b"workspace/d/h", b"workspace/a"),
        symlink(b"workspace/d/s", b"/etc/\xffpasswd"),
        fifo('workspace/d/p\u00fc\U0001f600\n"\\'.encode()),
        directory(b"venv"),
        Entry(b"venv/far", EntryKind.FIFO, 0o7777, 2**63 * 10**9 - 1),
        Entry(b"venv/old", EntryKind.FIFO, 0, -(2**63) * 10**9),
    ),
    (b"workspace/gone", b"workspace/\xff"),
)
LINES = gzip.decompress(encode_manifest(MANIFEST)).split(b"\n")[:-1]


def test_what_is_written_is_read() -> None:
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST
    assert decode_manifest(encode_manifest(MANIFEST), expected_checkpoint=SECOND) == MANIFEST
    empty = Manifest(CHECKPOINT, 0, ())
    assert decode_manifest(encode_manifest(empty)) == empty


def test_equal_manifests_are_equal_bytes_without_a_time() -> None:
    first, second = encode_manifest(MANIFEST), encode_manifest(replace(MANIFEST))
    assert first == second
    assert first[4:8] == bytes(4)


def test_it_is_lines_of_json_that_say_what_they_must() -> None:
    head, *entries = [json.loads(line) for line in LINES]
    assert head == {
        "format": 1,
        "checkpoint": SECOND,
        "parent": 1,
        "entries": 10,
        "bytes": 8197,
        "removed": ["workspace/gone", "workspace/\udcff"],
    }
    sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # Of "hello".
    assert entries[1] == ["workspace/a", "f", 0o644, 1_700_000_000_123_456_789, 5, sha256, 1]
    assert entries[2][6:] == [2, 1]
    assert entries[4] == ["workspace/d/h", "h", 0o644, entries[1][3], "workspace/a"]
    assert all(line.isascii() for line in LINES)


def test_of_many_removed_names_the_first_are_kept() -> None:
    many = Manifest(CHECKPOINT, 0, (), [b"workspace/%d" % i for i in range(1500)])
    assert decode_manifest(encode_manifest(many)).removed == tuple(many.removed[:1000])
    long = Manifest(CHECKPOINT, 0, (), [b"workspace" + b"/\xff" * 5000] * 999)
    kept = decode_manifest(encode_manifest(long)).removed
    assert 0 < len(kept) < 999


def refused(lines: list[bytes], message: str, error: type[Exception] = Corrupt) -> None:
    with pytest.raises(error, match=message):
        decode_manifest(gzip.compress(b"\n".join(lines) + b"\n", 1, mtime=0))


def head(**changes: Any) -> list[bytes]:
    facts = {**json.loads(LINES[0]), **changes}
    facts = {name: value for name, value in facts.items() if value is not ...}
    return [json.dumps(facts).encode(), *LINES[1:]]


HEADS: dict[str, tuple[list[bytes], str]] = {
    "a field more": (head(more=1), "fields"),
    "a field less": (head(removed=...), "fields"),
    "fewer entries": (head(entries=9), "line 11: it promises 9 entries and more follow"),
    "more entries": (head(entries=11), "promises 11 entries and 10 follow"),
    "negative entries": (head(entries=-1), "entries"),
    "true entries": (head(entries=True), "entries"),
    "other bytes": (head(bytes=8196), "promises 8196 bytes, its files 8197"),
    "a fraction": (head(bytes=8197.0), "no whole number"),
    "infinity": (head(bytes=float("inf")), "no whole number"),
    "not a number": (head(bytes=float("nan")), "no whole number"),
    "a parent that is itself": (head(parent=2), "parent"),
    "a parent below none": (head(parent=-1), "parent"),
    "a parent of text": (head(parent="1"), "parent"),
    "no checkpoint": (head(checkpoint="../etc"), "no checkpoint"),
    "a checkpoint that is none": (head(checkpoint=None), "checkpoint"),
    "format zero": (head(format=0), "format 0"),
    "a format of text": (head(format="1"), "format '1'"),
    "no format": (head(format=...), "format None"),
    "removed that is text": (head(removed="workspace/a"), "removed"),
    "removed that climbs": (head(removed=["workspace/../x"]), "part"),
    "removed that is absolute": (head(removed=["/workspace"]), "root"),
    "removed that is no text": (head(removed=[1]), "no text"),
    "too many removed": (head(removed=["workspace/a"] * 1001), "1,000"),
    "an array": ([b"[]", *LINES[1:]], "no object"),
    "a field twice": ([b'{"format":1,"format":1}'], "twice"),
    "no JSON": ([b"{", *LINES[1:]], "line 1: no JSON"),
    "an empty line": ([b"", *LINES[1:]], "line 1: no JSON"),
    "two values": ([LINES[0] + b" {}", *LINES[1:]], "more follows"),
    "a space before": ([b" " + LINES[0], *LINES[1:]], "no JSON"),
    "a carriage return": ([LINES[0] + b"\r", *LINES[1:]], "more follows"),
    "deep nesting": ([b"[" * 100_000], "no JSON"),
    "a number without end": ([b'{"format":' + b"9" * 5000 + b"}"], "no JSON"),
    "no ASCII": ([b'{"\xc3\xa4":1}'], "no ASCII"),
    "a line without end": ([b'"' + b"x" * 2_000_000], "longer than"),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_manifest_is_refused_whose_first_line_has(case: str) -> None:
    refused(*HEADS[case])


def entry(line: bytes, at: int = 2) -> list[bytes]:
    """The lines with another one put in, counted."""
    return [*head(entries=11)[:at], line, *LINES[at:]]


SHA = b"a" * 64
ENTRIES: dict[str, tuple[list[bytes], str]] = {
    "an unknown kind": (entry(b'["workspace/x","c",0,0]'), "line 3: kind 'c'"),
    "a socket": (entry(b'["workspace/x","s",0,0]'), "kind 's'"),
    "a kind of number": (entry(b'["workspace/x",1,0,0]'), "kind"),
    "a kind of array": (entry(b'["workspace/x",[],0,0]'), "kind"),
    "too few fields": (entry(b'["workspace/x","d",0]'), "at least four"),
    "too many for a directory": (entry(b'["workspace/x","d",0,0,0]'), "no further"),
    "too many for a pipe": (entry(b'["workspace/x","p",0,0,""]'), "no further"),
    "too many for a link": (entry(b'["workspace/x","l",0,0,"a",1]'), "a target"),
    "too few for a link": (entry(b'["workspace/x","l",0,0]'), "a target"),
    "too few for a file": (entry(b'["workspace/x","f",0,0,0,"%b"]' % SHA), "size, sha256"),
    "too many for a file": (entry(b'["workspace/x","f",0,0,0,"%b",1,1,1]' % SHA), "size, sha256"),
    "an object": (entry(b'{"path":"workspace/x"}'), "no array"),
    "null": (entry(b"null"), "no array"),
    "two arrays": (entry(b'["workspace/x","p",0,0],["workspace/y","p",0,0]'), "more follows"),
    "an absolute path": (entry(b'["/workspace/x","p",0,0]'), "no directory"),
    "a path from the root": (entry(b'["/x","p",0,0]'), "no directory"),
    "a path that climbs": (entry(b'["workspace/..","p",0,0]'), "part '?b?'..'"),
    "a path that climbs within": (entry(b'["workspace/d/../x","p",0,0]', 5), "no directory"),
    "a path with a dot": (entry(b'["workspace/.","p",0,0]'), "part"),
    "a path with an empty part": (entry(b'["workspace//x","p",0,0]'), "no directory"),
    "a path with a slash behind": (entry(b'["workspace/x/","d",0,0]'), "part"),
    "an empty path": (entry(b'["","p",0,0]'), "empty"),
    "a path with NUL": (entry(b'["workspace/\\u0000","p",0,0]'), "NUL"),
    "a path of number": (entry(b'[1,"p",0,0]'), "no text"),
    "a path of no bytes": (entry(b'["workspace/\\ud800","p",0,0]'), "surrogate"),
    "a name of 256 bytes": (entry(b'["workspace/%b","p",0,0]' % (b"x" * 256)), "part"),
    "another root": (entry(b'["etc","d",0,0]'), "no root directory"),
    "a root that is a link": (entry(b'["venv","l",0,0,"/"]'), "no root directory"),
    "a path twice": (
        entry(b'["workspace/a","p",0,0]', 5),
        "line 6: path 'workspace/a' occurs twice",
    ),
    "a path twice, spelled otherwise": (
        [
            *head(entries=12)[:2],
            b'["workspace/\\u00e9","p",0,0]',
            b'["workspace/\\udcc3\\udca9","p",0,0]',
            *LINES[2:],
        ],
        "occurs twice",
    ),
    "what is in a file": (entry(b'["workspace/a/x","p",0,0]', 5), "no directory"),
    "what is in a link": (entry(b'["workspace/d/s/x","p",0,0]', 8), "no directory"),
    "a directory behind what is in it": (entry(b'["workspace/d/x","p",0,0]'), "no directory"),
    "a hard link to nothing": (entry(b'["workspace/x","h",0,0,"workspace/y"]'), "no file"),
    "a hard link to a directory": (entry(b'["workspace/x","h",0,0,"workspace"]'), "no file"),
    "a hard link to a hard link": (
        entry(b'["workspace/x","h",0,0,"workspace/d/h"]', 8),
        "no file",
    ),
    "a hard link before its target": (
        entry(b'["workspace/0","h",0,0,"workspace/a"]'),
        "no file named before",
    ),
    "a hard link to itself": (entry(b'["workspace/x","h",0,0,"workspace/x"]'), "no file"),
    "an empty link": (entry(b'["workspace/x","l",0,0,""]'), "empty"),
    "a link with NUL": (entry(b'["workspace/x","l",0,0,"\\u0000"]'), "NUL"),
    "a link of 4096 bytes": (entry(b'["workspace/x","l",0,0,"%b"]' % (b"x" * 4096)), "too long"),
    "a link of number": (entry(b'["workspace/x","l",0,0,7]'), "no text"),
    "a mode of more": (entry(b'["workspace/x","p",4096,0]'), "mode 4096"),
    "a negative mode": (entry(b'["workspace/x","p",-1,0]'), "mode -1"),
    "a mode of truth": (entry(b'["workspace/x","p",true,0]'), "mode True"),
    "a time of text": (entry(b'["workspace/x","p",0,"0"]'), "mtime_ns"),
    "a time beyond time": (entry(b'["workspace/x","p",0,%d]' % (2**63 * 10**9)), "mtime_ns"),
    "a time of a fraction": (entry(b'["workspace/x","p",0,1e3]'), "no whole number"),
    "a negative size": (entry(b'["workspace/x","f",0,0,-1,"%b",1]' % SHA), "size -1"),
    "a size beyond files": (entry(b'["workspace/x","f",0,0,%d,"%b",1]' % (2**63, SHA)), "size"),
    "a short sha256": (entry(b'["workspace/x","f",0,0,0,"aa",1]'), "sha256"),
    "an upper sha256": (entry(b'["workspace/x","f",0,0,0,"%b",1]' % SHA.upper()), "sha256"),
    "a sha256 with spaces": (entry(b'["workspace/x","f",0,0,0,"%b",1]' % (b"aa  " * 16)), "sha256"),
    "a sha256 of letters": (entry(b'["workspace/x","f",0,0,0,"%b",1]' % (b"g" * 64)), "sha256"),
    "a sha256 of number": (entry(b'["workspace/x","f",0,0,0,1,1]'), "sha256"),
    "source none": (entry(b'["workspace/x","f",0,0,0,"%b",0]' % SHA), "source 0"),
    "a later source": (entry(b'["workspace/x","f",0,0,0,"%b",3]' % SHA), "source 3"),
    "sparse of truth": (entry(b'["workspace/x","f",0,0,0,"%b",1,true]' % SHA), "sparse"),
    "sparse of zero": (entry(b'["workspace/x","f",0,0,0,"%b",1,0]' % SHA), "sparse"),
    "an empty line": (entry(b""), "line 3: no JSON"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_a_manifest_is_refused_that_has(case: str) -> None:
    refused(*ENTRIES[case])


def test_the_entries_that_the_cases_are_made_of_are_taken() -> None:
    for at, line in ((2, b'["workspace/x","p",0,0]'), (8, b'["workspace/d/x","p",0,0]')):
        lines = entry(line, at)
        assert len(decode_manifest(gzip.compress(b"\n".join(lines) + b"\n")).entries) == 11


def test_a_full_one_has_no_file_of_another_checkpoint() -> None:
    refused(head(parent=0), "source 1 is no number from 2 to 2")


def test_a_newer_format_is_named_and_is_no_damage() -> None:
    refused(head(format=2, more=True), "format 2.*update the worker", WrongState)


def test_the_manifest_of_another_checkpoint_is_refused() -> None:
    with pytest.raises(Corrupt, match=r"not of 'ses_5{32}\.1\.1'"):
        decode_manifest(encode_manifest(MANIFEST), expected_checkpoint=CHECKPOINT)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-1],
    "empty": lambda data: b"",
    "followed by bytes": lambda data: data + b"x",
    "followed by itself": lambda data: data + data,
    "in two gzip members": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
    "not packed": gzip.decompress,
    "without an end of its last line": lambda data: gzip.compress(gzip.decompress(data)[:-1]),
    "nothing, packed": lambda data: gzip.compress(b""),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_manifest_is_refused_that_is(case: str) -> None:
    with pytest.raises(Corrupt, match="manifest"):
        decode_manifest(DAMAGE[case](encode_manifest(MANIFEST)))


def test_a_manifest_cut_anywhere_or_with_a_flipped_bit_is_refused() -> None:
    data = encode_manifest(MANIFEST)
    for at in range(len(data)):
        with pytest.raises(Corrupt):
            decode_manifest(data[:at])
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        # Some bytes of a gzip header mean nothing: nothing else may come out then.
        try:
            assert decode_manifest(bytes(flipped)) == MANIFEST
            assert at < 10
        except Corrupt:
            pass


def test_a_bomb_is_refused_before_memory_is_used() -> None:
    bomb = gzip.compress(LINES[0] + b"\n" + b"[]\n" * 30_000_000)
    long = gzip.compress(b"[" + b"[]," * 30_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded, match="500 bytes"):
            decode_manifest(encode_manifest(MANIFEST), max_bytes=500)
        with pytest.raises(Corrupt):
            decode_manifest(bomb)
        with pytest.raises(Corrupt):
            decode_manifest(long)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()
