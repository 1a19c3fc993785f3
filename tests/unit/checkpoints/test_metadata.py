"""Metadata comes back as it was, and says so when it does not."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.core.checkpoint import FORMAT, CheckpointId, CheckpointInfo
from codegen_mcp.core.errors import Corrupt, WrongState
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.engine.checkpoints.metadata import decode_info, encode_info

IDS = st.builds(
    CheckpointId,
    st.just("ses_" + "a" * 32),
    st.integers(1, 9_999_999_999),
    st.integers(1, 9_999_999_999),
)
TEXTS = st.text(max_size=20)
COUNTS = st.integers(0, 1 << 62)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
MAPS = st.dictionaries(TEXTS, TEXTS, max_size=3)


@st.composite
def infos(draw: st.DrawFn) -> CheckpointInfo:
    checkpoint_id = draw(IDS)
    before = draw(st.sets(st.integers(1, checkpoint_id.number), max_size=3))
    return CheckpointInfo(
        checkpoint_id=checkpoint_id,
        name=draw(TEXTS),
        parent=draw(st.integers(0, checkpoint_id.number)),
        chain=tuple(sorted({*before, checkpoint_id.number})),
        workspace_id=draw(TEXTS),
        env=draw(MAPS),
        metadata=draw(MAPS),
        limits=ResourceLimits(disk_bytes=draw(st.integers(1, 1 << 40))),
        idle_timeout_s=draw(st.floats(0, 1e9)),
        checkpoint_interval_s=draw(st.floats(-1, 1e9)),
        auto_restore=draw(st.booleans()),
        installed_packages=tuple(draw(st.lists(TEXTS, max_size=3))),
        modified_files=tuple(draw(st.lists(TEXTS, max_size=3))),
        entries=draw(COUNTS),
        total_bytes=draw(COUNTS),
        size_bytes=draw(COUNTS),
        sha256=draw(DIGESTS),
        manifest_sha256=draw(DIGESTS),
        journal_sha256=draw(DIGESTS | st.just("")),
        freeze_ms=draw(st.floats(0, 1e6)),
    )


def example() -> CheckpointInfo:
    return CheckpointInfo(
        checkpoint_id=CheckpointId("ses_" + "a" * 32, 1, 7),
        chain=(1, 7),
        sha256="0" * 64,
        manifest_sha256="1" * 64,
        env={"A": "b"},
    )


@given(infos())
def test_what_was_written_is_read(info: CheckpointInfo) -> None:
    assert decode_info(encode_info(info), info.checkpoint_id) == info


def test_no_changed_byte_is_taken_for_truth() -> None:
    """Neither read as another fact, nor as an error without a name."""
    info = example()
    data = encode_info(info)
    for at in range(len(data)):
        for bit in (1, 4, 32):
            changed = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            try:
                found = decode_info(changed, info.checkpoint_id)
            except (Corrupt, WrongState):
                continue
            assert found == info, (at, bit)  # white space


def test_a_cut_object_is_damaged() -> None:
    data = encode_info(example())
    for size in range(0, len(data) - 2, 7):
        with pytest.raises(Corrupt):
            decode_info(data[:size], example().checkpoint_id)


def test_another_checkpoints_metadata_is_damaged() -> None:
    info = example()
    with pytest.raises(Corrupt):
        decode_info(encode_info(info), dataclasses.replace(info.checkpoint_id, number=8))


def test_a_newer_format_is_refused_by_name() -> None:
    content = json.loads(encode_info(example()))
    content["format"] = FORMAT + 1
    with pytest.raises(WrongState) as refused:
        decode_info(json.dumps(content).encode(), example().checkpoint_id)
    assert refused.value.reason == "FORMAT_TOO_NEW"
