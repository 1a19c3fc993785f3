"""A worker by others: a client of WorkerLifecycle as first published, and nothing that came later.

It runs ``echo``, and ``run_python`` by whatever a test gives it; it knows its sessions, answers a
task that is sent again from its record, and reads and writes no field from 200 on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from grpc import aio

from codegen_mcp._proto.codegen.v1 import common_pb2, tools_pb2, worker_lifecycle_pb2_grpc
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb

Run = Callable[["PlainWorker", pb.TaskAssignment], Awaitable[str]]
"""What code prints; may ``say`` log lines before."""
Metadata = tuple[tuple[str, str], ...]


async def _prints_its_code(worker: PlainWorker, assignment: pb.TaskAssignment) -> str:
    return assignment.request.run_python.code


class PlainWorker:
    """Made by ``plain_worker``."""

    def __init__(
        self, worker_id: str, stub: Any, *, names_itself: bool, own_ids: bool, run: Run, token: str
    ) -> None:
        self.worker_id = worker_id
        self.sessions: dict[str, pb.SessionCreateRequest] = {}
        self.assignments: list[pb.TaskAssignment] = []
        self.frames: list[pb.TaskStreamMessage] = []
        """Everything that the coordinator sent."""
        self.ran: list[str] = []
        """Ids of the tasks that were run."""
        self.registration = pb.RegisterResponse()
        self.names_itself = names_itself
        self.own_ids = own_ids
        self._stub = stub
        self._run = run
        self._token = token
        self._records: dict[str, asyncio.Future[pb.TaskStreamResponse]] = {}
        self._call: Any = None
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None

    async def register(self, **fields: Any) -> pb.RegisterResponse:
        """Join, as workers of the plain protocol do."""
        self.registration = await self._stub.RegisterWorker(
            pb.RegisterRequest(
                worker_id=self.worker_id,
                auth_token=self._token,
                capabilities=pb.WorkerCapabilities(
                    supported_tools=["echo", "run.python"], languages=["python"], max_sessions=4
                ),
                version="1.0.0",
                **fields,
            )
        )
        return self.registration

    async def beat(self) -> pb.HeartbeatResponse:
        """Say that it lives."""
        answer: pb.HeartbeatResponse = await self._stub.Heartbeat(
            pb.HeartbeatRequest(
                worker_id=self.worker_id,
                session_id=self.registration.session_id,
                status=pb.WorkerStatus(state=pb.WorkerStatus.STATE_IDLE),
                capacity=pb.SessionCapacity(
                    total_sessions=4,
                    active_sessions=len(self.sessions),
                    available_sessions=4 - len(self.sessions),
                    sessions=[common_pb2.SessionInfo(session_id=one) for one in self.sessions],
                ),
            )
        )
        return answer

    async def open_stream(self, metadata: Metadata = ()) -> None:
        """Open a TaskStream, with further metadata, and send one keepalive first.

        ``stream_ended`` tells how one ended that was refused.
        """
        name: Metadata = (("worker_id", self.worker_id),) if self.names_itself else ()
        self._call = self._stub.TaskStream(metadata=(*name, *metadata))
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            await self.send(keepalive=pb.StreamKeepAlive(timestamp_ms=1))
        self._reading = asyncio.create_task(self._read(self._call), name="plain-worker")

    async def drop_stream(self) -> None:
        """Break it."""
        self._call.cancel()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def stream_ended(self) -> aio.AioRpcError | None:
        """Wait until the coordinator ended the stream; its error."""
        assert self._reading is not None
        async with asyncio.timeout(10):
            (found,) = await asyncio.gather(self._reading, return_exceptions=True)
        return found if isinstance(found, aio.AioRpcError) else None

    async def close(self) -> None:
        """End everything."""
        for task in (*self._tasks, *([self._reading] if self._reading else [])):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def send(self, **member: Any) -> None:
        """Put a frame on the stream."""
        async with self._writing:
            await self._call.write(pb.TaskStreamMessage(**member))

    async def say(self, assignment: pb.TaskAssignment, text: str) -> None:
        """Send a log line of a task."""
        log = pb.TaskLogEntry(message=text, source="stdout")
        await self.send(response=pb.TaskStreamResponse(task_id=assignment.task_id, log=log))

    async def _read(self, call: Any) -> None:
        async for frame in call:
            self.frames.append(frame)
            kind = frame.WhichOneof("message")
            if kind == "session_create":
                await self._create(frame.session_create)
            elif kind == "assignment":
                self.assignments.append(frame.assignment)
                task = asyncio.create_task(self._answer(frame.assignment))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _create(self, request: pb.SessionCreateRequest) -> None:
        session_id = request.session_id
        if self.own_ids:
            session_id = f"{self.worker_id}-session-{len(self.sessions) + 1}"
        refused = request.metadata.get("refuse", "")
        if not refused:
            self.sessions[session_id] = request
        answer = pb.SessionCreateResponse(
            session_id=session_id,
            success=not refused,
            error=refused,
            metadata=request.metadata,
        )
        await self.send(session_created=answer)

    async def _answer(self, assignment: pb.TaskAssignment) -> None:
        task_id = assignment.task_id
        record = self._records.get(task_id)
        if record is None:
            record = self._records[task_id] = asyncio.get_running_loop().create_future()
            self.ran.append(task_id)
            record.set_result(await self._response(assignment))
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            await self.send(response=await asyncio.shield(record))

    async def _response(self, assignment: pb.TaskAssignment) -> pb.TaskStreamResponse:
        if assignment.session_id not in self.sessions:
            error = pb.TaskStreamError(code="NOT_FOUND", message="no such session")
            return pb.TaskStreamResponse(task_id=assignment.task_id, error=error)
        answer = tools_pb2.ToolResponse()
        if assignment.request.WhichOneof("request") == "echo":
            answer.echo.message = assignment.request.echo.message
        else:
            answer.run_python.stdout = await self._run(self, assignment)
        return pb.TaskStreamResponse(
            task_id=assignment.task_id,
            result=pb.TaskStreamResult(
                status=pb.TaskStreamResult.STATUS_SUCCESS,
                response=answer,
                sequence=assignment.sequence,
            ),
        )


@asynccontextmanager
async def plain_worker(
    address: str,
    worker_id: str = "plain",
    *,
    names_itself: bool = True,
    own_ids: bool = False,
    run: Run = _prints_its_code,
    token: str = "",
) -> AsyncIterator[PlainWorker]:
    """Connect one; it has not registered yet.

    Args:
        address: Of the coordinator.
        worker_id: Of the worker.
        names_itself: Whether its streams have worker_id in their metadata.
        own_ids: It gives sessions ids of its own, whatever the coordinator asked for.
        run: Stands in for running code.
        token: Its auth_token; it sends no other credential anywhere.
    """
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with aio.insecure_channel(address, options=options) as channel:
        stub = worker_lifecycle_pb2_grpc.WorkerLifecycleStub(channel)
        worker = PlainWorker(
            worker_id, stub, names_itself=names_itself, own_ids=own_ids, run=run, token=token
        )
        try:
            yield worker
        finally:
            await worker.close()
