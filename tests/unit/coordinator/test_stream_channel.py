"""One TaskStream at its coordinator: stalls, overruns, frames that are too large, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import tools_pb2
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.remote_errors import LinkBroken, LinkLost
from codegen_mcp.coordinator.stream_channel import Frame, StreamChannel
from codegen_mcp.coordinator.stream_errors import from_bytes, from_stream_error
from codegen_mcp.coordinator.stream_inbox import MOST_BYTES, Inbox, Overrun
from codegen_mcp.coordinator.stream_link import StreamLink
from codegen_mcp.coordinator.stream_operations import Level
from codegen_mcp.core.errors import (
    Corrupt,
    Full,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    NotImplementedYet,
    Unavailable,
    WorkerError,
)
from codegen_mcp.server.stream_frames import status_of

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

OWNER = Owner(worker_id="w", incarnation=3)


class Peer:
    """The worker's end, by hand."""

    def __init__(self, level: Level = Level.CALLS, **times: float) -> None:
        stall = {"stall_s": times.pop("stall_s")} if "stall_s" in times else {}
        self.link = StreamLink(OWNER, StreamChannel(OWNER, level, **stall), **times)
        self.sent: asyncio.Queue[Frame] = asyncio.Queue()
        self.got: asyncio.Queue[Frame] = asyncio.Queue()
        self.reads = True

    async def frames(self) -> AsyncIterator[Frame]:
        while True:
            yield await self.sent.get()

    async def write(self, data: bytes) -> None:
        if not self.reads:
            await asyncio.Event().wait()
        self.got.put_nowait(Frame.FromString(data))

    async def __aenter__(self) -> Peer:
        self.serving = asyncio.ensure_future(self.link.serve(self.frames(), self.write))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.link.close()
        await self.serving

    def send(self, **member: object) -> None:
        self.sent.put_nowait(Frame(**member))


def unary(peer: Peer) -> asyncio.Future:
    request = sessions_pb.SessionStatusRequest(session_id="s")
    return asyncio.ensure_future(peer.link.unary("SessionManagement/GetSessionStatus", request))


async def test_a_call_ends_with_the_stream_and_none_begins_after_it():
    async with Peer() as peer:
        call = unary(peer)
        assert (await peer.got.get()).call.method == "SessionManagement/GetSessionStatus"
        await peer.link.close()
        with pytest.raises(LinkLost) as caught:
            await call
        assert caught.value.sent
        with pytest.raises(LinkLost) as caught:
            await unary(peer)
        assert not caught.value.sent
    assert (peer.link.worker_id, peer.link.incarnation) == ("w", 3)


async def test_a_worker_that_does_not_read_loses_its_stream_in_time():
    peer = Peer(stall_s=0.05)
    peer.reads = False
    async with peer:
        call = unary(peer)
        with pytest.raises(LinkLost):
            await call
        await peer.serving


async def test_the_answer_of_another_call_is_not_taken():
    async with Peer() as peer:
        one, two = unary(peer), unary(peer)
        first, second = (await peer.got.get()).call, (await peer.got.get()).call
        assert first.call_id != second.call_id
        for number, session in ((second.call_id, "two"), (first.call_id, "one"), ("c99", "none")):
            answer = sessions_pb.SessionStatusResponse(session_id=session).SerializeToString()
            peer.send(call_result=pb.StreamCallResult(call_id=number, response=answer))
        assert [(await one).session_id, (await two).session_id] == ["one", "two"]


async def test_a_status_is_told_on_as_it_was():
    async with Peer() as peer:
        call = unary(peer)
        number = (await peer.got.get()).call.call_id
        error = Full("no room", reason="NO_ROOM", retry_after_s=2.5, metadata={"a": "b"})
        status = status_of(error).SerializeToString()
        peer.send(call_result=pb.StreamCallResult(call_id=number, status=status))
        with pytest.raises(Full) as caught:
            await call
        told = caught.value
        assert (told.message, told.reason, told.retry_after_s) == ("no room", "NO_ROOM", 2.5)
        assert told.metadata == {"a": "b"}


