"""Whatever happens in whatever order: counts are right, nobody is leaked, no limit exceeded."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from codegen_mcp.core.errors import Draining, Full, NotFound, SandboxUnavailable
from codegen_mcp.core.limits import GIB, MIB, ResourceLimits
from codegen_mcp.core.session import SessionConfig, SessionState
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.testing.memory_pool import MemoryPool, until

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))
MAX_SESSIONS = 4
LIMITS = ResourceLimits(disk_bytes=64 * MIB, file_size_bytes=64 * MIB)
CONFIG = SessionPoolConfig(
    max_sessions=MAX_SESSIONS,
    pool_size=2,
    idle_timeout_s=100,
    max_age_s=10_000,
    grace_s=0.01,
    sweep_interval_s=3600,
    default_limits=LIMITS,
    maximum_limits=replace(LIMITS, memory_bytes=1 * GIB, disk_bytes=128 * MIB),
)
T = TypeVar("T")

SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))


class Pool(RuleBasedStateMachine):
    """The pool against a dictionary of what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.files: dict[str, bytes] = {}
        self.tasks: dict[str, list[tuple[asyncio.Event, asyncio.Task[None]]]] = {}
        self.draining = False
        self.rig: MemoryPool

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize(room=st.sampled_from([1024 * GIB, 256 * MIB]))
    def start(self, room: int) -> None:
        self.room = room
        self.run(self.open())

    async def open(self) -> None:
        self.rig = MemoryPool(Path(self.directory.name), CONFIG, room_bytes=self.room)
        self.rig.backend.refuse = lambda spec: "REFUSE" in spec.env
        await self.rig.__aenter__()
        self.draining = False

    def pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(list(self.files)))

    @rule(
        language=st.sampled_from(["", "python", "python3.12"]),
        refuses=st.booleans(),
        memory=st.sampled_from([100 * MIB, 512 * MIB]),
        disk=st.sampled_from([64 * MIB, 128 * MIB]),
    )
    def create(self, language: str, memory: int, disk: int, refuses: bool) -> None:
        limits = replace(LIMITS, memory_bytes=memory, disk_bytes=disk)
        before = len(self.files)

        async def work() -> None:
            try:
                env = {"REFUSE": "1"} if refuses else {}
                config = SessionConfig(language=language, limits=limits, env=env)
                view = await self.rig.pool.create(config)
            except Draining:
                assert self.draining
            except SandboxUnavailable:
                assert refuses
            except Full as error:
                crowded = before >= MAX_SESSIONS or error.reason == "DISK_FULL"
                assert (crowded, bool(error.retry_after_s)) == (True, True)  # noqa: PT017
            else:
                assert before < MAX_SESSIONS
                content = view.session_id.encode()
                await self.rig.pool.workspace(view.session_id).write(
                    "f", content, create_dirs=False, mode=None
                )
                self.files[view.session_id] = content

        self.run(work())

    @rule(count=st.integers(2, 8))
    def burst(self, count: int) -> None:
        async def work() -> None:
            made = await asyncio.gather(
                *(self.rig.pool.create(SessionConfig()) for _ in range(count)),
                return_exceptions=True,
            )
            for one in made:
                if isinstance(one, BaseException):
                    assert isinstance(one, Full | Draining)
                    continue
                self.files[one.session_id] = content = one.session_id.encode()
                await self.rig.pool.workspace(one.session_id).write(
                    "f", content, create_dirs=False, mode=None
                )

        self.run(work())

    @rule(patience=st.integers(0, 6))
    def create_and_leave(self, patience: int) -> None:
        async def work() -> None:
            creation = asyncio.create_task(self.rig.pool.create(SessionConfig()))
            for _ in range(patience):
                await asyncio.sleep(0)
            creation.cancel()
            await asyncio.wait([creation])
            if not creation.cancelled() and creation.exception() is None:
                await self.rig.pool.destroy(creation.result().session_id, force=True)

        self.run(work())

    @precondition(lambda self: self.files)
    @rule(data=st.data(), force=st.booleans(), twice=st.booleans())
    def destroy(self, data: st.DataObject, force: bool, twice: bool) -> None:
        session_id = self.pick(data)
        calls = [self.rig.pool.destroy(session_id, force=force)]
        if twice:
            calls.append(self.rig.pool.destroy(session_id, force=not force))

        async def work() -> None:
            await asyncio.gather(*calls)

        self.run(work())
        self.gone(session_id)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def begin_task(self, data: st.DataObject) -> None:
        session_id = self.pick(data)

        async def work() -> None:
            stop = asyncio.Event()

            async def task() -> None:
                session = self.rig.pool.session(session_id)
                try:
                    with session.activity(lambda reason: stop.set()):
                        async with session.run_slot():
                            await session.sandbox()
                            await stop.wait()
                except (Draining, Full, NotFound, SandboxUnavailable):
                    pass

            running = asyncio.create_task(task())
            self.tasks.setdefault(session_id, []).append((stop, running))
            await asyncio.sleep(0)

        self.run(work())

    @precondition(lambda self: any(self.tasks.values()))
    @rule(data=st.data())
    def end_task(self, data: st.DataObject) -> None:
        session_id = data.draw(st.sampled_from([key for key, some in self.tasks.items() if some]))
        stop, running = self.tasks[session_id].pop(0)

        async def work() -> None:
            stop.set()
            await asyncio.wait_for(running, 10)

        self.run(work())

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def lose_sandbox(self, data: st.DataObject) -> None:
        sandbox = self.rig.pool.session(self.pick(data)).slot.sandbox
        if sandbox is not None:
            sandbox.lose()  # type: ignore[attr-defined]

    @rule()
    def lose_a_waiting_sandbox(self) -> None:
        used = {session.slot.sandbox for session in map(self.rig.pool.session, self.files)}
        for sandbox in self.rig.backend.open - used:  # type: ignore[operator]
            sandbox.lose()
            break

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        session_id = self.pick(data)

        async def work() -> None:
            read = await self.rig.pool.workspace(session_id).read("f", 0, 1000)
            assert read[0] == self.files[session_id]
            sandbox = await self.rig.pool.session(session_id).sandbox()
            assert sandbox.alive

        try:
            self.run(work())
        except SandboxUnavailable:
            session = self.rig.pool.session(session_id)
            assert session.state is SessionState.FAILED
            assert "REFUSE" in session.env

    @rule(seconds=st.sampled_from([1.0, 60.0, 101.0]))
    def time_passes(self, seconds: float) -> None:
        self.rig.clock.advance(seconds)
        expired = [
            session_id
            for session_id in self.files
            if self.rig.pool.session(session_id).idle_s >= 100
        ]

        async def work() -> None:
            await self.rig.pool.reaper.sweep()
            await until(lambda: not set(expired) & {v.session_id for v in self.rig.pool.list()})

        self.run(work())
        for session_id in expired:
            self.gone(session_id)

    @rule(keep=st.booleans())
    def restart(self, keep: bool) -> None:
        async def work() -> None:
            await self.rig.pool.close(keep=keep)
            await asyncio.gather(*(task for some in self.tasks.values() for _, task in some))
            left = self.rig.kept
            assert left.pop("directories") == (len(self.files) if keep else 0)
            assert not any(left.values()), left
            self.rig.state.close()
            await self.open()

        self.run(work())
        self.tasks.clear()
        if not keep:
            self.files.clear()

    @precondition(lambda self: not self.draining and len(self.files) > 2)
    @rule()
    def drain(self) -> None:
        self.draining = True
        self.run(self.rig.pool.drain(grace_s=0))

    def gone(self, session_id: str) -> None:
        del self.files[session_id]

        async def work() -> None:
            await asyncio.gather(*(task for _, task in self.tasks.pop(session_id, [])))

        self.run(work())

    async def settle(self) -> None:
        pool = self.rig.pool
        await until(lambda: pool.warm.settled)
        await pool.cleaned()
        await until(lambda: pool.warm.settled)
        for _ in range(5):
            await asyncio.sleep(0)

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.run(self.settle())
        pool = self.rig.pool
        assert {view.session_id for view in pool.list()} == set(self.files)
        assert pool.capacity().active == len(self.files) <= MAX_SESSIONS
        assert len(self.files) + pool.warm.depth <= MAX_SESSIONS
        assert self.rig.kept["users"] == len(self.files) + pool.warm.depth
        running = sum(len(some) for some in self.tasks.values())
        assert sum(view.active_tasks for view in pool.list()) <= running
        for view in pool.list():
            assert (view.state is SessionState.BUSY) <= (view.active_tasks > 0)

    def teardown(self) -> None:
        try:
            if hasattr(self, "rig"):
                self.run(self.rig.pool.close(keep=False))
                for some in self.tasks.values():
                    for _, task in some:
                        self.run(asyncio.wait_for(task, 10))
                assert not any(self.rig.kept.values()), self.rig.kept
                self.rig.state.close()
        finally:
            self.runner.close()
            self.directory.cleanup()


TestPool = Pool.TestCase
TestPool.settings = settings(
    max_examples=400 if SOAK else 20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
