"""Allow lists: what a pattern means, what it covers, and which are none."""

import pytest

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.egress.hosts import BadHost, normal_host
from codegen_mcp.egress.patterns import MAX_PATTERNS, parse_list, parse_pattern


@pytest.mark.parametrize(
    ("pattern", "host", "port", "meant"),
    [
        ("example.com", "example.com", 443, True),
        ("example.com", "example.com", 80, True),
        ("example.com", "example.com", 8080, False),
        ("example.com", "www.example.com", 443, False),
        ("EXAMPLE.com.", "example.com", 443, True),
        ("example.com:8080", "example.com", 8080, True),
        ("example.com:8080", "example.com", 443, False),
        ("example.com:*", "example.com", 22, True),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "badexample.com", 443, False),
        ("*", "anything.test", 443, True),
        ("*", "anything.test", 22, False),
        ("*:*", "anything.test", 22, True),
        ("93.184.216.34", "93.184.216.34", 443, True),
        ("[2606:2800:0::1]:443", "2606:2800::1", 443, True),
        ("bücher.example", "xn--bcher-kva.example", 443, True),
    ],
)
def test_a_pattern_means_what_it_says(pattern, host, port, meant):
    assert parse_pattern(pattern).matches(host, port) is meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "https://example.com",
        "example.com/path",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:http",
        "example.com:80-90",
        "w*w.example.com",
        "*example.com",
        "*.",
        "*.127.0.0.1",
        "a b.com",
        "user@example.com",
        "127.1",
        "0x7f.1",
        "2130706433",
        "256.1.1.1",
        "[::1",
        "[::1]x",
        "::1%lo",
        "a" * 64 + ".com",
        "-a.com",
        "a-.com",
        "a..com",
    ],
)
def test_what_is_no_pattern_is_refused_with_words(text):
    with pytest.raises(BadHost) as caught:
        parse_pattern(text)
    assert str(caught.value)
    with pytest.raises(InvalidRequest, match="write HOST"):
        parse_list([text], "task", "field")


@pytest.mark.parametrize(
    ("above", "asked", "covered"),
    [
        ("*", "example.com", True),
        ("*", "*.example.com", True),
        ("*", "example.com:8080", False),
        ("*:*", "example.com:8080", True),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "*.a.example.com", True),
        ("*.example.com", "*.example.com:443", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "*", False),
        ("*.a.example.com", "*.example.com", False),
        ("example.com", "*.example.com", False),
        ("example.com:443", "example.com", False),
        ("example.com", "example.com:*", False),
        ("example.com", "example.com:443", True),
    ],
)
def test_a_list_covers_what_asks_for_no_more(above, asked, covered):
    upper, lower = parse_list([above], "worker", "f"), parse_list([asked], "task", "f")
    assert (upper.uncovered(lower) is None) is covered


def test_a_list_is_bounded():
    with pytest.raises(InvalidRequest, match="at most"):
        parse_list(["example.com"] * (MAX_PATTERNS + 1), "task", "field")


def test_patterns_read_back_as_they_are_shown():
    for text in ("example.com", "*.example.com:8080", "*:*", "[2606:2800::1]", "1.2.3.4:53"):
        assert parse_pattern(str(parse_pattern(text))) == parse_pattern(text)


def test_a_normal_host_is_normal():
    for host in ("example.com", "xn--bcher-kva.example", "1.2.3.4", "2606:2800::1", "_dmarc.a.b"):
        assert normal_host(host) == host
