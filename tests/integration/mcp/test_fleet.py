"""Agents over MCP at a coordinator of two workers, each a process of its own."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx2
from mcp import Client

from codegen_mcp.testing.fleet_process import FleetProcess
from codegen_mcp.testing.serve_process import SMALL, state_place

from .conftest import NEW, OLD, facts

JOIN_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def fleet() -> AsyncIterator[str]:
    """Yields the URL of MCP once both workers have joined."""
    async with AsyncExitStack() as stack:
        base = stack.enter_context(state_place()).parent
        port = free_port()
        ours = {**SMALL, "CHECKPOINT_DIR": str(base / "store"), "HTTP_PORT": "auto"}

        async def start(command: str, name: str, **env: str) -> FleetProcess:
            log = base / f"{name}.log"
            all_env = {**ours, "BASE_WORKSPACE": str(base / name), "WORKER_ID": name, **env}
            process = FleetProcess(command, all_env, log)
            stack.push_async_callback(process.drain)
            await process.start()
            return process

        coordinator = await start(
            "coordinator", "coordinator", COORDINATOR_PORT="0", HTTP_PORT=str(port)
        )
        found = re.search(r"listening on (\S+:\d+)", coordinator.log)
        assert found is not None
        await asyncio.gather(
            *(
                start("worker", name, COORDINATOR_ADDR=found[1], MAX_SESSIONS="4")
                for name in ("one", "two")
            )
        )
        base_url = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient() as http, asyncio.timeout(JOIN_S):
            serving = 'coordinator_workers{state="serving"} 2.0'
            while serving not in (await http.get(f"{base_url}/metrics")).text:
                await asyncio.sleep(0.05)
        yield f"{base_url}/mcp"


async def test_agents_share_the_workers_and_each_keeps_its_session() -> None:
    async with fleet() as url:

        async def agent(number: int) -> tuple[str, str]:
            async with Client(url, mode=NEW if number % 2 else OLD) as client:
                wrote = facts(
                    await client.call_tool("fs_write", {"path": "me", "contents": str(number)})
                )
                session = {"session_id": wrote["session_id"]}
                code = {"code": "print(open('me').read())", **session}
                ran = facts(await client.call_tool("run_python", code))
                status = facts(await client.call_tool("session_status", session))
                return ran["stdout"], status["worker_id"]

        seen = await asyncio.gather(*(agent(number) for number in range(8)))
        assert [said for said, _ in seen] == [f"{number}\n" for number in range(8)]
        assert {worker for _, worker in seen} == {"one", "two"}
