"""Sessions and tasks that a coordinator asks for over TaskStreams; they outlive a broken stream.

A task is the worker's own ExecuteTask, so that a task sent again is answered from its record. A
coordinator of the plain protocol knows a task by its id alone: what is left of its answer goes over
the next stream. One that names a stream asks again by itself, and gets a new answer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from codegen_mcp._proto.codegen.v1 import session_management_pb2 as sessions_pb
from codegen_mcp._proto.codegen.v1 import task_execution_pb2 as tasks_pb
from codegen_mcp._proto.codegen.v1 import worker_lifecycle_pb2 as pb
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.server import stream_frames
from codegen_mcp.server.foreign_ids import ForeignIds
from codegen_mcp.server.local_services import LocalServices, Refused
from codegen_mcp.server.status import failure_from
from codegen_mcp.server.stream_flow import Credit, Outbox

Frame = pb.TaskStreamMessage


@dataclass(slots=True, kw_only=True)
class Run:
    """One assignment that is being answered."""

    assignment: pb.TaskAssignment
    credit: Credit
    outbox: Outbox[Frame] | None
    """The stream that it came over; None: any will do."""
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Order:
    """Which of a session's assignments come after which."""

    last: dict[str, asyncio.Event] = field(default_factory=dict)
    """By session: set when its newest numbered task was taken, or is over."""
    making: dict[str, asyncio.Event] = field(default_factory=dict)
    """By session: set when it was made, or was not."""


