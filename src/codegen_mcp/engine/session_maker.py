"""Makes a session from a request: claims a waiting sandbox, or boots one."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from codegen_mcp.core.errors import Draining, Full, SandboxUnavailable
from codegen_mcp.core.ids import check_session_id, new_session_id
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.core.session import SessionConfig
from codegen_mcp.engine import session_store
from codegen_mcp.engine.interpreter_catalog import InterpreterCatalog
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.engine.ports import OpensWorkspaces
from codegen_mcp.engine.run_line import Line
from codegen_mcp.engine.session import Session
from codegen_mcp.engine.session_checks import (
    check_checkpoint_interval,
    check_env,
    check_epoch,
    check_idle_timeout,
    check_limits,
    check_metadata,
    check_name,
)
from codegen_mcp.engine.session_record import SessionRecord
from codegen_mcp.engine.session_services import SessionServices
from codegen_mcp.engine.slot import Slot
from codegen_mcp.engine.slot_factory import SlotFactory
from codegen_mcp.engine.state_directory import StateDirectory
from codegen_mcp.engine.trash import Trash
from codegen_mcp.engine.warm_pool import WarmPool

log = structlog.get_logger()
T = TypeVar("T")

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
RETRY_AFTER_S = 5.0

ROOM_WAIT_S = 5.0
"""How long a creation waits for disk that ended sessions are about to give back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRequest:
    """A checked request."""

    workspace_id: str
    user_id: str
    interpreter: Interpreter
    limits: ResourceLimits
    env: dict[str, str]
    metadata: dict[str, str]
    idle_timeout_s: float
    durability: str = "interval"
    auto_restore: bool = False
    checkpoint_interval_s: float = 0.0
    allow_network: bool = False
    allow_hosts: tuple[str, ...] = ()
    session_id: str = ""
    """Empty: a fresh one."""
    epoch: int = 1


def check_request(
    asked: SessionConfig, config: SessionPoolConfig, catalog: InterpreterCatalog
) -> SessionRequest:
    """Check and complete what a caller asks for.

    Raises:
        InvalidRequest: Something of it is malformed, too much, or not to be had here.
    """
    idle_s = config.idle_timeout_s if asked.idle_timeout_s is None else asked.idle_timeout_s
    return SessionRequest(
        workspace_id=check_name("workspace_id", asked.workspace_id),
        user_id=check_name("user_id", asked.user_id),
        interpreter=catalog.resolve(asked.language),
        limits=check_limits(asked.limits or config.default_limits, config.maximum_limits),
        env=check_env(asked.env),
        metadata=check_metadata(asked.metadata),
        idle_timeout_s=check_idle_timeout(idle_s, config.max_idle_timeout_s),
        durability=str(asked.durability),
        auto_restore=asked.auto_restore,
        checkpoint_interval_s=check_checkpoint_interval(
            config.checkpoint_interval_s
            if asked.checkpoint_interval_s is None
            else asked.checkpoint_interval_s
        ),
        allow_network=asked.allow_network,
        allow_hosts=tuple(asked.allow_hosts),
        session_id=check_session_id(asked.session_id) if asked.session_id else "",
        epoch=check_epoch(asked.epoch),
    )


