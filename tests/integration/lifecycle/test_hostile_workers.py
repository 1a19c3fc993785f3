"""Workers that lie, flood or stall: they harm themselves, and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest
from grpc import aio

from codegen_mcp._proto.codegen.v1 import common_pb2, tools_pb2
from codegen_mcp._proto.codegen.v1 import session_management_pb2 as pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as lifecycle_pb
from codegen_mcp.coordinator.stream_link import StreamLink
from codegen_mcp.coordinator.worker_identity import REGISTRATION
from codegen_mcp.testing.joined import Hub, Joined, joined_worker, open_hub
from codegen_mcp.testing.plain_worker import PlainWorker, plain_worker

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

VICTIM = "victim"


def echo(text: str) -> tools_pb2.ToolRequest:
    return tools_pb2.ToolRequest(echo=tools_pb2.EchoRequest(message=text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    hub: Hub
    victim: Joined
    session_id: str
    hostile: PlainWorker

    async def assert_unharmed(self) -> None:
        """The victim's session works, on its worker, under its epoch."""
        async with asyncio.timeout(10):
            last = (await self.hub.wire.run(self.session_id, echo("well")))[-1]
        assert last.result.typed_response.echo.message == "well"
        request = pb.SessionStatusRequest(session_id=self.session_id)
        status = await self.hub.wire.sessions.GetSessionStatus(request)
        assert (status.worker_id, status.info.epoch) == (VICTIM, 1)
        row = await self.hub.coordinator.routing.directory.get(self.session_id)
        assert row is not None
        assert (row.owner.worker_id, row.epoch, row.checkpoint_id) == (VICTIM, 1, "")
        assert self.session_id in self.victim.worker.engine.sessions.ownership.held()

    async def join(self, **hello) -> StreamLink:
        """The hostile one becomes a worker that takes all frames, and beats."""
        registered = await self.hostile.register(start_id="start")
        await self.hostile.open_stream(((REGISTRATION, registered.session_id),))
        said = {"worker_id": "hostile", "incarnation": registered.incarnation, "calls": True}
        await self.hostile.send(hello=lifecycle_pb.StreamHello(**{**said, **hello}))
        link = (await self.hub.linked("hostile")).link
        assert isinstance(link, StreamLink)
        return link


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with (
        open_hub() as hub,
        joined_worker(hub.address, VICTIM) as victim,
        plain_worker(hub.address, "hostile") as hostile,
    ):
        await hub.linked(VICTIM)
        session_id = await hub.wire.session(worker_id=VICTIM)
        beating = asyncio.create_task(beat_on(hostile))
        try:
            yield Scene(hub=hub, victim=victim, session_id=session_id, hostile=hostile)
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)


async def beat_on(worker: PlainWorker) -> None:
    while True:
        if worker.registration.accepted:
            with contextlib.suppress(aio.AioRpcError):
                await worker.beat()
        await asyncio.sleep(0.1)


async def refusal(worker: PlainWorker) -> grpc.StatusCode:
    error = await worker.stream_ended()
    assert error is not None
    return error.code()


async def test_a_stream_with_another_workers_name_is_refused():
    async with scene() as s:
        await s.hostile.register(start_id="start")
        s.hostile.worker_id = VICTIM  # in the metadata
        await s.hostile.open_stream()
        assert await refusal(s.hostile) is grpc.StatusCode.UNAUTHENTICATED
        await s.assert_unharmed()
        await s.hostile.open_stream(((REGISTRATION, s.hostile.registration.session_id),))
        assert await refusal(s.hostile) is grpc.StatusCode.UNAUTHENTICATED
        await s.assert_unharmed()


async def test_a_hello_with_another_name_or_start_is_refused():
    async with scene() as s:
        registered = await s.hostile.register(start_id="start")
        proof = ((REGISTRATION, registered.session_id),)
        for hello, code in (
            ({"worker_id": VICTIM, "incarnation": 1}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"worker_id": "", "incarnation": 1}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"worker_id": "hostile", "incarnation": 7}, grpc.StatusCode.ABORTED),
        ):
            await s.hostile.open_stream(proof)
            with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
                await s.hostile.send(hello=lifecycle_pb.StreamHello(**hello))
            assert await refusal(s.hostile) is code
        s.hostile.names_itself = False
        await s.hostile.open_stream(proof)
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            await s.hostile.send(hello=lifecycle_pb.StreamHello(worker_id=VICTIM, incarnation=1))
        assert await refusal(s.hostile) is not grpc.StatusCode.OK
        await s.assert_unharmed()


