from __future__ import annotations

import pytest

from codegen_mcp.core.errors import LimitExceeded, StoreUnavailable
from codegen_mcp.languages.python import fetcher_words
from codegen_mcp.languages.python.index_proxy import ProxyCounters
from codegen_mcp.languages.python.packages import Index

INDEX = Index.parse("https://packages.example/simple")
UNSOLVED = "error: No solution found when resolving dependencies\n  cause: Because alpha==1 ..."


def test_the_culprits_among_the_asked_are_found() -> None:
    words = "Because no-such was not found and alpha==1.0 depends on gamma<2"

    assert fetcher_words.names_in(words, ["alpha", "beta", "no-such"]) == ["alpha", "no-such"]
    assert fetcher_words.names_in(words, ["such", "alph", "no"]) == ["such", "alph", "no"]
    assert fetcher_words.names_in("who knows", ["b", "a", "b"]) == ["b", "a"]


def test_projects_without_wheels_are_read_from_the_hint() -> None:
    words = (
        "hint: Wheels are required for `Doc_Opt` because building from source is disabled for all\n"
        "hint: Wheels are required for `six` because building from source is disabled for all"
    )

    assert fetcher_words.without_wheel(words) == ["doc-opt", "six"]


def test_projects_are_read_from_the_files_in_an_error() -> None:
    words = "Failed to fetch: `https://f.example/a/Foo_Bar-1.0-py3-none-any.whl.metadata`"

    assert fetcher_words.projects_in(words) == ["foo-bar"]


def test_a_resolvers_failure_is_no_networks_failure() -> None:
    fetcher_words.raise_if_unavailable(INDEX, UNSOLVED, ProxyCounters())


@pytest.mark.parametrize(
    ("words", "counters"),
    [
        ("error: Request failed after 3 retries", ProxyCounters()),
        ("error: Failed to fetch: `https://x`", ProxyCounters()),
        ("error: whatever", ProxyCounters(unreachable=[("x:443", "refused")])),
        (UNSOLVED, ProxyCounters(refused=[("x:443", "not on the list")])),
    ],
)
def test_an_index_that_does_not_deliver_is_unavailable(words: str, counters: ProxyCounters) -> None:
    with pytest.raises(StoreUnavailable, match=r"packages\.example"):
        fetcher_words.raise_if_unavailable(INDEX, words, counters)


def test_too_many_bytes_are_a_limit() -> None:
    with pytest.raises(LimitExceeded):
        fetcher_words.raise_if_unavailable(INDEX, UNSOLVED, ProxyCounters(over_limit=True))
    with pytest.raises(LimitExceeded):
        fetcher_words.raise_for_download(INDEX, "a.whl: larger than 5 bytes", ProxyCounters())


def test_of_long_words_the_end_is_kept() -> None:
    assert fetcher_words.last_lines("a" * 10 + "reason", 6) == "...reason"
