"""One session: its state, its sandbox, its files, and who may run code in it next."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from pathlib import Path

from codegen_mcp.core.errors import Draining, Full, Unavailable
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.core.session import SessionState
from codegen_mcp.egress.service import SessionEgress
from codegen_mcp.engine.activity import Activity, Cancel
from codegen_mcp.engine.base import SessionView
from codegen_mcp.engine.pause import Pause, Stillness, not_found
from codegen_mcp.engine.ports import OpenWorkspace
from codegen_mcp.engine.record_keeper import RecordKeeper
from codegen_mcp.engine.run_line import Line, RunSlot
from codegen_mcp.engine.session_life import SessionLife
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.engine.session_services import SessionServices
from codegen_mcp.engine.session_view import make_view
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.tracked_workspace import TrackedWorkspace
from codegen_mcp.engine.uninterrupted import first_of
from codegen_mcp.engine.usage_meter import UsageMeter
from codegen_mcp.sandbox.base import HostIdentity, Sandbox

RECENT_TASKS = 20
CANCEL_WAIT_S = 5.0
"""How long cancelled tasks may take to end before the sandbox is killed under them."""
ADOPTED = "adopted from a worker that ended; files were kept, processes were not"


class Session:
    """A live session. The pool makes and ends it; the task executor works in it."""

    def __init__(
        self,
        record: SessionRecord,
        slot: Slot,
        workspace: OpenWorkspace,
        services: SessionServices,
        *,
        adopted: bool = False,
    ) -> None:
        """Take over a slot that lies at its final place.

        Args:
            record: As stored; ``last_activity_ms`` and ``recent_tasks`` are the starting values.
            slot: Its sandbox may be missing when adopted.
            workspace: Closed with the session.
            services: Shared by all sessions.
            adopted: Its files were another worker's.
        """
        self._keeper = RecordKeeper(record, services.clock, durable=adopted)
        self._slot = slot
        slot.used = True
        self._services = services
        self._activity = Activity(services.clock, last_ms=record.last_activity_ms)
        self._raw_workspace = workspace
        self._workspace = TrackedWorkspace(workspace, self._activity)
        self._line = Line(1, services.waiting_limit, f"session {record.session_id!r}")
        self._pause = Pause(
            record.session_id, self._line, self._activity.files, lambda: slot.sandbox
        )
        self._recent: deque[str] = deque(record.recent_tasks, maxlen=RECENT_TASKS)
        self._meter = UsageMeter(services.clock)
        if slot.sandbox is not None:
            self._meter.start(slot.cpu_us)
        self._life = SessionLife(
            record.session_id,
            slot,
            self._activity,
            services,
            worked=lambda: bool(self._recent),
            booted=self._meter.restart,
            note=ADOPTED if adopted else "",
        )
        age_s = max(0.0, (services.clock.unix_ms() - record.created_at_ms) / 1000)
        self._born = services.clock.monotonic() - age_s
        self._egress: SessionEgress | None = None
        if services.egress is not None:
            self._egress = SessionEgress(
                services.egress,
                user_id=record.user_id,
                allow_network=record.allow_network,
                allow_hosts=record.allow_hosts,
                directory=lambda: slot.directory,
            )

    @property
    def session_id(self) -> str:
        """Its handle."""
        return self._keeper.record.session_id

    @property
    def epoch(self) -> int:
        """Under which ownership it is held."""
        return self._keeper.record.epoch

    @property
    def directory(self) -> Path:
        """Host directory; holds ``volume/`` and files of ours (mode 0600) beside it."""
        return self._slot.directory

    @property
    def venv(self) -> Path:
        """Host path of its environment: hostile content."""
        return self._slot.volume.root / "venv"

    @property
    def workspace(self) -> TrackedWorkspace:
        """Its files; every call counts as activity."""
        return self._workspace

    @property
    def interpreter(self) -> Interpreter:
        """What runs its code."""
        return self._slot.interpreter

    @property
    def identity(self) -> HostIdentity | None:
        """Who owns its files on the host."""
        return self._slot.identity

    @property
    def limits(self) -> ResourceLimits:
        """Its bounds."""
        return self._keeper.record.limits

    @property
    def env(self) -> Mapping[str, str]:
        """Its variables."""
        return self._keeper.record.env

    @property
    def egress(self) -> SessionEgress | None:
        """Its way out; None where the worker has none to speak of."""
        return self._egress

    @property
    def durability(self) -> str:
        """``interval``, ``turn`` or ``sync``."""
        return self._keeper.record.durability

    @property
    def metadata(self) -> Mapping[str, str]:
        """Its metadata."""
        return self._keeper.record.metadata

    @property
    def slot(self) -> Slot:
        """What it occupies on the host; for the pool."""
        return self._slot

    @property
    def record(self) -> SessionRecord:
        """What to store of it now."""
        return dataclasses.replace(
            self._keeper.record,
            last_activity_ms=self._activity.last_ms,
            recent_tasks=tuple(self._recent),
        )

    @property
    def state(self) -> SessionState:
        """Its state; notices a sandbox that ended by itself."""
        return self._life.state

    @property
    def ending(self) -> bool:
        """Whether it is being destroyed."""
        return self._life.ending

    @property
    def active_tasks(self) -> int:
        """Tasks that run or wait."""
        return self._activity.active

    @property
    def idle_s(self) -> float:
        """Seconds since it was last used; 0 while a task is under way."""
        return self._activity.idle_s

    @property
    def age_s(self) -> float:
        """Seconds since it was created."""
        return self._services.clock.monotonic() - self._born

    def touch(self) -> None:
        """Note that it is used."""
        self._activity.touch()

    def note_task(self, task_id: str) -> None:
        """Put a task in front of the recent ones."""
        if task_id in self._recent:
            self._recent.remove(task_id)
        self._recent.appendleft(task_id)

    @contextmanager
    def activity(self, cancel: Cancel | None = None) -> Iterator[None]:
        """Count a task from its admission to its end; the session is BUSY meanwhile.

        Args:
            cancel: Called with a reason, once, when the session is to end before the task does.

        Raises:
            NotFound: The session is being destroyed.
            Draining: The worker is.
            Full: ``limits.concurrent_tasks`` are under way.
        """
        self.check_open()
        if self._services.gate.draining:
            raise Draining("the worker is shutting down and takes no new tasks; use another one")
        if self._activity.active >= self.limits.concurrent_tasks:
            raise Full(
                f"session {self.session_id!r} has {self._activity.active} tasks under way, which "
                "is its limit (concurrent_tasks); wait for one to end",
                reason="QUEUE_FULL",
                retry_after_s=1.0,
            )
        with self._activity.task(cancel):
            self._life.work_began()
            try:
                yield
            finally:
                self._life.work_ended()

    def run_slot(self) -> RunSlot:
        """Take the next place in the session's line; ``async with`` it to wait and run.

        Raises:
            Full: Too many wait already.
            NotFound: The session is being destroyed.
        """
        self.check_open()
        return RunSlot(self._line, self._services.runs)

    def still(self, *, freeze: bool) -> AbstractAsyncContextManager[Stillness]:
        """Nothing of this session runs or changes files inside (``Pause.still``)."""
        self.check_open()
        return self._pause.still(freeze=freeze)

    def checkpointing(self) -> AbstractContextManager[None]:
        """Be CHECKPOINTING inside, where the state allows it (``SessionLife.checkpointing``)."""
        return self._life.checkpointing()

    async def sandbox(self) -> Sandbox:
        """Return a live sandbox; boots a new one where there is none (``SessionLife.sandbox``)."""
        return await self._life.sandbox()

    def check_open(self) -> None:
        """Refuse when it is being destroyed.

        Raises:
            NotFound: It is.
        """
        self._life.check_open()

    def view(self, *, max_age_s: float = 0.0) -> SessionView:
        """Describe it as it is now; counters may be as old as ``max_age_s``."""
        return make_view(
            self._keeper.record,
            state=self.state,
            last_activity_ms=self._activity.last_ms,
            active_tasks=self._activity.active,
            usage=self._meter.read(self._slot, max_age_s=max_age_s),
            recent_tasks=tuple(self._recent),
            isolation=self._services.isolation,
            note=self._life.note,
        )

    @property
    def unsaved_s(self) -> float:
        """How long the stored record may lack a use; infinite while it is not on disk yet."""
        return self._keeper.unsaved_s(self._activity.last_ms)

    async def save(
        self, change: Callable[[SessionRecord], SessionRecord] = lambda record: record
    ) -> None:
        """Store the record, changed by ``change``; durable when this returns.

        Raises:
            Unavailable: It cannot be written; nothing was changed.
            NotFound: The session is being destroyed.
        """
        try:
            await self._keeper.store(lambda: self.directory, lambda: change(self.record))
        except Unavailable:
            self.check_open()  # its directory went while the file was written
            raise

    def sample(self) -> None:
        """Read the counters, so that means and peaks are known between status calls."""
        self._meter.read(self._slot, max_age_s=0.0)

    @property
    def idle_timeout_s(self) -> float:
        """Seconds without use after which it is destroyed."""
        return self._keeper.record.idle_timeout_s

    def close_door(self) -> None:
        """Become DRAINING: no new task, run or file call; ``end`` follows. Idempotent."""
        self._life.drain()

    async def quiet(self) -> None:
        """Return when no task and no file call is under way."""
        await self._activity.still()

    async def end(self, *, hurry: asyncio.Event, grace_s: float, reason: str) -> None:
        """Stop everything in it: wait, then cancel, then kill. Nothing of it runs afterwards.

        Args:
            hurry: Once set, nothing is waited for any more.
            grace_s: How long its tasks may go on.
            reason: What cancelled tasks are told.
        """
        self.close_door()
        if self._activity.busy and not hurry.is_set():
            await first_of(self._activity.still(), hurry.wait(), timeout_s=grace_s)
        self._line.close(not_found(self.session_id))
        self._activity.cancel_all(reason)
        await self._life.boot_no_more()
        if self._activity.active:
            await first_of(self._activity.quiet(), timeout_s=CANCEL_WAIT_S)
        await self._life.bury()
        if self._activity.active:
            # A task that ignored the cancel has lost its sandbox now and must end by that.
            await first_of(self._activity.quiet(), timeout_s=CANCEL_WAIT_S)
        self._raw_workspace.close()
