from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp._proto.codegen.v1 import common_pb2, tools_pb2
from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import GIB, ResourceLimits
from codegen_mcp.core.session import SessionState
from codegen_mcp.core.task import EndedBy, Stream, TaskStatus
from codegen_mcp.engine.base import OutputEvent
from codegen_mcp.server import convert_sessions, convert_tasks
from codegen_mcp.server.convert_sessions import LIMITS, STATES, limits, limits_message
from codegen_mcp.server.convert_tools import BY_FIELD, BY_NAME, tool_call
from codegen_mcp.tools.registry import tools_by_name

DEFAULTS = ResourceLimits()


def test_every_member_of_an_enum_is_on_the_wire():
    assert set(STATES) == set(SessionState)
    assert set(convert_tasks.STATUSES) == set(TaskStatus)
    assert set(convert_tasks.ENDED_BY) == {None, *EndedBy}
    assert all(int(convert_tasks.ENDED_BY[member]) == member for member in EndedBy)
    assert all(int(convert_tasks.STATUSES[member]) == member for member in TaskStatus)


def test_every_limit_can_be_asked_for_and_is_shown():
    ours = {field.name for field in dataclasses.fields(ResourceLimits)}
    wire = {field.name for field in common_pb2.ResourceLimits.DESCRIPTOR.fields}
    assert {name for name, _ in LIMITS} == ours
    assert {name for _, names in LIMITS for name in names} == wire
    asked = common_pb2.ResourceLimits(**{names[0]: 7 for _, names in LIMITS})
    assert limits_message(limits(asked, DEFAULTS)) == asked


def test_no_limit_asked_for_is_the_default_itself():
    assert limits(common_pb2.ResourceLimits(), DEFAULTS) is DEFAULTS


def test_the_tighter_of_two_names_holds():
    asked = common_pb2.ResourceLimits(max_disk_bytes=5 * GIB, max_disk_per_session=2 * GIB)
    assert limits(asked, DEFAULTS).disk_bytes == 2 * GIB


def test_a_larger_disk_may_hold_a_larger_file():
    asked = common_pb2.ResourceLimits(max_disk_bytes=3 * GIB)
    assert limits(asked, DEFAULTS).file_size_bytes == 3 * GIB


def test_a_short_maximum_shortens_the_default_timeout():
    asked = common_pb2.ResourceLimits(max_timeout_seconds=5)
    assert limits(asked, DEFAULTS).timeout_s == 5


@pytest.mark.parametrize("name", [name for _, names in LIMITS for name in names])
def test_a_negative_limit_is_refused_by_name(name):
    with pytest.raises(InvalidRequest, match=name):
        limits(common_pb2.ResourceLimits(**{name: -1}), DEFAULTS)


def test_every_typed_tool_is_one_that_the_worker_has_and_every_member_leads_somewhere():
    members = {field.name for field in tools_pb2.ToolRequest.DESCRIPTOR.fields}
    assert set(BY_NAME) <= set(tools_by_name())
    assert members == {*BY_FIELD, "call"}


@pytest.mark.parametrize(
    "request_message",
    [
        tools_pb2.ToolRequest(echo=tools_pb2.EchoRequest(message="x", metadata={"k": "v"})),
        tools_pb2.ToolRequest(fs_read=tools_pb2.FsReadRequest(path="p", offset=1, length=2)),
        tools_pb2.ToolRequest(
            fs_write=tools_pb2.FsWriteRequest(path="p", data=b"\0", create_dirs=True, mode=0o755)
        ),
        tools_pb2.ToolRequest(
            fs_list=tools_pb2.FsListRequest(
                path="p", recursive=True, pattern="*", limit=3, offset=4
            )
        ),
        tools_pb2.ToolRequest(
            run_python=tools_pb2.RunPythonRequest(
                code="", args=["a"], env_vars={"A": "1"}, timeout_seconds=3, stdin=b"\xff"
            )
        ),
        tools_pb2.ToolRequest(
            pkg_install=tools_pb2.PkgInstallRequest(
                packages=["a"], upgrade=True, index_url="https://x", no_deps=True
            )
        ),
    ],
)
def test_what_is_set_in_a_typed_message_is_what_the_tool_is_given(request_message):
    field = request_message.WhichOneof("request")
    name, arguments = tool_call(request_message)
    model = tools_by_name()[name].spec.arguments.model_validate(arguments)
    for descriptor, value in getattr(request_message, field).ListFields():
        if descriptor.name == "metadata":
            continue
        given_value = getattr(model, descriptor.name)
        plain = dict(value) if descriptor.message_type else value
        plain = tuple(value) if descriptor.is_repeated and not descriptor.message_type else plain
        assert given_value == plain, descriptor.name


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=20))
def test_log_entries_are_the_bytes_and_their_text_however_they_are_split(data, sizes):
    decoder = convert_tasks.LogDecoder()
    entries, at = [], 0
    for size in [*sizes, len(data)]:
        piece = data[at : at + size]
        if piece:
            event = OutputEvent(stream=Stream.STDOUT, offset=at, data=piece, timestamp_ms=1)
            entries += decoder.entries(event)
        at += size
    entries += decoder.rest()
    assert b"".join(entry.data for entry in entries) == data
    assert "".join(entry.message for entry in entries) == data.decode("utf-8", "replace")


@given(st.text())
def test_any_page_token_is_read_or_refused(token):
    with contextlib.suppress(InvalidRequest):
        convert_sessions.page_start(token)
