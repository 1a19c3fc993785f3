"""A worker of ours under a coordinator by others, which knows the plain protocol alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest

from codegen_mcp._proto.codegen.v1 import common_pb2, tools_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Command, Outcome, PythonCode, Stream
from codegen_mcp.testing.joined import Joined, joined_worker
from codegen_mcp.testing.plain_coordinator import PlainCoordinator, serving
from codegen_mcp.testing.wire import exited

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

SESSION = "5d3c7a1e-0000-4000-8000-c0ffee000001"
"""An id as other coordinators make them."""


def echo(text: str = "hi") -> tools_pb2.ToolRequest:
    return tools_pb2.ToolRequest(echo=tools_pb2.EchoRequest(message=text))


def python(code: str) -> tools_pb2.ToolRequest:
    return tools_pb2.ToolRequest(run_python=tools_pb2.RunPythonRequest(code=code))


class Code:
    """Stands in for running code: what it did, and a gate that programs wait at."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.cancelled: list[str] = []
        self.gate = asyncio.Event()
        self.changed = asyncio.Event()

    async def run(self, command: Command, sink: OutputSink) -> Outcome:
        assert isinstance(command.program, PythonCode)
        code = command.program.code.decode()
        self.began.append(code)
        self.changed.set()
        await sink.write(Stream.STDOUT, f"began {code}\n".encode())
        if code.startswith("wait"):
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.append(code)
                self.changed.set()
                raise
        if code.startswith("print"):
            await sink.write(Stream.STDOUT, b"x" * int(code.split()[1]))
        return exited()

    async def until(self, holds) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    hub: PlainCoordinator
    joined: Joined
    code: Code
    port: int


@asynccontextmanager
async def pair(hub: PlainCoordinator | None = None, **changes) -> AsyncIterator[Pair]:
    """A plain coordinator with one worker, whose stream is open."""
    hub, code = hub or PlainCoordinator(), Code()
    async with (
        serving(hub) as port,
        joined_worker(f"127.0.0.1:{port}", runner=code.run, **changes) as joined,
    ):
        if not hub.refuse:
            await hub.until(lambda: hub.streams)
        yield Pair(hub=hub, joined=joined, code=code, port=port)


@pytest.mark.parametrize("identify", ["metadata", "keepalive"])
async def test_a_worker_joins_a_coordinator_however_that_tells_its_streams(identify):
    async with pair(PlainCoordinator(identify)) as two:
        hub = two.hub
        (registration,) = hub.registrations
        assert registration.worker_id == "memory-worker"
        assert {"echo", "fs.read", "run.python"} <= set(registration.capabilities.supported_tools)
        assert registration.capabilities.max_sessions == 8
        assert registration.version
        await hub.until(lambda: len(hub.heartbeats) >= 2)
        beat = hub.heartbeats[-1]
        assert (beat.worker_id, {beat.session_id}) == ("memory-worker", hub.known)
        assert beat.status.state == pb.WorkerStatus.STATE_IDLE
        assert beat.capacity.available_sessions == 8
        assert (await hub.create(SESSION, workspace_id="w", user_id="u")).success
        hub.assign("task-1", SESSION, echo("hello"), sequence=1)
        ending = await hub.ending("task-1")
        assert ending.result.response.echo.message == "hello"
        assert ending.result.status == pb.TaskStreamResult.STATUS_SUCCESS
        assert hub.strange() == []  # no frame that it could not know


async def test_a_session_has_the_coordinators_id_and_tells_its_metadata_with_results():
    async with pair() as two:
        hub = two.hub
        made = await hub.create(SESSION, metadata={"team": "red"}, env_vars={"A": "1"})
        assert (made.session_id, made.success, made.error) == (SESSION, True, "")
        assert dict(made.metadata) == {"team": "red"}
        hub.assign("task-1", SESSION, echo(), sequence=7)
        result = (await hub.ending("task-1")).result
        assert (result.sequence, dict(result.session_metadata)) == (7, {"team": "red"})
        await hub.until(lambda: any(beat.capacity.sessions for beat in hub.heartbeats))
        named = {info.session_id for beat in hub.heartbeats for info in beat.capacity.sessions}
        assert named == {SESSION}


