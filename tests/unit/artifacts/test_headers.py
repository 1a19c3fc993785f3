"""Ranges, conditions and file names in HTTP headers."""

from __future__ import annotations

from email.message import Message
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.engine.artifacts.collector import name_of, text_of, type_of
from codegen_mcp.engine.artifacts.facts import check_content_type, check_name
from codegen_mcp.http.disposition import attachment
from codegen_mcp.http.ranges import Unsatisfiable, if_range, none_match, parse_range


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, 10)),
        ("bytes=3-5", (3, 3)),
        ("bytes=9-", (9, 1)),
        ("bytes=3-100", (3, 7)),
        ("bytes=-3", (7, 3)),
        ("bytes=-100", (0, 10)),
        ("BYTES=1-2", (1, 2)),
        ("bytes=1-2,", (1, 2)),
    ],
)
def test_one_range_is_understood(header, wanted):
    assert parse_range(header, 10) == wanted


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=99999-"])
def test_a_range_without_a_byte_is_unsatisfiable(header):
    with pytest.raises(Unsatisfiable):
        parse_range(header, 10)


def test_an_empty_artifact_has_no_range():
    for header in ("bytes=0-", "bytes=-1"):
        with pytest.raises(Unsatisfiable):
            parse_range(header, 0)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes=",
        "bytes=-",
        "bytes=5-3",
        "bytes=a-b",
        "items=0-1",
        "bytes=0-1,3-4",
        "0-1",
        "bytes=0-" + "9" * 20,
        "bytes=١-٢",
        "bytes=+1-2",
        "bytes 0-1",
    ],
)
def test_what_is_no_single_range_is_ignored(header):
    assert parse_range(header, 10) is None


@given(st.integers(0, 50), st.integers(0, 60), st.one_of(st.none(), st.integers(0, 60)))
def test_a_range_is_the_slice_that_it_names(size, first, last):
    data = bytes(range(size))
    text = f"bytes={first}-" + ("" if last is None else str(last))
    try:
        found = parse_range(text, size)
    except Unsatisfiable:
        assert first >= size
        return
    if found is None:
        assert last is not None
        assert last < first
        return
    expected = data[first:] if last is None else data[first : last + 1]
    assert data[found[0] : found[0] + found[1]] == expected
    assert len(expected) == found[1] > 0


def test_conditions_compare_tags():
    assert none_match(None, '"a"')
    assert none_match('"b", "c"', '"a"')
    assert not none_match('"b", W/"a"', '"a"')
    assert not none_match("*", '"a"')
    assert if_range(None, '"a"')
    assert if_range('"a"', '"a"')
    assert not if_range('W/"a"', '"a"')
    assert not if_range("Tue, 24 Nov 2026 11:14:26 GMT", '"a"')


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)


@given(NAMES)
def test_every_legal_name_survives_the_header(name):
    try:
        check_name(name)
    except InvalidRequest:
        return
    value = attachment(name)
    assert value.isascii()
    assert value.isprintable()
    message = Message()
    message["Content-Disposition"] = value
    if "filename*=" in value:
        assert unquote(value.rpartition("filename*=UTF-8''")[2]) == name
    else:
        assert message.get_filename() == name


@pytest.mark.parametrize(
    "name", ["a.tar.gz", "-x", "..a", "a b", " ", "ü", "🎉" * 63, "a\tb", 'a"b', "%41", "x" * 255]
)
def test_any_file_name_is_legal(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/", "a\0", "a\n", "\r", "a\u2028b", "\x85", "x" * 256, "ü" * 128],
)
def test_what_is_no_file_name_is_refused(name):
    with pytest.raises(InvalidRequest, match="artifact name"):
        check_name(name)


def test_a_lone_surrogate_is_refused():
    with pytest.raises(InvalidRequest, match="surrogate"):
        check_name("a\ud800")


@pytest.mark.parametrize(
    "kind", ["text/csv", "text/html; charset=utf-8", 'a/b;c="d e"', "application/vnd.x+json"]
)
def test_a_media_type_is_accepted(kind):
    assert check_content_type(kind) == kind


@pytest.mark.parametrize(
    "kind", ["text", "a/b\r\nx: y", "a/b c", "a/b;", "ü/x", "a/b; c", "a/" + "b" * 300, "a/b\n"]
)
def test_what_is_no_media_type_is_refused(kind):
    with pytest.raises(InvalidRequest, match="media type"):
        check_content_type(kind)


@given(st.binary(min_size=1, max_size=255).filter(lambda raw: not {0, 47} & set(raw)))
def test_every_file_name_of_a_disk_becomes_a_legal_one(raw):
    if raw in (b".", b".."):
        return
    assert check_name(name_of(b"artifacts/" + raw))
    assert text_of(raw).isprintable()


def test_types_are_guessed_by_name():
    assert type_of("a.png") == "image/png"
    assert type_of("a.csv") == "text/csv"
    assert type_of("a.tar.gz") == "application/gzip"
    assert type_of("none") == "application/octet-stream"
    assert type_of("http://x.png?y") == "application/octet-stream"
