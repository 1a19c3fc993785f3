"""Workers that are served over their TaskStream, when the way to the coordinator breaks or ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from structlog.testing import capture_logs

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, Outcome, Stream
from codegen_mcp.testing.cut_proxy import CutProxy
from codegen_mcp.testing.joined import LOST_AFTER_S, Hub, joined_worker, open_hub
from codegen_mcp.testing.wire import dial, exited
from codegen_mcp.testing.worker import in_process_worker, state_directory

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(90)]


DETACHED = {"on_disconnect": tasks_pb.ON_DISCONNECT_DETACH}


def python(code: str) -> tools_pb2.ToolRequest:
    return tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code))


async def stdout(hub: Hub, session_id: str, code: str, **fields) -> str:
    async with asyncio.timeout(30):
        last = (await hub.wire.run(session_id, python(code), **fields))[-1]
    assert last.HasField("result"), last
    return last.result.typed_response.run_python.stdout


class Lines:
    """Code that prints numbered lines, and waits at a gate after the first half."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.gate = asyncio.Event()
        self.runs = 0

    async def run(self, command: Command, sink: OutputSink) -> Outcome:
        self.runs += 1
        for number in range(self.count):
            if number == self.count // 2:
                await self.gate.wait()
            await sink.write(Stream.STDOUT, f"{number:06}\n".encode())
        return exited()

    @property
    def text(self) -> bytes:
        return b"".join(f"{number:06}\n".encode() for number in range(self.count))


