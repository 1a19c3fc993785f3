from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from grpc import aio
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from prometheus_client.parser import text_string_to_metric_families

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp._proto.codegen.v1 import workspace_files_pb2 as files_pb
from codegen_mcp.core.errors import Unavailable
from codegen_mcp.telemetry.audit import AuditLog
from codegen_mcp.telemetry.audit_chain import Head, digest_of
from codegen_mcp.telemetry.audit_config import AuditConfig
from codegen_mcp.telemetry.audit_files import list_files, opened
from codegen_mcp.testing.access_rig import new_entry, write_tokens
from codegen_mcp.testing.serve_process import ServeProcess, serve_process
from codegen_mcp.testing.tenants import SECRET, two_tenants
from codegen_mcp.testing.wire import dial

Record = dict[str, Any]


def records(directory: Path) -> list[Record]:
    found: list[Record] = []
    for file in list_files(directory):
        with opened(file) as stream:
            for line in stream:
                try:
                    found.append(json.loads(line))
                except ValueError:  # what a kill has torn
                    continue
    return found


def outcome_of(found: Sequence[Record], **facts: Any) -> Record:
    """The one call with these facts: what was said before and after together."""
    (call,) = [
        one
        for one in found
        if one["kind"] in ("call", "done") and all(one.get(k) == v for k, v in facts.items())
    ]
    ends = [one for one in found if one["kind"] == "end" and one["call"] == call["call"]]
    return {**call, **(ends[0] if ends else {}), "ends": len(ends)}


def verified(*arguments: str) -> tuple[int, str]:
    command = "import sys; from codegen_mcp.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", command, "audit", "verify", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def python(code: str) -> tools_pb2.ToolRequest:
    return tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code))


async def calls_of_both_faces(server: ServeProcess, token: str, directory: Path) -> dict[str, str]:
    """Make some, and one that is still running at the end."""
    metadata = (("authorization", f"Bearer {token}"),)
    ids: dict[str, str] = {}
    async with dial(server.address) as wire:
        made = await wire.sessions.CreateSession(
            sessions_pb.CreateSessionRequest(), metadata=metadata
        )
        ids["session"] = made.session_id
        task = tasks_pb.TaskRequest(
            session_id=made.session_id,
            task_id="by-grpc",
            typed_request=python(f"print('{SECRET}'); raise SystemExit(3)"),
        )
        async for _ in wire.tasks.ExecuteTask(task, metadata=metadata):
            pass

        async def chunks() -> Any:
            header = files_pb.UploadHeader(session_id=made.session_id, path="in.txt")
            yield files_pb.UploadChunk(header=header)
            yield files_pb.UploadChunk(data=SECRET.encode())
            yield files_pb.UploadChunk(
                end=files_pb.UploadEnd(size=len(SECRET), sha256=digest_of(SECRET.encode()))
            )

        await wire.files.Upload(chunks(), metadata=metadata)
        missing = sessions_pb.SessionStatusRequest(session_id="ses_" + "0" * 32)
        with pytest.raises(aio.AioRpcError):
            await wire.sessions.GetSessionStatus(missing, metadata=metadata)
        async with (
            httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}) as http,
            Client(streamable_http_client(server.url, http_client=http)) as agent,
        ):
            ran = await agent.call_tool("run_python", {"code": f"print('{SECRET}')"})
            ids["mcp_session"] = (ran.structured_content or {})["session_id"]
            ids["mcp_task"] = (ran.structured_content or {})["task_id"]
            left = await agent.call_tool(
                "run_python",
                {
                    "session_id": ids["mcp_session"],
                    "code": "import time; time.sleep(0.2); raise SystemExit(5)",
                    "background": True,
                },
            )
            ids["background"] = (left.structured_content or {})["task_id"]
        async with asyncio.timeout(20):
            while not [one for one in records(directory) if one["kind"] == "task"]:
                await asyncio.sleep(0.05)
        task.task_id, task.typed_request.CopyFrom(python("import time; time.sleep(60)"))
        task.task_id = "killed"
        running = wire.tasks.ExecuteTask(task, metadata=metadata)
        reading = asyncio.ensure_future(running.read())
        status = tasks_pb.StatusRequest(session_id=made.session_id, task_id="killed")
        async with asyncio.timeout(20):
            while True:
                try:
                    answer = await wire.tasks.GetTaskStatus(status, metadata=metadata)
                except aio.AioRpcError:
                    await asyncio.sleep(0.02)
                    continue
                if answer.state == "running":
                    break
        server.process.kill()
        await asyncio.gather(reading, return_exceptions=True)
    return ids


async def gone_on_with(directory: Path) -> Head:
    """As the next start does; returns the head that it published last."""
    async with AuditLog(AuditConfig(directory=directory)) as log:
        pass
    return log.published


