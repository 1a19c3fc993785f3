"""Tasks in any order of submit, output, cancel, end, disconnect and re-attach.

Whatever the order: each task has exactly one end, which every reader is told the same; each reader
gets each byte once over any number of reconnects; and in the end nothing is held any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule

from codegen_mcp.core.errors import AlreadyExists, Full
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.core.task import EndedBy, Outcome, Stream, TaskStatus
from codegen_mcp.engine.base import ErrorEvent, OnDisconnect, OutputEvent, ResultEvent
from codegen_mcp.engine.output_config import OutputConfig
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.task_config import TaskConfig
from codegen_mcp.testing.scripted_sandbox import SUCCESS, Play
from codegen_mcp.testing.task_rig import TaskRig
from codegen_mcp.tools.registry import tools_by_name

TOOLS = tools_by_name()
OUTCOMES = (
    SUCCESS,
    Outcome(ended_by=EndedBy.EXIT, exit_code=3),
    Outcome(ended_by=EndedBy.TIMEOUT, exit_code=124),
    Outcome(ended_by=EndedBy.MEMORY, exit_code=137),
)
End = ResultEvent | ErrorEvent


@dataclass(eq=False)
class Client:
    """Somebody who follows one task and comes back after a disconnect."""

    task: Known
    got: dict[Stream, bytes] = field(default_factory=lambda: dict.fromkeys(Stream, b""))
    end: End | None = None
    reading: asyncio.Task[None] | None = None


@dataclass(eq=False)
class Known:
    """What the test knows of a task."""

    task_id: str
    session: Session
    code: bool
    on_disconnect: OnDisconnect
    sequence: int
    clients: list[Client] = field(default_factory=list)
    printed: dict[Stream, bytes] = field(default_factory=lambda: dict.fromkeys(Stream, b""))
    status: TaskStatus | None = None
    end: End | None = None

    @property
    def arguments(self) -> dict[str, str]:
        return {"code": self.task_id} if self.code else {"message": self.task_id}

    def saw(self, end: End) -> None:
        if self.end is None:
            self.end = end
        assert end == self.end

    def decide(self, status: TaskStatus) -> None:
        if self.status is None:
            self.status = status


class TaskMachine(RuleBasedStateMachine):
    """One executor, two sessions."""

    tasks = Bundle("tasks")
    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.known: list[Known] = []

    def run(self, work) -> object:  # type: ignore[no-untyped-def]
        async def to_rest() -> object:
            result = await work
            for _ in range(40):
                await asyncio.sleep(0)
            while len(self.rig.tasks._owned._tasks) > self.rig.tasks.active:
                await asyncio.sleep(0)
            return result

        return self.runner.run(to_rest())

    @initialize()
    def begin(self) -> None:
        config = TaskConfig(
            output=OutputConfig(
                event_bytes=16,
                memory_bytes=1500,
                finished_memory_bytes=500,
                segment_bytes=300,
                event_delay_s=1e-6,
            )
        )
        self.rig = TaskRig(
            Path(self.directory.name),
            TOOLS,
            config=config,
            limits=ResourceLimits(concurrent_tasks=4),
        )

        async def enter() -> None:
            await self.rig.__aenter__()
            self.sessions = [self.rig.create(), self.rig.create()]

        self.runner.run(enter())
        self.last = [0, 0]

    def play_of(self, known: Known) -> Play | None:
        for play in self.rig.sandboxes[known.session.session_id].plays:
            code = getattr(play.command.program, "code", b"")
            if code == known.task_id.encode() and not play.ended.done() and not play.killed:
                return play
        return None

    @rule(
        target=tasks,
        code=st.booleans(),
        session=st.integers(0, 1),
        on_disconnect=st.sampled_from(OnDisconnect),
        tracked=st.booleans(),
    )
    def submit(
        self, code: bool, session: int, on_disconnect: OnDisconnect, tracked: bool
    ) -> object:
        owner = self.sessions[session]
        sequence = self.last[session] + 1 if tracked else 0
        known = Known(f"task{len(self.known)}", owner, code, on_disconnect, sequence)
        full = owner.active_tasks >= 4
        try:
            self.run(self._submit(known))
        except Full:
            assert full
            return multiple()
        assert not full
        self.known.append(known)
        self.last[session] += tracked
        if not code:
            known.decide(TaskStatus.SUCCESS)
        return known

    @rule(known=tasks)
    def repeat(self, known: Known) -> None:
        self.run(self._submit(known))

    @rule(known=tasks)
    def claim_the_sequence_of_another(self, known: Known) -> None:
        if not known.sequence:
            return
        try:
            self.run(
                self.rig.submit(known.session, "echo", task_id="thief", sequence=known.sequence)
            )
        except AlreadyExists:
            return
        raise AssertionError("one sequence, two tasks")

    @rule(known=tasks, stream=st.sampled_from(Stream), data=st.binary(min_size=1, max_size=60))
    def output(self, known: Known, stream: Stream, data: bytes) -> None:
        play = self.play_of(known)
        if play is not None:
            self.run(play.print(stream, data))
            known.printed[stream] += data

    @rule(known=tasks, outcome=st.sampled_from(OUTCOMES))
    def finish(self, known: Known, outcome: Outcome) -> None:
        play = self.play_of(known)
        if play is not None:
            known.decide(outcome.status)

            async def end() -> None:
                play.finish(outcome)

            self.run(end())

    @rule(known=tasks, together=st.booleans())
    def cancel(self, known: Known, together: bool) -> None:
        play = self.play_of(known)

        async def end() -> tuple[bool, str]:
            if together and play is not None:  # the run ends in the very moment of the cancel
                play.finish()
            return await self.rig.tasks.cancel(known.task_id, known.session.session_id, "")

        did, state = self.run(end())  # type: ignore[misc]
        assert did == (known.status is None)
        assert (state == "finished") == (not did)
        known.decide(TaskStatus.CANCELLED)

    @rule(target=clients, known=tasks)
    def arrive(self, known: Known) -> Client:
        client = Client(known)
        known.clients.append(client)
        self.attach(client)
        return client

    @rule(client=clients)
    def attach(self, client: Client) -> None:
        if client.reading is None and client.end is None:

            async def start() -> None:
                client.reading = asyncio.ensure_future(self._read(client))

            self.run(start())

    @rule(client=clients)
    def disconnect(self, client: Client) -> None:
        reading, client.reading = client.reading, None
        if reading is None or reading.done():
            return
        known = client.task
        others = [c for c in known.clients if c.reading is not None and not c.reading.done()]
        if not others and known.on_disconnect is OnDisconnect.CANCEL:
            known.decide(TaskStatus.CANCELLED)

        async def leave() -> None:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading

        self.run(leave())

    def teardown(self) -> None:
        try:
            if hasattr(self, "rig"):
                self.runner.run(self._check())
        finally:
            self.runner.close()
            self.directory.cleanup()

    async def _submit(self, known: Known) -> None:
        tool = "run.python" if known.code else "echo"
        await self.rig.submit(
            known.session,
            tool,
            known.arguments,
            task_id=known.task_id,
            sequence=known.sequence,
            on_disconnect=known.on_disconnect,
        )

    async def _read(self, client: Client) -> None:
        known = client.task
        events = self.rig.tasks.events(
            known.task_id,
            known.session.session_id,
            stdout_offset=len(client.got[Stream.STDOUT]),
            stderr_offset=len(client.got[Stream.STDERR]),
        )
        async with aclosing(events):
            async for event in events:
                assert client.end is None
                if isinstance(event, OutputEvent):
                    assert event.offset == len(client.got[event.stream])
                    client.got[event.stream] += event.data
                elif isinstance(event, ResultEvent | ErrorEvent):
                    client.end = event
                    known.saw(event)

    async def _check(self) -> None:
        async with self.rig:
            await self._check_all()
        assert self.rig.tasks.active == 0

    async def _check_all(self) -> None:
        for known in self.known:
            if known.status is None:
                await self.rig.tasks.cancel(known.task_id, known.session.session_id, "")
                known.decide(TaskStatus.CANCELLED)
        async with asyncio.timeout(10):
            for known in self.known:
                last = Client(known)
                for client in [*known.clients, last]:
                    if client.reading is not None:
                        await client.reading
                    elif client.end is None:
                        await self._read(client)
                    assert client.got == known.printed
                    assert client.end is not None
                assert isinstance(known.end, ResultEvent)
                assert known.end.status is known.status
                assert known.end.metadata.stdout_bytes == len(known.printed[Stream.STDOUT])
                assert known.end.metadata.stderr_bytes == len(known.printed[Stream.STDERR])
        assert self.rig.runs.running == self.rig.runs.waiting == 0
        for session in self.sessions:
            assert session.active_tasks == 0
            assert session.run_slot()._place._turn is None  # the line is free


TestTaskMachine = TaskMachine.TestCase
TestTaskMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
