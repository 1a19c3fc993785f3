from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from codegen_mcp.testing.wire import memory_worker

ROOT = Path(__file__).parent.parent.parent
CLIENT = """
import sys
import grpc
{imports}
with grpc.insecure_channel(sys.argv[1]) as channel:
    made = theirs_grpc.SessionManagementStub(channel).CreateSession(
        theirs_session.CreateSessionRequest(workspace_id="theirs")
    )
    request = theirs.TaskRequest(
        session_id=made.session_id,
        typed_request=theirs_tools.ToolRequest(echo=theirs_tools.EchoRequest(message="hi")),
    )
    request.extra = "a field that the worker does not know"
    (answer,) = theirs_task_grpc.TaskExecutionStub(channel).ExecuteTask(request)
    assert answer.result.typed_response.echo.message == "hi"
    status = ours_grpc.SessionManagementStub(channel).GetSessionStatus(
        ours.SessionStatusRequest(session_id=made.session_id)
    )
    assert status.info.workspace_id == "theirs"
assert type(made) is not ours.CreateSessionResponse
assert theirs.TaskRequest.DESCRIPTOR.full_name == "codegen.v1.TaskRequest"
"""
OURS = (
    "from codegen_mcp._proto.codegen.v1 import session_management_pb2 as ours",
    "from codegen_mcp._proto.codegen.v1 import session_management_pb2_grpc as ours_grpc",
)
THEIRS = (
    "from codegen.v1 import session_management_pb2 as theirs_session",
    "from codegen.v1 import session_management_pb2_grpc as theirs_grpc",
    "from codegen.v1 import task_execution_pb2 as theirs",
    "from codegen.v1 import task_execution_pb2_grpc as theirs_task_grpc",
    "from codegen.v1 import tools_pb2 as theirs_tools",
)


@pytest.fixture
def their_copy(tmp_path: Path) -> Path:
    """Generate a client from another, slightly different copy of the protos, as users do."""
    protos = tmp_path / "protos/codegen/v1"
    protos.mkdir(parents=True)
    for source in (ROOT / "proto/codegen/v1").glob("*.proto"):
        text = source.read_text()
        if source.name == "task_execution.proto":
            text = text.replace("uint64 sequence = 6;", "uint64 sequence = 6; string extra = 999;")
        (protos / source.name).write_text(text)
    out = tmp_path / "generated"
    out.mkdir()
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{tmp_path / 'protos'}"),
            *(f"--python_out={out}", f"--grpc_python_out={out}"),
            *sorted(map(str, protos.iterdir())),
        ],
        check=True,
    )
    return out


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
async def test_another_copy_of_the_protos_works_in_the_same_process(their_copy, order):
    imports = [*OURS, *THEIRS] if order == "ours first" else [*THEIRS, *OURS]
    program = CLIENT.format(imports="\n".join(imports))
    async with memory_worker() as worker:
        done = await run(program, worker.address, their_copy)
    assert done.returncode == 0, done.stderr


async def run(program: str, address: str, path: Path) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", program, address],
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
