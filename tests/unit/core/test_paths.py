from __future__ import annotations

import pytest

from codegen_mcp.core.errors import InvalidRequest, PathEscape
from codegen_mcp.core.paths import join_path, parse_path, show_path


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a", (b"a",)),
        ("a/./b//c", (b"a", b"b", b"c")),
        ("a/../b", (b"b",)),
        ("a/", (b"a",)),
        ("./a", (b"a",)),
        ("~/.bashrc", (b"~", b".bashrc")),
        ("-rf", (b"-rf",)),
        ("C:\\x", (b"C:\\x",)),
        ("...", (b"...",)),
        ("a\nb", (b"a\nb",)),
        ("pa/\N{PARTY POPPER}", (b"pa", b"\xf0\x9f\x8e\x89")),
        (b"\xff/\xfe", (b"\xff", b"\xfe")),
        ("\udcff", (b"\xff",)),
        ("x" * 255, (b"x" * 255,)),
    ],
)
def test_a_path_becomes_plain_names(path: str | bytes, parts: tuple[bytes, ...]) -> None:
    assert parse_path(path) == parts


@pytest.mark.parametrize("path", ["/etc/passwd", "//x", "/", "../x", "a/../../x", "..", "a/../.."])
def test_a_path_that_is_absolute_or_climbs_out_is_an_escape(path: str) -> None:
    with pytest.raises(PathEscape):
        parse_path(path, root_allowed=True)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "empty"),
        (b"", "empty"),
        ("a\0b", "NUL"),
        ("x" * 5000, "5000 bytes"),
        ("a/" * 2048, "4096 bytes"),
        ("x" * 256, "256 bytes"),
        ("\N{EURO SIGN}" * 86, "258 bytes"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_a_malformed_path_is_refused_with_the_reason(path: str | bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        parse_path(path, root_allowed=True)
    assert not isinstance(caught.value, PathEscape)
    assert len(caught.value.message) < 500


def test_the_longest_path_that_the_kernel_takes_is_accepted() -> None:
    path = ("x" * 255 + "/") * 15 + "y" * 255
    assert len(path) == 4095
    assert len(parse_path(path)) == 16


@pytest.mark.parametrize("path", [".", "./", "a/..", "./."])
def test_the_root_is_named_only_where_it_is_allowed(path: str) -> None:
    assert parse_path(path, root_allowed=True) == ()
    with pytest.raises(InvalidRequest, match="workspace itself"):
        parse_path(path)


def test_the_root_is_joined_to_a_dot() -> None:
    assert join_path(()) == b"."
    assert join_path((b"a", b"b")) == b"a/b"


def test_a_long_path_is_shortened_for_a_message() -> None:
    assert len(show_path(b"x" * 4000)) < 220
    assert show_path(b"a\xff") == "'a\\\\xff'"