async def test_a_session_that_is_asked_for_again_is_the_same_one():
    async with pair() as two:
        first = await two.hub.create(SESSION, workspace_id="w", metadata={"a": "b"})
        again = await two.hub.create(SESSION, workspace_id="w", metadata={"a": "b"})
        assert first == again
        assert len(two.joined.worker.engine.sessions.list()) == 1
        other = await two.hub.create(SESSION, workspace_id="another")
        assert not other.success
        assert "ALREADY_EXISTS" in other.error


async def test_a_session_that_cannot_be_made_says_why():
    async with pair(max_sessions=1) as two:
        assert (await two.hub.create("one")).success
        refused = await two.hub.create("two")
        assert not refused.success
        assert refused.error.startswith("RESOURCE_EXHAUSTED: ")


async def test_a_task_may_follow_the_creation_of_its_session_at_once():
    async with pair() as two:
        two.hub.send(session_create=pb.SessionCreateRequest(session_id=SESSION))
        two.hub.assign("task-1", SESSION, echo("soon"))
        assert (await two.hub.ending("task-1")).result.response.echo.message == "soon"


async def test_what_never_became_a_task_is_an_error_that_names_its_status():
    async with pair() as two:
        two.hub.assign("task-1", "no such session", echo())
        error = (await two.hub.ending("task-1")).error
        assert (error.code, error.retriable) == ("NOT_FOUND", False)
        assert "SESSION_NOT_FOUND" in error.details
        await two.hub.create(SESSION)
        two.hub.assign("task-2", SESSION, tools_pb2.ToolRequest())
        assert (await two.hub.ending("task-2")).error.code == "INVALID_ARGUMENT"


async def test_a_task_that_is_sent_again_is_answered_from_its_record_and_not_run_again():
    async with pair() as two:
        hub = two.hub
        await hub.create(SESSION)
        hub.assign("task-1", SESSION, python("once"), sequence=1)
        first = await hub.ending("task-1")
        hub.assign("task-1", SESSION, python("once"), sequence=1)
        assert await hub.ending("task-1", count=2) == first
        assert two.code.began == ["once"]


async def test_a_task_that_is_sent_again_while_it_runs_has_one_end():
    async with pair() as two:
        hub = two.hub
        await hub.create(SESSION)
        for _ in range(3):
            hub.assign("task-1", SESSION, python("wait"), sequence=1)
        hub.assign("task-2", SESSION, echo(), sequence=2)
        await hub.ending("task-2")  # it came after those, and they were taken
        two.code.gate.set()
        await hub.ending("task-1")
        hub.assign("task-3", SESSION, echo(), sequence=3)
        await hub.ending("task-3")
        assert len(hub.endings("task-1")) == 1
        assert two.code.began == ["wait"]


async def test_numbers_may_have_gaps_and_an_old_number_is_never_run():
    async with pair() as two:
        hub = two.hub
        await hub.create(SESSION)
        for number in (1, 5, 9):
            hub.assign(f"task-{number}", SESSION, echo(), sequence=number)
            assert (await hub.ending(f"task-{number}")).HasField("result")
        hub.assign("task-late", SESSION, python("late"), sequence=3)
        late = (await hub.ending("task-late")).error
        assert (late.code, "OUTCOME_UNKNOWN" in late.details) == ("FAILED_PRECONDITION", True)
        hub.assign("task-other", SESSION, python("other"), sequence=9)
        assert (await hub.ending("task-other")).error.code == "ALREADY_EXISTS"
        assert two.code.began == []


async def test_numbered_tasks_are_taken_in_the_order_of_the_stream():
    async with pair() as two:
        hub = two.hub
        await hub.create(SESSION)
        for number in range(1, 41):
            hub.assign(f"task-{number}", SESSION, python(f"{number}"), sequence=number)
        for number in range(1, 41):
            assert (await hub.ending(f"task-{number}")).HasField("result"), number
        assert two.code.began == [str(number) for number in range(1, 41)]