async def test_what_does_not_fit_into_a_frame_fails_alone():
    async with Peer() as peer:
        request = tasks_pb.TaskRequest(
            session_id="s",
            typed_request=tools_pb2.ToolRequest(
                fs_write=tools_pb2.FsWriteRequest(data=b"x" * (4 * 1024 * 1024 - 60))
            ),
        )
        with pytest.raises(LimitExceeded):
            await anext(peer.link.tasks("TaskExecution/ExecuteTask", request))
        call = unary(peer)
        assert (await peer.got.get()).HasField("call")
        call.cancel()


async def test_a_task_that_was_refused_is_an_error_of_the_call():
    async with Peer() as peer:
        request = tasks_pb.TaskRequest(session_id="s", task_id="t")
        taken = []
        stream = peer.link.tasks(
            "TaskExecution/ExecuteTask", request, epoch=4, admitted=lambda: taken.append(1)
        )
        first = asyncio.ensure_future(anext(stream))
        asked = (await peer.got.get()).assignment
        assert (asked.epoch, asked.task_id, bool(asked.stream_id)) == (4, "t", True)
        assert taken == [1]
        refusal = pb.TaskStreamError(
            code="NOT_FOUND",
            message="gone",
            status=status_of(NotFound("gone", reason="SESSION_NOT_FOUND")).SerializeToString(),
        )
        peer.send(response=pb.TaskStreamResponse(stream_id=asked.stream_id, error=refusal))
        with pytest.raises(NotFound, match="gone") as caught:
            await first
        assert caught.value.reason == "SESSION_NOT_FOUND"


async def test_a_caller_that_leaves_is_told_to_the_worker():
    async with Peer() as peer:
        request = tasks_pb.TaskRequest(session_id="s", task_id="t")
        stream = peer.link.tasks("TaskExecution/ExecuteTask", request)
        first = asyncio.ensure_future(anext(stream))
        asked = (await peer.got.get()).assignment
        log = pb.TaskLogEntry(message="x")
        peer.send(response=pb.TaskStreamResponse(stream_id=asked.stream_id, log=log))
        await first
        await stream.aclose()
        assert (await peer.got.get()).leave.stream_id == asked.stream_id


async def test_credit_is_given_again_as_the_caller_takes():
    async with Peer() as peer:
        request = tasks_pb.TaskRequest(session_id="s", task_id="t")
        stream = peer.link.tasks("TaskExecution/ExecuteTask", request)
        first = asyncio.ensure_future(anext(stream))
        asked = (await peer.got.get()).assignment
        granted = asked.credit_bytes
        response = pb.TaskStreamResponse(
            stream_id=asked.stream_id, log=pb.TaskLogEntry(data=b"x" * 300_000)
        )
        for _ in range(3):
            peer.send(response=response)
        await first
        assert peer.got.empty()  # the caller has one message, and has asked for no other
        await anext(stream)
        credit = (await peer.got.get()).credit
        assert (credit.stream_id, credit.bytes) == (asked.stream_id, response.ByteSize())
        assert granted > 2 * response.ByteSize()
        await stream.aclose()


async def test_a_peer_with_a_hello_has_frames_for_operations():
    async with Peer(Level.HELLO) as peer:
        cases = [
            (
                "SessionManagement/DestroySession",
                sessions_pb.DestroySessionRequest(session_id="s", save_checkpoint=True),
                "session_destroy",
                lambda answer: (answer.destroyed, answer.checkpoint_id) == (True, "c"),
            ),
            (
                "SessionManagement/CheckpointSession",
                sessions_pb.CheckpointRequest(session_id="s", incremental=True),
                "checkpoint",
                lambda answer: answer.checkpoint_id == "c",
            ),
            (
                "SessionManagement/RestoreSession",
                sessions_pb.RestoreRequest(checkpoint_id="c", session_id="s", epoch=2),
                "restore",
                lambda answer: (answer.session_id, answer.worker_id) == ("made", "w"),
            ),
            (
                "SessionManagement/ForkSession",
                sessions_pb.ForkRequest(session_id="s", new_session_ids=["n"]),
                "fork",
                lambda answer: list(answer.session_ids) == ["made"],
            ),
        ]
        for method, request, member, holds in cases:
            call = asyncio.ensure_future(peer.link.unary(method, request, epoch=2))
            frame = getattr(await peer.got.get(), member)
            assert frame.epoch == 2
            peer.send(
                operation_result=pb.SessionOperationResult(
                    operation_id=frame.operation_id, session_id="made", checkpoint_id="c"
                )
            )
            assert holds(await call), method
        with pytest.raises(NotImplementedYet):
            await peer.link.unary(
                "SessionManagement/ForkSession", sessions_pb.ForkRequest(session_id="s", count=2)
            )
        answer = await peer.link.unary(
            "TaskExecution/CancelTask", tasks_pb.CancelRequest(task_id="t", session_id="s")
        )
        assert not answer.cancelled  # nobody follows such a task here
        assert (await peer.got.get()).cancel.task_id == "t"