class SessionMaker:
    """The way from a checked request to a live session at its final place."""

    def __init__(
        self,
        *,
        state: StateDirectory,
        factory: SlotFactory,
        warm: WarmPool,
        trash: Trash,
        services: SessionServices,
        open_workspace: OpensWorkspaces,
        discard: Callable[[Path, Slot | None], None],
        boots: Line,
        tasks: OwnedTasks,
    ) -> None:
        """Wire it up; ``tasks`` owns the boots, ``boots`` is the line that they wait in."""
        self._state = state
        self._factory = factory
        self._warm = warm
        self._trash = trash
        self._services = services
        self._open_workspace = open_workspace
        self._discard = discard
        self._boots = boots
        self._tasks = tasks

    async def make(self, request: SessionRequest) -> Session:
        """Make it.

        Raises:
            Full: No disk or host user is left.
            SandboxUnavailable: No sandbox could be booted.
        """
        with full_when_refused():
            return await self._make(request)

    async def _make(self, request: SessionRequest) -> Session:
        started = time.monotonic()
        slot = self._warm.take(request.interpreter, request.limits)
        session = None
        if slot is not None:
            try:
                session = await self._claim(slot, request)
            except SandboxUnavailable:
                log.warning("pool.claim_failed", directory=slot.directory.name)
        pooled = session is not None
        if session is None:
            session = await self._claim(await self._cold(request), request)
        seconds = time.monotonic() - started
        self._services.hooks.session_created(pooled=pooled, seconds=seconds)
        log.info(
            "session.created",
            session_id=session.session_id,
            pooled=pooled,
            milliseconds=round(seconds * 1000, 2),
        )
        return session

    async def _claim(self, slot: Slot, request: SessionRequest) -> Session:
        """Give a booted slot to a session; the slot is discarded when that fails."""
        try:
            await fit(slot, request)
            session_id = request.session_id or new_session_id()
            now_ms = self._services.clock.unix_ms()
            record = SessionRecord(
                session_id=session_id,
                workspace_id=request.workspace_id,
                user_id=request.user_id,
                interpreter=request.interpreter.name,
                limits=request.limits,
                env=request.env,
                metadata=request.metadata,
                idle_timeout_s=request.idle_timeout_s,
                created_at_ms=now_ms,
                last_activity_ms=now_ms,
                identity=slot.identity,
                durability=request.durability,
                epoch=request.epoch,
                auto_restore=request.auto_restore,
                checkpoint_interval_s=request.checkpoint_interval_s,
                allow_network=request.allow_network,
                allow_hosts=request.allow_hosts,
            )
            session_store.save_new(slot.directory, record)
            directory = self._state.session(session_id)
            slot.directory.rename(directory)
            slot.moved(directory)
            workspace = self._open_workspace(slot)
            return Session(record, slot, workspace, self._services)
        except BaseException:
            self._discard(slot.directory, slot)
            raise

    async def slot(self, request: SessionRequest) -> Slot:
        """Return a booted slot that fits and is nobody's: the caller installs or discards it.

        Raises: as ``make``.
        """
        slot = self._warm.take(request.interpreter, request.limits)
        if slot is None:
            slot = await self._cold(request)
        try:
            await fit(slot, request)
        except BaseException:
            self._discard(slot.directory, slot)
            raise
        return slot

    async def _cold(self, request: SessionRequest) -> Slot:
        """Boot a slot in a task of its own: a caller that leaves half-way leaves nothing behind."""
        boot = self._tasks.spawn(self._boot(request), "session-create")
        try:
            await asyncio.wait([boot])
        except asyncio.CancelledError:
            boot.cancel()
            self._tasks.spawn(self._abandon(boot), "session-create-abandoned")
            raise
        if boot.cancelled():
            raise Draining("the worker is shutting down and takes no new sessions; use another one")
        return boot.result()

    async def _abandon(self, boot: asyncio.Task[Slot]) -> None:
        await asyncio.wait([boot])
        if not boot.cancelled() and boot.exception() is None:
            slot = boot.result()
            self._discard(slot.directory, slot)

    async def _boot(self, request: SessionRequest) -> Slot:
        place = self._boots.join()
        try:
            await place.wait()
            return await with_room(lambda: self._boot_once(request), self._warm, self._trash)
        finally:
            place.leave()
            self._warm.nudge()

    async def _boot_once(self, request: SessionRequest) -> Slot:
        directory = self._state.new_slot()
        try:
            return await self._factory.make(
                directory, request.interpreter, request.limits, request.env
            )
        except BaseException:
            self._discard(directory, None)
            raise


@contextmanager
def full_when_refused() -> Iterator[None]:
    """Raise Full for what the kernel refuses for want of disk while the block runs."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise Full(
            f"the disk of the worker is full ({error.strerror}): a session cannot be made; "
            "destroy sessions, or free space on the host",
            reason="DISK_FULL",
            retry_after_s=RETRY_AFTER_S,
        ) from error


async def with_room(
    work: Callable[[], Awaitable[T]], warm: WarmPool, trash: Trash, wait_s: float = ROOM_WAIT_S
) -> T:
    """Do it, and again after a Full.

    What a waiting sandbox or an ended session holds is as good as free: that is given up first.

    Raises: as ``work``.
        Full: There is no room after ``wait_s`` seconds, or nothing to give up.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        try:
            return await work()
        except Full:
            try:
                async with asyncio.timeout_at(deadline):
                    if not (await warm.give_up_one() or trash.pending):
                        raise
                    await trash.progress()
            except TimeoutError:
                pass
            if loop.time() >= deadline:
                raise


async def fit(slot: Slot, request: SessionRequest) -> None:
    """Give a booted slot what was asked for.

    Raises:
        SandboxUnavailable: Its sandbox was lost.
    """
    sandbox = slot.sandbox
    if sandbox is None:
        raise SandboxUnavailable("the sandbox was lost; try again")
    if slot.limits != request.limits:
        await sandbox.set_limits(request.limits)
        slot.limits = request.limits
    if slot.env != request.env:
        await sandbox.set_environment(request.env)
        slot.env = request.env
