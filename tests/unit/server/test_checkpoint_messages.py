"""What the wire says of checkpoints: every fact, in order, and never more than a message holds."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp._proto.codegen.v1 import common_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo, Restored
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.core.session import Durability
from codegen_mcp.server import convert_checkpoints as convert
from codegen_mcp.server.convert import MAX_MESSAGE_BYTES
from codegen_mcp.server.convert_sessions import DURABILITIES, durability

SESSION = "ses_" + "a" * 32
FACTS = CheckpointInfo(
    checkpoint_id=CheckpointId(SESSION, 2, 3),
    name="n",
    parent=2,
    chain=(1, 2, 3),
    workspace_id="w",
    user_id="u",
    created_at_ms=5,
    interpreter="python3.12",
    env={"A": "1"},
    metadata={"k": "v"},
    limits=ResourceLimits(pids=7),
    idle_timeout_s=1.5,
    durability="sync",
    auto_restore=True,
    allow_network=True,
    allow_hosts=("example.com:443",),
    installed_packages=["x==1"],
    modified_files=["f"],
    modified_count=4,
    entries=6,
    total_bytes=8,
    size_bytes=9,
    inflated_bytes=10,
    sha256="aa",
    manifest_sha256="bb",
    journal_sha256="cc",
    storage_url="file:///x",
    freeze_ms=2.5,
    consistency="stopped",
    trigger="turn",
    last_sequence=11,
    checkpoint_interval_s=12.5,
)


def test_every_fact_of_a_checkpoint_is_on_the_wire():
    message = convert.metadata(FACTS)
    silent = [
        field.name
        for field in message.DESCRIPTOR.fields
        if field.name not in {shown.name for shown, _ in message.ListFields()}
    ]
    assert silent == []
    assert len(message.DESCRIPTOR.fields) == len(dataclasses.fields(CheckpointInfo)) + 1
    assert message.chain_checkpoint_ids == [f"{SESSION}.2.{number}" for number in (1, 2, 3)]
    assert message.parent_checkpoint_id == f"{SESSION}.2.2"
    assert message.limits.max_pids == 7
    assert message.durability == common_pb2.DURABILITY_SYNC


def test_every_durability_is_on_the_wire_and_back():
    assert set(DURABILITIES) == set(Durability)
    wire = {value.number for value in common_pb2.Durability.DESCRIPTOR.values}
    assert wire == {*DURABILITIES.values(), 0}
    assert all(durability(number) is ours for ours, number in DURABILITIES.items())
    assert durability(0) is Durability.INTERVAL


@pytest.mark.parametrize("letter", ["x", "\udcff", "界"])
def test_whatever_code_leaves_behind_the_message_stays_below_the_limit(letter):
    long = letter * 4096
    hostile = dataclasses.replace(
        FACTS,
        modified_files=[long] * 5000,
        modified_count=5000,
        installed_packages=[long] * 5000,
        env={f"{number}{long}": long for number in range(500)},
        metadata={f"{number}{long}": long for number in range(500)},
    )
    answer = convert.taken(hostile)
    lost = convert.cut(long * 1000, convert.MAX_LOST_BYTES)
    assert answer.ByteSize() + len(lost.encode()) < MAX_MESSAGE_BYTES
    assert answer.metadata.modified_count == 5000
    assert 0 < len(answer.metadata.modified_files) <= 1000


def test_facts_that_no_worker_writes_are_shown_as_far_as_the_wire_goes():
    odd = dataclasses.replace(
        FACTS,
        created_at_ms=10**30,
        size_bytes=10**30,
        name="x" * 10**6,
        interpreter="\udcff" * 10**6,
        durability="of a later version",
        chain=range(1, 10**6),
        freeze_ms=float("inf"),
        limits=ResourceLimits(pids=10**12, timeout_s=float("nan")),
    )
    plain = dataclasses.replace(FACTS, checkpoint_id=CheckpointId(SESSION, 2, 9))
    first = convert.page([odd, plain], pb.ListCheckpointsRequest(page_size=1), 500)
    rest = convert.page(
        [odd, plain], pb.ListCheckpointsRequest(page_token=first.next_page_token), 500
    )
    (shown,) = first.checkpoints
    assert shown.ByteSize() < 64 * 1024
    assert shown.metadata.size_bytes == 2**63 - 1
    assert shown.metadata.durability == common_pb2.DURABILITY_UNSPECIFIED
    assert [item.checkpoint_id for item in rest.checkpoints] == [f"{SESSION}.2.9"]


def test_short_names_are_cut_at_a_thousand():
    info = dataclasses.replace(FACTS, modified_files=[str(n) for n in range(1200)])
    assert convert.metadata(info).modified_files == [str(n) for n in range(1000)]


def test_names_that_are_no_text_are_escaped():
    info = dataclasses.replace(FACTS, modified_files=["a\udcffb"])
    assert convert.metadata(info).modified_files == [r"a\udcffb"]


def test_a_page_ends_before_its_message_is_too_large():
    infos = [
        dataclasses.replace(
            FACTS,
            checkpoint_id=CheckpointId(SESSION, 1, number),
            modified_files=["x" * 1000] * 1000,
            installed_packages=["x" * 1000] * 1000,
        )
        for number in range(1, 12)
    ]
    seen, request = [], pb.ListCheckpointsRequest()
    while True:
        page = convert.page(infos, request, 500)
        assert page.ByteSize() <= MAX_MESSAGE_BYTES
        assert page.checkpoints
        seen += [item.checkpoint_id for item in page.checkpoints]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert seen == [f"{SESSION}.1.{number}" for number in range(11, 0, -1)]


@given(
    st.sets(
        st.tuples(st.integers(0, 3), st.sampled_from("abc"), st.integers(1, 3), st.integers(1, 12)),
        max_size=40,
    ),
    st.integers(1, 9),
)
def test_pages_show_each_checkpoint_once_and_newest_first(keys, size):
    ids = {key[1:]: key[0] for key in keys}
    infos = [
        CheckpointInfo(
            checkpoint_id=CheckpointId("ses_" + letter * 32, epoch, number),
            chain=(number,),
            created_at_ms=created,
        )
        for (letter, epoch, number), created in ids.items()
    ]
    seen, request = [], pb.ListCheckpointsRequest(page_size=size)
    while True:
        page = convert.page(infos, request, 500)
        assert len(page.checkpoints) <= size
        seen += [item.checkpoint_id for item in page.checkpoints]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert sorted(seen) == sorted(str(info.checkpoint_id) for info in infos)
    times = {str(info.checkpoint_id): info.created_at_ms for info in infos}
    assert [times[one] for one in seen] == sorted(times.values(), reverse=True)


@given(st.text() | st.from_regex(r"[0-9]{1,3}\.ses_[0-9a-f]{32}\.[0-9]{1,12}\.[0-9]{1,12}"))
def test_any_page_token_is_read_or_refused(token):
    with contextlib.suppress(InvalidRequest):
        convert.position_in(token)


def test_what_a_restore_lost_is_told():
    view = _view()
    answer = convert.restored(
        Restored(session_id=SESSION, info=FACTS, lost="two tasks"), view, "w1"
    )
    assert (answer.lost, answer.worker_id) == ("two tasks", "w1")
    assert answer.state == common_pb2.SESSION_STATE_READY


def _view():
    from codegen_mcp.core.session import SessionConfig
    from codegen_mcp.testing.memory_sessions import MemorySessions

    return MemorySessions(1).view_of(SESSION, SessionConfig())