async def test_heartbeats_and_goodbyes_for_another_worker_are_refused():
    async with scene() as s:
        stub = s.hostile._stub
        for session_id in ("", "reg_guessed"):
            for call, request in (
                (stub.Heartbeat, lifecycle_pb.HeartbeatRequest),
                (stub.DeregisterWorker, lifecycle_pb.DeregisterRequest),
            ):
                with pytest.raises(aio.AioRpcError) as caught:
                    await call(request(worker_id=VICTIM, session_id=session_id))
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await s.assert_unharmed()


async def test_sessions_of_another_worker_are_not_had_by_claiming_them():
    async with scene() as s:
        claim = lifecycle_pb.SessionEpoch(session_id=s.session_id, epoch=99)
        registered = await s.hostile.register(start_id="start", sessions=[claim])
        assert list(registered.fenced_sessions) == [s.session_id]
        assert not registered.granted_sessions
        await s.assert_unharmed()
        answer = await s.hostile._stub.Heartbeat(
            lifecycle_pb.HeartbeatRequest(
                worker_id="hostile",
                session_id=registered.session_id,
                incarnation=registered.incarnation,
                capacity=lifecycle_pb.SessionCapacity(
                    total_sessions=4,
                    sessions=[
                        common_pb2.SessionInfo(
                            session_id=s.session_id,
                            epoch=1,
                            last_checkpoint_id=f"{s.session_id}.1.9",
                            last_sequence=99,
                        )
                    ],
                ),
            )
        )
        assert list(answer.fenced_sessions) == [s.session_id]
        await s.hostile.open_stream(((REGISTRATION, registered.session_id),))
        await s.hostile.send(
            hello=lifecycle_pb.StreamHello(
                worker_id="hostile", incarnation=1, sessions=[claim], calls=True
            )
        )
        await s.hub.linked("hostile")
        await s.assert_unharmed()


async def test_a_new_session_under_an_id_that_is_taken_is_nobodys():
    async with scene() as s:
        await s.hostile.register()
        await s.hostile.open_stream()
        await s.hub.linked("hostile")

        async def lie(request: lifecycle_pb.SessionCreateRequest) -> None:
            answer = lifecycle_pb.SessionCreateResponse(session_id=s.session_id, success=True)
            await s.hostile.send(session_created=answer)

        s.hostile._create = lie
        with pytest.raises(aio.AioRpcError):
            await s.hub.wire.session(worker_id="hostile")
        await s.assert_unharmed()


async def test_answers_to_what_others_were_asked_reach_nobody():
    async with scene() as s:
        await s.join()
        answer = lifecycle_pb.TaskStreamResponse(
            task_id="t1",
            stream_id="s1",
            result=lifecycle_pb.TaskStreamResult(
                status=lifecycle_pb.TaskStreamResult.STATUS_SUCCESS,
                response=tools_pb2.ToolResponse(echo=tools_pb2.EchoResponse(message="a lie")),
            ),
        )

        async def lie() -> None:
            while True:
                for stream_id in ("", *(f"s{number}" for number in range(1, 40))):
                    answer.stream_id = stream_id
                    await s.hostile.send(response=answer)
                    await s.hostile.send(
                        call_result=lifecycle_pb.StreamCallResult(call_id=f"c{stream_id[1:]}")
                    )

        lying = asyncio.create_task(lie())
        try:
            for number in range(30):
                last = (
                    await s.hub.wire.run(s.session_id, echo(f"{number}"), task_id=f"t{number}")
                )[-1]
                assert last.result.typed_response.echo.message == f"{number}"
        finally:
            lying.cancel()
            await asyncio.gather(lying, return_exceptions=True)
        await s.assert_unharmed()


async def test_a_frame_beyond_the_limit_ends_its_own_stream_alone():
    async with scene() as s:
        await s.join()
        log = lifecycle_pb.TaskLogEntry(data=b"x" * 5_000_000)
        with contextlib.suppress(aio.AioRpcError):
            await s.hostile.send(response=lifecycle_pb.TaskStreamResponse(task_id="t", log=log))
        assert await refusal(s.hostile) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await s.assert_unharmed()


