"""Sandboxes booted ahead, so that a session costs one rename instead of a boot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import WorkerError
from codegen_mcp.core.interpreter import Interpreter
from codegen_mcp.core.limits import ResourceLimits
from codegen_mcp.engine import canary, session_store
from codegen_mcp.engine.demand import Demand
from codegen_mcp.engine.hooks import EngineHooks
from codegen_mcp.engine.host_memory import available_memory_bytes
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.engine.pool_config import SessionPoolConfig
from codegen_mcp.engine.slot import Slot, SlotKey

log = structlog.get_logger()

MAX_KINDS = 4
"""Kinds of sandbox (interpreter, disk size, ...) that are kept ready at once."""
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
CALM_S = 0.05
"""After a claim, while others wait: the first run of the new session has the processor first."""
TICK_S = 5.0
"""How often the target is looked at when nothing happens."""

MakeSlot = Callable[[Path, Interpreter, ResourceLimits, dict[str, str]], Awaitable[Slot]]
Discard = Callable[[Path, Slot | None], None]


class WarmPool:
    """Boots one sandbox at a time in the background. An async context manager.

    ``take`` never waits: an empty pool, or one without a fitting sandbox, is a miss, and the
    caller boots its own.
    """

    def __init__(
        self,
        *,
        config: SessionPoolConfig,
        default: Interpreter,
        make: MakeSlot,
        new_directory: Callable[[], Path],
        discard: Discard,
        room: Callable[[], int],
        busy: Callable[[], bool],
        free_disk: Callable[[], int],
        clock: Clock,
        hooks: EngineHooks,
        available_memory: Callable[[], int] = available_memory_bytes,
    ) -> None:
        """Wire it up.

        Args:
            config: Sizes and default limits.
            default: The interpreter that is kept ready always.
            make: ``SlotFactory.make``.
            new_directory: Makes an empty slot directory.
            discard: Takes a directory, and the slot it was, to the trash; never waits.
            room: Sessions that could still be created.
            busy: Whether sandboxes are being booted for callers who wait; they go first.
            free_disk: Bytes of disk that can still be promised.
            clock: For rates.
            hooks: Hears of depth, hits and misses.
            available_memory: Bytes of memory that the host can still give.
        """
        self._config = config
        self._make = make
        self._new_directory = new_directory
        self._discard = discard
        self._room = room
        self._busy = busy
        self._free_disk = free_disk
        self._clock = clock
        self._hooks = hooks
        self._available_memory = available_memory
        self._ready: list[Slot] = []
        self._booting = 0
        self._failures = 0
        self._taken = 0.0
        self._next_trim = self._next_look = clock.monotonic()
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._tasks = OwnedTasks()
        key = SlotKey.of(default, config.default_limits)
        self._kinds: dict[SlotKey, tuple[Demand, Interpreter]] = {
            key: (Demand(key, config.pool_size, clock), default)
        }
        self._closed = config.pool_size == 0
        self.hits = 0
        self.misses = 0

    @property
    def depth(self) -> int:
        """Sandboxes that wait."""
        return len(self._ready)

    @property
    def occupied(self) -> int:
        """Sandboxes that wait or boot."""
        return len(self._ready) + self._booting

    @property
    def target(self) -> int:
        """Sandboxes that should wait now."""
        wanted = sum(demand.target for demand, _ in self._kinds.values())
        return 0 if self._closed else max(0, min(wanted, self._config.pool_max, self._room()))

    async def __aenter__(self) -> WarmPool:
        """Begin to boot."""
        if not self._closed:
            self._tasks.spawn(self._refill(), "warm-pool")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop booting and discard what waits."""
        self._closed = True
        await self._tasks.aclose()
        while self._ready:
            self._drop(self._ready.pop())

    def take(self, interpreter: Interpreter, limits: ResourceLimits) -> Slot | None:
        """Take the longest waiting sandbox that fits and is as it was put by; None is a miss."""
        key = SlotKey.of(interpreter, limits)
        self._note(key, interpreter)
        slot = None
        for candidate in [one for one in self._ready if one.key == key]:
            self._ready.remove(candidate)
            change = canary.changed(candidate)
            if change is None:
                candidate.used = True
                slot = candidate
                break
            self._tell(candidate, change)
            self._drop(candidate)
        if slot is None:
            self.misses += 1
        else:
            self.hits += 1
        self._hooks.pool_taken(hit=slot is not None)
        self._changed()
        self._taken = time.monotonic()
        self._wake.set()
        return slot

    async def give_up_one(self) -> bool:
        """Discard a waiting sandbox, so that a session can have its disk; False when none is.

        One that is just being booted is waited for.
        """
        while self._booting and not self._ready:
            self._settled.clear()
            await self._settled.wait()
        if not self._ready:
            return False
        self._drop(self._ready.pop(0))
        self._changed()
        return True

    @property
    def settled(self) -> bool:
        """Whether nothing boots, and nothing needs to."""
        quiet = not (self._booting or self._busy())
        return quiet and (self._closed or self._next() is None)

    def nudge(self) -> None:
        """There may be room now that was not there before."""
        self._wake.set()

    def stop(self) -> None:
        """Boot nothing more; what waits can still be taken."""
        self._closed = True

    def _note(self, key: SlotKey, interpreter: Interpreter) -> None:
        if key not in self._kinds:
            for old in [k for k, (demand, _) in self._kinds.items() if demand.forgotten]:
                del self._kinds[old]
            if len(self._kinds) >= MAX_KINDS:
                return
            self._kinds[key] = (Demand(key, 0, self._clock), interpreter)
        self._kinds[key][0].asked()

    async def _refill(self) -> None:
        while not self._closed:
            self._wake.clear()
            self._trim()
            await self._look()
            kind = self._next()
            if kind is not None and self._ready:
                calm_s = CALM_S - (time.monotonic() - self._taken)
                if calm_s > 0:
                    await asyncio.sleep(calm_s)
                    continue
            if kind is not None and await self._boot(*kind):
                continue
            pause_s = TICK_S
            if self._failures:
                pause_s = BACKOFF_S[min(self._failures, len(BACKOFF_S)) - 1]
                await asyncio.sleep(pause_s)
                continue
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        """Throw away what is not as it was put by, every ``TICK_S``."""
        if self._clock.monotonic() < self._next_look:
            return
        self._next_look = self._clock.monotonic() + TICK_S
        for slot in list(self._ready):
            change = canary.examined(slot) if slot in self._ready else None
            if change is not None:
                self._ready.remove(slot)
                self._tell(slot, change)
                self._drop(slot)
                self._changed()
            await asyncio.sleep(0)

    def _next(self) -> tuple[Demand, Interpreter] | None:
        if self._busy() or len(self._ready) >= self.target:
            return None
        if self._available_memory() < self._config.pool_free_memory_bytes:
            return None
        free = self._free_disk()
        for demand, interpreter in self._kinds.values():
            waiting = sum(slot.key == demand.key for slot in self._ready)
            if waiting < demand.target and demand.key.disk_bytes <= free:
                return demand, interpreter
        return None

    async def _boot(self, demand: Demand, interpreter: Interpreter) -> bool:
        self._booting += 1
        directory = self._new_directory()
        slot = None
        started = time.monotonic()
        try:
            slot = await self._make(directory, interpreter, self._limits(demand.key), {})
            session_store.prepare(directory)
            canary.park(slot)
        except Exception as error:
            self._failures += 1
            reason = error.reason if isinstance(error, WorkerError) else type(error).__name__
            log.warning("pool.boot_failed", reason=reason, failures=self._failures)
            return False
        finally:
            self._booting -= 1
            if slot is None or slot.pristine is None:
                self._discard(directory, slot)
            else:
                self._ready.append(slot)
            self._settled.set()
        self._failures = 0
        demand.booted(time.monotonic() - started)
        self._changed()
        return True

    def _limits(self, key: SlotKey) -> ResourceLimits:
        return key.applied_to(self._config.default_limits)

    def _trim(self) -> None:
        """Let go what is dead or surplus: no room for it, or a kind that nobody asks for now."""
        wanted = {key for key, (demand, _) in self._kinds.items() if not demand.forgotten}
        for slot in list(self._ready):
            if slot.key not in wanted or slot.sandbox is None or not slot.sandbox.alive:
                self._ready.remove(slot)
                self._drop(slot)
        while len(self._ready) > max(self._room(), 0):
            self._drop(self._ready.pop(0))
        if len(self._ready) > self.target and self._clock.monotonic() >= self._next_trim:
            self._next_trim = self._clock.monotonic() + TICK_S  # demand may well come back
            self._drop(self._ready.pop(0))
        self._changed()

    def _tell(self, slot: Slot, change: canary.Change) -> None:
        if change is canary.Change.LOST:
            log.warning("pool.sandbox_lost", directory=slot.directory.name)
            return
        log.error("pool.sandbox_tampered", directory=slot.directory.name, change=change.value)
        self._hooks.pool_tampered(change=change.value)

    def _drop(self, slot: Slot) -> None:
        self._discard(slot.directory, slot)

    def _changed(self) -> None:
        self._hooks.pool_depth(ready=len(self._ready), target=self.target)
