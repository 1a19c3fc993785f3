"""The exchange of placeholders for values and back."""

import base64

from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_mcp.egress.patterns import parse_pattern
from codegen_mcp.egress.placeholders import Hider, Placeholder, new_placeholder, put_in
from codegen_mcp.egress.secrets import Secret

VALUE = b"abcd/efgh+ijkl=mnop"
ONE = new_placeholder(
    Secret(
        name="A",
        value=VALUE,
        hosts=(parse_pattern("a.b"),),
        headers=frozenset({b"authorization"}),
    )
)


def test_a_placeholder_is_as_long_as_its_value_and_another_each_time():
    assert len(ONE.text) == len(VALUE)
    assert new_placeholder(ONE.secret).text != ONE.text


def test_values_stand_only_in_the_fields_that_may_have_them():
    fields = [(b"authorization", b"Bearer " + ONE.text), (b"cookie", ONE.text)]
    assert put_in(fields, [ONE]) == [(b"authorization", b"Bearer " + VALUE), (b"cookie", ONE.text)]


def test_basic_credentials_are_opened_and_closed_again():
    sent = b"Basic " + base64.b64encode(b"user:" + ONE.text)
    ((_, value),) = put_in([(b"authorization", sent)], [ONE])
    assert base64.b64decode(value[6:]) == b"user:" + VALUE
    for broken in (b"Basic !!!", b"Basic abc", b"Basic"):
        assert put_in([(b"authorization", broken)], [ONE]) == [(b"authorization", broken)]


def encodings(around: bytes) -> list[bytes]:
    return [
        around + VALUE + around,
        base64.b64encode(around + VALUE + around),
        base64.urlsafe_b64encode(around + VALUE + around),
        b"x=abcd%2Fefgh%2Bijkl%3Dmnop&y",
    ]


@given(
    st.binary(max_size=40),
    st.lists(st.integers(1, 20), max_size=30),
    st.integers(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_no_form_of_a_value_is_left_however_it_is_cut(around, cuts, which):
    data = encodings(around)[which]
    hider, out, rest = Hider([ONE]), b"", data
    for cut in cuts:
        piece, rest = rest[:cut], rest[cut:]
        out += hider.hide(piece) if piece else b""
    out += (hider.hide(rest) if rest else b"") + hider.hide(b"")
    assert len(out) == len(data)
    assert out != data
    if VALUE in around:
        return
    assert VALUE not in out
    if which == 1:
        assert VALUE not in base64.b64decode(out)
    if which == 2:
        assert VALUE not in base64.urlsafe_b64decode(out)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_what_has_no_value_is_not_changed(data):
    if VALUE in data:
        return
    hider = Hider([ONE])
    assert hider.hide(data) + hider.hide(b"") == data if data else True


def test_nothing_is_held_that_cannot_begin_a_value():
    assert Hider([ONE]).hide(b"data: event\n\n") == b"data: event\n\n"
    assert Hider([ONE]).hide(b"..." + VALUE[:7]) == b"..."


def test_two_secrets_do_not_hinder_each_other():
    other = Placeholder(
        Secret(name="B", value=VALUE[::-1], hosts=ONE.secret.hosts, headers=ONE.secret.headers),
        b"cgs_" + b"z" * (len(VALUE) - 4),
    )
    hider = Hider([ONE, other])
    assert hider.hide(VALUE + VALUE[::-1]) + hider.hide(b"") == ONE.text + other.text