async def test_a_peer_learns_by_its_hello():
    async with Peer(Level.PLAIN) as peer:
        with pytest.raises(NotImplementedYet) as caught:
            await unary(peer)
        assert caught.value.reason == "NO_FRAME"
        peer.send(hello=pb.StreamHello(worker_id="another", calls=True))
        peer.send(hello=pb.StreamHello(worker_id="w", calls=True))
        while True:
            call = unary(peer)
            try:
                async with asyncio.timeout(0.05):
                    frame = await peer.got.get()
            except TimeoutError:
                await asyncio.gather(call, return_exceptions=True)
                continue
            assert frame.HasField("call")
            call.cancel()
            break


async def test_a_plain_peer_that_makes_no_session_in_time_loses_its_stream():
    async with Peer(Level.PLAIN, create_s=0.05) as peer:
        request = sessions_pb.CreateSessionRequest(session_id="s")
        with pytest.raises(LinkBroken):
            await peer.link.unary("SessionManagement/CreateSession", request)
        with pytest.raises(LinkLost):
            await peer.link.unary("SessionManagement/CreateSession", request)


async def test_what_a_frame_cannot_say_is_refused_by_name():
    async with Peer(Level.PLAIN) as peer:
        for name, value in (("required_tools", ["echo"]), ("base_image", "debian")):
            request = sessions_pb.CreateSessionRequest(
                session_id="s", config=sessions_pb.SessionConfig(**{name: value})
            )
            with pytest.raises(NotImplementedYet, match=name):
                await peer.link.unary("SessionManagement/CreateSession", request)
        assert peer.got.empty()


async def test_an_inbox_is_bounded():
    inbox: Inbox[pb.StreamPart] = Inbox()
    part = pb.StreamPart(message=b"x" * 1_000_000)
    for _ in range(MOST_BYTES // part.ByteSize()):
        inbox.put(part)
    with pytest.raises(Overrun):
        inbox.put(part)
    inbox.put(part, omittable=True)
    assert inbox.omitted == 1
    inbox.fail(WorkerError("over"))
    for _ in range(MOST_BYTES // part.ByteSize()):
        assert await inbox.get() == (part, part.ByteSize())
    with pytest.raises(WorkerError, match="over"):
        await inbox.get()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidRequest),
        ("NOT_FOUND", NotFound),
        ("UNAVAILABLE", Unavailable),
        ("DATA_LOSS", Corrupt),
        ("no code at all", WorkerError),
        ("", WorkerError),
    ],
)
async def test_errors_of_peers_that_tell_no_status_are_read_by_their_words(code, kind):
    details = json.dumps({"reason": "A_REASON"})
    error = from_stream_error(pb.TaskStreamError(code=code, message="m", details=details), "w")
    assert isinstance(error, kind)
    assert not isinstance(error, LinkBroken)
    for strange in ("", "{", "[]", '{"reason": 5}'):
        found = from_stream_error(pb.TaskStreamError(code=code, details=strange), "w")
        assert isinstance(found, kind)


async def test_an_error_goes_through_a_status_and_back():
    for error in (
        NotFound("gone", reason="SESSION_NOT_FOUND"),
        Unavailable("away", retry_after_s=1.0),
        InvalidRequest("no", metadata={"field": "f"}),
    ):
        back = from_bytes(status_of(error).SerializeToString(), "w")
        assert (back.message, back.reason, back.metadata) == (
            error.message,
            error.reason,
            error.metadata,
        )
        assert isinstance(back, type(error))