async def test_output_arrives_while_the_code_runs():
    async with pair() as two:
        hub = two.hub
        await hub.create(SESSION)
        hub.assign("task-1", SESSION, python("wait"))
        await hub.until(lambda: hub.responses("task-1"))
        assert hub.responses("task-1")[0].log.message == "began wait\n"
        assert not hub.endings("task-1")
        two.code.gate.set()
        ended = (await hub.ending("task-1")).result
        assert ended.metadata.exit_code == 0
        assert ended.metadata.ended_by == common_pb2.ENDED_BY_EXIT


async def test_a_task_goes_on_over_a_broken_stream_and_its_end_comes_over_the_next_one():
    async with pair() as two:
        hub = two.hub
        await hub.create(SESSION)
        hub.assign("task-1", SESSION, python("wait"), sequence=1)
        await hub.until(lambda: hub.responses("task-1"))
        hub.drop_stream()
        await hub.until(lambda: hub.streams == 2)
        two.code.gate.set()
        assert (await hub.ending("task-1")).HasField("result")
        assert len(hub.registrations) == 1  # one that beats need not register again
        hub.assign("task-1", SESSION, python("wait"), sequence=1)
        await hub.ending("task-1", count=2)
        assert two.code.began == ["wait"]


async def test_what_ended_while_there_was_no_stream_is_told_over_the_next_one():
    async with pair(lifecycle={"backoff_s": (1.0, 2.0)}) as two:
        hub = two.hub
        await hub.create(SESSION)
        hub.assign("task-1", SESSION, python("wait"))
        await hub.until(lambda: hub.responses("task-1"))
        hub.drop_stream()
        await asyncio.sleep(0.05)  # the stream is gone by then, and if not, the end comes over it
        two.code.gate.set()
        assert (await hub.ending("task-1")).HasField("result")


async def test_a_task_ends_when_nobody_comes_back_for_it():
    hub, code = PlainCoordinator(), Code()
    async with AsyncExitStack() as stack:
        async with serving(hub) as port:
            await stack.enter_async_context(
                joined_worker(f"127.0.0.1:{port}", runner=code.run, lifecycle={"grace_s": 0.2})
            )
            await hub.until(lambda: hub.streams)
            await hub.create(SESSION)
            hub.assign("task-1", SESSION, python("wait"))
            await hub.until(lambda: hub.responses("task-1"))
            assert not code.cancelled
        await code.until(lambda: code.cancelled)
        assert code.cancelled == ["wait"]


async def test_a_coordinator_that_restarts_finds_its_worker_again():
    first, code = PlainCoordinator(), Code()
    async with serving(first) as port:
        worker = joined_worker(f"127.0.0.1:{port}", runner=code.run)
        joined = await worker.__aenter__()
        await first.until(lambda: first.streams)
        await first.create(SESSION)
        first.assign("task-1", SESSION, python("wait"), sequence=1)
        await first.until(lambda: first.responses("task-1"))
    try:
        second = PlainCoordinator()
        async with serving(second, port):
            await second.until(lambda: second.streams)
            assert second.registrations[0].worker_id == "memory-worker"
            second.assign("task-1", SESSION, python("wait"), sequence=1)
            code.gate.set()
            assert (await second.ending("task-1")).HasField("result")
            assert code.began == ["wait"]
            assert len(joined.worker.engine.sessions.list()) == 1
    finally:
        await worker.__aexit__(None, None, None)


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAUTHENTICATED])
async def test_a_worker_that_is_not_known_any_more_registers_again(code):
    async with pair() as two:
        hub = two.hub
        hub.beat_error = code
        await hub.until(lambda: len(hub.registrations) >= 2)
        hub.beat_error = None
        await hub.until(lambda: not hub.heartbeats[-1].session_id.startswith("registration-1-"))
        await hub.until(lambda: hub.streams >= 2)
        assert (await hub.create(SESSION)).success