async def test_whoever_sends_beyond_his_credit_loses_his_stream():
    async with scene() as s:
        link = await s.join()
        stream = link.tasks(
            "TaskExecution/ExecuteTask", tasks_pb.TaskRequest(task_id="t", session_id="none")
        )
        waiting = asyncio.ensure_future(anext(aiter(stream)))
        async with asyncio.timeout(10):
            while not any(frame.HasField("assignment") for frame in s.hostile.frames):
                await asyncio.sleep(0.01)
        (asked,) = [f.assignment for f in s.hostile.frames if f.HasField("assignment")]
        log = lifecycle_pb.TaskLogEntry(data=b"x" * 1_000_000)
        response = lifecycle_pb.TaskStreamResponse(task_id="t", stream_id=asked.stream_id, log=log)
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            for _ in range(100):
                await s.hostile.send(response=response)
        await s.hostile.stream_ended()
        assert (await waiting).log.data
        await stream.aclose()
        await s.assert_unharmed()


async def test_answers_that_are_no_messages_are_an_error_of_their_worker():
    async with scene() as s:
        link = await s.join()
        call = asyncio.ensure_future(
            link.unary("SessionManagement/GetCapacity", pb.CapacityRequest())
        )
        async with asyncio.timeout(10):
            while not any(frame.HasField("call") for frame in s.hostile.frames):
                await asyncio.sleep(0.01)
        number = next(f.call.call_id for f in s.hostile.frames if f.HasField("call"))
        await s.hostile.send(
            call_result=lifecycle_pb.StreamCallResult(call_id=number, response=b"\xff\xff\xff")
        )
        with pytest.raises(Exception, match="no SessionCapacity"):
            await call
        await s.assert_unharmed()


async def test_a_worker_that_never_reads_stops_nobody_else():
    async with scene() as s:
        await s.join()
        s.hostile._reading.cancel()  # from now on nothing is taken off its stream
        waiting = []
        for number in range(40):
            request = tasks_pb.TaskRequest(
                task_id=f"t{number}",
                session_id="none",
                typed_request=echo("x" * 1_000_000),
            )
            link = (await s.hub.linked("hostile")).link
            stream = link.tasks("TaskExecution/ExecuteTask", request)
            waiting.append(asyncio.ensure_future(anext(aiter(stream))))
        await asyncio.sleep(0.2)
        for _ in range(10):
            await s.assert_unharmed()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"worker_id": ""},
        {"worker_id": "a\nb"},
        {"worker_id": "x" * 300},
        {"start_id": "x" * 300},
        {"grpc_address": "x" * 300},
    ],
)
async def test_a_registration_that_makes_no_sense_is_refused(fields):
    async with scene() as s:
        s.hostile.worker_id = fields.pop("worker_id", "hostile")
        with pytest.raises(aio.AioRpcError) as caught:
            await s.hostile.register(**fields)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await s.assert_unharmed()


async def test_a_worker_has_one_stream_whatever_it_opens():
    async with scene() as s:
        link = await s.join()
        lifecycle = s.hub.coordinator.lifecycle
        proof = ((REGISTRATION, s.hostile.registration.session_id),)
        hello = lifecycle_pb.StreamHello(worker_id="hostile", incarnation=1, calls=True)
        opened = [s.hostile._call]
        for _ in range(20):
            await s.hostile.open_stream(proof)
            with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
                await s.hostile.send(hello=hello)
            opened.append(s.hostile._call)
        async with asyncio.timeout(10):
            while sum(call.done() for call in opened) < 20 or lifecycle.streams != 2:
                await asyncio.sleep(0.01)
        assert (await s.hub.linked("hostile")).link is not link
        await s.assert_unharmed()


async def test_a_peer_that_says_hello_is_told_to_end_what_is_anothers():
    async with scene() as s:
        claim = lifecycle_pb.SessionEpoch(session_id=s.session_id, epoch=1)
        await s.join(calls=False, sessions=[claim])
        async with asyncio.timeout(10):
            while not any(frame.HasField("session_destroy") for frame in s.hostile.frames):
                await asyncio.sleep(0.01)
        told = [f.session_destroy for f in s.hostile.frames if f.HasField("session_destroy")]
        assert [(one.session_id, one.force, one.save_checkpoint) for one in told] == [
            (s.session_id, True, False)
        ]
        await s.assert_unharmed()