async def until(holds, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_caller_sees_each_byte_once_though_the_connection_breaks_under_the_task():
    lines = Lines(1_000)
    async with (
        open_hub() as hub,
        CutProxy(int(hub.address.rpartition(":")[2])) as proxy,
        joined_worker(f"127.0.0.1:{proxy.port}", runner=lines.run) as joined,
    ):
        await hub.linked()
        session_id = await hub.wire.session()
        task = asyncio.create_task(hub.wire.run(session_id, python("x"), task_id="t", sequence=1))
        await until(lambda: lines.runs)
        for number in range(3):
            first = (await hub.linked()).link
            await proxy.reset()
            await until(
                lambda first=first: (
                    hub.coordinator.routing.workers.all()
                    and hub.coordinator.routing.workers.all()[0].link not in (None, first)
                )
            )
            if number == 1:
                lines.gate.set()
        async with asyncio.timeout(20):
            messages = await task
        assert b"".join(m.log.data for m in messages) == lines.text
        assert messages[-1].HasField("result")
        assert lines.runs == 1
        assert joined.agent.incarnation == 1


async def test_a_coordinator_that_restarts_serves_the_sessions_that_are_there():
    lines = Lines(2)
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(state_directory())
        async with open_hub(state) as first:
            port = int(first.address.rpartition(":")[2])
            joined = await stack.enter_async_context(joined_worker(first.address, runner=lines.run))
            await first.linked()
            session_id = await first.wire.session()
            task = asyncio.create_task(
                first.wire.run(session_id, python("x"), task_id="t", sequence=1, **DETACHED)
            )
            await until(lambda: lines.runs)
        await asyncio.gather(task, return_exceptions=True)
        async with open_hub(state, coordinator_port=port) as second:
            lines.gate.set()
            assert await stdout(second, session_id, "x", task_id="t", sequence=1, **DETACHED)
            assert lines.runs == 1
            assert joined.agent.incarnation == 1  # the same start of the worker
            status = await second.wire.sessions.GetSessionStatus(
                pb.SessionStatusRequest(session_id=session_id)
            )
            assert status.info.epoch == 1


async def test_a_worker_that_was_away_too_long_ends_what_another_has_taken_over(tmp_path):
    tmp_path.chmod(0o755)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(open_hub())
        port = int(hub.address.rpartition(":")[2])
        proxy = await stack.enter_async_context(CutProxy(port))
        common = {"checkpoint_dir": str(tmp_path / "store"), "advertise_addr": "off"}
        far = await stack.enter_async_context(
            in_process_worker(coordinator_addr=f"127.0.0.1:{proxy.port}", worker_id="far", **common)
        )
        near = await stack.enter_async_context(
            in_process_worker(coordinator_addr=hub.address, worker_id="near", **common)
        )
        await hub.linked("far")
        await hub.linked("near")
        moved = await hub.wire.session(worker_id="far", config=pb.SessionConfig(auto_restore=True))
        alone = await hub.wire.session(worker_id="far")
        await stdout(hub, moved, "open('f', 'w').write('saved')")
        await hub.wire.sessions.CheckpointSession(pb.CheckpointRequest(session_id=moved))
        await stdout(hub, moved, "open('f', 'w').write('not saved')")

        proxy.freeze()
        await until(lambda: hub.coordinator.routing.workers.named("far") is None)
        assert await stdout(hub, moved, "print(open('f').read())") == "saved\n"
        status = await hub.wire.sessions.GetSessionStatus(pb.SessionStatusRequest(session_id=moved))
        assert (status.worker_id, status.info.epoch) == ("near", 2)
        held = far.engine.sessions.ownership.held
        assert moved in held()  # nobody has told it yet

        proxy.mend()
        await hub.linked("far", within_s=30)
        await until(lambda: moved not in held())
        assert near.engine.sessions.ownership.held()[moved] == 2
        # What nobody took over is its own again, under an epoch that the late start never had.
        assert await stdout(hub, alone, "print('here')") == "here\n"
        assert held()[alone] == 2
        assert await stdout(hub, moved, "print(open('f').read())") == "saved\n"


async def test_a_worker_that_restarts_goes_on_with_its_sessions():
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(open_hub(worker_lost_after_s=LOST_AFTER_S * 5))
        state = await stack.enter_async_context(state_directory())
        options = {
            "base_workspace": state,
            "coordinator_addr": hub.address,
            "advertise_addr": "off",
            "worker_id": "far",
        }
        async with in_process_worker(**options):
            await hub.linked("far")
            session_id = await hub.wire.session()
            await stdout(hub, session_id, "open('f', 'w').write('kept')", task_id="t1", sequence=1)
        async with in_process_worker(**options) as again:
            assert await stdout(hub, session_id, "print(open('f').read())") == "kept\n"
            assert dict(again.engine.sessions.ownership.held()) == {session_id: 2}
            assert again.agent is not None
            assert again.agent.incarnation == 2


async def test_two_starts_of_one_worker_id_do_not_take_turns():
    async with open_hub() as hub, joined_worker(hub.address) as first:
        await hub.linked()
        session_id = await hub.wire.session()
        async with joined_worker(hub.address) as second:
            await until(lambda: second.agent.incarnation == 2)
            link = (await hub.linked()).link
            await until(lambda: not first.agent.joined.is_set())
            await asyncio.sleep(3 * LOST_AFTER_S / 10)
            assert (await hub.linked()).link is link
            assert second.agent.joined.is_set()
            assert not first.agent.joined.is_set()
            assert session_id not in second.worker.engine.sessions.ownership.held()


async def test_a_coordinator_that_winds_down_lets_calls_end_and_does_not_wait_for_streams():
    lines = Lines(2)
    async with open_hub() as hub, joined_worker(hub.address, runner=lines.run) as joined:
        await hub.linked()
        session_id = await hub.wire.session()
        task = asyncio.create_task(hub.wire.run(session_id, python("x"), task_id="t"))
        await until(lambda: lines.runs)
        ending = asyncio.create_task(hub.coordinator.wind_down(60))
        await asyncio.sleep(0.3)  # some heartbeats: the worker is still with it
        assert joined.agent.joined.is_set()
        lines.gate.set()
        async with asyncio.timeout(20):
            assert (await task)[-1].HasField("result")
            await ending


async def test_a_caller_that_leaves_without_reading_is_nobodys_fault():
    async def much(command: Command, sink: OutputSink) -> Outcome:
        for _ in range(12):
            await sink.write(Stream.STDOUT, b"x" * 1_000_000)
        return exited()

    async with open_hub() as hub, joined_worker(hub.address, runner=much) as joined:
        await hub.linked()
        session_id = await hub.wire.session()
        with capture_logs() as logs:
            async with dial(hub.address) as other:
                request = tasks_pb.TaskRequest(session_id=session_id, typed_request=python("x"))
                call = other.tasks.ExecuteTask(request)
                assert (await anext(aiter(call))).log.data
                await asyncio.sleep(0.3)  # by then everything that may be on its way is
                call.cancel()
            await until(
                lambda: hub.coordinator.server.in_flight == hub.coordinator.lifecycle.streams
            )
            await until(lambda: not joined.agent._tasks._runs)
        assert not [one for one in logs if one["log_level"] == "error"]
