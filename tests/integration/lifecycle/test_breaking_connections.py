"""Many callers over one TaskStream whose connection breaks again and again."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter

import pytest

from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, Outcome, PythonCode, Stream
from codegen_mcp.testing.cut_proxy import CutProxy
from codegen_mcp.testing.joined import joined_worker, open_hub
from codegen_mcp.testing.wire import exited

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]

TASKS = 60 if os.environ.get("CODEGEN_TEST_SOAK") else 6
"""Of each caller."""
CALLERS = 12


class Programs:
    """Each prints what its name says, in pieces and with pauses; counts how often it ran."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()

    @staticmethod
    def pieces(name: str) -> list[bytes]:
        chance = random.Random(name)
        return [
            f"{name}:{number}\n".encode() * chance.randint(1, 300)
            for number in range(chance.randint(1, 20))
        ]

    async def run(self, command: Command, sink: OutputSink) -> Outcome:
        assert isinstance(command.program, PythonCode)
        name = command.program.code.decode()
        self.runs[name] += 1
        for piece in self.pieces(name):
            await sink.write(Stream.STDOUT, piece)
            await asyncio.sleep(0.01)
        return exited()


@pytest.mark.parametrize("dialled", [False, True])
@pytest.mark.parametrize("breaks", ["reset", "freeze"])
async def test_every_answer_is_whole_and_every_task_runs_once(dialled, breaks):
    programs, chance = Programs(), random.Random(7)

    async def break_on(proxy: CutProxy) -> None:
        while True:
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            if breaks == "reset":
                await proxy.reset()
            else:
                proxy.freeze()
                await asyncio.sleep(chance.uniform(0.05, 0.8))
                proxy.mend()

    async with (
        open_hub(worker_lost_after_s=10, route_wait_s=20) as hub,
        CutProxy(int(hub.address.rpartition(":")[2])) as proxy,
        joined_worker(
            f"127.0.0.1:{proxy.port}", dialled=dialled, runner=programs.run, max_sessions=CALLERS
        ),
    ):
        await hub.linked()
        sessions = [await hub.wire.session() for _ in range(CALLERS)]

        async def call(caller: int) -> None:
            for number in range(1, TASKS + 1):
                name = f"{caller}-{number}"
                code = tools_pb2.RunPythonRequest(code=name)
                async with asyncio.timeout(60):
                    messages = await hub.wire.run(
                        sessions[caller],
                        tools_pb2.ToolRequest(run_python=code),
                        task_id=name,
                        sequence=number,
                    )
                assert messages[-1].HasField("result"), messages[-1]
                printed = b"".join(message.log.data for message in messages)
                assert printed == b"".join(programs.pieces(name))

        breaking = asyncio.create_task(break_on(proxy))
        try:
            await asyncio.gather(*(call(caller) for caller in range(CALLERS)))
        finally:
            breaking.cancel()
            await asyncio.gather(breaking, return_exceptions=True)
            proxy.mend()
        assert set(programs.runs.values()) == {1}
        assert len(programs.runs) == CALLERS * TASKS
