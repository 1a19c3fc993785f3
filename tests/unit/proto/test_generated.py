from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as _loads_them_all  # noqa: F401
from codegen_mcp._proto.pool import POOL

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(scope="module")
def proto() -> ModuleType:
    spec = importlib.util.spec_from_file_location("proto_script", ROOT / "scripts/proto.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_code_is_what_the_protos_give(proto):
    assert proto.differences() == []


def test_generating_twice_gives_the_same_bytes(proto, tmp_path):
    for name in ("one", "two"):
        proto.generate(tmp_path / name)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "v1").iterdir()}
        for name in ("one", "two")
    )
    assert one == two


def test_the_protos_are_clean_and_break_nobody(proto):
    for arguments in (
        ("lint",),
        ("format", "--diff", "--exit-code"),
        ("breaking", "--against", str(proto.BASELINE)),
    ):
        assert proto.buf(*arguments) == 0, arguments


def test_importing_our_code_leaves_the_default_pool_alone():
    program = (
        "from codegen_mcp._proto.codegen.v1 import session_management_pb2\n"
        "from google.protobuf import descriptor_pool\n"
        "try:\n"
        "    descriptor_pool.Default().FindFileByName('codegen/v1/common.proto')\n"
        "except KeyError:\n"
        "    raise SystemExit(0)\n"
        "raise SystemExit(1)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("message", "field", "number"),
    [
        ("SessionInfo", "active_tasks", 7),
        ("TaskRequest", "typed_request", 3),
        ("TaskRequest", "on_disconnect", 200),
        ("TaskAssignment", "request", 3),
        ("ToolRequest", "call", 200),
        ("LogEntry", "data", 200),
        ("ExecutionMetadata", "stderr_omitted_bytes", 207),
        ("TaskExecutionMetadata", "stderr_omitted_bytes", 207),
        ("TaskStreamMessage", "session_created", 5),
        ("AttachTaskRequest", "stderr_offset", 4),
    ],
)
def test_a_field_has_its_number_for_ever(message, field, number):
    descriptor = POOL.FindMessageTypeByName(f"codegen.v1.{message}")
    assert descriptor.fields_by_name[field].number == number


STREAM_ONLY = 300


def test_what_was_added_to_a_task_message_has_its_twin_in_the_stream():
    twins = {
        "TaskRequest": "TaskAssignment",
        "LogEntry": "TaskLogEntry",
        "ExecutionMetadata": "TaskExecutionMetadata",
        "TaskError": "TaskStreamError",
        "ProgressUpdate": "TaskProgressUpdate",
    }
    for one, other in twins.items():
        ours, theirs = (
            {
                (field.name, field.number, field.type)
                for field in POOL.FindMessageTypeByName(f"codegen.v1.{name}").fields
                if 200 <= field.number < STREAM_ONLY
            }
            for name in (one, other)
        )
        assert ours == theirs, one