def test_calls_of_both_faces_are_recorded_also_when_the_process_is_killed(tmp_path: Path) -> None:
    token, entry = new_entry("alice")
    write_tokens(tmp_path / "tokens", entry)
    directory = tmp_path / "audit"
    settings = {
        "AUTH_TOKENS": str(tmp_path / "tokens"),
        "AUDIT_DIR": str(directory),
        "LOG_LEVEL": "info",
    }
    with serve_process(**settings) as server:
        ids = asyncio.run(calls_of_both_faces(server, token, directory))
        log = tmp_path / "log"
        log.write_bytes(server.log.read_bytes())
    head = asyncio.run(gone_on_with(directory))
    found = records(directory)

    ran = outcome_of(found, name="TaskExecution/ExecuteTask", task="by-grpc")
    assert ran["who"] == "alice"
    assert (ran["face"], ran["session"], ran["tool"]) == ("grpc", ids["session"], "run.python")
    assert (ran["status"], ran["ended_by"], ran["exit_code"]) == ("OK", "ENDED_BY_EXIT", 3)
    assert ran["stdout_bytes"] == len(SECRET) + 1
    assert ran["ms"] >= ran["ran_ms"] > 0
    assert len(ran["args_sha256"]) == 64
    sent = outcome_of(found, name="WorkspaceFiles/Upload")
    assert (sent["data_bytes"], sent["data_sha256"]) == (len(SECRET), digest_of(SECRET.encode()))
    assert sent["path"] == "in.txt"
    missing = outcome_of(found, name="SessionManagement/GetSessionStatus")
    assert (missing["status"], missing["reason"]) == ("NOT_FOUND", "SESSION_NOT_FOUND")

    first = next(one for one in found if one["kind"] == "call" and one["name"] == "run.python")
    assert (first["who"], first["face"]) == ("alice", "mcp")
    (end,) = [one for one in found if one["kind"] == "end" and one["call"] == first["call"]]
    assert (end["session"], end["task"]) == (ids["mcp_session"], ids["mcp_task"])
    assert (end["status"], end["ended_by"]) == ("OK", "exit")
    inner = [one["name"] for one in found if one.get("within") == first["call"]]
    assert {"SessionManagement/CreateSession", "TaskExecution/ExecuteTask"} <= set(inner)
    (late,) = [one for one in found if one["kind"] == "task" and one["task"] == ids["background"]]
    assert (late["ended_by"], late["result"]) == ("ENDED_BY_EXIT", "STATUS_FAILURE")

    killed = outcome_of(found, name="TaskExecution/ExecuteTask", task="killed")
    assert killed["ends"] == 0
    assert SECRET not in json.dumps(found)
    assert token not in json.dumps(found)
    code, said = verified("--dir", str(directory), "--log", str(log), "--head", str(head))
    assert code == 0, said
    assert "1 calls have no outcome" in said
    assert "2 published heads" in said
    last = list_files(directory)[-1].path
    last.write_bytes(b"".join(last.read_bytes().splitlines(keepends=True)[:-1]))
    code, said = verified("--dir", str(directory), "--head", str(head))
    assert code == 1
    assert "cut off" in said


async def test_contents_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    async with (
        two_tenants(tmp_path, audit_dir=str(directory), audit_contents=True) as tenants,
        tenants.agent(tenants.alice) as agent,
    ):
        await agent.call_tool("fs_read", {"session_id": tenants.hers.session, "path": "secret.txt"})
        page = await _metrics(tenants.served.mcp_url)
    found = records(directory)
    made = outcome_of(found, name="SessionManagement/CreateSession")
    assert SECRET in made["args"]
    read = outcome_of(found, name="fs.read", face="mcp")
    assert json.loads(read["args"])["path"] == "secret.txt"
    samples = {s.name: s for f in text_string_to_metric_families(page) for s in f.samples}
    assert Head.parse(samples["audit_head_info"].labels["head"]).sequence > 0


async def _metrics(mcp_url: str) -> str:
    async with httpx2.AsyncClient() as http:
        return (await http.get(mcp_url.removesuffix("/mcp") + "/metrics")).text


async def test_where_calls_cannot_be_recorded_none_is_made(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, audit_dir=str(tmp_path / "audit")) as tenants:
        log = tenants.served.local.routing.audit
        assert log is not None
        write = log._writer._write

        def full(data: bytes) -> None:
            raise OSError(28, "No space left on device")

        log._writer._write = full  # type: ignore[method-assign]
        task = tasks_pb.TaskRequest(
            session_id=tenants.hers.session, typed_request=python("open('made', 'w')")
        )
        alice = tenants.as_(tenants.alice)
        with pytest.raises(aio.AioRpcError) as error:
            await tenants.wire.tasks.ExecuteTask(task, metadata=alice).read()
        assert error.value.code().name == "UNAVAILABLE"
        async with tenants.agent(tenants.alice) as agent:
            result = await agent.call_tool("run_python", {"code": "1"})
            assert result.is_error
            assert "cannot be recorded" in result.content[0].text  # type: ignore[union-attr]
        log._writer._write = write  # type: ignore[method-assign]
        async with asyncio.timeout(10):
            while True:
                try:
                    await log.record({"kind": "probe"})
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
        listed = tasks_pb.ListTasksRequest(session_id=tenants.hers.session)
        tasks = await tenants.wire.tasks.ListTasks(listed, metadata=alice)
        assert len(tasks.tasks) == 1  # that of before
