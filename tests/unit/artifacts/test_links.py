"""Signed links: what they permit, and how they are told from others."""

from __future__ import annotations

import os
import stat
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.core.errors import Corrupt, Forbidden
from codegen_mcp.http.artifact_links import ArtifactLinks
from codegen_mcp.http.link_key import KEY_BYTES, load_key
from codegen_mcp.testing.manual_clock import ManualClock

ART = "art_" + "0" * 32
CLOCK = ManualClock()
SOON = CLOCK.unix_ms() + 1000


def links(key: bytes = b"k" * KEY_BYTES, clock: ManualClock = CLOCK) -> ArtifactLinks:
    return ArtifactLinks(key, lambda: "http://127.0.0.1:1", clock)


def query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query, strict_parsing=True))


def test_a_link_permits_what_it_was_made_for():
    up = links().upload_url(ART, size_bytes=7, expires_at_ms=SOON)
    down = links().download_url(ART, expires_at_ms=SOON)
    assert urlsplit(up).path == urlsplit(down).path == f"/artifacts/{ART}"
    assert links().check("PUT", ART, query(up)).size_bytes == 7
    assert links().check("GET", ART, query(down)).size_bytes is None
    assert links().check("HEAD", ART, query(down)).artifact_id == ART


def test_a_link_is_bound_to_its_method_and_artifact():
    up = query(links().upload_url(ART, size_bytes=7, expires_at_ms=SOON))
    down = query(links().download_url(ART, expires_at_ms=SOON))
    for method, artifact_id, given_query in (
        ("GET", ART, up),
        ("HEAD", ART, up),
        ("DELETE", ART, up),
        ("PUT", ART, down),
        ("PUT", ART, {**down, "size": "7"}),
        ("PUT", "art_" + "1" * 32, up),
        ("GET", "art_" + "1" * 32, down),
    ):
        with pytest.raises(Forbidden, match="not valid"):
            links().check(method, artifact_id, given_query)


@given(st.sampled_from(["expires", "size", "signature"]), st.text(max_size=80))
def test_no_part_of_a_link_can_be_changed(name, value):
    right = query(links().upload_url(ART, size_bytes=7, expires_at_ms=SOON))
    if right[name] == value:
        return
    with pytest.raises(Forbidden):
        links().check("PUT", ART, {**right, name: value})


def test_no_part_of_a_link_can_be_left_out_or_added():
    right = query(links().upload_url(ART, size_bytes=7, expires_at_ms=SOON))
    for name in right:
        with pytest.raises(Forbidden):
            links().check("PUT", ART, {k: v for k, v in right.items() if k != name})
    with pytest.raises(Forbidden):
        links().check("PUT", ART, {**right, "more": "1"})


def test_a_link_ends_at_its_time_and_not_before():
    clock = ManualClock()
    made = links(clock=clock)
    right = query(made.download_url(ART, expires_at_ms=clock.unix_ms() + 1000))
    clock.advance(0.999)
    made.check("GET", ART, right)
    clock.advance(0.001)
    with pytest.raises(Forbidden, match="time"):
        made.check("GET", ART, right)


def test_another_key_makes_other_links():
    right = query(links().download_url(ART, expires_at_ms=SOON))
    with pytest.raises(Forbidden):
        links(b"x" * KEY_BYTES).check("GET", ART, right)


def test_the_key_is_made_once_for_its_owner_alone(tmp_path):
    path = tmp_path / "key"
    first = load_key(path)
    assert len(first) == KEY_BYTES
    assert load_key(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(tmp_path / "other") != first
    assert sorted(one.name for one in tmp_path.iterdir()) == ["key", "other"]


def test_a_key_that_others_may_read_or_that_is_none_is_refused(tmp_path):
    path = tmp_path / "key"
    load_key(path)
    path.chmod(0o640)
    with pytest.raises(Corrupt, match="mode 0600"):
        load_key(path)
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(Corrupt):
        load_key(path)


def test_a_key_file_that_a_crash_left_half_made_is_made_anew(tmp_path):
    path = tmp_path / "key"
    (tmp_path / "key.tmp").write_bytes(b"half")
    os.chmod(tmp_path / "key.tmp", 0o644)
    assert len(load_key(path)) == KEY_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