async def test_the_command_to_register_again_is_obeyed():
    async with pair() as two:
        hub = two.hub
        hub.answer = lambda beat: pb.HeartbeatResponse(
            continue_serving=True,
            commands=["register"] if beat.session_id.startswith("registration-1-") else [],
        )
        await hub.until(lambda: len(hub.registrations) == 2)
        beats = len(hub.heartbeats)
        await hub.until(lambda: len(hub.heartbeats) > beats)
        assert len(hub.registrations) == 2


@pytest.mark.parametrize(
    "answer",
    [
        pb.HeartbeatResponse(continue_serving=True, commands=["unheard of", "drain"]),
        pb.HeartbeatResponse(continue_serving=False),
    ],
)
async def test_a_worker_that_shall_not_go_on_is_asked_to_drain(answer):
    async with pair() as two:
        assert not two.joined.agent.drain_asked.is_set()
        two.hub.answer = lambda beat: answer
        async with asyncio.timeout(10):
            await two.joined.agent.drain_asked.wait()


async def test_a_draining_worker_says_so_finishes_and_deregisters():
    async with pair() as two:
        hub = two.hub
        await hub.create(SESSION)
        hub.assign("task-1", SESSION, python("wait"))
        await hub.until(lambda: hub.responses("task-1"))
        await two.joined.worker.server.drain()
        two.joined.agent.tell_now()
        draining = pb.WorkerStatus.STATE_DRAINING
        await hub.until(lambda: hub.heartbeats[-1].status.state == draining)
        hub.assign("task-2", SESSION, echo())
        assert (await hub.ending("task-2")).error.code == "UNAVAILABLE"
        assert not (await hub.create("another")).success
        two.code.gate.set()
        await hub.ending("task-1")
        assert await two.joined.agent.leave("drained")
        assert len(hub.endings("task-1")) == 1
        (left,) = hub.left
        assert (left.worker_id, left.reason) == ("memory-worker", "drained")
        assert {left.session_id} == hub.known
        streams = hub.streams
        await asyncio.sleep(0.3)
        assert hub.streams == streams  # it stays away


async def test_a_worker_that_is_refused_asks_again():
    hub = PlainCoordinator()
    hub.refuse = "not now"
    async with pair(hub) as two:
        await hub.until(lambda: len(hub.registrations) >= 3)
        assert not two.joined.agent.joined.is_set()
        hub.refuse = ""
        await hub.until(lambda: hub.streams)
        assert (await hub.create(SESSION)).success


async def test_a_worker_joins_a_coordinator_that_comes_later():
    hub = PlainCoordinator()
    async with serving(hub) as port:
        pass
    async with joined_worker(f"127.0.0.1:{port}") as joined:
        async with serving(hub, port):
            await hub.until(lambda: hub.streams)
            async with asyncio.timeout(10):
                await joined.agent.joined.wait()


async def test_a_coordinator_that_does_not_read_stops_no_session_and_no_heartbeat():
    async with pair() as two:
        hub = two.hub
        await hub.create(SESSION)
        hub.reads = False
        for number in range(4):
            hub.assign(f"task-{number}", SESSION, python(f"print {8_000_000}"))
        await two.code.until(lambda: len(two.code.began) == 4)
        beats = len(hub.heartbeats)
        await hub.until(lambda: len(hub.heartbeats) > beats)
        capacity = await two.joined.worker.wire.sessions.GetCapacity(sessions_pb.CapacityRequest())
        assert capacity.active_sessions == 1
        hub.resume()
        for number in range(4):
            assert (await hub.ending(f"task-{number}")).HasField("result")


async def test_anybody_may_call_a_worker_whose_coordinator_knows_of_no_dial_token():
    async with pair() as two:
        answer = await two.joined.worker.wire.sessions.GetCapacity(sessions_pb.CapacityRequest())
        assert answer.worker_id == "memory-worker"


async def test_a_coordinator_that_dials_finds_the_address():
    async with pair(dialled=True) as two:
        assert two.hub.registrations[0].grpc_address == two.joined.worker.address
