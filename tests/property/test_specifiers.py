"""Whatever a caller sends, what passes is a plain specifier, written anew."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.languages.python.specifiers import parse_specifier, parse_specifiers

NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True)
VERSIONS = st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}((a|b|rc)[0-9])?", fullmatch=True)
OPERATORS = st.sampled_from(["==", ">=", "<=", "!=", ">", "<", "~="])
MARKERS = st.sampled_from(["", " ; python_version < '3.12'", "; sys_platform=='linux'"])
DANGEROUS = st.sampled_from(
    [
        "-",
        "--",
        "/",
        "../",
        "://",
        "@",
        "git+",
        ";",
        "&",
        "|",
        "`",
        "$(",
        "\n",
        "\r",
        "\0",
        " ",
        "#",
    ]
)

SAFE = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\[[a-z0-9,-]+\])?[A-Za-z0-9.,<>=!~*+_-]*( ; .+)?")


@st.composite
def specifiers(draw: st.DrawFn) -> str:
    name = draw(NAMES)
    extras = draw(st.lists(NAMES, max_size=2))
    versions = draw(st.lists(st.tuples(OPERATORS, VERSIONS), max_size=2))
    text = name + (f"[{','.join(extras)}]" if extras else "")
    text += ",".join(
        operator + (version if operator != "~=" else version.split("a")[0].split("b")[0] + ".0")
        for operator, version in versions
        if operator != "~=" or "rc" not in version
    )
    return text + draw(MARKERS)


@given(st.text() | st.lists(DANGEROUS | NAMES | VERSIONS | OPERATORS).map("".join))
def test_anything_is_refused_or_safe(value: str) -> None:
    try:
        specifier = parse_specifier(value)
    except InvalidRequest:
        return
    assert SAFE.fullmatch(specifier.text), specifier.text
    assert specifier.text.isascii()
    assert specifier.text.isprintable()
    assert "://" not in specifier.text


@given(specifiers(), DANGEROUS, st.integers(min_value=0))
def test_a_good_one_with_something_put_in_is_refused_or_safe(
    value: str, danger: str, place: int
) -> None:
    place %= len(value) + 1
    try:
        text = parse_specifier(value[:place] + danger + value[place:]).text
    except InvalidRequest:
        return
    assert SAFE.fullmatch(text), text
    assert not text.startswith("-")


@given(specifiers())
def test_what_passes_means_the_same_when_parsed_again(value: str) -> None:
    try:
        once = parse_specifier(value)
    except InvalidRequest:
        if value.lower().split(";")[0].strip().endswith((".zip", ".whl", ".egg", ".tgz")):
            return
        raise
    again = parse_specifier(once.text)
    assert again.text == once.text
    assert again.requirement == once.requirement
    assert again.pinned == once.pinned


@given(st.lists(NAMES, min_size=1, max_size=8))
def test_names_that_mean_the_same_are_one(names: list[str]) -> None:
    try:
        found = parse_specifiers([*names, *(name.upper() for name in names)])
    except InvalidRequest:
        return
    assert len({one.name for one in found}) == len(found)


@pytest.mark.parametrize("count", [0, 101])
def test_none_and_too_many_are_refused(count: int) -> None:
    with pytest.raises(InvalidRequest):
        parse_specifiers([f"p{number}" for number in range(count)])
