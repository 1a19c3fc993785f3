from __future__ import annotations

import pytest

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.languages.python.specifiers import parse_specifier, parse_specifiers


@pytest.mark.parametrize(
    ("value", "text", "pinned"),
    [
        ("six", "six", False),
        (" Discord.py ", "discord-py", False),
        ("six==1.16.0", "six==1.16.0", True),
        ("six===1.16.0", "six===1.16.0", True),
        ("six==1.*", "six==1.*", False),
        ("requests[socks, Use_Chardet]>=2, <3", "requests[socks,use-chardet]<3,>=2", False),
        ("six (>=1.0)", "six>=1.0", False),
        ("numpy; python_version<'3.12'", 'numpy ; python_version < "3.12"', False),
        ("torch==2.1+cpu", "torch==2.1+cpu", True),
        ("a==1!2.0", "a==1!2.0", True),
    ],
)
def test_a_specifier_is_written_anew_from_its_parts(value: str, text: str, pinned: bool) -> None:
    specifier = parse_specifier(value)

    assert (specifier.text, specifier.pinned) == (text, pinned)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "is empty"),
        ("--index-url=http://x", "is an option"),
        ("-r x.txt", "is an option"),
        ("git+https://x/y", "is a URL"),
        ("a @ https://x/y.whl", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
        ("./a", "is a path"),
        ("~/a", "is a path"),
        ("a-1.0-py3-none-any.whl", "is a path"),
        ("a/b", "has a slash"),
        ("a\nb", "line break"),
        ("a\x1b[31m", "line break"),
        ("äö", "beyond ASCII"),
        ("$(id)", "character that no specifier has"),
        ("a; rm -rf /", "is not a package specifier"),
        ("a && b", "is not a package specifier"),
        ("a" * 513, "513 characters"),
    ],
)
def test_a_refusal_names_the_value_the_fault_and_what_to_send(value: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_specifier(value)

    assert why in caught.value.message
    assert repr(value)[1:40] in caught.value.message
    assert "send a name" in caught.value.message
    assert caught.value.reason == "INVALID_PACKAGE"


def test_the_same_package_twice_is_asked_for_once() -> None:
    assert [one.text for one in parse_specifiers(["Six", "six", "six>1"])] == ["six", "six>1"]
