from __future__ import annotations

import os

from hypothesis import example, given
from hypothesis import strategies as st

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.paths import join_path, parse_path

PIECES = st.lists(
    st.one_of(
        st.sampled_from(["", ".", "..", "...", "a", "b", "/", "\0", "~", " "]),
        st.text(max_size=8),
    ),
    max_size=12,
)
PATHS = st.one_of(PIECES.map("/".join), st.text(), st.binary(), st.text().map(lambda t: t * 300))


def parsed(path: str | bytes) -> tuple[bytes, ...] | None:
    try:
        return parse_path(path, root_allowed=True)
    except InvalidRequest:
        return None


@given(PATHS)
@example("a/\udcff/../b")
def test_what_is_accepted_is_plain_names_that_fit(path: str | bytes) -> None:
    parts = parsed(path)
    for name in parts or ():
        assert name not in (b"", b".", b"..")
        assert b"/" not in name
        assert b"\0" not in name
        assert len(name) <= 255
    assert len(join_path(parts or ())) <= 4095


@given(PATHS)
def test_what_is_accepted_stays_below_the_root(path: str | bytes) -> None:
    parts = parsed(path)
    if parts:
        below = os.path.normpath(os.path.join(b"/root/of/it", join_path(parts)))
        assert below.startswith(b"/root/of/it/")


@given(PATHS)
def test_a_path_that_was_parsed_parses_to_itself(path: str | bytes) -> None:
    parts = parsed(path)
    if parts is not None:
        assert parsed(join_path(parts)) == parts


@given(PATHS)
def test_names_agree_with_normpath(path: str | bytes) -> None:
    parts = parsed(path)
    raw = path if isinstance(path, bytes) else path.encode("utf-8", "surrogatepass")
    if parts is not None and isinstance(path, bytes):
        assert join_path(parts) == os.path.normpath(raw)
    if parts is None and raw and b"\0" not in raw and len(raw) < 4096:
        names = raw.split(b"/")
        assert (
            raw.startswith(b"/")
            or b".." in names
            or any(len(name) > 255 for name in names)
            or (isinstance(path, str) and any(0xD800 <= ord(char) < 0xE000 for char in path))
        )
