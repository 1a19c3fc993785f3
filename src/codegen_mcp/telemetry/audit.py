"""The audit log: whoever records waits until it is written; one thread writes for all.

Records that come while others are written go out together, so a disk that waits for each write is
asked once for many.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import structlog

from codegen_mcp.core.clock import Clock, SystemClock
from codegen_mcp.core.errors import Unavailable
from codegen_mcp.core.gathering import gather_s
from codegen_mcp.telemetry.audit_chain import Head
from codegen_mcp.telemetry.audit_config import AuditConfig
from codegen_mcp.telemetry.audit_thread import AuditThread
from codegen_mcp.telemetry.audit_writer import AuditWriter
from codegen_mcp.version import __version__

log = structlog.get_logger()

BUSY = 2
"""After a write of so many records the next one waits for more: each costs a thread its turn."""
RETRY_S = 1.0
"""How soon what could not be written is tried again."""
REASON = "AUDIT_UNAVAILABLE"
MOST_KEPT = 10_000
"""Records that wait for a disk that cannot be written; more are counted as missed."""


@dataclass(slots=True)
class _Waiting:
    record: Mapping[str, Any]
    written: asyncio.Future[None] | None
    keep: bool
    """Tried again until it is written: what it tells of has happened."""


class AuditLog:
    """An async context manager; leaving it writes what is left, and publishes the head.

    Attributes:
        config: How careful it is.
        published: The head as it was last logged, for metrics: after each interval, at the start
            and at the end. What was written since can be replaced unseen, and nothing before it.
        missed: Records that were given up, in this process's life.
        under_way: Calls that have begun and not ended, as whoever records them counts.
    """

    def __init__(self, config: AuditConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.published = Head()
        self.missed = 0
        self.under_way = 0
        self._clock = clock or SystemClock()
        self._writer = AuditWriter(config)
        self._thread = AuditThread()
        self._second = (-1, "")
        """The last one that was asked for, and as text."""
        self._waiting: list[_Waiting] = []
        self._gap = 0
        self._written = 0
        """Records of the last write."""
        self._wake = asyncio.Event()
        self._closing = False
        self._failing = ""
        self._task: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None

    @property
    def failing(self) -> bool:
        """Whether the last write failed."""
        return bool(self._failing)

    @property
    def head(self) -> Head:
        """Of what is written by now."""
        return self._writer.head

    async def __aenter__(self) -> AuditLog:
        """Open it.

        Raises:
            Corrupt: What is there is damaged. Conflict: Another process writes it. OSError.
        """
        try:
            await self._thread.run(self._writer.open, self._now())
            start = {"kind": "start", "version": __version__, "contents": self.config.contents}
            await self._thread.run(self._writer.append, [self._stamped(start)], self._now())
            await self._thread.run(self._writer.sync)
        except BaseException:
            await self._shut()
            raise
        self._publish()
        self._task = asyncio.create_task(self._run(), name="audit-writer")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.post({"kind": "stop"})
        self._closing = True
        self._wake.set()
        try:
            assert self._task is not None
            await self._task
            if self._tidying is not None:
                await self._tidying
        finally:
            await self._shut()

    async def _shut(self) -> None:
        await self._thread.run(self._writer.close)
        self._thread.stop()

    async def record(self, record: Mapping[str, Any], *, keep: bool = False) -> None:
        """Return when it is written (on the disk, with ``sync_s`` 0).

        Args:
            record: JSON values, ``kind`` among them; the time is added.
            keep: It tells of what has happened: where it cannot be written now that is no error,
                and it is written as soon as that is possible.

        Raises:
            Unavailable: It cannot be written, and ``required`` asks for that; reason
            AUDIT_UNAVAILABLE.
        """
        if self._closing:
            raise cannot_record()
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(self._stamped(record), written, keep))
        self._wake.set()
        await written

    def post(self, record: Mapping[str, Any]) -> None:
        """Have something written that has happened, without waiting: for callers that are gone."""
        self._waiting.append(_Waiting(self._stamped(record), None, True))
        self._wake.set()

    async def _run(self) -> None:
        """Write until closed; whoever waits when that ends is told that it will not be."""
        try:
            await self._serve()
        finally:
            self._closing = True
            for one in self._waiting:
                if one.written is not None and not one.written.done():
                    one.written.set_exception(cannot_record())

    async def _serve(self) -> None:
        now = asyncio.get_running_loop().time
        synced = told = now()
        while True:
            await self._pause(now(), synced, told)
            self._wake.clear()
            closing = self._closing
            if self._waiting or self._gap:
                if self._written >= BUSY and not closing and (pause := gather_s(self.under_way)):
                    await asyncio.sleep(pause)
                await self._write(last=closing)
            if not self._writer.unsynced:
                synced = now()
            elif closing or now() - synced >= self.config.sync_s:
                await self._sync()
                synced = now()
            if self._writer.head == self.published:
                told = now()
            elif closing or now() - told >= self.config.head_s:
                self._publish()
                told = now()
            if closing:
                return
            if self._writer.full and (self._tidying is None or self._tidying.done()):
                self._tidying = asyncio.create_task(self._tidy(), name="audit-tidy")

    async def _pause(self, now: float, synced: float, told: float) -> None:
        """Wait for a record, or for what is due by itself."""
        if self._wake.is_set():
            return
        due: list[float] = []
        if self._writer.unsynced:
            due.append(synced + self.config.sync_s - now)
        if self._writer.head != self.published:
            due.append(told + self.config.head_s - now)
        if self._failing:
            due.append(RETRY_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(due)) if due else None):
                await self._wake.wait()

    async def _tidy(self) -> None:
        """Compress what is full; a disk without room for that is asked again at the next file."""
        try:
            await asyncio.to_thread(self._writer.tidy)
        except Exception as error:
            log.warning("audit.not_tidied", path=str(self.config.directory), why=str(error))

    async def _write(self, *, last: bool) -> None:
        batch, self._waiting = self._waiting, []
        self._written = len(batch)
        records = [one.record for one in batch]
        gap = self._gap
        if gap:
            records.insert(0, self._stamped({"kind": "gap", "missed": gap}))
        try:
            await self._thread.run(self._put, records)
        except Exception as error:  # the log of whoever looks for the cause has it, once
            self._not_written(batch, error, last=last)
            return
        self._gap -= gap
        if self._failing:
            log.warning("audit.works_again", missed=gap)
            self._failing = ""
        for one in batch:
            if one.written is not None and not one.written.done():
                one.written.set_result(None)

    def _put(self, records: list[Mapping[str, Any]]) -> None:
        self._writer.append(records, self._now())
        if self.config.sync_s == 0:
            self._writer.sync()

    def _not_written(self, batch: list[_Waiting], error: Exception, *, last: bool) -> None:
        why = getattr(error, "strerror", None) or repr(error)
        if why != self._failing:
            log.error("audit.not_written", path=str(self.config.directory), why=why)
            self._failing = why
        required = self.config.required
        kept: list[_Waiting] = []
        for one in batch:
            waits = one.written is not None and not one.written.done()
            if one.keep and required and not last and len(kept) < MOST_KEPT:
                kept.append(_Waiting(one.record, None, True))
            elif required and not one.keep:
                pass  # nothing has happened, and the caller is told
            else:
                self._gap += 1
                self.missed += 1
            if waits and one.written is not None:
                if required and not one.keep:
                    one.written.set_exception(cannot_record())
                else:
                    one.written.set_result(None)
        self._waiting[:0] = kept

    async def _sync(self) -> None:
        try:
            await self._thread.run(self._writer.sync)
        except OSError as error:
            self._failing = error.strerror or repr(error)
            log.error("audit.not_synced", path=str(self.config.directory), why=self._failing)

    def _publish(self) -> None:
        head = self._writer.head
        if head != self.published:
            self.published = head
            log.info("audit.head", sequence=head.sequence, digest=head.digest)

    def _stamped(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"at": self._now(), **record}

    def _now(self) -> str:
        second, ms = divmod(self._clock.unix_ms(), 1000)
        known, text = self._second
        if known != second:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = (second, text)
        return f"{text}.{ms:03d}Z"


def cannot_record() -> Unavailable:
    """Return the refusal of a call that would leave no trace."""
    return Unavailable(
        "the call cannot be recorded in the audit log now, and was not made; try again later "
        "(whoever runs this service finds the cause in its log)",
        reason=REASON,
        retry_after_s=5.0,
    )
