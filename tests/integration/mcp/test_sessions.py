"""Whose session a call uses, and what is said of one that is not there any more."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx2
import pytest

from codegen_mcp.testing.serve_process import ServeProcess

from .conftest import NEW, OLD, Agent, Connect, facts, text
from .test_end_to_end import BEATING

DEADLINE_S = 30.0


async def test_without_connections_a_call_that_names_no_session_gets_one_of_its_own(
    connect: Connect,
) -> None:
    async with connect("http", NEW) as agent:
        first = await agent.client.call_tool("fs_write", {"path": "a", "contents": "1"})
        second = await agent.client.call_tool("fs_list", {})
        assert facts(second)["files"] == []
        made = facts(first)["session_id"]
        assert made != facts(second)["session_id"]
        assert f"Pass session_id={made!r}" in text(first)
        assert "60 s" in facts(first)["notice"]
        named = await agent.client.call_tool("fs_list", {"session_id": made})
        assert [one["path"] for one in facts(named)["files"]] == ["a"]
        assert facts(named)["notice"] == ""


async def test_a_connection_has_a_session_of_its_own(connect: Connect) -> None:
    async with connect("http", OLD) as one, connect("http", OLD) as two:
        await one.client.call_tool("fs_write", {"path": "a", "contents": "1"})
        mine = facts(await one.client.call_tool("fs_list", {}))
        other = facts(await two.client.call_tool("fs_list", {}))
        assert [[file["path"] for file in listed["files"]] for listed in (mine, other)] == [
            ["a"],
            [],
        ]
        assert (await one.client.call_tool("session_status", {})).structured_content[
            "session_id"
        ] == mine["session_id"]

        await two.call("session_destroy", session_id=mine["session_id"])
        after = await one.client.call_tool("fs_list", {})
        assert facts(after)["files"] == []
        assert "has ended and its files and packages are gone" in text(after)
        assert facts(after)["session_id"] != mine["session_id"]


async def test_a_session_that_expired_comes_back_and_the_answer_says_what_was_lost(
    connect: Connect,
) -> None:
    async with connect("http", NEW) as agent:
        made = facts(await agent.call("session_create", idle_timeout_seconds=1))["session_id"]
        await agent.call("fs_write", path="kept", contents="1", session_id=made)
        await _until_gone(agent, made)
        answer = await agent.call("fs_read", path="kept", session_id=made)
        told = facts(answer)
        assert told["contents"] == "1"
        assert told["session_id"] == made
        assert told["restored_from"].startswith(made)
        assert told["lost"]
        assert "had expired and was restored from checkpoint" in text(answer)


async def test_a_session_that_cannot_come_back_is_said_to_be_gone(connect: Connect) -> None:
    async with connect("http", NEW) as agent:
        made = facts(await agent.call("session_create"))["session_id"]
        await agent.call("session_destroy", session_id=made)
        for session_id in (made, "ses_" + 32 * "0"):
            answer = await agent.call("fs_list", session_id=session_id)
            assert answer.is_error
            assert "session_create" in text(answer)


@pytest.mark.parametrize("mode", [OLD, NEW])
async def test_a_caller_that_vanishes_ends_its_code_but_not_what_runs_in_the_background(
    served: ServeProcess, connect: Connect, mode: str
) -> None:
    async with connect("http", NEW) as agent:
        await agent.run("1")
        took = [await _vanish(served, agent, mode)]
        while took[-1] >= 1 and len(took) < 3:
            took.append(await _vanish(served, agent, mode))
        assert took[-1] < 1, took
        code = "import time\nprint('begun', flush=True)\ntime.sleep(0.3)\nprint('done')"
        call = {"name": "run_python", "arguments": {"code": code, "background": True}}
        call["arguments"]["session_id"] = agent.session_id  # type: ignore[index]
        async with httpx2.AsyncClient() as http:
            answer = await http.post(
                served.url, json=_request(mode, call), headers=await _headers(http, served, mode)
            )
        task_id = _result(answer.text)["structuredContent"]["task_id"]
        result = facts(await agent.call("task_result", task_id=task_id))
        assert (result["ended_by"], result["stdout"]) == ("exit", "begun\ndone\n")


async def _vanish(served: ServeProcess, agent: Agent, mode: str) -> float:
    """Leave in the middle of a call; how long its code went on, in seconds."""
    await agent.call("fs_write", path="beat", contents="0")
    arguments = {"code": BEATING, "session_id": agent.session_id}
    call = {"name": "run_python", "arguments": arguments}
    async with httpx2.AsyncClient(timeout=DEADLINE_S) as http:
        headers = await _headers(http, served, mode)

        async def post() -> None:
            await http.post(served.url, json=_request(mode, call), headers=headers)

        posting = asyncio.create_task(post())
        async with asyncio.timeout(DEADLINE_S):
            while facts(await agent.call("fs_read", path="beat"))["contents"] == "0":
                assert not posting.done()
        left = time.time()
        posting.cancel()
        await asyncio.wait([posting])
    async with asyncio.timeout(DEADLINE_S):
        return float((await agent.run("print(open('beat').read())"))["stdout"]) - left


def _request(mode: str, call: dict[str, Any]) -> dict[str, Any]:
    meta = {
        "io.modelcontextprotocol/protocolVersion": NEW,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {**call, **({"_meta": meta} if mode == NEW else {})}
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}


def _result(body: str) -> dict[str, Any]:
    data = next((line[6:] for line in body.splitlines() if line.startswith("data: {")), body)
    result = json.loads(data)["result"]
    assert isinstance(result, dict)
    return result


async def _headers(http: httpx2.AsyncClient, served: ServeProcess, mode: str) -> dict[str, str]:
    accept = {"accept": "application/json, text/event-stream"}
    if mode == NEW:
        return {
            **accept,
            "mcp-protocol-version": NEW,
            "mcp-method": "tools/call",
            "mcp-name": "run_python",
        }
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "raw", "version": "1"},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    answer = await http.post(served.url, json=body, headers=accept)
    headers = {**accept, "mcp-session-id": answer.headers["mcp-session-id"]}
    headers["mcp-protocol-version"] = "2025-11-25"
    body = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    await http.post(served.url, json=body, headers=headers)
    return headers


async def _until_gone(agent: Agent, session_id: str) -> None:
    """Wait until the session is saved and asleep."""
    page = ""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            listed = facts(await agent.call("session_list", page=page))
            for one in listed["sessions"]:
                if one["session_id"] == session_id and one["state"] == "asleep":
                    assert one["notice"]
                    return
            page = listed["next_page"]
            if not page:
                await asyncio.sleep(0.05)
