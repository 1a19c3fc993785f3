from __future__ import annotations

import time

import pytest

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.engine.workspace_glob import compile_glob


def matches(pattern: str, path: str) -> bool:
    matcher = compile_glob(pattern)
    assert matcher is not None
    raw = path.encode("utf-8", "surrogateescape")
    return matcher(raw, raw.rpartition(b"/")[2])


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*.py", "a.py"),
        ("*.py", "deep/down/a.py"),
        ("*", ".hidden"),
        ("?.txt", "\N{EURO SIGN}.txt"),
        ("[ab].txt", "b.txt"),
        ("[a-c]*", "cat"),
        ("[!a-c]*", "dog"),
        ("[]]", "]"),
        ("[!]]", "x"),
        ("[-a]", "-"),
        ("[a-]", "-"),
        ("[*]", "*"),
        ("[", "["),
        ("a[b", "a[b"),
        ("a*b*c", "aXbXbc"),
        ("*ab*ab", "abab"),
        ("**", "a/b/c"),
        ("**/*.py", "a.py"),
        ("**/*.py", "x/y/a.py"),
        ("src/**", "src/a/b"),
        ("src/**/t.py", "src/t.py"),
        ("src/**/t.py", "src/a/b/t.py"),
        ("**/a/**/b", "x/a/y/a/z/b"),
        ("./a/*", "a/b"),
        ("a/b/", "a/b"),
        ("\udcff*", "\udcffx"),
        ("a\nb", "a\nb"),
        ("*", "a\nb"),
        ("[[]x]", "[x]"),
        ("[a&&b]", "&"),
        ("[~|]", "|"),
        ("[+--]", ","),
    ],
)
def test_a_pattern_matches(pattern: str, path: str) -> None:
    assert matches(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*.py", "a.pyc"),
        ("*.PY", "a.py"),
        ("a/*", "a/b/c"),
        ("a/*", "b"),
        ("src/**", "src"),
        ("src/**", "lib/a"),
        ("src/**/t.py", "src/a/t.txt"),
        ("?", ""),
        ("?", "ab"),
        ("[!a]", "a"),
        ("a**b", "a/b"),
        ("*aab", "aaac"),
        ("**/a/**/b", "x/a/y/z"),
        ("a.c", "abc"),
    ],
)
def test_a_pattern_does_not_match(pattern: str, path: str) -> None:
    assert not matches(pattern, path)


def test_the_empty_pattern_lets_everything_through() -> None:
    assert compile_glob("") is None


@pytest.mark.parametrize("pattern", ["/abs/*", "../*", "a/../*", "x\0", "x" * 5000, "[z-a]"])
def test_a_pattern_that_cannot_be_meant_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidRequest):
        compile_glob(pattern)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a" * 100 + "b", "a" * 250),
        ("?*" * 100 + "b", "a" * 250),
        ("[ab]*" * 50 + "c", "ab" * 120),
        ("**/a/" * 200 + "b", "a/" * 1000 + "c"),
    ],
)
def test_a_hostile_pattern_ends_at_once(pattern: str, path: str) -> None:
    started = time.monotonic()
    assert not matches(pattern, path)
    assert time.monotonic() - started < 1
