"""The state of one session, and the sandbox that the state speaks of: lost, booted anew, buried."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from codegen_mcp.core.errors import Draining, SandboxUnavailable
from codegen_mcp.core.session import SessionState, check_transition
from codegen_mcp.engine.activity import Activity
from codegen_mcp.engine.pause import checkpoint_under_way, not_found
from codegen_mcp.engine.session_services import SessionServices
from codegen_mcp.engine.slot import Slot
from codegen_mcp.sandbox.base import Sandbox

log = structlog.get_logger()

LOST = "the sandbox ended by itself; files are kept and the next use gets a new one"
REBOOTED = "the sandbox ended by itself and was replaced; files were kept"


class SessionLife:
    """Moves a session from state to state; every move is checked against the table."""

    def __init__(
        self,
        session_id: str,
        slot: Slot,
        activity: Activity,
        services: SessionServices,
        *,
        worked: Callable[[], bool],
        booted: Callable[[], object],
        note: str,
    ) -> None:
        """Be READY where the slot has a sandbox, else INITIALIZING.

        Args:
            session_id: Whose life it is.
            slot: Where its sandbox is kept.
            activity: Its tasks under way.
            services: Shared by all sessions.
            worked: Whether it ever had a task.
            booted: Called after each boot.
            note: What is told of it at first.
        """
        self._session_id = session_id
        self._slot = slot
        self._activity = activity
        self._services = services
        self._worked = worked
        self._booted = booted
        self._booting: asyncio.Task[None] | None = None
        self._state = SessionState.INITIALIZING
        self.note = note
        """One sentence for whoever asks; empty where there is nothing to say."""
        if slot.sandbox is not None:
            self._move(SessionState.READY)

    @property
    def state(self) -> SessionState:
        """Its state; notices a sandbox that ended by itself."""
        if self._state in (SessionState.READY, SessionState.IDLE, SessionState.BUSY):
            sandbox = self._slot.sandbox
            if sandbox is None or not sandbox.alive:
                self._lost()
        return self._state

    @property
    def ending(self) -> bool:
        """Whether it is being destroyed."""
        return self._state is SessionState.DRAINING

    def check_open(self) -> None:
        """Refuse when it is being destroyed.

        Raises:
            NotFound: It is.
        """
        if self.ending:
            raise not_found(self._session_id)

    def work_began(self) -> None:
        """Be BUSY: a task was counted."""
        if self.state in (SessionState.READY, SessionState.IDLE):
            self._move(SessionState.BUSY)

    def work_ended(self) -> None:
        """Be IDLE where the task that ends, and is still counted, is the last."""
        if self._activity.active == 1 and self.state is SessionState.BUSY:
            self._move(SessionState.IDLE)

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Be CHECKPOINTING inside, where the state allows it; what it was counts afterwards.

        Raises:
            WrongState: A checkpoint of it is being made already.
            NotFound: The session is being destroyed.
        """
        self.check_open()
        before = self.state
        if before is SessionState.CHECKPOINTING:
            raise checkpoint_under_way(self._session_id)
        if before in (SessionState.READY, SessionState.BUSY, SessionState.IDLE):
            self._move(SessionState.CHECKPOINTING)
        try:
            yield
        finally:
            if self._state is SessionState.CHECKPOINTING:
                fresh = before is SessionState.READY and not self._worked()
                rest = SessionState.READY if fresh else SessionState.IDLE
                self._move(SessionState.BUSY if self._activity.active else rest)

    async def sandbox(self) -> Sandbox:
        """Return a live sandbox; boots a new one, files kept, when the last one was lost.

        Raises:
            SandboxUnavailable: It could not be booted; the next call tries again.
            NotFound: The session is being destroyed.
        """
        self.check_open()
        if self.state in (SessionState.FAILED, SessionState.INITIALIZING):
            if self._booting is None:
                self._booting = self._services.tasks.spawn(self._reboot(), "session-boot")
            booting = self._booting
            await asyncio.wait([booting])  # a caller that leaves does not end it for the others
            self.check_open()
            if booting.cancelled():
                raise Draining("the worker is shutting down and boots no sandbox; use another one")
            booting.result()
        sandbox = self._slot.sandbox
        if sandbox is None:
            raise SandboxUnavailable("the session has no sandbox; try again")
        return sandbox

    def drain(self) -> None:
        """Become DRAINING: files cannot be used any more; idempotent."""
        if not self.ending:
            self._move(SessionState.DRAINING)
            self._activity.close(not_found(self._session_id))

    async def boot_no_more(self) -> None:
        """End a boot that is under way."""
        if self._booting is not None:
            self._booting.cancel()
            await asyncio.wait([self._booting])

    async def bury(self) -> None:
        """Kill the sandbox, where there is one."""
        if self._slot.sandbox is not None:
            await self._slot.sandbox.aclose()
            self._slot.sandbox = None

    def _move(self, to: SessionState) -> None:
        check_transition(self._state, to)
        self._state = to

    def _lost(self) -> None:
        self._move(SessionState.FAILED)
        self.note = LOST
        self._services.hooks.sandbox_lost()
        log.warning("session.sandbox_lost", session_id=self._session_id)

    async def _reboot(self) -> None:
        try:
            lost = self._state is SessionState.FAILED
            if lost:
                self._move(SessionState.INITIALIZING)
            old, self._slot.sandbox = self._slot.sandbox, None
            if old is not None:
                await old.aclose()
            try:
                sandbox = await self._services.boot(self._slot)
            except Exception as error:
                if not self.ending:
                    self._move(SessionState.FAILED)
                    self.note = f"no sandbox could be booted: {error}"
                raise
            self._slot.sandbox = sandbox
            self._booted()
            if self.ending:
                return  # ``bury`` closes it
            if lost:
                self.note = REBOOTED
            worked = lost or self._worked()
            self._move(SessionState.IDLE if worked else SessionState.READY)
            if self._activity.active:
                self._move(SessionState.BUSY)
        finally:
            self._booting = None
