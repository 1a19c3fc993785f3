"""Two stages of stopping: the first signal drains, the second ends at once."""

from __future__ import annotations

import asyncio
import signal
from types import TracebackType

import structlog

log = structlog.get_logger()

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ShutdownSignals:
    """An async context manager that owns SIGTERM and SIGINT while it is open.

    Attributes:
        drain: Set by the first signal: finish what runs, take nothing new.
        exit: Set by the second one: stop now.
    """

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.exit = asyncio.Event()

    async def __aenter__(self) -> ShutdownSignals:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._received, number)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.remove_signal_handler(number)

    def _received(self, number: signal.Signals) -> None:
        second = self.drain.is_set()
        log.info("worker.signal", signal=number.name, stage="exit" if second else "drain")
        (self.exit if second else self.drain).set()
