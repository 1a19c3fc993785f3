"""The sessions of a worker: admission, life and end. Implements ``engine.base.Sessions``."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import structlog

from codegen_mcp.core.clock import Clock, SystemClock
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.egress.service import Egress
from codegen_mcp.engine.adoption import Adoption, adopt_sessions, clear_remains
from codegen_mcp.engine.base import SessionView
from codegen_mcp.engine.expiry import Expiry
from codegen_mcp.engine.hooks import EngineHooks, NoHooks
from codegen_mcp.engine.host_memory import available_memory_bytes
from codegen_mcp.engine.interpreter_catalog import InterpreterCatalog
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.pause import busy
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.engine.ports import OpensWorkspaces, TaskRecords
from codegen_mcp.engine.reaper import Reaper
from codegen_mcp.engine.run_line import Line
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_admission import SessionAdmission, draining
from codegen_mcp.engine.session_checks import check_network
from codegen_mcp.engine.session_ender import SessionEnder
from codegen_mcp.engine.session_forker import SessionForker, check_count
from codegen_mcp.engine.session_installer import RestorePlan, SessionInstaller
from codegen_mcp.engine.session_maker import SessionMaker, check_request
from codegen_mcp.engine.session_ownership import SessionOwnership
from codegen_mcp.engine.session_services import SessionServices
from codegen_mcp.engine.session_table import SessionTable
from codegen_mcp.engine.slot_factory import SlotFactory
from codegen_mcp.engine.state_directory import StateDirectory
from codegen_mcp.engine.trash import Trash
from codegen_mcp.engine.warm_pool import WarmPool

log = structlog.get_logger()

CLOSE_WAIT_S = 20.0
"""How long a stopping worker waits for unmounts and deletions; the next start does the rest."""


class SessionPool(SessionTable):
    """All sessions of this worker. An async context manager; entering adopts, leaving closes."""

    def __init__(
        self,
        *,
        config: SessionPoolConfig,
        state: StateDirectory,
        factory: SlotFactory,
        catalog: InterpreterCatalog,
        open_workspace: OpensWorkspaces,
        isolation: Mapping[str, str],
        records: TaskRecords | None = None,
        hooks: EngineHooks | None = None,
        clock: Clock | None = None,
        egress: Egress | None = None,
        available_memory: Callable[[], int] = available_memory_bytes,
    ) -> None:
        """Wire it up; nothing happens before it is entered.

        Args:
            config: Sizes and times.
            state: Open, and locked by this worker.
            factory: Makes slots.
            catalog: Interpreters that sessions may ask for.
            open_workspace: Makes the file access of a session.
            isolation: Wall name to who enforces it, and ``sandbox`` to the level; shown with each
                session.
            records: Reads a dead worker's task records, forgets those of an ended session.
            hooks: Hears of events.
            clock: For idle time and age.
            egress: The worker's way out to the network.
            available_memory: Bytes of memory that the host can still give.
        """
        super().__init__(config)
        self._state = state
        self._factory = factory
        self._catalog = catalog
        self._open_workspace = open_workspace
        self._hooks = hooks or NoHooks()
        self._records = records
        self._admission = SessionAdmission(
            config.max_sessions, self._sessions, lambda: self._warm.nudge()
        )
        self._closed = False
        self._stack = AsyncExitStack()
        self._tasks = OwnedTasks()
        """Ends and background boots of sessions; its members never outlive the pool."""
        self._boots = Line(config.boots, 1 << 30, "this worker")
        clock = clock or SystemClock()
        self._services = SessionServices(
            clock=clock,
            hooks=self._hooks,
            tasks=self._tasks,
            boot=factory.boot,
            gate=self,
            runs=Line(config.runs, config.waiting_runs_total, "this worker"),
            waiting_limit=config.waiting_runs,
            isolation=dict(isolation),
            egress=egress,
        )
        self._trash = Trash(state.new_trash, factory, freed=lambda: self._warm.nudge())
        self._warm = WarmPool(
            config=config,
            default=catalog.default,
            make=factory.make,
            new_directory=state.new_slot,
            discard=self._trash.put,
            room=lambda: self._admission.room,
            busy=lambda: self._boots.running > 0 or self._forker.working,
            free_disk=factory.free_bytes,
            clock=clock,
            hooks=self._hooks,
            available_memory=available_memory,
        )
        self._maker = SessionMaker(
            state=state,
            factory=factory,
            warm=self._warm,
            trash=self._trash,
            services=self._services,
            open_workspace=open_workspace,
            discard=self._trash.put,
            boots=self._boots,
            tasks=self._tasks,
        )
        self._installer = SessionInstaller(
            state=state,
            maker=self._maker,
            sessions=self._sessions,
            services=self._services,
            open_workspace=open_workspace,
            records=records,
            discard=self._trash.put,
        )
        self._ender = SessionEnder(
            sessions=self._sessions,
            factory=factory,
            records=records,
            discard=self._trash.put,
            ended=self._warm.nudge,
            hooks=self._hooks,
            tasks=self._tasks,
            grace_s=config.grace_s,
        )
        self._forker = SessionForker(
            sessions=self._sessions,
            state=state,
            factory=factory,
            warm=self._warm,
            trash=self._trash,
            services=self._services,
            open_workspace=open_workspace,
            boots=self._boots,
            end=lambda session: self._ender.begin(session, "asked").hurry.set(),
        )
        self.ownership = SessionOwnership(self._sessions, state, self._ender.begin)
        """Their epochs."""
        self.expiry = Expiry(self._ender.begin, self._tasks)
        """Whoever saves sessions before their end says so here."""
        self.reaper = Reaper(
            sessions=lambda: list(self._sessions.values()),
            expire=self.expiry.expire,
            persist=Session.save,
            clock=clock,
            max_age_s=config.max_age_s,
            interval_s=config.sweep_interval_s,
        )
        """Sweeps by itself; tests may call ``sweep``."""
        self.adoption = Adoption()
        """What the start found."""

    async def __aenter__(self) -> SessionPool:
        """Adopt a dead worker's sessions, delete its remains, begin to boot ahead.

        Raises:
            WrongState: A newer version of this program wrote a session.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._trash)
            clear_remains(self._state, lambda path: self._trash.put(path, None))
            self.adoption = await adopt_sessions(
                self._state,
                self._factory,
                self._records,
                self._open_workspace,
                lambda path: self._trash.put(path, None),
            )
            for one in self.adoption.adopted:
                session = Session(one.record, one.slot, one.workspace, self._services, adopted=True)
                self._sessions[session.session_id] = session
                self._hooks.session_adopted()
            if self.adoption.adopted:
                log.info("sessions.adopted", count=len(self.adoption.adopted))
                self._tasks.spawn(self._boot_adopted(), "boot-adopted")
            await stack.enter_async_context(self._warm)
            await stack.enter_async_context(self.reaper)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """``close``."""
        await self.close()

    @property
    def draining(self) -> bool:
        """Whether new sessions and tasks are refused."""
        return self._admission.draining

    @property
    def default_limits(self) -> ResourceLimits:
        """Limits of a session that asks for none."""
        return self._config.default_limits

    @property
    def warm(self) -> WarmPool:
        """The sandboxes that wait."""
        return self._warm

    @property
    def runs(self) -> Line:
        """The worker's line of code runs."""
        return self._services.runs

    async def create(self, config: SessionConfig) -> SessionView:
        """Make a session."""
        try:
            request = check_request(config, self._config, self._catalog)
            check_network(self._services.egress, config)
            chosen = [request.session_id] if request.session_id else []
            with self.ownership.claimed(chosen, request.epoch), self._admission.making():
                session = await self._maker.make(request)
                self._sessions[session.session_id] = session
        except WorkerError as error:
            self._hooks.session_refused(reason=error.reason)
            raise
        if self._closed:
            await self.destroy(session.session_id, force=True)
            raise draining()
        return session.view(max_age_s=math.inf)

    async def fork(
        self, session_id: str, count: int, *, new_ids: Sequence[str] = ()
    ) -> Sequence[SessionView]:
        """Copy a session (``SessionForker.fork``)."""
        try:
            parent = self.session(session_id)
            check_count(count, new_ids)
            with self.ownership.claimed(new_ids), self._admission.making(count):
                made = await self._forker.fork(parent, count, new_ids)
        except WorkerError as error:
            self._hooks.session_refused(reason=error.reason)
            raise
        return [session.view() for session in made]

    async def restore(self, plan: RestorePlan) -> SessionView:
        """Make a session from stored bytes; one that lives under the same id gives way at the end.

        A failure leaves no trace: a living session stays as it is.

        Raises: as ``create`` and ``plan.fill``.
            WrongState: The living one has tasks under way.
            Conflict: The living one is held under a higher epoch, or such a one was fenced.
        """
        request = check_request(plan.config, self._config, self._catalog)
        living = self._sessions.get(plan.session_id)
        self.ownership.check_restore(plan.session_id, plan.epoch)
        if living is not None and (living.active_tasks or living.ending):
            raise busy(plan.session_id)
        with self._admission.making(living is None):
            return (await self._installer.restore(plan, request)).view()

    async def destroy(self, session_id: str, *, force: bool) -> None:
        """End a session. Further calls join the first; force hurries a gentle one."""
        session = self.session(session_id)
        ending = self._ender.begin(session, "asked")
        if force:
            ending.hurry.set()
        await asyncio.wait([ending.work])
        ending.work.result()

    async def drain(self, grace_s: float | None = None) -> bool:
        """Take no new sessions and tasks; return when nothing runs, at most after the grace.

        Returns whether everything ended by itself.
        """
        self._admission.draining = True
        self._warm.stop()
        try:
            async with asyncio.timeout(self._config.grace_s if grace_s is None else grace_s):
                for session in list(self._sessions.values()):
                    await session.quiet()
                    await self.expiry.save(session, "drain")
        except TimeoutError:
            return False
        return True

    async def cleaned(self) -> None:
        """Return when everything of ended sessions was given back and deleted."""
        await self._trash.flush()

    async def close(self, *, keep: bool | None = None) -> None:
        """End every sandbox. Idempotent.

        Args:
            keep: Leave the sessions on disk for the next start; None is as configured.
        """
        if self._closed:
            return
        self._closed = self._admission.draining = True
        await self.reaper.__aexit__(None, None, None)
        await self._warm.__aexit__(None, None, None)
        await self._forker.aclose()
        sessions = list(self._sessions.values())
        if self._config.keep_sessions if keep is None else keep:
            await self._ender.put_down(sessions)
        else:
            for session in sessions:
                self._ender.begin(session, "closed").hurry.set()
        await self._ender.settled()
        await self._tasks.aclose()
        try:
            async with asyncio.timeout(CLOSE_WAIT_S):
                await self._trash.flush()
        except TimeoutError:
            log.warning("trash.left", pending=self._trash.pending)
        await self._stack.aclose()

    async def _boot_adopted(self) -> None:
        for session in list(self._sessions.values()):
            if session.record.incarnation > 1 and not session.ending:
                place = self._boots.join()
                try:
                    await place.wait()
                    await session.sandbox()
                except WorkerError as error:
                    log.warning(
                        "session.not_booted", session_id=session.session_id, reason=error.reason
                    )
                finally:
                    place.leave()
                    self._warm.nudge()