class StreamTasks:
    """Of one coordinator, over all its streams. Close it with ``aclose``."""

    def __init__(
        self,
        local: LocalServices,
        ids: ForeignIds,
        metadata_of: Callable[[str], dict[str, str]],
        *,
        grace_s: float,
    ) -> None:
        """Wire it up.

        Args:
            local: The worker's services.
            ids: Of the coordinator.
            metadata_of: A session's metadata, by the worker's id of it.
            grace_s: How long a task waits for another stream; then its ``on_disconnect`` decides.
        """
        self._local = local
        self._ids = ids
        self._metadata_of = metadata_of
        self._grace_s = grace_s
        self._owned = OwnedTasks()
        self._runs: dict[str, Run] = {}
        self._order = Order()
        self._outbox: Outbox[Frame] | None = None
        self._attached = asyncio.Event()
        self._unsent: list[Frame] = []
        self._broken: Outbox[Frame] | None = None
        """Of the stream that ended last."""

    async def aclose(self) -> None:
        """Stop answering; what becomes of the tasks is their ``on_disconnect``."""
        await self._owned.aclose()

    # ---- the streams

    def under_way(self) -> int:
        """How many tasks are being answered."""
        return len(self._runs)

    def attach(self, outbox: Outbox[Frame]) -> None:
        """A stream is open: what is still to be said goes over it."""
        self._outbox = outbox
        for frame in self._unsent:
            outbox.put_now(frame)
        self._unsent = []
        self._attached.set()

    def detach(self, outbox: Outbox[Frame], unsent: Sequence[Frame]) -> None:
        """A stream ended, with frames that were never sent."""
        if self._outbox is outbox:
            self._outbox = None
            self._attached.clear()
        self._broken = outbox
        self._unsent += [frame for frame in unsent if _for_any_stream(frame)]
        for run in list(self._runs.values()):
            detached = run.assignment.on_disconnect == tasks_pb.ON_DISCONNECT_DETACH
            if run.outbox is outbox and detached and run.task is not None:
                run.task.cancel()  # the task goes on
        self._owned.spawn(self._let_go(outbox), "stream-grace")

    async def _let_go(self, outbox: Outbox[Frame]) -> None:
        """After the grace, stop what nobody came back for."""
        await asyncio.sleep(self._grace_s)
        alone = self._outbox is None and self._broken is outbox
        if alone:
            self._unsent = []
        for run in list(self._runs.values()):
            if run.task is not None and (run.outbox is outbox or (run.outbox is None and alone)):
                run.task.cancel()

    async def _send(self, frame: Frame, outbox: Outbox[Frame] | None) -> None:
        """Send a frame over its stream, or over any; waits as long as it takes."""
        if outbox is not None:
            if not await outbox.put(frame):
                await asyncio.Event().wait()  # the grace ends this
            return
        while True:
            await self._attached.wait()
            current = self._outbox
            if current is not None and await current.put(frame):
                return
            await asyncio.sleep(0)

    # ---- sessions

    def create(self, frame: pb.SessionCreateRequest) -> None:
        """Make a session; the answer goes over any stream."""
        self._owned.spawn(self._create(frame), "stream-create")

    async def _create(self, frame: pb.SessionCreateRequest) -> None:
        session_id = self._ids.ours(frame.session_id)
        with self._making(session_id):
            answer = await self._created(frame, session_id)
        await self._send(Frame(session_created=answer), None)

    async def _created(
        self, frame: pb.SessionCreateRequest, session_id: str
    ) -> pb.SessionCreateResponse:
        method = self._local.find("SessionManagement/CreateSession")
        request = stream_frames.create_request(frame, session_id)
        try:
            made = await self._local.call(method, request, write=_nowhere)
        except Refused as refused:
            failure = failure_from(refused.status)
            if failure.reason == "SESSION_EXISTS" and await self._is_same(frame, session_id):
                # Asked again, because the answer was lost: one effect, one answer.
                return pb.SessionCreateResponse(
                    session_id=frame.session_id,
                    success=True,
                    metadata=self._metadata_of(session_id),
                )
            text = f"{failure.code.name}: {failure.message}"
            return pb.SessionCreateResponse(session_id=frame.session_id, error=text)
        assert isinstance(made, sessions_pb.CreateSessionResponse)
        return pb.SessionCreateResponse(
            session_id=frame.session_id or made.session_id, success=True, metadata=made.metadata
        )

    async def _is_same(self, frame: pb.SessionCreateRequest, session_id: str) -> bool:
        method = self._local.find("SessionManagement/GetSessionStatus")
        request = sessions_pb.SessionStatusRequest(session_id=session_id)
        try:
            found = await self._local.call(method, request, write=_nowhere)
        except Refused:
            return False
        assert isinstance(found, sessions_pb.SessionStatusResponse)
        info = found.info
        return (info.workspace_id, info.user_id) == (frame.workspace_id, frame.user_id)

    @contextmanager
    def _making(self, session_id: str) -> Iterator[None]:
        """Let the tasks of a session wait until it is there."""
        made = asyncio.Event()
        if session_id:
            self._order.making[session_id] = made
        try:
            yield
        finally:
            made.set()
            if self._order.making.get(session_id) is made:
                del self._order.making[session_id]

    # ---- tasks

    def take(self, assignment: pb.TaskAssignment, outbox: Outbox[Frame]) -> None:
        """Run a task; one that is being answered over any stream already is not asked again."""
        session_id = self._ids.ours(assignment.session_id)
        numbered = bool(assignment.stream_id)
        key = assignment.stream_id or f"{session_id}/{assignment.task_id}"
        known = self._runs.get(key)
        if known is not None:
            if not numbered and known.assignment == assignment:
                return
            key += f"/{secrets.token_hex(8)}"
        run = Run(
            assignment=assignment,
            credit=Credit(assignment.credit_bytes or None),
            outbox=outbox if numbered else None,
        )
        after = [self._order.making.get(session_id)]
        taken = asyncio.Event()
        if assignment.sequence:
            after.append(self._order.last.get(session_id))
            self._order.last[session_id] = taken
        self._runs[key] = run
        waits = [event for event in after if event is not None]
        work = self._answer(run, session_id, waits, taken)
        run.task = self._owned.spawn(work, "stream-task")
        run.task.add_done_callback(lambda _: self._over(key, session_id, taken))

    async def _answer(
        self, run: Run, session_id: str, after: Sequence[asyncio.Event], taken: asyncio.Event
    ) -> None:
        async def write(data: bytes) -> None:
            await self._respond(run, stream_frames.response(run.assignment, data))

        for event in after:
            await event.wait()
        method = self._local.find("TaskExecution/ExecuteTask")
        request = stream_frames.task_request(run.assignment, session_id)
        try:
            last = await self._local.call(
                method,
                request,
                write=write,
                epoch=run.assignment.epoch,
                request_id=run.assignment.request_id,
                admitted=taken.set,
            )
        except Refused as refused:
            ending = stream_frames.refusal(run.assignment, refused.status)
        else:
            ending = stream_frames.response(run.assignment, last.SerializeToString())
            if ending.HasField("result"):
                stream_frames.add_metadata(ending, self._metadata_of(session_id))
        taken.set()
        await self._respond(run, ending)

    def _over(self, key: str, session_id: str, taken: asyncio.Event) -> None:
        taken.set()
        if self._order.last.get(session_id) is taken:
            del self._order.last[session_id]
        del self._runs[key]

    async def _respond(self, run: Run, response: pb.TaskStreamResponse) -> None:
        await run.credit.take(response.ByteSize())
        await self._send(Frame(response=response), run.outbox)

    def grant(self, grant: pb.TaskFlowCredit) -> None:
        """Let a task send more; of several with one id, any."""
        for run in self._runs.values():
            named = run.assignment.stream_id == grant.stream_id
            if named and (grant.stream_id or run.assignment.task_id == grant.task_id):
                run.credit.grant(grant.bytes)
                return

    def leave(self, stream_id: str) -> None:
        """Nobody listens to an assignment any more; its ``on_disconnect`` decides."""
        run = self._runs.get(stream_id)
        if run is not None and run.task is not None:
            run.task.cancel()


def _for_any_stream(frame: Frame) -> bool:
    """Whether its receiver would still know what it is over another stream."""
    kind = frame.WhichOneof("message")
    return kind == "session_created" or (kind == "response" and not frame.response.stream_id)


async def _nowhere(data: bytes) -> None:
    """A unary call has no message before its last."""
